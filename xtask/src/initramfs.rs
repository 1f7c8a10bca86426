//! Initramfs of the guests: a static busybox, some kernel modules, some programs, and a script.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::command;
use crate::kernel::Kernel;
use crate::packages;

/// A tree of files that becomes an initramfs.
pub(crate) struct Initramfs {
    tree: PathBuf,
    modules: Vec<String>,
}

impl Initramfs {
    /// An empty tree at `tree` with busybox in it.
    pub(crate) fn new(tree: PathBuf) -> Result<Self> {
        if tree.exists() {
            fs::remove_dir_all(&tree)?;
        }
        fs::create_dir_all(tree.join("bin"))?;
        Self { tree, modules: Vec::new() }.with_program("busybox")
    }

    fn add(&self, file: &Path, inside: &str) -> Result<()> {
        let inside = self.tree.join(inside);
        fs::create_dir_all(inside.parent().expect("every file is in a directory"))?;
        fs::copy(file, &inside).with_context(|| format!("copy {} into an initramfs", file.display()))?;
        Ok(())
    }

    /// Adds `modules` and their dependencies.
    pub(crate) fn with_modules(mut self, kernel: &Kernel, modules: &[&str]) -> Result<Self> {
        for file in kernel.modules(modules)? {
            let name = file.file_name().and_then(OsStr::to_str).context("the file name of a module is not UTF-8")?;
            self.add(&file, &format!("modules/{name}"))?;
            // Busybox cannot load compressed modules.
            if name.ends_with(".xz") {
                command::output(Command::new("xz").arg("--decompress").arg(self.tree.join("modules").join(name)))?;
            }
            self.modules.push(name.strip_suffix(".xz").unwrap_or(name).to_owned());
        }
        Ok(self)
    }

    /// Adds a program of this machine with its shared libraries.
    pub(crate) fn with_program(self, name: &str) -> Result<Self> {
        let program = packages::find(name).with_context(|| format!("{name} is not installed"))?;
        self.add(&program, &format!("bin/{name}"))?;
        // ldd fails for a static program, which has no shared libraries.
        let libraries = command::output(Command::new("ldd").arg(&program)).unwrap_or_default();
        for field in libraries.split_whitespace() {
            // ldd prints "NAME => FILE (ADDRESS)", and the loader as "FILE (ADDRESS)".
            if let Some(inside) = field.strip_prefix('/') {
                self.add(Path::new(field), inside)?;
            }
        }
        Ok(self)
    }

    /// Packs the tree into `archive`. At boot, process 1 loads the modules and then runs `script` in busybox's shell.
    pub(crate) fn pack(self, archive: &Path, script: &str) -> Result<()> {
        let init = self.tree.join("init");
        fs::write(&init, format!("{START}MODULES='{}'\n{LOAD}{script}", self.modules.join(" ")))?;
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
        let mut pack = Command::new("/bin/sh");
        pack.args(["-ec", "find . | busybox cpio --quiet -o -H newc -R 0:0 >\"$0\""])
            .arg(archive)
            .current_dir(&self.tree);
        command::output(&mut pack)?;
        fs::remove_dir_all(&self.tree)?;
        Ok(())
    }
}

const START: &str = "\
#!/bin/busybox sh
export PATH=/bin
busybox mkdir -p /proc /sys /dev
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
";

const LOAD: &str = "\
for module in $MODULES; do insmod /modules/$module; done
";
