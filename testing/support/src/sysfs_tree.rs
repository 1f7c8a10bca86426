//! [`SysfsTree`]: a directory laid out as sysfs is.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use tempfile::TempDir;

/// A directory laid out as sysfs is. Paths are relative to it; numbers are `MAJOR:MINOR`.
///
/// # Panics
///
/// Its methods panic when a file cannot be made.
#[derive(Debug)]
pub struct SysfsTree(TempDir);

impl Default for SysfsTree {
    fn default() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }
}

impl SysfsTree {
    /// The directory.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file, and makes the directories above it.
    pub fn write(&self, path: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().expect("a file is in a directory")).expect("a directory");
        fs::write(path, bytes).expect("a file");
    }

    /// A block device that is no partition, with the devices directly beneath it.
    pub fn block(&self, path: &str, number: &str, slaves: &[&str]) {
        self.write(&format!("{path}/dev"), format!("{number}\n"));
        let directory = self.path().join(path).join("slaves");
        fs::create_dir_all(&directory).expect("a directory");
        for slave in slaves {
            let slave = self.path().join(slave);
            symlink(&slave, directory.join(slave.file_name().expect("a device has a name"))).expect("a link");
        }
        self.number("block", path, number);
    }

    /// A partition; its number is at the end of `path`.
    pub fn partition(&self, path: &str, number: &str) {
        let disk = path.trim_end_matches(|digit: char| digit.is_ascii_digit());
        self.write(&format!("{path}/dev"), format!("{number}\n"));
        self.write(&format!("{path}/partition"), format!("{}\n", &path[disk.len()..]));
        self.number("block", path, number);
    }

    /// A device-mapper device over others.
    pub fn device_mapper(&self, path: &str, number: &str, [name, uuid]: [&str; 2], slaves: &[&str]) {
        self.block(path, number, slaves);
        self.write(&format!("{path}/dm/name"), format!("{name}\n"));
        self.write(&format!("{path}/dm/uuid"), format!("{uuid}\n"));
    }

    /// The subsystem of a block device's parent.
    pub fn subsystem(&self, path: &str, subsystem: &str) {
        let device = self.path().join(path).join("device");
        fs::create_dir_all(&device).expect("a directory");
        symlink(format!("../../../bus/{subsystem}"), device.join("subsystem")).expect("a link");
    }

    /// The link by which a device is found; `kind` is `block` or `char`.
    pub fn number(&self, kind: &str, path: &str, number: &str) {
        let numbers = self.path().join("dev").join(kind);
        fs::create_dir_all(&numbers).expect("a directory");
        symlink(Path::new("../..").join(path), numbers.join(number)).expect("a link");
    }

    /// Removes a directory.
    pub fn remove(&self, path: &str) {
        fs::remove_dir_all(self.path().join(path)).expect("the directory is there");
    }
}

/// A designator of the page Device Identification: code set; association and type; bytes (SPC-4 7.8.6).
pub type Designator<'a> = (u8, u8, &'a [u8]);

/// The vital product data page 83h, Device Identification: the content of `vpd_pg83`.
pub fn device_identification(designators: &[Designator<'_>]) -> Vec<u8> {
    let mut list = Vec::new();
    for (code_set, kind, bytes) in designators {
        list.extend([*code_set, *kind, 0, u8::try_from(bytes.len()).expect("a short designator")]);
        list.extend(*bytes);
    }
    let length = u16::try_from(list.len()).expect("a short list").to_be_bytes();
    [&[0, 0x83, length[0], length[1]], &list[..]].concat()
}
