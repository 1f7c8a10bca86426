//! The directories of the sources, of the built programs, and of downloaded files.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The directories that the tasks work in.
pub(crate) struct Workspace {
    /// The root of the sources.
    pub(crate) root: PathBuf,
    /// Where `cargo build` puts the programs of the profile and target that this program was built with.
    pub(crate) programs: PathBuf,
    /// The target directory.
    pub(crate) target: PathBuf,
    /// Downloads and logs of the lab: a kernel, initramfs, consoles. It may be deleted at any time.
    pub(crate) lab: PathBuf,
    /// Tools that cargo installs for the tests, with their programs in `bin`. It may be deleted at any time.
    pub(crate) tools: PathBuf,
}

impl Workspace {
    /// Finds the directories from the path of this program, which cargo puts below the target directory.
    pub(crate) fn find() -> Result<Self> {
        let program = std::env::current_exe().context("find the path of this program")?;
        let programs = program.parent().context("find the directory of this program")?.to_path_buf();
        let target = programs.parent().context("find the target directory")?;
        // cargo sets the variable when it runs this program; the path at build time is for other callers.
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = Path::new(&manifest).parent().context("find the root of the sources")?.to_path_buf();
        let target = target.to_path_buf();
        Ok(Self { root, lab: target.join("lab"), tools: target.join("tools"), target, programs })
    }

    /// The path of the program `name` of this project.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// The kernel log of the last boot called `boot`.
    pub(crate) fn console(&self, boot: &str) -> PathBuf {
        self.lab.join(boot).join("console.log")
    }
}
