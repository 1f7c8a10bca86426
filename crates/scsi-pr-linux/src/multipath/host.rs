//! The parts of the machine that [`Multipath`](super::Multipath) uses, behind one trait, so that tests can have each of them
//! fail.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use super::daemon::{Daemon, Unanswered};
use super::dm;
use super::map::{Map, MapPath};
use super::path::{self, Path};
use super::ports::HostPorts;
use super::sys::{self, Unavailable};
use super::translate::Request;
use crate::device::{Device, Sysfs};

/// The machine around a command.
pub(super) trait Host: Send + Sync {
    /// The map behind `device`, as it is now; `Err` is a device that is no map.
    fn map(&self, device: BorrowedFd<'_>) -> io::Result<Result<Map, Device>>;

    /// The usable paths of `map`, open.
    fn paths(&self, map: &Map) -> Vec<Box<dyn Path>>;

    /// The initiator ports by which this host reaches the unit of `map`.
    fn ports(&self, map: &Map) -> HostPorts;

    /// libmpathpersist, started.
    fn library(&self) -> Result<Box<dyn Library>, Unavailable>;

    /// multipathd's configuration: see [`Daemon::configuration`].
    fn configuration(&self) -> Result<String, Unanswered>;

    /// See [`Daemon::registers_paths`].
    fn registers_paths(&self, map: &Map) -> Result<bool, Unanswered>;

    /// See [`Daemon::working_paths`].
    fn working_paths(&self) -> Result<Vec<String>, Unanswered>;

    /// Has device mapper fail a path of `map`, and tell multipathd.
    fn fail_path(&self, map: &Map, path: &MapPath) -> io::Result<()>;

    /// See [`Daemon::forget_holder`].
    fn forget_holder(&self, map: &Map) -> Result<(), Unanswered>;

    /// [`Daemon::forget_key`], then [`Daemon::stop_registering_paths`].
    fn forget(&self, map: &Map) -> Result<(), Unanswered>;
}

/// libmpathpersist.
pub(super) trait Library: Send + Sync {
    /// See [`sys::Library::reserve_out`].
    fn reserve_out(&self, device: BorrowedFd<'_>, request: &Request) -> i32;
}

impl Library for sys::Library {
    fn reserve_out(&self, device: BorrowedFd<'_>, request: &Request) -> i32 {
        self.reserve_out(device, request)
    }
}

/// This machine.
pub(super) struct Machine {
    sysfs: Sysfs,
    /// The directory of the device files.
    devices: PathBuf,
    daemon: Daemon,
}

impl Machine {
    pub(super) fn new() -> Self {
        Self { sysfs: Sysfs::default(), devices: PathBuf::from("/dev"), daemon: Daemon::new() }
    }
}

impl Host for Machine {
    fn map(&self, device: BorrowedFd<'_>) -> io::Result<Result<Map, Device>> {
        Map::of(&self.sysfs, device)
    }

    fn paths(&self, map: &Map) -> Vec<Box<dyn Path>> {
        let paths = path::open_all(map, &self.sysfs, &self.devices);
        paths.into_iter().map(|path| Box::new(path) as Box<dyn Path>).collect()
    }

    fn ports(&self, map: &Map) -> HostPorts {
        HostPorts::read(map, &self.sysfs)
    }

    fn library(&self) -> Result<Box<dyn Library>, Unavailable> {
        Ok(Box::new(sys::Library::open()?))
    }

    fn configuration(&self) -> Result<String, Unanswered> {
        self.daemon.configuration()
    }

    fn registers_paths(&self, map: &Map) -> Result<bool, Unanswered> {
        self.daemon.registers_paths(&map.kernel_name)
    }

    fn working_paths(&self) -> Result<Vec<String>, Unanswered> {
        self.daemon.working_paths()
    }

    fn fail_path(&self, map: &Map, path: &MapPath) -> io::Result<()> {
        Ok(dm::fail_path(&map.uuid(), path.number)?)
    }

    fn forget_holder(&self, map: &Map) -> Result<(), Unanswered> {
        self.daemon.forget_holder(&map.kernel_name)
    }

    fn forget(&self, map: &Map) -> Result<(), Unanswered> {
        self.daemon.forget_key(&map.kernel_name)?;
        self.daemon.stop_registering_paths(&map.kernel_name)
    }
}
