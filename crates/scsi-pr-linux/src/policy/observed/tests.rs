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
fn events_of_qemu_come_before_the_command_and_completion_after() {
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
fn change_is_logged_with_its_client() {
    let (device, _) = std::io::pipe().unwrap();
    let list = keys(0, 0x123);
    let line_of = |answer: Completion| {
        let log = Log::at(Level::INFO);
        log.during(|| observed(Recorder::answering(answer)).execute(device.as_fd(), reserve_out(0, &list)).unwrap());
        let events: Vec<_> = log.events().into_iter().filter(|event| event.level == Level::INFO).collect();
        let [event] = &events[..] else { panic!("{:?}", log.events()) };
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
        let line = line_of(answer);
        assert!(line.starts_with(&start), "{line}");
    }
}

#[test]
fn command_without_an_answer_is_logged_too() {
    let (device, _) = std::io::pipe().unwrap();
    let log = Log::at(Level::INFO);
    let result = log.during(|| observed(Unreachable).execute(device.as_fd(), reserve_out(3, &[0; 24])));
    assert!(!result.unwrap_err().may_have_run());
    let events = log.events();
    assert!(events[0].message.contains("CLEAR") && events[0].message.contains("no answer (cannot reach the unit)"));
}

#[test]
fn reading_and_cleaning_up_are_not_logged() {
    let null = File::open("/dev/null").unwrap();
    let log = Log::at(Level::DEBUG);
    log.during(|| {
        let manager = observed(Recorder::good());
        manager.execute(null.as_fd(), reserve_in(0)).unwrap();
        manager.execute(null.as_fd(), Command::cleanup()).unwrap();
    });
    assert!(log.events().is_empty());
}

/// The lines about PERSISTENT RESERVE OUT while `act` runs.
fn audit_lines(act: impl FnOnce()) -> Vec<String> {
    let log = Log::at(Level::INFO);
    log.during(act);
    let lines = log.events().into_iter().filter(|event| event.name == "pr_helper_reserve_out");
    lines.map(|event| event.message).collect()
}

#[test]
fn lines_of_a_process_are_limited_over_all_its_connections() {
    let (device, _) = std::io::pipe().unwrap();
    let lines = audit_lines(|| {
        let counters = Arc::new(Counters::new());
        for _ in 0..100 {
            let manager = Observed::new(Recorder::good(), CLIENT, Arc::clone(&counters));
            (0..50).for_each(|_| drop(manager.execute(device.as_fd(), reserve_out(1, &[0; 24])).unwrap()));
        }
    });
    // A machine so slow that this takes several periods writes more.
    assert!((100..1000).contains(&lines.len()), "{}", lines.len());
}

#[test]
fn flood_of_one_process_suppresses_no_line_of_another() {
    let (device, _) = std::io::pipe().unwrap();
    let counters = Arc::new(Counters::new());
    let preempting = Client { pid: CLIENT.pid + 1, uid: CLIENT.uid };
    let preempt = keys(1, 2);
    let lines = audit_lines(|| {
        let flooding: Vec<_> =
            (0..20).map(|_| Observed::new(Recorder::good(), CLIENT, Arc::clone(&counters))).collect();
        let preempting = Observed::new(Recorder::good(), preempting, Arc::clone(&counters));
        for _ in 0..8 {
            for manager in &flooding {
                (0..200).for_each(|_| drop(manager.execute(device.as_fd(), reserve_out(6, &[0; 24])).unwrap()));
            }
            preempting.execute(device.as_fd(), reserve_out(4, &preempt)).unwrap();
        }
    });
    assert_eq!(lines.iter().filter(|line| line.contains("PREEMPT, ")).count(), 8, "of {}", lines.len());
}

#[test]
fn flood_of_refused_commands_suppresses_no_line_of_a_change() {
    let (device, _) = std::io::pipe().unwrap();
    let counters = Arc::new(Counters::new());
    let observed = |answer| Observed::new(Recorder::answering(answer), CLIENT, Arc::clone(&counters));
    let refused = observed(Completion::Status(Status::RESERVATION_CONFLICT));
    let good = observed(Completion::Good(Vec::new()));
    let lines = audit_lines(|| {
        (0..5000).for_each(|_| drop(refused.execute(device.as_fd(), reserve_out(1, &[0; 24])).unwrap()));
        good.execute(device.as_fd(), reserve_out(4, &keys(1, 2))).unwrap();
    });
    assert_eq!(lines.iter().filter(|line| line.contains("PREEMPT, ")).count(), 1);
}

#[test]
fn change_has_its_parts_as_fields() {
    let (device, _) = std::io::pipe().unwrap();
    let log = Log::at(Level::INFO);
    log.during(|| observed(Recorder::good()).execute(device.as_fd(), reserve_out(4, &keys(1, 2))).unwrap());
    let fields = &log.events()[0].fields;
    for (name, value) in [
        ("pid", "123"),
        ("uid", "107"),
        ("device", "\"a pipe\""),
        ("service_action", "\"PREEMPT\""),
        ("key", "0x0000000000000001"),
        ("service_action_key", "0x0000000000000002"),
        ("outcome", "GOOD"),
        ("suppressed", "0"),
    ] {
        assert_eq!(fields.get(name).map(String::as_str), Some(value), "{name}");
    }
}

/// The lines at the default level about a PERSISTENT RESERVE OUT with this answer.
fn refusal_lines(device: impl AsFd, answer: SenseCode) -> Vec<String> {
    let log = Log::at(Level::WARN);
    let manager = observed(Recorder::answering(Completion::check(answer)));
    log.during(|| {
        for _ in 0..3 {
            manager.execute(device.as_fd(), reserve_out(0, &keys(0, 1))).unwrap();
            manager.execute(device.as_fd(), reserve_in(0)).unwrap();
        }
    });
    log.events().into_iter().map(|event| event.message).collect()
}

#[test]
fn refusal_has_one_line_with_client_device_reason_and_remedy() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let read_only = File::open(file.path()).unwrap();
    let null = File::options().write(true).open("/dev/null").unwrap();
    for (device, answer, parts) in [
        (&read_only, SenseCode::INVALID_OPCODE, ["on the file", "not open for writing", "remove <readonly/>"]),
        (file.as_file(), SenseCode::IO_PROCESS_TERMINATED, ["on the file", "it is not a disk", "scsi-pr serve"]),
        (&null, SenseCode::IO_PROCESS_TERMINATED, ["on 1:3", "it is not a disk", "scsi-pr serve"]),
    ] {
        let lines = refusal_lines(device, answer);
        let [line] = &lines[..] else { panic!("{lines:?}") };
        for part in ["PERSISTENT RESERVE OUT, REGISTER", "for process 123 of user 107"].into_iter().chain(parts) {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
    let Ok(loop_device) = File::options().write(true).open("/dev/loop0") else {
        eprintln!("skipped in part: needs /dev/loop0");
        return;
    };
    let lines = refusal_lines(loop_device, SenseCode::INVALID_OPCODE);
    assert!(matches!(&lines[..], [line] if line.contains("its driver has no persistent reservations")), "{lines:?}");
}

#[test]
fn answer_that_a_unit_may_have_given_is_no_refusal() {
    let file = tempfile::tempfile().unwrap();
    assert!(refusal_lines(file, SenseCode::INVALID_FIELD_IN_CDB).is_empty());
}

#[test]
fn refusal_that_a_policy_has_logged_is_not_logged_again() {
    struct Refusing(super::super::Refusals);
    impl PrManager for Refusing {
        fn execute(&self, _: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
            Ok(self.0.refuse(command, None, || "something", "why not"))
        }
    }
    let null = File::open("/dev/null").unwrap();
    let log = Log::at(Level::WARN);
    let manager = observed(Refusing(super::super::Refusals::new("do this")));
    log.during(|| (0..3).for_each(|_| drop(manager.execute(null.as_fd(), reserve_out(0, &keys(0, 1))).unwrap())));
    let events = log.events();
    assert!(matches!(&events[..], [event] if event.message.contains("refused on something, for process 123")));
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
fn file_is_named_by_its_path() {
    let file = tempfile::Builder::new().prefix("a\nb").tempfile().unwrap();
    let log = Log::at(Level::INFO);
    log.during(|| observed(Recorder::good()).execute(file.as_fd(), reserve_out(0, &keys(0, 1))).unwrap());
    let [event] = &log.events()[..] else { panic!("one line is expected") };
    let path = format!("on the file {:?} by", file.path());
    assert!(event.message.contains(&path) && !event.message.contains('\n'), "{}", event.message);
}

#[test]
fn long_path_is_cut() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ü".repeat(120)).join("ü".repeat(120));
    std::fs::create_dir(path.parent().unwrap()).unwrap();
    let file = File::create(path).unwrap();
    assert!(Described(file.as_fd()).to_string().len() < 300);
}
