//! The server as a process: its sockets, what it is passed, how it starts and ends, and what it refuses.
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use common::{Machine, PROGRAM, Place, good, register, reserve};
use rustix::process::Signal;
use scsi_pr::{Completion, PrManager, ReserveInAction, SenseCode, Status};
use scsi_pr_helper::HelperClient;
use testing_support::Launcher;

/// Where it went wrong, and what to do.
#[track_caller]
fn refused(place: &Place, arguments: &[&str], code: i32, parts: &[&str]) {
    let mut start = place.serve("memory:");
    for argument in arguments {
        start = start.arg(argument);
    }
    let (found, said) = start.outcome();
    assert_eq!(found, Some(code), "{arguments:?}: {said}");
    for part in parts {
        assert!(said.contains(part), "{arguments:?}: {part:?} is not in: {said}");
    }
}

#[test]
fn wrong_options_are_refused_with_the_reason() {
    let place = Place::new();
    refused(&place, &[], 1, &["scsi-pr: there is nothing to listen on: give --listen=NAME=SOCKET"]);
    for (argument, why) in [
        ("--listen=vm1", "NAME=SOCKET"),
        ("--listen=vm1=relative", "whole path"),
        ("--listen==/run/s", "an initiator has a name"),
        ("--listen=a b=/run/s", "an initiator has a name"),
        ("--socket-mode=888", "octal"),
        ("--socket-mode=1777", "octal"),
        ("--socket-mode=+600", "octal"),
        ("--socket-group=no such group", "no such group"),
        ("--pass=relative", "absolute"),
        ("--keep=relative", "absolute"),
        ("--unit=disk", "NAME=PATH"),
        ("--unit=a b=/dev/sda", "a b"),
        ("--colour", "--colour"),
        ("-qv", "cannot be used with"),
    ] {
        refused(&place, &[argument], 2, &[why]);
    }
    let socket = place.path("s");
    let listen = format!("--listen=a={}", socket.display());
    refused(&place, &[&listen, &listen], 1, &["two initiators have the socket"]);
    assert!(!socket.exists());
}

/// `scsi-pr serve --config=FILE` with this text in the file.
fn with_config(place: &Place, text: &str) -> Launcher {
    let config = place.path("serve.toml");
    std::fs::write(&config, text).unwrap();
    let mut launcher = Launcher::new(PROGRAM);
    launcher.arg("serve").arg(format!("--config={}", config.display()));
    launcher
}

#[test]
fn settings_of_a_file_are_served() {
    let place = Place::new();
    let socket = place.path("s");
    let text = format!(
        "store = \"{}\"\nsocket-mode = \"0620\"\n[[initiator]]\nname = \"vm1\"\nsocket = \"{}\"\n",
        place.sqlite(),
        socket.display()
    );
    let program = with_config(&place, &text).serve(&socket);
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o620);
    let client = HelperClient::new(&socket);
    assert_eq!(client.execute(place.disk().as_fd(), register(0, 1).encode().unwrap().command()).unwrap(), good());
    drop(program);
}

#[test]
fn invalid_file_of_settings_is_refused_with_line_and_column() {
    let place = Place::new();
    for (text, error) in [
        ("store = \"memory:\"\nlisten = 1\n", "serve.toml:2:1: unknown field `listen`"),
        ("store = \"memory:\"\n[[initiator]]\nname = \"\"\n", "serve.toml:3:8: "),
        ("store = \"memory:\"\n", "there is nothing to listen on"),
    ] {
        let (code, _, stderr) = with_config(&place, text).outcome();
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.starts_with("scsi-pr: ") && stderr.contains(error) && stderr.lines().count() == 1, "{stderr}");
    }
}

#[test]
fn failure_to_make_a_socket_removes_the_others() {
    let place = Place::new();
    let socket = place.path("s");
    let listen = format!("--listen=a={}", socket.display());
    refused(&place, &[&listen, "--listen=b=/nonexistent/s"], 1, &["/nonexistent/s", "No such file"]);
    let precious = place.path("disk.img");
    let on_a_file = format!("--listen=b={}", precious.display());
    refused(&place, &[&listen, &on_a_file], 1, &["not a socket", "disk.img"]);
    assert!(!socket.exists() && precious.exists());
}

#[test]
fn store_that_cannot_be_opened_is_refused_with_the_reason() {
    let place = Place::new();
    let socket = place.path("s");
    for (store, expected, part) in [
        ("sqlite:/nonexistent/pr.db".to_owned(), 1, "/nonexistent"),
        ("dir:/nonexistent/pr".to_owned(), 1, "/nonexistent/pr"),
        ("postgres:x".to_owned(), 2, "postgres:x"),
        ("".to_owned(), 2, "STORE"),
        (format!("sqlite:{}", place.path("disk.img").display()), 1, "disk.img"),
    ] {
        let before = fs::metadata(place.path("disk.img")).unwrap().len();
        let (code, said) = place.serve(&store).listen("a", socket.clone()).outcome();
        assert_eq!(code, Some(expected), "{store}: {said}");
        assert!(said.contains("scsi-pr: ") && said.contains(part), "{store}: {said}");
        assert_eq!(fs::metadata(place.path("disk.img")).unwrap().len(), before);
        assert!(!socket.exists(), "{store}");
    }
}

#[test]
fn sockets_are_their_owner_s_alone_unless_options_say_more() {
    let place = Place::new();
    let socket = place.path("s");
    let own = rustix::process::getgid().as_raw();
    let mode = |path: &PathBuf| fs::metadata(path).unwrap().mode() & 0o7777;
    let server = place.serve("memory:").listen("a", socket.clone()).by_shell(r#"umask 0; exec "$@""#).start();
    assert_eq!(mode(&socket), 0o600);
    // A second one does not take it away.
    let (code, said) = place.serve("memory:").listen("a", socket.clone()).outcome();
    assert!(code == Some(1) && said.contains("another program listens there"), "{said}");
    assert_eq!(server.stop().code(), Some(0));
    assert!(!socket.exists());
    let server = place
        .serve("memory:")
        .arg("--socket-mode=0660")
        .arg(format!("--socket-group={own}"))
        .listen("a", socket.clone())
        .by_shell(r#"umask 077; exec "$@""#)
        .start();
    assert_eq!((mode(&socket), fs::metadata(&socket).unwrap().gid()), (0o660, own));
    assert_eq!(server.stop().code(), Some(0));
}

#[test]
fn socket_of_a_killed_server_is_replaced() {
    let place = Place::new();
    let socket = place.path("s");
    let mut server = place.serve("memory:").listen("a", socket.clone()).start();
    server.kill();
    assert!(socket.exists());
    server.restart();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        server.signal(signal);
        assert_eq!(server.process.wait().code(), Some(0), "{signal:?}");
        assert!(!socket.exists());
        server = place.serve("memory:").listen("a", socket.clone()).start();
    }
}

/// The log at the start.
#[test]
fn start_logs_the_store_and_that_writes_are_not_blocked() {
    let place = Place::new();
    let socket = place.path("s");
    let server = place.serve("memory:").listen("vm1", socket.clone()).start();
    let machine = Machine::new(&place, &socket);
    assert_eq!(machine.out(&register(0, 1)), good());
    let log = server.log();
    for part in [
        "memory:",
        "initiator vm1 at ",
        "reads and writes are not blocked",
        "REGISTER",
        "disk.img",
        "initiator{name=vm1}",
    ] {
        assert!(log.contains(part), "{part}: {log}");
    }
    let quiet = place.serve("memory:").arg("--quiet").listen("vm1", place.path("q")).start();
    assert_eq!(quiet.log(), "");
}

#[test]
fn server_has_no_privilege_beyond_its_user() {
    let place = Place::new();
    let server = place.serve("memory:").listen("vm1", place.path("s")).start();
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&server.status(set), 16), Ok(0), "{set}");
    }
    assert_eq!(server.status("NoNewPrivs"), "1");
}

#[test]
fn a_hundred_machines_are_served_and_their_threads_end() {
    let place = Place::new();
    let sockets: Vec<_> = (0..100).map(|number| place.path(&format!("{number}.sock"))).collect();
    let start = sockets.iter().fold(place.serve("memory:"), |start, socket| {
        start.listen(&socket.file_stem().unwrap().to_string_lossy(), socket.clone())
    });
    let server = start.start();
    let machines: Vec<_> = sockets.iter().map(|socket| Machine::new(&place, socket)).collect();
    machines.iter().for_each(|machine| drop(machine.keys()));
    machines.iter().for_each(|machine| drop(machine.keys()));
    drop(machines);
    testing_support::eventually("the threads to end", || (server.status("Threads") == "1").then_some(()));
    assert_eq!(server.stop().code(), Some(0));
    assert!(sockets.iter().all(|socket| !socket.exists()));
}

/// A script that passes descriptor 0 as the first socket, in the name that follows.
fn activated(names: &str) -> String {
    format!(r#"export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES="{names}"; exec "$@" 3<&0 </dev/null"#)
}

#[test]
fn a_socket_from_the_service_manager_is_served_and_left() {
    let place = Place::new();
    let (passed, own) = (place.path("passed"), place.path("own"));
    let listener = UnixListener::bind(&passed).unwrap();
    let server = place
        .serve("memory:")
        .listen("own", own.clone())
        .by_shell(&activated("vm1"))
        .stdin(std::os::fd::OwnedFd::from(listener.try_clone().unwrap()))
        .start();
    let machine = Machine::new(&place, &passed);
    assert_eq!(machine.out(&register(0, 1)), good());
    let other = Machine::new(&place, &own);
    assert_eq!(other.registrants(), [("iqn.2026-11.scsi-pr:vm1,i,0x000000000000".to_owned(), 1)]);
    assert!(server.log().contains("initiator vm1 at a socket that the service manager passed"));
    drop((machine, other));
    assert_eq!(server.stop().code(), Some(0));
    assert!(passed.exists() && !own.exists());
    // The service manager goes on listening for the next server.
    UnixStream::connect(&passed).unwrap();
}

#[test]
fn passed_socket_must_listen_and_name_an_initiator() {
    let place = Place::new();
    let listener = || {
        let path = place.path("passed");
        let _ = fs::remove_file(&path);
        std::os::fd::OwnedFd::from(UnixListener::bind(&path).unwrap())
    };
    for name in ["", "unknown", "scsi-pr@vm1.socket"] {
        let (code, said) = place.serve("memory:").by_shell(&activated(name)).stdin(listener()).outcome();
        assert!(code == Some(1) && said.contains("FileDescriptorName="), "{name}: {said}");
    }
    let (code, said) = place.serve("memory:").by_shell(&activated("a b")).stdin(listener()).outcome();
    assert!(code == Some(1) && said.contains("an initiator has a name"), "{said}");
    let file = fs::File::open(place.path("disk.img")).unwrap();
    let (code, said) = place.serve("memory:").by_shell(&activated("a")).stdin(file).outcome();
    assert!(code == Some(1) && said.contains("descriptor 3"), "{said}");
    let (connected, _other) = UnixStream::pair().unwrap();
    let connected = std::os::fd::OwnedFd::from(connected);
    let (code, said) = place.serve("memory:").by_shell(&activated("a")).stdin(connected).outcome();
    assert!(code == Some(1) && said.contains("not a listening socket"), "{said}");
}

#[test]
fn service_manager_gets_ready_and_stopping() {
    let place = Place::new();
    let notify = place.path("notify");
    let manager = UnixDatagram::bind(&notify).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let message = || {
        let mut room = [0; 64];
        let length = manager.recv(&mut room).unwrap();
        String::from_utf8_lossy(&room[..length]).into_owned()
    };
    let server = place.serve("memory:").env("NOTIFY_SOCKET", &notify).listen("a", place.path("s")).start();
    assert_eq!(message(), "READY=1");
    assert_eq!(server.stop().code(), Some(0));
    assert_eq!(message(), "STOPPING=1");
}

/// The store goes away and comes back: nothing is said to be done meanwhile, and nothing is lost.
#[test]
fn failing_store_refuses_commands_until_it_is_back() {
    for kind in ["dir:", "sqlite:"] {
        let place = Place::new();
        let (store, away) = (place.path("store"), place.path("away"));
        fs::create_dir(&store).unwrap();
        let file = if kind == "sqlite:" { store.join("reservations.db") } else { store.clone() };
        let socket = place.path("s");
        let mut server = place
            .serve(&format!("{kind}{}", file.display()))
            .arg(format!("--unit=disk={}", place.path("disk.img").display()))
            .listen("a", socket.clone())
            .start();
        let machine = Machine::new(&place, &socket);
        assert_eq!(machine.out(&register(0, 1)), good());
        fs::rename(&store, &away).unwrap();
        for answer in [machine.out(&reserve(1)), machine.read(ReserveInAction::ReadKeys)] {
            let refused = matches!(answer, Completion::CheckCondition(_) | Completion::Status(Status::BUSY));
            assert!(refused, "{kind} {answer}");
        }
        assert!(server.log().contains("WARN"), "{}", server.log());
        fs::rename(&away, &store).unwrap();
        assert_eq!((machine.holder(), machine.keys().generation.0), (None, 1));
        assert_eq!(machine.out(&reserve(1)), good());
        assert_eq!(server.process.try_wait(), None);
    }
}

/// A client that may not write to a disk may not reserve it.
#[test]
fn a_disk_that_is_opened_read_only_is_not_reserved() {
    let place = Place::new();
    let socket = place.path("s");
    let _server = place.serve("memory:").listen("a", socket.clone()).start();
    let reader = Machine::with(fs::File::open(place.path("disk.img")).unwrap(), &socket);
    assert_eq!(reader.out(&register(0, 1)), Completion::check(scsi_pr::SenseCode::INVALID_OPCODE));
    assert_eq!(reader.keys().keys, []);
}

/// Where there is little room, less is left for clients; and no command is lost for want of a descriptor.
#[test]
fn with_few_descriptors_no_command_is_lost() {
    let place = Place::new();
    let socket = place.path("s");
    let server =
        place.serve(&place.sqlite()).listen("a", socket.clone()).by_shell(r#"ulimit -n 140; exec "$@""#).start();
    std::thread::scope(|scope| {
        // The share of one process is six, of which one may be left from when the server started.
        for _ in 0..3 {
            scope.spawn(|| {
                let machine = Machine::new(&place, &socket);
                for _ in 0..100 {
                    assert_eq!(machine.keys().keys, []);
                }
            });
        }
    });
    assert!(!server.log().contains("WARN"), "{}", server.log());
    assert_eq!(server.stop().code(), Some(0));
}

/// A slip in a path would have a disk kept by another name on this host than on others.
#[test]
fn options_without_effect_are_logged_at_the_start() {
    let place = Place::new();
    let there = place.path("disk.img").display().to_string();
    let start = |arguments: [&str; 2]| {
        let place_for = place.serve("memory:").arg("--quiet").arg(arguments[0]).arg(arguments[1]);
        let server = place_for.listen("vm1", place.path("s")).start();
        let log = server.log();
        assert_eq!(server.stop().code(), Some(0));
        log
    };
    let log = start(["--unit=disk=/nonexistent/disk", &format!("--keep={there}")]);
    assert!(log.contains("--unit names /nonexistent/disk") && log.contains("name.disk"), "{log}");
    assert!(log.contains(&format!("--keep names {there}, and no device is there")), "{log}");
    assert_eq!(start([&format!("--unit=disk={there}"), "--keep=/dev/null"]), "");
}

/// The option arrives where registrations are made.
#[test]
fn unit_has_room_for_the_registrants_of_the_option() {
    let place = Place::new();
    let (one, two) = (place.path("1"), place.path("2"));
    let server =
        place.serve("memory:").arg("--registrants=1").listen("a", one.clone()).listen("b", two.clone()).start();
    let [a, b] = [one, two].map(|socket| Machine::new(&place, &socket));
    assert_eq!(a.out(&register(0, 1)), good());
    let full = Completion::check(SenseCode::INSUFFICIENT_REGISTRATION_RESOURCES);
    assert_eq!(b.out(&register(0, 2)), full);
    assert_eq!(a.out(&register(1, 3)), good());
    assert_eq!(server.stop().code(), Some(0));
}
