//! The Debian packages under a real systemd: installation, upgrade, removal and purge.

use std::fmt::Display;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use scsi_pr::{Key, PrManager};
use scsi_pr_helper::HelperClient;

use crate::commands::{read_keys, register_ignoring};
use crate::debian::{Package, divert_list, dpkg};
use crate::lab::Lab;
use crate::load::Load;
use crate::report::Report;
use crate::scenario::Scenario;
use crate::system::{make, run, wait_for, write};

/// The path of the helper, which the package diverts.
pub(super) const APP_ARMOR: Scenario = Scenario {
    name: "packages-apparmor",
    boot: "packages",
    purpose: "libvirtd's AppArmor profile permits the helper at the path of the package",
    run: app_armor,
};

/// The package scsi-pr-helper.
pub(super) const HELPER: Scenario = Scenario {
    name: "packages-helper",
    boot: "packages",
    purpose: "scsi-pr-helper is installed beside QEMU's helper, upgraded without a lost command, and removed",
    run: helper,
};

/// The package scsi-pr.
pub(super) const SCSI_PR: Scenario = Scenario {
    name: "packages-scsi-pr",
    boot: "packages-service",
    purpose: "scsi-pr is installed, upgraded without a lost command or reservation, removed and purged",
    run: scsi_pr,
};

const PROGRAM: &str = "/usr/bin/qemu-pr-helper";
const DIVERTED: &str = "/usr/bin/qemu-pr-helper.qemu";
const SOCKET: &str = "/run/qemu-pr-helper.sock";
const SOCKET_UNIT: &str = "qemu-pr-helper.socket";
const SERVICE: &str = "qemu-pr-helper.service";

/// The settings of scsi-pr@.service.
const SERVE_SETTINGS: &str = "/etc/scsi-pr/serve.toml";

fn helper(lab: &mut Lab, report: &mut Report) -> Result<()> {
    let disk = lab.target()?.unit()?.disks[0].clone();
    let package = Package::new(lab.packages()?, "scsi-pr-helper", "qemu-pr-helper");
    let of_qemu = version(PROGRAM)?;
    ensure!(!of_qemu.contains("scsi-pr"), "{PROGRAM} is {of_qemu}");

    let failed = package.install_conflicting("1")?;
    report.check("an installation that fails is reported", failed);
    report.equal("QEMU's helper is in its place after it", of_qemu.as_str(), &version(PROGRAM)?);
    report.equal("no diversion is left", "", &divert_list("scsi-pr-helper")?);

    package.install("1")?;
    let replacement = version(PROGRAM)?;
    report.check(format!("{PROGRAM} is this project's: {replacement}"), different(&replacement, &of_qemu));
    report.equal("QEMU's helper is beside it", of_qemu.as_str(), &version(DIVERTED)?);
    report.equal("the user of the helper exists", "qemu-pr-helper", &user("qemu-pr-helper")?);
    report.equal("the socket is not enabled", "disabled", &state("is-enabled", SOCKET_UNIT));

    run("systemctl", &["enable", "--now", SOCKET_UNIT])?;
    let metadata = fs::metadata(SOCKET)?;
    report.equal("mode of the socket", "660", &format!("{:o}", metadata.permissions().mode() & 0o777));
    let client = HelperClient::new(SOCKET);
    let device = fs::File::options().read(true).write(true).open(&disk)?;
    let answer = client.execute(device.as_fd(), register_ignoring(Key(0xabc)).command());
    report.check("a client registers", good(answer));
    report.equal("user of the service", &user("qemu-pr-helper")?, &user(&main_user(SERVICE)?)?);
    report.check("the monitor runs as root", monitor_runs(SERVICE));
    exposure(report, SERVICE, 25)?;

    upgrade_of_qemu(report)?;

    let before = main_process(SERVICE)?;
    let load = Load::start(Path::new(SOCKET), &disk)?;
    package.install("2")?;
    load.wait_for_answers()?;
    report_load(report, "the upgrade", load);
    let after = main_process(SERVICE)?;
    report.check("the service runs the new program", different(&before, &after));
    report.equal("version", "0.1.0-2", &package.version()?);

    let drop_in = format!("/etc/systemd/system/{SERVICE}.d");
    make(&drop_in)?;
    write(format!("{drop_in}/fails.conf"), "[Service]\nExecStart=\nExecStart=/bin/false\n")?;
    report_restart_failures(report, &package, &[SERVICE])?;
    fs::remove_dir_all(&drop_in)?;
    run("systemctl", &["daemon-reload"])?;
    run("systemctl", &["reset-failed", SERVICE, SOCKET_UNIT])?;
    run("systemctl", &["restart", SOCKET_UNIT])?;

    let failed = package.install_conflicting("3")?;
    report.check("an upgrade that fails is reported", failed);
    report.equal("the version stays", "0.1.0-2", &package.version()?);
    report.equal("the program stays this project's", replacement.as_str(), &version(PROGRAM)?);
    let answer = client.execute(device.as_fd(), read_keys().command());
    report.check("the helper serves after it", good(answer));

    package.remove()?;
    report.equal("QEMU's helper is back after the removal", NEWER, &version(PROGRAM)?);
    report.check("nothing is beside it", absent(DIVERTED));
    report.equal("no diversion is left", "", &divert_list("scsi-pr-helper")?);
    report.check("the socket is gone", absent(SOCKET));
    report.equal("the service has ended", "inactive", &state("is-active", SERVICE));
    package.purge()?;
    let wanted = format!("/etc/systemd/system/sockets.target.wants/{SOCKET_UNIT}");
    report.check("a purge removes what `systemctl enable` made", absent(&wanted));
    report.equal("state after the purge", "", &package.version().unwrap_or_default());
    Ok(())
}

/// The output of the program in a newer package of QEMU.
const NEWER: &str = "a newer helper of QEMU";

/// Installs a package of the name of QEMU's, which has another helper.
fn upgrade_of_qemu(report: &mut Report) -> Result<()> {
    let replacement = version(PROGRAM)?;
    let tree = PathBuf::from("/run/qemu-package");
    make(tree.join("DEBIAN"))?;
    make(tree.join("usr/bin"))?;
    let control = "Package: qemu-system-common\nVersion: 1:99\nArchitecture: amd64\nMaintainer: The lab <root@localhost>\n\
                   Description: a newer QEMU\n";
    write(tree.join("DEBIAN/control"), control)?;
    let program = tree.join("usr/bin/qemu-pr-helper");
    write(&program, &format!("#!/bin/sh\necho {NEWER}\n"))?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    run("dpkg-deb", &["--build", "--root-owner-group", "/run/qemu-package", "/run/qemu-package.deb"])?;
    dpkg(&["--force-depends", "--install", "/run/qemu-package.deb"])?;
    report.equal("an upgrade of QEMU leaves the program", replacement.as_str(), &version(PROGRAM)?);
    report.equal("an upgrade of QEMU changes the diverted one", NEWER, &version(DIVERTED)?);
    Ok(())
}

/// libvirtd's profile decides which programs libvirtd may execute.
fn app_armor(lab: &mut Lab, report: &mut Report) -> Result<()> {
    let root = Path::new("/run/apparmor");
    for (package, program) in [("apparmor", "aa-exec"), ("libvirt-daemon-system", "libvirtd")] {
        Package::new(lab.packages()?, package, program).unpack(root)?;
    }
    make(root.join("etc/apparmor.d/local"))?;
    write(root.join("etc/apparmor.d/local/usr.sbin.libvirtd"), "")?;
    if !Path::new("/sys/kernel/security/apparmor").exists() {
        run("mount", &["-t", "securityfs", "securityfs", "/sys/kernel/security"])?;
    }
    let profiles = ["--base", "/run/apparmor/etc/apparmor.d", "/run/apparmor/etc/apparmor.d/usr.sbin.libvirtd"];
    run("/run/apparmor/sbin/apparmor_parser", &[&["--replace", "--skip-cache"], &profiles[..]].concat())?;
    let elsewhere = "/usr/local/bin/qemu-pr-helper";
    fs::copy(PROGRAM, elsewhere)?;
    // The profile holds from the shell on, so that it decides about the program.
    let shell = ["--profile", "libvirtd", "--", "/bin/sh", "-c", "exec \"$0\" --version"];
    let execute = |program: &str| run("/run/apparmor/usr/bin/aa-exec", &[&shell[..], &[program]].concat());
    report.check(format!("libvirtd's profile permits {PROGRAM}"), execute(PROGRAM).map(drop).map_err(text));
    let refused = match execute(elsewhere) {
        Err(error) if format!("{error:#}").contains("Permission denied") => Ok(()),
        other => Err(format!("{other:?}")),
    };
    report.check(format!("libvirtd's profile refuses {elsewhere}"), refused);
    Ok(())
}

fn scsi_pr(lab: &mut Lab, report: &mut Report) -> Result<()> {
    let package = Package::new(lab.packages()?, "scsi-pr", "scsi-pr");
    package.install("1")?;
    report.equal("the user exists", "scsi-pr", &user("scsi-pr")?);
    let state_directory = fs::metadata("/var/lib/scsi-pr")?;
    report.equal("mode of /var/lib/scsi-pr", "700", &format!("{:o}", state_directory.mode() & 0o777));

    run("systemctl", &["enable", "--now", "scsi-pr@vm1.socket"])?;
    let image = PathBuf::from("/var/tmp/shared.img");
    fs::File::create(&image)?.set_len(1 << 20)?;
    let socket = Path::new("/run/scsi-pr/vm1.sock");
    let client = HelperClient::new(socket);
    let device = fs::File::options().read(true).write(true).open(&image)?;
    let answer = client.execute(device.as_fd(), register_ignoring(Key(0xabc)).command());
    report.check("vm1 registers", good(answer));
    exposure(report, "scsi-pr@vm1.service", 20)?;

    let disk = "/var/lib/scsi-pr/shared.img";
    fs::File::create(disk)?.set_len(1 << 20)?;
    run("chown", &["scsi-pr:", disk])?;
    let settings = "/etc/scsi-pr/disk.toml";
    // The kernel's target has the port of the example.
    let changed = fs::read_to_string(settings)?.replace(":3260", ":3261");
    write(settings, &changed)?;
    run("systemctl", &["enable", "--now", "scsi-pr-disk"])?;
    report.equal("scsi-pr-disk runs with its settings", "active", &state("is-active", "scsi-pr-disk"));
    exposure(report, "scsi-pr-disk.service", 20)?;

    let (before, disks_before) = (main_process("scsi-pr@vm1.service")?, main_process("scsi-pr-disk")?);
    let load = Load::start(socket, &image)?;
    package.install("2")?;
    load.wait_for_answers()?;
    report_load(report, "the upgrade", load);
    report.check("scsi-pr@vm1.service runs the new program", different(&before, &main_process("scsi-pr@vm1.service")?));
    report.check("scsi-pr-disk runs the new program", different(&disks_before, &main_process("scsi-pr-disk")?));
    report.check("settings that were changed stay", unchanged(settings, &changed));

    let settings_of_vm1 = fs::read_to_string(SERVE_SETTINGS)?;
    write(settings, "mistake = 1\n")?;
    write(SERVE_SETTINGS, "mistake = 1\n")?;
    report_restart_failures(report, &package, &["scsi-pr-disk.service", "scsi-pr@vm1.service"])?;
    write(settings, &changed)?;
    write(SERVE_SETTINGS, &settings_of_vm1)?;
    run("systemctl", &["reset-failed", "scsi-pr-disk", "scsi-pr@vm1.service", "scsi-pr@vm1.socket"])?;
    run("systemctl", &["restart", "scsi-pr-disk", "scsi-pr@vm1.socket"])?;

    let failed = package.install_conflicting("3")?;
    report.check("an upgrade that fails is reported", failed);
    let answer = client.execute(device.as_fd(), read_keys().command());
    report.check("the registration is there after it", good(answer));

    package.remove()?;
    for unit in ["scsi-pr@vm1.socket", "scsi-pr@vm1.service", "scsi-pr-disk.service"] {
        report.equal(format!("state of {unit} after the removal"), "inactive", &state("is-active", unit));
    }
    report.check("settings stay after the removal", unchanged(settings, &changed));
    package.purge()?;
    report.check("a purge removes the settings", absent(settings));
    report.check("a purge removes the settings of vm1", absent(SERVE_SETTINGS));
    report.check("a purge keeps disks", present(disk));
    for unit in ["multi-user.target.wants/scsi-pr-disk.service", "sockets.target.wants/scsi-pr@vm1.socket"] {
        report.check(format!("a purge removes {unit}"), absent(format!("/etc/systemd/system/{unit}")));
    }
    fs::remove_dir_all("/var/lib/scsi-pr")?;
    package.install("2")?;
    package.purge()?;
    report.check("a purge removes an empty /var/lib/scsi-pr", absent("/var/lib/scsi-pr"));
    Ok(())
}

/// Installs revision 2 while the services cannot start. dpkg succeeds, and its output names each service.
fn report_restart_failures(report: &mut Report, package: &Package<'_>, services: &[&str]) -> Result<()> {
    let errors = package.install("2")?;
    for service in services {
        let message = format!("try-restart of {service} failed. See: systemctl status '{service}'");
        let outcome = if errors.contains(&message) { Ok(()) } else { Err(errors.clone()) };
        report.check(format!("dpkg reports that {service} did not start again"), outcome);
    }
    report.equal("version", "0.1.0-2", &package.version()?);
    Ok(())
}

fn report_load(report: &mut Report, when: &str, load: Load) {
    let (answers, failures) = load.end();
    let lost = if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) };
    report.check(format!("{answers} commands of 8 clients during {when}: none is lost"), lost);
}

/// The score that systemd gives to a unit as it runs, at most `limit` tenths.
fn exposure(report: &mut Report, unit: &str, limit: u32) -> Result<()> {
    let limit = limit.to_string();
    let score = run("systemd-analyze", &["security", "--no-pager", "--threshold", &limit, unit])
        .map(|text| text.lines().last().unwrap_or_default().to_owned());
    match score {
        Ok(score) => report.check(score, Ok(())),
        Err(error) => report.check(format!("exposure of {unit}"), Err(text(error))),
    }
    Ok(())
}

/// The version that a helper prints after its own name.
fn version(program: &str) -> Result<String> {
    let output = run(program, &["--version"])?;
    let line = output.lines().next().unwrap_or_default();
    Ok(line.strip_prefix(program).unwrap_or(line).trim().to_owned())
}

/// The name of the user of this name or number.
fn user(name: &str) -> Result<String> {
    Ok(run("getent", &["passwd", name])?.split(':').next().unwrap_or_default().to_owned())
}

fn main_process(unit: &str) -> Result<String> {
    let process = run("systemctl", &["show", "--property", "MainPID", "--value", unit])?.trim().to_owned();
    ensure!(process != "0", "{unit} does not run");
    Ok(process)
}

fn main_user(unit: &str) -> Result<String> {
    Ok(fs::metadata(format!("/proc/{}", main_process(unit)?))?.uid().to_string())
}

/// Whether the monitor is in the control group of the unit.
fn monitor_runs(unit: &str) -> Result<(), String> {
    wait_for("monitor", || {
        let group = format!("/sys/fs/cgroup/system.slice/{unit}/cgroup.procs");
        let processes = fs::read_to_string(group)?;
        let monitor = processes.lines().find(|process| {
            fs::read_to_string(format!("/proc/{process}/cmdline")).is_ok_and(|line| line.contains("monitor"))
        });
        let monitor = monitor.with_context(|| format!("processes: {processes}"))?;
        ensure!(fs::metadata(format!("/proc/{monitor}"))?.uid() == 0, "it is not root's");
        anyhow::Ok(())
    })
    .map_err(text)
}

/// The answer of `systemctl is-active` and the like.
fn state(question: &str, unit: &str) -> String {
    let output = std::process::Command::new("systemctl").args([question, unit]).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

fn good(answer: Result<scsi_pr::Completion, scsi_pr::Error>) -> Result<(), String> {
    match answer {
        Ok(scsi_pr::Completion::Good(_)) => Ok(()),
        Ok(other) => Err(other.to_string()),
        Err(error) => Err(text(error.into())),
    }
}

fn different(before: &str, after: &str) -> Result<(), String> {
    if before == after { Err(format!("both are {before}")) } else { Ok(()) }
}

fn unchanged(path: &str, text: &str) -> Result<(), String> {
    match fs::read_to_string(path) {
        Ok(found) if found == text => Ok(()),
        other => Err(format!("{path}: {other:?}")),
    }
}

fn absent(path: impl AsRef<Path> + Display) -> Result<(), String> {
    if path.as_ref().symlink_metadata().is_ok() { Err(format!("{path} exists")) } else { Ok(()) }
}

fn present(path: &str) -> Result<(), String> {
    fs::metadata(path).map(drop).map_err(|error| format!("{path}: {error}"))
}

fn text(error: anyhow::Error) -> String {
    format!("{error:#}")
}
