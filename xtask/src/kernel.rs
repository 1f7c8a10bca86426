//! The kernel of the lab's guests. It is Debian's, unpacked below the target directory and never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;

/// An unpacked kernel.
pub(crate) struct Kernel {
    /// The release that `uname -r` prints under it.
    pub(crate) version: String,
    /// The directory with `boot` and `lib/modules`.
    pub(crate) root: PathBuf,
}

impl Kernel {
    /// The kernel in `lab`. It is downloaded when it is missing.
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
        Ok(Self {
            version: version
                .into_string()
                .map_err(|name| anyhow::anyhow!("the kernel's version {name:?} is not UTF-8"))?,
            root,
        })
    }

    /// The image to boot.
    pub(crate) fn image(&self) -> PathBuf {
        let unpacked = self.root.join("vmlinux");
        if unpacked.exists() { unpacked } else { self.root.join("boot").join(format!("vmlinuz-{}", self.version)) }
    }

    /// The files of `modules` and of their dependencies, in the order in which they load.
    pub(crate) fn modules(&self, modules: &[&str]) -> Result<Vec<PathBuf>> {
        let mut files: Vec<PathBuf> = Vec::new();
        for module in modules {
            let mut show = Command::new("/sbin/modprobe");
            show.args(["--set-version", &self.version, "--show-depends", module]).arg("--dirname").arg(&self.root);
            for line in command::output(&mut show)?.lines() {
                // Each line is "insmod FILE PARAMETERS" or "builtin NAME".
                let file = line.strip_prefix("insmod ").map(|rest| PathBuf::from(rest.trim_end()));
                files.extend(file.filter(|file| !files.contains(file)));
            }
        }
        Ok(files)
    }
}

/// Unpacks in a temporary directory and renames it at the end. An interrupted run leaves no incomplete kernel.
fn download(lab: &Path, root: &Path) -> Result<()> {
    let aside = lab.join("kernel.new");
    if aside.exists() {
        fs::remove_dir_all(&aside)?;
    }
    fs::create_dir_all(&aside)?;
    let package = newest()?;
    println!("Fetching Debian's kernel for the lab's guests into {} (70 MB, not installed): {package}", root.display());
    let mut download = Command::new("apt-get");
    // As root, apt would download as the user _apt, who may not be able to write here.
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

/// Extracts the kernel from a bzImage (Linux's Documentation/arch/x86/boot.rst). QEMU boots it directly. An emulated guest
/// would spend half of its boot on unpacking.
fn unpack(image: &Path, kernel: &Path) -> Result<()> {
    let bytes = fs::read(image)?;
    let payload =
        payload(&bytes).with_context(|| format!("{} is not a bzImage compressed with xz", image.display()))?;
    let packed = kernel.with_extension("xz");
    fs::write(&packed, payload)?;
    command::output(Command::new("xz").arg("--decompress").arg(&packed))?;
    Ok(())
}

/// The compressed kernel in a bzImage, when the compression is xz.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let number = |at: usize| usize::try_from(u32::from_le_bytes(*image.get(at..)?.first_chunk()?)).ok();
    // The header counts the setup code in units of 512 bytes, without the boot sector.
    let setup = (usize::from(*image.get(0x1f1)?) + 1) * 512;
    // The length includes the last four bytes, which are the size of the unpacked kernel.
    let payload = image.get(setup + number(0x248)?..)?.get(..number(0x24c)?.checked_sub(4)?)?;
    payload.starts_with(b"\xfd7zXZ\0").then_some(payload)
}

/// The package that `linux-image-amd64` depends on now.
fn newest() -> Result<String> {
    let depends = command::output(Command::new("apt-cache").args(["depends", "linux-image-amd64"]))?;
    let package = depends.lines().find_map(|line| {
        let (_, package) = line.split_once("Depends: ")?;
        package.starts_with("linux-image-").then(|| package.to_owned())
    });
    match package {
        Some(package) => Ok(package),
        None => bail!("apt finds no kernel package; run `apt-get update` as root and try again"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payload_is_found_in_image_with_xz_only() {
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
