//! [`scsi_pr_helper::serve`] in a process without room for another descriptor. A test program of its own: its limit is low.

mod support;

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use scsi_pr_helper::Limits;
use support::*;

/// The tests of this program run one after the other, and none has room for more descriptors than it needs.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    wait_until("the server of the test before has closed everything", || threads() == 0);
    limit(64);
    turn
}

/// Only descriptors below this number can be made.
fn limit(number: u64) {
    setrlimit(Resource::Nofile, Rlimit { current: Some(number), ..getrlimit(Resource::Nofile) }).unwrap();
}

/// All descriptors that this process may still have.
fn fill() -> Vec<OwnedFd> {
    let null = null();
    let mut descriptors = Vec::new();
    while let Ok(descriptor) = rustix::io::fcntl_dupfd_cloexec(&null, 0) {
        descriptors.push(descriptor);
    }
    descriptors.push(null);
    descriptors
}

#[test]
fn a_descriptor_without_room_is_busy_and_not_a_violation() {
    let _turn = alone();
    let server = Server::start(Limits::default(), Gate::default());
    let mut client = server.client();
    assert_eq!(client.ask(&reserve_in(0, 1), null()), io_process_terminated());
    let all = fill();
    let descriptor = all[0].as_fd();
    for request in [reserve_in(0, 8).to_vec(), reserve_out(0, &[7; 24])] {
        for _ in 0..3 {
            assert_eq!(client.ask(&request, descriptor), Answer { status: BUSY, sense: [0; 96], data: vec![] });
        }
    }
    drop(all);
    assert_eq!(client.ask(&reserve_out(0, &[7; 24]), null()), io_process_terminated());
}

#[test]
fn a_descriptor_that_had_no_room_is_busy_although_there_is_room_later() {
    let _turn = alone();
    let server = Server::start(Limits::default(), Gate::default());
    let mut client = server.client();
    let (mut reader, writer) = std::io::pipe().unwrap();
    limit(3);
    client.send(&reserve_in(0, 8)[..1], &[writer.as_fd()]);
    drop(writer);
    // Its last copy is gone: the server has read that byte.
    assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0);
    limit(64);
    client.send(&reserve_in(0, 8)[1..], &[]);
    assert_eq!(client.answer().status, BUSY);
    assert_eq!(client.ask(&reserve_in(0, 1), null()), io_process_terminated());
}

#[test]
fn a_connection_without_room_waits_and_costs_no_cpu_time() {
    let _turn = alone();
    let server = Server::start(Limits::default(), Gate::default());
    let mut early = server.client();
    early.ask(&reserve_in(0, 1), null());
    let late = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    let all = fill();
    connect(&late, &SocketAddrUnix::new(&server.path).unwrap()).unwrap();
    let late = Client::over(late.into());

    // Trying again and again without a pause would take all of a CPU for as long. That is what the C helper does.
    let time = Duration::from_secs(1);
    let used = || Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap();
    let before = used();
    std::thread::sleep(time);
    let used = used() - before;
    assert!(used < time / 4, "{used:?} of CPU time in {time:?}");
    assert!(late.is_silent());
    // Those who are connected are answered all the while.
    assert_eq!(early.ask(&reserve_in(0, 1), &all[0]).status, BUSY);

    drop(all);
    let mut late = late;
    assert_eq!(late.receive::<4>(), [0; 4]);
    late.send(&[0; 4], &[]);
    for client in [&mut early, &mut late] {
        assert_eq!(client.ask(&reserve_in(0, 1), null()), io_process_terminated());
    }
}
