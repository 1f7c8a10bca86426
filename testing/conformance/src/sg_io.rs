//! `struct sg_io_hdr` of `<scsi/sg.h>`, as the kernel sees it: the request and the reply.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// SG_DXFER_TO_DEV.
pub const TO_DEVICE: i32 = -2;
/// SG_DXFER_FROM_DEV.
pub const FROM_DEVICE: i32 = -3;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct Header {
    pub(crate) interface_id: i32,
    pub(crate) direction: i32,
    pub(crate) command_length: u8,
    pub(crate) sense_room: u8,
    pub(crate) iovec_count: u16,
    pub(crate) transfer_length: u32,
    pub(crate) data: u64,
    pub(crate) command: u64,
    pub(crate) sense: u64,
    pub(crate) timeout: u32,
    pub(crate) flags: u32,
    pub(crate) pack_id: i32,
    pub(crate) padding: u32,
    pub(crate) user_pointer: u64,
    pub(crate) status: u8,
    pub(crate) masked_status: u8,
    pub(crate) message_status: u8,
    pub(crate) sense_written: u8,
    pub(crate) host_status: u16,
    pub(crate) driver_status: u16,
    pub(crate) residual: i32,
    pub(crate) duration: u32,
    pub(crate) info: u32,
    pub(crate) end_padding: u32,
}

const _: () = assert!(size_of::<Header>() == 88);

/// One SG_IO that the helper made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// `interface_id`: 'S'.
    pub interface_id: i32,
    /// `dxfer_direction`.
    pub direction: i32,
    /// The command, `cmd_len` bytes.
    pub command: Vec<u8>,
    /// `mx_sb_len`.
    pub sense_room: u8,
    /// `iovec_count`.
    pub iovec_count: u16,
    /// `dxfer_len`.
    pub transfer_length: u32,
    /// The buffer at the call: the parameter list, or the bytes that remain if the device writes nothing.
    pub buffer: Vec<u8>,
    /// `timeout`, in milliseconds.
    pub timeout: u32,
    /// `flags`.
    pub flags: u32,
    /// The number of the descriptor.
    pub descriptor: i32,
    /// The thread that made it.
    pub thread: u32,
}

/// The result of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The ioctl fails with this errno.
    Errno(i32),
    /// The ioctl succeeds.
    Done(Done),
    /// The ioctl succeeds and writes nothing, as when a driver has another ioctl of the same number.
    Ignored,
}

/// The bytes that the kernel writes: into the header, and to its pointers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// `status`.
    pub status: u8,
    /// `host_status`.
    pub host_status: u16,
    /// `driver_status`.
    pub driver_status: u16,
    /// `resid`.
    pub residual: i32,
    /// Written to `sbp`; the length goes into `sb_len_wr`.
    pub sense: Vec<u8>,
    /// Written to `dxferp`.
    pub data: Vec<u8>,
}

impl Reply {
    /// GOOD with these data, and the residual that belongs to them.
    pub fn data(data: &[u8]) -> impl Fn(&Call) -> Self + Send + Sync + 'static {
        let data = data.to_vec();
        move |call| {
            let residual = i32::try_from(call.transfer_length).unwrap() - i32::try_from(data.len()).unwrap();
            Self::Done(Done { residual, data: data.clone(), ..Done::default() })
        }
    }

    /// CHECK CONDITION with this sense data.
    pub fn sense(sense: &[u8]) -> Self {
        Self::Done(Done { status: 0x02, driver_status: 0x08, sense: sense.to_vec(), ..Done::default() })
    }
}
