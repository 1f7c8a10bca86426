//! The administrator's commands, by each way, on real servers and stores.
#![forbid(unsafe_code)]

mod common;

use std::path::Path;

use common::admin::{Way, scsi_pr};
use common::disk::{Start, initiator};
use common::{Machine, Place, Server, good, register, reserve};
use scsi_pr::{Key, ReserveOut, Type};
use serde_json::{Value, json};

const NODE1: u64 = 0x6e6f_6465_3100_0000;

/// `scsi-pr serve` for the initiators vm1 and vm2.
fn serve(place: &Place, store: &str) -> Server {
    place.serve(store).listen("vm1", place.path("vm1.sock")).listen("vm2", place.path("vm2.sock")).start()
}

/// Registers vm1 with the key "node1" and vm2 with the key 2, and reserves for vm1.
#[track_caller]
fn two_registrants(ways: [&Way; 2], device: &Path) {
    for (way, command) in [
        (ways[0], format!("register --key={NODE1:x}")),
        (ways[1], "register --key=0x2".to_owned()),
        (ways[0], format!("reserve --key={NODE1:x} --type=wero")),
    ] {
        let ended = way.run(&command, device);
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{command}");
    }
}

/// The names, keys, and remarks of the registrations in JSON.
fn registrations(unit: &Value) -> Vec<(String, String, bool, bool)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let of = |one: &Value| {
        let flags = (one["holder"].as_bool().unwrap(), one["own"].as_bool().unwrap());
        (text(&one["initiator"]), text(&one["key"]), flags.0, flags.1)
    };
    unit["registrations"].as_array().unwrap().iter().map(of).collect()
}

/// Checks what every reading command says after [`two_registrants`], by one way.
#[track_caller]
fn check_readings(way: &Way, device: &Path, names: [&str; 2], is_own: bool) {
    let (json, code) = way.run("show --json", device).json();
    let unit = &json["units"][0];
    assert_eq!((code, &unit["generation"], &unit["complete"]), (0, &json!(2), &json!(true)), "{unit}");
    let expected = [(names[0], "0x6e6f646531000000", true, is_own), (names[1], "0x0000000000000002", false, false)];
    let expected = expected.map(|(name, key, holder, own)| (name.to_owned(), key.to_owned(), holder, own));
    assert_eq!(registrations(unit), expected);
    assert_eq!(unit["registrations"][0]["key-text"], "node1");
    let reservation = json!({
        "type": "write-exclusive-registrants-only", "key": "0x6e6f646531000000", "key-text": "node1",
        "all-registrants": false,
    });
    assert_eq!(unit["reservation"], reservation);
    let (status, _) = way.run("status --json", device).json();
    assert_eq!(status["units"][0], *unit);

    let (keys, _) = way.run("keys --json", device).json();
    let expected = json!([{ "key": "0x6e6f646531000000", "key-text": "node1" }, { "key": "0x0000000000000002" }]);
    assert_eq!((&keys["units"][0]["keys"], &keys["units"][0]["complete"]), (&expected, &json!(true)));
    let (holder, _) = way.run("reservation --json", device).json();
    assert_eq!(holder["units"][0]["reservation"], reservation);
    let (capabilities, _) = way.run("capabilities --json", device).json();
    assert_eq!(capabilities["units"][0]["types"].as_array().unwrap().len(), 6);

    let text = way.run("show", device).text();
    for part in
        ["Write Exclusive - Registrants Only", "\"node1\"", names[0], names[1], "2 registrations", "generation 2"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(text.contains("this initiator"), is_own, "{text}");
}

#[test]
fn helper_shows_and_changes_what_its_socket_may() {
    let place = Place::new();
    let _server = serve(&place, &place.sqlite());
    let ways = ["vm1", "vm2"].map(|name| Way::via(&place.path(&format!("{name}.sock"))));
    two_registrants([&ways[0], &ways[1]], &place.path("disk.img"));
    check_readings(&ways[1], &place.path("disk.img"), ["vm1", "vm2"], false);
}

#[test]
fn store_is_shown_and_changed_as_any_initiator() {
    for kind in ["sqlite", "dir"] {
        let place = Place::new();
        let store = format!("{kind}:{}", place.path("store").display());
        drop(serve(&place, &store));
        let ways = ["vm1", "vm2"].map(|name| Way::store(&store, name));
        two_registrants([&ways[0], &ways[1]], &place.path("disk.img"));
        check_readings(&ways[0], &place.path("disk.img"), ["vm1", "vm2"], true);
        let list = scsi_pr(["list", "--json", "--store", &store]).json().0;
        let unit = list["units"][0]["device"].as_str().unwrap();
        assert_eq!(list["units"][0]["registrations"], 2);
        // The same unit by its identifier.
        check_readings(&ways[0], Path::new(unit), ["vm1", "vm2"], true);
    }
}

#[test]
fn disk_is_shown_and_changed_through_its_control_socket() {
    let place = Place::new();
    let _disks = Start::shared(&place).start();
    let names = ["vm1", "vm2"].map(initiator);
    let ways = [0, 1].map(|index| Way::disk(&place.path("control"), &names[index]));
    two_registrants([&ways[0], &ways[1]], Path::new("shared"));
    check_readings(&ways[0], Path::new("shared"), [&names[0], &names[1]], true);
    // The same unit by the path of its medium.
    check_readings(&ways[0], &place.path("disk.img"), [&names[0], &names[1]], true);
    let list = scsi_pr(["list", "--disk", place.path("control").to_str().unwrap()]).text();
    assert!(list.contains("shared") && list.contains("Write Exclusive - Registrants Only"), "{list}");
}

#[test]
fn register_with_spec_i_pt_registers_the_named_initiators_too() {
    let place = Place::new();
    let server = serve(&place, &place.sqlite());
    let disk = place.path("disk.img");
    let [vm1, vm2] = ["vm1", "vm2"].map(|name| Way::via(&place.path(&format!("{name}.sock"))));
    let other = "iqn.2026-11.example:other";
    // The ISID does not count.
    let command = format!("register --key=7 --spec-i-pt=vm2 --spec-i-pt={other},i,0x00023d000001");
    assert_eq!(vm1.run(&command, &disk).code, 0);
    let initiators = || {
        let (json, _) = vm2.run("show --json", &disk).json();
        registrations(&json["units"][0]).into_iter().map(|(name, key, ..)| (name, key)).collect::<Vec<_>>()
    };
    let all = ["vm1", "vm2", other].map(|name| (name.to_owned(), "0x0000000000000007".to_owned()));
    assert_eq!(initiators(), all);
    // The sender is registered now, and so is vm2.
    let ended = vm2.run("register --key=8 --spec-i-pt=vm1", &disk);
    assert_eq!(ended.code, 3, "{ended:?}");
    assert_eq!(vm2.run("unregister --key=7", &disk).code, 0);
    let ended = vm2.run("register --key=8 --spec-i-pt=vm1", &disk);
    assert!(ended.refusal(1).contains("05/26/00"), "{ended:?}");
    assert_eq!(initiators(), [all[0].clone(), all[2].clone()]);
    for option in ["--ignore-existing", "--old-key=7"] {
        assert_eq!(vm2.run(&format!("register --key=8 --spec-i-pt=vm1 {option}"), &disk).code, 2);
    }
    drop(server);
    // By the store.
    let vm2 = Way::store(&place.sqlite(), "vm2");
    assert_eq!(vm2.run("register --key=8 --spec-i-pt=vm3", &disk).code, 0);
    let (json, _) = vm2.run("show --json", &disk).json();
    assert_eq!(registrations(&json["units"][0]).len(), 4);
}

#[test]
fn replacing_a_reservation_that_is_not_lost_asks_and_is_refused() {
    let place = Place::new();
    let _server = serve(&place, &place.sqlite());
    let disk = place.path("disk.img");
    let vm1 = Way::via(&place.path("vm1.sock"));
    let ended = vm1.run("replace-lost --key=1 --type=wero", &disk);
    assert!(ended.code == 2 && ended.stderr.contains("--yes") && ended.stderr.contains("REPLACE LOST"), "{ended:?}");
    let ended = vm1.run("replace-lost --key=1 --type=wero --yes", &disk);
    assert!(ended.code == 1 && ended.stderr.contains("05/26/04"), "{ended:?}");
}

#[test]
fn unit_that_a_disk_serves_is_refused_with_the_socket_of_the_disk() {
    let place = Place::new();
    let mut disks = Start::shared(&place).start();
    let control = place.path("control").display().to_string();
    let store = Way::store(&place.sqlite(), "vm1");
    for command in ["show", "keys", "register --key=1", "clear --key=1 --yes"] {
        let ended = store.run(command, "name.shared");
        let line = ended.refusal(1);
        assert!(line.contains(&control) && line.contains("--disk"), "{command}: {line}");
    }
    let list = scsi_pr(["list", "--store", &place.sqlite()]).text();
    assert!(list.contains("name.shared") && list.contains(&control), "{list}");
    assert!(disks.process.stop().success());
    let text = store.run("show", "shared").text();
    assert!(text.contains("no registrations"), "{text}");
}

/// A machine in the store, beside the commands.
#[test]
fn change_by_the_store_is_seen_by_machines_and_back() {
    let place = Place::new();
    let _server = serve(&place, &place.sqlite());
    let disk = place.path("disk.img");
    let vm1 = Machine::new(&place, &place.path("vm1.sock"));
    assert_eq!(vm1.out(&register(0, 1)), good());
    assert_eq!(vm1.out(&reserve(1)), good());
    let vm2 = Way::store(&place.sqlite(), "vm2");
    assert!(vm2.run("register --key=2", &disk).text().contains("registered key"));
    assert_eq!(vm1.keys().keys, [Key(1), Key(2)]);

    let ended = vm2.run("reserve --key=2 --type=exclusive-access", &disk);
    assert!(ended.refusal(3).contains("RESERVATION CONFLICT"));
    let ended = vm2.run("preempt --key=2 --victim=1", &disk);
    assert!(ended.code == 2 && ended.stderr.contains("vm1") && ended.stderr.contains("--yes"), "{ended:?}");
    assert_eq!(vm1.keys().keys, [Key(1), Key(2)], "nothing was changed without consent");
    let ended = vm2.run("preempt --key=2 --victim=1 --yes --json", &disk);
    let (json, code) = ended.json();
    assert_eq!((code, &json["reservation"]["key"]), (0, &json!("0x0000000000000002")), "{ended:?}");
    assert_eq!((vm1.keys().keys, vm1.holder()), (vec![Key(2)], Some(2)));

    let moved = vm2.run("move --key=2 --to=vm1 --to-key=7 --unregister --yes", &disk);
    assert_eq!(moved.code, 0, "{moved:?}");
    assert_eq!((vm1.keys().keys, vm1.holder()), (vec![Key(7)], Some(7)));
    let release = ReserveOut::Release { key: Key(7), reservation_type: Type::WriteExclusive };
    assert_eq!(vm1.out(&release), good());

    let vm1_way = Way::store(&place.sqlite(), "vm1");
    assert_eq!(vm1_way.run("reserve --key=7 --type=7", &disk).code, 0);
    assert!(vm1_way.run("release --key=7 --yes", &disk).stdout.contains("not reserved"));
    let nothing = vm1_way.run("move --key=7 --to=vm2 --to-key=9 --yes", &disk);
    assert!(nothing.refusal(1).contains("no reservation to move"), "{nothing:?}");
    assert!(vm1_way.run("register --key=8", &disk).refusal(3).contains("--old-key"));
    assert_eq!(vm1_way.run("register --key=8 --old-key=7", &disk).code, 0);
    assert_eq!(vm1_way.run("register --key=9 --ignore-existing", &disk).code, 0);
    assert_eq!(vm2.run("register --key=2", &disk).code, 0);
    assert_eq!(vm2.run("unregister --key=2 --yes", &disk).code, 0);
    assert_eq!(vm1.keys().keys, [Key(9)]);
    assert_eq!(vm1_way.run("clear --key=9 --yes", &disk).code, 0);
    assert_eq!(vm1.keys().keys, []);
}

#[test]
fn completions_have_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = scsi_pr(["completions", shell]).text();
        for command in ["show", "evict", "preempt", "serve", "disk"] {
            assert!(script.contains(command), "{shell}: {command}");
        }
    }
}

/// A thousand registrants are more than an allocation length has room for.
#[test]
fn every_one_of_a_thousand_registrants_is_shown_by_store_and_disk() {
    let place = Place::new();
    let store = place.sqlite();
    registrants(&store, 1_000);
    let ended = Way::store(&store, "vm7").run("show --json", "name.many");
    let (json, code) = ended.json();
    let names = registrations(&json["units"][0]);
    assert_eq!((code, names.len(), &json["units"][0]["complete"]), (0, 1_000, &json!(true)));
    assert!(names.iter().enumerate().all(|(index, (name, ..))| *name == format!("vm{index}")));
    let text = Way::store(&store, "vm7").run("show", "many").text();
    assert_eq!(text.lines().filter(|line| line.contains("vm")).count(), 1_000);

    // A disk that serves the unit tells as much.
    let _disks = Start::new(&place).store(&store).unit("many", place.path("disk.img")).listen(0).start();
    let (json, code) = Way::disk(&place.path("control"), "vm7").run("show --json", "many").json();
    assert_eq!((code, registrations(&json["units"][0]).len(), &json["units"][0]["complete"]), (0, 1_000, &json!(true)));
}

/// Makes a store in which the unit `many` has so many registrants.
fn registrants(store: &str, count: u64) {
    let opened = scsi_pr_store::open(store).unwrap();
    let unit = scsi_pr_store::UnitId::named("many").unwrap();
    let add = &mut |reservations: &mut scsi_pr::Reservations, _: Option<&scsi_pr_store::DiskRecord>| {
        for number in 0..count {
            let name: scsi_pr_store::InitiatorName = format!("vm{number}").parse().unwrap();
            let nexus = scsi_pr::Nexus::new(name.transport_id().clone(), 1);
            let request = register(0, number + 1).encode().unwrap();
            assert_eq!(reservations.process(&nexus, request.command()).completion, good());
        }
        true
    };
    opened.update(&unit, add).unwrap();
}
