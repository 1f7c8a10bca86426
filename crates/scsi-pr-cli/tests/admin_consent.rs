//! Changes to which an administrator agreed, while machines change the same reservations: script(1) gives the terminal.
#![forbid(unsafe_code)]

mod common;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use common::admin::{Way, agree_after, made_store, scsi_pr};
use common::disk::{GOOD, Start, image, initiator, keys};
use common::{PROGRAM, Place};
use serde_json::{Value, json};

const CHANGED: &str = "have changed meanwhile";

/// A store, and the path of a unit.
fn store(place: &Place) -> (String, PathBuf) {
    (made_store(place), place.path("disk.img"))
}

#[track_caller]
fn run(way: &Way, command: &str, device: &Path) {
    let ended = way.run(command, device);
    assert_eq!(ended.code, 0, "{command}: {ended:?}");
}

/// The keys and the type of the reservation.
#[track_caller]
fn state(way: &Way, device: &Path) -> (Vec<u64>, Value) {
    let (json, _) = way.run("show --json", device).json();
    let unit = &json["units"][0];
    let key = |one: &Value| u64::from_str_radix(&one["key"].as_str().unwrap()[2..], 16).unwrap();
    (unit["registrations"].as_array().unwrap().iter().map(key).collect(), unit["reservation"]["type"].clone())
}

#[test]
fn eviction_is_refused_when_another_machine_registers_the_same_key_meanwhile() {
    let place = Place::new();
    let (store, disk) = store(&place);
    let [vma, vmb, vmc] = ["vma", "vmb", "vmc"].map(|name| Way::store(&store, name));
    run(&vma, "register --key=1", &disk);
    run(&vma, "reserve --key=1 --type=wero", &disk);
    run(&vmb, "register --key=2", &disk);
    let (code, text) = agree_after(["evict", "vma", "--store", &store], || run(&vmc, "register --key=1", &disk));
    assert!(code == 3 && text.contains(CHANGED), "{code}: {text}");
    assert_eq!(state(&vmb, &disk).0, [1, 2, 1]);
    // A second eviction names the reason.
    let ended = scsi_pr(["evict", "vma", "--yes", "--store", &store]);
    assert!(ended.refusal(1).contains("the same key"), "{ended:?}");
}

#[test]
fn eviction_of_the_last_registrant_is_refused_when_another_one_registers_meanwhile() {
    let place = Place::new();
    let (store, disk) = store(&place);
    let [vma, vmb] = ["vma", "vmb"].map(|name| Way::store(&store, name));
    run(&vma, "register --key=1", &disk);
    run(&vma, "reserve --key=1 --type=wero", &disk);
    let (code, text) = agree_after(["evict", "vma", "--store", &store], || run(&vmb, "register --key=2", &disk));
    assert!(code == 3 && text.contains(CHANGED), "{code}: {text}");
    assert_eq!(state(&vmb, &disk), (vec![1, 2], json!("write-exclusive-registrants-only")));
    let (code, text) = agree_after(["evict", "vma", "--store", &store], || {});
    assert_eq!(code, 0, "{text}");
    assert_eq!(state(&vmb, &disk), (vec![2], json!("write-exclusive-registrants-only")));
}

#[test]
fn eviction_is_refused_when_the_machine_logs_in_meanwhile() {
    let place = Place::new();
    let disks = Start::shared(&place).start();
    let mut vm1 = disks.session("shared", "vm1");
    assert_eq!(common::disk::reserve(&mut vm1, 0, 0, 0, 1).status, GOOD);
    drop(vm1);
    let control = place.path("control").display().to_string();
    testing_support::eventually("the end of the session", || {
        let units = disks.control().ask(r#"{"request":"units"}"#);
        (units["units"][0]["sessions"] == json!([])).then_some(())
    });
    let mut back = None;
    let (code, text) = agree_after(["evict", &initiator("vm1"), "--disk", &control], || {
        back = Some(disks.session("shared", "vm1"));
    });
    assert!(code == 3 && text.contains("session"), "{code}: {text}");
    assert_eq!(keys(&mut back.unwrap()), [1]);
}

/// The gate itself checks, so that no change fits between the check and the eviction.
#[test]
fn change_with_a_condition_that_does_not_hold_is_refused_by_the_disk() {
    let place = Place::new();
    let disks = Start::shared(&place).start();
    let way = |name: &str| Way::disk(&place.path("control"), &initiator(name));
    run(&way("vm1"), "register --key=1", Path::new("shared"));
    let mut control = disks.control();
    let mut unregister = |conditions: String| {
        let list = format!("{:016x}{:032x}0000000000000000", 1, 0)[..48].to_owned();
        let name = initiator("vm1");
        let cdb = "5f000000000000001800";
        let request = format!(
            r#"{{"request":"execute","unit":"shared","initiator":"{name}","cdb":"{cdb}","data":"{list}",{conditions}}}"#
        );
        control.ask(&request)
    };
    let expected = |generation: u32| format!(r#""expected-reservation":"{generation:08x}00000000""#);
    assert_eq!(unregister(expected(0)), json!({ "unmet": "reservation" }));
    assert_eq!(unregister(expected(2)), json!({ "unmet": "reservation" }));
    let session = disks.session("shared", "vm1");
    let without_session = format!(r#""without-session":"{}""#, initiator("vm1"));
    assert_eq!(unregister(without_session.clone()), json!({ "unmet": "session" }));
    assert_eq!(unregister(format!("{},{without_session}", expected(1))), json!({ "unmet": "session" }));
    assert_eq!(state(&way("vm1"), Path::new("shared")).0, [1]);
    drop(session);
    testing_support::eventually("the end of the session", || {
        (unregister(format!("{},{without_session}", expected(1)))["status"] == 0).then_some(())
    });
    assert_eq!(state(&way("vm1"), Path::new("shared")).0, [0_u64; 0]);
}

/// RESERVE and RELEASE do not change the generation, and the two machines have one key.
fn move_reservation(from: &Way, to: &Way, device: &Path) {
    run(from, "release --key=1", device);
    run(to, "reserve --key=1 --type=ea", device);
}

#[test]
fn change_is_refused_when_another_machine_with_the_same_key_holds_the_reservation_meanwhile() {
    let place = Place::new();
    let socket = |name: &str| place.path(&format!("{name}.sock"));
    let _server = place.serve(&place.sqlite()).listen("vma", socket("vma")).listen("vmb", socket("vmb")).start();
    let disk = place.path("disk.img");
    let [vma, vmb] = ["vma", "vmb"].map(|name| Way::via(&socket(name)));
    let [vma_by_store, vmb_by_store] = ["vma", "vmb"].map(|name| Way::store(&place.sqlite(), name));
    [&vma, &vmb].iter().for_each(|way| run(way, "register --key=1", &disk));
    run(&vma, "reserve --key=1 --type=ea", &disk);
    for (asks, from, to) in [(&vmb, &vma, &vmb), (&vmb_by_store, &vmb, &vma), (&vma_by_store, &vma, &vmb)] {
        let (code, text) = asks.agree_after("clear --key=1", &disk, || move_reservation(from, to, &disk));
        assert!(code == 3 && text.contains(CHANGED), "{code}: {text}");
    }
    assert_eq!(state(&vmb, &disk), (vec![1, 1], json!("exclusive-access")));
}

/// Whether a request goes on to the disk.
#[derive(PartialEq)]
enum Fate {
    Forwarded,
    Lost,
}

/// A control socket in front of a disk. `judge` sees each request of a change first; at a lost one, the connection is closed.
fn socket_in_front_of(disk: PathBuf, path: &Path, judge: impl Fn(&str) -> Fate + Send + 'static) {
    let listener = UnixListener::bind(path).unwrap();
    let serve = move |mut stream: UnixStream| {
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        if line.contains(r#""cdb":"5f"#) && judge(&line) == Fate::Lost {
            return;
        }
        let mut backend = UnixStream::connect(&disk).unwrap();
        backend.write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        BufReader::new(backend).read_line(&mut answer).unwrap();
        let _ = stream.write_all(answer.as_bytes());
    };
    thread::spawn(move || listener.incoming().flatten().for_each(serve));
}

#[test]
fn change_is_refused_by_the_disk_when_another_machine_with_the_same_key_holds_the_reservation() {
    let place = Place::new();
    let _disks = Start::shared(&place).start();
    let shared = Path::new("shared");
    let way = |name: &str| Way::disk(&place.path("control"), &initiator(name));
    let [vma, vmb] = ["vma", "vmb"].map(way);
    [&vma, &vmb].iter().for_each(|way| run(way, "register --key=1", shared));
    run(&vma, "reserve --key=1 --type=ea", shared);
    let proxy = place.path("proxy");
    let [from, to] = ["vma", "vmb"].map(way);
    // Between the last reading of a command and its change.
    socket_in_front_of(place.path("control"), &proxy, move |_| {
        from.run("release --key=1 --yes", shared);
        to.run("reserve --key=1 --type=ea", shared);
        Fate::Forwarded
    });
    let ended = Way::disk(&proxy, &initiator("vmb")).run("clear --key=1 --yes", shared);
    assert!(ended.code == 3 && ended.stderr.contains(CHANGED), "{ended:?}");
    assert_eq!(state(&vmb, shared), (vec![1, 1], json!("exclusive-access")));
    // Now vmb holds it, and stays the holder.
    let ended = Way::disk(&proxy, &initiator("vmb")).run("clear --key=1 --yes", shared);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(state(&vmb, shared), (vec![], Value::Null));
}

#[test]
fn preempt_is_refused_when_victims_or_type_change_meanwhile() {
    let place = Place::new();
    let socket = |name: &str| place.path(&format!("{name}.sock"));
    let mut start = place.serve(&place.sqlite());
    for name in ["vma", "vmb", "vmc"] {
        start = start.listen(name, socket(name));
    }
    let _server = start.start();
    let disk = place.path("disk.img");
    let by_store = ["vma", "vmb", "vmc"].map(|name| Way::store(&place.sqlite(), name));
    let by_helper = ["vma", "vmb", "vmc"].map(|name| Way::via(&socket(name)));
    for ways in [&by_store, &by_helper] {
        let [vma, vmb, vmc] = ways;
        run(vma, "register --key=1", &disk);
        run(vmb, "register --key=2", &disk);
        // The generation stays.
        let reserve = || run(vma, "reserve --key=1 --type=ea", &disk);
        let (code, text) = vmb.agree_after("preempt --key=2 --victim=1", &disk, reserve);
        assert!(code == 3 && text.contains(CHANGED), "{code}: {text}");
        let register = || run(vmc, "register --key=1", &disk);
        let (code, text) = vmb.agree_after("preempt --key=2 --victim=1", &disk, register);
        assert!(code == 3 && text.contains(CHANGED), "{code}: {text}");
        assert_eq!(state(vmb, &disk), (vec![1, 2, 1], json!("exclusive-access")));
        let (code, text) = vmb.agree_after("preempt --key=2 --victim=1", &disk, || {});
        assert_eq!(code, 0, "{text}");
        assert_eq!(state(vmb, &disk), (vec![2], json!("exclusive-access")));
        run(vmb, "clear --key=2 --yes", &disk);
    }
}

#[test]
fn clear_and_move_are_refused_when_the_reservation_changes_meanwhile() {
    let place = Place::new();
    let _disks = Start::shared(&place).start();
    let [vma, vmb] = ["vma", "vmb"].map(|name| Way::disk(&place.path("control"), &initiator(name)));
    let disk = Path::new("shared");
    run(&vma, "register --key=1", disk);
    run(&vma, "reserve --key=1 --type=wero", disk);
    let (code, text) = vma.agree_after("clear --key=1", disk, || run(&vmb, "register --key=2", disk));
    assert!(code == 3 && text.contains(CHANGED), "{code}: {text}");
    let to = format!("move --key=1 --to={} --to-key=7", initiator("vmb"));
    let (code, text) = vma.agree_after(&to, disk, || run(&vmb, "register --key=3 --old-key=2", disk));
    assert!(code == 3 && text.contains(CHANGED), "{code}: {text}");
    assert_eq!(state(&vma, disk), (vec![1, 3], json!("write-exclusive-registrants-only")));
    let (code, text) = vma.agree_after(&to, disk, || {});
    assert_eq!(code, 0, "{text}");
    assert_eq!(state(&vma, disk).0, [1, 7]);
}

#[test]
fn release_and_unregister_as_another_machine_need_consent() {
    let place = Place::new();
    let disks = Start::shared(&place).start();
    let vma = Way::disk(&place.path("control"), &initiator("vma"));
    let disk = Path::new("shared");
    run(&vma, "register --key=1", disk);
    run(&vma, "reserve --key=1 --type=wero", disk);
    let session = disks.session("shared", "vma");
    for command in ["release --key=1", "unregister --key=1", "unregister"] {
        let ended = vma.run(command, disk);
        let names_all = [&initiator("vma"), "Write Exclusive", "session", "--yes"];
        assert!(ended.code == 2 && names_all.iter().all(|part| ended.stderr.contains(*part)), "{ended:?}");
    }
    assert_eq!(state(&vma, disk), (vec![1], json!("write-exclusive-registrants-only")));
    drop(session);
    run(&vma, "release --key=1 --yes", disk);
    assert_eq!(state(&vma, disk), (vec![1], Value::Null));
    run(&vma, "unregister --yes", disk);
    assert_eq!(state(&vma, disk).0, [0_u64; 0]);
}

#[test]
fn eviction_that_fails_after_a_first_change_is_partly_done() {
    let place = Place::new();
    let start = Start::new(&place).store(&place.sqlite()).unit("a", place.path("disk.img"));
    let _disks = start.unit("b", image(&place, "b.img", 1 << 20)).listen(0).start();
    let vma = Way::disk(&place.path("control"), &initiator("vma"));
    ["a", "b"].iter().for_each(|unit| run(&vma, "register --key=1", Path::new(unit)));
    let proxy = place.path("proxy");
    socket_in_front_of(place.path("control"), &proxy, |change| match change.contains(r#""unit":"b""#) {
        true => Fate::Lost,
        false => Fate::Forwarded,
    });
    let ended = scsi_pr(["evict", &initiator("vma"), "--yes", "--json", "--disk", proxy.to_str().unwrap()]);
    let (json, code) = ended.json();
    assert_eq!((code, &json["units"][1]["exit-code"]), (7, &json!(6)), "{ended:?}");
    assert_eq!(json["units"][0]["removed"].as_array().unwrap().len(), 1);
    let last = ended.stderr.lines().last().unwrap();
    assert!(last.contains("partly done") && last.contains("from a"), "{ended:?}");
    assert_eq!(["a", "b"].map(|unit| state(&vma, Path::new(unit)).0), [vec![], vec![1]]);
}

#[test]
fn unit_that_cannot_be_planned_stops_the_eviction_before_the_question() {
    let place = Place::new();
    let (store, disk) = store(&place);
    run(&Way::store(&store, "vma"), "register --key=1", &disk);
    let [disk_name, missing] = [&disk, &place.path("missing")].map(|path| path.display().to_string());
    let ended = scsi_pr(["evict", "vma", &disk_name, &missing, "--store", &store, "--yes"]);
    assert!(ended.refusal(1).contains("missing"), "{ended:?}");
    assert_eq!(state(&Way::store(&store, "vma"), &disk).0, [1]);
    // One unit by two names is one unit.
    let ended = scsi_pr(["evict", "vma", &disk_name, &disk_name, "--store", &store, "--yes"]);
    assert_eq!((ended.code, ended.stdout.lines().count()), (0, 1), "{ended:?}");
}

#[test]
fn output_that_fails_stops_no_eviction_and_hides_no_change() {
    for format in [&[][..], &["--json"]] {
        let place = Place::new();
        let (store, disk) = store(&place);
        let disks = [disk, image(&place, "other.img", 1 << 20)];
        let vma = Way::store(&store, "vma");
        disks.iter().for_each(|disk| run(&vma, "register --key=1", disk));
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut command = Command::new(PROGRAM);
        command.args(["evict", "vma", "--yes", "--store", &store]).args(format).args(&disks);
        let output = command.stdin(Stdio::null()).stdout(full).stderr(Stdio::piped()).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        let last = stderr.lines().last().unwrap();
        assert!(output.status.code() == Some(1) && last.contains("the change is made"), "{stderr}");
        assert!(last.contains("disk.img") && last.contains("other.img") && last.contains("standard output"), "{last}");
        disks.iter().for_each(|disk| assert_eq!(state(&vma, disk).0, [0_u64; 0]));
    }
}

#[test]
fn change_of_a_stopped_disk_by_its_store_keeps_unit_attentions() {
    let place = Place::new();
    let mut disks = Start::shared(&place).start();
    let way = |name: &str| Way::disk(&place.path("control"), &initiator(name));
    let shared = Path::new("shared");
    for (name, key) in [("vm1", 1), ("vm2", 2), ("vm3", 3)] {
        run(&way(name), &format!("register --aptpl --key={key}"), shared);
    }
    // vm3 has no session, so the record keeps its unit attention.
    run(&way("vm2"), "preempt --key=2 --victim=3 --yes", shared);
    run(&way("vm1"), "reserve --key=1 --type=wero", shared);
    assert!(disks.process.stop().success());
    let ended = scsi_pr(["evict", &initiator("vm1"), "--yes", "--store", &place.sqlite()]);
    assert_eq!(ended.code, 0, "{ended:?}");
    let disks = Start::shared(&place).start();
    for name in ["vm1", "vm3"] {
        let (_, attentions) = disks.session_with_attentions("shared", name);
        assert!(attentions.contains(&[6, 0x2a, 5]), "{name}: {attentions:x?}");
    }
}
