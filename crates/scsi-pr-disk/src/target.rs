//! [`Target`]: the logical units behind one target.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use scsi_pr::{Completion, Nexus, Sense, SenseCode};

use crate::call::{Port, padded_cdb};
use crate::data::DataIn;
use crate::disk::{Disk, Response, TaskManagement};
use crate::gate::{SessionId, Task};
use crate::{inquiry, sense_code};

/// A logical unit number with peripheral device addressing (SAM-5 4.7.7.2): 0 to 255.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lun(pub u8);

impl Lun {
    /// The number in a LUN field of eight bytes; `None` when it is of another form. Flat space addressing of the same
    /// numbers is accepted.
    pub fn from_bytes(bytes: [u8; 8]) -> Option<Self> {
        match bytes {
            [0 | 0x40, number, 0, 0, 0, 0, 0, 0] => Some(Self(number)),
            _ => None,
        }
    }
}

/// The logical units that the sessions of a target port see.
#[derive(Default)]
pub struct Target {
    units: RwLock<BTreeMap<Lun, Arc<Disk>>>,
    /// Those of every session, to end them with a unit.
    sessions: Mutex<Vec<Weak<UnitSessions>>>,
}

/// The sessions of one initiator with the units of a target.
type UnitSessions = Mutex<BTreeMap<Lun, (Arc<Disk>, SessionId)>>;

/// A session of an initiator with a target: one session with each unit that it has sent a command to.
pub struct TargetSession {
    target: Arc<Target>,
    nexus: Nexus,
    sessions: Arc<UnitSessions>,
}

/// A command of a session.
pub struct TargetTask {
    unit: Option<(Arc<Disk>, Task)>,
}

impl Target {
    /// A target without units.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a unit, or replaces the one with this number. Sessions with other units get REPORTED LUNS DATA HAS CHANGED.
    pub fn add(&self, lun: Lun, disk: Arc<Disk>) {
        let mut units = self.units.write().unwrap_or_else(PoisonError::into_inner);
        units.values().for_each(|other| other.notify_units_changed());
        units.insert(lun, disk);
    }

    /// Removes a unit, and ends every session with it: its commands are aborted, and those that have reached the medium go
    /// on. A later command finds no unit. Sessions with other units get REPORTED LUNS DATA HAS CHANGED.
    pub fn remove(&self, lun: Lun) -> Option<Arc<Disk>> {
        let removed = {
            let mut units = self.units.write().unwrap_or_else(PoisonError::into_inner);
            let removed = units.remove(&lun)?;
            units.values().for_each(|other| other.notify_units_changed());
            removed
        };
        for sessions in lock(&self.sessions).iter().filter_map(Weak::upgrade) {
            let mut sessions = lock(&sessions);
            if let Some((disk, session)) = sessions.get(&lun)
                && Arc::ptr_eq(disk, &removed)
            {
                disk.close_session(*session);
                sessions.remove(&lun);
            }
        }
        Some(removed)
    }

    /// The unit with this number.
    pub fn unit(&self, lun: Lun) -> Option<Arc<Disk>> {
        self.units.read().unwrap_or_else(PoisonError::into_inner).get(&lun).cloned()
    }

    fn luns(&self) -> Vec<u8> {
        self.units.read().unwrap_or_else(PoisonError::into_inner).keys().map(|lun| lun.0).collect()
    }

    /// A session of `nexus` begins.
    pub fn open_session(self: &Arc<Self>, nexus: Nexus) -> TargetSession {
        let sessions = Arc::new(UnitSessions::default());
        let mut all = lock(&self.sessions);
        all.retain(|other| other.strong_count() > 0);
        all.push(Arc::downgrade(&sessions));
        drop(all);
        TargetSession { target: Arc::clone(self), nexus, sessions }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TargetSession {
    /// The I_T nexus of the session.
    pub fn nexus(&self) -> &Nexus {
        &self.nexus
    }

    /// The unit with this number, and the session with it, which begins here if there was none.
    fn unit(&self, lun: Lun) -> Option<(Arc<Disk>, SessionId)> {
        // Held until the session is in the list, so that the removal of the unit finds it.
        let units = self.target.units.read().unwrap_or_else(PoisonError::into_inner);
        let disk = units.get(&lun).cloned();
        let mut sessions = lock(&self.sessions);
        match (disk, sessions.get(&lun)) {
            (Some(disk), Some((known, session))) if Arc::ptr_eq(&disk, known) => Some((disk, *session)),
            (disk, known) => {
                if let Some((former, session)) = known {
                    former.close_session(*session);
                    sessions.remove(&lun);
                }
                let disk = disk?;
                let session = disk.open_session(self.nexus.clone());
                sessions.insert(lun, (Arc::clone(&disk), session));
                Some((disk, session))
            }
        }
    }

    /// Puts a command into the task set of its unit. `None` for an overlapped command: the session has one with this tag.
    pub fn add_task(&self, lun: Lun, tag: u64) -> Option<TargetTask> {
        match self.unit(lun) {
            Some((disk, session)) => match disk.add_task(session, tag) {
                Some(task) => Some(TargetTask { unit: Some((disk, task)) }),
                // The unit was removed meanwhile.
                None if self.unit(lun).is_none() => Some(TargetTask { unit: None }),
                None => None,
            },
            None => Some(TargetTask { unit: None }),
        }
    }

    /// Runs a command; see [`Disk::execute`].
    pub fn execute(
        &self,
        task: &TargetTask,
        port: &Port,
        cdb: &[u8],
        data_out: &[u8],
        data_in: &mut DataIn,
    ) -> Response {
        const REPORT_LUNS: u8 = 0xa0;
        match &task.unit {
            Some((disk, task)) if cdb.first() != Some(&REPORT_LUNS) => disk.execute(task, port, cdb, data_out, data_in),
            _ => self.execute_without_unit(cdb, data_in),
        }
    }

    /// REPORT LUNS, which is answered for the target; and commands to a number that has no unit (SPC-4 6.6.1, SAM-5
    /// 4.7.6): INQUIRY says that there is none, REQUEST SENSE returns the reason, any other is refused with it.
    fn execute_without_unit(&self, cdb: &[u8], data_in: &mut DataIn) -> Response {
        const INQUIRY: u8 = 0x12;
        const REQUEST_SENSE: u8 = 0x03;
        data_in.clear();
        let padded = padded_cdb(cdb);
        let code = sense_code::LOGICAL_UNIT_NOT_SUPPORTED;
        let result = match padded[0] {
            0xa0 => crate::report::luns(&padded, &self.target.luns()),
            INQUIRY if padded[1] & 1 == 0 && padded[2] == 0 => {
                Ok((inquiry::no_unit(), usize::from(u16::from_be_bytes([padded[3], padded[4]]))))
            }
            INQUIRY => Err(SenseCode::INVALID_FIELD_IN_CDB),
            REQUEST_SENSE => {
                let sense = Sense::fixed(code);
                Ok((sense.bytes()[..sense.length()].to_vec(), usize::from(padded[4])))
            }
            _ => Err(code),
        };
        match result {
            Ok((data, allocation_length)) => {
                data_in.set(&data, allocation_length);
                let transfer_length = data_in.bytes().len() as u64;
                Response { completion: Some(Completion::Good(Vec::new())), transfer_length }
            }
            Err(code) => Response { completion: Some(Completion::check(code)), transfer_length: 0 },
        }
    }

    /// Carries out a task management function for one unit, and returns the number of commands that it aborted; `None`
    /// when there is no such unit.
    pub fn manage(&self, lun: Lun, function: TaskManagement) -> Option<usize> {
        self.unit(lun).map(|(disk, session)| disk.manage(session, function))
    }

    /// Carries out a reset for every unit of the target.
    pub fn manage_all(&self, function: TaskManagement) {
        for lun in self.target.luns() {
            self.manage(Lun(lun), function);
        }
    }
}

impl TargetSession {
    /// The session ends; its commands are aborted. A command that comes later is refused.
    pub fn close(&self) {
        let mut sessions = lock(&self.sessions);
        for (disk, session) in std::mem::take(&mut *sessions).into_values() {
            disk.close_session(session);
        }
    }
}

impl Drop for TargetSession {
    fn drop(&mut self) {
        self.close();
    }
}

impl TargetTask {
    /// Whether the command usually takes no time: see [`Disk::is_quick`].
    pub fn is_quick(&self, cdb: &[u8; 16]) -> bool {
        self.unit.as_ref().is_none_or(|(disk, _)| disk.is_quick(cdb))
    }
}
