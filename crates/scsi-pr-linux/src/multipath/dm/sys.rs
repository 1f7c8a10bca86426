//! Device mapper's ioctls (Linux `linux/dm-ioctl.h`).

use std::fs::File;
use std::mem::offset_of;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::ioctl::{Opcode, opcode};

use crate::device::Number;
use crate::sys::call;

/// `DM_DEV_SUSPEND`, which resumes when the flag to suspend is not set.
const DEV_SUSPEND: Opcode = opcode::read_write::<Header>(0xfd, 6);

/// `DM_TARGET_MSG`.
const TARGET_MESSAGE: Opcode = opcode::read_write::<Header>(0xfd, 14);

/// `DM_UUID_LEN`, the NUL included.
const UUID_LENGTH: usize = 129;

/// `struct dm_ioctl`.
#[repr(C)]
struct Header {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_number: u32,
    padding: u32,
    device: u64,
    name: [u8; 128],
    uuid: [u8; UUID_LENGTH],
    data: [u8; 7],
}

/// `struct dm_ioctl` with a `struct dm_target_msg` behind it.
#[repr(C)]
struct Message {
    header: Header,
    sector: u64,
    text: [u8; 64],
}

const _: () = {
    assert!(size_of::<Message>() == 384 && offset_of!(Message, sector) == 312);
    assert!(size_of::<Header>() == 312);
    assert!(offset_of!(Header, flags) == 28 && offset_of!(Header, device) == 40);
    assert!(offset_of!(Header, name) == 48 && offset_of!(Header, uuid) == 176);
    // As `dmsetup` makes it, as strace(1) shows.
    if cfg!(target_arch = "x86_64") {
        assert!(DEV_SUSPEND == 0xc138_fd06 && TARGET_MESSAGE == 0xc138_fd0e);
    }
};

/// Resumes the device with this DM UUID. One that is not suspended stays as it is.
///
/// # Errors
///
/// Those of opening `/dev/mapper/control`, and the ioctl's: `ENXIO` when there is no such device.
pub(in super::super) fn resume(uuid: &str) -> Result<(), Errno> {
    let mut header = header(uuid).ok_or(Errno::NAMETOOLONG)?;
    let control = control()?;
    // SAFETY: the opcode is of device mapper's control device alone, and takes a `struct dm_ioctl` of `data_size` bytes,
    // whose layout is checked above. The kernel writes to no more than these. The structure has no pointers, and is
    // borrowed exclusively until the call returns. A file of another driver at this path would not know the opcode.
    unsafe { call(control.as_fd(), DEV_SUSPEND, &raw mut header) }.map(drop)
}

/// Has the multipath target of the device with this DM UUID fail the path with this device number (Linux
/// `drivers/md/dm-mpath.c`). Device mapper tells multipathd, which reinstates the path once it works.
///
/// # Errors
///
/// Those of opening `/dev/mapper/control`, and the ioctl's: `ENXIO` when there is no such device, `EINVAL` when it has no
/// such path.
pub(in super::super) fn fail_path(uuid: &str, path: Number) -> Result<(), Errno> {
    let mut message = message(uuid, &format!("fail_path {path}")).ok_or(Errno::NAMETOOLONG)?;
    let control = control()?;
    // SAFETY: as in `resume`; `data_size` is that of the whole structure, and the kernel checks that the text, which ends
    // with NUL, lies within it.
    unsafe { call(control.as_fd(), TARGET_MESSAGE, &raw mut message) }.map(drop)
}

fn control() -> Result<File, Errno> {
    let control = File::options().read(true).write(true).open("/dev/mapper/control");
    control.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// A message to the target at the start of the device with this UUID; `None` when one of them is too long.
fn message(uuid: &str, text: &str) -> Option<Message> {
    let mut bytes = [0; 64];
    // The last byte stays NUL.
    bytes[..63].get_mut(..text.len())?.copy_from_slice(text.as_bytes());
    let mut header = header(uuid)?;
    header.data_size = u32::try_from(size_of::<Message>()).expect("some hundred bytes");
    header.data_start = u32::try_from(offset_of!(Message, sector)).expect("some hundred bytes");
    Some(Message { header, sector: 0, text: bytes })
}

/// The header that names the device with this UUID; `None` when it is too long.
fn header(uuid: &str) -> Option<Header> {
    let mut bytes = [0; UUID_LENGTH];
    // The last byte stays NUL.
    bytes[..UUID_LENGTH - 1].get_mut(..uuid.len())?.copy_from_slice(uuid.as_bytes());
    Some(Header {
        // The oldest of this major version: every kernel accepts it.
        version: [4, 0, 0],
        data_size: u32::try_from(size_of::<Header>()).expect("some hundred bytes"),
        data_start: u32::try_from(offset_of!(Header, data)).expect("some hundred bytes"),
        target_count: 0,
        open_count: 0,
        flags: 0,
        event_number: 0,
        padding: 0,
        device: 0,
        name: [0; 128],
        uuid: bytes,
        data: [0; 7],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_by_its_uuid_alone() {
        let header = header("mpath-3600").unwrap();
        assert_eq!((&header.uuid[..11], header.name, header.device), (&b"mpath-3600\0"[..], [0; 128], 0));
        assert_eq!((header.data_size, header.data_start, header.flags), (312, 305, 0));
        let longest = "x".repeat(128);
        assert_eq!(super::header(&longest).unwrap().uuid[127..], [b'x', 0]);
        assert!(super::header(&"x".repeat(129)).is_none());
        assert_eq!(resume(&"x".repeat(129)), Err(Errno::NAMETOOLONG));
    }

    #[test]
    fn a_message_lies_behind_its_header() {
        let message = message("mpath-3600", "fail_path 8:16").unwrap();
        assert_eq!((message.header.data_size, message.header.data_start, message.sector), (384, 312, 0));
        assert_eq!(&message.text[..16], b"fail_path 8:16\0\0");
        assert!(super::message("mpath-3600", &"x".repeat(64)).is_none());
    }

    #[test]
    fn no_path_of_a_missing_map_is_failed() {
        fail_path("mpath-there is no such map", Number { major: 8, minor: 16 }).unwrap_err();
    }

    #[test]
    fn a_missing_map_is_not_resumed() {
        // The error depends on the machine and the user.
        resume("mpath-there is no such map").unwrap_err();
    }
}
