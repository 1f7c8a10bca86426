//! One connection: drives the state machines over a socket.

use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use scsi_pr::{Completion, InitiatorPort, Nexus, TransportId};
use scsi_pr_daemon::IdleConnections;
use scsi_pr_disk::{DataIn, Lun, MAX_TRANSFER, Port, TargetSession, TargetTask, TaskManagement};

use crate::directory::Directory;
use crate::disconnect::{DisconnectReason, LOGIN_TIMEOUT};
use crate::login::{Login, LoginStep, Negotiated, Refusal};
use crate::pdu::{Decoder, Digests, Header, MAX_RECV_DATA_SEGMENT, NO_TAG, Pdu, encode};
use crate::reply::{Bounds, Replies, ScsiResponse, TaskManagementResponse};
use crate::session::{Action, CommandWindow, Management, ProtocolError, ScsiCommand, Session};
use crate::shared::{ConnectionEntry, Registration, Shared};
use crate::text::Keys;
use crate::writer::{Collected, Writer};

/// The most requests of a login.
const LOGIN_STEPS: usize = 64;
/// The silence after which a connection gives up its thread.
const IDLE_TIMEOUT: Duration = Duration::from_secs(1);
/// The time that a peer may take to read an answer.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection in the full feature phase, shared by its [`Requests`] and by the threads that run its commands.
struct Connection {
    socket: TcpStream,
    writer: Writer,
    window: CommandWindow,
    /// Locked for a moment: by its [`Requests`], and at the end of a command whose data was asked for.
    requests: Mutex<Session>,
    session: TargetSession,
    port: Port,
}

/// Logs the initiator in. After that the connection is idle: of a thousand initiators that log in at the same time, only
/// those get a thread that send commands.
pub(crate) fn begin(socket: TcpStream, entry: ConnectionEntry, idle: Arc<IdleSessions>) {
    let mut decoder = Decoder::default();
    match log_in(&entry, &socket, &mut decoder) {
        Ok((requests, registration)) => {
            // A command may have come with the last login request.
            let has_input = !decoder.is_empty();
            let last_heard = Instant::now();
            let connection =
                Box::new(FullFeature { requests, decoder, last_heard, pinged: None, registration, entry, idle });
            let connection = if has_input { Some(connection) } else { connection.become_idle() };
            if let Some(connection) = connection {
                connection.run();
            }
        }
        Err(reason) => {
            let _ = socket.shutdown(Shutdown::Both);
            entry.end(&reason);
        }
    }
}

/// The I_T nexus: the initiator's name, with an ISID of zero, and the target port.
fn nexus(initiator: &str, portal_group: u16) -> Nexus {
    let port = InitiatorPort::Iscsi { name: initiator, isid: Some([0; 6]) };
    let id = TransportId::new(port).expect("the login has checked the name");
    Nexus::new(id, portal_group)
}

fn port(negotiated: &Negotiated, portal_group: u16) -> Port {
    let name = negotiated.target.as_ref().map(|(name, _)| format!("{name},t,0x{portal_group:04x}"));
    Port { relative_target_port: portal_group.to_be_bytes(), name: name.unwrap_or_default() }
}

/// The login phase, until the response that ends it was sent.
fn log_in(
    entry: &ConnectionEntry,
    socket: &TcpStream,
    decoder: &mut Decoder,
) -> Result<(Requests, Registration), DisconnectReason> {
    let ConnectionEntry { shared, portal_group, .. } = entry;
    socket.set_nodelay(true)?;
    socket.set_write_timeout(Some(SEND_TIMEOUT))?;
    let mut login = Login::new(*portal_group);
    let (negotiated, response) = negotiate(socket, decoder, &mut login, &shared.directory(), shared)?;
    decoder.digests = negotiated.digests;
    decoder.limit = MAX_RECV_DATA_SEGMENT;
    let registration = shared.register(&negotiated, *portal_group, socket).ok_or(DisconnectReason::FormerSession)?;
    // The directory may have been replaced during the login.
    let target = negotiated.target.as_ref().map(|(name, _)| name.as_str());
    if !shared.directory().admits(&negotiated.initiator, target) {
        return Err(Refusal::Authorization.into());
    }
    send_response(socket, &response.0, &response.1)?;
    shared.end_login(entry.id);
    tracing::info!("{} has logged in to {}", negotiated.initiator, target.unwrap_or("discovery"));

    socket.set_read_timeout(Some(IDLE_TIMEOUT))?;
    let bounds = Bounds {
        digests: negotiated.digests,
        max_segment: negotiated.max_send_segment,
        max_burst: negotiated.max_burst,
    };
    let target = negotiated.target.as_ref().map(|(_, target)| Arc::clone(target)).unwrap_or_default();
    let connection = Connection {
        socket: socket.try_clone()?,
        writer: Writer::new(Replies::new(bounds, login.next_stat_sn()), Arc::clone(&shared.memory)),
        window: CommandWindow::new(negotiated.command_number),
        requests: Mutex::new(Session::new(&negotiated, Arc::clone(&shared.memory))),
        session: target.open_session(nexus(&negotiated.initiator, *portal_group)),
        port: port(&negotiated, *portal_group),
    };
    let requests = Requests {
        connection: Arc::new(connection),
        negotiated,
        shared: Arc::clone(shared),
        data_in: DataIn::new(),
        rest_of_text: Vec::new(),
    };
    Ok((requests, registration))
}

fn negotiate(
    socket: &TcpStream,
    decoder: &mut Decoder,
    login: &mut Login,
    directory: &Directory,
    shared: &Shared,
) -> Result<(Negotiated, (Header, Vec<u8>)), DisconnectReason> {
    let deadline = Instant::now() + LOGIN_TIMEOUT;
    for _ in 0..LOGIN_STEPS {
        let step = loop {
            if let Some(pdu) = decoder.next_pdu()? {
                break login.step(&pdu, directory, shared.new_tsih());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(DisconnectReason::LoginTimeout);
            }
            socket.set_read_timeout(Some(left))?;
            receive(socket, decoder, Wait::UntilIdle)?;
        };
        let (header, data) = match step {
            LoginStep::Continue(header, data) => (header, data),
            LoginStep::Complete(header, data, negotiated) => return Ok((*negotiated, (header, data))),
            LoginStep::Refused(header, refusal) => {
                let _ = send_response(socket, &header, &[]);
                return Err(refusal.into());
            }
        };
        send_response(socket, &header, &data)?;
    }
    Err(DisconnectReason::LoginTimeout)
}

/// Sends a response of the login phase, which has no digests.
fn send_response(mut socket: &TcpStream, header: &Header, data: &[u8]) -> io::Result<()> {
    let mut pdu = Vec::new();
    encode(&mut pdu, header, data, Digests::default());
    socket.write_all(&pdu)
}

/// Whether to wait for bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// For the socket's SO_RCVTIMEO.
    UntilIdle,
    No,
}

/// Receives bytes of the peer.
fn receive(socket: &TcpStream, decoder: &mut Decoder, wait: Wait) -> Result<(), DisconnectReason> {
    let flags = match wait {
        Wait::UntilIdle => RecvFlags::empty(),
        Wait::No => RecvFlags::DONTWAIT,
    };
    match rustix::io::retry_on_intr(|| recv(socket, decoder.room(), flags)) {
        Ok((_, 0)) => Err(DisconnectReason::Closed),
        Ok((_, length)) => {
            decoder.filled(length);
            Ok(())
        }
        // open-iscsi ends each discovery so.
        Err(Errno::CONNRESET) => Err(DisconnectReason::Closed),
        Err(errno) => Err(io::Error::from(errno).into()),
    }
}

/// A connection in the full feature phase (RFC 7143 7.4.3), with a thread or idle.
pub(crate) struct FullFeature {
    requests: Requests,
    decoder: Decoder,
    last_heard: Instant,
    /// The time of the NOP-In that the peer has not answered.
    pinged: Option<Instant>,
    registration: Registration,
    entry: ConnectionEntry,
    /// Where the connection goes when it is idle.
    idle: Arc<IdleSessions>,
}

/// The connections that have no thread.
pub(crate) type IdleSessions = IdleConnections<Box<FullFeature>>;

/// The connection has been silent, and needs no thread.
struct Idle;

impl AsFd for FullFeature {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.requests.connection.socket.as_fd()
    }
}

impl FullFeature {
    /// Whether it is time for a NOP-In, or for the end of a connection that has not answered the last one.
    pub(crate) fn is_due(&self) -> bool {
        self.pinged.unwrap_or(self.last_heard).elapsed() >= self.entry.shared.ping_interval
    }

    /// Serves the connection until it ends or is idle.
    pub(crate) fn run(mut self: Box<Self>) {
        loop {
            match self.serve() {
                Ok(Idle) => match self.become_idle() {
                    Some(connection) => self = connection,
                    None => return,
                },
                Err(reason) => return self.close(&reason),
            }
        }
    }

    /// Puts the connection among the idle ones. Returns it if the server stops, which the next read shows, or if the kernel
    /// has no room.
    fn become_idle(mut self: Box<Self>) -> Option<Box<Self>> {
        self.release_memory();
        let idle = Arc::clone(&self.idle);
        idle.insert(self.entry.id, self)
    }

    fn serve(&mut self) -> Result<Idle, DisconnectReason> {
        loop {
            while let Some(pdu) = self.decoder.next_pdu()? {
                self.requests.handle(&pdu)?;
            }
            let connection = &self.requests.connection;
            connection.send()?;
            let is_due = self.is_due();
            // A connection that is due for a NOP-In had its time to send.
            let wait = if is_due { Wait::No } else { Wait::UntilIdle };
            let received = receive(&connection.socket, &mut self.decoder, wait);
            if self.entry.shared.is_stopping() {
                connection.requests().abandon(&connection.window);
                return Err(DisconnectReason::Stopping);
            }
            match received {
                Ok(()) => (self.last_heard, self.pinged) = (Instant::now(), None),
                Err(DisconnectReason::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    if is_due {
                        self.ping()?;
                    }
                    return Ok(Idle);
                }
                Err(reason) => return Err(reason),
            }
        }
    }

    fn release_memory(&mut self) {
        self.decoder.shrink();
        self.requests.data_in = DataIn::new();
        self.requests.connection.writer.release_memory();
    }

    fn ping(&mut self) -> Result<(), DisconnectReason> {
        let connection = &self.requests.connection;
        if connection.writer.is_sending() {
            // The peer is busy reading, and finds the NOP-In only after the rest.
            self.last_heard = Instant::now();
            return Ok(());
        }
        if self.pinged.replace(Instant::now()).is_some() {
            return Err(DisconnectReason::Silent);
        }
        let window = connection.window.now();
        connection.writer.lock().ping(window);
        Ok(connection.send()?)
    }

    /// Ends the connection.
    pub(crate) fn close(self: Box<Self>, reason: &DisconnectReason) {
        let Self { requests: Requests { connection, .. }, registration, entry, .. } = *self;
        if entry.shared.is_stopping() {
            connection.wait_for_commands(&entry.shared);
        }
        connection.session.close();
        drop(registration);
        let _ = connection.socket.shutdown(Shutdown::Both);
        entry.end(reason);
    }
}

/// The requests of a connection.
struct Requests {
    connection: Arc<Connection>,
    negotiated: Negotiated,
    shared: Arc<Shared>,
    data_in: DataIn,
    /// The rest of a Text Response that is longer than a data segment.
    rest_of_text: Vec<u8>,
}

impl Requests {
    fn handle(&mut self, pdu: &Pdu<'_>) -> Result<(), DisconnectReason> {
        let action = self.connection.requests().receive(pdu, &self.connection.window)?;
        self.act(pdu, action)?;
        Ok(self.connection.writer.send_if_full(&self.connection.socket)?)
    }

    fn act(&mut self, pdu: &Pdu<'_>, action: Action) -> Result<(), DisconnectReason> {
        let header = &pdu.header;
        let connection = &self.connection;
        let window = connection.window.now();
        let mut writer = connection.writer.lock();
        let Collected { replies, buffer, .. } = &mut *writer;
        match action {
            Action::None => {}
            Action::Transfer(lun, transfer) => replies.ready_to_transfer(buffer, lun, &transfer, window),
            Action::Fail(command, code) => {
                drop(writer);
                connection.answer(&command, &Completion::check(code), &[], 0, None);
                connection.free(command);
            }
            Action::RefuseManagement(tag, response) => replies.task_management(buffer, tag, response, window),
            Action::Pong => replies.nop_in(buffer, header, pdu.data, window),
            Action::Reject(reason) => replies.reject(buffer, header, reason, window),
            Action::Logout(response) => {
                replies.logout(buffer, header.task_tag(), response, window);
                drop(writer);
                connection.writer.send_all(&connection.socket)?;
                if response == 0 {
                    return Err(DisconnectReason::LoggedOut);
                }
            }
            Action::Text => {
                drop(writer);
                self.text(pdu);
            }
            Action::Manage(management) => {
                drop(writer);
                connection.request_data(connection.requests());
                self.manage(management)?;
            }
            Action::Run(command) => {
                drop(writer);
                self.command(command)?;
            }
        }
        Ok(())
    }

    /// Runs a command: here if that takes no time, else on a thread of the pool.
    fn command(&mut self, command: ScsiCommand) -> Result<(), DisconnectReason> {
        let connection = &self.connection;
        let lun = Lun::from_bytes(command.lun);
        // A LUN field of another form names no unit; 255 is none either, unless there are 256.
        let task = connection.session.add_task(lun.unwrap_or(Lun(255)), u64::from(command.task_tag));
        let Some(task) = task else {
            return Err(ProtocolError::Data("a command with the task tag of another one that runs").into());
        };
        if task.is_quick(&command.cdb) {
            connection.execute(task, &command, &mut self.data_in);
            connection.free(command);
            return Ok(());
        }
        let promise = Promise::new(connection, command.expected_in)?;
        // The collected answers must not wait for other commands.
        connection.send()?;
        let connection = Arc::clone(connection);
        self.shared.pool.run(move |data_in| {
            connection.execute(task, &command, data_in);
            connection.free(command);
            drop(promise);
            // A failure closes the socket, which the reader notices.
            let _ = connection.send();
        });
        Ok(())
    }

    /// Carries out a task management function on a thread of its own: it may have to wait for a device.
    fn manage(&mut self, management: Management) -> Result<(), DisconnectReason> {
        let connection = Arc::clone(&self.connection);
        connection.send()?;
        let work = move || {
            let response = connection.manage(&management);
            let window = connection.window.now();
            let mut writer = connection.writer.lock();
            let Collected { replies, buffer, .. } = &mut *writer;
            replies.task_management(buffer, management.task_tag, response, window);
            drop(writer);
            let _ = connection.send();
        };
        std::thread::Builder::new().name("iscsi-management".into()).stack_size(256 << 10).spawn(work)?;
        Ok(())
    }

    /// SendTargets (RFC 7143 appendix C) and declarations of MaxRecvDataSegmentLength.
    fn text(&mut self, pdu: &Pdu<'_>) {
        const CONTINUE: u8 = 0x40;
        let header = &pdu.header;
        let connection = &self.connection;
        let mut text = std::mem::take(&mut self.rest_of_text);
        if header.word(20) == NO_TAG {
            text.clear();
            let keys = if header.0[1] & CONTINUE != 0 { None } else { Keys::parse(pdu.data).ok() };
            let Some(keys) = keys else {
                let mut writer = connection.writer.lock();
                let Collected { replies, buffer, .. } = &mut *writer;
                replies.reject(buffer, header, crate::reply::RejectReason::Protocol, connection.window.now());
                return;
            };
            let mut answer = Keys::new();
            for (key, value) in keys.iter() {
                match key {
                    "SendTargets" => self.send_targets(value, &mut text),
                    "MaxRecvDataSegmentLength" => {
                        if let Some(length) = value.parse().ok().filter(|length| (512..=0xff_ffff).contains(length)) {
                            connection.writer.lock().replies.set_max_segment(length);
                        }
                    }
                    other => answer.push(other, "NotUnderstood"),
                }
            }
            text.extend_from_slice(&answer.encode());
        }
        let mut writer = connection.writer.lock();
        let Collected { replies, buffer, .. } = &mut *writer;
        let rest = text.split_off(text.len().min(replies.bounds().max_segment));
        // One text negotiation at a time: any tag but the reserved one does.
        let transfer_tag = (!rest.is_empty()).then_some(0);
        replies.text(buffer, header.task_tag(), &text, transfer_tag, connection.window.now());
        drop(writer);
        self.rest_of_text = rest;
    }

    fn send_targets(&self, value: &str, text: &mut Vec<u8>) {
        let own = self.negotiated.target.as_ref().map(|(name, _)| name.as_str());
        let portals = self.shared.portals(&self.connection.socket);
        for entry in self.shared.directory().visible_to(&self.negotiated.initiator) {
            let is_meant = match (value, own) {
                ("All", None) => true,
                ("", Some(own)) => entry.name == own,
                (name, _) => entry.name.eq_ignore_ascii_case(name),
            };
            if is_meant {
                text.extend_from_slice(format!("TargetName={}\0", entry.name).as_bytes());
                for portal in &portals {
                    text.extend_from_slice(format!("TargetAddress={portal}\0").as_bytes());
                }
            }
        }
    }
}

/// Room for the answer of a command, until this is dropped.
struct Promise {
    connection: Arc<Connection>,
    length: usize,
}

impl Promise {
    /// Waits until there is room for an answer of so many bytes.
    fn new(connection: &Arc<Connection>, expected_in: Option<u32>) -> io::Result<Self> {
        let length = expected_in.unwrap_or(0).min(MAX_TRANSFER) as usize;
        connection.writer.promise(length, &connection.socket)?;
        Ok(Self { connection: Arc::clone(connection), length })
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.connection.writer.end_promise(self.length);
    }
}

impl Connection {
    fn requests(&self) -> MutexGuard<'_, Session> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees the data of a command that has its answer. Others may have waited for the room.
    fn free(&self, command: ScsiCommand) {
        let ScsiCommand { held, data, .. } = command;
        drop(data);
        if held > 0 {
            let mut requests = self.requests();
            requests.give_back(held);
            self.request_data(requests);
        }
    }

    /// Puts a Ready To Transfer for each command for which there is room into the buffer of the writer.
    fn request_data(&self, mut requests: MutexGuard<'_, Session>) {
        while let Some((lun, transfer)) = requests.next_transfer() {
            let mut writer = self.writer.lock();
            let Collected { replies, buffer, .. } = &mut *writer;
            replies.ready_to_transfer(buffer, lun, &transfer, self.window.now());
        }
    }

    /// Sends what is collected.
    fn send(&self) -> io::Result<()> {
        self.writer.send(&self.socket)
    }

    /// Waits until every command has its answer, or the server waits no longer.
    fn wait_for_commands(&self, shared: &Shared) {
        while self.window.in_flight() > 0 && !shared.has_stopped() {
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = self.writer.send_all(&self.socket);
    }

    /// Runs the command, and puts its answer into the buffer of the writer.
    fn execute(&self, task: TargetTask, command: &ScsiCommand, data_in: &mut DataIn) {
        let response = self.session.execute(&task, &self.port, &command.cdb, &command.data, data_in);
        match response.completion {
            Some(completion) => {
                self.answer(command, &completion, data_in.bytes(), response.transfer_length, Some(task));
            }
            None => self.window.end(command.delivery),
        }
    }

    /// Puts the answer to a command into the buffer of the writer.
    fn answer(
        &self,
        command: &ScsiCommand,
        completion: &Completion,
        data: &[u8],
        transfer_length: u64,
        task: Option<TargetTask>,
    ) {
        let response = ScsiResponse {
            task_tag: command.task_tag,
            completion,
            data,
            expected_in: command.expected_in,
            expected_out: command.expected_out,
            transfer_length,
        };
        let mut writer = self.writer.lock();
        // Under the lock, so that no command counts as ended while its answer is missing.
        self.window.end(command.delivery);
        let window = self.window.now();
        // The task leaves the task set before the initiator can use its tag again; and under the lock, so that the answer
        // comes before that of a task management function that waits for the task.
        drop(task);
        let Collected { replies, buffer, .. } = &mut *writer;
        replies.scsi(buffer, &response, window);
    }

    fn manage(&self, management: &Management) -> TaskManagementResponse {
        use TaskManagementResponse::{Complete, NoTask, NoUnit};
        match management.function {
            TaskManagement::TargetWarmReset | TaskManagement::TargetColdReset => {
                self.session.manage_all(management.function);
                Complete
            }
            function => {
                let Some(lun) = Lun::from_bytes(management.lun) else { return NoUnit };
                match (self.session.manage(lun, function), function) {
                    (None, _) => NoUnit,
                    (Some(0), TaskManagement::AbortTask(_)) if !management.has_dropped => NoTask,
                    _ => Complete,
                }
            }
        }
    }
}
