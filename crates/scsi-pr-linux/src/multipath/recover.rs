//! Recovery of a map when a process died that ran a command on it: libmpathpersist suspends a map while it takes over a
//! reservation whose holder's path is dead, and between two registrations.

use std::fs;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use scsi_pr::{Completion, Keys, Reservation, ReserveInAction};
use tracing::warn;

use super::dm;
use super::map::Map;
use super::path::{self, Path};
use super::per_path;
use crate::device::{Number, Sysfs};

/// How long another process may keep a map suspended: multipathd swaps a table within milliseconds.
const SUSPEND_TIMEOUT: Duration = Duration::from_secs(2);

/// No event tells that a map is resumed.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Recovers the multipath map with this device number and DM UUID, on which a process ran a command when it died: resumes
/// the map if it stays suspended, and logs the registered keys and the reservation. It needs CAP_SYS_ADMIN, CAP_SYS_RAWIO
/// and root's access to device files, and takes a little more than two seconds for a map that is suspended.
///
/// The UUID proves that the map is still the same, because the kernel uses numbers again. A map that is gone needs no
/// recovery. Do not recover a map that [was suspended](is_suspended) before the command: the process that suspended it
/// resumes it.
pub fn recover(number: Number, uuid: &str) {
    let sysfs = Sysfs::default();
    let resume = |map: &Map| dm::resume(&map.uuid());
    let paths = |map: &Map| path::open_all(map, &sysfs, std::path::Path::new("/dev"));
    match find(&sysfs, number, uuid) {
        Ok(Some(map)) => {
            resume_if_suspended(&map, SUSPEND_TIMEOUT, || suspended(&sysfs, number), || resume(&map));
            log_reservations(&map, &paths(&map));
        }
        Ok(None) => warn!("{uuid} ({number}) is gone, and needs no recovery"),
        Err(error) => {
            warn!("{uuid} ({number}) may be left suspended, because sysfs cannot be read ({error}): {REMEDY}")
        }
    }
}

/// Whether the device-mapper device with this number is suspended; `false` when sysfs cannot be read.
pub fn is_suspended(number: Number) -> bool {
    suspended(&Sysfs::default(), number).unwrap_or(false)
}

/// The remedy for the administrator.
const REMEDY: &str = "check it with `dmsetup info`, and resume it with `dmsetup resume`";

/// The map, if it exists and is still the same.
fn find(sysfs: &Sysfs, number: Number, uuid: &str) -> io::Result<Option<Map>> {
    let map = Map::at(sysfs, sysfs.block(number)?)?.ok();
    Ok(map.filter(|map| uuid.strip_prefix("mpath-") == Some(&map.wwid)))
}

/// Linux `Documentation/ABI/testing/sysfs-block-dm`.
fn suspended(sysfs: &Sysfs, number: Number) -> io::Result<bool> {
    let text = fs::read_to_string(sysfs.block_directory(number).join("dm/suspended"))?;
    Ok(text.trim_end() == "1")
}

/// Resumes a map that stays suspended for `timeout`, and logs it.
fn resume_if_suspended(
    map: &Map,
    timeout: Duration,
    mut is_suspended: impl FnMut() -> io::Result<bool>,
    resume: impl FnOnce() -> Result<(), Errno>,
) {
    let end = Instant::now() + timeout;
    loop {
        match is_suspended() {
            Ok(false) => return,
            Ok(true) if Instant::now() < end => thread::sleep(POLL_INTERVAL),
            Ok(true) => break,
            Err(error) => {
                return warn!("{map} may be left suspended, because sysfs cannot be read ({error}): {REMEDY}");
            }
        }
    }
    match resume() {
        Ok(()) => warn!("{map} was left suspended when the process of a command died, and is resumed"),
        Err(errno) => warn!(
            "{map} was left suspended when the process of a command died, and cannot be resumed ({errno}): {REMEDY}"
        ),
    }
}

/// Logs the registered keys and the reservation of the unit.
fn log_reservations<P: Path>(map: &Map, paths: &[P]) {
    let read = |action| per_path::read(paths, action).map_err(|answer: Completion| answer.to_string());
    let keys = read(ReserveInAction::ReadKeys).and_then(|data| match Keys::parse(&data) {
        Ok(parsed) => Ok(parsed.value.to_string()),
        Err(invalid) => Err(invalid.to_string()),
    });
    let reservation = read(ReserveInAction::ReadReservation).and_then(|data| match Reservation::parse(&data) {
        Ok(parsed) => Ok(parsed.value.to_string()),
        Err(invalid) => Err(invalid.to_string()),
    });
    let text = |result: Result<String, String>| result.unwrap_or_else(|why| format!("cannot be read: {why}"));
    warn!(
        "{map}, as it is now after the process of a command died: registered: {}; reservation: {}",
        text(keys),
        text(reservation)
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::tests::Tree;
    use crate::log::Log;
    use crate::multipath::map::tests::tree;
    use crate::sg_io::Reached;
    use scsi_pr::{Command, SenseCode};
    use std::cell::Cell;

    const NUMBER: Number = Number { major: 252, minor: 3 };
    const UUID: &str = "mpath-3600140500000001";
    const LONG: Duration = Duration::from_secs(600);

    fn map(tree: &Tree) -> Map {
        find(&tree.sysfs(), NUMBER, UUID).unwrap().unwrap()
    }

    fn logged(act: impl FnOnce()) -> Vec<String> {
        let log = Log::at(tracing::Level::WARN);
        log.during(act);
        log.events().into_iter().map(|event| event.message).collect()
    }

    fn not_called() -> Result<(), Errno> {
        panic!("it was resumed")
    }

    #[test]
    fn a_map_is_known_by_its_uuid() {
        let tree = tree("252:3", &["running"]);
        let sysfs = tree.sysfs();
        assert_eq!(map(&tree).alias, "mpatha");
        for other in ["mpath-3600140500000002", "3600140500000001", "", "LVM-3600140500000001"] {
            assert_eq!(find(&sysfs, NUMBER, other).unwrap(), None, "{other}");
        }
        assert_eq!(find(&sysfs, Number { minor: 4, ..NUMBER }, UUID).unwrap(), None);
        let volume = Tree::new();
        volume.device_mapper("devices/virtual/block/dm-3", "252:3", ["vg-lv", UUID.trim_start_matches("mpath-")], &[]);
        assert_eq!(find(&volume.sysfs(), NUMBER, UUID).unwrap(), None);
    }

    #[test]
    fn the_suspended_state_is_read_from_sysfs() {
        let tree = tree("252:3", &["running"]);
        for (text, suspended) in [("0\n", false), ("1\n", true)] {
            tree.write("devices/virtual/block/dm-3/dm/suspended", text);
            assert_eq!(super::suspended(&tree.sysfs(), NUMBER).unwrap(), suspended);
        }
        super::suspended(&tree.sysfs(), Number { minor: 4, ..NUMBER }).unwrap_err();
        // No machine has this one.
        assert!(!is_suspended(Number { major: 252, minor: 0xf_fff0 }));
    }

    #[test]
    fn a_map_that_is_suspended_for_a_moment_is_not_resumed() {
        let map = map(&tree("252:3", &["running"]));
        assert_eq!(logged(|| resume_if_suspended(&map, LONG, || Ok(false), not_called)), [""; 0]);
        let looks = Cell::new(0);
        let reloaded = || {
            looks.set(looks.get() + 1);
            Ok(looks.get() < 3)
        };
        assert_eq!(logged(|| resume_if_suspended(&map, LONG, reloaded, not_called)), [""; 0]);
        assert_eq!(looks.get(), 3);
    }

    #[test]
    fn a_map_that_stays_suspended_is_resumed_and_logged() {
        let map = map(&tree("252:3", &["running"]));
        let resumed = Cell::new(0);
        let resume = || {
            resumed.set(resumed.get() + 1);
            Ok(())
        };
        let lines = logged(|| resume_if_suspended(&map, Duration::from_millis(1), || Ok(true), resume));
        assert_eq!(
            lines,
            [
                "multipath map mpatha (dm-3, 3600140500000001) was left suspended when the process of a command died, and is resumed"
            ]
        );
        assert_eq!(resumed.get(), 1);
        let lines = logged(|| resume_if_suspended(&map, Duration::ZERO, || Ok(true), || Err(Errno::PERM)));
        assert!(lines[0].contains("cannot be resumed") && lines[0].contains("`dmsetup resume`"), "{lines:?}");
        let unreadable = || Err(io::ErrorKind::NotFound.into());
        let lines = logged(|| resume_if_suspended(&map, LONG, unreadable, not_called));
        assert!(lines[0].contains("may be left suspended"), "{lines:?}");
    }

    /// Answers READ KEYS with two keys, and READ RESERVATION with a refusal.
    struct Unit;

    impl Path for Unit {
        fn name(&self) -> &str {
            "sda"
        }

        fn send(&self, command: Command<'_>) -> (Completion, Reached) {
            let mut data = vec![0; 24];
            (data[3], data[7], data[15], data[23]) = (9, 16, 0xa, 0xb);
            let answer = match command.cdb().service_action() {
                0 => Completion::Good(data),
                _ => Completion::check(SenseCode::LUN_NOT_RESPONDING),
            };
            (answer, Reached::Unit)
        }
    }

    #[test]
    fn keys_and_reservation_are_logged() {
        let map = map(&tree("252:3", &["running"]));
        let lines = logged(|| log_reservations(&map, &[Unit]));
        let [line] = &lines[..] else { panic!("{lines:?}") };
        for part in [
            "mpatha",
            "generation 9",
            "0x000000000000000a, 0x000000000000000b",
            "reservation: cannot be read: ",
            "0b/05/00",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
        // Of no path nothing can be read.
        let lines = logged(|| log_reservations::<Unit>(&map, &[]));
        assert_eq!(lines[0].matches("cannot be read").count(), 2, "{lines:?}");
    }

    #[test]
    fn a_map_that_is_gone_needs_nothing() {
        // No machine has this one.
        let lines = logged(|| recover(Number { major: 252, minor: 0xf_fff0 }, "mpath-none"));
        assert_eq!(lines, ["mpath-none (252:1048560) is gone, and needs no recovery"]);
    }
}
