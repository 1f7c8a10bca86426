//! The clients that a server admits, and what it counts.
#![forbid(unsafe_code)]

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use scsi_pr::{Command, Completion, Error, PrManager};
use scsi_pr_helper::{Limits, Peer, Server, ServerCounters};
use testing_support::command::{action_in, reserve_in};
use testing_support::{Client, eventually, null};

/// Answers every command with GOOD.
struct Good;

impl PrManager for Good {
    fn execute(&self, _: BorrowedFd<'_>, _: Command<'_>) -> Result<Completion, Error> {
        Ok(Completion::Good(Vec::new()))
    }

    fn is_connected(&self) -> bool {
        true
    }
}

/// Runs `act` with the path of a server that admits while `admits` is true, and with its counters.
fn with_server(limits: Limits, admits: &Arc<AtomicBool>, act: impl FnOnce(&Path, &ServerCounters)) {
    let directory = testing_support::directory();
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let (stopped, mut stop) = std::io::pipe().unwrap();
    let counters = Arc::new(ServerCounters::default());
    let (admits, counted) = (Arc::clone(admits), Arc::clone(&counters));
    let thread = std::thread::spawn(move || {
        let server = Server::new(limits).with_counters(counted).with_admission(move |_| admits.load(Ordering::Relaxed));
        let manager_for = |_: &Peer| Arc::new(Good) as Arc<dyn PrManager>;
        let _ = server.serve(vec![(listener.into(), manager_for)], stopped.as_fd()).unwrap();
    });
    act(&path, &counters);
    stop.write_all(&[0]).unwrap();
    thread.join().unwrap();
}

fn disconnects(counters: &ServerCounters, cause: &str) -> u64 {
    counters.disconnects().find(|(name, _)| *name == cause).expect("there is such a cause").1
}

fn is_served(path: &Path) -> bool {
    let mut client = Client::over(UnixStream::connect(path).unwrap()).unwrap();
    client.read_features().is_ok()
}

#[test]
fn client_that_is_not_admitted_is_closed_and_counted_and_takes_no_slot() {
    let admits = Arc::new(AtomicBool::new(false));
    with_server(Limits::default().with_connections(1), &admits, |path, counters| {
        for _ in 0..5 {
            assert!(!is_served(path));
        }
        assert_eq!((counters.accepted(), counters.open()), (5, 0));
        assert_eq!(disconnects(counters, "not-allowed"), 5);
        admits.store(true, Ordering::Relaxed);
        assert!(is_served(path));
        assert_eq!((counters.accepted(), disconnects(counters, "max-connections")), (6, 0));
    });
}

#[test]
fn connections_are_counted_while_they_are_open_and_by_the_cause_of_their_end() {
    let limits = Limits::default().with_connections(2).with_peer_share(1);
    with_server(limits, &Arc::new(AtomicBool::new(true)), |path, counters| {
        let mut clients: Vec<Client> = (0..2).map(|_| Client::open(path).unwrap()).collect();
        assert_eq!(counters.open(), 2);
        assert!(!is_served(path));
        assert_eq!(disconnects(counters, "max-connections"), 1);
        clients[0].run(&reserve_in(action_in::READ_KEYS, 8), &[], null()).unwrap();
        // A request without a descriptor.
        clients[0].send(&reserve_in(action_in::READ_KEYS, 8), &[]).unwrap();
        assert!(clients[0].is_closed());
        eventually("one connection is left", || (counters.open() == 1).then_some(()));
        assert_eq!((disconnects(counters, "protocol-violation"), counters.busy()), (1, 0));
        // The end of a client is no disconnection by the server.
        drop(clients);
        eventually("no connection is left", || (counters.open() == 0).then_some(()));
        assert_eq!(counters.disconnects().map(|(_, count)| count).sum::<u64>(), 2);
    });
}
