//! The passthrough ioctls of NVMe (Linux `linux/nvme_ioctl.h`): one safe function around each system call.

use std::mem::offset_of;
use std::os::fd::BorrowedFd;
use std::ptr;

use rustix::io::Errno;
use rustix::ioctl::{Opcode, opcode};

use super::command::{Queue, Request};
use super::outcome::Failure;
use super::translate::Namespace;
use crate::sys::call;

const ID: Opcode = opcode::none(b'N', 0x40);
const ADMIN_CMD: Opcode = opcode::read_write::<PassthruCmd>(b'N', 0x41);
const IO_CMD: Opcode = opcode::read_write::<PassthruCmd>(b'N', 0x43);

/// `struct nvme_passthru_cmd`.
#[derive(Default)]
#[repr(C)]
struct PassthruCmd {
    opcode: u8,
    flags: u8,
    rsvd1: u16,
    nsid: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    addr: u64,
    metadata_len: u32,
    data_len: u32,
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
    cdw13: u32,
    cdw14: u32,
    cdw15: u32,
    timeout_ms: u32,
    result: u32,
}

const _: () = {
    // The sizes are in the opcodes, and x86-64's opcodes are known.
    if cfg!(target_arch = "x86_64") {
        assert!(ID == 0x4e40 && ADMIN_CMD == 0xc048_4e41 && IO_CMD == 0xc048_4e43);
    }
    assert!(size_of::<PassthruCmd>() == 72);
    assert!(offset_of!(PassthruCmd, nsid) == 4);
    assert!(offset_of!(PassthruCmd, metadata) == 16);
    assert!(offset_of!(PassthruCmd, addr) == 24);
    assert!(offset_of!(PassthruCmd, metadata_len) == 32);
    assert!(offset_of!(PassthruCmd, data_len) == 36);
    assert!(offset_of!(PassthruCmd, cdw10) == 40);
    assert!(offset_of!(PassthruCmd, cdw11) == 44);
    assert!(offset_of!(PassthruCmd, timeout_ms) == 64);
    assert!(offset_of!(PassthruCmd, result) == 68);
};

/// A namespace behind a descriptor.
pub(super) struct Device<'a> {
    descriptor: BorrowedFd<'a>,
    namespace_id: u32,
    /// Milliseconds.
    timeout: u32,
}

impl<'a> Device<'a> {
    /// # Errors
    ///
    /// The kernel's: ENOTTY, EINVAL and others when it is no namespace.
    pub(super) fn new(descriptor: BorrowedFd<'a>, timeout: u32) -> Result<Self, Errno> {
        Ok(Self { descriptor, namespace_id: namespace_id(descriptor)?, timeout })
    }

    fn command(&self, request: Request) -> PassthruCmd {
        PassthruCmd {
            opcode: request.opcode,
            nsid: self.namespace_id,
            cdw10: request.cdw10,
            cdw11: request.cdw11,
            timeout_ms: self.timeout,
            ..PassthruCmd::default()
        }
    }
}

impl Namespace for Device<'_> {
    fn send(&self, request: Request, data: &[u8]) -> Result<(), Failure> {
        done(send(self.descriptor, request.queue, self.command(request), data))
    }

    fn receive(&self, request: Request, data: &mut [u8]) -> Result<(), Failure> {
        done(receive(self.descriptor, request.queue, self.command(request), data))
    }
}

/// The result of a passthrough ioctl: 0 is success, and any other number the status of the command.
fn done(returned: Result<u32, Errno>) -> Result<(), Failure> {
    match returned {
        Ok(0) => Ok(()),
        Ok(status) => Err(Failure::Status(status)),
        Err(errno) => Err(Failure::Errno(errno)),
    }
}

fn namespace_id(descriptor: BorrowedFd<'_>) -> Result<u32, Errno> {
    // SAFETY: NVME_IOCTL_ID takes no argument.
    unsafe { call(descriptor, ID, ptr::null_mut::<()>()) }
}

const fn opcode_of(queue: Queue) -> Opcode {
    match queue {
        Queue::Admin => ADMIN_CMD,
        Queue::Io => IO_CMD,
    }
}

/// The low bits of a command's opcode give the direction of its data.
const TO_CONTROLLER: u8 = 0b01;
const FROM_CONTROLLER: u8 = 0b10;

/// Runs a command that takes `data`.
fn send(device: BorrowedFd<'_>, queue: Queue, mut command: PassthruCmd, data: &[u8]) -> Result<u32, Errno> {
    if command.opcode & 0b11 != TO_CONTROLLER {
        return Err(Errno::INVAL);
    }
    command.addr = data.as_ptr().expose_provenance() as u64;
    command.data_len = u32::try_from(data.len()).map_err(|_| Errno::INVAL)?;
    // SAFETY: both ioctls take an `nvme_passthru_cmd`, whose layout is checked above; there is no metadata, and of the
    // `data_len` bytes at `addr`, a slice of that length borrowed until the call returns, the kernel only reads, because
    // the opcode says that the data go to the controller. The kernel waits for the command, or takes it back.
    unsafe { call(device, opcode_of(queue), &raw mut command) }
}

/// Runs a command that fills `data`.
fn receive(device: BorrowedFd<'_>, queue: Queue, mut command: PassthruCmd, data: &mut [u8]) -> Result<u32, Errno> {
    if command.opcode & 0b11 != FROM_CONTROLLER {
        return Err(Errno::INVAL);
    }
    command.addr = data.as_mut_ptr().expose_provenance() as u64;
    command.data_len = u32::try_from(data.len()).map_err(|_| Errno::INVAL)?;
    // SAFETY: both ioctls take an `nvme_passthru_cmd`, whose layout is checked above; there is no metadata, and the kernel
    // writes at most `data_len` bytes at `addr`, a slice of that length borrowed for writing until the call returns. The
    // kernel waits for the command, or takes it back.
    unsafe { call(device, opcode_of(queue), &raw mut command) }
}
