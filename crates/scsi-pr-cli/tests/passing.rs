//! The owner of a device's reservations: the helper, the store, or neither. The helper is the one of this workspace;
//! what the server takes for a SCSI disk is a loop device, of which a sysfs of the test's own says so.
#![forbid(unsafe_code)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Machine, Place, Server, Start, flood, good, register};
use rustix::process::{Resource, Signal, getrlimit};
use scsi_pr::{Completion, ReserveInAction, SenseCode};
use testing_support::command::{action_in, reserve_in};
use testing_support::{Launcher, Program};

/// The device that plays the disk, and its number.
const DEVICE: &str = "/dev/loop0";
const NUMBER: &str = "7:0";

/// Whether the machine lets the test be made: the device, and a mount namespace with another sysfs.
fn is_possible() -> bool {
    let unshare = Command::new("unshare").args(["--mount", "true"]).stderr(Stdio::null()).status();
    let possible = device().is_some() && unshare.is_ok_and(|status| status.success());
    if !possible {
        println!("skipped: {DEVICE} and a mount namespace are needed to tell devices apart");
    }
    possible
}

fn device() -> Option<File> {
    File::options().read(true).write(true).open(DEVICE).ok()
}

/// Makes a sysfs in which the device is a SCSI disk; a command that mounts it over `/sys`.
fn sysfs(place: &Place) -> String {
    let root = place.path("sys");
    let disk = root.join("devices/host0/0:0:0:0/block/sda");
    fs::create_dir_all(disk.join("slaves")).unwrap();
    fs::write(disk.join("dev"), format!("{NUMBER}\n")).unwrap();
    fs::create_dir_all(root.join("bus/scsi")).unwrap();
    symlink("../../../0:0:0:0", disk.join("device")).unwrap();
    symlink("../../../bus/scsi", root.join("devices/host0/0:0:0:0/subsystem")).unwrap();
    fs::create_dir_all(root.join("dev/block")).unwrap();
    symlink("../../devices/host0/0:0:0:0/block/sda", root.join("dev/block").join(NUMBER)).unwrap();
    format!("mount --bind {} /sys", root.display())
}

/// A server that looks at that sysfs.
fn serve(place: &Place, store: &str) -> Start {
    let mount = sysfs(place);
    // Nor does that sysfs tell on which file system the other disk is.
    let name = format!("--unit=image={}", place.path("disk.img").display());
    let script = format!(r#"exec unshare --mount sh -c '{mount} && exec "$@"' sh "$@""#);
    place.serve(store).arg(name).listen("vm1", place.path("s")).by_shell(&script)
}

/// The helper of this workspace, which is killed with the value.
fn start_helper(socket: &Path) -> Program {
    helper(socket).serve(socket)
}

fn helper(socket: &Path) -> Launcher {
    let mut launcher = Launcher::new(built("qemu-pr-helper"));
    launcher.arg("-q").arg("-k").arg(socket);
    launcher
}

/// Builds another program of the workspace, next to `scsi-pr`.
fn built(package: &str) -> PathBuf {
    let program = Path::new(common::PROGRAM).with_file_name(package);
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let profiles = program.parent().unwrap();
    let profile = match profiles.file_name().unwrap() {
        name if name == "debug" => "dev".as_ref(),
        name => name,
    };
    build.args(["build", "--quiet", "--package", package, "--profile"]).arg(profile);
    build.arg("--target-dir").arg(profiles.parent().unwrap()).current_dir(env!("CARGO_MANIFEST_DIR"));
    assert!(build.status().unwrap().success(), "{package} is not built");
    program
}

#[test]
fn device_with_reservations_is_refused_with_both_remedies() {
    if !is_possible() {
        return;
    }
    let place = Place::new();
    let server = serve(&place, "memory:").start();
    let machine = Machine::with(device().unwrap(), &place.path("s"));
    for _ in 0..3 {
        let refused = Completion::check(SenseCode::INVALID_OPCODE);
        assert_eq!(machine.out(&register(0, 1)), refused);
        assert_eq!(machine.read(ReserveInAction::ReadKeys), refused);
    }
    let log = server.log();
    for part in ["--pass=SOCKET", "--keep=PATH", "(sda), a SCSI device", "initiator{name=vm1}"] {
        assert!(log.contains(part), "{part}: {log}");
    }
    assert_eq!(log.matches("refused on").count(), 1, "{log}");
    // Others are kept all the same.
    assert_eq!(Machine::new(&place, &place.path("s")).out(&register(0, 1)), good());
}

#[test]
fn device_with_reservations_is_passed_to_the_helper() {
    if !is_possible() {
        return;
    }
    let place = Place::new();
    let socket = place.path("helper.sock");
    let helper = start_helper(&socket);
    let server = serve(&place, "memory:").arg(format!("--pass={}", socket.display())).start();
    let [direct, passed] = [&socket, &place.path("s")].map(|socket| Machine::with(device().unwrap(), socket));
    for action in [ReserveInAction::ReadKeys, ReserveInAction::ReadReservation] {
        assert_eq!(passed.read(action), direct.read(action));
    }
    assert_eq!(passed.out(&register(0, 1)), direct.out(&register(0, 1)));
    assert_ne!(passed.out(&register(0, 1)), good(), "a loop device has no reservations");
    // The store has the reservations of other devices.
    let kept = Machine::new(&place, &place.path("s"));
    assert_eq!(kept.out(&register(0, 1)), good());
    // Without its helper a device is not kept instead.
    drop(helper);
    assert_eq!(passed.read(ReserveInAction::ReadKeys), Completion::check(SenseCode::LUN_COMMUNICATION_FAILURE));
    assert!(server.log().contains("helper.sock"), "{}", server.log());
    assert_eq!(kept.keys().keys.len(), 1);
}

#[test]
fn device_named_by_keep_is_kept() {
    if !is_possible() {
        return;
    }
    let place = Place::new();
    let link = place.path("by-id");
    symlink(DEVICE, &link).unwrap();
    let _server = serve(&place, "memory:")
        .arg(format!("--keep={}", link.display()))
        .arg(format!("--unit=disk={}", link.display()))
        .arg("--pass=/nonexistent/helper.sock")
        .start();
    let machine = Machine::with(device().unwrap(), &place.path("s"));
    assert_eq!(machine.out(&register(0, 1)), good());
    assert_eq!(machine.keys().keys.len(), 1);
    // The path leads elsewhere now, and what is there is not kept on its account.
    fs::remove_file(&link).unwrap();
    symlink("/dev/null", &link).unwrap();
    assert_eq!(machine.read(ReserveInAction::ReadKeys), Completion::check(SenseCode::LUN_COMMUNICATION_FAILURE));
}

/// The helper hangs with a command when the server gets SIGTERM. No client can connect any more, and the server still
/// answers the command.
#[test]
fn command_that_runs_at_shutdown_is_answered() {
    if !is_possible() {
        return;
    }
    let place = Place::new();
    let (socket, own) = (place.path("helper.sock"), place.path("s"));
    let helper = start_helper(&socket);
    let mut server = serve(&place, "memory:").arg("-vv").arg(format!("--pass={}", socket.display())).start();
    let machine = Machine::with(device().unwrap(), &own);
    let answer = machine.read(ReserveInAction::ReadKeys);
    helper.signal(Signal::STOP);
    let begun = |server: &Server| server.log().matches("cmd=0x5e").count();
    let before = begun(&server);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| machine.read(ReserveInAction::ReadKeys));
        // The server logs the command when it arrives, and when it sends it to the helper.
        testing_support::eventually("the helper to be asked", || (begun(&server) >= before + 2).then_some(()));
        server.signal(Signal::TERM);
        testing_support::eventually("the socket to be removed", || (!own.exists()).then_some(()));
        assert_eq!(server.process.try_wait(), None);
        helper.signal(Signal::CONT);
        assert_eq!(running.join().unwrap(), answer);
    });
    assert_eq!(server.process.wait().code(), Some(0));
}

/// The connections of the initiator that floods, in two processes: a process has a share of a quarter.
const FLOOD: [usize; 2] = [830, 830];

/// The limit on open files that admits these connections: three descriptors for each connection of four such shares, and some
/// for the server itself.
const DESCRIPTORS: u64 = 3 * 4 * 830 + 200;

#[test]
#[ignore = "it is a process of the other tests"]
fn flood() {
    flood::run();
}

#[test]
fn initiator_with_many_connections_leaves_the_helper_to_others() {
    if !is_possible() {
        return;
    }
    if getrlimit(Resource::Nofile).maximum.is_some_and(|maximum| maximum < DESCRIPTORS) {
        testing_support::skip!("needs a hard limit on open files of {DESCRIPTORS}");
    }
    let place = Place::new();
    let [helper_socket, flooding, own] = ["helper.sock", "flooding", "s"].map(|name| place.path(name));
    // A process may have a quarter of these, which is less than the flood.
    let helper = helper(&helper_socket).arg("--max-connections=4000").serve(&helper_socket);
    let expected = Machine::with(device().unwrap(), &helper_socket).read(ReserveInAction::ReadKeys);
    let pass = format!("--pass={}", helper_socket.display());
    let server = serve(&place, "memory:").arg(pass).listen("flooding", flooding.clone()).start();
    let machine = Machine::with(device().unwrap(), &own);
    let _flood = flood::start(&flooding, Path::new(DEVICE), &FLOOD, &reserve_in(action_in::READ_KEYS, 8192), &[]);
    // All 1,660 connections have a command then, and each command asks for a connection to the helper.
    helper.signal(Signal::STOP);
    testing_support::holds_for(Duration::from_secs(1), || true);
    helper.signal(Signal::CONT);
    for command in 0..100 {
        assert_eq!(machine.read(ReserveInAction::ReadKeys), expected, "command {command}: {}", server.log());
    }
    assert!(!server.log().contains("Too many connections"), "{}", server.log());
}
