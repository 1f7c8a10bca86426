//! What [`Multipath`](super::Multipath) needs of the machine, in one place, so that its tests can have every part of it fail.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use super::daemon::{Daemon, Unanswered};
use super::map::Map;
use super::route::{self, Route};
use super::sys::{self, Unavailable};
use super::translate::Request;
use crate::device::{Device, Sysfs};

/// The machine around a command.
pub(super) trait Host: Send + Sync {
    /// The map behind `device`, as it is now; or what else is behind it.
    fn map(&self, device: BorrowedFd<'_>) -> io::Result<Result<Map, Device>>;

    /// Those paths of `map` that may work.
    fn routes(&self, map: &Map) -> Vec<Box<dyn Route>>;

    /// libmpathpersist, started.
    fn library(&self) -> Result<Box<dyn Library>, Unavailable>;

    /// multipathd's configuration: see [`Daemon::configuration`].
    fn configuration(&self) -> Result<String, Unanswered>;

    /// See [`Daemon::registers_paths`].
    fn registers_paths(&self, map: &Map) -> Result<bool, Unanswered>;

    /// See [`Daemon::knows_holders`].
    fn knows_holders(&self, map: &Map) -> Result<bool, Unanswered>;

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
    /// Where the device files are.
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

    fn routes(&self, map: &Map) -> Vec<Box<dyn Route>> {
        let paths = route::open_all(map, &self.sysfs, &self.devices);
        paths.into_iter().map(|path| Box::new(path) as Box<dyn Route>).collect()
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

    fn knows_holders(&self, map: &Map) -> Result<bool, Unanswered> {
        self.daemon.knows_holders(&map.kernel_name)
    }

    fn forget_holder(&self, map: &Map) -> Result<(), Unanswered> {
        self.daemon.forget_holder(&map.kernel_name)
    }

    fn forget(&self, map: &Map) -> Result<(), Unanswered> {
        self.daemon.forget_key(&map.kernel_name)?;
        self.daemon.stop_registering_paths(&map.kernel_name)
    }
}
