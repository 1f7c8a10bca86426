//! `scsi-pr check` by each way, and when another initiator, a signal or a lost answer interrupts it at each command.
#![forbid(unsafe_code)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::admin::{Ended, Way, made_store, scsi_pr};
use common::disk::{Disks, Start, initiator};
use common::{PROGRAM, Place};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use testing_support::eventually;

/// The outcome of a test in the JSON of a check.
fn outcome<'a>(report: &'a Value, test: &str) -> &'a str {
    let tests = report["tests"].as_array().unwrap();
    tests.iter().find(|one| one["test"] == test).map_or("missing", |one| one["outcome"].as_str().unwrap())
}

/// Checks a unit that supports everything, by one way, and that nothing is left.
#[track_caller]
fn check_works(way: &Way, device: &Path) {
    let (report, code) = way.run("check --json", device).json();
    assert_eq!((code, &report["exit-code"]), (0, &json!(0)), "{report}");
    for test in [
        "read-keys",
        "read-reservation",
        "read-full-status",
        "register",
        "register-with-aptpl",
        "register-and-ignore-existing-key",
        "reserve-write-exclusive",
        "reserve-exclusive-access-all-registrants",
        "reserve-write-exclusive-registrants-only",
        "generation",
        "unregister",
    ] {
        assert_eq!(outcome(&report, test), "works", "{test}: {report}");
    }
    // One initiator cannot test these.
    for test in ["preempt", "preempt-and-abort", "exclusion-of-another-initiator", "identifiers"] {
        assert_eq!(outcome(&report, test), "not-examined", "{test}: {report}");
    }
    let verdicts: Vec<_> = report["clusters"].as_array().unwrap().iter().map(|one| &one["verdict"]).collect();
    assert_eq!(verdicts, ["no-obstacle-found", "no-obstacle-found", "not-examined", "no-obstacle-found"]);
    assert!(report["longest-reservation-ms"].as_u64().unwrap() < 1000, "{report}");
    assert_eq!(report["unit-attentions"], json!([]));
    let state = way.run("show --json", device).json().0["units"][0].clone();
    assert_eq!((&state["registrations"], &state["reservation"]), (&json!([]), &Value::Null));
    let text = way.run("check", device);
    assert!(text.code == 0 && text.stdout.contains("Windows failover cluster: no obstacle found"), "{text:?}");
    assert!(text.stderr.contains("remove the key by: ") && text.stderr.lines().count() == 1, "{text:?}");
}

#[test]
fn unit_that_supports_everything_has_no_obstacle_by_each_way() {
    let place = Place::new();
    let server = place.serve(&place.sqlite()).listen("vm1", place.path("vm1.sock")).start();
    check_works(&Way::via(&place.path("vm1.sock")), &place.path("disk.img"));
    drop(server);
    check_works(&Way::store(&place.sqlite(), "vm1"), &place.path("disk.img"));
    let place = Place::new();
    let _disks = Start::shared(&place).start();
    check_works(&Way::disk(&place.path("control"), &initiator("vm1")), Path::new("shared"));
}

#[test]
fn check_leaves_aptpl_of_the_unit_as_it_was() {
    let place = Place::new();
    let _server = place.serve(&place.sqlite()).listen("vm1", place.path("vm1.sock")).start();
    let (way, disk) = (Way::via(&place.path("vm1.sock")), place.path("disk.img"));
    for (option, expected) in [("", false), ("--aptpl", true)] {
        way.run(&format!("register --key=1 {option}"), &disk).text();
        let before = way.run("capabilities --json", &disk).json().0["units"][0]["ptpl-a"].clone();
        way.run("unregister --key=1", &disk).text();
        assert_eq!(way.run("check", &disk).code, 0);
        let after = way.run("capabilities --json", &disk).json().0["units"][0]["ptpl-a"].clone();
        assert_eq!((before, after), (json!(expected), json!(expected)));
    }
}

#[test]
fn unit_in_use_is_refused_and_stays_as_it_is() {
    let place = Place::new();
    let _disks = Start::shared(&place).start();
    let [own, other] = ["vm1", "vm2"].map(|name| Way::disk(&place.path("control"), &initiator(name)));
    for registrant in [&own, &other] {
        registrant.run("register --key=0x7", "shared").text();
        let before = own.run("show --json", "shared").stdout;
        let ended = own.run("check", "shared");
        assert!(ended.refusal(3).contains("1 registrations") && ended.stdout.is_empty(), "{ended:?}");
        let (json, code) = own.run("check --json", "shared").json();
        assert_eq!((code, &json["exit-code"]), (3, &json!(3)));
        assert_eq!(own.run("show --json", "shared").stdout, before);
        assert_eq!(registrant.run("unregister --key=7 --yes", "shared").code, 0);
    }
}

#[test]
fn check_of_wrong_input_is_one_line_with_its_code() {
    let place = Place::new();
    let store = made_store(&place);
    let _listener = UnixListener::bind(place.path("any.sock")).unwrap();
    let [disk, socket, missing] =
        ["disk.img", "any.sock", "missing"].map(|name| place.path(name).display().to_string());
    for (line, code, part) in [
        ("check".to_owned(), 2, "DEVICE"),
        ("check /dev/null".to_owned(), 2, "not a disk"),
        ("check /proc/self/fd".to_owned(), 1, "open"),
        (format!("check {socket}"), 2, "socket"),
        (format!("check {disk}"), 2, "--store"),
        (format!("check {missing}"), 1, "No such file"),
        (format!("check {disk} {disk} --store={store}"), 2, "unexpected"),
        (format!("check {disk} --store={store}"), 2, "--as"),
        (format!("check {disk} --store={store} --as=a,b"), 2, "name"),
        (format!("check {disk} --store=sqlite:{missing} --as=vm1"), 5, "missing"),
        (format!("check {disk} --via={missing}"), 5, "connect"),
        (format!("check shared --disk={missing} --as=vm1"), 5, "control socket"),
        (format!("check shared --disk={missing}"), 2, "--as"),
    ] {
        let ended = scsi_pr(line.split_whitespace());
        assert!(ended.refusal(code).contains(part) && ended.stdout.is_empty(), "{line}: {part}: {ended:?}");
    }
}

#[test]
fn unit_without_reservations_would_not_work() {
    let place = Place::new();
    let listener = UnixListener::bind(place.path("helper.sock")).unwrap();
    thread::spawn(move || listener.incoming().flatten().for_each(|stream| drop(refuse_all(stream))));
    let way = Way::via(&place.path("helper.sock"));
    let ended = way.run("check --json", place.path("disk.img"));
    let (report, code) = ended.json();
    assert_eq!((code, outcome(&report, "read-keys"), outcome(&report, "register")), (4, "fails", "missing"));
    assert!(ended.refusal(4).contains("Windows failover cluster; Pacemaker, fence_scsi"), "{ended:?}");
}

/// A helper that answers INVALID COMMAND OPERATION CODE to everything.
fn refuse_all(mut stream: UnixStream) -> std::io::Result<()> {
    use std::io::Read;
    stream.write_all(&[0; 4])?;
    stream.read_exact(&mut [0; 4])?;
    loop {
        stream.read_exact(&mut [0; 16])?;
        let mut answer = [0; 104];
        answer[3] = 2;
        // The size of the data is 0, and the sense data begin behind it.
        answer[8..12].copy_from_slice(&[0x70, 0, 0x05, 0]);
        answer[15] = 0x0a;
        answer[20] = 0x20;
        stream.write_all(&answer)?;
    }
}

/// The treatment of a request by the proxy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    Forward,
    /// It closes the connection: the disk does not get the request.
    Drop,
    /// The disk gets the request, and the client no answer.
    LoseAnswer,
    /// It waits before it forwards.
    Delay(Duration),
}

type Hook = Box<dyn FnMut(usize, &str) -> Act + Send>;

/// Between the program and the control socket of a disk. The hook sees the number of each command, and its request.
struct Proxy {
    socket: PathBuf,
    hook: Arc<Mutex<Option<Hook>>>,
    count: Arc<Mutex<usize>>,
}

impl Proxy {
    fn new(place: &Place) -> Self {
        let (socket, target) = (place.path("proxy"), place.path("control"));
        let listener = UnixListener::bind(&socket).unwrap();
        let (hook, count) = (Arc::new(Mutex::new(None::<Hook>)), Arc::new(Mutex::new(0)));
        let (hook_of_thread, count_of_thread) = (Arc::clone(&hook), Arc::clone(&count));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (hook, count) = (Arc::clone(&hook_of_thread), Arc::clone(&count_of_thread));
                let target = target.clone();
                thread::spawn(move || {
                    let _ = Self::pass_on(&client, &target, &hook, &count);
                });
            }
        });
        Self { socket, hook, count }
    }

    fn pass_on(
        client: &UnixStream,
        target: &Path,
        hook: &Mutex<Option<Hook>>,
        count: &Mutex<usize>,
    ) -> std::io::Result<()> {
        let mut request = String::new();
        BufReader::new(client).read_line(&mut request)?;
        let act = if !request.contains("\"units\"") {
            let number = {
                let mut count = count.lock().unwrap();
                *count += 1;
                *count
            };
            hook.lock().unwrap().as_mut().map_or(Act::Forward, |hook| hook(number, &request))
        } else {
            Act::Forward
        };
        match act {
            Act::Drop => return Ok(()),
            Act::Delay(time) => thread::sleep(time),
            Act::Forward | Act::LoseAnswer => {}
        }
        let mut disk = UnixStream::connect(target)?;
        disk.write_all(request.as_bytes())?;
        let mut answer = String::new();
        BufReader::new(disk).read_line(&mut answer)?;
        if act != Act::LoseAnswer { (&*client).write_all(answer.as_bytes()) } else { Ok(()) }
    }

    fn set(&self, hook: impl FnMut(usize, &str) -> Act + Send + 'static) {
        *self.count.lock().unwrap() = 0;
        *self.hook.lock().unwrap() = Some(Box::new(hook));
    }

    fn clear(&self) {
        *self.hook.lock().unwrap() = None;
    }
}

/// A disk behind a proxy.
struct Setup {
    place: Place,
    _disks: Disks,
    proxy: Proxy,
}

impl Setup {
    fn new() -> Self {
        let place = Place::new();
        let disks = Start::shared(&place).start();
        let proxy = Proxy::new(&place);
        Self { place, _disks: disks, proxy }
    }

    fn way(&self) -> Way {
        Way::disk(&self.proxy.socket, &initiator("vm1"))
    }

    /// The keys at the disk itself.
    fn keys(&self) -> Vec<String> {
        let control = Way::disk(&self.place.path("control"), &initiator("vm3"));
        let (json, _) = control.run("keys --json", "shared").json();
        let keys = json["units"][0]["keys"].as_array().unwrap().iter();
        keys.map(|key| key["key"].as_str().unwrap().to_owned()).collect()
    }

    /// How many commands a whole check sends.
    fn commands(&self) -> usize {
        self.proxy.set(|_, _| Act::Forward);
        assert_eq!(self.way().run("check", "shared").code, 0);
        *self.proxy.count.lock().unwrap()
    }

    /// A check whose process gets a signal at a command.
    fn signalled_at(&self, number: usize, signal: Signal) -> Ended {
        let pid = Arc::new(Mutex::new(None::<Pid>));
        let pid_of_hook = Arc::clone(&pid);
        self.proxy.set(move |this, _| {
            if this == number {
                let pid = eventually("the process", || *pid_of_hook.lock().unwrap());
                kill_process(pid, signal).unwrap();
                // The signal must arrive before the answer.
                return Act::Delay(Duration::from_millis(20));
            }
            Act::Forward
        });
        let child = Command::new(PROGRAM)
            .args(["check", "shared", &format!("--disk={}", self.proxy.socket.display())])
            .arg(format!("--as={}", initiator("vm1")))
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        *pid.lock().unwrap() = Some(Pid::from_child(&child));
        let output = child.wait_with_output().unwrap();
        self.proxy.clear();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        // -1: ended by a signal.
        Ended { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// Some numbers of commands, the first and the last ones among them.
fn numbers(commands: usize) -> impl Iterator<Item = usize> {
    (1..=commands).filter(move |number| number % 7 == 0 || *number < 10 || number + 4 > commands)
}

#[test]
fn registration_of_another_initiator_at_any_time_stays_and_ends_the_check() {
    let setup = Setup::new();
    let commands = setup.commands();
    let control = setup.place.path("control");
    for number in numbers(commands) {
        let other = Way::disk(&control, &initiator("vm2"));
        let register = other.clone();
        setup.proxy.set(move |this, _| {
            if this == number {
                register.run("register --key=0x77", "shared").text();
            }
            Act::Forward
        });
        let ended = setup.way().run("check", "shared");
        // The last command is the reading that finds nothing to remove.
        assert!(ended.code == 3 || number == commands && ended.code == 0, "{number} of {commands}: {ended:?}");
        assert_eq!(setup.keys(), ["0x0000000000000077"], "{number}: {ended:?}");
        assert_eq!(other.run("unregister --key=0x77 --yes", "shared").code, 0);
    }
}

#[test]
fn signal_at_any_time_ends_the_check_without_a_registration() {
    let setup = Setup::new();
    let commands = setup.commands();
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        for number in numbers(commands) {
            let ended = setup.signalled_at(number, signal);
            // The last command comes after the last look at the signals.
            assert!(ended.code == code || number == commands && ended.code == 0, "{number} of {commands}: {ended:?}");
            assert!(setup.keys().is_empty(), "{number}: {ended:?}");
        }
    }
}

#[test]
fn printed_command_removes_the_key_after_sigkill() {
    let setup = Setup::new();
    let commands = setup.commands();
    let mut left = 0;
    for number in numbers(commands) {
        let ended = setup.signalled_at(number, Signal::KILL);
        assert_eq!(ended.code, -1);
        // The proxy may still be forwarding the command that was in flight.
        thread::sleep(Duration::from_millis(60));
        let Some((_, undo)) = ended.stderr.trim_end().split_once("remove the key by: ") else {
            assert!(setup.keys().is_empty(), "{number}: {ended:?}");
            continue;
        };
        let had_key = !setup.keys().is_empty();
        left += usize::from(had_key);
        let output = Command::new("/bin/sh").args(["-c", undo]).output().unwrap();
        // Without a registration it is a RESERVATION CONFLICT.
        let expected = if had_key { 0 } else { 3 };
        assert_eq!(output.status.code(), Some(expected), "{number}: {output:?}");
        let state = setup.way().run("show --json", "shared").json().0["units"][0].clone();
        assert_eq!((&state["registrations"], &state["reservation"]), (&json!([]), &Value::Null), "{number}");
    }
    assert!(left > 3, "the key was left {left} times");
}

#[test]
fn lost_request_or_answer_leaves_no_registration_unreported() {
    let setup = Setup::new();
    let commands = setup.commands();
    for act in [Act::Drop, Act::LoseAnswer] {
        for number in numbers(commands) {
            setup.proxy.set(move |this, _| if this == number { act } else { Act::Forward });
            let ended = setup.way().run("check", "shared");
            // The removal is tried again, so that a loss there changes nothing.
            assert!([0, 5, 6].contains(&ended.code), "{number} of {commands}: {ended:?}");
            assert!(setup.keys().is_empty(), "{number}: {ended:?}");
        }
    }
}

#[test]
fn disk_that_is_lost_after_register_is_reported_with_the_undo_command() {
    let setup = Setup::new();
    let mut registered = false;
    setup.proxy.set(move |_, request| {
        // Everything after the first PERSISTENT RESERVE OUT is lost.
        let lost = registered;
        registered |= request.contains("\"cdb\":\"5f");
        if lost { Act::Drop } else { Act::Forward }
    });
    let ended = setup.way().run("check", "shared");
    let last = ended.stderr.lines().last().unwrap();
    let (_, undo) = last.split_once("Remove it by: ").unwrap();
    assert!(ended.code == 6 && setup.keys().len() == 1, "{ended:?}");
    setup.proxy.clear();
    assert!(Command::new("/bin/sh").args(["-c", undo]).output().unwrap().status.success());
    assert!(setup.keys().is_empty());
}

#[test]
fn reading_that_hangs_does_not_keep_the_reservation_for_a_second() {
    let setup = Setup::new();
    let times = Arc::new(Mutex::new(Vec::<(bool, Instant)>::new()));
    let times_of_hook = Arc::clone(&times);
    setup.proxy.set(move |_, request| {
        let is = |action: &str| request.contains(&format!("\"cdb\":\"{action}"));
        let mut times = times_of_hook.lock().unwrap();
        if is("5f01") || is("5f02") {
            times.push((is("5f01"), Instant::now()));
        }
        let is_reserved = times.last().is_some_and(|(is_reserve, _)| *is_reserve);
        let reads = !is("5f");
        if reads && is_reserved { Act::Delay(Duration::from_millis(1500)) } else { Act::Forward }
    });
    let ended = setup.way().run("check --json", "shared");
    let (report, code) = ended.json();
    assert_eq!((code, outcome(&report, "reserve-write-exclusive")), (4, "fails"), "{report}");
    let times = times.lock().unwrap();
    assert_eq!(times.len(), 12);
    for pair in times.chunks(2) {
        let [(true, reserved), (false, released)] = pair else { panic!("{times:?}") };
        assert!(released.duration_since(*reserved) < Duration::from_secs(1), "{times:?}");
    }
    assert!(setup.keys().is_empty());
}
