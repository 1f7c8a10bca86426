//! Signals, and how the helper ends.

use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use conformance::sg_io::Reply;
use conformance::{
    Answer, Client, DEADLINE, Helper, Subject, against_each_helper, eventually, holds_for, in_cdb, null, out_cdb,
};
use rustix::process::Signal;

against_each_helper!(
    term_int_and_hup_end_the_helper_cleanly,
    idle_clients_do_not_delay_the_end,
    quit_and_usr2_kill_the_helper,
    pipe_and_usr1_change_nothing,
    running_command_is_answered_before_the_end,
    new_client_during_the_end_is_not_served,
    end_waits_for_a_hanging_command,
    more_signals_change_nothing,
    stopped_helper_answers_once_it_continues,
    sigterm_at_any_step_of_the_start_ends_the_helper,
    sigterm_at_any_time_ends_the_helper,
);

fn term_int_and_hup_end_the_helper_cleanly(subject: &Subject) {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut helper = subject.serve();
        helper.signal(signal);
        assert_eq!(helper.wait().code(), Some(0), "{signal:?}");
        assert_eq!(helper.stderr(), "");
        assert!(!helper.socket().exists());
        eventually("nothing that it started is left", || helper.processes().is_empty().then_some(()));
    }
}

fn idle_clients_do_not_delay_the_end(subject: &Subject) {
    let mut helper = subject.serve();
    let (idle, silent, half) = (helper.connect(), helper.connect_silently(), helper.connect());
    silent.read::<4>();
    half.request(&out_cdb(0, 24), &[0; 20], null());
    helper.signal(Signal::TERM);
    assert_eq!(helper.wait().code(), Some(0));
    for client in [idle, silent, half] {
        client.assert_closed();
    }
}

fn quit_and_usr2_kill_the_helper(subject: &Subject) {
    for signal in [Signal::QUIT, Signal::USR2] {
        let mut helper = subject.serve();
        helper.signal(signal);
        assert_eq!(helper.wait().signal(), Some(signal.as_raw()));
    }
}

fn pipe_and_usr1_change_nothing(subject: &Subject) {
    let helper = subject.serve();
    for signal in [Signal::PIPE, Signal::USR1] {
        helper.signal(signal);
        assert_eq!(helper.connect().run(&in_cdb(0, 8), &[], null()), Answer::io_process_terminated());
    }
    assert_eq!(helper.terminate().code(), 0);
}

fn running_command_is_answered_before_the_end(subject: &Subject) {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut helper = subject.command().supervised().serve();
        helper.supervisor().hold();
        let (busy, idle) = (helper.connect(), helper.connect());
        busy.request(&out_cdb(1, 24), &[0; 24], null());
        helper.supervisor().wait_for_held(1);
        helper.signal(signal);
        eventually("the socket is gone", || (!helper.socket().exists()).then_some(()));
        assert_eq!(helper.ended(), None);
        assert!(busy.is_silent());
        helper.supervisor().wait_for_held(1);
        helper.supervisor().release(Reply::data(&[]));
        assert_eq!(busy.answer(), Answer::good(&[]));
        busy.assert_closed();
        idle.assert_closed();
        assert_eq!(helper.wait().code(), Some(0));
    }
}

fn new_client_during_the_end_is_not_served(subject: &Subject) {
    let mut helper = subject.command().supervised().serve();
    helper.supervisor().hold();
    let busy = helper.connect();
    busy.request(&out_cdb(1, 24), &[0; 24], null());
    helper.supervisor().wait_for_held(1);
    helper.signal(Signal::TERM);
    eventually("the socket is gone", || (!helper.socket().exists()).then_some(()));
    assert!(UnixStream::connect(helper.socket()).is_err());
    helper.supervisor().wait_for_held(1);
    helper.supervisor().release(Reply::data(&[]));
    assert_eq!(busy.answer(), Answer::good(&[]));
    assert_eq!(helper.wait().code(), Some(0));
}

fn end_waits_for_a_hanging_command(subject: &Subject) {
    let mut helper = subject.command().supervised().serve();
    helper.supervisor().hold();
    let busy = helper.connect();
    busy.request(&in_cdb(0, 8), &[], null());
    helper.supervisor().wait_for_held(1);
    helper.signal(Signal::TERM);
    assert!(holds_for(Duration::from_secs(55), || helper.ended().is_none()));
    let waits_on = holds_for(Duration::from_secs(15), || helper.ended().is_none());
    assert_eq!(waits_on, subject.differs("shutdown-limit", true, false));
}

fn more_signals_change_nothing(subject: &Subject) {
    let mut helper = subject.command().supervised().serve();
    helper.supervisor().hold();
    let busy = helper.connect();
    busy.request(&in_cdb(1, 24), &[], null());
    helper.supervisor().wait_for_held(1);
    for signal in [Signal::TERM, Signal::TERM, Signal::INT, Signal::HUP, Signal::TERM] {
        helper.signal(signal);
    }
    eventually("the socket is gone", || (!helper.socket().exists()).then_some(()));
    helper.supervisor().wait_for_held(1);
    helper.supervisor().release(Reply::data(&[7; 24]));
    assert_eq!(busy.answer(), Answer::good(&[7; 24]));
    assert_eq!(helper.wait().code(), Some(0));
}

fn stopped_helper_answers_once_it_continues(subject: &Subject) {
    let helper = subject.serve();
    let client = helper.connect();
    helper.signal(Signal::STOP);
    client.request(&in_cdb(0, 8), &[], null());
    helper.signal(Signal::CONT);
    assert_eq!(client.answer(), Answer::io_process_terminated());
}

/// Holds the helper at one system call of its start after the other, and sends SIGTERM there.
fn sigterm_at_any_step_of_the_start_ends_the_helper(subject: &Subject) {
    let mut survived = None;
    for stops in 0.. {
        let calls = ["prctl", "bind", "listen", "setgroups", "capset", "epoll_create1"];
        let mut helper = subject.command().socket().stopping_at(&calls).start();
        let mut probe = Probe::default();
        let reached = (0..=stops).all(|count| {
            if count > 0 {
                helper.supervisor().go_on();
            }
            eventually("it stops or serves", || {
                helper.supervisor().stopped().map(|_| true).or_else(|| probe.served(&helper).then_some(false))
            })
        });
        if !reached {
            break;
        }
        helper.signal(Signal::TERM);
        helper.supervisor().let_go();
        if outlives(subject, &mut helper) {
            survived = Some(stops);
            break;
        }
    }
    assert_eq!(survived.is_some(), subject.differs("lost-signal", true, false), "survived at stop {survived:?}");
}

/// Without stopping it anywhere, at whatever it is doing.
fn sigterm_at_any_time_ends_the_helper(subject: &Subject) {
    let mut survived = 0;
    for microseconds in (0..8000).step_by(50) {
        let mut helper = subject.command().socket().start();
        std::thread::sleep(Duration::from_micros(microseconds));
        helper.signal(Signal::TERM);
        survived += usize::from(outlives(subject, &mut helper));
    }
    // QEMU's survives a few of a hundred, or none when luck has it.
    assert!(subject.differs("lost-signal", true, survived == 0), "{survived} survived");
}

/// Whether the helper outlives a signal that was sent to it: it serves, and has forgotten.
fn outlives(subject: &Subject, helper: &mut Helper) -> bool {
    let mut probe = Probe::default();
    let serves = eventually("it ends or serves", || match helper.ended() {
        Some(_) => Some(false),
        None => probe.served(helper).then_some(true),
    });
    // It may serve one client while it is about to end, which takes long on a busy machine. One that outlives a signal would
    // take this time at each of them.
    let timeout = subject.differs("lost-signal", Duration::from_millis(300), DEADLINE);
    serves && holds_for(timeout, || helper.ended().is_none())
}

/// One connection, which is spoken to once the start is over. More would fill the queue of a helper that is stopped.
#[derive(Default)]
struct Probe(Option<Client>);

impl Probe {
    fn served(&mut self, helper: &Helper) -> bool {
        if self.0.is_none() {
            self.0 = Client::try_connect(&helper.socket()).ok();
        }
        self.0.as_ref().is_some_and(|client| !client.is_silent())
    }
}
