//! A server over a real socket, and a client that sends exactly the bytes of a test.
#![allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]

use std::io::Write;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use scsi_pr::{Command, Completion, Error, PrManager, SenseCode};
use scsi_pr_helper::{Draining, Limits, Peer, serve};
use testing_support::{command, eventually};

pub(crate) use testing_support::DEADLINE as LONG;
pub(crate) use testing_support::command::reserve_in;

/// Waits until `condition` holds.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    eventually(what, || condition().then_some(()));
}

/// The number of threads of servers in this process that serve connections.
pub(crate) fn threads() -> usize {
    let names = std::fs::read_dir("/proc/self/task")
        .unwrap()
        .map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")));
    // One that ends meanwhile has none.
    names.flatten().filter(|name| name.trim() == "pr-connection").count()
}

pub(crate) struct Server {
    pub(crate) path: PathBuf,
    directory: tempfile::TempDir,
    stop: std::io::PipeWriter,
    thread: Option<JoinHandle<Draining>>,
}

impl Server {
    pub(crate) fn start(limits: Limits, manager: impl PrManager + 'static) -> Self {
        let manager: Arc<dyn PrManager> = Arc::new(manager);
        Self::start_with(limits, move |_| Arc::clone(&manager))
    }

    pub(crate) fn start_with(
        limits: Limits,
        manager_for: impl Fn(&Peer) -> Arc<dyn PrManager> + Send + 'static,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        // std listens with a backlog of 128.
        rustix::net::listen(&listener, 4096).unwrap();
        let (stopped, stop) = std::io::pipe().unwrap();
        let thread = std::thread::spawn(move || serve(listener.into(), manager_for, limits, stopped.as_fd()).unwrap());
        Self { path, directory, stop, thread: Some(thread) }
    }

    /// A connection with the handshake done.
    pub(crate) fn client(&self) -> Client {
        let mut client = self.connect();
        client.send(&[0; 4], &[]);
        client
    }

    /// A connection that has received the helper's features and sent nothing.
    pub(crate) fn connect(&self) -> Client {
        let mut client = self.connect_unheard();
        assert_eq!(client.receive::<4>(), [0; 4]);
        client
    }

    /// A connection, whatever comes of it.
    pub(crate) fn connect_unheard(&self) -> Client {
        Client::connect(&self.path)
    }

    pub(crate) fn stop(mut self) -> Draining {
        self.stop.write_all(&[0]).unwrap();
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = self.stop.write_all(&[0]);
            drop(thread.join());
        }
    }
}

pub(crate) use testing_support::Response as Answer;

/// A [`testing_support::Client`] whose methods panic when the connection ends too early.
pub(crate) struct Client(testing_support::Client);

impl Deref for Client {
    type Target = testing_support::Client;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Client {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl Client {
    pub(crate) fn connect(path: &Path) -> Self {
        Self::over(UnixStream::connect(path).unwrap())
    }

    pub(crate) fn over(stream: UnixStream) -> Self {
        Self(testing_support::Client::over(stream).unwrap())
    }

    /// Sends all the bytes, and the descriptors with the first of them.
    pub(crate) fn send(&mut self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        self.try_send(bytes, descriptors).unwrap();
    }

    pub(crate) fn try_send(&mut self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> std::io::Result<()> {
        self.0.send(bytes, descriptors)
    }

    pub(crate) fn receive<const N: usize>(&mut self) -> [u8; N] {
        self.0.receive().unwrap()
    }

    /// Whether as many bytes came before the end of the connection.
    pub(crate) fn try_receive<const N: usize>(&mut self) -> bool {
        self.0.receive::<N>().is_ok()
    }

    pub(crate) fn answer(&mut self) -> Answer {
        self.0.response().unwrap()
    }

    pub(crate) fn is_silent(&self) -> bool {
        self.0.is_silent()
    }

    /// Sends one whole request. Returns its answer.
    pub(crate) fn ask(&mut self, bytes: &[u8], descriptor: impl AsFd) -> Answer {
        self.send(bytes, &[descriptor.as_fd()]);
        self.answer()
    }
}

/// A connection that the server serves. It may close others, because this process has too many.
pub(crate) fn client_once_there_is_room(path: &Path) -> Client {
    Client(testing_support::Client::open_once_served(path, &reserve_in(0, 1), null()))
}

/// PERSISTENT RESERVE OUT with its parameter list.
pub(crate) fn reserve_out(service_action: u8, list: &[u8]) -> Vec<u8> {
    [&command::reserve_out(service_action, 0, list.len())[..], list].concat()
}

/// Any CDB.
pub(crate) fn any_cdb(opcode: u8, length: u16) -> [u8; 16] {
    command::cdb(opcode, 0, length)
}

pub(crate) fn null() -> OwnedFd {
    testing_support::null().into()
}

/// Answers IN with as many bytes of its service action as it may, OUT with the sum of its parameter list in the sense.
#[derive(Clone, Copy)]
pub(crate) struct Echo;

impl PrManager for Echo {
    fn execute(&self, _device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        Ok(match command.opcode() {
            scsi_pr::Opcode::ReserveIn => {
                Completion::Good(vec![command.cdb().service_action(); command.cdb().allocation_length()])
            }
            scsi_pr::Opcode::ReserveOut => Completion::CheckCondition(scsi_pr::Sense::from_bytes(
                &command.parameter_list().iter().map(|byte| u32::from(*byte)).sum::<u32>().to_be_bytes(),
            )),
            scsi_pr::Opcode::Cleanup => Completion::Good(Vec::new()),
        })
    }
}

/// Commands with service action 1Fh hang until they are let go; the others are answered at once.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Default)]
struct GateState {
    hanging: Vec<u16>,
    let_go: usize,
    began: Vec<u16>,
}

/// The service action of commands that hang.
pub(crate) const HANG: u8 = 0x1f;

impl Gate {
    pub(crate) fn hanging(&self) -> usize {
        self.0.0.lock().unwrap().hanging.len()
    }

    /// The allocation lengths of the commands that hung, in the order in which they began.
    pub(crate) fn began(&self) -> Vec<u16> {
        self.0.0.lock().unwrap().began.clone()
    }

    pub(crate) fn wait_for(&self, count: usize) {
        wait_until("commands hang", || self.hanging() == count);
    }

    /// Lets go as many commands, those that will hang later included.
    pub(crate) fn let_go(&self, count: usize) {
        self.0.0.lock().unwrap().let_go += count;
        self.0.1.notify_all();
    }
}

impl PrManager for Gate {
    fn execute(&self, _device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        let length = command.cdb().allocation_length() as u16;
        if command.cdb().service_action() == HANG {
            let (state, changed) = &*self.0;
            let mut state = state.lock().unwrap();
            state.hanging.push(length);
            state.began.push(length);
            state = changed.wait_while(state, |state| state.let_go == 0).unwrap();
            state.let_go -= 1;
            let at = state.hanging.iter().position(|hanging| *hanging == length).unwrap();
            state.hanging.remove(at);
        }
        Ok(Completion::check(SenseCode::IO_PROCESS_TERMINATED))
    }
}

/// The status.
pub(crate) const BUSY: i32 = 8;

/// CHECK CONDITION with fixed sense data of this code.
pub(crate) fn check_condition(key: u8, asc: u8, ascq: u8) -> Answer {
    Answer::check_condition(key, asc, ascq)
}

/// The answer of [`Gate`].
pub(crate) fn io_process_terminated() -> Answer {
    check_condition(0xb, 0x00, 0x06)
}

/// A violation on a new connection, and the warning about it.
pub(crate) type Violation = (&'static str, fn(&Server), Option<&'static str>);

const NO_DESCRIPTOR: Option<&str> = Some("No file descriptor in request.");
const INVALID_CDB: Option<&str> = Some("Invalid CDB, closing socket.");
const UNEXPECTED_END: Option<&str> = Some("Unexpected end-of-file before all data were read");
// The C helper is silent about these.
const MANY_DESCRIPTORS: Option<&str> = Some("More than one file descriptor in request, closing socket.");
const UNKNOWN_FEATURES: Option<&str> =
    Some("Invalid request, closing socket: unknown features 0x80000000 were requested");
const LONG_IN: Option<&str> = Some(
    "Invalid request, closing socket: PERSISTENT RESERVE IN of 8193 bytes, more than the 8192 that one command may move",
);
const LONG_OUT: Option<&str> = Some(
    "Invalid request, closing socket: PERSISTENT RESERVE OUT of 8193 bytes, more than the 8192 that one command may move",
);

/// Every way to end a connection that the C helper tells apart.
pub(crate) const VIOLATIONS: [Violation; 19] = [
    ("nothing", |server| drop(server.connect_unheard()), None),
    ("half a handshake", |server| server.connect().send(&[0; 2], &[]), None),
    ("half a CDB", |server| server.client().send(&reserve_in(0, 8)[..9], &[null().as_fd()]), None),
    ("the end where a request could begin", |server| drop(server.client().ask(&reserve_in(0, 8), null())), None),
    ("unknown features", |server| is_closed_on(server.connect(), &[0x80, 0, 0, 0], 0), UNKNOWN_FEATURES),
    ("two descriptors", |server| is_closed_on(server.client(), &reserve_in(0, 8), 2), MANY_DESCRIPTORS),
    ("253 descriptors", |server| is_closed_on(server.client(), &reserve_in(0, 8), 253), MANY_DESCRIPTORS),
    ("two descriptors and no command", |server| is_closed_on(server.client(), &any_cdb(0x12, 0), 2), MANY_DESCRIPTORS),
    ("two descriptors, one after the other", one_after_the_other, MANY_DESCRIPTORS),
    ("too long IN", |server| is_closed_on(server.client(), &reserve_in(0, 8193), 1), LONG_IN),
    ("too long OUT", |server| is_closed_on(server.client(), &any_cdb(0x5f, 8193), 1), LONG_OUT),
    ("no descriptor", |server| is_closed_on(server.client(), &reserve_in(0, 8), 0), NO_DESCRIPTOR),
    ("no descriptor and no command", |server| is_closed_on(server.client(), &any_cdb(0x12, 0), 0), NO_DESCRIPTOR),
    (
        "one with the handshake",
        |server| is_closed_on(server.connect(), &[&[0; 4][..], &reserve_in(0, 8)].concat(), 1),
        NO_DESCRIPTOR,
    ),
    ("one with the list", one_with_the_list, NO_DESCRIPTOR),
    ("TEST UNIT READY", |server| is_closed_on(server.client(), &[0; 16], 1), INVALID_CDB),
    ("INQUIRY", |server| is_closed_on(server.client(), &any_cdb(0x12, 0), 1), INVALID_CDB),
    (
        "no parameter list",
        |server| server.client().send(&reserve_out(0, &[0; 24])[..16], &[null().as_fd()]),
        UNEXPECTED_END,
    ),
    (
        "half a parameter list",
        |server| server.client().send(&reserve_out(0, &[0; 24])[..30], &[null().as_fd()]),
        UNEXPECTED_END,
    ),
];

/// Sends it with as many descriptors, and sees the connection closed.
pub(crate) fn is_closed_on(mut client: Client, bytes: &[u8], descriptors: usize) {
    let null = null();
    client.send(bytes, &vec![null.as_fd(); descriptors]);
    assert!(client.is_closed());
}

fn one_after_the_other(server: &Server) {
    let mut client = server.client();
    client.send(&reserve_in(0, 8)[..3], &[null().as_fd()]);
    is_closed_on(client, &reserve_in(0, 8)[3..], 1);
}

fn one_with_the_list(server: &Server) {
    let mut client = server.client();
    client.send(&reserve_out(0, &[0; 24])[..16], &[]);
    // The server may have closed by now.
    let _ = client.try_send(&[0; 24], &[null().as_fd()]);
    assert!(client.is_closed());
}
