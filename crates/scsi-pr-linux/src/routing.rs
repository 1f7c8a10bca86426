//! [`DeviceRouter`]: the one place that decides which mechanism runs a command.
//!
//! `table` holds every decision, without I/O: by class of device and opcode. This file looks
//! up the class and runs the mechanisms.

pub(crate) mod table;

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use scsi_pr::{Command, Completion, Error, PrManager, SenseCode};
use scsi_pr_daemon::RateLimiter;
use tracing::warn;

use crate::device::{Access, BlockDevice, Device, Number, Sysfs};
use crate::policy::{Client, Refusals};
use crate::{BlockIoctl, MultipathReader, NotPermitted, Nvme, SgIo};
pub use table::{Choice, ReservationOwner, reservation_owner};
use table::{Mechanism, Route, Target};

/// Runs each command by the mechanism for the device that it is for.
///
/// | device | PERSISTENT RESERVE IN | PERSISTENT RESERVE OUT | CLEANUP |
/// | --- | --- | --- | --- |
/// | SCSI disk, CD-ROM drive | [`SgIo`] | [`SgIo`] | GOOD |
/// | dm-multipath map | [`MultipathReader`] | worker with [`Multipath`](crate::Multipath) | worker |
/// | NVMe namespace | [`Nvme`], else a worker | [`Nvme`], else a worker | GOOD |
/// | another disk: virtio-blk, loop, zram … | [`SgIo`], else [`BlockIoctl`], else a worker | the same | GOOD |
/// | partition, logical volume, crypt device, any other device over devices | [`Nvme`] or a worker over NVMe, else [`SgIo`] | refused | GOOD |
/// | block device that sysfs does not explain | [`SgIo`] | refused | refused |
/// | SCSI generic device, other character device, file, pipe, socket … | [`SgIo`] | [`SgIo`] | GOOD |
///
/// "Else" means that the mechanism before has done nothing: the driver does not know SG_IO, or the kernel does not permit
/// the ioctl to this process.
///
/// * A descriptor that is not open for writing gets no PERSISTENT RESERVE OUT and no CLEANUP, as in QEMU's helper.
/// * A part of a unit gets no PERSISTENT RESERVE OUT: it would reserve the whole unit, which others use.
/// * A refusal is CHECK CONDITION 05/20/00, as from a disk without persistent reservations. Cluster software then gives up
///   at once. [`Refusals`] logs the device, the reason and the remedy.
/// * While this process or the machine has too many open files to read sysfs, the answer is BUSY.
/// * Where the kernel does not permit a command here and no worker can run it, the answer is CHECK CONDITION 0B/00/06.
///   The log says why, once a minute for each mechanism.
///
/// sysfs tells the class of a device that is seen for the first time. The router remembers it where it cannot change, by
/// device number *and* the disk's sequence number (BLKGETDISKSEQ, Linux 5.15), because device numbers are reused. It
/// remembers only that a device-mapper device with a UUID is one: tables are swapped, so each PERSISTENT RESERVE IN looks
/// for NVMe beneath anew. It remembers nothing of a device-mapper device without a UUID, of md and its like, of a disk
/// without a parent device (loop, zram, a stopped md array), and of an unexplained device. For a known device a route costs
/// one fstat(2) and one ioctl(2); for a descriptor that is not of a block device, one fstat(2).
pub struct DeviceRouter {
    mechanisms: Box<dyn Mechanisms>,
    sysfs: Sysfs,
    choice: Option<Choice>,
    cache: Cache,
    refusals: Refusals,
    not_permitted: RateLimiter<Mechanism>,
}

/// Managers for commands that take more privileges than this process has: each runs a command in another process.
#[derive(Clone)]
pub struct Workers {
    /// Runs [`Multipath`](crate::Multipath).
    pub multipath: Arc<dyn PrManager>,
    /// Runs [`Nvme`].
    pub nvme: Arc<dyn PrManager>,
    /// Runs [`BlockIoctl`].
    pub block_ioctl: Arc<dyn PrManager>,
}

/// The mechanisms that a route names.
trait Mechanisms: Send + Sync {
    fn attempt(
        &self,
        mechanism: Mechanism,
        device: BorrowedFd<'_>,
        command: Command<'_>,
    ) -> Result<Completion, Declined>;

    fn is_connected(&self, mechanism: Mechanism) -> bool;
}

/// Why a mechanism has no answer.
#[derive(Debug)]
enum Declined {
    /// The device's driver does not know the mechanism, and has done nothing.
    Unsupported,
    /// The kernel does not permit it to this process, and has done nothing.
    NotPermitted(NotPermitted),
    /// A worker has no answer.
    Failed(Error),
}

/// The mechanisms of Linux.
struct LinuxMechanisms {
    sg_io: SgIo,
    nvme: Nvme,
    block_ioctl: BlockIoctl,
    multipath_reader: MultipathReader<Arc<dyn PrManager>>,
    workers: Workers,
}

impl Mechanisms for LinuxMechanisms {
    fn attempt(
        &self,
        mechanism: Mechanism,
        device: BorrowedFd<'_>,
        command: Command<'_>,
    ) -> Result<Completion, Declined> {
        match mechanism {
            Mechanism::SgIo => self.sg_io.execute(device, command).map_err(Declined::Failed),
            Mechanism::SgIoWhereSupported => {
                self.sg_io.send_where_supported(device, command).ok_or(Declined::Unsupported)
            }
            Mechanism::Nvme => self.nvme.try_execute(device, command).map_err(Declined::NotPermitted),
            Mechanism::BlockIoctl => self.block_ioctl.try_execute(device, command).map_err(Declined::NotPermitted),
            Mechanism::MultipathReader => self.multipath_reader.execute(device, command).map_err(Declined::Failed),
            Mechanism::NvmeWorker => self.workers.nvme.execute(device, command).map_err(Declined::Failed),
            Mechanism::BlockIoctlWorker => self.workers.block_ioctl.execute(device, command).map_err(Declined::Failed),
            Mechanism::MultipathWorker => self.workers.multipath.execute(device, command).map_err(Declined::Failed),
        }
    }

    fn is_connected(&self, mechanism: Mechanism) -> bool {
        match mechanism {
            Mechanism::MultipathReader | Mechanism::MultipathWorker => self.workers.multipath.is_connected(),
            Mechanism::NvmeWorker => self.workers.nvme.is_connected(),
            Mechanism::BlockIoctlWorker => self.workers.block_ioctl.is_connected(),
            Mechanism::SgIo | Mechanism::SgIoWhereSupported | Mechanism::Nvme | Mechanism::BlockIoctl => true,
        }
    }
}

impl DeviceRouter {
    /// With `/sys` and these workers.
    pub fn new(workers: Workers) -> Self {
        Self::with_sysfs(workers, Sysfs::default())
    }

    /// With a sysfs that is mounted elsewhere.
    pub fn with_sysfs(workers: Workers, sysfs: Sysfs) -> Self {
        let mechanisms = LinuxMechanisms {
            sg_io: SgIo::new(),
            nvme: Nvme::new(),
            block_ioctl: BlockIoctl::new(sysfs.clone()),
            multipath_reader: MultipathReader::new(Arc::clone(&workers.multipath), sysfs.clone()),
            workers,
        };
        Self::over(Box::new(mechanisms), sysfs)
    }

    fn over(mechanisms: Box<dyn Mechanisms>, sysfs: Sysfs) -> Self {
        Self {
            mechanisms,
            sysfs,
            choice: None,
            cache: Cache::default(),
            refusals: Refusals::new("if it must be sent all the same, start the helper with --manager=sg-io"),
            not_permitted: RateLimiter::new(1, 60, Duration::from_secs(60)),
        }
    }

    /// Runs all commands by this mechanism, whatever their device is. Read-only descriptors are refused as before.
    #[must_use]
    pub fn with_choice(mut self, choice: Choice) -> Self {
        self.choice = Some(choice);
        self
    }

    /// Runs a command that the access of its descriptor permits.
    fn execute_by_device(&self, descriptor: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        match self.route(descriptor, command) {
            Ok(Ok(steps)) => self.run(steps, descriptor, command),
            Ok(Err(completion)) => Ok(completion),
            Err(error) => Ok(self.refusals.put_off(command, &error)),
        }
    }

    fn route(&self, descriptor: BorrowedFd<'_>, command: Command<'_>) -> io::Result<Result<Steps, Completion>> {
        if let Some(choice) = self.choice {
            return self.resolve(choice.route(command.opcode()), None, None, command);
        }
        match BlockDevice::of(descriptor)? {
            Some(device) => self.route_block_device(device.number(), device.sequence_number(), command),
            None => {
                Client::note_target(Target::NotABlockDevice);
                self.resolve(Target::NotABlockDevice.route(command.opcode()), None, None, command)
            }
        }
    }

    /// The mechanisms for a command on a block device; or the answer of a command that none gets.
    fn route_block_device(
        &self,
        number: Number,
        sequence_number: Option<u64>,
        command: Command<'_>,
    ) -> io::Result<Result<Steps, Completion>> {
        let known = sequence_number.and_then(|sequence_number| self.cache.get(number, sequence_number));
        let (target, device) = match known {
            Some(target) => (target, None),
            None => {
                let device = self.sysfs.block(number)?;
                let target = Target::of(&device, || self.sysfs.reaches_nvme(number))?;
                if let (true, Some(sequence_number)) = (device.is_permanent(), sequence_number) {
                    self.cache.insert(number, sequence_number, target);
                }
                (target, Some(device))
            }
        };
        Client::note_target(target);
        self.resolve(target.route(command.opcode()), Some(number), device, command)
    }

    fn resolve(
        &self,
        route: Route,
        number: Option<Number>,
        device: Option<Device>,
        command: Command<'_>,
    ) -> io::Result<Result<Steps, Completion>> {
        Ok(match route {
            Route::Run(steps) => Ok(steps),
            Route::RunBeneath => {
                let reaches_nvme = number.map_or(Ok(None), |number| self.sysfs.reaches_nvme(number))?;
                return self.resolve(Target::part(reaches_nvme).route(command.opcode()), number, device, command);
            }
            Route::Refuse(why) => {
                // The cache has no description. The log line needs one, and is rare.
                let describe = || match device.or_else(|| self.sysfs.block(number?).ok()) {
                    Some(device) => device.to_string(),
                    None => number.map_or_else(|| "the device".to_owned(), |number| number.to_string()),
                };
                Err(self.refusals.refuse(command, number, describe, why))
            }
            Route::Nothing => Err(Completion::Good(Vec::new())),
        })
    }

    fn run(&self, steps: Steps, descriptor: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        let mut refused: Option<(Mechanism, NotPermitted)> = None;
        for mechanism in steps {
            match self.mechanisms.attempt(*mechanism, descriptor, command) {
                Ok(completion) => return Ok(completion),
                Err(Declined::Unsupported) => {}
                Err(Declined::NotPermitted(not_permitted)) => refused = Some((*mechanism, not_permitted)),
                Err(Declined::Failed(error)) => match refused {
                    // Neither this process nor a worker has run it.
                    Some(refused) if !error.may_have_run() => return Ok(self.give_up(command, refused, Some(&error))),
                    _ => return Err(error),
                },
            }
        }
        Ok(match refused {
            Some(refused) => self.give_up(command, refused, None),
            None => Completion::check(SenseCode::INVALID_OPCODE),
        })
    }

    /// The answer to a command that the kernel does not permit here, and that no worker runs.
    fn give_up(
        &self,
        command: Command<'_>,
        (mechanism, not_permitted): (Mechanism, NotPermitted),
        error: Option<&Error>,
    ) -> Completion {
        if let Some(suppressed) = self.not_permitted.check(mechanism) {
            match error {
                None => warn!("{command}, not run: {not_permitted}{suppressed}"),
                Some(error) => warn!("{command}, not run: {not_permitted}; {error}{suppressed}"),
            }
        }
        not_permitted.completion()
    }
}

/// Rows by device number, each for the disk with one sequence number. A device number has one entry.
#[derive(Debug, Default)]
struct Cache(RwLock<Vec<Entry>>);

/// Entries are sorted by device number. A lookup takes as long as in a hash table, and the program stays smaller.
#[derive(Clone, Copy, Debug)]
struct Entry {
    number: Number,
    sequence_number: u64,
    target: Target,
}

/// The most entries. A full cache starts again.
const MAX_ENTRIES: usize = 8192;

impl Cache {
    /// The row of this disk's device, if it is known.
    fn get(&self, number: Number, sequence_number: u64) -> Option<Target> {
        let entries = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let index = entries.binary_search_by_key(&number, |entry| entry.number).ok()?;
        let entry = entries[index];
        (entry.sequence_number == sequence_number).then_some(entry.target)
    }

    /// Stores a row, in place of that of another disk with this device number. The caller must find out the row *after*
    /// the sequence number. If the disk changes in between, the entry has a sequence number that no later disk has.
    fn insert(&self, number: Number, sequence_number: u64, target: Target) {
        let mut entries = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let entry = Entry { number, sequence_number, target };
        match entries.binary_search_by_key(&number, |entry| entry.number) {
            Ok(index) => entries[index] = entry,
            Err(index) if entries.len() < MAX_ENTRIES => entries.insert(index, entry),
            Err(_) => *entries = vec![entry],
        }
    }
}

/// CHECK CONDITION 05/20/00, where `descriptor` is not open for writing and the command needs that.
///
/// # Errors
///
/// Those of fcntl(2). The command must not run then.
pub(crate) fn refuse_read_only(descriptor: BorrowedFd<'_>, command: Command<'_>) -> Result<Option<Completion>, Error> {
    if !table::requires_write(command.opcode()) {
        return Ok(None);
    }
    match Access::of(descriptor) {
        Ok(Access::ReadOnly) => Ok(Some(Completion::check(SenseCode::INVALID_OPCODE))),
        Ok(Access::Writable) => Ok(None),
        Err(error) => Err(Error::not_run("tell how the descriptor was opened").because(error)),
    }
}

/// The mechanisms of a route, in order.
type Steps = &'static [Mechanism];

impl PrManager for DeviceRouter {
    /// `Err` only when a worker may have run the command and has not answered, or where a worker is the only mechanism.
    fn execute(&self, descriptor: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        match refuse_read_only(descriptor, command)? {
            Some(completion) => Ok(completion),
            None => self.execute_by_device(descriptor, command),
        }
    }

    /// Whether the first mechanism of every route is.
    fn is_connected(&self) -> bool {
        match self.choice {
            None | Some(Choice::Multipath) => self.mechanisms.is_connected(Mechanism::MultipathWorker),
            Some(Choice::SgIo | Choice::Nvme | Choice::BlockIoctl) => true,
        }
    }
}

impl fmt::Debug for DeviceRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceRouter").field("sysfs", &self.sysfs).field("choice", &self.choice).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
