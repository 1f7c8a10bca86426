//! The kernel of the lab's guests: Debian's own, unpacked below the target directory and never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;

/// An unpacked kernel.
pub(crate) struct Kernel {
    /// What `uname -r` says under it.
    pub(crate) version: String,
    /// The directory with `boot` and `lib/modules`.
    pub(crate) root: PathBuf,
}

impl Kernel {
    /// The kernel in `lab`, fetched if there is none.
    pub(crate) fn fetch(lab: &Path) -> Result<Self> {
        let root = lab.join("kernel");
        if !root.exists() {
            download(lab, &root)?;
        }
        Self::at(root)
    }

    /// The kernel that is unpacked at `root`.
    pub(crate) fn at(root: PathBuf) -> Result<Self> {
        let mut versions = fs::read_dir(root.join("lib/modules"))?;
        let version = versions.next().context("the kernel package has no modules")??.file_name();
        Ok(Self { version: version.into_string().map_err(|name| anyhow::anyhow!("strange version {name:?}"))?, root })
    }

    /// The image to boot.
    pub(crate) fn image(&self) -> PathBuf {
        let unpacked = self.root.join("vmlinux");
        if unpacked.exists() { unpacked } else { self.root.join("boot").join(format!("vmlinuz-{}", self.version)) }
    }

    /// The files of `modules` and of all they depend on, in the order in which they load.
    pub(crate) fn modules(&self, modules: &[&str]) -> Result<Vec<PathBuf>> {
        let mut files: Vec<PathBuf> = Vec::new();
        for module in modules {
            let mut show = Command::new("/sbin/modprobe");
            show.args(["--set-version", &self.version, "--show-depends", module]).arg("--dirname").arg(&self.root);
            for line in command::output(&mut show)?.lines() {
                // Each line is "insmod FILE PARAMETERS", or "builtin NAME".
                let file = line.strip_prefix("insmod ").map(|rest| PathBuf::from(rest.trim_end()));
                files.extend(file.filter(|file| !files.contains(file)));
            }
        }
        Ok(files)
    }
}

/// Unpacks aside and moves into place at the end, so that an interrupted run leaves nothing that looks complete.
fn download(lab: &Path, root: &Path) -> Result<()> {
    let aside = lab.join("kernel.new");
    if aside.exists() {
        fs::remove_dir_all(&aside)?;
    }
    fs::create_dir_all(&aside)?;
    let package = newest()?;
    println!("Fetching Debian's kernel for the lab's guests into {} (70 MB, not installed): {package}", root.display());
    let mut download = Command::new("apt-get");
    // As root, apt would download as a user who may not be able to write here, and warn.
    download.args(["download", "-qq", "-o", "APT::Sandbox::User=root", &package]).current_dir(&aside);
    command::output(&mut download)?;
    let archive = fs::read_dir(&aside)?.next().context("apt-get downloaded nothing")??.path();
    command::output(Command::new("dpkg").arg("--extract").arg(&archive).arg(&aside))?;
    fs::remove_file(archive)?;
    let version = package.strip_prefix("linux-image-").unwrap_or_default();
    command::output(Command::new("/sbin/depmod").arg("--basedir").arg(&aside).arg(version))?;
    unpack(&aside.join("boot").join(format!("vmlinuz-{version}")), &aside.join("vmlinux"))?;
    fs::rename(&aside, root)?;
    Ok(())
}

/// Takes the kernel proper out of a bzImage (Linux's Documentation/arch/x86/boot.rst). QEMU boots it as well, and a guest
/// that is emulated does not have to unpack it, which would be half of its boot.
fn unpack(image: &Path, kernel: &Path) -> Result<()> {
    let bytes = fs::read(image)?;
    let payload = payload(&bytes).with_context(|| format!("{} is no bzImage packed with xz", image.display()))?;
    let packed = kernel.with_extension("xz");
    fs::write(&packed, payload)?;
    command::output(Command::new("xz").arg("--decompress").arg(&packed))?;
    Ok(())
}

/// The packed kernel in a bzImage, when it is packed with xz.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let number = |at: usize| usize::try_from(u32::from_le_bytes(*image.get(at..)?.first_chunk()?)).ok();
    // In units of 512 bytes; the boot sector itself is not counted.
    let setup = (usize::from(*image.get(0x1f1)?) + 1) * 512;
    // The size of the kernel follows the packed bytes, and is counted with them.
    let payload = image.get(setup + number(0x248)?..)?.get(..number(0x24c)?.checked_sub(4)?)?;
    payload.starts_with(b"\xfd7zXZ\0").then_some(payload)
}

/// The package that `linux-image-amd64` stands for today.
fn newest() -> Result<String> {
    let depends = command::output(Command::new("apt-cache").args(["depends", "linux-image-amd64"]))?;
    let package = depends.lines().find_map(|line| {
        let (_, package) = line.split_once("Depends: ")?;
        package.starts_with("linux-image-").then(|| package.to_owned())
    });
    match package {
        Some(package) => Ok(package),
        None => bail!("apt knows no kernel package; run `apt-get update` as root and try again"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_of_an_image_is_found() {
        let mut image = vec![0; 0x250];
        image[0x1f1] = 1;
        image[0x248] = 3;
        image[0x24c] = 10;
        image.resize(1024 + 3, 0xee);
        image.extend(b"\xfd7zXZ\0SIZE");
        assert_eq!(payload(&image), Some(&b"\xfd7zXZ\0"[..]));
        image[1024 + 3] = 0;
        assert_eq!(payload(&image), None);
        assert_eq!(payload(&[]), None);
    }
}
