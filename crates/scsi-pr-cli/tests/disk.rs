//! `scsi-pr disk` through its life: starts, stops, kill -9, owners, and settings that change.
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::path::Path;

use common::disk::*;
use common::{Machine, Place, good, register};
use rustix::process::Signal;
use scsi_pr::{Completion, SenseCode};
use testing_support::{Initiator, LibiscsiSuite, eventually};

/// WRITE EXCLUSIVE, REGISTRANTS ONLY.
const WERO: u8 = 5;
const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const PREEMPT: u8 = 4;

/// Registers and reserves as vm1.
#[track_caller]
fn reserved(disks: &Disks) -> Initiator {
    let mut session = disks.session("shared", "vm1");
    assert_eq!(reserve(&mut session, REGISTER, 0, 0, 1).status, GOOD);
    assert_eq!(reserve(&mut session, RESERVE, WERO, 1, 0).status, GOOD);
    session
}

#[test]
fn after_a_kill_and_a_restart_data_and_reservations_are_those_of_before() {
    let place = Place::new();
    let first = Start::shared(&place).start();
    let port = first.address.port();
    drop(first);
    let mut disks =
        Start::new(&place).store(&place.sqlite()).unit("shared", place.path("disk.img")).listen(port).start();
    let mut vm1 = reserved(&disks);
    let identity = vm1.read(&[0x12, 1, 0x83, 0, 255, 0], 255).data;
    for (round, signal) in [(1, Signal::KILL), (2, Signal::TERM), (3, Signal::KILL)] {
        assert_eq!(write_block(&mut vm1, 7, round).status, GOOD);
        disks.process.end_by(signal);
        assert!(vm1.try_receive().is_none(), "the connection is closed");
        disks.process.restart();
        vm1 = disks.session_again("shared", "vm1");
        assert_eq!(read_block(&mut vm1, 7), [round; BLOCK]);
        assert_eq!(keys(&mut vm1), [1]);
        let mut vm2 = disks.session("shared", "vm2");
        assert_eq!(write_block(&mut vm2, 7, 0xff).status, CONFLICT);
        assert_eq!(vm1.read(&[0x12, 1, 0x83, 0, 255, 0], 255).data, identity);
    }
}

#[test]
fn a_stop_releases_the_unit_for_other_writers_of_the_store() {
    let place = Place::new();
    let mut disks = Start::shared(&place).start();
    let mut vm1 = reserved(&disks);
    let socket = place.path("vm.sock");
    let naming = format!("--unit=shared={}", place.path("disk.img").display());
    let server = place.serve(&place.sqlite()).arg(naming).listen("vm3", socket.clone()).start();
    let machine = Machine::new(&place, &socket);

    let refused = Completion::check(SenseCode::MANUAL_INTERVENTION_REQUIRED);
    assert_eq!(machine.out(&register(0, 3)), refused);
    assert_eq!(machine.read(scsi_pr::ReserveInAction::ReadKeys), refused);
    let log = server.log();
    assert!(log.contains("control socket") && log.contains(&place.path("control").display().to_string()), "{log}");
    assert_eq!(keys(&mut vm1), [1], "nothing has changed");

    assert!(disks.process.stop().success());
    assert!(disks.log().contains("the unit shared is released"), "{}", disks.log());
    assert_eq!(machine.out(&register(0, 3)), good());
    drop(server);
    // The disk knows the change.
    let disks = Start::shared(&place).start();
    assert_eq!(keys(&mut disks.session("shared", "vm1")), [1, 3]);
}

#[test]
fn a_stop_answers_the_commands_that_run() {
    let place = Place::new();
    let mut disks = Start::shared(&place).start();
    let mut vm1 = disks.session("shared", "vm1");
    let header = vm1.command_header(0xa0, BLOCK as u32, &block(0x2a, 3, 8));
    vm1.send(header, &[]);
    let request = vm1.receive();
    assert_eq!(request.opcode(), 0x31);
    for lba in 0..100 {
        let header = vm1.command_header(0xc0, BLOCK as u32, &block(0x28, lba, 0));
        vm1.send(header, &[]);
    }
    assert_eq!(vm1.receive().opcode(), 0x25);
    disks.process.signal(Signal::TERM);
    // A command is answered whole, or was not received.
    while let Some(received) = vm1.try_receive() {
        assert_eq!(
            (received.opcode(), received.header[1] & 1, received.data.len()),
            (0x25, 1, BLOCK),
            "data with GOOD"
        );
    }
    assert!(disks.process.wait().success());
    assert!(disks.log().contains("the unit shared is released"), "{}", disks.log());
}

#[test]
fn a_medium_or_a_unit_in_use_is_refused() {
    let place = Place::new();
    let mut disks = Start::shared(&place).start();
    let other = |store: &str, medium: &Path| {
        Start::with_control(&place, "other").store(store).unit("shared", medium.to_owned()).listen(0)
    };
    // The same medium, with the same and with another store.
    for store in [place.sqlite(), "memory:".to_owned()] {
        let refusal = other(&store, &place.path("disk.img")).refusal();
        assert!(refusal.contains("disk.img is in use"), "{refusal}");
    }
    // The same unit on another medium: no lock proves that the first process is gone.
    let copy = image(&place, "copy.img", 1 << 20);
    disks.process.kill();
    let refusal = other(&place.sqlite(), &copy).refusal();
    assert!(refusal.contains("(epoch 1)") && refusal.contains("--takeover=1"), "{refusal}");
    let refusal = other(&place.sqlite(), &copy).arg("--takeover=2").refusal();
    assert!(refusal.contains("--takeover=1"), "{refusal}");
    let mut disks = other(&place.sqlite(), &copy).arg("--takeover=1").start();
    assert!(disks.log().contains("(epoch 2)"), "{}", disks.log());
    disks.process.stop();
    // It has released the unit.
    let disks = other(&place.sqlite(), &place.path("disk.img")).start();
    assert!(disks.log().contains("(epoch 3)"), "{}", disks.log());
}

#[test]
fn a_process_whose_unit_was_taken_over_closes_its_gate() {
    let place = Place::new();
    let mut former = Start::shared(&place).start();
    let mut vm1 = reserved(&former);
    let copy = image(&place, "copy.img", 1 << 20);
    let start = Start::with_control(&place, "other").store(&place.sqlite()).unit("shared", copy).listen(0);
    let successor = start.arg("--takeover=shared=1").start();
    assert_eq!(keys(&mut successor.session("shared", "vm1")), [1]);
    let answer = reserve(&mut vm1, REGISTER, 0, 1, 2);
    assert!(matches!(answer.sense, Some([2 | 0xb, ..])), "{answer:?}");
    assert_eq!(write_block(&mut vm1, 1, 1).sense.map(|sense| sense[0]), Some(2), "NOT READY");
    former.process.stop();
    assert!(former.log().contains("stays owned") || former.log().contains("owned by"), "{}", former.log());
    // The end of the former owner has changed nothing.
    assert_eq!(keys(&mut successor.session("shared", "vm2")), [1]);
}

#[test]
fn bad_media_are_refused_at_the_start() {
    let place = Place::new();
    let odd = image(&place, "odd.img", 1000);
    let empty = image(&place, "empty.img", 0);
    let start = |path: &Path| Start::new(&place).store(&place.sqlite()).unit("shared", path.to_owned()).listen(0);
    for (path, reason) in [
        (place.path("none.img").as_path(), "none.img"),
        (Path::new("/dev/null"), "/dev/null"),
        (Path::new("/"), "/"),
        (&odd, "1000 bytes, no multiple of the block size"),
        (&empty, "0 bytes, less than one block"),
    ] {
        let refusal = start(path).refusal();
        assert!(refusal.contains("cannot serve the unit shared on") && refusal.contains(reason), "{refusal}");
        assert!(refusal.matches("os error").count() <= 1, "{refusal}");
    }
    // A failed start leaves no owner behind.
    assert!(Start::shared(&place).start().log().contains("epoch"));
}

/// A file of settings with these units: name, further lines.
fn settings(place: &Place, units: &[(&str, &str)]) -> String {
    let mut text = format!("store = \"{}\"\n[[portal-group]]\naddresses = [\"127.0.0.1:0\"]\n", place.sqlite());
    for (name, more) in units {
        let path = image_once(place, name);
        text.push_str(&format!("[[unit]]\nname = \"{name}\"\npath = \"{path}\"\n{more}\n"));
    }
    text
}

fn image_once(place: &Place, name: &str) -> String {
    let path = place.path(&format!("{name}.img"));
    if !path.exists() {
        image(place, &format!("{name}.img"), 1 << 20);
    }
    path.display().to_string()
}

#[test]
fn a_reload_adds_and_removes_units_and_leaves_the_sessions_of_others() {
    let place = Place::new();
    let config = place.path("disk.toml");
    fs::write(&config, settings(&place, &[("one", ""), ("two", "")])).unwrap();
    let disks = Start::new(&place).arg(format!("--config={}", config.display())).start();
    let (mut one, mut two) = (disks.session("one", "vm1"), disks.session("two", "vm1"));
    let reload = |text: &str, log: &str| {
        let before = disks.log().matches(log).count();
        fs::write(&config, text).unwrap();
        disks.process.signal(Signal::HUP);
        eventually(log, || (disks.log().matches(log).count() > before).then_some(()));
    };

    reload(&settings(&place, &[("one", ""), ("three", "")]), "read the settings again: 2 units");
    assert_eq!(write_block(&mut one, 1, 1).status, GOOD, "its session goes on");
    disks.session("three", "vm1");
    let answer = two.try_receive();
    assert!(answer.is_none(), "its session ends: {answer:?}");
    assert!(disks.try_login("two", "vm1").is_err());
    // The lock and the ownership are free.
    let other =
        Start::with_control(&place, "other").store(&place.sqlite()).unit("two", place.path("two.img")).listen(0);
    drop(other.start());

    let broken = format!("{}\nsize = 3\n", settings(&place, &[]));
    reload(&broken, "nothing is changed");
    assert!(disks.log().contains("disk.toml:5:1: unknown field `size`"), "{}", disks.log());
    assert_eq!(write_block(&mut one, 1, 2).status, GOOD);

    let allowed = format!("allow = [\"{}\"]", initiator("vm2"));
    reload(&settings(&place, &[("one", &allowed)]), "read the settings again: 1 units");
    assert!(one.try_receive().is_none(), "the initiator may no longer use the unit");
    assert!(disks.try_login("one", "vm1").is_err());
    disks.session("one", "vm2");
}

#[test]
fn a_unit_of_a_target_with_others_is_removed_alone() {
    let place = Place::new();
    let config = place.path("disk.toml");
    let target = "target = \"iqn.2026-11.io.scsi-pr:array\"";
    let second = format!("{target}\nlun = 1");
    fs::write(&config, settings(&place, &[("one", target), ("two", &second)])).unwrap();
    let disks = Start::new(&place).arg(format!("--config={}", config.display())).start();
    let mut session = disks.session("array", "vm1");
    let luns = |session: &mut Initiator| session.read(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], 256).data[3] / 8;
    assert_eq!(luns(&mut session), 2);
    fs::write(&config, settings(&place, &[("one", target)])).unwrap();
    disks.process.signal(Signal::HUP);
    disks.process.wait_for_stderr("read the settings again: 1 units");
    assert_eq!(luns(&mut session), 1);
    assert_eq!(write_block(&mut session, 1, 1).sense, Some([6, 0x3f, 0x0e]), "REPORTED LUNS DATA HAS CHANGED");
    assert_eq!(write_block(&mut session, 1, 1).status, GOOD);
}

/// sd_notify(3): the states that a service manager sees.
#[test]
fn the_service_manager_learns_of_the_start_the_reload_and_the_stop() {
    let place = Place::new();
    let socket = std::os::unix::net::UnixDatagram::bind(place.path("notify")).unwrap();
    socket.set_read_timeout(Some(testing_support::DEADLINE)).unwrap();
    let mut disks = Start::shared(&place).env("NOTIFY_SOCKET", place.path("notify")).start();
    let next = || {
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).lines().next().unwrap_or_default().to_owned()
    };
    assert_eq!(next(), "READY=1");
    disks.process.signal(Signal::HUP);
    assert_eq!([next(), next()], ["RELOADING=1", "READY=1"]);
    disks.process.signal(Signal::TERM);
    assert_eq!(next(), "STOPPING=1");
    assert!(disks.process.wait().success());
}

#[test]
fn the_loser_of_a_preempt_writes_no_more_also_after_a_kill() {
    let place = Place::new();
    let mut disks = Start::shared(&place).start();
    let mut vm1 = reserved(&disks);
    let mut vm2 = disks.session("shared", "vm2");
    assert_eq!(reserve(&mut vm2, REGISTER, 0, 0, 2).status, GOOD);
    assert_eq!(write_block(&mut vm1, 9, 1).status, GOOD);
    assert_eq!(reserve(&mut vm2, PREEMPT, WERO, 2, 1).status, GOOD);
    disks.process.kill();
    let disks = Start::shared(&place).start();
    let mut vm1 = disks.session("shared", "vm1");
    // 2A/05, REGISTRATIONS PREEMPTED, is part of the record.
    let answer = write_block(&mut vm1, 9, 0xee);
    assert_eq!(answer.sense, Some([6, 0x2a, 5]));
    assert_eq!(write_block(&mut vm1, 9, 0xee).status, CONFLICT);
    assert_eq!(read_block(&mut disks.session("shared", "vm2"), 9), [1; BLOCK]);
}

#[test]
fn the_suite_of_libiscsi_passes_on_a_file_over_two_portal_groups() {
    let place = Place::new();
    image(&place, "disk.img", 64 << 20);
    let disks = Start::shared(&place).listen(0).start();
    let urls = [1, 2].map(|number| format!("iscsi://{}/{}/0", disks.portal_group(number), target("shared")));
    let Some(suite) = LibiscsiSuite::run(&urls.each_ref().map(String::as_str)) else { return };
    assert!(suite.ran > 200, "{}", suite.text);
    assert!(!suite.text.contains("Multipath unavailable"), "{}", suite.text);
    // Its GetLBAStatus.UnmapSingle takes the descriptor of another block for that of the block that it asks for, where a
    // physical block has several logical ones.
    let is_known = |test: &String| test.starts_with("Test: UnmapSingle");
    assert!(suite.failures.iter().all(is_known), "{:?}: {}", suite.failures, suite.text);
}
