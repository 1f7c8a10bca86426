//! Our client, [`HelperClient`], with each of the helpers: what comes back through both is what the unit said.

use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use conformance::sg_io::{Call, Done, Reply};
use conformance::{Helper, Subject, against_each_helper, in_cdb, null, out_cdb};
use rustix::process::Signal;
use scsi_pr::{Cdb, Command, Completion, Error, PrManager, Sense, SenseCode, Status};
use scsi_pr_helper::HelperClient;
use scsi_pr_helper::client::Config;

against_each_helper!(
    every_answer_of_a_unit_reaches_the_caller,
    command_of_a_killed_helper_may_have_run,
    helper_with_sigterm_answers_the_running_command,
    client_reconnects_to_a_restarted_helper,
    late_answer_is_not_taken_for_the_next_command,
    cleanup_that_is_not_offered_is_not_sent,
);

/// A client that tries once.
fn client(helper: &Helper) -> HelperClient {
    let config = Config::default().with_attempts(1).with_pause(Duration::ZERO);
    HelperClient::new(helper.socket()).with_config(config)
}

fn run_in(client: &HelperClient, allocation_length: u16) -> Result<Completion, Error> {
    let cdb = Cdb::new(in_cdb(0, allocation_length)).unwrap();
    client.execute(null().as_fd(), Command::new(cdb, &[]).unwrap())
}

fn run_out(client: &HelperClient, list: &[u8]) -> Result<Completion, Error> {
    let cdb = Cdb::new(out_cdb(1, list.len().try_into().unwrap())).unwrap();
    client.execute(null().as_fd(), Command::new(cdb, list).unwrap())
}

fn every_answer_of_a_unit_reaches_the_caller(subject: &Subject) {
    let helper = subject.command().supervised().serve();
    let client = client(&helper);
    for length in [0, 8, 24, 8192] {
        let data = vec![length as u8 | 1; length];
        helper.supervisor().reply_with(Reply::data(&data));
        let length = u16::try_from(length).unwrap();
        assert_eq!(run_in(&client, length).unwrap(), Completion::Good(data));
        helper.supervisor().reply_with(Reply::data(&[]));
        assert_eq!(run_out(&client, &vec![9; length.into()]).unwrap(), Completion::Good(vec![]));
        assert_eq!(helper.supervisor().calls().pop().unwrap().buffer, vec![9; length.into()]);
    }
    let descriptor_sense = Sense::descriptor(SenseCode::INVALID_RELEASE);
    for (reply, completion) in [
        (Reply::Done(Done { status: 0x18, ..Done::default() }), Completion::Status(Status::RESERVATION_CONFLICT)),
        (Reply::Done(Done { status: 0x28, ..Done::default() }), Completion::Status(Status::TASK_SET_FULL)),
        (Reply::sense(&descriptor_sense.bytes()[..8]), Completion::CheckCondition(descriptor_sense)),
        (
            Reply::sense(&Sense::fixed(SenseCode::REGISTRATIONS_PREEMPTED).bytes()[..18]),
            Completion::check(SenseCode::REGISTRATIONS_PREEMPTED),
        ),
        (Reply::Errno(rustix::io::Errno::PERM.raw_os_error()), Completion::check(SenseCode::IO_PROCESS_TERMINATED)),
    ] {
        helper.supervisor().reply(reply);
        assert_eq!(run_in(&client, 24).unwrap(), completion);
        assert_eq!(run_out(&client, &[0; 24]).unwrap(), completion);
    }
    assert!(client.is_connected());
}

/// Runs an OUT, and `meanwhile` once the unit has got it.
fn while_a_command_runs(helper: &Helper, client: &HelperClient, meanwhile: impl FnOnce()) -> Result<Completion, Error> {
    helper.supervisor().hold();
    thread::scope(|scope| {
        let command = scope.spawn(|| run_out(client, &[0; 24]));
        helper.supervisor().wait_for_held(1);
        meanwhile();
        command.join().unwrap()
    })
}

fn command_of_a_killed_helper_may_have_run(subject: &Subject) {
    let helper = subject.command().supervised().serve();
    let client = client(&helper);
    let error = while_a_command_runs(&helper, &client, || helper.signal(Signal::KILL)).unwrap_err();
    assert!(error.may_have_run(), "{error}");
    assert_eq!(helper.supervisor().calls().len(), 1, "it was not sent again");
    assert!(!client.is_connected());
    let error = run_out(&client, &[0; 24]).unwrap_err();
    assert!(!error.may_have_run(), "{error}");
}

fn helper_with_sigterm_answers_the_running_command(subject: &Subject) {
    let mut helper = subject.command().supervised().serve();
    let client = client(&helper);
    let answer = while_a_command_runs(&helper, &client, || {
        helper.signal(Signal::TERM);
        conformance::eventually("the socket is gone", || (!helper.socket().exists()).then_some(()));
        helper.supervisor().wait_for_held(1);
        helper.supervisor().release(|call: &Call| Reply::data(&[])(call));
    });
    assert_eq!(answer.unwrap(), Completion::Good(vec![]));
    assert_eq!(helper.wait().code(), Some(0));
    assert!(!run_out(&client, &[0; 24]).unwrap_err().may_have_run());
}

fn client_reconnects_to_a_restarted_helper(subject: &Subject) {
    let first = subject.serve();
    let client = client(&first);
    let refused = Completion::check(SenseCode::IO_PROCESS_TERMINATED);
    assert_eq!(run_in(&client, 8).unwrap(), refused);
    let socket = first.socket();
    let end = first.terminate();
    assert_eq!(end.code(), 0);
    let mut second = subject.command().arg("-k").arg(&socket).start();
    conformance::eventually("the second helper listens", || {
        assert!(second.ended().is_none(), "{}", second.stderr());
        std::os::unix::net::UnixStream::connect(&socket).ok()
    });
    assert_eq!(run_in(&client, 8).unwrap(), refused, "its one attempt is enough");
}

fn late_answer_is_not_taken_for_the_next_command(subject: &Subject) {
    let helper = subject.command().supervised().serve();
    let config = Config::default().with_answer(Duration::from_millis(100));
    let client = HelperClient::new(helper.socket()).with_config(config);
    helper.supervisor().hold();
    assert!(run_out(&client, &[0; 24]).unwrap_err().may_have_run());
    // Its late answer is not the next command's.
    helper.supervisor().release(|_| Reply::Done(Done { status: 0x18, ..Done::default() }));
    helper.supervisor().reply_with(Reply::data(&[]));
    let config = Config::default().with_attempts(1);
    let client = client.with_config(config);
    assert_eq!(run_out(&client, &[0; 24]).unwrap(), Completion::Good(vec![]));
}

fn cleanup_that_is_not_offered_is_not_sent(subject: &Subject) {
    let helper = subject.serve();
    let client = client(&helper);
    client.connect().unwrap();
    let refused = Completion::check(SenseCode::INVALID_OPCODE);
    assert_eq!(client.execute(null().as_fd(), Command::cleanup()).unwrap(), refused);
    // Had it been sent, the one helper would have closed the connection and the other said GOOD.
    assert!(client.is_connected());
}
