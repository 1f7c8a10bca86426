//! Persistent reservation managers that reach devices, and the policies around them.
//!
//! * [`sg_io`]: the commands as they are, to the device behind the descriptor, by the kernel's SG_IO ioctl.
//! * [`device`]: what a descriptor is.
//! * [`policy`]: what is refused, and what is told about the rest.
//!
//! The project's only `unsafe` code is here, in files named `sys.rs`.

pub mod device;
#[cfg(test)]
mod log;
pub mod policy;
pub mod sg_io;
mod throttle;

pub use sg_io::SgIo;
