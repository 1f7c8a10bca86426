//! One server, several sockets: each has its own manager, and nothing else of its own.
#![forbid(unsafe_code)]

mod support;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use scsi_pr::{Command, Completion, Error, PrManager, ReserveIn, ReserveInAction};
use scsi_pr_helper::{Draining, HelperClient, Limits, Peer, Server};
use support::{LONG, wait_until};

/// Answers with its number.
struct Numbered(u8);

impl PrManager for Numbered {
    fn execute(&self, _: BorrowedFd<'_>, _: Command<'_>) -> Result<Completion, Error> {
        Ok(Completion::Good(vec![self.0]))
    }
}

struct Sockets {
    directory: tempfile::TempDir,
    stop: Option<std::io::PipeWriter>,
    thread: Option<JoinHandle<Draining>>,
}

impl Sockets {
    fn start(count: u8, limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let sockets: Vec<(OwnedFd, _)> = (0..count)
            .map(|number| {
                let listener = UnixListener::bind(directory.path().join(number.to_string())).unwrap();
                let manager: Arc<dyn PrManager> = Arc::new(Numbered(number));
                (listener.into(), move |_: &Peer| Arc::clone(&manager))
            })
            .collect();
        let (stopped, stop) = std::io::pipe().unwrap();
        let thread = std::thread::spawn(move || Server::new(limits).serve(sockets, stopped.as_fd()).unwrap());
        Self { directory, stop: Some(stop), thread: Some(thread) }
    }

    fn path(&self, number: u8) -> PathBuf {
        self.directory.path().join(number.to_string())
    }

    fn client(&self, number: u8) -> HelperClient {
        HelperClient::new(self.path(number))
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The number of the manager that answers.
fn number(client: &HelperClient) -> u8 {
    let device = File::open("/dev/null").unwrap();
    let command = ReserveIn::new(ReserveInAction::ReadKeys, 8).encode();
    match client.execute(device.as_fd(), command.command()).unwrap() {
        Completion::Good(data) => data[0],
        other => panic!("{other}"),
    }
}

#[test]
fn each_socket_has_its_own_manager() {
    let sockets = Sockets::start(100, Limits::default());
    let clients: Vec<_> = (0..100).map(|index| sockets.client(index)).collect();
    for _ in 0..3 {
        for (index, client) in clients.iter().enumerate() {
            assert_eq!(usize::from(number(client)), index);
        }
    }
}

#[test]
fn a_bound_is_for_all_sockets_together() {
    // The share of one process is the whole.
    let limits = Limits::default().with_connections(2).with_peer_share(1);
    let sockets = Sockets::start(3, limits);
    let (first, second) = (sockets.client(0), sockets.client(1));
    assert_eq!((number(&first), number(&second)), (0, 1));
    let mut third = UnixStream::connect(sockets.path(2)).unwrap();
    third.set_read_timeout(Some(LONG)).unwrap();
    assert_eq!(third.read(&mut [0; 1]).unwrap(), 0, "a third connection is served");
    drop(first);
    wait_until("another socket has the room", || {
        UnixStream::connect(sockets.path(2)).unwrap().read_exact(&mut [0; 4]).is_ok()
    });
}

#[test]
fn stopped_server_refuses_connections_on_every_socket() {
    let mut sockets = Sockets::start(5, Limits::default());
    let paths: Vec<_> = (0..5).map(|index| sockets.path(index)).collect();
    assert_eq!(number(&sockets.client(4)), 4);
    drop(sockets.stop.take());
    let draining = sockets.thread.take().unwrap().join().unwrap();
    for path in &paths {
        assert_eq!(UnixStream::connect(path).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    }
    draining.wait(LONG);
}

/// A service manager has the listeners too, and goes on with them when the server has ended.
#[test]
fn a_listener_that_another_process_has_as_well_stays_usable() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let kept = UnixListener::bind(&path).unwrap();
    for _ in 0..2 {
        let manager: Arc<dyn PrManager> = Arc::new(Numbered(7));
        let listener: OwnedFd = kept.try_clone().unwrap().into();
        let (stopped, stop) = std::io::pipe().unwrap();
        let serving = std::thread::spawn(move || {
            let manager_for = move |_: &Peer| Arc::clone(&manager);
            Server::new(Limits::default()).serve(vec![(listener, manager_for)], stopped.as_fd()).unwrap()
        });
        let stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        assert_eq!(number(&HelperClient::over(stream)), 7);
        drop(stop);
        serving.join().unwrap().wait(LONG);
    }
}
