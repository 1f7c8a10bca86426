//! The IOC_PR ioctls (Linux `linux/pr.h`): one safe function around each system call.

use std::os::fd::BorrowedFd;
use std::ptr;

use rustix::io::Errno;
use rustix::ioctl::{Opcode, opcode};
use scsi_pr::Key;

use super::outcome::Failure;
use super::translate::{Held, Ioctls, KeyCount, Request};
use crate::sys::call;
use crate::type_number;

const REGISTER: Opcode = opcode::write::<Registration>(b'p', 200);
const RESERVE: Opcode = opcode::write::<Reservation>(b'p', 201);
const RELEASE: Opcode = opcode::write::<Reservation>(b'p', 202);
const PREEMPT: Opcode = opcode::write::<Preempt>(b'p', 203);
const PREEMPT_ABORT: Opcode = opcode::write::<Preempt>(b'p', 204);
const CLEAR: Opcode = opcode::write::<Clear>(b'p', 205);
const READ_KEYS: Opcode = opcode::read_write::<ReadKeys>(b'p', 206);
const READ_RESERVATION: Opcode = opcode::read::<ReadReservation>(b'p', 207);

/// `PR_FL_IGNORE_KEY`.
const IGNORE_KEY: u32 = 1;

/// `struct pr_registration`.
#[repr(C)]
struct Registration {
    old_key: u64,
    new_key: u64,
    flags: u32,
    pad: u32,
}

/// `struct pr_reservation`.
#[repr(C)]
struct Reservation {
    key: u64,
    kind: u32,
    flags: u32,
}

/// `struct pr_preempt`.
#[repr(C)]
struct Preempt {
    old_key: u64,
    new_key: u64,
    kind: u32,
    flags: u32,
}

/// `struct pr_clear`.
#[repr(C)]
struct Clear {
    key: u64,
    flags: u32,
    pad: u32,
}

/// `struct pr_read_keys`.
#[repr(C)]
struct ReadKeys {
    generation: u32,
    num_keys: u32,
    keys_ptr: u64,
}

/// `struct pr_read_reservation`.
#[repr(C)]
struct ReadReservation {
    key: u64,
    generation: u32,
    kind: u32,
}

const _: () = {
    use std::mem::offset_of;
    // The sizes are in the opcodes, and x86-64's opcodes are known.
    if cfg!(target_arch = "x86_64") {
        assert!(REGISTER == 0x4018_70c8 && RESERVE == 0x4010_70c9 && RELEASE == 0x4010_70ca);
        assert!(PREEMPT == 0x4018_70cb && PREEMPT_ABORT == 0x4018_70cc && CLEAR == 0x4010_70cd);
        assert!(READ_KEYS == 0xc010_70ce && READ_RESERVATION == 0x8010_70cf);
    }
    assert!(size_of::<Registration>() == 24 && offset_of!(Registration, new_key) == 8);
    assert!(offset_of!(Registration, flags) == 16);
    assert!(size_of::<Reservation>() == 16 && offset_of!(Reservation, kind) == 8);
    assert!(offset_of!(Reservation, flags) == 12);
    assert!(size_of::<Preempt>() == 24 && offset_of!(Preempt, new_key) == 8);
    assert!(offset_of!(Preempt, kind) == 16 && offset_of!(Preempt, flags) == 20);
    assert!(size_of::<Clear>() == 16 && offset_of!(Clear, flags) == 8);
    assert!(size_of::<ReadKeys>() == 16 && offset_of!(ReadKeys, num_keys) == 4);
    assert!(offset_of!(ReadKeys, keys_ptr) == 8);
    assert!(size_of::<ReadReservation>() == 16 && offset_of!(ReadReservation, generation) == 8);
    assert!(offset_of!(ReadReservation, kind) == 12);
};

/// The ioctls of one block device.
pub(super) struct Device<'a>(pub(super) BorrowedFd<'a>);

impl Ioctls for Device<'_> {
    fn issue(&self, request: &Request) -> Result<(), Failure> {
        done(match *request {
            Request::Register { old, new, ignore_existing } => register(self.0, old, new, ignore_existing),
            Request::Reserve { key, reservation_type } => {
                reserve(self.0, key, type_number::of(reservation_type).into())
            }
            Request::Release { key, reservation_type } => {
                release(self.0, key, type_number::of(reservation_type).into())
            }
            Request::Preempt { own, victim, reservation_type, abort } => {
                preempt(self.0, own, victim, type_number::of(reservation_type).into(), abort)
            }
            Request::Clear { key } => clear(self.0, key),
        })
    }

    fn read_keys(&self, keys: &mut [u64]) -> Result<KeyCount, Failure> {
        read_keys(self.0, keys)
    }

    fn read_reservation(&self) -> Result<Held, Failure> {
        read_reservation(self.0)
    }

    fn are_known(&self) -> Result<bool, Errno> {
        are_known(self.0)
    }
}

/// The result of an ioctl of this family: 0 alone is success.
fn done(returned: Result<u32, Errno>) -> Result<(), Failure> {
    match returned {
        Ok(0) => Ok(()),
        Ok(status) => Err(Failure::Status(status)),
        Err(errno) => Err(Failure::Errno(errno)),
    }
}

fn register(device: BorrowedFd<'_>, old: Key, new: Key, ignore_existing: bool) -> Result<u32, Errno> {
    let flags = if ignore_existing { IGNORE_KEY } else { 0 };
    let mut argument = Registration { old_key: old.0, new_key: new.0, flags, pad: 0 };
    // SAFETY: IOC_PR_REGISTER takes a `pr_registration`, whose layout is checked above, and which holds no pointers.
    unsafe { call(device, REGISTER, &raw mut argument) }
}

fn reserve(device: BorrowedFd<'_>, key: Key, kind: u32) -> Result<u32, Errno> {
    let mut argument = Reservation { key: key.0, kind, flags: 0 };
    // SAFETY: IOC_PR_RESERVE takes a `pr_reservation`, whose layout is checked above, and which holds no pointers.
    unsafe { call(device, RESERVE, &raw mut argument) }
}

fn release(device: BorrowedFd<'_>, key: Key, kind: u32) -> Result<u32, Errno> {
    let mut argument = Reservation { key: key.0, kind, flags: 0 };
    // SAFETY: IOC_PR_RELEASE takes a `pr_reservation`, whose layout is checked above, and which holds no pointers.
    unsafe { call(device, RELEASE, &raw mut argument) }
}

/// In the kernel's structure, `old_key` is the sender's key and `new_key` that of the victim.
fn preempt(device: BorrowedFd<'_>, own: Key, victim: Key, kind: u32, abort: bool) -> Result<u32, Errno> {
    let mut argument = Preempt { old_key: own.0, new_key: victim.0, kind, flags: 0 };
    let opcode = if abort { PREEMPT_ABORT } else { PREEMPT };
    // SAFETY: both ioctls take a `pr_preempt`, whose layout is checked above, and which holds no pointers.
    unsafe { call(device, opcode, &raw mut argument) }
}

fn clear(device: BorrowedFd<'_>, key: Key) -> Result<u32, Errno> {
    let mut argument = Clear { key: key.0, flags: 0, pad: 0 };
    // SAFETY: IOC_PR_CLEAR takes a `pr_clear`, whose layout is checked above, and which holds no pointers.
    unsafe { call(device, CLEAR, &raw mut argument) }
}

fn read_keys(device: BorrowedFd<'_>, keys: &mut [u64]) -> Result<KeyCount, Failure> {
    let num_keys = u32::try_from(keys.len()).map_err(|_| Failure::Errno(Errno::INVAL))?;
    let mut argument = ReadKeys { generation: 0, num_keys, keys_ptr: keys.as_mut_ptr().expose_provenance() as u64 };
    // SAFETY: IOC_PR_READ_KEYS takes a `pr_read_keys`, whose layout is checked above, and writes at most `num_keys` keys
    // of 8 bytes to where `keys_ptr` points: a slice of that length, borrowed for writing until the call returns.
    done(unsafe { call(device, READ_KEYS, &raw mut argument) })?;
    Ok(KeyCount { generation: argument.generation, total: argument.num_keys })
}

fn read_reservation(device: BorrowedFd<'_>) -> Result<Held, Failure> {
    let mut argument = ReadReservation { key: 0, generation: 0, kind: 0 };
    // SAFETY: IOC_PR_READ_RESERVATION takes a `pr_read_reservation`, whose layout is checked above, and which holds no
    // pointers.
    done(unsafe { call(device, READ_RESERVATION, &raw mut argument) })?;
    Ok(Held { key: argument.key, generation: argument.generation, kind: argument.kind })
}

/// Makes an IOC_PR_CLEAR without an argument. The kernel first checks the permission and that the driver has the function.
/// Then it fails to copy the argument, before it calls the function. So nothing reaches the device. This works in every
/// version that has the ioctls.
fn are_known(device: BorrowedFd<'_>) -> Result<bool, Errno> {
    // SAFETY: IOC_PR_CLEAR copies its argument from user space and fails with EFAULT where there is none.
    match unsafe { call(device, CLEAR, ptr::null_mut::<Clear>()) } {
        Err(Errno::FAULT) => Ok(true),
        // No driver can do anything without an argument.
        Ok(_) | Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL) => Ok(false),
        Err(errno) => Err(errno),
    }
}
