//! `scsi-pr evict` and `scsi-pr watch`, on real servers, disks and stores.
#![forbid(unsafe_code)]

mod common;

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::admin::{Way, answer_after, made_store, scsi_pr};
use common::disk::{CONFLICT, Disks, GOOD, Start, initiator, keys, write_block};
use common::{Machine, PROGRAM, Place, good, register};
use scsi_pr::{Key, ReserveOut, Type};
use serde_json::{Value, json};
use testing_support::{Launcher, eventually};

const WERO: u8 = 5;
const REGISTER: u8 = 0;
const RESERVE: u8 = 1;

fn wero(key: u64) -> ReserveOut {
    ReserveOut::Reserve { key: Key(key), reservation_type: Type::WriteExclusiveRegistrantsOnly }
}

#[test]
fn evicted_holder_of_a_store_is_followed_by_a_registrant() {
    let place = Place::new();
    let store = place.sqlite();
    let sockets = ["vm1", "vm2"].map(|name| place.path(name));
    let _server = place.serve(&store).listen("vm1", sockets[0].clone()).listen("vm2", sockets[1].clone()).start();
    let [vm1, vm2] = [0, 1].map(|index| Machine::new(&place, &sockets[index]));
    assert_eq!((vm1.out(&register(0, 1)), vm2.out(&register(0, 2)), vm1.out(&wero(1))), (good(), good(), good()));

    let ended = scsi_pr(["evict", "vm1", "--store", &store]);
    assert!(ended.code == 2 && ended.stderr.contains("vm2 preempts key 0x0000000000000001"), "{ended:?}");
    assert_eq!(vm2.keys().keys, [Key(1), Key(2)], "nothing was changed without consent");
    let ended = scsi_pr(["evict", "vm1", "--store", &store, "--yes", "--json"]);
    let (json, code) = ended.json();
    let unit = &json["units"][0];
    assert_eq!((code, &json["initiator"]), (0, &json!("vm1")), "{ended:?}");
    assert_eq!(unit["removed"], json!([{ "key": "0x0000000000000001", "preempted-by": "vm2" }]));
    assert_eq!((vm2.keys().keys, vm2.holder()), (vec![Key(2)], Some(2)));
    // The name, the unit, the key, and the user.
    let log = ended.stderr.lines().find(|line| line.contains("evict vm1 from")).unwrap();
    let name = unit["unit"].as_str().unwrap();
    assert!(log.contains(name) && log.contains("key 0x0000000000000001") && log.contains("by user "), "{log}");

    let ended = scsi_pr(["evict", "vm1", "--store", &store, "--yes"]);
    assert!(ended.refusal(1).contains("none of the units"), "{ended:?}");
    // The last registrant takes the reservation with it, after saying so.
    let ended = scsi_pr(["evict", "vm2", "--store", &store, "--yes"]);
    assert!(ended.code == 0 && ended.stderr.contains("releases the reservation"), "{ended:?}");
    assert!(ended.stdout.contains("not reserved"), "{ended:?}");
    assert_eq!(vm1.keys().keys, []);
}

#[test]
fn initiator_is_evicted_from_every_unit_of_a_store() {
    let place = Place::new();
    let store = format!("dir:{}", place.path("store").display());
    std::fs::write(place.path("other.img"), [0; 4096]).unwrap();
    drop(place.serve(&store).listen("vm1", place.path("vm1")).start());
    let devices = ["disk.img", "other.img"].map(|name| place.path(name));
    for (name, key) in [("vm1", 1), ("vm2", 2)] {
        for device in &devices {
            assert_eq!(Way::store(&store, name).run(&format!("register --key={key}"), device).code, 0);
        }
    }
    let left = |device: &std::path::PathBuf| Way::store(&store, "vm2").run("keys --json", device).json().0;
    let ended = scsi_pr(["evict", "vm2", "--store", &store, "--yes", devices[1].to_str().unwrap()]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(left(&devices[0])["units"][0]["keys"].as_array().unwrap().len(), 2);
    let ended = scsi_pr(["evict", "vm1", "--store", &store, "--yes"]);
    assert_eq!((ended.code, ended.stdout.lines().count()), (0, 2), "{ended:?}");
    assert_eq!(left(&devices[0])["units"][0]["keys"], json!([{ "key": "0x0000000000000002" }]));
    assert_eq!(left(&devices[1])["units"][0]["keys"], json!([]));
}

fn evict(disks: &Disks, place: &Place, name: &str) -> common::admin::Ended {
    assert!(disks.process.process().is_running());
    scsi_pr(["evict", &initiator(name), "--yes", "--disk", place.path("control").to_str().unwrap()])
}

#[test]
fn machine_is_evicted_from_a_disk_once_it_has_no_session() {
    let place = Place::new();
    let disks = Start::shared(&place).start();
    let mut vm1 = disks.session("shared", "vm1");
    let mut vm2 = disks.session("shared", "vm2");
    for (session, key) in [(&mut vm1, 1), (&mut vm2, 2)] {
        assert_eq!(common::disk::reserve(session, REGISTER, 0, 0, key).status, GOOD);
    }
    assert_eq!(common::disk::reserve(&mut vm1, RESERVE, WERO, 1, 0).status, GOOD);
    assert!(evict(&disks, &place, "vm1").refusal(1).contains("session"));
    assert_eq!(keys(&mut vm2), [1, 2]);

    drop(vm1);
    let ended =
        eventually("the end of the session", || Some(evict(&disks, &place, "vm1")).filter(|ended| ended.code == 0));
    assert!(ended.stdout.contains("held with key 0x0000000000000002"), "{ended:?}");
    assert_eq!(keys(&mut vm2), [2]);
    assert_eq!(write_block(&mut vm2, 1, 7).status, GOOD);
    // The machine that comes back learns it, and cannot write.
    let (mut vm1, attentions) = disks.session_with_attentions("shared", "vm1");
    assert!(attentions.contains(&[6, 0x2a, 5]), "{attentions:x?}");
    assert_eq!(write_block(&mut vm1, 1, 8).status, CONFLICT);
    assert!(disks.log().contains("by the control socket"), "{}", disks.log());
}

#[test]
fn watch_prints_each_change_and_ends_with_its_reader() {
    let place = Place::new();
    let store = made_store(&place);
    let mut watch = Command::new(PROGRAM)
        .args(["watch", "--json", "--interval=0.1", "--store", &store])
        .arg(place.path("disk.img"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["units"][0]["registrations"], json!([]));
    let vm1 = Way::store(&store, "vm1");
    assert_eq!(vm1.run("register --key=7", place.path("disk.img")).code, 0);
    assert_eq!(next()["units"][0]["registrations"][0]["key"], "0x0000000000000007");
    assert_eq!(vm1.run("reserve --key=7 --type=we", place.path("disk.img")).code, 0);
    assert_eq!(next()["units"][0]["reservation"]["type"], "write-exclusive");
    drop(lines);
    assert!(watch.wait().unwrap().success());
}

#[test]
fn eviction_has_a_record_in_the_journal() {
    testing_support::require_root!("a mount namespace");
    let place = Place::new();
    let store = made_store(&place);
    assert_eq!(Way::store(&store, "vm1").run("register --key=7", place.path("disk.img")).code, 0);
    std::fs::create_dir(place.path("journal")).unwrap();
    let journal = UnixDatagram::bind(place.path("journal/socket")).unwrap();
    journal.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let script = format!(
        "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && mount --bind {} /run/systemd/journal && exec \"$@\"",
        place.path("journal").display()
    );
    let evict = [PROGRAM, "evict", "vm1", "--store", &store, "--yes"];
    let mut launcher = Launcher::new("unshare");
    launcher.args(["--mount", "--propagation=private", "sh", "-c", &script, "sh"]).args(evict);
    let (code, _, stderr) = launcher.stdin(testing_support::null()).outcome();
    assert_eq!(code, Some(0), "{stderr}");
    let mut record = [0; 8192];
    let length = journal.recv(&mut record).unwrap();
    let record = String::from_utf8_lossy(&record[..length]);
    for part in
        ["MESSAGE=evict vm1 from", "SCSI_PR_INITIATOR=vm1", "SCSI_PR_KEY=0x0000000000000007", "SCSI_PR_USER=user 0"]
    {
        assert!(record.contains(part), "{part}: {record}");
    }
}

/// script(1) gives the command a terminal.
#[test]
fn question_on_a_terminal_is_answered_before_the_change() {
    let place = Place::new();
    let store = made_store(&place);
    let vm1 = Way::store(&store, "vm1");
    assert_eq!(vm1.run("register --key=7", place.path("disk.img")).code, 0);
    let disk = place.path("disk.img").display().to_string();
    for (answer, code, keys_left) in [("n", 1, 1), ("", 1, 1), ("y", 0, 0)] {
        let clear = ["clear", &disk, "--key=7", "--store", &store, "--as=vm1"];
        let (ended, text) = answer_after(clear, || {}, answer);
        assert_eq!(ended, code, "{answer:?}: {text}");
        assert!(text.contains("Continue?") && text.contains("vm1 (key 0x0000000000000007"), "{text}");
        let (json, _) = vm1.run("keys --json", place.path("disk.img")).json();
        assert_eq!(json["units"][0]["keys"].as_array().unwrap().len(), keys_left, "{answer:?}");
    }
}
