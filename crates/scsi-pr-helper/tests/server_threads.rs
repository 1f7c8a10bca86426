//! [`scsi_pr_helper::serve`] when the kernel permits no more threads. RLIMIT_NPROC counts a user's threads, and does not
//! apply to root. So the test has a program of its own, which becomes a user that has no other process.

mod support;

use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use rustix::process::{Resource, Rlimit, Uid, geteuid, getrlimit, setrlimit};
use scsi_pr_helper::Limits;
use support::*;
use testing_support::Recorder;
use tracing::Level;

/// Lets the user of this process have as many threads.
fn allow(threads: u64) {
    setrlimit(Resource::Nproc, Rlimit { current: Some(threads), ..getrlimit(Resource::Nproc) }).unwrap();
}

/// The limit is that of the process: one test at a time.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn a_connection_without_a_thread_is_closed_and_others_are_served() {
    if !geteuid().is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let own_user = Uid::from_raw(0x5c51_0000 + std::process::id());
    // Of this thread only, and of those that it starts.
    rustix::thread::set_thread_res_uid(own_user, own_user, own_user).unwrap();

    // The server lowers its bound to what this leaves room for, and then finds less room than that.
    allow(1_000);
    let gate = Gate::default();
    let server = Server::start(Limits::default(), gate.clone());
    let mut client = server.client();
    // A connection that is idle may have no thread.
    client.send(&reserve_in(HANG, 1), &[null().as_fd()]);
    gate.wait_for(1);
    // This thread, the one that calls `serve`, and that of the connection.
    allow(3);
    assert!(server.connect_unheard().is_closed());
    // To close the refused one takes a thread as well, and comes before the next connection.
    let mut other = server.connect_unheard();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(other.is_silent());
    gate.let_go(1);
    assert_eq!(client.answer(), io_process_terminated());

    allow(5);
    assert_eq!(other.receive::<4>(), [0; 4]);
    other.send(&[0; 4], &[]);
    for client in [&mut client, &mut other] {
        assert_eq!(client.ask(&reserve_in(0, 1), null()), io_process_terminated());
    }
}

#[test]
fn idle_connection_without_a_thread_is_closed_and_logged() {
    if !geteuid().is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let recorder = Recorder::at(Level::WARN);
    recorder.install();
    let own_user = Uid::from_raw(0x5c53_0000 + std::process::id());
    rustix::thread::set_thread_res_uid(own_user, own_user, own_user).unwrap();

    allow(1_000);
    let limits = Limits::default().with_receive_timeout(std::time::Duration::from_millis(300));
    let server = Server::start(limits, Gate::default());
    let [mut client, mut other] = [server.client(), server.client()];
    wait_until("the threads of silent connections end", || threads() == 0);
    // This thread, and the one that calls `serve`.
    allow(2);
    client.send(&reserve_in(0, 1), &[null().as_fd()]);
    assert!(client.is_closed());
    let messages = recorder.messages();
    assert!(messages.iter().any(|message| message.contains("Unable to start a thread")), "{messages:?}");
    allow(5);
    assert_eq!(other.ask(&reserve_in(0, 1), null()), io_process_terminated());
}

/// The bound stays below RLIMIT_NPROC, less a reserve for workers.
#[test]
fn bound_of_connections_is_below_the_limit_of_threads() {
    if !geteuid().is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let own_user = Uid::from_raw(0x5c52_0000 + std::process::id());
    let limited = std::thread::spawn(move || {
        rustix::thread::set_thread_res_uid(own_user, own_user, own_user).unwrap();
        allow(130);
        let server = Server::start(Limits::default().with_peer_share(1), Gate::default());
        let mut clients = [server.client(), server.client()];
        for client in &mut clients {
            assert_eq!(client.ask(&reserve_in(0, 1), null()), io_process_terminated());
        }
        assert!(server.connect_unheard().is_closed());
    });
    limited.join().unwrap();
}
