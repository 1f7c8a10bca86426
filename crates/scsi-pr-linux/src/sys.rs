//! ioctl(2), the ioctls of the block layer that need no file of their own, and the signal of RLIMIT_FSIZE.

use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::ptr;

use nix::sys::signal::{SigHandler, Signal, signal};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};

/// Makes the ioctl `opcode` of `device` with `argument`. Returns its result, which is not negative.
///
/// # Errors
///
/// The kernel's.
///
/// # Safety
///
/// `argument` must fit every driver that knows `opcode`:
///
/// * a pointer to a `T` with the layout of the kernel's header. It, and all memory that the `T` points to, must stay valid
///   until this returns. Where the kernel writes, no other reference may exist.
/// * null, where the kernel takes no argument, or fails when it cannot copy one.
pub(crate) unsafe fn call<T>(device: BorrowedFd<'_>, opcode: Opcode, argument: *mut T) -> Result<u32, Errno> {
    // SAFETY: the caller's promise.
    unsafe { ioctl(device, Call { opcode, argument: argument.cast() }) }
}

struct Call {
    opcode: Opcode,
    argument: *mut c_void,
}

// SAFETY: only `call` makes a `Call`, and its caller promises that the argument is that of the opcode. The kernel may write
// to it, so the ioctl is mutating. The pointer is not used afterwards.
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
        // An identifier of 32 bits may look negative (NVME_IOCTL_ID). Errors have been separated before.
        Ok(output.cast_unsigned())
    }
}

/// BLKGETDISKSEQ (Linux `linux/fs.h`).
const BLKGETDISKSEQ: Opcode = opcode::read::<u64>(0x12, 128);

const _: () = assert!(!cfg!(target_arch = "x86_64") || BLKGETDISKSEQ == 0x8008_1280);

/// The sequence number of the disk. Only for block devices: for others this ioctl may mean something else.
///
/// # Errors
///
/// The kernel's: `ENOTTY` before Linux 5.15.
pub(crate) fn disk_sequence_number(device: BorrowedFd<'_>) -> Result<u64, Errno> {
    let mut number = 0_u64;
    // SAFETY: the block layer answers this ioctl for all drivers, and writes 8 bytes to a `u64` of this function. An older
    // kernel passes it to the driver. No driver of Linux has this number, which includes the size and the direction.
    unsafe { call(device, BLKGETDISKSEQ, ptr::from_mut(&mut number)) }?;
    Ok(number)
}

/// Lets a write over RLIMIT_FSIZE fail with `EFBIG`, for the whole process, instead of ending the process.
pub(crate) fn ignore_file_size_signal() {
    // SAFETY: no handler is installed, so no code can run in a signal's context.
    let previous = unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) };
    debug_assert!(previous.is_ok(), "SIGXFSZ can be ignored");
}
