//! The paths of a map, opened one by one: for commands that must go by one path, whichever one device mapper uses now.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::{FileType, OFlags, fstat, major, minor};
use scsi_pr::{Command, Completion, SenseKey};

use super::map::{Map, MapPath};
use crate::device::{Number, Sysfs};
use crate::sg_io::{Reached, SgIo};

/// One path to the logical unit.
pub(super) trait Path {
    /// The kernel's name of its device, as `sda`.
    fn name(&self) -> &str;

    /// Sends `command` once. Returns the answer, and whether it is the unit's.
    fn send(&self, command: Command<'_>) -> (Completion, Reached);

    /// Sends `command`, and again after each unit attention: the unit has not run the command then. The number of retries
    /// is libmpathpersist's.
    fn retry(&self, command: Command<'_>) -> (Completion, Reached) {
        let mut sent = self.send(command);
        for _ in 0..MAX_RETRIES {
            if !is_unit_attention(&sent.0) {
                break;
            }
            sent = self.send(command);
        }
        sent
    }
}

const MAX_RETRIES: usize = 5;

impl Path for Box<dyn Path> {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn send(&self, command: Command<'_>) -> (Completion, Reached) {
        (**self).send(command)
    }
}

/// A path whose device is open.
pub(super) struct OpenPath {
    name: String,
    file: File,
    sg_io: SgIo,
}

impl Path for OpenPath {
    fn name(&self) -> &str {
        &self.name
    }

    fn send(&self, command: Command<'_>) -> (Completion, Reached) {
        self.sg_io.send(self.file.as_fd(), command)
    }
}

/// Opens the usable paths of `map` by their device files below `devices`. It leaves out a path that it cannot open, which
/// may have gone just now, and one that `sysfs` does not have beneath the map any more: its name and number may be those of
/// another disk by now.
pub(super) fn open_all(map: &Map, sysfs: &Sysfs, devices: &std::path::Path) -> Vec<OpenPath> {
    let usable = map.paths.iter().filter(|path| path.usable);
    // Sysfs is read after the open: from then on no other device gets the number, and the map keeps those of its paths.
    usable.filter_map(|path| open(path, devices).ok().filter(|_| map.has(sysfs, path))).collect()
}

fn open(path: &MapPath, devices: &std::path::Path) -> io::Result<OpenPath> {
    let not_blocking = i32::try_from(OFlags::NONBLOCK.bits()).expect("a flag of open is an int");
    // Not blocking, so that a unit that is not ready is opened as well. For reading: the capability to send commands does
    // not depend on the mode, and udev probes a disk again each time a writer closes it.
    let file = File::options().read(true).custom_flags(not_blocking).open(devices.join(&path.name))?;
    let stat = fstat(&file)?;
    let number = Number { major: major(stat.st_rdev), minor: minor(stat.st_rdev) };
    if FileType::from_raw_mode(stat.st_mode) != FileType::BlockDevice || number != path.number {
        return Err(io::Error::other(format!("{} is not the device {}", path.name, path.number)));
    }
    Ok(OpenPath { name: path.name.clone(), file, sg_io: SgIo::new() })
}

fn is_unit_attention(completion: &Completion) -> bool {
    sense_key(completion) == Some(SenseKey::UNIT_ATTENTION)
}

/// Whether the unit says that it cannot answer for now: another path may be a better one (asymmetric access).
pub(super) fn is_not_ready(completion: &Completion) -> bool {
    sense_key(completion) == Some(SenseKey::NOT_READY)
}

fn sense_key(completion: &Completion) -> Option<SenseKey> {
    match completion {
        Completion::CheckCondition(sense) => sense.code().map(|code| code.key),
        _ => None,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::device::tests::Tree;
    use scsi_pr::{ReserveIn, ReserveInAction, SenseCode};
    use std::cell::RefCell;
    use std::os::unix::fs::symlink;

    /// Gives these answers one after the other, and the last one again and again.
    struct Scripted(RefCell<Vec<Completion>>);

    impl Path for Scripted {
        fn name(&self) -> &str {
            "sda"
        }

        fn send(&self, _: Command<'_>) -> (Completion, Reached) {
            let mut answers = self.0.borrow_mut();
            let answer = if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() };
            (answer, Reached::Unit)
        }
    }

    #[test]
    fn a_command_is_sent_again_after_unit_attentions() {
        let attention = || Completion::check(SenseCode::REGISTRATIONS_PREEMPTED);
        let good = || Completion::Good(vec![1]);
        let read = ReserveIn::new(ReserveInAction::ReadKeys, 8).encode();
        let retry = |answers: Vec<_>| Scripted(RefCell::new(answers)).retry(read.command()).0;
        assert_eq!(retry(vec![good()]), good());
        assert_eq!(retry(vec![attention(), attention(), good()]), good());
        // But not for ever.
        assert_eq!(retry(vec![attention()]), attention());
        // A refusal is an answer.
        let refused = Completion::check(SenseCode::INVALID_FIELD_IN_CDB);
        assert_eq!(retry(vec![refused.clone(), good()]), refused);
    }

    #[test]
    fn only_the_devices_of_the_map_are_opened() {
        let devices = tempfile::tempdir().unwrap();
        symlink("/dev/null", devices.path().join("sda")).unwrap();
        std::fs::write(devices.path().join("sdb"), "").unwrap();
        let path =
            |name: &str, minor, usable| MapPath { name: name.to_owned(), number: Number { major: 1, minor }, usable };
        // /dev/null is 1:3, but no block device; a file has the number of none.
        for (name, minor) in [("sda", 3), ("sda", 4), ("sdb", 0), ("sdc", 0)] {
            assert!(open(&path(name, minor, true), devices.path()).is_err(), "{name} {minor}");
        }
        let map = Map {
            number: Number { major: 252, minor: 0 },
            kernel_name: "dm-0".to_owned(),
            alias: "mpatha".to_owned(),
            wwid: "3600".to_owned(),
            paths: vec![path("sda", 3, true), path("sdc", 0, true)],
        };
        assert!(open_all(&map, &Sysfs::default(), devices.path()).is_empty());
    }

    #[test]
    fn only_a_usable_path_that_the_map_still_has_is_opened() {
        let Some((device, number)) = crate::device::tests::block_device() else { return };
        let name = crate::device::Device::of(device.as_fd()).unwrap().name().unwrap().to_owned();
        let map = |usable| Map {
            number: Number { major: 252, minor: 3 },
            kernel_name: "dm-3".to_owned(),
            alias: "mpatha".to_owned(),
            wwid: "3600".to_owned(),
            paths: vec![MapPath { name: name.clone(), number: number.parse().unwrap(), usable }],
        };
        let tree = Tree::new();
        let path = format!("devices/host0/block/{name}");
        tree.block(&path, &number, &[]);
        tree.device_mapper("devices/virtual/block/dm-3", "252:3", ["mpatha", "mpath-3600"], &[&path]);
        let opened = |usable| open_all(&map(usable), &tree.sysfs(), std::path::Path::new("/dev")).len();
        // Not everybody may open it.
        let openable = File::open(std::path::Path::new("/dev").join(&name)).is_ok();
        assert_eq!((opened(true), opened(false)), (usize::from(openable), 0));
        // The map has another disk of that name now; or none.
        tree.write(&format!("{path}/dev"), "8:240\n");
        assert_eq!(opened(true), 0);
        tree.remove(&path);
        assert_eq!(opened(true), 0);
    }
}
