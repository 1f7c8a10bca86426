//! The machine of the tests.

use super::super::daemon::Unanswered;
use super::super::map::MapPath;
use super::super::ports::HostPorts;
use super::super::*;
use crate::device::PortName;
use crate::log::Log;
use crate::policy::tests::reserve_out;
use crate::sg_io::Reached;
use scsi_pr::{Cdb, FullStatus, FullStatusDescriptor, InitiatorPort, ReserveIn, ReserveInAction, TransportId, Type};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

/// A machine whose parts give fixed answers and note their calls.
#[derive(Clone)]
pub(super) struct Fake {
    /// Which paths are usable: when the command comes, and after the library has failed.
    pub(super) paths: [Vec<bool>; 2],
    /// The answers of a path to PERSISTENT RESERVE IN and OUT; `None`: no path can be opened.
    pub(super) answers: Option<[(Completion, Reached); 2]>,
    /// The answer to READ FULL STATUS.
    pub(super) full_status: Completion,
    pub(super) library: Result<i32, Unavailable>,
    /// The library's return value from the second call on, if it differs.
    pub(super) library_again: Option<i32>,
    /// `None`: multipathd is down.
    pub(super) configuration: Option<&'static str>,
    pub(super) registers_paths: Option<bool>,
    /// When multipathd notices that a path is dead; `None`: not in time.
    pub(super) noticed: Option<Notice>,
    pub(super) forgets: bool,
    pub(super) asked: Arc<Mutex<Vec<String>>>,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            paths: [vec![true, true], vec![true, true]],
            answers: Some([(Completion::Good(vec![0; 8]), Reached::Unit), (GOOD, Reached::Unit)]),
            full_status: full_status(&[]),
            library: Ok(0),
            library_again: None,
            configuration: Some(FILE),
            registers_paths: Some(true),
            noticed: Some(Notice::BeforeFailing),
            forgets: true,
            asked: Arc::default(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Notice {
    BeforeFailing,
    OnceDeviceMapperHasFailedIt,
}

pub(super) const FILE: &str = "defaults {\n\treservation_key \"file\"\n}\n";
pub(super) const ONLY_1: &str = "defaults {\n\treservation_key 0x1\n}\n";
pub(super) const UNSET: &str = "defaults {\n}\n";

impl Fake {
    pub(super) fn note(&self, what: impl Into<String>) {
        self.asked.lock().unwrap().push(what.into());
    }

    /// The calls of the library, of multipathd and of paths, in order.
    pub(super) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    /// The answer to `command`, and the log.
    pub(super) fn run(&self, command: Command<'_>) -> (Completion, Vec<String>) {
        let manager = Multipath::on(Box::new(self.clone()));
        let log = Log::at(tracing::Level::WARN);
        let null = File::open("/dev/null").unwrap();
        let completion = log.during(|| manager.execute(null.as_fd(), command).unwrap());
        (completion, log.events().into_iter().map(|event| event.message).collect())
    }

    /// As [`Fake::run`], when the log has one line.
    pub(super) fn logged_once(&self, command: Command<'_>) -> (Completion, String) {
        let (completion, lines) = self.run(command);
        let [line] = &lines[..] else { panic!("{command}: {completion}: {lines:?}") };
        (completion, line.clone())
    }

    /// As [`Fake::run`], when the log is empty.
    pub(super) fn quiet(&self, command: Command<'_>) -> Completion {
        let (completion, lines) = self.run(command);
        assert!(lines.is_empty(), "{lines:?}");
        completion
    }
}

pub(super) fn down() -> Unanswered {
    Unanswered::NotListening(Vec::new(), io::ErrorKind::ConnectionRefused.into())
}

impl Host for Fake {
    fn map(&self, _: BorrowedFd<'_>) -> io::Result<Result<Map, Device>> {
        let failed = self.asked.lock().unwrap().iter().any(|what| what.starts_with("library"));
        let path = |(index, usable): (u32, &bool)| MapPath {
            name: format!("sd{index}"),
            number: Number { major: 8, minor: 16 * index },
            usable: *usable,
        };
        Ok(Ok(Map {
            number: Number { major: 252, minor: 0 },
            kernel_name: "dm-0".to_owned(),
            alias: "mpatha".to_owned(),
            wwid: "3600140".to_owned(),
            paths: (0..).zip(&self.paths[usize::from(failed)]).map(path).collect(),
        }))
    }

    fn paths(&self, map: &Map) -> Vec<Box<dyn Path>> {
        let usable = map.paths.iter().filter(|path| path.usable);
        let path = |_: &MapPath| Some(Box::new(FakePath(self.clone(), self.answers.clone()?)) as Box<dyn Path>);
        usable.filter_map(path).collect()
    }

    fn ports(&self, map: &Map) -> HostPorts {
        HostPorts::new(map.paths.iter().map(|path| (path.name.clone(), vec![PortName::FibreChannel(HOST_PORT)])))
    }

    fn library(&self) -> Result<Box<dyn Library>, Unavailable> {
        let code = self.library.clone()?;
        Ok(Box::new(FakeLibrary(self.clone(), code)))
    }

    fn configuration(&self) -> Result<String, Unanswered> {
        self.configuration.map(str::to_owned).ok_or_else(down)
    }

    fn registers_paths(&self, _: &Map) -> Result<bool, Unanswered> {
        self.registers_paths.ok_or_else(down)
    }

    fn working_paths(&self) -> Result<Vec<String>, Unanswered> {
        let failed = self.asked.lock().unwrap().iter().any(|what| what.starts_with("fail path"));
        let noticed = self.noticed.iter().filter(|how| **how == Notice::BeforeFailing || failed).count();
        if noticed > 0 { Ok(Vec::new()) } else { Ok((0..8).map(|index| format!("sd{index}")).collect()) }
    }

    fn fail_path(&self, _: &Map, path: &MapPath) -> io::Result<()> {
        self.note(format!("fail path {}", path.name));
        Ok(())
    }

    fn forget_holder(&self, _: &Map) -> Result<(), Unanswered> {
        self.note("forget holder");
        if self.forgets { Ok(()) } else { Err(down()) }
    }

    fn forget(&self, _: &Map) -> Result<(), Unanswered> {
        self.note("forget");
        if self.forgets { Ok(()) } else { Err(down()) }
    }
}

pub(super) struct FakePath(Fake, [(Completion, Reached); 2]);

// The notes are behind a lock; a path is used by one thread.
impl Path for FakePath {
    fn name(&self) -> &str {
        "sda"
    }

    fn send(&self, command: Command<'_>) -> (Completion, Reached) {
        let [to_in, to_out] = self.1.clone();
        if matches!(ReserveIn::parse(command), Ok(ask) if ask.action() == ReserveInAction::ReadFullStatus) {
            return (self.0.full_status.clone(), Reached::Unit);
        }
        match command.opcode() {
            Opcode::ReserveIn => to_in,
            _ => {
                self.0.note(format!("path: {command}"));
                to_out
            }
        }
    }
}

pub(super) struct FakeLibrary(Fake, i32);

impl Library for FakeLibrary {
    fn reserve_out(&self, _: BorrowedFd<'_>, request: &Request) -> i32 {
        let again = self.0.asked.lock().unwrap().iter().any(|what| what.starts_with("library"));
        self.0.note(format!("library: {}", request.action));
        self.0.library_again.filter(|_| again).unwrap_or(self.1)
    }
}

/// A parameter list with keys, as the tests name them.
pub(super) const REGISTER: [u8; 24] = list(0, 1);

pub(super) const fn list(key: u8, service_action_key: u8) -> [u8; 24] {
    let mut list = [0; 24];
    (list[7], list[15]) = (key, service_action_key);
    list
}

/// An OUT of type 5, Write Exclusive - Registrants Only.
pub(super) fn out(service_action: u8, list: &[u8]) -> Command<'_> {
    let mut cdb = *reserve_out(service_action, list).cdb().bytes();
    cdb[2] = Type::WriteExclusiveRegistrantsOnly.code();
    Command::new(Cdb::new(cdb).unwrap(), list).unwrap()
}

/// The data of READ RESERVATION.
pub(super) fn reserved_by(key: u64) -> Completion {
    let held = scsi_pr::Held { key: Key(key), reservation_type: Type::WriteExclusiveRegistrantsOnly };
    Completion::Good(scsi_pr::Reservation { held: Some(held), ..Default::default() }.encode())
}

/// The initiator ports of this host and of another one.
pub(super) const HOST_PORT: u64 = 0x2100_0000_0000_0001;
pub(super) const OTHER_PORT: u64 = 0x2100_0000_0000_0002;

/// The data of READ FULL STATUS for these registrations: initiator port, key, and whether it holds the reservation.
pub(super) fn full_status(registrations: &[(u64, u64, bool)]) -> Completion {
    let descriptors = registrations.iter().map(|(port_name, key, holds)| {
        let port = TransportId::new(InitiatorPort::FibreChannel { port_name: *port_name }).unwrap();
        let mut descriptor = FullStatusDescriptor::new(Key(*key), &port, 1);
        descriptor.held = holds.then_some(Type::WriteExclusiveRegistrantsOnly);
        descriptor
    });
    Completion::Good(FullStatus { descriptors: descriptors.collect(), ..FullStatus::default() }.encode())
}

pub(super) const REGISTERED: &str = "library: REGISTER";

pub(super) fn check(code: SenseCode) -> Completion {
    Completion::check(code)
}
