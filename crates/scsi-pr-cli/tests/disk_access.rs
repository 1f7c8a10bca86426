//! The users of a disk of `scsi-pr disk`: CHAP, lists of initiators, the control socket; and the rights of the process.
#![forbid(unsafe_code)]

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use common::Place;
use common::disk::*;
use serde_json::json;
use testing_support::eventually;

const CHAP: &str = r#"
[[account]]
name = "one"
secret = "secret of vm one"
initiators = ["iqn.2001-04.com.example:vm1"]

[[account]]
name = "two"
secret = "secret of vm two"
initiators = ["iqn.2001-04.com.example:vm2"]
"#;

/// The CHAP file, which its owner alone may read.
fn chap(place: &Place, text: &str) -> PathBuf {
    let path = place.path("chap.toml");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    path
}

fn with_chap(place: &Place) -> Start {
    Start::shared(place).arg(format!("--chap={}", chap(place, CHAP).display()))
}

#[test]
fn an_account_logs_in_with_its_secret_and_as_its_initiators_alone() {
    let place = Place::new();
    let disks = with_chap(&place).start();
    let Some(right) = disks.discover("vm1", "one%secret of vm one@") else { return };
    assert_eq!(right, Ok(vec![target("shared")]));
    for (initiator, account) in [
        ("vm1", ""),
        ("vm1", "one%secret of vm two@"),
        // The account of another machine.
        ("vm1", "two%secret of vm two@"),
        ("vm3", "one%secret of vm one@"),
        ("vm1", "none%secret of vm one@"),
    ] {
        let refused = disks.discover(initiator, account).unwrap();
        assert!(refused.is_err(), "{initiator} {account}: {refused:?}");
    }
    assert!(disks.try_login("shared", "vm1").is_err(), "without CHAP");
    assert!(!disks.log().contains("secret of"), "{}", disks.log());
}

#[test]
fn a_reload_changes_accounts() {
    let place = Place::new();
    let disks = with_chap(&place).start();
    let discover = |account| disks.discover("vm1", account);
    let Some(before) = discover("one%secret of vm one@") else { return };
    assert!(before.is_ok());
    let reload = |text: &str, log: &str| {
        chap(&place, text);
        disks.process.signal(rustix::process::Signal::HUP);
        disks.process.wait_for_stderr(log);
    };
    reload(&CHAP.replace("secret of vm one", "short"), "nothing is changed");
    assert!(discover("one%secret of vm one@").unwrap().is_ok());
    reload(&CHAP.replace("secret of vm one", "another secret of one"), "read the settings again");
    assert!(discover("one%secret of vm one@").unwrap().is_err());
    assert!(discover("one%another secret of one@").unwrap().is_ok());
}

#[test]
fn a_chap_file_that_others_may_read_or_with_a_short_secret_is_refused() {
    let place = Place::new();
    let start = |text: &str, mode| {
        let path = chap(&place, text);
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        Start::shared(&place).arg(format!("--chap={}", path.display())).refusal()
    };
    let refusal = start(CHAP, 0o640);
    assert!(refusal.contains("chmod 600"), "{refusal}");
    let refusal = start(&CHAP.replace("secret of vm two", "eleven byte"), 0o600);
    assert!(refusal.contains("chap.toml:9:10: a CHAP secret has at least 12 bytes"), "{refusal}");
    assert!(!refusal.contains("eleven byte"), "{refusal}");
}

#[test]
fn without_chap_only_loopback_is_served_with_a_warning() {
    let place = Place::new();
    let start = || Start::new(&place).store(&place.sqlite()).unit("shared", place.path("disk.img"));
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:3260", "127.0.0.1:0,192.0.2.1:0"] {
        let refusal = start().arg(format!("--listen={address}")).refusal();
        assert!(refusal.contains("can be reached from other hosts"), "{refusal}");
    }
    let disks = start().listen(0).start();
    assert_eq!(disks.log().matches("any local user can pose as any initiator").count(), 1);
    drop(disks);
    let disks = with_chap(&place).start();
    assert!(!disks.log().contains("can pose as"));
}

#[test]
fn initiators_that_are_not_allowed_discover_and_use_nothing() {
    let place = Place::new();
    let disks = Start::shared(&place).arg(format!("--allow={}", initiator("vm1"))).start();
    disks.session("shared", "vm1");
    assert_eq!(disks.try_login("shared", "vm2").err(), Some(0x0203), "NOT FOUND");
    let Some(allowed) = disks.discover("vm1", "") else { return };
    assert_eq!(allowed, Ok(vec![target("shared")]));
    assert_eq!(disks.discover("vm2", "").unwrap(), Ok(Vec::new()));
}

#[test]
fn each_listen_is_a_target_port_of_its_own() {
    let place = Place::new();
    let disks = Start::shared(&place).listen(0).start();
    let log = eventually("both ports", || Some(disks.log()).filter(|log| log.contains("(portal group 2)")));
    let second = log.lines().find(|line| line.contains("(portal group 2)")).unwrap();
    let second = second.split_once("on ").unwrap().1.split_once(' ').unwrap().0.parse().unwrap();
    let mut first = disks.session("shared", "vm1");
    assert_eq!(reserve(&mut first, 0, 0, 0, 1).status, GOOD);
    // The same initiator at another port is another nexus, which is not registered.
    let mut other = testing_support::Initiator::connect(second, &target("shared")).log_in(&initiator("vm1"));
    assert_eq!(other.read(&[0; 6], 0).sense, Some([6, 0x29, 0]));
    assert_eq!(reserve(&mut other, 1, 5, 1, 0).status, CONFLICT);
    assert_eq!(reserve(&mut first, 1, 5, 1, 0).status, GOOD);
}

#[test]
fn all_tg_pt_registers_at_each_listen() {
    let place = Place::new();
    let disks = Start::shared(&place).listen(0).start();
    let mut first = disks.session("shared", "vm1");
    let (cdb, mut list) = reserve_out(0, 0, 0, 1);
    list[20] |= 0x04; // ALL_TG_PT
    assert_eq!(first.write(&cdb, &list).status, GOOD);
    let address = disks.portal_group(2);
    let mut second = testing_support::Initiator::connect(address, &target("shared")).log_in(&initiator("vm1"));
    assert_eq!(second.read(&[0; 6], 0).sense, Some([6, 0x29, 0]));
    assert_eq!(reserve(&mut second, 1, 5, 1, 0).status, GOOD);
}

#[test]
fn control_socket_registers_at_no_missing_target_port() {
    let place = Place::new();
    let disks = Start::shared(&place).listen(0).start();
    let (cdb, list) = (hex(&reserve_out(0, 0, 0, 1).0), hex(&reserve_out(0, 0, 0, 1).1));
    let register = |port: u16| {
        disks.control().ask(&format!(
            r#"{{"request":"execute","unit":"shared","initiator":"{}","target-port":{port},"cdb":"{cdb}","data":"{list}"}}"#,
            initiator("vm1")
        ))
    };
    assert_eq!(register(2)["status"], json!(0));
    assert!(register(3)["error"].as_str().unwrap().contains("no target port 3"));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_administrator_sees_units_and_sessions() {
    let place = Place::new();
    let disks = Start::shared(&place).start();
    let _session = disks.session("shared", "vm1");
    let answer = disks.control().ask(r#"{"request":"units"}"#);
    let unit = &answer["units"][0];
    assert_eq!((&unit["name"], &unit["target"], &unit["lun"]), (&json!("shared"), &json!(target("shared")), &json!(0)));
    assert_eq!((&unit["bytes"], &unit["epoch"]), (&json!(1 << 20), &json!(1)));
    assert_eq!(unit["sessions"], json!([{"initiator": initiator("vm1"), "target-port": 1}]));
    assert!(unit["naa"].as_str().is_some_and(|naa| naa.len() == 16 && naa.starts_with('3')), "{unit}");
}

#[test]
fn a_preempt_by_the_control_socket_is_enforced_and_takes_no_attention_from_the_initiator() {
    let place = Place::new();
    let disks = Start::shared(&place).start();
    let mut vm1 = disks.session("shared", "vm1");
    for (action, kind, key, new) in [(0, 0, 0, 1), (1, 5, 1, 0)] {
        assert_eq!(reserve(&mut vm1, action, kind, key, new).status, GOOD);
    }
    let mut control = disks.control();
    let mut change = |action, kind, key, new| {
        let (cdb, list) = reserve_out(action, kind, key, new);
        control.execute("admin", &cdb, &list)["status"].clone()
    };
    assert_eq!(change(1, 5, 9, 0), json!(CONFLICT), "it is not registered");
    assert_eq!(change(0, 0, 0, 9), json!(GOOD));
    assert_eq!(change(4, 5, 9, 1), json!(GOOD));
    // The administrator looks at the keys as the initiator that was preempted.
    let answer = disks.control().execute("vm1", &READ_KEYS, &[]);
    assert!(answer["data"].as_str().is_some_and(|data| data.ends_with("0000000000000009")), "{answer}");
    assert_eq!(write_block(&mut vm1, 1, 1).sense, Some([6, 0x2a, 5]), "it learns of the preempt");
    assert_eq!(write_block(&mut vm1, 1, 1).status, CONFLICT);
}

#[test]
fn malformed_requests_have_an_error_and_the_control_socket_is_bounded() {
    let place = Place::new();
    let disks = Start::shared(&place).start();
    let mut control = disks.control();
    for request in [
        "",
        "units",
        r#"{"request":"other"}"#,
        r#"{"request":"units","more":1}"#,
        r#"{"request":"execute","unit":"none","initiator":"iqn.a.b:c","cdb":"5e000000000000020000"}"#,
        r#"{"request":"execute","unit":"shared","initiator":"vm1","cdb":"5e000000000000020000"}"#,
        r#"{"request":"execute","unit":"shared","initiator":"iqn.a.b:c","cdb":"28000000000000000100"}"#,
        r#"{"request":"execute","unit":"shared","initiator":"iqn.a.b:c","cdb":"5f000000000000001800","data":"00"}"#,
        r#"{"request":"execute","unit":"shared","initiator":"iqn.a.b:c","cdb":"5e0"}"#,
        r#"{"request":"read","unit":"none","action":3}"#,
        r#"{"request":"read","unit":"shared","action":4}"#,
    ] {
        let answer = control.ask(request);
        assert!(answer["error"].is_string(), "{request}: {answer}");
    }
    let long = "x".repeat(1 << 20);
    control.send(&long);
    assert!(control.receive().contains("at most 65536 bytes") || control.receive().is_empty());
    assert!(control.receive().is_empty(), "the connection is closed");

    let path = place.path("control");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let idle: Vec<_> = (0..8).map(|_| UnixStream::connect(&path).unwrap()).collect();
    // The one over the limit has no answer; a later one has.
    eventually("a refusal", || {
        let mut ninth = disks.control();
        ninth.send("{\"request\":\"units\"}\n");
        ninth.receive().is_empty().then_some(())
    });
    drop(idle);
    eventually("an answer", || {
        let mut control = disks.control();
        control.send("{\"request\":\"units\"}\n");
        control.receive().contains("shared").then_some(())
    });
    // Nothing of this has disturbed the disk.
    assert_eq!(write_block(&mut disks.session("shared", "vm1"), 1, 1).status, GOOD);
}

#[test]
fn a_reload_opens_no_medium_outside_of_the_directories_of_the_start() {
    let place = Place::new();
    let outside = testing_support::directory();
    let medium = outside.path().join("other.img");
    fs::File::create(&medium).unwrap().set_len(1 << 20).unwrap();
    let settings = |path: &std::path::Path| {
        format!(
            "store = \"{}\"\n[[portal-group]]\naddresses = [\"127.0.0.1:0\"]\n[[unit]]\nname = \"one\"\npath = \"{}\"\n",
            place.sqlite(),
            path.display()
        )
    };
    let config = place.path("disk.toml");
    fs::write(&config, settings(&place.path("disk.img"))).unwrap();
    let disks = Start::new(&place).arg(format!("--config={}", config.display())).start();
    if disks.log().contains("Landlock") {
        println!("skipped: {}", disks.log());
        return;
    }
    fs::write(&config, settings(&medium)).unwrap();
    disks.process.signal(rustix::process::Signal::HUP);
    disks.process.wait_for_stderr("read the settings again: 0 units");
    let log = disks.log();
    assert!(log.contains("other.img") && log.contains("Permission denied"), "{log}");
}

#[test]
fn the_process_has_no_privilege_and_a_filter() {
    let place = Place::new();
    let disks = Start::shared(&place).start();
    let _session = disks.session("shared", "vm1");
    let threads = disks.process.process().threads();
    assert!(threads.len() > 2, "{threads:?}");
    for thread in threads {
        for (field, value) in [("CapEff", "0000000000000000"), ("CapPrm", "0000000000000000"), ("NoNewPrivs", "1")] {
            assert_eq!(thread[field], value, "{thread:?}");
        }
        assert_eq!(thread["Seccomp"], "2");
    }
}
