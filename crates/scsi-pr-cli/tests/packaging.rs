//! The units of `packaging/systemd`, judged by systemd's own tools, and a start by systemd's socket activation.
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Machine, PROGRAM, Place, good, register};
use testing_support::Launcher;

const UNITS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/systemd");

/// Whether systemd's tool is there.
fn has(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        println!("skipped: there is no {tool}");
    }
    found
}

/// The units of the virtual machine vm1, with the program where it was built; their paths.
fn units(place: &Place) -> [String; 2] {
    ["socket", "service"].map(|kind| {
        let text = fs::read_to_string(Path::new(UNITS).join(format!("scsi-pr@.{kind}"))).unwrap();
        let text = text.replace("/usr/bin/scsi-pr", PROGRAM);
        let path = place.path(&format!("scsi-pr@vm1.{kind}"));
        fs::write(&path, text).unwrap();
        path.to_string_lossy().into_owned()
    })
}

#[track_caller]
fn analyze(arguments: &[&str], units: &[String]) -> String {
    let output = Command::new("systemd-analyze").args(arguments).args(units).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}");
    said
}

#[test]
fn systemd_units_are_valid() {
    if !has("systemd-analyze") {
        return;
    }
    let place = Place::new();
    let said = analyze(&["verify", "--man=no"], &units(&place));
    let ours: Vec<_> = said.lines().filter(|line| line.contains("scsi-pr@")).collect();
    assert!(ours.is_empty(), "{ours:#?}");
}

/// The service of the disks, with the program where it was built; its path.
fn disk_unit(place: &Place) -> String {
    let text = fs::read_to_string(Path::new(UNITS).join("scsi-pr-disk.service")).unwrap();
    let path = place.path("scsi-pr-disk.service");
    fs::write(&path, text.replace("/usr/bin/scsi-pr", PROGRAM)).unwrap();
    path.to_string_lossy().into_owned()
}

#[test]
fn the_service_of_the_disks_is_understood_and_exposed_to_little() {
    if !has("systemd-analyze") {
        return;
    }
    let place = Place::new();
    let unit = disk_unit(&place);
    let said = analyze(&["verify", "--man=no"], std::slice::from_ref(&unit));
    let ours: Vec<_> = said.lines().filter(|line| line.contains("scsi-pr-disk")).collect();
    assert!(ours.is_empty(), "{ours:#?}");
    analyze(&["security", "--offline=true", "--no-pager", "--threshold=20"], &[unit]);
}

#[test]
fn the_example_of_the_disks_is_served() {
    let place = Place::new();
    let image = place.path("disk.img");
    let example = fs::read_to_string(Path::new(UNITS).join("../disk.toml")).unwrap();
    let text = example
        .replace("sqlite:/var/lib/scsi-pr/reservations.db", &place.sqlite())
        .replace("/var/lib/scsi-pr/shared.img", &image.to_string_lossy())
        .replace("127.0.0.1:3260", "127.0.0.1:0")
        .replace("iqn.2026-11.example:vm1", &common::disk::initiator("vm1"));
    fs::write(place.path("disk.toml"), text).unwrap();
    let disks = common::disk::Start::new(&place).arg(format!("--config={}", place.path("disk.toml").display())).start();
    disks.session("shared", "vm1");
}

/// "1.2 OK": systemd's measure goes from 0 to 10, and what it has against a service it lists.
#[test]
fn service_has_a_low_exposure_score() {
    if !has("systemd-analyze") {
        return;
    }
    let place = Place::new();
    let [_, service] = units(&place);
    analyze(&["security", "--offline=true", "--no-pager", "--threshold=15"], &[service]);
}

#[test]
fn systemd_s_activation_starts_it_with_the_first_client() {
    if !has("systemd-socket-activate") {
        return;
    }
    let place = Place::new();
    let socket = place.path("vm1.sock");
    let example = fs::read_to_string(Path::new(UNITS).join("../serve.toml")).unwrap();
    let config = place.path("serve.toml");
    fs::write(&config, example.replace("sqlite:/var/lib/scsi-pr/reservations.db", &place.sqlite())).unwrap();
    let mut activate = Launcher::new("systemd-socket-activate");
    activate.arg("-l").arg(&socket).args(["--fdname=vm1", PROGRAM, "serve", "--config"]).arg(&config);
    let _server = activate.spawn();
    testing_support::eventually("the socket", || socket.exists().then_some(()));
    assert!(!place.path("reservations.db").exists(), "it was started before anybody came");
    let machine = Machine::new(&place, &socket);
    assert_eq!(machine.out(&register(0, 1)), good());
    assert_eq!(machine.registrants(), [("iqn.2026-11.scsi-pr:vm1,i,0x000000000000".to_owned(), 1)]);
}

#[test]
fn the_user_of_the_service_is_made_by_the_package() {
    let service = fs::read_to_string(Path::new(UNITS).join("scsi-pr@.service")).unwrap();
    let users = fs::read_to_string(Path::new(UNITS).join("../sysusers.d/scsi-pr.conf")).unwrap();
    assert!(service.contains("\nUser=scsi-pr\n") && users.contains("\nu scsi-pr "), "{users}");
}
