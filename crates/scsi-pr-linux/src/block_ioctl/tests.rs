//! The manager on descriptors that there are everywhere.

use super::*;
use crate::device::tests::{Tree, block_device};
use crate::models::commands;
use proptest::prelude::*;
use rustix::fs::{Mode, OFlags, open};
use scsi_pr::Cdb;
use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;

const fn shareable<T: Send + Sync>() {}
const _: () = shareable::<BlockIoctl>();

fn command(opcode: Opcode, service_action: u8, list: &[u8]) -> Command<'_> {
    let mut bytes = [0; 16];
    (bytes[0], bytes[1], bytes[2]) = (opcode.byte(), service_action, if opcode == Opcode::ReserveOut { 1 } else { 0 });
    let length = if opcode == Opcode::ReserveOut { list.len() as u16 } else { 8192 };
    bytes[7..9].copy_from_slice(&length.to_be_bytes());
    Command::new(Cdb::new(bytes).unwrap(), list).unwrap()
}

const KEYS: [u8; 24] = [1; 24];

#[test]
fn what_is_no_block_device_has_no_reservations() {
    let manager = BlockIoctl::default();
    let none = Completion::check(SenseCode::INVALID_OPCODE);
    let memory = rustix::fs::memfd_create("scsi-pr-linux", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let path = open("/dev/null", OFlags::PATH, Mode::empty()).unwrap();
    for device in [
        OpenOptions::new().read(true).write(true).open("/dev/null").unwrap().into(),
        File::open("/").unwrap().into(),
        std::io::pipe().unwrap().0.into(),
        memory,
        path,
    ] {
        for service_action in 0..4 {
            let read = manager.execute(device.as_fd(), command(Opcode::ReserveIn, service_action, &[]));
            assert_eq!(read.unwrap(), none);
            let write = manager.execute(device.as_fd(), command(Opcode::ReserveOut, service_action, &KEYS));
            assert_eq!(write.unwrap(), none);
        }
        assert_eq!(manager.execute(device.as_fd(), Command::cleanup()).unwrap(), Completion::Good(Vec::new()));
    }
}

#[test]
fn a_block_device_without_reservations_says_so_or_says_that_it_may_not_be_asked() {
    let manager = BlockIoctl::default();
    let none = Ok(Completion::check(SenseCode::INVALID_OPCODE));
    for name in ["loop0", "vda", "zram0"] {
        // Not every machine has them, and not everybody may open them.
        let Ok(device) = File::open(format!("/dev/{name}")) else { continue };
        for service_action in 0..3 {
            let read = command(Opcode::ReserveIn, service_action, &[]);
            let answer = manager.try_execute(device.as_fd(), read);
            assert!(answer == none || answer.is_err(), "{name}: {answer:?}");
        }
        let reserve = command(Opcode::ReserveOut, 1, &KEYS);
        let answer = manager.try_execute(device.as_fd(), reserve);
        assert!(answer == none || answer.is_err(), "{name}: {answer:?}");
        let answer = manager.execute(device.as_fd(), reserve).unwrap();
        assert!([SenseCode::INVALID_OPCODE, SenseCode::IO_PROCESS_TERMINATED].map(Completion::check).contains(&answer));
    }
}

#[test]
fn what_a_device_is_comes_from_sysfs() {
    let Some((device, number)) = block_device() else { return };
    let quirks = |tree: &Tree| BlockIoctl::new(tree.sysfs()).quirks(device.as_fd());
    let expected = |device_mapper, nvme| Ok(DriverQuirks { device_mapper, nvme });
    for (subsystem, nvme) in [("scsi", false), ("nvme", true), ("nvme-subsystem", true)] {
        let disk = Tree::new();
        disk.block("devices/block/disk", &number, &[]);
        disk.subsystem("devices/block/disk", subsystem);
        assert_eq!(quirks(&disk), expected(false, nvme), "{subsystem}");
        for uuid in ["mpath-1", "LVM-1", ""] {
            let mapped = Tree::new();
            mapped.block("devices/block/disk", "99:0", &[]);
            mapped.subsystem("devices/block/disk", subsystem);
            mapped.device_mapper("devices/block/dm-0", &number, ["map", uuid], &["devices/block/disk"]);
            assert_eq!(quirks(&mapped), expected(true, nvme), "{subsystem} {uuid}");
        }
    }
    // An unknown property counts as `true`.
    assert_eq!(quirks(&Tree::new()), expected(true, true));
    let partition = Tree::new();
    partition.partition("devices/block/sda/sda1", &number);
    let refused = quirks(&partition);
    assert!(matches!(refused, Err(CommandError::Refused(SenseCode::INVALID_OPCODE, _))), "{refused:?}");
}

proptest! {
    #[test]
    fn no_command_is_good_where_none_can_run(command in commands()) {
        let null = File::open("/dev/null").unwrap();
        let answer = BlockIoctl::default().execute(null.as_fd(), command.command()).unwrap();
        prop_assert_eq!(answer, Completion::check(SenseCode::INVALID_OPCODE));
    }
}
