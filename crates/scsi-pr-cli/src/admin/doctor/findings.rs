//! The faults that facts about a host show. No I/O.

use scsi_pr_linux::multipath::{DaemonState, ReservationKey};
use serde::Serialize;

use super::apparmor::Denial;
use super::facts::{Account, DEFAULT_HELPER, Facts, Origin, Program};
use super::socket::{SocketState, Unreachable};

/// The weight of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Severity {
    Good,
    /// No fault, or one of something that this host may not use.
    Note,
    Fault,
}

/// A finding about a part of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    pub(super) subject: &'static str,
    pub(super) text: String,
    /// The line to change, or the command to run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) change: Option<String>,
}

const HELPER: &str = "helper";
const SOCKET: &str = "rights of the socket";
const LIBVIRT: &str = "libvirt";
const CONFINEMENT: &str = "AppArmor and SELinux";
const MULTIPATHD: &str = "multipathd";
const LIBRARY: &str = "libmpathpersist";

fn good(subject: &'static str, text: impl Into<String>) -> Finding {
    Finding { severity: Severity::Good, subject, text: text.into(), change: None }
}

fn note(subject: &'static str, text: impl Into<String>) -> Finding {
    Finding { severity: Severity::Note, subject, text: text.into(), change: None }
}

fn fault(subject: &'static str, text: impl Into<String>, change: impl Into<String>) -> Finding {
    Finding { severity: Severity::Fault, subject, text: text.into(), change: Some(change.into()) }
}

/// All findings, in the order in which an administrator should act.
pub(super) fn of(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![helper(facts)];
    findings.extend(rights(facts));
    findings.push(libvirt(facts));
    findings.extend(confinement(facts));
    findings.push(multipathd(facts));
    findings.push(library(facts));
    findings
}

fn helper(facts: &Facts) -> Finding {
    let socket = facts.socket.display();
    let start =
        || format!("systemctl enable --now qemu-pr-helper.socket, or start a helper: qemu-pr-helper -k {socket}");
    match &facts.state {
        SocketState::Missing(_) if !facts.is_named && facts.pr_helper.is_some() => note(
            HELPER,
            format!(
                "no helper listens at {socket}; libvirt starts one for each machine with <reservations managed='yes'/>"
            ),
        ),
        SocketState::Missing(why) => fault(HELPER, format!("{socket}: {why}"), start()),
        SocketState::NotASocket => {
            fault(HELPER, format!("{socket} is not a socket"), "--socket=SOCKET: name the socket of a helper")
        }
        SocketState::Present { peer: Err(why), .. } => {
            let change = match why {
                Unreachable::Refused | Unreachable::QueueFull => {
                    "systemctl restart qemu-pr-helper.socket qemu-pr-helper.service".to_owned()
                }
                Unreachable::NotPermitted => "run scsi-pr doctor as root".to_owned(),
                Unreachable::Closed => "--allow-user and --allow-group of the helper, and its log: journalctl -t \
                                        qemu-pr-helper"
                    .to_owned(),
                _ => "--socket=SOCKET: name the socket of a helper".to_owned(),
            };
            fault(HELPER, format!("{socket}: {why}"), change)
        }
        SocketState::Present { peer: Ok(_), .. } => match &facts.program {
            None => good(HELPER, format!("a helper answers at {socket}; its program is not known")),
            Some(program) => good(HELPER, format!("{} answers at {socket}", described(program))),
        },
    }
}

fn described(program: &Program) -> String {
    let path = program.path.display();
    match program.origin {
        Origin::ScsiPr => format!("{path}, scsi-pr's helper,"),
        Origin::Serve => format!("{path}, scsi-pr serve,"),
        Origin::Other => format!("{path}, which is not scsi-pr's helper,"),
    }
}

fn rights(facts: &Facts) -> Option<Finding> {
    let SocketState::Present { mode, user, group, .. } = facts.state else { return None };
    let owner = match &facts.group_name {
        Some(name) => format!("mode {mode:03o}, user {user}, group {name}"),
        None => format!("mode {mode:03o}, user {user}, group {group}"),
    };
    let is_served = facts.program.as_ref().is_some_and(|program| program.origin == Origin::Serve);
    let change = |wanted: &str| match is_served {
        true => format!("scsi-pr serve --socket-mode=660 --socket-group={wanted}"),
        false => format!("systemctl edit qemu-pr-helper.socket: [Socket] SocketGroup={wanted} SocketMode=0660"),
    };
    if mode & 0o002 != 0 {
        let text = format!("every user of this host may reserve each disk that it can open ({owner})");
        return Some(fault(SOCKET, text, change("kvm")));
    }
    Some(match &facts.qemu {
        None => note(SOCKET, format!("{owner}; this host has no user libvirt-qemu or qemu")),
        Some(account) if may_write(account, mode, user, group) => {
            good(SOCKET, format!("{owner}: {} may connect", account.name))
        }
        Some(account) => {
            let text = format!("{}, the user of virtual machines, may not connect ({owner})", account.name);
            fault(SOCKET, text, change("kvm"))
        }
    })
}

/// Whether a user may write to a file, which is what connect(2) on a socket needs.
fn may_write(account: &Account, mode: u32, user: u32, group: u32) -> bool {
    let bit = match (account.user == user, account.groups.contains(&group)) {
        _ if account.user == 0 => return true,
        (true, _) => 0o200,
        (false, true) => 0o020,
        (false, false) => 0o002,
    };
    mode & bit != 0
}

fn libvirt(facts: &Facts) -> Finding {
    let Some(helper) = &facts.pr_helper else {
        return note(LIBVIRT, "there is no /etc/libvirt/qemu.conf, so libvirt starts no helper here");
    };
    let place = match helper.line {
        Some(line) => format!("/etc/libvirt/qemu.conf:{line}"),
        None => "/etc/libvirt/qemu.conf has no pr_helper, and the default".to_owned(),
    };
    match &helper.program {
        Err(why) => fault(
            LIBVIRT,
            format!("{place} names {}, which libvirt cannot start: {why}", helper.path),
            format!("/etc/libvirt/qemu.conf: pr_helper = \"{DEFAULT_HELPER}\", or the path where the helper is"),
        ),
        Ok(program) if program.origin == Origin::Other => {
            note(LIBVIRT, format!("{place} names {}, which is not scsi-pr's helper", helper.path))
        }
        Ok(_) => good(LIBVIRT, format!("{place} names {}, scsi-pr's helper", helper.path)),
    }
}

fn confinement(facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<_> = facts.denials.iter().map(|denial| of_denial(denial, facts)).collect();
    let helper = facts.pr_helper.as_ref().map_or(DEFAULT_HELPER, |helper| &helper.path);
    if let Some(profile) = &facts.profile
        && facts.pr_helper.is_some()
    {
        findings.push(match profile.may_execute {
            true => good(CONFINEMENT, format!("/etc/apparmor.d/{} lets libvirt execute {helper}", profile.name)),
            false => fault(
                CONFINEMENT,
                format!("/etc/apparmor.d/{} has no rule to execute {helper}", profile.name),
                rule_to_execute(&profile.name, helper),
            ),
        });
    }
    match &facts.no_log {
        Some(why) => findings.push(note(CONFINEMENT, format!("the log was not searched for denials: {why}"))),
        None if facts.denials.is_empty() => {
            findings.push(good(CONFINEMENT, "the log has no denial of the helper or its socket"));
        }
        None => {}
    }
    findings
}

fn rule_to_execute(profile: &str, helper: &str) -> String {
    format!(
        "/etc/apparmor.d/local/{profile}: add the line \"{helper} PUx,\", then run apparmor_parser -r /etc/apparmor.d/{profile}"
    )
}

fn of_denial(denial: &Denial, facts: &Facts) -> Finding {
    match denial {
        Denial::AppArmor { profile, operation, path } => {
            let text = format!("AppArmor refused {profile} the operation {operation} on {path}");
            let change = match *path == *facts.socket.to_string_lossy() {
                true => format!(
                    "/etc/apparmor.d/local/abstractions/libvirt-qemu: add the line \"{path} rw,\", then run systemctl reload \
                     apparmor"
                ),
                false => {
                    let daemon = profile.rsplit('/').next().unwrap_or(profile);
                    rule_to_execute(&format!("usr.sbin.{daemon}"), path)
                }
            };
            fault(CONFINEMENT, text, change)
        }
        Denial::SeLinux { path } => fault(
            CONFINEMENT,
            format!("SELinux refused access to {path}"),
            format!("restorecon -v {path}; if that changes nothing: ausearch -m avc -ts boot"),
        ),
    }
}

/// The weight of a fault of multipath-tools: a host without maps does not need them.
fn weighed(facts: &Facts, finding: Finding) -> Finding {
    match facts.has_maps {
        true => finding,
        false => Finding {
            severity: Severity::Note,
            text: format!("{} (this host has no multipath map)", finding.text),
            ..finding
        },
    }
}

fn multipathd(facts: &Facts) -> Finding {
    const LINE: &str = "/etc/multipath.conf, section defaults: reservation_key file; then run multipathd reconfigure";
    match &facts.multipath.daemon {
        DaemonState::NotListening => {
            weighed(facts, fault(MULTIPATHD, "multipathd does not run", "systemctl enable --now multipathd"))
        }
        DaemonState::Failed(why) => weighed(facts, fault(MULTIPATHD, why.clone(), "systemctl restart multipathd")),
        DaemonState::Running(ReservationKey::File) => good(MULTIPATHD, "it runs, with reservation_key file"),
        DaemonState::Running(ReservationKey::Unset) => weighed(
            facts,
            fault(MULTIPATHD, "reservation_key is not set, so guests cannot register keys on maps", LINE),
        ),
        DaemonState::Running(ReservationKey::Only(key)) => {
            let text = format!("reservation_key is {key}, so a guest with another key cannot register it");
            weighed(facts, fault(MULTIPATHD, text, LINE))
        }
    }
}

fn library(facts: &Facts) -> Finding {
    match &facts.multipath.library {
        Ok(Some(interface)) => {
            good(LIBRARY, format!("found; it uses LIBMULTIPATH_{interface}, and 17 (0.9.4) is needed"))
        }
        Ok(None) => note(LIBRARY, "found; it does not tell its version, and 0.9.4 is needed"),
        Err(why) => {
            let (text, change) = why.split_once(": install ").unwrap_or((why, "multipath-tools 0.9.4 or later"));
            weighed(facts, fault(LIBRARY, text, format!("install {change}")))
        }
    }
}

#[cfg(test)]
mod tests;
