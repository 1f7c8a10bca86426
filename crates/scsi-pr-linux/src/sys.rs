//! ioctl(2), and the ioctls of the block layer that need no file of their own.

use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::ptr;

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};

/// Makes the ioctl `opcode` of `device` with `argument`; what it returned, which is not negative.
///
/// # Errors
///
/// The kernel's.
///
/// # Safety
///
/// For every driver that knows `opcode`, `argument` must be what it expects: a pointer to a `T` of the layout that the
/// kernel's header has for it, which stays valid, and that nobody else looks at where the kernel writes, until this
/// returns; or null, where the kernel takes no argument or fails when it cannot copy one. The same holds for all memory
/// that the `T` points to.
pub(crate) unsafe fn call<T>(device: BorrowedFd<'_>, opcode: Opcode, argument: *mut T) -> Result<u32, Errno> {
    // SAFETY: the caller's promise.
    unsafe { ioctl(device, Call { opcode, argument: argument.cast() }) }
}

struct Call {
    opcode: Opcode,
    argument: *mut c_void,
}

// SAFETY: a `Call` is only made by `call`, whose caller promises that the argument is the opcode's. The kernel may write
// to it, so it is mutating; nothing is made of the pointer afterwards.
unsafe impl Ioctl for Call {
    type Output = u32;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.argument
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut c_void) -> Result<u32, Errno> {
        // An identifier of 32 bits may come as a negative number (NVME_IOCTL_ID); errors are told apart already.
        Ok(output.cast_unsigned())
    }
}

/// BLKGETDISKSEQ (Linux `linux/fs.h`).
const BLKGETDISKSEQ: Opcode = opcode::read::<u64>(0x12, 128);

const _: () = assert!(!cfg!(target_arch = "x86_64") || BLKGETDISKSEQ == 0x8008_1280);

/// The sequence number of the disk. Only for block devices: to others the number of this ioctl may mean something else.
///
/// # Errors
///
/// The kernel's: `ENOTTY` before Linux 5.15.
pub(crate) fn disk_sequence_number(device: BorrowedFd<'_>) -> Result<u64, Errno> {
    let mut number = 0_u64;
    // SAFETY: the block layer answers this ioctl for all drivers, and writes 8 bytes to the pointer, which is to a `u64`
    // of this function's own. An older kernel hands it to the driver; a driver that has an ioctl of this number (none
    // of Linux does) would have it of this size and direction, as both are part of the number.
    unsafe { call(device, BLKGETDISKSEQ, ptr::from_mut(&mut number)) }?;
    Ok(number)
}
