//! Where things are: the sources, the programs that cargo built, and what the lab fetched.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The directories that the chores work in.
pub(crate) struct Place {
    /// The root of the sources.
    pub(crate) workspace: PathBuf,
    /// Where `cargo build` puts the programs of the profile and target that this program was built with.
    pub(crate) programs: PathBuf,
    /// What the lab fetched and built: a kernel, initramfs, console logs. It may be deleted at any time.
    pub(crate) lab: PathBuf,
}

impl Place {
    /// From where this program is: cargo put it next to the others, below the target directory.
    pub(crate) fn find() -> Result<Self> {
        let program = std::env::current_exe().context("find out where this program is")?;
        let programs = program.parent().context("find the directory of this program")?.to_path_buf();
        let target = programs.parent().context("find the target directory")?;
        // Where cargo runs us from; where we were built, if it does not.
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let workspace = Path::new(&manifest).parent().context("find the root of the sources")?;
        Ok(Self { workspace: workspace.to_path_buf(), lab: target.join("lab"), programs })
    }

    /// One of our programs.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// What the kernel said in the last boot called `boot`.
    pub(crate) fn console(&self, boot: &str) -> PathBuf {
        self.lab.join(boot).join("console.log")
    }
}
