//! The helper of the Debian package, as its unit starts it under a real systemd: on a multipath map, and with the commands of the
//! guide to monitoring.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use scsi_pr::{Completion, FullStatus, Key, PrManager};
use scsi_pr_helper::HelperClient;
use scsi_pr_linux::SgIo;

use crate::commands::{clear, read_full_status, read_keys, register, register_ignoring, release, reserve};
use crate::debian::Package;
use crate::disk::Disk;
use crate::fixture::{CONFLICT, GOOD, OURS, RO};
use crate::lab::Lab;
use crate::report::Report;
use crate::scenario::Scenario;
use crate::system::{make, run, wait_for, write};

/// The sandbox of the unit leaves workers what they need.
pub(super) const MULTIPATH: Scenario = Scenario {
    name: "packages-multipath",
    boot: "packages-service",
    purpose: "the packaged unit of the helper changes reservations on a multipath map",
    run: multipath,
};

/// `docs/guide/monitoring.md`.
pub(super) const MONITORING: Scenario = Scenario {
    name: "packages-monitoring",
    boot: "packages-service",
    purpose: "the commands of the guide to monitoring, with the packaged unit, curl, socat and the node exporter",
    run: monitoring,
};

const SOCKET: &str = "/run/qemu-pr-helper.sock";

const GUIDE: &str = include_str!("../../../../docs/guide/monitoring.md");

/// The directory of the node exporter's textfile collector.
const COLLECTOR: &str = "/var/lib/prometheus/node-exporter";

/// Installs the package unless it is there, and starts its socket.
fn start_socket(lab: &Lab) -> Result<()> {
    let package = Package::new(lab.packages()?, "scsi-pr-helper", "qemu-pr-helper");
    if package.version().unwrap_or_default().is_empty() {
        package.install("1")?;
    }
    run("systemctl", &["enable", "--now", "qemu-pr-helper.socket"]).map(drop)
}

fn multipath(lab: &mut Lab, report: &mut Report) -> Result<()> {
    start_socket(lab)?;
    let map = lab.multipath()?.map(2, 0)?;
    let client = HelperClient::new(SOCKET);
    let (device, other_host) = (Disk::open(&map.device)?, Disk::open(&map.other_host.path())?);
    let theirs = |request: &crate::commands::Request| SgIo::new().execute(other_host.file().as_fd(), request.command());
    theirs(&read_keys())?;

    for (request, expected) in [
        (register(Key::ZERO, OURS), GOOD),
        (register(Key::ZERO, OURS), CONFLICT),
        (reserve(OURS, RO), GOOD),
        (release(OURS, RO), GOOD),
    ] {
        let answer = client.execute(device.file().as_fd(), request.command())?;
        let outcome = if answer == expected { Ok(()) } else { Err(format!("{answer}; the journal: {}", journal()?)) };
        report.check(format!("{request}: {expected}"), outcome);
    }
    let Completion::Good(data) = theirs(&read_full_status())? else { anyhow::bail!("the other host cannot read") };
    let keys: Vec<_> =
        FullStatus::parse(&data)?.value.descriptors.iter().map(|registration| registration.key).collect();
    report.equal("keys of the registrations, one for each path", &format!("{:?}", [OURS; 2]), &format!("{keys:?}"));
    let answer = client.execute(device.file().as_fd(), clear(OURS).command())?;
    report.equal("CLEAR", GOOD.to_string().as_str(), &answer.to_string());
    let lines: Vec<_> = journal()?.lines().filter(|line| line.starts_with("worker for")).map(str::to_owned).collect();
    report.equal("lines that workers log", "", &lines.join("; "));
    let score = run("systemd-analyze", &["security", "--no-pager", "--threshold=25", "qemu-pr-helper.service"]);
    report.check("the unit has its sandbox", score.map(drop).map_err(|error| format!("{error:#}")));
    Ok(())
}

fn journal() -> Result<String> {
    run("journalctl", &["--unit=qemu-pr-helper.service", "--output=cat"])
}

fn monitoring(lab: &mut Lab, report: &mut Report) -> Result<()> {
    let device = fs::File::options().read(true).write(true).open(&lab.target()?.unit()?.disks[0])?;
    start_socket(lab)?;
    let drop_in = block("# systemctl edit qemu-pr-helper\n")?;
    let directory = "/etc/systemd/system/qemu-pr-helper.service.d";
    make(directory)?;
    write(format!("{directory}/override.conf"), drop_in)?;
    shell("systemctl daemon-reload")?; // as `systemctl edit` does
    shell(&("systemctl restart".to_owned() + block("systemctl restart")?))?;
    let client = HelperClient::new(SOCKET);
    let answer = client.execute(device.as_fd(), register_ignoring(Key(0xabc)).command())?;
    ensure!(answer == GOOD, "{answer}");

    let sample = "qemu_pr_helper_commands_total{command=\"out\",service_action=\"register-and-ignore-existing-key\",\
                  status=\"good\",device_class=\"scsi-disk\"}";
    for command in ("curl".to_owned() + block("curl")?).lines() {
        let text = shell(command);
        let outcome = match &text {
            Ok(text) if text.contains(&format!("{sample} 1\n")) && text.ends_with("# EOF\n") => Ok(()),
            other => Err(format!("{other:?}")),
        };
        report.check(format!("{command} has the text"), outcome);
    }

    make(COLLECTOR)?;
    for file in block("# /etc/systemd/system/")?.split("# /etc/systemd/system/") {
        let (name, text) = file.split_once('\n').context("a file has a name")?;
        write(format!("/etc/systemd/system/{name}"), text)?;
    }
    shell(&("systemctl daemon-reload".to_owned() + block("systemctl daemon-reload")?))?;
    let file = format!("{COLLECTOR}/qemu-pr-helper.prom");
    wait_for("file of the timer", || fs::metadata(&file))?;
    let root = Path::new("/run/exporter");
    Package::new(lab.packages()?, "prometheus-node-exporter", "").unpack(root)?;
    let program = root.join("usr/bin/prometheus-node-exporter");
    shell(&format!(
        "systemd-run --unit=exporter {} --collector.disable-defaults --collector.textfile \
         --collector.textfile.directory={COLLECTOR} --web.listen-address=127.0.0.1:9100",
        program.display()
    ))?;
    let text = wait_for("answer of the node exporter", || shell("curl -sS http://127.0.0.1:9100/metrics"))?;
    for line in ["# TYPE qemu_pr_helper_commands_total untyped", "node_textfile_scrape_error 0"] {
        let outcome = if text.lines().any(|found| found == line) { Ok(()) } else { Err(text.clone()) };
        report.check(format!("the node exporter has {line:?}"), outcome);
    }
    // It sorts the labels.
    let labels = "device_class=\"scsi-disk\",service_action=\"register-and-ignore-existing-key\",status=\"good\"} 1";
    let outcome = if text.contains(labels) { Ok(()) } else { Err(text) };
    report.check("the node exporter has the count of the command", outcome);
    shell("systemctl stop qemu-pr-helper-metrics.timer exporter")?;
    Ok(())
}

/// The rest of the code block of the guide that begins so.
fn block(beginning: &str) -> Result<&'static str> {
    let mut blocks = GUIDE.split("```\n").skip(1).step_by(2);
    let found = blocks.find_map(|block| block.strip_prefix(beginning));
    found.with_context(|| format!("the guide has no block that begins with {beginning:?}"))
}

fn shell(command: &str) -> Result<String> {
    run("sh", &["-ec", command])
}
