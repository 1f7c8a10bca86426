//! The class and the identity of the device behind a descriptor, by stat(2), statx(2) and sysfs.
//!
//! This module is the one reader of sysfs and of identities. It opens no files but those of sysfs, and the file behind a loop
//! device with `O_PATH`. It sends nothing to a device, and guesses nothing.
//!
//! * [`Device`], [`DeviceClass`]: whether a block device *is* a logical unit, one of several paths to it, or a part of it.
//!   Partitions, device-mapper devices and some others pass SG_IO on to the device beneath.
//! * [`Identity`]: which logical unit a device is, by the identifiers that it has itself.
//! * [`HostPorts`]: the initiator ports by which this host may reach a device.
//! * [`Node`], [`Number`]: the device number and the file type.
//! * [`Sysfs`], [`SysfsError`]: where sysfs is, and why it gives no answer.

mod class;
mod identity;
mod node;
mod ports;
mod slaves;
mod sysfs;

pub use class::{Device, DeviceClass};
pub use identity::{Designator, FileSystems, Identified, Identity, Scope, unit_designators};
pub(crate) use node::{Access, BlockDevice, is_block_device};
pub use node::{FileType, Node, Number};
pub use ports::HostPorts;
pub(crate) use ports::PortName;
pub(crate) use slaves::Slave;
pub use sysfs::{Sysfs, SysfsError};

#[cfg(test)]
pub(crate) mod tests;
