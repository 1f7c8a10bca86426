//! BLKGETDISKSEQ (Linux `linux/fs.h`), in a safe function.

use std::os::fd::BorrowedFd;
use std::ptr;

use rustix::io::Errno;
use rustix::ioctl::{Opcode, opcode};

use crate::sys::call;

const BLKGETDISKSEQ: Opcode = opcode::read::<u64>(0x12, 128);

const _: () = assert!(!cfg!(target_arch = "x86_64") || BLKGETDISKSEQ == 0x8008_1280);

/// The sequence number of the disk. Only for block devices: to others the number of this ioctl may mean something else.
///
/// # Errors
///
/// The kernel's: `ENOTTY` before Linux 5.15.
pub(super) fn disk_sequence_number(device: BorrowedFd<'_>) -> Result<u64, Errno> {
    let mut number = 0_u64;
    // SAFETY: the block layer answers this ioctl for all drivers, and writes 8 bytes to the pointer, which is to a `u64`
    // of this function's own. An older kernel hands it to the driver; a driver that has an ioctl of this number (none
    // of Linux does) would have it of this size and direction, as both are part of the number.
    unsafe { call(device, BLKGETDISKSEQ, ptr::from_mut(&mut number)) }?;
    Ok(number)
}
