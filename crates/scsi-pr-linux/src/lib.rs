//! Persistent reservation managers that reach devices, and the policies around them.
//!
//! * [`sg_io`]: the commands as they are, to the device behind the descriptor, by the kernel's SG_IO ioctl.
//! * [`block_ioctl`]: their meaning, by the kernel's reservation ioctls, for any block device that has them.
//! * [`nvme`]: their meaning, by the reservation commands of NVMe.
//! * [`multipath`]: dm-multipath maps, by libmpathpersist and by the paths beneath.
//! * [`device`]: what a descriptor is.
//! * [`policy`]: who gets which command, what is refused, and what is told about the rest.
//! * [`Attempt`], [`NotPermitted`]: what another process with more privileges may try.
//!
//! The project's only `unsafe` code is here, in files named `sys.rs`.

pub mod block_ioctl;
pub mod device;
#[cfg(test)]
mod log;
#[cfg(test)]
mod models;
pub mod multipath;
pub mod nvme;
mod permission;
pub mod policy;
pub mod sg_io;
mod sys;
mod throttle;
mod type_number;

pub use block_ioctl::BlockIoctl;
pub use multipath::{Multipath, MultipathReader};
pub use nvme::Nvme;
pub use permission::{Attempt, NotPermitted};
pub use sg_io::SgIo;
