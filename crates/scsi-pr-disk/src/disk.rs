//! [`Disk`]: the device server of one logical unit.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use scsi_pr::{Access, Cdb, Command, Completion, Nexus, Reservations, SenseCode};
use thiserror::Error;

use crate::call::{Call, Failure, Port, padded_cdb};
use crate::commands::{self, Lookup, Operation, UnitAttention};
use crate::data::DataIn;
use crate::gate::{AbortScope, AbortedStatus, Gate, Refusal, SessionId, Task};
use crate::geometry::Geometry;
use crate::identity::Identity;
use crate::mode::{Form, ModeSense, ModeSettings};
use crate::range_lock::RangeLocks;
use crate::{Medium, ReservationStore, StoreError, inquiry, report, sense_code};

/// A disk that cannot be served.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpenError {
    /// The block size is not one of those that SBC-4 disks have in practice.
    #[error("a block has 512 or 4096 bytes, not {0}")]
    BlockSize(u32),
    /// The physical block size is not possible.
    #[error("a physical block is a power of two, at least the block size and at most 65536, not {0}")]
    PhysicalBlockSize(u32),
    /// The medium is empty.
    #[error("the medium has {size} bytes, less than one block of {block_size}; make it larger")]
    TooSmall {
        /// In bytes.
        size: u64,
        /// In bytes.
        block_size: u32,
    },
    /// The size of the medium is not a multiple of the block size.
    #[error(
        "the medium has {size} bytes, no multiple of the block size {block_size}; change its size or the block size"
    )]
    NotWholeBlocks {
        /// In bytes.
        size: u64,
        /// In bytes.
        block_size: u32,
    },
    /// The reservations could not be read.
    #[error("the reservations of the unit cannot be read: {0}")]
    Store(#[from] StoreError),
}

/// The settings of a disk.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DiskOptions {
    /// The names of the disk.
    pub identity: Identity,
    /// LOGICAL BLOCK LENGTH in bytes: 512 or 4096.
    pub block_size: u32,
    /// The size of a physical block in bytes, which initiators align writes to: a power of two, at least the block size.
    pub physical_block_size: u32,
    /// Whether a write may be GOOD before it is durable, until MODE SELECT says otherwise (WCE).
    pub write_cache: bool,
}

impl DiskOptions {
    /// A disk with logical blocks of 512 bytes, physical ones of 4,096, and a write cache.
    pub fn new(identity: Identity) -> Self {
        Self { identity, block_size: 512, physical_block_size: 4096, write_cache: true }
    }
}

/// A SCSI disk (SBC-4) that enforces persistent reservations.
///
/// It does no I/O of its own: a transport hands in CDBs, a [`Medium`] stores the blocks, a [`ReservationStore`] keeps the
/// reservations. Every function may be called from any thread, and [`execute`](Self::execute) blocks until the command is
/// done.
pub struct Disk {
    pub(crate) identity: Identity,
    block_size: u32,
    physical_block_size: u32,
    pub(crate) medium: Box<dyn Medium>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) ranges: RangeLocks,
    modes: Mutex<ModeSettings>,
    default_modes: ModeSettings,
    /// The size of the medium that initiators know, in bytes.
    known_size: AtomicU64,
}

/// The answer to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status, and sense data. `None`: the command was aborted, and no answer may be sent. Data of GOOD is in
    /// [`DataIn`], not here.
    pub completion: Option<Completion>,
    /// The number of bytes that the CDB asks for in its direction: the transport reports what is less or more than it
    /// expected as a residual.
    pub transfer_length: u64,
}

/// A task management function for one logical unit (SAM-5 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TaskManagement {
    /// ABORT TASK: the command of this session with this tag.
    AbortTask(u64),
    /// ABORT TASK SET: the commands of this session.
    AbortTaskSet,
    /// CLEAR TASK SET: the commands of every session.
    ClearTaskSet,
    /// LOGICAL UNIT RESET.
    LogicalUnitReset,
    /// The part of TARGET WARM RESET that concerns this unit.
    TargetWarmReset,
    /// The part of TARGET COLD RESET that concerns this unit.
    TargetColdReset,
}

impl Disk {
    /// Opens the disk with the reservations that `store` has.
    ///
    /// # Errors
    ///
    /// [`OpenError`].
    pub fn open(
        options: DiskOptions,
        medium: Box<dyn Medium>,
        store: Box<dyn ReservationStore>,
    ) -> Result<Self, OpenError> {
        let DiskOptions { identity, block_size, physical_block_size, write_cache } = options;
        if !matches!(block_size, 512 | 4096) {
            return Err(OpenError::BlockSize(block_size));
        }
        if !physical_block_size.is_power_of_two() || !(block_size..=1 << 16).contains(&physical_block_size) {
            return Err(OpenError::PhysicalBlockSize(physical_block_size));
        }
        let size = medium.size();
        if size < u64::from(block_size) {
            return Err(OpenError::TooSmall { size, block_size });
        }
        if !size.is_multiple_of(u64::from(block_size)) {
            return Err(OpenError::NotWholeBlocks { size, block_size });
        }
        // Linux's virtio_scsi and libiscsi wait without a limit: a command without an answer would hang their guest.
        let default_modes = ModeSettings { write_cache, write_protect: false, task_aborted_status: true };
        Ok(Self {
            identity,
            block_size,
            physical_block_size,
            medium,
            gate: Arc::new(Gate::new(store)?),
            ranges: RangeLocks::default(),
            modes: Mutex::new(default_modes),
            default_modes,
            known_size: AtomicU64::new(size),
        })
    }

    /// A session of `nexus` begins. Its first command gets a unit attention: 29/00, or 29/07 if the nexus was lost.
    pub fn open_session(&self, nexus: Nexus) -> SessionId {
        self.gate.open_session(nexus)
    }

    /// The session ends. Its commands are aborted without an answer; those that have reached the medium go on.
    pub fn close_session(&self, session: SessionId) {
        self.gate.close_session(session);
    }

    /// Puts a command into the task set. `None` when the session has a command with this tag already (an overlapped
    /// command), or has ended.
    pub fn add_task(&self, session: SessionId, tag: u64) -> Option<Task> {
        self.gate.add_task(session, tag)
    }

    /// Runs a command of any operation code. `data_out` is all the data that came with it.
    pub fn execute(&self, task: &Task, port: &Port, cdb: &[u8], data_out: &[u8], data_in: &mut DataIn) -> Response {
        data_in.clear();
        let mut call = Call { task, port, cdb: padded_cdb(cdb), data_out, data_in, transfer_length: 0 };
        let result = self.run(&mut call);
        let transfer_length = call.transfer_length;
        let completion = match result {
            _ if task.is_aborted() => task.aborted_completion(),
            Ok(()) => Some(Completion::Good(Vec::new())),
            Err(Failure::Completion(completion)) => Some(completion),
            Err(Failure::Refused(Refusal::Check(code))) => Some(Completion::check(code)),
            Err(Failure::Refused(Refusal::ReservationConflict)) => {
                Some(Completion::Status(scsi_pr::Status::RESERVATION_CONFLICT))
            }
            Err(Failure::Refused(Refusal::Aborted)) => task.aborted_completion(),
        };
        if !matches!(completion, Some(Completion::Good(_))) {
            data_in.clear();
        }
        Response { completion, transfer_length }
    }

    /// Whether the command usually takes no time that another command would have to wait for: it touches no device, and
    /// waits for no other command.
    pub fn is_quick(&self, cdb: &[u8; 16]) -> bool {
        const FUA: u8 = 0x08;
        let Lookup::Command(command) = commands::find(cdb[0], cdb[1]) else { return true };
        match command.operation {
            Operation::Read => self.medium.is_quick() || self.is_cached(cdb),
            Operation::Write => {
                let fua = cdb[0] >> 5 != 0 && cdb[1] & FUA != 0;
                self.medium.is_quick() && !fua && self.modes().write_cache
            }
            // They look at the size of the medium, which may be on a file server.
            Operation::TestUnitReady
            | Operation::Inquiry
            | Operation::ModeSense6
            | Operation::ModeSense10
            | Operation::ReadCapacity10
            | Operation::ReadCapacity16 => self.medium.is_quick(),
            Operation::RequestSense
            | Operation::ReportSupportedOperationCodes
            | Operation::ReportSupportedTaskManagementFunctions => true,
            _ => false,
        }
    }

    /// Carries out a task management function. It returns when every aborted command has ended, with their number.
    pub fn manage(&self, session: SessionId, function: TaskManagement) -> usize {
        match function {
            TaskManagement::AbortTask(tag) => self.gate.abort(AbortScope::Task(session, tag), Some(session)),
            TaskManagement::AbortTaskSet => self.gate.abort(AbortScope::Session(session), Some(session)),
            TaskManagement::ClearTaskSet => self.gate.abort(AbortScope::Everything, Some(session)),
            TaskManagement::LogicalUnitReset => self.reset(sense_code::DEVICE_RESET),
            TaskManagement::TargetWarmReset => self.reset(SenseCode::BUS_RESET),
            TaskManagement::TargetColdReset => self.reset(SenseCode::RESET),
        }
    }

    fn reset(&self, code: SenseCode) -> usize {
        let aborted = self.gate.reset(code);
        self.set_modes(self.default_modes);
        aborted
    }

    /// Gives every session a unit attention: REPORTED LUNS DATA HAS CHANGED (3F/0E).
    pub(crate) fn notify_units_changed(&self) {
        self.gate.notify_sessions(sense_code::REPORTED_LUNS_CHANGED, None);
    }

    /// Looks at the size of the medium. If it has changed, every session gets a unit attention: CAPACITY DATA HAS CHANGED
    /// (2A/09). Commands look as well, except those that read and write blocks of the known size.
    pub fn check_capacity(&self) {
        let size = self.medium.size();
        if self.known_size.swap(size, Ordering::Relaxed) != size {
            self.gate.notify_sessions(sense_code::CAPACITY_CHANGED, None);
        }
    }

    /// The blocks that the medium has now.
    pub(crate) fn geometry(&self) -> Geometry {
        self.check_capacity();
        self.known_geometry()
    }

    /// The blocks that the medium had at the last look, for commands that must not pay for one.
    pub(crate) fn known_geometry(&self) -> Geometry {
        let Self { block_size, physical_block_size, .. } = *self;
        let blocks = self.known_size.load(Ordering::Relaxed) / u64::from(block_size);
        Geometry { block_size, physical_block_size, blocks }
    }

    pub(crate) fn modes(&self) -> ModeSettings {
        *self.lock_modes()
    }

    fn lock_modes(&self) -> MutexGuard<'_, ModeSettings> {
        self.modes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_modes(&self, settings: ModeSettings) {
        *self.lock_modes() = settings;
        self.gate.set_aborted_status(match settings.task_aborted_status {
            true => AbortedStatus::TaskAborted,
            false => AbortedStatus::UnitAttention,
        });
    }

    fn run(&self, call: &mut Call<'_>) -> Result<(), Failure> {
        let command = match commands::find(call.cdb[0], call.cdb[1]) {
            Lookup::Command(command) => command,
            unknown => {
                // A pending unit attention comes before the refusal (SAM-5 5.14).
                self.gate.enter(call.task, Access::Always, UnitAttention::Reported)?;
                return Err(match unknown {
                    Lookup::UnknownOpcode => SenseCode::INVALID_OPCODE,
                    _ => SenseCode::INVALID_FIELD_IN_CDB,
                }
                .into());
            }
        };
        if command.operation == Operation::RequestSense {
            return self.request_sense(call);
        }
        let access = Access::of_cdb(&call.cdb);
        self.gate.enter(call.task, access, command.unit_attention)?;
        // NACA: the device server does not support ACA.
        if call.cdb[command.usage.len() - 1] & 0x04 != 0 {
            return Err(SenseCode::INVALID_FIELD_IN_CDB.into());
        }
        match command.operation {
            Operation::TestUnitReady | Operation::StartStopUnit | Operation::PreventAllow | Operation::RequestSense => {
                self.unit_state(call, command.operation)
            }
            Operation::Inquiry => self.inquiry(call),
            Operation::ModeSense6 => self.mode_sense(call, Form::Six),
            Operation::ModeSense10 => self.mode_sense(call, Form::Ten),
            Operation::ModeSelect6 => self.mode_select(call, Form::Six),
            Operation::ModeSelect10 => self.mode_select(call, Form::Ten),
            Operation::ReserveSpc2 => self.spc2(call, Reservations::reserve_spc2),
            Operation::ReleaseSpc2 => self.spc2(call, Reservations::release_spc2),
            Operation::PersistentReserveIn => self.persistent_reserve_in(call),
            Operation::PersistentReserveOut => self.persistent_reserve_out(call),
            Operation::ReportLuns => {
                let (data, allocation_length) = report::luns(&call.cdb, &[0])?;
                call.answer(&data, allocation_length);
                Ok(())
            }
            Operation::ReportSupportedOperationCodes => report::operation_codes(call),
            Operation::ReportSupportedTaskManagementFunctions => report::task_management_functions(call),
            Operation::ReadDefectData10 | Operation::ReadDefectData12 => report::defects(call, command.operation),
            Operation::ReadCapacity10 | Operation::ReadCapacity16 => self.read_capacity(call, command.operation),
            Operation::Read => self.read(call),
            Operation::Write => self.write(call),
            Operation::WriteAndVerify => self.write_and_verify(call),
            Operation::Verify => self.verify(call),
            Operation::SynchronizeCache => self.synchronize_cache(call),
            Operation::PreFetch => self.pre_fetch(call),
            Operation::WriteSame => self.write_same(call),
            Operation::Unmap => self.unmap(call),
            Operation::GetLbaStatus => self.get_lba_status(call),
            Operation::OrWrite => self.or_write(call),
            Operation::CompareAndWrite => self.compare_and_write(call),
        }
    }

    /// REQUEST SENSE returns a pending unit attention as data, and NO SENSE otherwise (SPC-4 6.39).
    fn request_sense(&self, call: &mut Call<'_>) -> Result<(), Failure> {
        self.gate.enter(call.task, Access::Always, UnitAttention::Deferred)?;
        let code = self.gate.take_attention(call.task).unwrap_or(SenseCode::NO_SENSE);
        let sense = match call.cdb[1] & 1 {
            0 => scsi_pr::Sense::fixed(code),
            _ => scsi_pr::Sense::descriptor(code),
        };
        call.answer(&sense.bytes()[..sense.length()], usize::from(call.cdb[4]));
        Ok(())
    }

    /// The commands about a medium that cannot be stopped or removed: they are checked, and change nothing.
    fn unit_state(&self, call: &Call<'_>, operation: Operation) -> Result<(), Failure> {
        // LOEJ with START 0 would eject.
        if operation == Operation::StartStopUnit && call.cdb[4] & 0x03 == 0x02 {
            return Err(sense_code::MEDIUM_REMOVAL_PREVENTED.into());
        }
        match self.geometry().blocks() {
            0 => Err(SenseCode::NO_MEDIUM.into()),
            _ => Ok(()),
        }
    }

    fn inquiry(&self, call: &mut Call<'_>) -> Result<(), Failure> {
        let (evpd, page) = (call.cdb[1] & 0x01 != 0, call.cdb[2]);
        let data = match (evpd, page) {
            (true, page) => inquiry::vpd(page, &self.identity, call.port, &self.geometry()),
            (false, 0) => Some(inquiry::standard()),
            (false, _) => None,
        };
        let data = data.ok_or(SenseCode::INVALID_FIELD_IN_CDB)?;
        let allocation_length = usize::from(call.be16(3));
        call.answer(&data, allocation_length);
        Ok(())
    }

    fn mode_sense(&self, call: &mut Call<'_>, form: Form) -> Result<(), Failure> {
        let wanted = ModeSense {
            form,
            without_block_descriptor: call.cdb[1] & 0x08 != 0,
            long_lba: call.cdb[1] & 0x10 != 0,
            page_control_and_code: call.cdb[2],
            subpage: call.cdb[3],
        };
        let is_read_only = self.medium.is_read_only();
        let data = self.modes().sense(&wanted, self.default_modes, &self.geometry(), is_read_only)?;
        let allocation_length = match form {
            Form::Six => usize::from(call.cdb[4]),
            Form::Ten => usize::from(call.be16(7)),
        };
        call.answer(&data, allocation_length);
        Ok(())
    }

    fn mode_select(&self, call: &mut Call<'_>, form: Form) -> Result<(), Failure> {
        let (pf, sp) = (call.cdb[1] & 0x10 != 0, call.cdb[1] & 0x01 != 0);
        if sp || !pf {
            return Err(SenseCode::INVALID_FIELD_IN_CDB.into());
        }
        let length = match form {
            Form::Six => usize::from(call.cdb[4]),
            Form::Ten => usize::from(call.be16(7)),
        };
        let geometry = self.geometry();
        let before = self.modes();
        let settings = before.select(form, call.parameter_list(length)?, self.default_modes, &geometry)?;
        if settings != before {
            if before.write_cache && !settings.write_cache {
                // From now on GOOD says that a write is durable, so earlier ones must be.
                self.flush()?;
            }
            self.set_modes(settings);
            self.gate.notify_sessions(sense_code::MODE_PARAMETERS_CHANGED, Some(call.task));
        }
        Ok(())
    }

    fn spc2(&self, call: &Call<'_>, act: fn(&mut Reservations, &Nexus) -> Completion) -> Result<(), Failure> {
        good_or_failure(self.gate.spc2(call.task, act)).map(drop)
    }

    fn persistent_reserve_in(&self, call: &mut Call<'_>) -> Result<(), Failure> {
        let cdb = Cdb::new(call.cdb).map_err(|_| SenseCode::INVALID_OPCODE)?;
        let command = Command::new(cdb, &[]).map_err(|_| SenseCode::INVALID_FIELD_IN_CDB)?;
        let data = good_or_failure(self.gate.reserve_in(call.task, command))?;
        let allocation_length = usize::from(call.be16(7));
        call.answer(&data, allocation_length);
        Ok(())
    }

    fn persistent_reserve_out(&self, call: &mut Call<'_>) -> Result<(), Failure> {
        let cdb = Cdb::new(call.cdb).map_err(|_| SenseCode::INVALID_OPCODE)?;
        let length = call.be32(5) as usize;
        let task = call.task;
        let command =
            Command::new(cdb, call.parameter_list(length)?).map_err(|_| SenseCode::PARAMETER_LIST_LENGTH_ERROR)?;
        good_or_failure(self.gate.reserve_out(task, command)).map(drop)
    }
}

/// The data of GOOD. The gate has no answer to a command that was aborted.
fn good_or_failure(completion: Option<Completion>) -> Result<Vec<u8>, Failure> {
    match completion {
        Some(Completion::Good(data)) => Ok(data),
        Some(other) => Err(Failure::Completion(other)),
        None => Err(Refusal::Aborted.into()),
    }
}
