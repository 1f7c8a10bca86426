//! Device mapper's own ioctl for resuming a device (Linux `linux/dm-ioctl.h`).

use std::fs::File;
use std::mem::offset_of;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::ioctl::{Opcode, opcode};

use crate::sys::call;

/// `DM_DEV_SUSPEND`, which resumes when the flag to suspend is not set.
const DEV_SUSPEND: Opcode = opcode::read_write::<Header>(0xfd, 6);

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

const _: () = {
    assert!(size_of::<Header>() == 312);
    assert!(offset_of!(Header, flags) == 28 && offset_of!(Header, device) == 40);
    assert!(offset_of!(Header, name) == 48 && offset_of!(Header, uuid) == 176);
    // As `dmsetup` makes it, as strace(1) shows.
    if cfg!(target_arch = "x86_64") {
        assert!(DEV_SUSPEND == 0xc138_fd06);
    }
};

/// Resumes the device with this DM UUID. One that is not suspended stays as it is.
///
/// # Errors
///
/// Those of opening `/dev/mapper/control`, and the ioctl's: `ENXIO` when there is no such device.
pub(super) fn resume(uuid: &str) -> Result<(), Errno> {
    let mut header = header(uuid).ok_or(Errno::NAMETOOLONG)?;
    let control = File::options().read(true).write(true).open("/dev/mapper/control");
    let control = control.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    // SAFETY: the opcode is of device mapper's control device alone, and takes a `struct dm_ioctl` of `data_size` bytes,
    // whose layout is checked above. The kernel writes to no more than these. The structure has no pointers, and is
    // borrowed exclusively until the call returns. A file of another driver at this path would not know the opcode.
    unsafe { call(control.as_fd(), DEV_SUSPEND, &raw mut header) }.map(drop)
}

/// What names the device with this UUID; `None` when there can be none.
fn header(uuid: &str) -> Option<Header> {
    let mut bytes = [0; UUID_LENGTH];
    // The last byte stays NUL.
    bytes[..UUID_LENGTH - 1].get_mut(..uuid.len())?.copy_from_slice(uuid.as_bytes());
    Some(Header {
        // The oldest that there is of this major version: every kernel takes it.
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
    fn what_is_not_there_is_not_resumed() {
        // Without device mapper, or without the right, there is another error; but never success.
        resume("mpath-there is no such map").unwrap_err();
    }
}
