//! [`scsi_pr_helper::serve`] where no more threads are to be had. A test program of its own: RLIMIT_NPROC counts a user's
//! threads and means nothing to root, so the test becomes a user whom nobody else is.

mod support;

use std::os::fd::AsFd;

use rustix::process::{Resource, Rlimit, Uid, geteuid, getrlimit, setrlimit};
use scsi_pr_helper::Limits;
use support::*;

/// How many threads the user of this process may have.
fn allow(threads: u64) {
    setrlimit(Resource::Nproc, Rlimit { current: Some(threads), ..getrlimit(Resource::Nproc) }).unwrap();
}

#[test]
fn without_a_thread_a_command_is_busy_and_the_last_one_is_not_spent() {
    if !geteuid().is_root() {
        eprintln!("skipped: only root can become another user");
        return;
    }
    let nobody_else = Uid::from_raw(0x5c51_0000 + std::process::id());
    // Of this thread only, and of those that it starts.
    rustix::thread::set_thread_res_uid(nobody_else, nobody_else, nobody_else).unwrap();
    let gate = Gate::default();
    let files: Vec<_> = (0..3).map(|_| tempfile::tempfile().unwrap()).collect();

    // This thread and the one that calls `serve`: nobody to read the handshake. It waits.
    allow(2);
    let server = Server::start(Limits::default(), gate.clone());
    let mut client = server.client();
    client.send(&reserve_in(HANG, 1), &[files[0].as_fd()]);
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(client.is_silent());

    // One more: it reads, and answers, but does not run what may hang.
    allow(3);
    assert_eq!(client.answer().status, BUSY);
    assert_eq!(client.ask(&reserve_out(0, &[1; 24]), &files[0]).status, BUSY);
    assert!(gate.began().is_empty());

    // One that runs a command, while the last one answers the others.
    allow(4);
    wait_until("a command runs", || {
        client.send(&reserve_in(HANG, 2), &[files[0].as_fd()]);
        wait_until("it runs or is BUSY", || !client.is_silent() || gate.hanging() == 1);
        gate.hanging() == 1 || client.answer().status != BUSY
    });
    let mut other = server.client();
    for _ in 0..5 {
        assert_eq!(other.ask(&reserve_in(HANG, 3), &files[1]).status, BUSY);
    }
    gate.let_go(1);
    assert_eq!(client.answer(), io_process_terminated());
    assert_eq!(gate.began(), [2]);
}
