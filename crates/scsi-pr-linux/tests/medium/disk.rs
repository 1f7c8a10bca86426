//! A disk over a real file: what its initiator sees.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use scsi_pr::{Completion, InitiatorPort, Nexus, Reservations, TransportId};
use scsi_pr_disk::{DataIn, Disk, DiskOptions, Identity, Medium, Port, ReservationStore, SessionId, StoreError};
use scsi_pr_linux::medium::{Access, CacheMode, FileMedium, MediumOptions};
use tempfile::TempDir;
use testing_support::require_root;

/// Reservations of which these tests have none.
struct NoReservations(AtomicU64);

impl ReservationStore for NoReservations {
    fn load(&self) -> Result<(u64, Reservations), StoreError> {
        Ok((0, Reservations::new()))
    }

    fn replace(&self, _: u64, _: &Reservations) -> Result<u64, StoreError> {
        Ok(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

/// A disk with one session, whose first unit attention has been taken.
struct Initiator {
    disk: Disk,
    session: SessionId,
    path: PathBuf,
}

impl Initiator {
    fn new(options: &MediumOptions) -> Self {
        let medium = FileMedium::open(options).unwrap();
        let identity = Identity::from_uuid(*b"a disk in a file");
        let disk =
            Disk::open(DiskOptions::new(identity), Box::new(medium), Box::new(NoReservations(1.into()))).unwrap();
        let id = TransportId::new(InitiatorPort::Iscsi { name: "iqn.2026-11.test:a", isid: Some([0; 6]) }).unwrap();
        let session = disk.open_session(Nexus::new(id, 1));
        let initiator = Self { disk, session, path: options.path.clone() };
        assert_eq!(initiator.run(&[0; 6], &[]), "06/29/00");
        initiator
    }

    /// The sense code of the answer, or its data in hexadecimal.
    fn run(&self, cdb: &[u8], data_out: &[u8]) -> String {
        let task = self.disk.add_task(self.session, 1).unwrap();
        let port = Port { relative_target_port: [0, 1], name: String::new() };
        let mut data_in = DataIn::new();
        match self.disk.execute(&task, &port, cdb, data_out, &mut data_in).completion.unwrap() {
            Completion::Good(_) => data_in.bytes().iter().map(|byte| format!("{byte:02x}")).collect(),
            Completion::CheckCondition(sense) => {
                let code = sense.code().unwrap();
                format!("{:02x}/{:02x}/{:02x}", code.key.byte(), code.asc, code.ascq)
            }
            other => panic!("{other}"),
        }
    }

    fn set_length(&self, length: u64) {
        File::options().write(true).open(&self.path).unwrap().set_len(length).unwrap();
    }
}

const TEST_UNIT_READY: [u8; 6] = [0; 6];
const READ_CAPACITY: [u8; 10] = [0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn read(lba: u8, blocks: u8) -> [u8; 10] {
    [0x28, 0, 0, 0, 0, lba, 0, 0, blocks, 0]
}

fn write(lba: u8, blocks: u8) -> [u8; 10] {
    [0x2a, 0, 0, 0, 0, lba, 0, 0, blocks, 0]
}

fn file(directory: &Path, length: u64) -> MediumOptions {
    let path = directory.join("disk");
    File::create(&path).and_then(|file| file.set_len(length)).unwrap();
    MediumOptions::new(path)
}

/// A directory on the file system of the build, which is not in memory.
fn directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

#[test]
fn grown_file_is_a_unit_attention_and_its_new_blocks_are_there() {
    let directory = directory();
    let initiator = Initiator::new(&file(directory.path(), 16 << 10));
    assert_eq!(initiator.run(&read(32, 1), &[]), "05/21/00");
    initiator.set_length(32 << 10);
    assert_eq!(initiator.run(&write(32, 1), &[7; 512]), "", "a command for new blocks finds them");
    assert_eq!(initiator.run(&TEST_UNIT_READY, &[]), "06/2a/09");
    assert_eq!(initiator.run(&READ_CAPACITY, &[]), "0000003f00000200");
}

#[test]
fn new_size_is_a_unit_attention_for_a_command_that_needs_no_size() {
    let directory = directory();
    let initiator = Initiator::new(&file(directory.path(), 16 << 10));
    initiator.set_length(32 << 10);
    initiator.disk.check_capacity();
    assert_eq!(initiator.run(&read(0, 1), &[]), "06/2a/09");
}

#[test]
fn shrunk_file_is_a_unit_attention_and_its_lost_blocks_are_out_of_range() {
    for cache in [CacheMode::Writeback, CacheMode::None] {
        let directory = directory();
        let mut options = file(directory.path(), 16 << 10);
        options.cache = cache;
        let initiator = Initiator::new(&options);
        initiator.set_length(8 << 10);
        assert_eq!(initiator.run(&read(15, 2), &[]), "05/21/00");
        assert_eq!(initiator.run(&read(0, 1), &[]), "06/2a/09");
        assert_eq!(initiator.run(&READ_CAPACITY, &[]), "0000000f00000200");
        initiator.set_length(4 << 10);
        assert_eq!(initiator.run(&write(8, 1), &[7; 512]), "05/21/00");
        assert_eq!(fs::metadata(&initiator.path).unwrap().len(), 4 << 10);
        assert_eq!(initiator.run(&read(0, 1), &[]), "06/2a/09");
    }
}

#[test]
fn file_without_any_block_is_an_absent_medium_until_it_has_some() {
    let directory = directory();
    let initiator = Initiator::new(&file(directory.path(), 16 << 10));
    initiator.set_length(0);
    assert_eq!(initiator.run(&read(0, 1), &[]), "02/3a/00");
    assert_eq!(initiator.run(&TEST_UNIT_READY, &[]), "06/2a/09");
    assert_eq!(initiator.run(&TEST_UNIT_READY, &[]), "02/3a/00");
    assert_eq!(initiator.run(&READ_CAPACITY, &[]), "02/3a/00");
    assert_eq!(initiator.run(&write(0, 1), &[7; 512]), "02/3a/00");
    initiator.set_length(16 << 10);
    assert_eq!(initiator.run(&write(0, 1), &[7; 512]), "");
    assert_eq!(initiator.run(&TEST_UNIT_READY, &[]), "06/2a/09");
}

#[test]
fn size_that_is_no_multiple_of_the_block_is_refused() {
    let directory = directory();
    for (length, message) in [(1000, "no multiple of the block size"), (100, "less than one block")] {
        let medium = FileMedium::open(&file(directory.path(), length)).unwrap();
        let options = DiskOptions::new(Identity::from_uuid(*b"a disk in a file"));
        let refused = Disk::open(options, Box::new(medium), Box::new(NoReservations(1.into())));
        let error = refused.err().expect("the disk is refused").to_string();
        assert!(error.contains(message), "{error}");
    }
}

/// A file system that is unmounted when this is dropped.
struct Mount(TempDir);

impl Mount {
    fn new(arguments: &[&str]) -> Self {
        let directory = directory();
        let mut command = Command::new("mount");
        assert!(command.args(arguments).arg(directory.path()).status().unwrap().success());
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

#[test]
fn full_file_system_is_a_space_allocation_failure_until_there_is_space() {
    require_root!("it mounts a small file system");
    let mount = Mount::new(&["-t", "tmpfs", "-o", "size=64k", "tmpfs"]);
    let filler = mount.path().join("filler");
    let initiator = Initiator::new(&file(mount.path(), 64 << 10));
    fs::write(&filler, vec![1; 32 << 10]).unwrap();
    assert_eq!(initiator.run(&write(0, 64), &[7; 32 << 10]), "");
    assert_eq!(initiator.run(&write(64, 8), &[7; 4096]), "07/27/07");
    assert_eq!(initiator.run(&read(64, 1), &[]), "00".repeat(512));
    // FUA, and WRITE SAME with zeros that keep storage.
    assert_eq!(initiator.run(&[0x2a, 8, 0, 0, 0, 64, 0, 0, 8, 0], &[7; 4096]), "07/27/07");
    assert_eq!(initiator.run(&[0x41, 0, 0, 0, 0, 64, 0, 0, 8, 0], &[0; 512]), "07/27/07");
    fs::remove_file(filler).unwrap();
    assert_eq!(initiator.run(&write(64, 8), &[7; 4096]), "");
    assert_eq!(initiator.run(&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]), "");
}

#[test]
fn file_on_a_read_only_file_system_is_refused_unless_it_is_to_be_read_only() {
    require_root!("it mounts a file system");
    let mount = Mount::new(&["-t", "tmpfs", "tmpfs"]);
    let mut options = file(mount.path(), 64 << 10);
    assert!(Command::new("mount").args(["-o", "remount,ro"]).arg(mount.path()).status().unwrap().success());
    let error = FileMedium::open(&options).expect_err("the medium is refused").to_string();
    assert!(error.contains("serve it read-only"), "{error}");
    options.access = Access::ReadOnly;
    let initiator = Initiator::new(&options);
    assert_eq!(initiator.run(&write(0, 1), &[7; 512]), "07/27/00");
    assert_eq!(initiator.run(&read(0, 1), &[]), "00".repeat(512));
}

/// A block device over a file.
struct Loop(String);

impl Loop {
    /// `None` where there are no loop devices.
    fn new(file: &Path, arguments: &[&str]) -> Option<Self> {
        let output = Command::new("losetup").args(["--find", "--show"]).args(arguments).arg(file).output().ok()?;
        output.status.success().then(|| Self(String::from_utf8(output.stdout).unwrap().trim().to_owned()))
    }

    fn update_size(&self) {
        assert!(Command::new("losetup").args(["--set-capacity", &self.0]).status().unwrap().success());
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn block_device_is_written_unmapped_and_resized() {
    require_root!("it makes a loop device");
    for cache in [CacheMode::Writeback, CacheMode::None] {
        let directory = directory();
        let backing = file(directory.path(), 1 << 20);
        let Some(device) = Loop::new(&backing.path, &[]) else { testing_support::skip!("no loop device") };
        let mut options = MediumOptions::new(&device.0);
        options.cache = cache;
        let initiator = Initiator::new(&options);
        assert!(initiator.disk_is_exclusive(&device.0));
        assert_eq!(initiator.run(&write(8, 16), &[7; 8192]), "");
        assert_eq!(initiator.run(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &unmap(8, 8)), "");
        assert_eq!(initiator.run(&read(8, 16), &[]), "00".repeat(4096) + &"07".repeat(4096));
        assert_eq!(initiator.run(&[0x41, 0, 0, 0, 0, 16, 0, 0, 8, 0], &[0; 512]), "");
        assert_eq!(initiator.run(&read(16, 8), &[]), "00".repeat(4096));
        File::options().write(true).open(&backing.path).unwrap().set_len(64 << 10).unwrap();
        device.update_size();
        assert_eq!(initiator.run(&read(200, 1), &[]), "05/21/00");
        assert_eq!(initiator.run(&write(200, 1), &[7; 512]), "06/2a/09");
        assert_eq!(initiator.run(&write(200, 1), &[7; 512]), "05/21/00");
    }
}

/// The parameter list of UNMAP with one descriptor.
fn unmap(lba: u8, blocks: u8) -> [u8; 24] {
    let mut list = [0; 24];
    (list[1], list[3], list[15], list[19]) = (22, 16, lba, blocks);
    list
}

impl Initiator {
    /// Whether neither a second medium nor a mount gets the block device.
    fn disk_is_exclusive(&self, device: &str) -> bool {
        let second = FileMedium::open(&MediumOptions::new(device));
        let claim = File::options().read(true).custom_flags(0o200).open(device);
        second.is_err_and(|error| error.to_string().contains("in use"))
            && claim.is_err_and(|error| error.kind() == std::io::ErrorKind::ResourceBusy)
    }
}

#[test]
fn blocks_smaller_than_those_of_direct_io_are_refused() {
    require_root!("it makes a loop device");
    let directory = directory();
    let backing = file(directory.path(), 1 << 20);
    let Some(device) = Loop::new(&backing.path, &["--sector-size", "4096"]) else {
        testing_support::skip!("no loop device");
    };
    let mut options = MediumOptions::new(&device.0);
    options.cache = CacheMode::None;
    let error = FileMedium::open(&options).expect_err("the medium is refused").to_string();
    assert!(error.contains("in units of 4096 bytes, but blocks have 512"), "{error}");
    options.block_size = 4096;
    assert_eq!(FileMedium::open(&options).unwrap().size(), 1 << 20);
}
