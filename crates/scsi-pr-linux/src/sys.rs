//! ioctl(2), for the files that know what an ioctl's argument looks like.

use std::ffi::c_void;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};

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
