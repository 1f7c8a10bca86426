//! The control socket: the administrator reads and changes the reservations of units that are served.
//!
//! [`protocol`](super::protocol) has the messages.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use scsi_pr::{
    Cdb, Command, Completion, InitiatorPort, Nexus, Opcode, Reservation, ReserveInAction, ReserveOut, ReserveOutAction,
    TransportId,
};
use scsi_pr_daemon::socket::{self, Access};
use scsi_pr_disk::{ChangeCondition, UnmetCondition};

use super::hex;
use super::protocol::{Answer, Condition, MAX_REQUEST, Request, Session, Unit};
use super::served::Served;
use super::unit::OpenUnit;
use crate::error_text::with_causes;
use crate::listen::SocketGuard;

/// The most connections. A change may have to wait for commands of initiators, and holds its connection until then.
const MAX_CONNECTIONS: usize = 8;
/// The initiator that reads for an administrator. It has no session and no registration.
const READER: &str = "iqn.2026-11.scsi-pr:administrator";
/// The time for a request to arrive, and for an answer to be read.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Listens at `path`, for the user of this process and root alone.
///
/// # Errors
///
/// The path is in use, or cannot be bound.
pub(crate) fn listen(path: &Path) -> Result<(OwnedFd, SocketGuard)> {
    let (socket, file) = socket::listen(path, Access::Exactly { mode: 0o600, group: None })?;
    Ok((socket, SocketGuard::new(path, file)))
}

/// Serves the control socket on threads of its own, until the program ends.
///
/// # Errors
///
/// The first thread cannot be started.
pub(crate) fn serve(socket: OwnedFd, served: Arc<Served>) -> io::Result<()> {
    let listener = UnixListener::from(socket);
    let connections = Arc::new(AtomicUsize::new(0));
    let accept = move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                // The reason is mostly a lack of descriptors, which a moment may change.
                thread::sleep(Duration::from_millis(100));
                continue;
            };
            // One over the limit is closed.
            let Some(permit) = Permit::take(&connections) else { continue };
            let served = Arc::clone(&served);
            let _ = thread::Builder::new().name("control".into()).spawn(move || {
                let _permit = permit;
                // The administrator has gone.
                let _ = converse(&stream, &served);
            });
        }
    };
    thread::Builder::new().name("control".into()).spawn(accept).map(drop)
}

/// One of the connections; dropping it makes room for another one.
struct Permit(Arc<AtomicUsize>);

impl Permit {
    fn take(connections: &Arc<AtomicUsize>) -> Option<Self> {
        let permit = Self(Arc::clone(connections));
        (permit.0.fetch_add(1, Ordering::Relaxed) < MAX_CONNECTIONS).then_some(permit)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn converse(stream: &UnixStream, served: &Served) -> io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        let length = reader.by_ref().take(MAX_REQUEST).read_until(b'\n', &mut line)?;
        if length == 0 {
            return Ok(());
        }
        let is_whole = line.ends_with(b"\n");
        let answer = match is_whole {
            true => answer(&line, served).unwrap_or_else(|error| Answer::Error { error: with_causes(&error) }),
            false => Answer::Error { error: format!("a request is one line of at most {MAX_REQUEST} bytes") },
        };
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        let mut writer = stream;
        writer.write_all(&text)?;
        if !is_whole {
            return Ok(());
        }
    }
}

fn answer(line: &[u8], served: &Served) -> Result<Answer> {
    match serde_json::from_slice(line)? {
        Request::Units {} => {
            Ok(Answer::Units { units: served.units().iter().map(|(_, unit)| describe(unit)).collect() })
        }
        Request::Execute {
            unit,
            initiator,
            target_port,
            cdb,
            data,
            expected_reservation,
            expected_holder,
            without_session,
        } => {
            let unit = served.unit(&unit).ok_or_else(|| anyhow!("no unit {unit} is served"))?;
            let cdb = hex::decode(&cdb).context("the CDB is not hexadecimal")?;
            let data = hex::decode(&data).context("the data are not hexadecimal")?;
            let command = Command::new(Cdb::from_slice(&cdb)?, &data)?;
            ensure!(target_port > 0, "a target port has a number of at least 1");
            let ports = served.target_ports();
            ensure!(
                ports.contains(&target_port) || !registers(command),
                "there is no target port {target_port}: the last portal group is {}",
                ports.end()
            );
            let nexus = nexus(initiator.as_ref(), target_port)?;
            let condition = ChangeCondition {
                reservation: expected_reservation.as_deref().map(reservation).transpose()?,
                holder: expected_holder.map(Nexus::try_from).transpose()?,
                without_session: without_session.map(|name| name.as_ref().to_owned()),
            };
            let completion = match command.opcode() {
                Opcode::ReserveOut => match unit.disk.administer_if(nexus, command, &condition) {
                    Ok(completion) => completion,
                    Err(UnmetCondition::Reservation) => return Ok(Answer::Unmet { unmet: Condition::Reservation }),
                    Err(UnmetCondition::Session) => return Ok(Answer::Unmet { unmet: Condition::Session }),
                },
                _ => {
                    ensure!(condition == ChangeCondition::default(), "a condition needs PERSISTENT RESERVE OUT");
                    unit.disk.administer(nexus, command)
                }
            };
            let name = &unit.config.name;
            match command.opcode() {
                // "scsi-pr watch" reads every second.
                Opcode::ReserveIn => {
                    tracing::debug!("{command} of {initiator} on {name}, by the control socket: {completion}")
                }
                _ => tracing::info!("{command} of {initiator} on {name}, by the control socket: {completion}"),
            }
            Ok(done(completion))
        }
        Request::Read { unit, action } => {
            let unit = served.unit(&unit).ok_or_else(|| anyhow!("no unit {unit} is served"))?;
            let action = ReserveInAction::from_code(action).ok_or_else(|| anyhow!("no service action {action}"))?;
            Ok(done(unit.disk.read_reservations(nexus(READER, 1)?, action)))
        }
    }
}

/// The reservation of the data of READ RESERVATION.
fn reservation(data: &str) -> Result<Reservation> {
    let data = hex::decode(data).context("the expected reservation is not hexadecimal")?;
    Ok(Reservation::parse(&data)?.value)
}

/// Whether the command registers a key. At a port that no longer exists, a registration can only be removed.
fn registers(command: Command<'_>) -> bool {
    let action = ReserveOutAction::from_code(command.cdb().service_action());
    matches!(action, Some(ReserveOutAction::Register | ReserveOutAction::RegisterAndIgnoreExistingKey))
        && ReserveOut::keys(command).is_some_and(|(_, new)| !new.is_zero())
}

fn nexus(initiator: &str, target_port: u16) -> Result<Nexus> {
    let port = InitiatorPort::Iscsi { name: initiator, isid: Some([0; 6]) };
    Ok(Nexus::new(TransportId::new(port)?, target_port))
}

fn done(completion: Completion) -> Answer {
    let (status, sense, data) = match completion {
        Completion::Good(data) => (0x00, String::new(), hex::encode(&data)),
        Completion::CheckCondition(sense) => (0x02, hex::encode(&sense.bytes()[..sense.length()]), String::new()),
        Completion::Status(status) => (status.byte(), String::new(), String::new()),
    };
    Answer::Done { status, sense, data }
}

fn describe(unit: &OpenUnit) -> Unit {
    let identity = unit.disk.identity();
    let session = |nexus: Nexus| {
        let initiator = match nexus.initiator().port() {
            InitiatorPort::Iscsi { name, .. } => name.to_owned(),
            _ => nexus.initiator().to_string(),
        };
        Session { initiator, target_port: nexus.relative_target_port() }
    };
    Unit {
        name: unit.config.name.to_string(),
        path: unit.config.path.display().to_string(),
        target: unit.config.target().to_string(),
        lun: unit.config.lun,
        uuid: hex::encode(identity.uuid()),
        naa: hex::encode(identity.naa()),
        serial: identity.serial().to_owned(),
        bytes: unit.disk.size(),
        epoch: unit.ownership.record().epoch,
        sessions: unit.disk.sessions().into_iter().map(session).collect(),
    }
}
