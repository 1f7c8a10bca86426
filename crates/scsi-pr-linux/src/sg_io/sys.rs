//! The SG_IO ioctl (Linux `scsi/sg.h`): one safe function around one system call.

use std::ffi::{c_int, c_uchar, c_uint, c_ushort, c_void};
use std::mem::offset_of;
use std::os::fd::BorrowedFd;
use std::ptr;

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};
use scsi_pr::Sense;

use super::outcome::Report;

/// The data of a command.
pub(super) enum Transfer<'a> {
    /// The unit may fill this, from its beginning.
    FromDevice(&'a mut [u8]),
    /// The unit gets this; it may be empty.
    ToDevice(&'a [u8]),
}

/// `SG_IO`.
const SG_IO: Opcode = 0x2285;

/// `interface_id` of [`SgIoHdr`].
const INTERFACE_ID: c_int = b'S' as c_int;
/// `SG_DXFER_TO_DEV`.
const TO_DEVICE: c_int = -2;
/// `SG_DXFER_FROM_DEV`.
const FROM_DEVICE: c_int = -3;

/// No host status of any kernel, whose codes are one byte: a driver, or a file of some user-space file system, that knows
/// the ioctl by another meaning and returns 0 has done nothing, and leaves it in place.
const NOT_WRITTEN: c_ushort = c_ushort::MAX;

/// `struct sg_io_hdr`, version 3 of the interface.
#[repr(C)]
struct SgIoHdr {
    interface_id: c_int,
    dxfer_direction: c_int,
    cmd_len: c_uchar,
    mx_sb_len: c_uchar,
    iovec_count: c_ushort,
    dxfer_len: c_uint,
    dxferp: *mut c_void,
    cmdp: *const c_uchar,
    sbp: *mut c_uchar,
    /// Milliseconds.
    timeout: c_uint,
    flags: c_uint,
    pack_id: c_int,
    usr_ptr: *mut c_void,
    // From here on the kernel fills in.
    status: c_uchar,
    masked_status: c_uchar,
    msg_status: c_uchar,
    sb_len_wr: c_uchar,
    host_status: c_ushort,
    driver_status: c_ushort,
    resid: c_int,
    duration: c_uint,
    info: c_uint,
}

const _: () = {
    let wide = size_of::<*const u8>() == 8;
    assert!(size_of::<SgIoHdr>() == if wide { 88 } else { 64 });
    assert!(offset_of!(SgIoHdr, dxferp) == 16);
    assert!(offset_of!(SgIoHdr, timeout) == if wide { 40 } else { 28 });
    assert!(offset_of!(SgIoHdr, usr_ptr) == if wide { 56 } else { 40 });
    assert!(offset_of!(SgIoHdr, status) == if wide { 64 } else { 44 });
    assert!(offset_of!(SgIoHdr, host_status) == if wide { 68 } else { 48 });
    assert!(offset_of!(SgIoHdr, resid) == if wide { 72 } else { 52 });
    assert!(offset_of!(SgIoHdr, info) == if wide { 80 } else { 60 });
    assert!(Sense::LENGTH <= c_uchar::MAX as usize);
};

/// Sends `cdb` to the unit behind `device` and waits for its answer, at most `timeout` milliseconds.
///
/// # Errors
///
/// The kernel's: the command was not sent, or (`EINTR`, on `/dev/sgN`) its answer was not awaited.
pub(super) fn sg_io(
    device: BorrowedFd<'_>,
    cdb: &[u8; 16],
    transfer: Transfer<'_>,
    sense: &mut [u8; Sense::LENGTH],
    timeout: u32,
) -> Result<Report, Errno> {
    // The kernel only reads what goes to the device, although `dxferp` is not declared so.
    let (dxfer_direction, dxferp, length) = match transfer {
        Transfer::FromDevice(data) => (FROM_DEVICE, data.as_mut_ptr(), data.len()),
        Transfer::ToDevice(data) => (TO_DEVICE, data.as_ptr().cast_mut(), data.len()),
    };
    let mut header = SgIoHdr {
        interface_id: INTERFACE_ID,
        dxfer_direction,
        cmd_len: cdb.len() as c_uchar,
        mx_sb_len: sense.len() as c_uchar,
        iovec_count: 0,
        dxfer_len: c_uint::try_from(length).map_err(|_| Errno::INVAL)?,
        dxferp: dxferp.cast(),
        cmdp: cdb.as_ptr(),
        sbp: sense.as_mut_ptr(),
        timeout,
        flags: 0,
        pack_id: 0,
        usr_ptr: ptr::null_mut(),
        status: 0,
        masked_status: 0,
        msg_status: 0,
        sb_len_wr: 0,
        host_status: NOT_WRITTEN,
        driver_status: 0,
        resid: 0,
        duration: 0,
        info: 0,
    };
    // SAFETY: SG_IO takes a `sg_io_hdr`, whose layout is checked above, reads `cmd_len` bytes at `cmdp`, writes at most
    // `mx_sb_len` at `sbp`, and moves at most `dxfer_len` between `dxferp` and the unit in the given direction. All three
    // point to slices of those lengths, borrowed (for writing where the kernel writes) until the call returns, and the
    // kernel touches none of them afterwards: it waits for the unit, or (`/dev/sgN`, interrupted) drops what comes later.
    // A driver that knows the number by another interface (bsg) or not at all looks for its own mark in the first word,
    // or returns ENOTTY; the kernel copies no memory for it. (A process behind a CUSE device could ask for more of this
    // process's memory; as root alone can make one, it is trusted as a driver is.)
    unsafe { ioctl(device, Call(&mut header)) }?;
    Ok(Report {
        status: header.status,
        host_status: header.host_status,
        driver_status: header.driver_status,
        sense_length: header.sb_len_wr,
        residual: header.resid,
    })
}

struct Call<'a>(&'a mut SgIoHdr);

// SAFETY: the opcode is SG_IO's, it takes a pointer to a `sg_io_hdr`, which is what `as_ptr` gives; the kernel writes to
// it, so it is mutating. The pointer is not used afterwards. The caller promises that its pointers are valid.
unsafe impl Ioctl for Call<'_> {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        SG_IO
    }

    fn as_ptr(&mut self) -> *mut c_void {
        ptr::from_mut(self.0).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> Result<(), Errno> {
        Ok(())
    }
}
