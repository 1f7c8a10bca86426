//! The type of the file system of a path: statfs(2) returns it as a number.

use std::fmt;
use std::io;
use std::path::Path;

use rustix::fs::statfs;

/// The hosts that can reach the files of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// This host alone.
    Host,
    /// Several hosts.
    Hosts,
    /// Its type does not tell.
    Unknown,
}

/// The type of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileSystem {
    number: u64,
}

impl FileSystem {
    /// Of what is at `path`.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        // The kernel's type is as wide as a register, and signed on some machines; the numbers have 32 bits.
        Ok(Self { number: u64::from(statfs(path)?.f_type as u32) })
    }

    fn known(self) -> Option<(&'static str, Reach)> {
        TYPES.iter().find(|(number, _, _)| *number == self.number).map(|(_, name, reach)| (*name, *reach))
    }

    pub(crate) fn reach(self) -> Reach {
        self.known().map_or(Reach::Unknown, |(_, reach)| reach)
    }

    /// Whether what is written there is gone when the host restarts.
    pub(crate) fn is_volatile(self) -> bool {
        matches!(self.known(), Some(("tmpfs" | "ramfs", _)))
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.known() {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "file system type {:#x}", self.number),
        }
    }
}

/// Whether `path` is on a file system of a type that this host alone reaches.
///
/// # Errors
///
/// Those of statfs(2).
pub fn is_on_local_file_system(path: &Path) -> io::Result<bool> {
    Ok(FileSystem::of(path)?.reach() == Reach::Host)
}

/// `f_type` of statfs(2): the manual page, linux/magic.h, and the file systems' own headers for those that are not part
/// of
/// Linux. FUSE is any program's own file system, local or not, so its type tells nothing; 9P and virtiofs (which is
/// FUSE)
/// show a directory of another machine, which that machine and other guests may use too.
const TYPES: &[(u64, &str, Reach)] = &[
    (0xef53, "ext4", Reach::Host),
    (0x5846_5342, "xfs", Reach::Host),
    (0x9123_683e, "btrfs", Reach::Host),
    (0x2fc1_2fc1, "zfs", Reach::Host),
    (0xf2f5_2010, "f2fs", Reach::Host),
    (0xca45_1a4e, "bcachefs", Reach::Host),
    (0x0102_1994, "tmpfs", Reach::Host),
    (0x8584_58f6, "ramfs", Reach::Host),
    (0x794c_7630, "overlayfs", Reach::Host),
    (0x3153_464a, "jfs", Reach::Host),
    (0x5265_4973, "reiserfs", Reach::Host),
    (0x3434, "nilfs2", Reach::Host),
    (0x2405_1905, "ubifs", Reach::Host),
    (0x6969, "nfs", Reach::Hosts),
    (0xff53_4d42, "cifs", Reach::Hosts),
    (0xfe53_4d42, "smb2", Reach::Hosts),
    (0x517b, "smbfs", Reach::Hosts),
    (0x0116_1970, "gfs2", Reach::Hosts),
    (0x7461_636f, "ocfs2", Reach::Hosts),
    (0x00c3_6400, "ceph", Reach::Hosts),
    (0x0bd0_0bd0, "lustre", Reach::Hosts),
    (0x4750_4653, "gpfs", Reach::Hosts),
    (0x1983_0326, "beegfs", Reach::Hosts),
    (0x2003_0528, "orangefs", Reach::Hosts),
    (0xaad7_aaea, "panfs", Reach::Hosts),
    (0x5346_414f, "afs", Reach::Hosts),
    (0x6b41_4653, "kafs", Reach::Hosts),
    (0x7375_7245, "coda", Reach::Hosts),
    (0x0102_1997, "9p", Reach::Hosts),
    (0x786f_4256, "vboxsf", Reach::Hosts),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_known_by_their_numbers() {
        let ext4 = FileSystem { number: 0xef53 };
        assert_eq!((ext4.to_string().as_str(), ext4.reach(), ext4.is_volatile()), ("ext4", Reach::Host, false));
        let nfs = FileSystem { number: 0x6969 };
        assert_eq!((nfs.to_string().as_str(), nfs.reach()), ("nfs", Reach::Hosts));
        let fuse = FileSystem { number: 0x6573_5546 };
        assert_eq!((fuse.to_string().as_str(), fuse.reach()), ("file system type 0x65735546", Reach::Unknown));
    }

    #[test]
    fn no_type_is_listed_twice() {
        for (index, (number, name, _)) in TYPES.iter().enumerate() {
            assert!(TYPES[..index].iter().all(|(other, _, _)| other != number), "{name}");
        }
    }

    #[test]
    fn a_path_is_looked_at() {
        // procfs can have no store, so its type is not listed.
        assert_eq!(FileSystem::of(Path::new("/proc")).expect("procfs").to_string(), "file system type 0x9fa0");
        assert!(FileSystem::of(Path::new("/proc/none")).is_err());
    }
}
