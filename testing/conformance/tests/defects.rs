//! Defects of QEMU's helper, one test each. The name of a test says the behaviour of scsi-pr's helper. QEMU's helper shows
//! the defect.
//!
//! Those of a socket's or a pid file's life are with their themes: [`socket_life`](../socket_life.rs),
//! [`pidfile`](../pidfile.rs), [`signals`](../signals.rs), [`privileges`](../privileges.rs),
//! [`activation`](../activation.rs).

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use conformance::sg_io::{Done, Reply};
use conformance::{
    Answer, Client, Helper, Subject, against_each_helper, eventually, holds_for, in_cdb, null, out_cdb, regular_file,
    sense,
};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

against_each_helper!(
    read_only_refusal_has_no_stale_sense_bytes,
    other_answers_have_no_stale_sense_bytes,
    answer_has_no_bytes_of_another_client,
    unknown_host_status_is_not_good,
    residual_over_the_transfer_length_is_answered,
    full_descriptor_table_takes_no_processor_time,
    nonblocking_flag_of_the_device_stays,
    commands_that_hang_do_not_stop_others,
    hanging_device_holds_up_no_other,
    connections_of_one_process_are_bounded,
    unread_answer_is_given_up,
    unread_log_does_not_stop_clients,
);

fn supervised(subject: &Subject) -> Helper {
    subject.command().supervised().serve()
}

/// Sense data of 96 bytes, none of them zero.
fn long_sense() -> Vec<u8> {
    (0..96).map(|byte| if byte == 0 { 0x70 } else { 0x80 | byte }).collect()
}

/// The answer to `request` on a connection that has passed long sense data on.
fn after_long_sense(helper: &Helper, request: impl FnOnce(&Client) -> Answer) -> Answer {
    helper.supervisor().reply(Reply::sense(&long_sense()));
    let client = helper.connect();
    assert_eq!(client.run(&in_cdb(0, 8), &[], null()).sense[..], long_sense()[..]);
    request(&client)
}

fn read_only_refusal_has_no_stale_sense_bytes(subject: &Subject) {
    let helper = supervised(subject);
    let read_only = File::open("/dev/null").unwrap();
    let answer = after_long_sense(&helper, |client| client.run(&out_cdb(0, 0), &[], &read_only));
    let clean = sense(0x05, 0x20, 0x00);
    let stale: Vec<u8> = [&clean[..18], &long_sense()[18..]].concat();
    assert_eq!(answer.status, 0x02);
    assert_eq!(answer.sense[..], subject.differs("stale-sense", &stale[..], &clean)[..]);
}

fn other_answers_have_no_stale_sense_bytes(subject: &Subject) {
    let helper = supervised(subject);
    let short = Answer::check(0x06, 0x2a, 0x05);
    for (reply, expected) in [
        (Reply::Errno(Errno::IO.raw_os_error()), Answer::io_process_terminated()),
        (Reply::Errno(Errno::BADE.raw_os_error()), Answer::status(0x18)),
        (Reply::Done(Done { host_status: 0x01, ..Done::default() }), Answer::check(0x0b, 0x05, 0x00)),
        (Reply::Done(Done { status: 0x18, ..Done::default() }), Answer::status(0x18)),
        (Reply::Done(Done { residual: 8192, ..Done::default() }), Answer::good(&[])),
        (Reply::sense(&short.sense[..18]), short),
    ] {
        let answer = after_long_sense(&helper, |client| {
            helper.supervisor().reply(reply.clone());
            client.run(&in_cdb(0, 8), &[], null())
        });
        assert_eq!(answer, expected, "{reply:?}");
    }
}

fn answer_has_no_bytes_of_another_client(subject: &Subject) {
    let helper = supervised(subject);
    helper.supervisor().reply_with(Reply::data(&[0xa5; 8192]));
    let victim = helper.connect();
    victim.run(&in_cdb(0, 8192), &[], null());
    drop(victim);
    // A device that transfers nothing, and says that it transferred everything.
    helper.supervisor().reply(Reply::Done(Done::default()));
    let mut leaked = 0;
    for _ in 0..10 {
        let answer = helper.connect().run(&in_cdb(0, 8192), &[], null());
        assert_eq!((answer.status, answer.size), (0, 8192));
        leaked = leaked.max(answer.data.iter().filter(|byte| **byte == 0xa5).count());
    }
    let expected = subject.differs("bytes-of-another-client", true, false);
    assert_eq!(leaked > 0, expected, "{leaked} bytes of another client");
    let not_zero = helper.supervisor().calls().iter().skip(1).any(|call| call.buffer.iter().any(|byte| *byte != 0));
    assert_eq!(not_zero, expected, "buffers that are given to the device");
}

fn unknown_host_status_is_not_good(subject: &Subject) {
    let helper = supervised(subject);
    // DID_ERROR: the RESERVE never reached the unit.
    helper.supervisor().reply(Reply::Done(Done { host_status: 0x07, ..Done::default() }));
    let reserved = helper.connect().run(&out_cdb(1, 24), &[0; 24], null()).status == 0;
    assert_eq!(reserved, subject.differs("unknown-host-status", true, false));
}

fn residual_over_the_transfer_length_is_answered(subject: &Subject) {
    for residual in [8193, 9000, i32::MAX] {
        let mut helper = supervised(subject);
        helper.supervisor().reply(Reply::Done(Done { residual, ..Done::default() }));
        let client = helper.connect();
        client.request(&in_cdb(0, 8192), &[], null());
        let answer = client.try_answer().ok();
        assert_eq!(answer, subject.differs("residual", None, Some(Answer::good(&[]))), "residual {residual}");
        if answer.is_none() {
            assert_eq!(helper.wait().signal(), Some(6), "SIGABRT");
            assert!(helper.socket().exists());
        }
    }
}

fn full_descriptor_table_takes_no_processor_time(subject: &Subject) {
    let helper = subject.serve();
    let process = helper.process();
    let full = process.leave_room_for(4);
    let crowd = helper.crowd(20);
    eventually("the table is full", || (process.descriptors().len() == full).then_some(()));
    let start = process.processor_ticks();
    let busy = || process.processor_ticks() - start;
    if subject.differs("descriptor-spin", true, false) {
        eventually("it uses up a processor", || (busy() > 50).then_some(()));
    } else {
        // In a second, 100 ticks of 10 ms can be used up.
        assert!(holds_for(Duration::from_secs(1), || busy() < 30), "{} ticks used", busy());
        assert!(helper.stderr().lines().count() < 20, "the log is flooded: {}", helper.stderr());
    }
    drop(crowd);
    helper.connect_once_there_is_room();
}

fn nonblocking_flag_of_the_device_stays(subject: &Subject) {
    let helper = subject.serve();
    let client = helper.connect();
    let device = null();
    fcntl_setfl(&device, fcntl_getfl(&device).unwrap() | OFlags::NONBLOCK).unwrap();
    client.run(&in_cdb(0, 8), &[], &device);
    let kept = fcntl_getfl(&device).unwrap().contains(OFlags::NONBLOCK);
    assert_eq!(kept, subject.differs("nonblocking", false, true));
}

/// One command on each of `count` devices, all of which hang.
fn hang(helper: &Helper, devices: &[File]) -> Vec<Client> {
    helper.supervisor().hold();
    devices
        .iter()
        .map(|device| {
            let client = helper.connect();
            client.request(&in_cdb(0, 8), &[], device);
            client
        })
        .collect()
}

fn commands_that_hang_do_not_stop_others(subject: &Subject) {
    const COMMANDS: usize = 130;
    let helper = supervised(subject);
    let devices: Vec<File> = (0..COMMANDS).map(|_| regular_file()).collect();
    let clients = hang(&helper, &devices);
    let running = subject.differs("pool", 64, COMMANDS);
    helper.supervisor().wait_for_held(running);
    assert!(holds_for(Duration::from_millis(200), || helper.supervisor().held() == running));
    // Until the last is answered.
    eventually("all are answered", || {
        helper.supervisor().release(Reply::data(&[7; 8]));
        clients.iter().all(|client| !client.is_silent()).then_some(())
    });
    for client in &clients {
        assert_eq!(client.answer(), Answer::good(&[7; 8]));
    }
}

fn hanging_device_holds_up_no_other(subject: &Subject) {
    const COMMANDS: usize = 70;
    let helper = supervised(subject);
    let device = regular_file();
    let devices: Vec<File> = (0..COMMANDS).map(|_| device.try_clone().unwrap()).collect();
    let clients = hang(&helper, &devices);
    let running = subject.differs("pool", 64, COMMANDS);
    helper.supervisor().wait_for_held(running);
    // Another device is not kept waiting by it.
    let other = helper.connect();
    other.request(&in_cdb(0, 8), &[], regular_file().as_fd());
    let waiting = holds_for(Duration::from_millis(200), || helper.supervisor().held() == running);
    assert_eq!(waiting, subject.differs("pool", true, false));
    eventually("all are answered", || {
        helper.supervisor().release(Reply::data(&[7; 8]));
        clients.iter().chain([&other]).all(|client| !client.is_silent()).then_some(())
    });
    for client in clients.iter().chain([&other]) {
        assert_eq!(client.answer(), Answer::good(&[7; 8]));
    }
}

/// A helper with few descriptors: scsi-pr then admits eight connections, and two of one process.
fn with_little_room(subject: &Subject) -> Helper {
    subject.command().shell("ulimit -n 56").serve()
}

fn connections_of_one_process_are_bounded(subject: &Subject) {
    let helper = with_little_room(subject);
    let crowd: Vec<Client> = helper.crowd(20).into_iter().map(|socket| Client::new(socket.into())).collect();
    let served = crowd.iter().filter(|client| {
        client.socket().set_nonblocking(false).unwrap();
        let asked = client.try_handshake().and_then(|()| client.try_send_with(&in_cdb(0, 8), &[null().as_fd()]));
        asked.and_then(|()| client.try_answer()).is_ok()
    });
    let served = served.count();
    // The connection that saw it start may have been counted still.
    assert!(subject.differs("connection-share", served == 20, (1..=2).contains(&served)), "{served} served");
}

fn unread_answer_is_given_up(subject: &Subject) {
    let helper = subject.serve();
    let (idle, deaf) = (helper.connect(), helper.connect());
    deaf.socket().set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    // Until the helper reads no more, because its answers find no room.
    while deaf.try_send_with(&in_cdb(0, 8), &[null().as_fd()]).is_ok() {}
    let is_closed = || deaf.try_send_with(&[0], &[]).is_err_and(|error| error.kind() == ErrorKind::BrokenPipe);
    let is_kept = holds_for(Duration::from_secs(33), || !is_closed());
    assert_eq!(is_kept, subject.differs("half-sent", true, false));
    assert_eq!(idle.run(&in_cdb(0, 8), &[], null()), Answer::io_process_terminated());
}

fn unread_log_does_not_stop_clients(subject: &Subject) {
    let (_reader, mut log) = std::io::pipe().unwrap();
    let helper = subject.command().stderr(log.try_clone().unwrap()).serve();
    let (violator, other) = (helper.connect(), helper.connect());
    while rustix::event::poll(&mut [PollFd::new(&log, PollFlags::OUT)], Some(&Timespec::default())) == Ok(1) {
        log.write_all(&[b'.'; 4096]).unwrap();
    }
    violator.send_with(&[0; 16], &[null().as_fd()]);
    other.request(&in_cdb(0, 8), &[], null());
    if subject.differs("unread-log", true, false) {
        assert!(holds_for(Duration::from_secs(1), || violator.is_silent()));
        return;
    }
    violator.assert_closed();
    assert_eq!(other.answer(), Answer::io_process_terminated());
    drop((violator, other));
    assert_eq!(helper.terminate().code(), 0);
}
