use scsi_pr::Key;
use scsi_pr_linux::multipath::Tools;

use super::*;
use crate::admin::doctor::facts::{PrHelper, Profile};
use crate::admin::doctor::socket::Listener;

fn program(origin: Origin) -> Program {
    Program { path: DEFAULT_HELPER.into(), origin }
}

fn tools() -> Tools {
    let mut tools = Tools::inspect();
    tools.daemon = DaemonState::Running(ReservationKey::File);
    tools.library = Ok(Some(17));
    tools
}

/// A host without faults.
fn host() -> Facts {
    Facts {
        socket: "/run/qemu-pr-helper.sock".into(),
        is_named: false,
        state: SocketState::Present { mode: 0o660, user: 0, group: 108, peer: Ok(Listener { pid: 1 }) },
        program: Some(program(Origin::ScsiPr)),
        group_name: Some("kvm".to_owned()),
        qemu: Some(Account { name: "libvirt-qemu".to_owned(), user: 64055, groups: vec![64055, 108] }),
        pr_helper: Some(PrHelper { path: DEFAULT_HELPER.to_owned(), line: None, program: Ok(program(Origin::ScsiPr)) }),
        profile: Some(Profile { name: "usr.sbin.libvirtd".to_owned(), may_execute: true }),
        denials: Vec::new(),
        no_log: None,
        has_maps: true,
        multipath: tools(),
    }
}

/// The findings about a host that are not good.
fn with(change: impl FnOnce(&mut Facts)) -> Vec<Finding> {
    let mut facts = host();
    change(&mut facts);
    of(&facts).into_iter().filter(|finding| finding.severity != Severity::Good).collect()
}

/// The only finding that is not good has this severity and subject, and these parts in its text and its change.
#[track_caller]
fn check(change: impl FnOnce(&mut Facts), severity: Severity, subject: &str, text: &str, line: &str) {
    let findings = with(change);
    let [finding] = &findings[..] else { panic!("{findings:#?}") };
    assert_eq!((finding.severity, finding.subject), (severity, subject), "{finding:?}");
    assert!(finding.text.contains(text), "{finding:?}");
    assert!(finding.change.as_deref().unwrap_or_default().contains(line), "{finding:?}");
    assert!(severity != Severity::Fault || finding.change.is_some(), "{finding:?}");
}

fn peer(why: Unreachable) -> impl FnOnce(&mut Facts) {
    move |facts| facts.state = SocketState::Present { mode: 0o660, user: 0, group: 108, peer: Err(why) }
}

fn rights_are(mode: u32, user: u32, group: u32) -> impl FnOnce(&mut Facts) {
    move |facts| facts.state = SocketState::Present { mode, user, group, peer: Ok(Listener { pid: 1 }) }
}

#[test]
fn host_without_faults_has_good_findings_only() {
    assert_eq!(with(|_| {}), []);
    assert_eq!(of(&host()).len(), 7);
}

#[test]
fn socket_without_a_helper_is_a_fault() {
    for (why, text, line) in [
        (Unreachable::Refused, "no process listens", "systemctl restart"),
        (Unreachable::QueueFull, "queue is full", "systemctl restart"),
        (Unreachable::NotPermitted, "as root", "as root"),
        (Unreachable::Silent, "no helper", "--socket"),
        (Unreachable::Closed, "closes the connection", "--allow-user"),
        (Unreachable::Nonsense(7), "0x00000007", "--socket"),
        (Unreachable::Other("gone".to_owned()), "gone", "--socket"),
    ] {
        check(peer(why), Severity::Fault, HELPER, text, line);
    }
    check(|facts| facts.state = SocketState::NotASocket, Severity::Fault, HELPER, "not a socket", "--socket");
}

#[test]
fn missing_socket_is_a_fault_unless_libvirt_starts_helpers() {
    let missing = || SocketState::Missing("No such file".to_owned());
    check(|facts| facts.state = missing(), Severity::Note, HELPER, "libvirt starts one", "");
    let named = |facts: &mut Facts| (facts.state, facts.is_named) = (missing(), true);
    check(named, Severity::Fault, HELPER, "No such file", "qemu-pr-helper.socket");
    let findings = with(|facts| (facts.state, facts.pr_helper) = (missing(), None));
    assert_eq!((findings[0].severity, findings[0].subject), (Severity::Fault, HELPER));
}

#[test]
fn socket_must_let_virtual_machines_in_and_no_other_user() {
    let (fault, line) = (Severity::Fault, "SocketGroup=kvm SocketMode=0660");
    check(rights_are(0o600, 0, 0), fault, SOCKET, "libvirt-qemu, the user of virtual machines, may not", line);
    check(rights_are(0o640, 0, 108), fault, SOCKET, "may not connect", line);
    check(rights_are(0o660, 0, 7), fault, SOCKET, "may not connect", line);
    check(rights_are(0o666, 0, 0), fault, SOCKET, "every user", line);
    assert_eq!(with(rights_are(0o600, 64055, 0)), []);
    check(|facts| facts.qemu = None, Severity::Note, SOCKET, "no user libvirt-qemu", "");
    let serve = |facts: &mut Facts| {
        rights_are(0o600, 0, 0)(facts);
        facts.program = Some(program(Origin::Serve));
    };
    check(serve, fault, SOCKET, "may not connect", "scsi-pr serve --socket-mode=660");
}

#[test]
fn setting_of_libvirt_must_name_a_program() {
    let named = |line: Option<usize>, program: Result<Program, String>| {
        move |facts: &mut Facts| {
            facts.pr_helper = Some(PrHelper { path: "/opt/helper".to_owned(), line, program });
        }
    };
    let missing = || Err("No such file".to_owned());
    check(named(Some(7), missing()), Severity::Fault, LIBVIRT, "qemu.conf:7 names /opt/helper", "pr_helper = ");
    check(named(None, missing()), Severity::Fault, LIBVIRT, "has no pr_helper", "pr_helper = ");
    let other = named(Some(7), Ok(program(Origin::Other)));
    check(other, Severity::Note, LIBVIRT, "not scsi-pr's helper", "");
    check(|facts| facts.pr_helper = None, Severity::Note, LIBVIRT, "no /etc/libvirt/qemu.conf", "");
}

#[test]
fn profile_and_denials_name_the_rule_to_add() {
    let refusing = |facts: &mut Facts| {
        facts.profile = Some(Profile { name: "usr.sbin.libvirtd".to_owned(), may_execute: false });
    };
    let rule = "local/usr.sbin.libvirtd: add the line \"/usr/bin/qemu-pr-helper PUx,\"";
    check(refusing, Severity::Fault, CONFINEMENT, "has no rule", rule);
    let denied = |denial: Denial| move |facts: &mut Facts| facts.denials = vec![denial];
    let of_apparmor = |profile: &str, path: &str| Denial::AppArmor {
        profile: profile.to_owned(),
        operation: "exec".to_owned(),
        path: path.to_owned(),
    };
    check(denied(of_apparmor("libvirtd", DEFAULT_HELPER)), Severity::Fault, CONFINEMENT, "refused libvirtd", rule);
    let socket = denied(of_apparmor("libvirt-5e0c", "/run/qemu-pr-helper.sock"));
    let line = "abstractions/libvirt-qemu: add the line \"/run/qemu-pr-helper.sock rw,\"";
    check(socket, Severity::Fault, CONFINEMENT, "libvirt-5e0c", line);
    let selinux = denied(Denial::SeLinux { path: "/run/qemu-pr-helper.sock".to_owned() });
    check(selinux, Severity::Fault, CONFINEMENT, "SELinux", "restorecon -v /run/qemu-pr-helper.sock");
    let unread = |facts: &mut Facts| facts.no_log = Some("journalctl is missing".to_owned());
    check(unread, Severity::Note, CONFINEMENT, "not searched", "");
    assert_eq!(with(|facts| facts.profile = None), []);
}

#[test]
fn multipath_is_a_fault_only_on_a_host_with_maps() {
    let daemon = |state: DaemonState, has_maps: bool| {
        move |facts: &mut Facts| (facts.multipath.daemon, facts.has_maps) = (state, has_maps)
    };
    for (state, text, line) in [
        (DaemonState::NotListening, "does not run", "systemctl enable --now multipathd"),
        (DaemonState::Failed("a slow answer".to_owned()), "a slow answer", "restart"),
        (DaemonState::Running(ReservationKey::Unset), "not set", "reservation_key file"),
        (DaemonState::Running(ReservationKey::Only(Key(0x12))), "0x0000000000000012", "reservation_key file"),
    ] {
        check(daemon(state.clone(), true), Severity::Fault, MULTIPATHD, text, line);
        check(daemon(state, false), Severity::Note, MULTIPATHD, text, line);
    }
    let library = |facts: &mut Facts| {
        facts.multipath.library = Err("libmpathpersist.so.0 is old: install multipath-tools 0.9.4".to_owned());
    };
    check(library, Severity::Fault, LIBRARY, "is old", "install multipath-tools 0.9.4");
    check(|facts| facts.multipath.library = Ok(None), Severity::Note, LIBRARY, "does not tell its version", "");
}
