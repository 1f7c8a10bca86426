use super::super::tests::{Recorder, keys, reserve_in, reserve_out};
use super::*;
use crate::log::Log;
use scsi_pr::{SenseCode, Status};
use std::fs::File;
use std::os::fd::AsFd;

const fn shareable<T: Send + Sync>() {}
const _: () = shareable::<Observed<Arc<dyn PrManager>>>();

const CLIENT: Client = Client { pid: 123, uid: 107 };

/// A manager that has no answer.
struct Unreachable;

impl PrManager for Unreachable {
    fn execute(&self, _: BorrowedFd<'_>, _: Command<'_>) -> Result<Completion, Error> {
        Err(Error::not_run("reach the unit"))
    }
}

fn observed<M: PrManager>(inner: M) -> Observed<M> {
    Observed::new(inner, CLIENT, Arc::default())
}

#[test]
fn qemus_events_come_before_the_command_is_run_and_ours_after() {
    let null = File::open("/dev/null").unwrap();
    let call = format!("fd={} cmd=0x5e service action=0x03", null.as_raw_fd());
    let log = Log::at(Level::TRACE);
    let recorder = Recorder::good();
    let inner = recorder.clone();
    log.during(|| observed(inner).execute(null.as_fd(), reserve_in(3)).unwrap());
    let events = log.events();
    let named = |name| events.iter().filter(|event| event.name == name).collect::<Vec<_>>();
    for name in ["pr_manager_execute", "pr_manager_run"] {
        let [event] = named(name)[..] else { panic!("{events:?}") };
        assert_eq!((event.message.as_str(), event.level), (call.as_str(), Level::TRACE));
        for (field, value) in [("fd", null.as_raw_fd().to_string()), ("cmd", "94".to_owned()), ("sa", "3".to_owned())] {
            assert_eq!(event.fields.get(field), Some(&value), "{field}");
        }
    }
    let [completed] = named("pr_helper_completed")[..] else { panic!("{events:?}") };
    assert!(completed.message.starts_with(&format!("{call} on 1:3")), "{completed:?}");
    assert!(completed.message.contains(": GOOD, after ") && completed.message.ends_with(" us"), "{completed:?}");
    assert_eq!(completed.fields.get("status").unwrap(), "0");
    completed.fields.get("microseconds").unwrap().parse::<u64>().unwrap();
    assert_eq!(
        events.iter().map(|event| event.name).collect::<Vec<_>>(),
        ["pr_manager_execute", "pr_manager_run", "pr_helper_completed"]
    );
    assert_eq!(recorder.taken(), 1);
}

#[test]
fn every_change_is_told_with_its_author() {
    let (device, _) = std::io::pipe().unwrap();
    let list = keys(0, 0x123);
    let told = |answer: Completion| {
        let log = Log::at(Level::INFO);
        log.during(|| observed(Recorder::answering(answer)).execute(device.as_fd(), reserve_out(0, &list)).unwrap());
        let [event] = &log.events()[..] else { panic!("{:?}", log.events()) };
        assert_eq!((event.name, event.level), ("pr_helper_reserve_out", Level::INFO));
        event.message.clone()
    };
    for answer in [
        Completion::Good(Vec::new()),
        Completion::Status(Status::RESERVATION_CONFLICT),
        Completion::check(SenseCode::INVALID_OPCODE),
    ] {
        let start = format!(
            "PERSISTENT RESERVE OUT, REGISTER, key 0x0000000000000000, service action key 0x0000000000000123, \
             on a pipe by process 123 of user 107: {answer}, after "
        );
        let line = told(answer);
        assert!(line.starts_with(&start), "{line}");
    }
}

#[test]
fn a_command_without_an_answer_is_told_too() {
    let (device, _) = std::io::pipe().unwrap();
    let log = Log::at(Level::INFO);
    let result = log.during(|| observed(Unreachable).execute(device.as_fd(), reserve_out(3, &[0; 24])));
    assert!(!result.unwrap_err().may_have_run());
    let events = log.events();
    assert!(events[0].message.contains("CLEAR") && events[0].message.contains("no answer (cannot reach the unit)"));
}

#[test]
fn reading_and_cleaning_up_fill_no_log() {
    let null = File::open("/dev/null").unwrap();
    let log = Log::at(Level::DEBUG);
    log.during(|| {
        let manager = observed(Recorder::good());
        manager.execute(null.as_fd(), reserve_in(0)).unwrap();
        manager.execute(null.as_fd(), Command::cleanup()).unwrap();
    });
    assert!(log.events().is_empty());
}

#[test]
fn a_guest_cannot_fill_the_log() {
    let (device, _) = std::io::pipe().unwrap();
    let log = Log::at(Level::INFO);
    log.during(|| {
        let manager = observed(Recorder::good());
        for _ in 0..1000 {
            manager.execute(device.as_fd(), reserve_out(1, &[0; 24])).unwrap();
        }
    });
    // A machine so slow that this takes several periods writes more.
    assert!((100..1000).contains(&log.events().len()), "{}", log.events().len());
}

#[test]
fn nor_can_it_by_connecting_again_and_again() {
    let (device, _) = std::io::pipe().unwrap();
    let log = Log::at(Level::INFO);
    log.during(|| {
        let counters = Arc::new(Counters::new());
        for _ in 0..100 {
            let manager = Observed::new(Recorder::good(), CLIENT, Arc::clone(&counters));
            (0..50).for_each(|_| drop(manager.execute(device.as_fd(), reserve_out(1, &[0; 24])).unwrap()));
        }
    });
    // A machine so slow that this takes several periods writes more.
    assert!((1000..5000).contains(&log.events().len()), "{}", log.events().len());
}

#[test]
fn counters_tell_how_commands_ended() {
    let null = File::open("/dev/null").unwrap();
    let counters = Arc::new(Counters::new());
    let answer = |answer: Completion, command: Command<'_>| {
        Observed::new(Recorder::answering(answer), CLIENT, counters.clone()).execute(null.as_fd(), command).unwrap();
    };
    answer(Completion::Good(vec![1]), reserve_in(0));
    answer(Completion::check(SenseCode::NO_SENSE), reserve_in(0));
    answer(Completion::Status(Status::RESERVATION_CONFLICT), reserve_out(1, &[0; 24]));
    answer(Completion::Status(Status::BUSY), reserve_out(1, &[0; 24]));
    answer(Completion::Status(Status::TASK_SET_FULL), reserve_out(1, &[0; 24]));
    answer(Completion::Status(Status::TASK_ABORTED), Command::cleanup());
    Observed::new(Unreachable, CLIENT, counters.clone()).execute(null.as_fd(), reserve_in(0)).unwrap_err();
    let counts = counters.counts();
    let expected = Counts {
        reserve_in: 3,
        reserve_out: 3,
        cleanup: 1,
        good: 1,
        check_condition: 1,
        reservation_conflict: 1,
        busy: 2,
        other_status: 1,
        errors: 1,
    };
    assert_eq!((counts, counts.running()), (expected, 0));
    assert_eq!(Counts { reserve_in: 5, ..expected }.running(), 2);
}

#[test]
fn the_connection_is_that_of_the_manager_inside() {
    assert!(!observed(Recorder::good()).is_connected());
    assert!(observed(Unreachable).is_connected());
}

/// The notes are in whatever binary this code is in: here, the test's own.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[test]
fn the_probes_are_in_the_binary() {
    let binary = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    for name in ["pr_manager_execute", "pr_manager_run", "pr_helper_completed"] {
        // Put together here, so that this is not what is found.
        let note = ["qemu", name, ""].join("\0").into_bytes();
        assert!(binary.windows(note.len()).any(|bytes| bytes == note), "{name}");
    }
}

#[test]
fn a_file_is_called_by_its_path() {
    let file = tempfile::Builder::new().prefix("a\nb").tempfile().unwrap();
    let log = Log::at(Level::INFO);
    log.during(|| observed(Recorder::good()).execute(file.as_fd(), reserve_out(0, &keys(0, 1))).unwrap());
    let [event] = &log.events()[..] else { panic!("one line is expected") };
    let path = format!("on the file {:?} by", file.path());
    assert!(event.message.contains(&path) && !event.message.contains('\n'), "{}", event.message);
}
