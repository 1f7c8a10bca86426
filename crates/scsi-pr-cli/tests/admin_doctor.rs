//! `scsi-pr doctor` with real servers, with peers that are no helpers, and with the files of other hosts.
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use common::Place;
use common::admin::{Ended, scsi_pr};
use common::disk::Start;
use rustix::process::{getgid, getuid};
use serde_json::{Value, json};

/// The files of a host below a directory.
struct Host(Place);

impl Host {
    fn new() -> Self {
        let host = Self(Place::new());
        // The user of virtual machines is that of this test, which owns the sockets.
        let (user, group) = (getuid().as_raw() + 1, getgid().as_raw());
        host.write("etc/passwd", format!("root:x:0:0::/:/bin/sh\nlibvirt-qemu:x:{user}:9999::/:/bin/false\n"));
        host.write("etc/group", format!("kvm:x:{group}:libvirt-qemu\n"));
        host
    }

    fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.0.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// An executable file.
    fn program(&self, path: &str, text: &str) {
        self.write(path, text);
        fs::set_permissions(self.0.path(path), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn doctor(&self, socket: &Path) -> Ended {
        let root = format!("--root={}", self.0.path("").display());
        scsi_pr(["doctor", "--json", &root, "--socket", socket.to_str().unwrap()])
    }

    /// The finding about a subject, and the exit code.
    #[track_caller]
    fn finding(&self, socket: &Path, subject: &str) -> (Value, i32) {
        let (report, code) = self.doctor(socket).json();
        let findings = report["findings"].as_array().unwrap();
        let finding = findings.iter().find(|one| one["subject"] == subject);
        (finding.unwrap_or_else(|| panic!("{subject}: {report}")).clone(), code)
    }
}

#[track_caller]
fn check(finding: &Value, severity: &str, text: &str, change: &str) {
    let part = |name: &str| finding[name].as_str().unwrap_or_default();
    assert_eq!(part("severity"), severity, "{finding}");
    assert!(part("text").contains(text) && part("change").contains(change), "{finding}");
}

#[test]
fn served_socket_of_the_group_of_virtual_machines_has_no_fault() {
    let host = Host::new();
    let socket = host.0.path("vm1.sock");
    let _server = host.0.serve("memory:").arg("--socket-mode=660").listen("vm1", socket.clone()).start();
    let ended = host.doctor(&socket);
    let (report, code) = ended.json();
    assert_eq!((code, &report["faults"], &report["exit-code"]), (0, &json!(0), &json!(0)), "{report}");
    assert!(ended.stderr.is_empty(), "{ended:?}");
    check(&host.finding(&socket, "helper").0, "good", "scsi-pr serve, answers", "");
    check(&host.finding(&socket, "rights of the socket").0, "good", "libvirt-qemu may connect", "");
}

#[test]
fn socket_that_keeps_virtual_machines_out_is_a_fault_with_the_option_to_give() {
    let host = Host::new();
    let socket = host.0.path("vm1.sock");
    let _server = host.0.serve("memory:").arg("--socket-mode=600").listen("vm1", socket.clone()).start();
    let (finding, code) = host.finding(&socket, "rights of the socket");
    check(&finding, "fault", "may not connect", "--socket-mode=660 --socket-group=kvm");
    assert_eq!(code, 1);
    let root = format!("--root={}", host.0.path("").display());
    let text = scsi_pr(["doctor", &root, "--socket", socket.to_str().unwrap()]);
    assert!(text.refusal(1).contains("1 fault of this host"), "{text:?}");
    assert!(text.stdout.contains("FAULT  rights of the socket: ") && text.stdout.contains("change: scsi-pr serve"));
}

#[test]
fn peer_that_is_no_helper_is_a_fault() {
    let host = Host::new();
    let listen = |name: &str, serve: fn(UnixStream)| {
        let path = host.0.path(name);
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || listener.incoming().flatten().for_each(serve));
        path
    };
    let nonsense = listen("nonsense", |mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 400");
    });
    let short = listen("short", |mut stream| {
        let _ = stream.write_all(b"\0\0");
    });
    let closing = listen("closing", drop);
    let dead = host.0.path("dead");
    drop(UnixListener::bind(&dead).unwrap());
    let _disks = Start::shared(&host.0).start();
    let (control, file, missing) = (host.0.path("control"), host.0.path("disk.img"), host.0.path("missing"));
    for (socket, text) in [
        (&nonsense, "sends the features 0x48545450"),
        (&short, "closes the connection"),
        (&closing, "closes the connection"),
        (&dead, "no process listens"),
        (&control, "sends no features"),
        (&file, "is not a socket"),
        (&missing, "No such file"),
    ] {
        let (finding, code) = host.finding(socket, "helper");
        check(&finding, "fault", text, " ");
        assert_eq!(code, 1);
    }
}

#[test]
fn queue_without_room_is_a_fault_and_no_wait() {
    let host = Host::new();
    let path = host.0.path("full");
    let listener =
        rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&listener, &rustix::net::SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _waiting = UnixStream::connect(&path).unwrap();
    let (finding, _) = host.finding(&path, "helper");
    check(&finding, "fault", "queue is full", "systemctl restart");
}

#[test]
fn files_of_libvirt_and_apparmor_are_read() {
    let host = Host::new();
    let socket = host.0.path("vm1.sock");
    let _server = host.0.serve("memory:").arg("--socket-mode=660").listen("vm1", socket.clone()).start();
    host.write(
        "etc/libvirt/qemu.conf",
        "# pr_helper = \"/a\"\nuser = \"libvirt-qemu\"\n\npr_helper = \"/usr/local/bin/qemu-pr-helper\"\n",
    );
    let (finding, code) = host.finding(&socket, "libvirt");
    check(&finding, "fault", "qemu.conf:4 names /usr/local/bin/qemu-pr-helper", "pr_helper = ");
    assert_eq!(code, 1);
    host.program("usr/local/bin/qemu-pr-helper", "another helper");
    check(&host.finding(&socket, "libvirt").0, "note", "not scsi-pr's helper", "");
    host.program("usr/local/bin/qemu-pr-helper", "\x7fELF qemu-pr-helper-monitor");
    check(&host.finding(&socket, "libvirt").0, "good", "scsi-pr's helper", "");

    host.write("sys/module/apparmor/parameters/enabled", "Y\n");
    host.write("sys/kernel/security/apparmor/profiles", "cupsd (complain)\nlibvirtd (enforce)\n");
    host.write("etc/apparmor.d/usr.sbin.libvirtd", "profile libvirtd {\n  /usr/bin/* PUx,\n}\n");
    let rule = "local/usr.sbin.libvirtd: add the line \"/usr/local/bin/qemu-pr-helper PUx,\"";
    let (finding, code) = host.finding(&socket, "AppArmor and SELinux");
    check(&finding, "fault", "has no rule to execute", rule);
    assert_eq!(code, 1);
    host.write("etc/apparmor.d/local/usr.sbin.libvirtd", "/usr/local/bin/qemu-pr-helper PUx,\n");
    let (finding, code) = host.finding(&socket, "AppArmor and SELinux");
    check(&finding, "good", "lets libvirt execute", "");
    assert_eq!(code, 0);

    let denied = "type=AVC apparmor=\"DENIED\" operation=\"exec\" profile=\"libvirtd\" \
                  name=\"/usr/local/bin/qemu-pr-helper\" requested_mask=\"x\"\n";
    host.write("var/log/audit/audit.log", denied.repeat(3));
    let (finding, code) = host.finding(&socket, "AppArmor and SELinux");
    check(&finding, "fault", "AppArmor refused libvirtd the operation exec", rule);
    assert_eq!(code, 1);
}

#[test]
fn multipath_is_a_fault_only_where_there_is_a_map() {
    let host = Host::new();
    let socket = host.0.path("vm1.sock");
    let _server = host.0.serve("memory:").arg("--socket-mode=660").listen("vm1", socket.clone()).start();
    let (without_maps, _) = host.finding(&socket, "multipathd");
    host.write("sys/block/dm-0/dm/uuid", "mpath-3600140500000001\n");
    let (with_maps, code) = host.finding(&socket, "multipathd");
    // This host may run multipathd.
    match without_maps["severity"].as_str() {
        Some("good") => assert_eq!(with_maps["severity"], "good"),
        _ => {
            assert_eq!((&without_maps["severity"], &with_maps["severity"], code), (&json!("note"), &json!("fault"), 1))
        }
    }
}

#[test]
fn this_host_is_examined_to_the_end() {
    let ended = scsi_pr(["doctor", "--json"]);
    let (report, code) = ended.json();
    let findings = report["findings"].as_array().unwrap();
    for subject in ["helper", "libvirt", "AppArmor and SELinux", "multipathd", "libmpathpersist"] {
        assert!(findings.iter().any(|finding| finding["subject"] == subject), "{subject}: {report}");
    }
    let faults: Vec<_> = findings.iter().filter(|finding| finding["severity"] == "fault").collect();
    assert!(faults.iter().all(|fault| fault["change"].is_string()), "{report}");
    assert_eq!((code, report["faults"].as_u64()), (i32::from(!faults.is_empty()), Some(faults.len() as u64)));
    assert_eq!(ended.stderr.lines().count(), usize::from(!faults.is_empty()));
}

#[test]
fn files_of_a_host_that_are_no_text_are_read_without_a_panic() {
    let host = Host::new();
    let bytes: Vec<u8> = (0..=255).cycle().take(4096).collect();
    for path in [
        "etc/passwd",
        "etc/group",
        "etc/libvirt/qemu.conf",
        "etc/apparmor.d/usr.sbin.libvirtd",
        "sys/kernel/security/apparmor/profiles",
        "sys/module/apparmor/parameters/enabled",
        "sys/block/dm-0/dm/uuid",
        "var/log/audit/audit.log",
    ] {
        host.write(path, &bytes);
    }
    let ended = host.doctor(&host.0.path("missing"));
    assert_eq!((ended.code, ended.stderr.lines().count()), (1, 1), "{ended:?}");
    scsi_pr(["doctor", "/dev/sda"]).refusal(2);
    scsi_pr(["doctor", "--socket"]).refusal(2);
}
