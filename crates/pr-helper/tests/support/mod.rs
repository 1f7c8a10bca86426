//! A server over a real socket, and a client that sends exactly what it is told.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pr_helper::{Draining, Limits, Peer, serve};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use scsi_pr::{Command, Completion, Error, PrManager, SenseCode};

/// Far more than anything takes, on a machine that does other things too.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Waits until `condition` holds.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
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
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
        Client { stream }
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

pub(crate) struct Client {
    pub(crate) stream: UnixStream,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: i32,
    pub(crate) sense: [u8; 96],
    pub(crate) data: Vec<u8>,
}

impl Client {
    /// Sends all the bytes, and the descriptors with the first of them.
    pub(crate) fn send(&mut self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        self.try_send(bytes, descriptors).unwrap();
    }

    pub(crate) fn try_send(&mut self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> std::io::Result<()> {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(descriptors)));
        let sent = sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
        self.stream.write_all(&bytes[sent..])
    }

    pub(crate) fn receive<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    pub(crate) fn answer(&mut self) -> Answer {
        let header = self.receive::<104>();
        let int = |at: usize| i32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        let mut data = vec![0; usize::try_from(int(4)).unwrap()];
        self.stream.read_exact(&mut data).unwrap();
        Answer { status: int(0), sense: header[8..].try_into().unwrap(), data }
    }

    /// One whole request, and its answer.
    pub(crate) fn ask(&mut self, bytes: &[u8], descriptor: impl AsFd) -> Answer {
        self.send(bytes, &[descriptor.as_fd()]);
        self.answer()
    }

    /// Whether the server has closed the connection, with nothing more to read.
    pub(crate) fn is_closed(&mut self) -> bool {
        match self.stream.read(&mut [0; 1]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    /// Whether nothing has come, and the connection is open.
    pub(crate) fn is_silent(&self) -> bool {
        use rustix::net::{RecvFlags, recv};
        recv(&self.stream, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT) == Err(rustix::io::Errno::AGAIN)
    }
}

fn cdb(opcode: u8, service_action: u8, length: u16) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (opcode, service_action);
    cdb[7..9].copy_from_slice(&length.to_be_bytes());
    cdb
}

/// PERSISTENT RESERVE IN.
pub(crate) fn reserve_in(service_action: u8, length: u16) -> [u8; 16] {
    cdb(0x5e, service_action, length)
}

/// PERSISTENT RESERVE OUT with its parameter list.
pub(crate) fn reserve_out(service_action: u8, list: &[u8]) -> Vec<u8> {
    [&cdb(0x5f, service_action, list.len().try_into().unwrap())[..], list].concat()
}

/// Any CDB.
pub(crate) fn any_cdb(opcode: u8, length: u16) -> [u8; 16] {
    cdb(opcode, 0, length)
}

pub(crate) fn null() -> OwnedFd {
    std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap().into()
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
