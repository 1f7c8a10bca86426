//! The control socket of a disk that serves the unit.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use scsi_pr::{Command, Completion, InitiatorPort, Nexus, ReserveInAction, Sense, Status};
use scsi_pr_store::InitiatorName;

use super::{AccessPath, ActingInitiator, Condition, ListedUnit, Sender, Unit};
use crate::admin::failure::{Code, Effect, Failure};
use crate::admin::options::AccessOptions;
use crate::admin::report::Own;
use crate::disk::hex;
use crate::disk::names::InitiatorIqn;
use crate::disk::protocol::{self, Answer, ExpectedHolder, Request};

/// The longest answer in bytes: one of units, with all their sessions.
const MAX_ANSWER: u64 = 16 << 20;

/// The limit of sending a request, and of waiting for its answer. A change waits for commands in flight.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The disks behind a control socket.
pub(crate) struct Disk {
    socket: Arc<PathBuf>,
    own: ActingInitiator,
}

/// Why there is no answer.
enum Lost {
    /// The disk has not got the request.
    Before(io::Error),
    /// It may have got it.
    After(io::Error),
}

impl Disk {
    pub(crate) fn new(socket: &Path, options: &AccessOptions) -> Result<Self, Failure> {
        let name = options.initiator.as_ref().map(lower_case).transpose()?;
        let refusal = "a disk takes changes of a named initiator: give --as=NAME";
        let own = ActingInitiator::new(name.as_ref(), options.target_port, refusal);
        Ok(Self { socket: Arc::new(socket.to_owned()), own })
    }

    pub(crate) fn unit(&self, device: &Path, effect: Effect) -> Result<Unit, Failure> {
        self.own.check(effect)?;
        let text = device.to_string_lossy();
        let served = self.served()?;
        let unit = served.iter().find(|unit| unit.name == text || Path::new(&unit.path) == device);
        let unit = unit.ok_or_else(|| {
            let names: Vec<_> = served.iter().map(|unit| unit.name.as_str()).collect();
            let text = format!(
                "the disk at {} serves no unit {}, but {}",
                self.socket.display(),
                device.display(),
                names.join(", ")
            );
            Failure::new(Code::Failure, text)
        })?;
        Ok(self.open(unit))
    }

    fn open(&self, unit: &protocol::Unit) -> Unit {
        let path = OfDisk { socket: Arc::clone(&self.socket), unit: unit.name.clone(), own: self.own.clone() };
        let identifier = Some(format!("naa.{}", unit.naa));
        Unit { name: unit.name.clone(), identifier, path: Box::new(path) }
    }

    pub(crate) fn units(&self) -> Result<Vec<ListedUnit>, Failure> {
        let listed =
            |unit: &protocol::Unit| ListedUnit { name: unit.name.clone(), owner: None, unit: Ok(self.open(unit)) };
        Ok(self.served()?.iter().map(listed).collect())
    }

    pub(crate) fn has_session(&self, unit: &str, name: &InitiatorName) -> Result<bool, Failure> {
        let served = self.served()?;
        let unit = served.iter().find(|served| served.name == unit);
        let is_of = |session: &protocol::Session| session.initiator.eq_ignore_ascii_case(name.iscsi_name());
        Ok(unit.is_some_and(|unit| unit.sessions.iter().any(is_of)))
    }

    fn served(&self) -> Result<Vec<protocol::Unit>, Failure> {
        match ask(&self.socket, &Request::Units {}).map_err(|lost| lost.failure(&self.socket, Effect::Reads))? {
            Answer::Units { units } => Ok(units),
            Answer::Error { error } => Err(refused(&self.socket, &error)),
            Answer::Done { .. } | Answer::Unmet { .. } => {
                Err(nonsense("another answer than was asked for").failure(&self.socket, Effect::Reads))
            }
        }
    }
}

/// The name of an initiator as a disk knows it: in small letters (RFC 7143 4.2.7.2).
pub(super) fn lower_case(name: &InitiatorName) -> Result<InitiatorName, Failure> {
    let lower: InitiatorIqn = name.iscsi_name().parse().map_err(Failure::usage)?;
    lower.as_ref().parse().map_err(Failure::usage)
}

struct OfDisk {
    socket: Arc<PathBuf>,
    unit: String,
    own: ActingInitiator,
}

impl OfDisk {
    fn run(
        &self,
        sender: Sender<'_>,
        command: Command<'_>,
        condition: Option<&Condition>,
    ) -> Result<Completion, Failure> {
        let effect = Effect::of(command);
        let nexus = self.own.sender(sender, effect)?;
        let without_session = condition.and_then(|condition| condition.without_session.as_ref());
        let request = Request::Execute {
            unit: self.unit.clone(),
            initiator: initiator(&nexus)?,
            target_port: nexus.relative_target_port(),
            cdb: hex::encode(command.cdb().bytes()),
            data: hex::encode(command.parameter_list()),
            expected_reservation: condition.map(|condition| hex::encode(&condition.reservation.encode())),
            expected_holder: condition.and_then(|condition| condition.holder.as_ref()).map(ExpectedHolder::from),
            without_session: without_session
                .map(|name| name.iscsi_name().parse())
                .transpose()
                .map_err(Failure::usage)?,
        };
        let failed = |lost: Lost| lost.failure(&self.socket, effect);
        match ask(&self.socket, &request).map_err(failed)? {
            Answer::Done { status, sense, data } => completion(command, status, &sense, &data)
                .ok_or_else(|| failed(nonsense("a completion that cannot be"))),
            // The disk has not run it.
            Answer::Unmet { unmet: protocol::Condition::Reservation } => Err(Failure::changed_meanwhile()),
            Answer::Unmet { unmet: protocol::Condition::Session } => {
                let text = "the change was not made: the machine has a session with the unit now, so it still runs";
                Err(Failure::new(Code::Conflict, text))
            }
            Answer::Error { error } => Err(refused(&self.socket, &error)),
            Answer::Units { .. } => Err(failed(nonsense("another answer than was asked for"))),
        }
    }
}

impl AccessPath for OfDisk {
    fn execute(&self, sender: Sender<'_>, command: Command<'_>) -> Result<Completion, Failure> {
        self.run(sender, command, None)
    }

    fn execute_if(
        &self,
        sender: Sender<'_>,
        command: Command<'_>,
        condition: &Condition,
    ) -> Result<Completion, Failure> {
        self.run(sender, command, Some(condition))
    }

    fn read_record(&self, action: ReserveInAction) -> Option<Result<Vec<u8>, Failure>> {
        let failed = |lost: Lost| lost.failure(&self.socket, Effect::Reads);
        let request = Request::Read { unit: self.unit.clone(), action: action.code() };
        Some(match ask(&self.socket, &request) {
            // An earlier version does not know the request: PERSISTENT RESERVE IN tells as much as it has room for.
            Ok(Answer::Error { .. }) => return None,
            Ok(Answer::Done { status: 0, data, .. }) => {
                hex::decode(&data).ok_or_else(|| failed(nonsense("a completion that cannot be")))
            }
            // A command has the same answer, which is reported.
            Ok(Answer::Done { .. }) => return None,
            Ok(Answer::Units { .. } | Answer::Unmet { .. }) => {
                Err(failed(nonsense("another answer than was asked for")))
            }
            Err(lost) => Err(failed(lost)),
        })
    }

    fn own(&self) -> Own<'_> {
        self.own.own()
    }
}

/// The name by which the control socket knows an initiator: its ports have the ISID 0.
fn initiator(nexus: &Nexus) -> Result<InitiatorIqn, Failure> {
    match nexus.initiator().port() {
        InitiatorPort::Iscsi { name, isid: Some([0, 0, 0, 0, 0, 0]) } => name.parse().map_err(Failure::usage),
        _ => Err(Failure::new(
            Code::Failure,
            format!("{} has no name that the disk takes: remove its key by \"scsi-pr preempt\"", nexus.initiator()),
        )),
    }
}

/// The completion in an answer; `None` if the answer makes no sense.
fn completion(command: Command<'_>, status: u8, sense: &str, data: &str) -> Option<Completion> {
    let (sense, data) = (hex::decode(sense)?, hex::decode(data)?);
    match status {
        0x00 if data.len() <= command.cdb().allocation_length() => Some(Completion::Good(data)),
        0x00 => None,
        0x02 => Some(Completion::CheckCondition(Sense::from_bytes(&sense))),
        status => Status::from_byte(status).map(Completion::Status),
    }
}

/// Sends one request, and reads the answer.
fn ask(socket: &Path, request: &Request) -> Result<Answer, Lost> {
    let connect = || {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(stream)
    };
    let stream = connect().map_err(Lost::Before)?;
    let mut line = serde_json::to_vec(request).map_err(|error| Lost::Before(error.into()))?;
    line.push(b'\n');
    // The newline comes last: without it, the disk runs nothing.
    (&stream).write_all(&line).map_err(Lost::Before)?;
    read_answer(BufReader::new(&stream)).map_err(Lost::After)
}

/// Reads one answer: a line of JSON.
fn read_answer(reader: impl BufRead) -> io::Result<Answer> {
    let mut line = Vec::new();
    reader.take(MAX_ANSWER).read_until(b'\n', &mut line)?;
    if !line.ends_with(b"\n") {
        return Err(match line.len() as u64 {
            MAX_ANSWER => invalid("an answer without an end"),
            _ => io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed without an answer"),
        });
    }
    serde_json::from_slice(&line).map_err(|_| invalid("the answer is not one of a control socket"))
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn nonsense(text: &'static str) -> Lost {
    Lost::After(invalid(text))
}

impl Lost {
    fn failure(&self, socket: &Path, effect: Effect) -> Failure {
        let (error, code, remedy) = match (self, effect) {
            (Self::After(error), Effect::Changes) => {
                let remedy = "the change may have been made: look with \"scsi-pr show\"";
                (error, Code::OutcomeUnknown, remedy)
            }
            (Self::Before(error) | Self::After(error), _) => {
                (error, Code::Unavailable, "check that \"scsi-pr disk\" runs with this --control socket")
            }
        };
        Failure::new(code, format!("cannot use the control socket {}: {error}; {remedy}", socket.display()))
    }
}

fn refused(socket: &Path, error: &str) -> Failure {
    Failure::new(Code::Failure, format!("the disk at {} refused the request: {error}", socket.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use scsi_pr::{ReserveIn, ReserveInAction};

    fn read_keys() -> scsi_pr::CommandBuf {
        ReserveIn::new(ReserveInAction::ReadKeys, 16).encode()
    }

    #[test]
    fn completions_are_read_or_refused() {
        let command = read_keys();
        for (status, sense, data, expected) in [
            (0, "", "0001", Some(Completion::Good(vec![0, 1]))),
            (0, "", "0", None),
            (0, "", &*"00".repeat(17), None),
            (0, "zz", "", None),
            (0x18, "", "", Some(Completion::Status(Status::RESERVATION_CONFLICT))),
        ] {
            assert_eq!(completion(command.command(), status, sense, data), expected, "{status} {sense} {data}");
        }
        assert!(matches!(completion(command.command(), 2, "70", ""), Some(Completion::CheckCondition(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_an_error(bytes: Vec<u8>) {
            let _ = read_answer(&bytes[..]);
        }

        #[test]
        fn any_json_is_an_answer_or_an_error(status: i32, sense in "[0-9a-g]{0,8}", data in "[0-9a-g]{0,40}") {
            let line = format!("{{\"status\":{status},\"sense\":\"{sense}\",\"data\":\"{data}\"}}\n");
            if let Ok(Answer::Done { status, sense, data }) = read_answer(line.as_bytes())
                && let Some(Completion::Good(data)) = completion(read_keys().command(), status, &sense, &data)
            {
                prop_assert!(status == 0 && data.len() <= 16);
            }
        }
    }
}
