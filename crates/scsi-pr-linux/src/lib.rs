//! Persistent reservation managers for Linux block devices.
//!
//! * [`routing`]: the mechanism for each device and command.
//! * [`sg_io`]: commands as they are, by the kernel's SG_IO ioctl.
//! * [`block_ioctl`]: commands translated to the kernel's reservation ioctls.
//! * [`nvme`]: commands translated to the reservation commands of NVMe.
//! * [`multipath`]: dm-multipath maps, by libmpathpersist and by the paths beneath.
//! * [`device`]: the class and the identity of the device behind a descriptor.
//! * [`medium`]: regular files and block devices as media of a `scsi_pr_disk::Disk`.
//! * [`policy`]: managers that refuse, log and count commands.
//!
//! All `unsafe` code of the project is in files of this crate named `sys.rs`.

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod block_ioctl;
mod command_error;
pub mod device;
#[cfg(test)]
mod log;
pub mod medium;
#[cfg(test)]
mod models;
pub mod multipath;
pub mod nvme;
pub mod policy;
pub mod routing;
pub mod sg_io;
mod sys;
mod type_number;

pub use block_ioctl::BlockIoctl;
pub use command_error::NotPermitted;
pub use medium::{FileMedium, MediumOptions};
pub use multipath::{Multipath, MultipathReader};
pub use nvme::Nvme;
pub use routing::DeviceRouter;
pub use sg_io::SgIo;
