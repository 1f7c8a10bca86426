//! The administrator's commands on wrong input, on peers that answer nonsense, and on output without a reader: one line, the
//! documented exit code, and no panic.
#![forbid(unsafe_code)]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use common::admin::{Ended, Way, made_store, scsi_pr};
use common::disk::Start;
use common::{PROGRAM, Place};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

/// A server that hands each connection to `serve`.
fn fake(path: &Path, serve: impl Fn(UnixStream) + Send + 'static) {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || listener.incoming().flatten().for_each(&serve));
}

#[test]
fn wrong_command_lines_and_devices_have_one_line_and_their_code() {
    let place = Place::new();
    let disk = place.path("disk.img").display().to_string();
    let store = made_store(&place);
    let _listener = UnixListener::bind(place.path("any.sock")).unwrap();
    File::create(place.path("text.db")).unwrap().write_all(b"not a database").unwrap();
    let [socket, missing, text, directory] =
        ["any.sock", "missing", "text.db", "."].map(|name| place.path(name).display().to_string());
    let in_store = |command: &str| format!("{command} --store={store} --as=vm1");
    for (line, code, part) in [
        ("show".to_owned(), 2, "DEVICE"),
        ("show /dev/null".to_owned(), 2, "not a disk"),
        ("show /proc/self/fd".to_owned(), 2, "directory"),
        (format!("show {directory}"), 2, "directory"),
        (format!("show {socket}"), 2, "socket"),
        (format!("show {disk}"), 2, "--store"),
        (format!("show {missing}"), 1, "No such file"),
        (format!("show {disk} --via={socket} --store={store}"), 2, "--store"),
        (format!("show {disk} --as=vm1"), 2, "--as"),
        (format!("show {disk} --via={socket} --as=vm1"), 2, "--as"),
        (format!("show {disk} --store={store} --as=a,b"), 2, "name"),
        (format!("show {disk} --store=etcd:x"), 2, "sqlite:PATH"),
        (format!("show {disk} --store=memory:"), 1, "memory"),
        (format!("show {disk} --store=sqlite:{missing}"), 5, "missing"),
        (format!("show {disk} --store=dir:{missing}"), 5, "missing"),
        (format!("show {disk} --store=sqlite:{text}"), 1, "text.db"),
        (format!("show shared --store={store}"), 1, "list --store"),
        (format!("show /dev/null --store={store}"), 2, "no disk"),
        (format!("register {disk} --store={store} --key=1"), 2, "--as"),
        (in_store(&format!("register {disk} --key=12g")), 2, "hexadecimal"),
        (in_store(&format!("register {disk} --key=0x12345678123456789")), 2, "hexadecimal"),
        (in_store(&format!("register {disk} --key=0")), 2, "key 0"),
        (in_store(&format!("register {disk}")), 2, "--key"),
        (in_store(&format!("reserve {disk} --key=1 --type=9")), 2, "write-exclusive"),
        (in_store(&format!("reserve {disk} --key=1 --type=wero")), 3, "RESERVATION CONFLICT"),
        (in_store(&format!("move {disk} --key=1 --to=a,b --to-key=2")), 2, "--to"),
        (in_store(&format!("preempt {disk} --key=1 --victim=x")), 2, "--victim"),
        (format!("show {disk} --via={missing}"), 5, "connect"),
        (format!("show {disk} --via={disk}"), 5, "connect"),
        (format!("show shared --disk={missing}"), 5, "control socket"),
        (format!("register shared --disk={missing} --as=vm1 --key=1"), 5, "control socket"),
        (format!("register shared --disk={missing} --key=1"), 2, "--as"),
        ("evict vm1".to_owned(), 2, "--store"),
        (format!("evict vm1 --store={store} --yes"), 1, "vm1"),
        (format!("watch {disk} --store={store} --interval=0"), 2, "interval"),
        ("list --store=nonsense".to_owned(), 2, "sqlite:PATH"),
        ("frobnicate".to_owned(), 2, "frobnicate"),
    ] {
        let ended = scsi_pr(line.split_whitespace());
        assert!(ended.refusal(code).contains(part), "{line}: {part}: {ended:?}");
    }
}

#[test]
fn failed_unit_is_in_the_json_beside_the_others() {
    let place = Place::new();
    let store = made_store(&place);
    let (good, missing) = (place.path("disk.img"), place.path("missing"));
    let devices = [missing.to_str().unwrap(), good.to_str().unwrap()];
    let ended = scsi_pr(["show", "--json", "--store", &store].iter().chain(&devices));
    let (json, code) = ended.json();
    let [failed, read] = &json["units"].as_array().unwrap()[..] else { panic!("{json}") };
    assert_eq!((code, &failed["exit-code"], &failed["device"]), (1, &1.into(), &devices[0].into()));
    assert!(failed["error"].as_str().unwrap().contains("No such file") && ended.stderr.lines().count() == 1);
    assert_eq!((&read["registrations"], read.get("error")), (&serde_json::json!([]), None));
    let (json, code) = Way::store(&store, "vm1").run("reserve --json --key=1 --type=we", &good).json();
    assert_eq!((code, &json["exit-code"]), (3, &3.into()));
    for command in [&["list"][..], &["watch", "disk.img"], &["evict", "vm1", "--yes"]] {
        let ended = scsi_pr(command.iter().chain(&["--json", "--store=memory:"]));
        let (json, code) = ended.json();
        assert_eq!((code, &json["exit-code"]), (1, &1.into()), "{ended:?}");
    }
}

#[test]
fn output_without_a_reader_is_no_failure_and_a_full_disk_is_one() {
    let place = Place::new();
    let store = made_store(&place);
    let run = |stdout: Stdio, arguments: &[&str]| {
        let mut command = Command::new(PROGRAM);
        let output = command.args(arguments).arg(place.path("disk.img")).arg(format!("--store={store}"));
        let output = output.stdout(stdout).stderr(Stdio::piped()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for arguments in [&["show"][..], &["show", "--json"], &["watch"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        assert_eq!(run(writer.into(), arguments), (Some(0), String::new()), "{arguments:?}");
    }
    let full = File::options().write(true).open("/dev/full").unwrap();
    let (code, stderr) = run(full.into(), &["show"]);
    assert!(code == Some(1) && stderr.contains("standard output") && stderr.lines().count() == 1, "{stderr}");
    // A change that cannot be printed is not taken for one that failed.
    let full = File::options().write(true).open("/dev/full").unwrap();
    let (code, stderr) = run(full.into(), &["register", "--key=7", "--as=vm1"]);
    assert!(code == Some(1) && stderr.contains("the change is made (registered key"), "{stderr}");
    assert!(Way::store(&store, "vm1").run("keys", place.path("disk.img")).text().contains("0x0000000000000007"));
}

/// A peer of the wrong kind: a control socket as a helper, and a helper as a control socket.
#[test]
fn socket_of_another_program_is_refused() {
    let place = Place::new();
    let _disks = Start::shared(&place).start();
    let _server = place.serve("memory:").listen("vm1", place.path("vm1.sock")).start();
    let control = place.path("control").display().to_string();
    let ended = scsi_pr(["show", "--via", &control, place.path("disk.img").to_str().unwrap()]);
    assert!(ended.refusal(5).contains("helper"), "{ended:?}");
    let helper = place.path("vm1.sock").display().to_string();
    let ended = scsi_pr(["show", "--disk", &helper, "shared"]);
    assert!(ended.refusal(5).contains("control socket"), "{ended:?}");
}

/// Whether a command that a peer disturbed ended as it should.
fn ended_well(ended: &Ended, codes: &[i32]) -> bool {
    let line = ended.stderr.trim_end_matches('\n');
    codes.contains(&ended.code) && line.starts_with("scsi-pr: ") && !line.contains(|c: char| c.is_control())
}

#[test]
fn helper_that_answers_nonsense_is_one_line() {
    let place = Place::new();
    let disk = place.path("disk.img");
    let answers = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let served = std::sync::Arc::clone(&answers);
    fake(&place.path("helper.sock"), move |mut stream| {
        let (features, answer): (u32, Vec<u8>) = served.lock().unwrap().clone().into_iter().next().unwrap();
        let _ = stream.write_all(&features.to_be_bytes());
        // The client's features, and the CDB.
        let _ = stream.read_exact(&mut [0; 20]);
        let _ = stream.write_all(&answer);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        // The parameter list must not be lost, or the client would see a reset connection.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let way = Way::via(&place.path("helper.sock"));
    let check = |features: u32, answer: Vec<u8>| {
        *answers.lock().unwrap() = vec![(features, answer.clone())];
        let show = way.run("show", &disk);
        assert!(ended_well(&show, &[1, 3, 4, 5]), "{features} {answer:?}: {show:?}");
        let register = way.run("register --key=1", &disk);
        let is_good = register.code == 0 && answer.starts_with(&[0; 8]);
        assert!(is_good || ended_well(&register, &[1, 3, 4, 5, 6]), "{features} {answer:?}: {register:?}");
    };
    // GOOD with a size, and fewer or more data; a huge size; data that are no keys.
    for (size, data) in [(8, 4), (4, 4), (8192, 8192), (u32::MAX, 16), (0, 0)] {
        check(0, [&0_u32.to_be_bytes()[..], &u32::to_be_bytes(size), &vec![7; data]].concat());
    }
    let mut runner = TestRunner::new(ProptestConfig { cases: 24, ..ProptestConfig::default() });
    let bytes = prop::collection::vec(any::<u8>(), 0..200);
    let statuses = (prop::sample::select(vec![0_u8, 2, 8, 0x18, 0xff]), prop::collection::vec(any::<u8>(), 0..120));
    let answers_of = prop_oneof![bytes, statuses.prop_map(|(status, rest)| [&[0, 0, 0, status][..], &rest].concat())];
    let features = prop_oneof![4 => Just(0), 1 => any::<u32>()];
    runner
        .run(&(features, answers_of), |(features, answer)| {
            check(features, answer);
            Ok(())
        })
        .unwrap();
}

#[test]
fn control_socket_that_answers_nonsense_is_one_line() {
    let place = Place::new();
    let answer = std::sync::Arc::new(std::sync::Mutex::new(Vec::<u8>::new()));
    let served = std::sync::Arc::clone(&answer);
    fake(&place.path("control"), move |mut stream| {
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(&served.lock().unwrap());
    });
    let socket = place.path("control");
    let units = |sense: &str| {
        format!(
            r#"{{"units":[{{"name":"shared","path":"{sense}","target":"t","lun":0,"uuid":"","naa":"","serial":"","bytes":1,"epoch":1,"sessions":[]}}]}}"#
        )
    };
    for text in [
        "",
        "\n",
        "{}\n",
        "[]\n",
        "{\"units\":[]}\n",
        "{\"units\":",
        "{\"error\":\"\\u001b[2J \\u202e gone\"}\n",
        "{\"status\":0,\"sense\":\"\",\"data\":\"zz\"}\n",
        "{\"status\":999,\"sense\":\"\",\"data\":\"\"}\n",
        "\u{0}\u{0}\u{0}\u{1}\n",
        &format!("{}\n", units("/x")),
        &"x".repeat(100_000),
    ] {
        *answer.lock().unwrap() = text.into();
        for command in ["show", "register --key=1", "clear --key=1 --yes"] {
            let ended = Way::disk(&socket, "iqn.2001-04.com.example:vm1").run(command, "shared");
            assert!(ended_well(&ended, &[1, 5, 6]) && ended.stdout.is_empty(), "{command}: {text:?}: {ended:?}");
            assert!(!ended.stderr.contains('\u{202e}'), "{ended:?}");
        }
        let ended = scsi_pr(["list", "--disk", socket.to_str().unwrap()]);
        assert!(ended_well(&ended, &[1, 5]) || text.contains("\"units\":[]"), "{text:?}: {ended:?}");
    }
}
