//! [`HelperClient`]: a [`PrManager`] over the socket of a helper, QEMU's `pr-manager-helper`.
//!
//! Like QEMU's it connects when the first command comes, connects again when the helper was restarted, and runs one
//! command at a time. Unlike QEMU's it waits for nothing without a limit, believes no size that a helper announces,
//! and says whether a command whose answer is missing may have been run.

mod connection;

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use scsi_pr::{Command, Completion, Error, Opcode, PrManager, SenseCode};
use scsi_pr_daemon::{FifoMutex, FifoMutexGuard};

use connection::{Connection, SendError};

use crate::deadline::Deadline;
use crate::wire::MAX_TRANSFER;

/// How long and how often a [`HelperClient`] tries.
///
/// A command ends at the latest after `turn` + `connect` + `send` + `answer`: no attempt to connect begins once `turn`
/// is over.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// How often a command tries to connect before it fails; at least once. QEMU: 5.
    pub attempts: u32,
    /// The pause after a failed attempt, in which other commands may try. QEMU: one second. There is none after the
    /// last attempt, and none before a connection that turned out to be stale is replaced.
    pub pause: Duration,
    /// The limit of one attempt: connecting (a helper's backlog may be full) and handshake.
    pub connect: Duration,
    /// How long a command may wait until it can be sent, for the commands before it and for the helper to come back.
    pub turn: Duration,
    /// The limit of sending one request.
    pub send: Duration,
    /// How long an answer is waited for. It must exceed what a helper may take: half a minute until a busy device has
    /// room for another command, then a minute for the command itself.
    pub answer: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            attempts: 5,
            pause: Duration::from_secs(1),
            connect: Duration::from_secs(5),
            turn: Duration::from_secs(30),
            send: Duration::from_secs(10),
            answer: Duration::from_secs(120),
        }
    }
}

impl Config {
    /// The same with so many attempts to connect.
    #[must_use]
    pub fn with_attempts(self, attempts: u32) -> Self {
        Self { attempts, ..self }
    }

    /// The same with this pause after a failed attempt.
    #[must_use]
    pub fn with_pause(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }

    /// The same with this limit of an attempt.
    #[must_use]
    pub fn with_connect(self, connect: Duration) -> Self {
        Self { connect, ..self }
    }

    /// The same with this limit of the wait until a command can be sent.
    #[must_use]
    pub fn with_turn(self, turn: Duration) -> Self {
        Self { turn, ..self }
    }

    /// The same with this limit of sending a request.
    #[must_use]
    pub fn with_send(self, send: Duration) -> Self {
        Self { send, ..self }
    }

    /// The same with this limit of the wait for an answer.
    #[must_use]
    pub fn with_answer(self, answer: Duration) -> Self {
        Self { answer, ..self }
    }
}

/// Proof that the thread holds the lock of a client's commands.
type Turn<'a> = FifoMutexGuard<'a, ()>;

/// A [`PrManager`] that sends its commands to a helper.
///
/// # What a loss means
///
/// `Err` from [`execute`](PrManager::execute) is a transport error, never the unit's answer. The caller should then return
/// CHECK CONDITION with [`SenseCode::LUN_COMMUNICATION_FAILURE`] (B/08/00) to the guest. QEMU's client returns 5/24/00,
/// invalid field in CDB, although the CDB is valid.
///
/// A command counts as handed over once the helper has got the 16 bytes of its CDB, even if the parameter list is
/// incomplete. From then on it is never sent again, and its loss is [`Error::outcome_unknown`]: the unit may have run it,
/// and RESERVE, REGISTER or PREEMPT run twice are not what was asked for. Before that, the loss is [`Error::not_run`].
///
/// After a time-out, and after anything that the protocol does not allow, the connection is closed: an answer that comes
/// late is never taken for that of the next command.
///
/// # Threads
///
/// Any number of threads may run commands; they take turns in the order in which they came. None waits for longer than
/// its [`Config`] says, whatever the helper does and however many wait before it.
///
/// The device's descriptor is lent to the helper as it is; its flags are left alone.
pub struct HelperClient {
    peer: Peer,
    config: Config,
    on_change: Option<Box<dyn Fn(bool) + Send + Sync>>,
    /// Held while a command runs: the protocol allows one command in flight on a connection.
    command_lock: FifoMutex<()>,
    /// Only the thread that holds `command_lock` changes it. No thread waits for anything while it holds this lock.
    connection: Mutex<Option<Arc<Connection>>>,
}

/// Where connections come from.
#[derive(Debug)]
enum Peer {
    Path(PathBuf),
    /// There is this one, and then none.
    Stream(Mutex<Option<OwnedFd>>),
}

impl HelperClient {
    /// A client of the helper that listens at `path`. Nothing is connected yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self::of(Peer::Path(path.into()))
    }

    /// A client of the helper at the other end of `stream`, which has sent and received nothing yet. Once lost, the
    /// connection cannot be made again, and every further command is [`Error::not_run`].
    pub fn over(stream: UnixStream) -> Self {
        Self::of(Peer::Stream(Mutex::new(Some(stream.into()))))
    }

    fn of(peer: Peer) -> Self {
        Self {
            peer,
            config: Config::default(),
            on_change: None,
            command_lock: FifoMutex::new(()),
            connection: Mutex::new(None),
        }
    }

    /// The same client with other limits.
    #[must_use]
    pub fn with_config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// The same client, calling `callback` when a connection is made (`true`) and when it is lost (`false`): QEMU's
    /// event PR_MANAGER_STATUS_CHANGED.
    ///
    /// The calls come in order, on the thread of the command that saw the change and before it goes on. No lock is held,
    /// so [`is_connected`](PrManager::is_connected) may be asked; but it is still that command's turn, so a command run
    /// on the same client by the callback would only wait for `turn` and fail.
    #[must_use]
    pub fn on_change(mut self, callback: impl Fn(bool) + Send + Sync + 'static) -> Self {
        self.on_change = Some(Box::new(callback));
        self
    }

    /// Connects now, with one attempt, unless there is a connection. A VMM can so check at start-up that the helper is
    /// there, as QEMU does.
    ///
    /// # Errors
    ///
    /// [`Error::not_run`], saying why there is no connection.
    pub fn connect(&self) -> Result<(), Error> {
        let turn = self.turn(&Deadline::after(self.config.turn))?;
        match self.current(&turn) {
            Some(_) => Ok(()),
            None => self.make_connection(&turn).map(drop),
        }
    }

    fn turn(&self, deadline: &Deadline) -> Result<Turn<'_>, Error> {
        self.command_lock.lock_timeout(deadline.left()).ok_or_else(|| {
            Error::not_run(format!("send a command to {}, which is busy with another one", self.peer))
                .because(deadline.expired())
        })
    }

    /// The connection, if a request can be sent on it. One that went stale is dropped.
    fn current(&self, turn: &Turn<'_>) -> Option<Arc<Connection>> {
        let connection = self.connection().clone()?;
        if connection.is_idle() {
            return Some(connection);
        }
        self.set_connection(turn, None);
        None
    }

    /// One attempt to connect.
    fn make_connection(&self, turn: &Turn<'_>) -> Result<Arc<Connection>, Error> {
        let deadline = Deadline::after(self.config.connect);
        let connection = self
            .peer
            .socket(&deadline)
            .and_then(|socket| Connection::negotiate(socket, &deadline))
            .map(Arc::new)
            .map_err(|error| {
                Error::not_run(format!("connect to {}", self.peer))
                    .because(error)
                    .remedy("check that the helper runs and that its socket may be used")
            })?;
        self.set_connection(turn, Some(Arc::clone(&connection)));
        Ok(connection)
    }

    /// Stores a new connection, or drops the one that there is. The turn keeps the calls of the callback in order.
    fn set_connection(&self, _turn: &Turn<'_>, connection: Option<Arc<Connection>>) {
        let connected = connection.is_some();
        *self.connection() = connection;
        tracing::debug!(peer = %self.peer, connected, "helper connection changed");
        if let Some(callback) = &self.on_change {
            callback(connected);
        }
    }

    fn connection(&self) -> MutexGuard<'_, Option<Arc<Connection>>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One attempt to run a command: on the connection that there is, or on a new one if there is none or if it turns out
    /// to be stale.
    fn attempt(&self, turn: &Turn<'_>, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Failure> {
        if let Some(connection) = self.current(turn) {
            match self.run(turn, &connection, device, command) {
                Err(Failure::Stale(error)) => tracing::debug!(%error, "connection was stale"),
                answered_or_lost => return answered_or_lost,
            }
        }
        let connection = self.make_connection(turn).map_err(Failure::NotSent)?;
        self.run(turn, &connection, device, command)
    }

    fn run(
        &self,
        turn: &Turn<'_>,
        connection: &Connection,
        device: BorrowedFd<'_>,
        command: Command<'_>,
    ) -> Result<Completion, Failure> {
        if command.opcode() == Opcode::Cleanup && !connection.has_cleanup() {
            // A helper that does not know it closes the connection. The guest's registration stays: this must not look
            // like success.
            return Ok(Completion::check(SenseCode::INVALID_OPCODE));
        }
        if command.cdb().check_transfer_length(MAX_TRANSFER).is_err() {
            // The helper would close the connection.
            return Ok(Completion::check(SenseCode::INVALID_FIELD_IN_CDB));
        }
        let answer = connection
            .send(device, &command, &Deadline::after(self.config.send))
            .map_err(|failure| match failure {
                SendError::Before(error) if error.kind() == io::ErrorKind::TimedOut => {
                    Failure::NotSent(self.not_sent(command, error))
                }
                SendError::Before(error) => Failure::Stale(self.not_sent(command, error)),
                SendError::After(error) => Failure::Lost(self.lost("send", command, error)),
            })
            .and_then(|()| {
                connection
                    .receive(command.cdb(), &Deadline::after(self.config.answer))
                    .map_err(|error| Failure::Lost(self.lost("read the answer to", command, error)))
            });
        if answer.is_err() {
            self.set_connection(turn, None);
        }
        answer
    }

    fn not_sent(&self, command: Command<'_>, error: io::Error) -> Error {
        Error::not_run(format!("send {} to {}", command.opcode(), self.peer)).because(error)
    }

    fn lost(&self, act: &str, command: Command<'_>, error: io::Error) -> Error {
        Error::outcome_unknown(format!("{act} {} ({})", command.opcode(), self.peer))
            .because(error)
            .remedy("read the reservation before anything else is done; the helper's log may say why")
    }
}

/// The reason why a command has no answer.
enum Failure {
    /// The helper has not got it, because the connection had ended; on a new one it may be tried at once.
    Stale(Error),
    /// The helper has not got it; after a pause it may be tried again.
    NotSent(Error),
    /// The helper has got it, and must not get it again.
    Lost(Error),
}

impl PrManager for HelperClient {
    /// CLEANUP is sent to a helper that has announced it; for any other, the answer is CHECK CONDITION with 5/20/00,
    /// invalid command operation code.
    fn execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        let waiting = Deadline::after(self.config.turn);
        let attempts = match self.peer {
            Peer::Path(_) => self.config.attempts.max(1),
            Peer::Stream(_) => 1,
        };
        for attempt in 1.. {
            let turn = self.turn(&waiting)?;
            let error = match self.attempt(&turn, device, command) {
                Ok(completion) => return Ok(completion),
                Err(Failure::Lost(error)) => return Err(error),
                Err(Failure::Stale(error) | Failure::NotSent(error)) => error,
            };
            // Others may try in the pause; if one of them succeeds, its connection is used.
            drop(turn);
            if attempt >= attempts || waiting.left() <= self.config.pause {
                return Err(error);
            }
            std::thread::sleep(self.config.pause);
        }
        unreachable!("the last attempt returns")
    }

    /// Whether there is a connection whose other end is open. Nothing is connected for the sake of the question: before
    /// the first command the answer is no. This method notices at once that a helper has ended; the callback is called when
    /// the next command comes.
    fn is_connected(&self) -> bool {
        let connection = self.connection().clone();
        connection.is_some_and(|connection| !connection.is_hung_up())
    }
}

impl Peer {
    fn socket(&self, deadline: &Deadline) -> io::Result<OwnedFd> {
        match self {
            Self::Path(path) => connection::open(path, deadline),
            Self::Stream(stream) => stream
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take()
                .ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "its only connection was lost")),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "the helper at {}", path.display()),
            Self::Stream(_) => f.write_str("the connected helper"),
        }
    }
}

impl fmt::Debug for HelperClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HelperClient")
            .field("peer", &self.peer)
            .field("config", &self.config)
            .field("connection", &self.connection)
            .finish_non_exhaustive()
    }
}
