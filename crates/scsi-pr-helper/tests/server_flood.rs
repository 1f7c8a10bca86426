//! [`scsi_pr_helper::serve`] leaves no descriptor, thread or memory behind. The test has a program of its own, because it
//! counts those of its process.

mod support;

use std::fs::{read_dir, read_to_string};
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use scsi_pr_helper::Limits;
use support::*;

fn descriptors() -> usize {
    read_dir("/proc/self/fd").unwrap().count()
}

/// Resident memory, in KiB.
fn memory() -> usize {
    let status = read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Waits until at most as many connections have a thread.
fn wait_for_threads(count: usize) {
    wait_until("threads end", || threads() <= count);
}

/// The tests of this program run one after the other.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `count` connections on four threads, each ended in another way.
fn flood(server: &Server, count: usize) {
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for number in (thread..count).step_by(4) {
                    VIOLATIONS[number % VIOLATIONS.len()].1(server);
                }
            });
        }
    });
}

#[test]
fn after_ten_thousand_violations_nothing_stays_behind() {
    let _turn = alone();
    let server = Server::start(Limits::default(), Echo);
    // A connection that does nothing wrong, all the while.
    let mut honest = server.client();
    honest.ask(&reserve_in(1, 8), null());
    flood(&server, 2_000);
    wait_for_threads(1);
    let (descriptors_before, memory_before) = (descriptors(), memory());
    flood(&server, 10_000);
    wait_until("descriptors are closed", || descriptors() <= descriptors_before);
    wait_for_threads(1);
    let memory_after = memory();
    assert!(memory_after <= memory_before + 2048, "KiB of memory: {memory_before}, then {memory_after}");
    assert_eq!(honest.ask(&reserve_in(1, 8), null()).data, [1; 8]);
}

#[test]
fn a_thread_ends_with_its_connection() {
    let _turn = alone();
    let gate = Gate::default();
    let server = Server::start(Limits::default().with_peer_share(1), gate.clone());
    let files: Vec<_> = (0..100).map(|_| tempfile::tempfile().unwrap()).collect();
    let mut clients: Vec<Client> = files.iter().map(|_| server.client()).collect();
    for (client, file) in clients.iter_mut().zip(&files) {
        client.send(&reserve_in(HANG, 1), &[file.as_fd()]);
    }
    gate.wait_for(100);
    assert_eq!(threads(), 100);
    gate.let_go(100);
    for client in &mut clients {
        assert_eq!(client.answer(), io_process_terminated());
    }
    drop(clients);
    wait_for_threads(0);
}

/// Limits by which a silent connection gives up its thread soon, however few threads there are.
fn limits() -> Limits {
    Limits::default().with_receive_timeout(std::time::Duration::from_millis(300))
}

#[test]
fn silent_connection_gives_up_its_thread_and_is_served_again() {
    let _turn = alone();
    let server = Server::start(limits(), Echo);
    // The last has not finished its handshake, and sends it together with a request.
    let mut clients: Vec<Client> = (0..20).map(|_| server.client()).collect();
    clients.push(server.connect());
    for _ in 0..2 {
        wait_for_threads(0);
        for client in &mut clients[..20] {
            assert_eq!(client.ask(&reserve_in(1, 8), null()).data, [1; 8]);
        }
    }
    wait_for_threads(0);
    clients[20].send(&[0; 4], &[]);
    assert_eq!(clients[20].ask(&reserve_in(1, 8), null()).data, [1; 8]);
}

#[test]
fn silent_client_that_disconnects_leaves_no_descriptor() {
    let _turn = alone();
    let server = Server::start(limits(), Echo);
    // The server has all its own descriptors when it has answered.
    let _first = server.connect();
    let before = descriptors();
    let clients: Vec<Client> = (0..20).map(|_| server.client()).collect();
    wait_for_threads(0);
    drop(clients);
    wait_until("descriptors are closed", || descriptors() <= before);
    wait_for_threads(0);
}

#[test]
fn stopping_closes_connections_that_have_no_thread() {
    let _turn = alone();
    let before = descriptors();
    let server = Server::start(limits(), Echo);
    let mut clients: Vec<Client> = (0..20).map(|_| server.client()).collect();
    wait_for_threads(0);
    assert_eq!(server.stop().running(), 0);
    assert!(clients.iter_mut().all(|client| client.is_closed()));
    drop(clients);
    wait_until("descriptors are closed", || descriptors() <= before);
}

#[test]
fn few_threads_stay_with_silent_connections() {
    let _turn = alone();
    let server = Server::start(Limits::default(), Echo);
    let clients: Vec<Client> = (0..100).map(|_| server.connect()).collect();
    wait_for_threads(64);
    std::thread::sleep(std::time::Duration::from_millis(1_200));
    assert_eq!(threads(), 64);
    drop(clients);
    wait_for_threads(0);
}
