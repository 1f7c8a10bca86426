//! `scsi-pr` on real devices: each reading is that of sg_persist, and each change has the effect that sg_persist sees.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::disk::{Disk, is_conflict};
use crate::helper::Helper;
use crate::lab::Lab;
use crate::layer::Layer;
use crate::report::Report;
use crate::scenario::Scenario;
use crate::system::run;
use crate::target::name_of;

/// Two initiators of a SCSI disk.
pub(super) const SCSI: Scenario = Scenario {
    name: "administration",
    boot: "target",
    purpose: "the commands of scsi-pr on a SCSI disk, directly and through a helper, as sg_persist sees it",
    run: |lab, report| {
        let disks = lab.target()?.unit()?.disks;
        let mut checks = Checks { program: lab.scsi_pr(), report };
        checks.readings_and_changes(&disks)?;
        checks.refusals(&disks)?;
        checks.test_of_the_unit(&disks)?;
        let helper = Helper::start(&lab.helper(), "administration", &["-u", "nobody"])?;
        checks.through_a_helper(&helper, &disks)
    },
};

/// A multipath map of two paths.
pub(super) const MULTIPATH: Scenario = Scenario {
    name: "administration-multipath",
    boot: "multipath",
    purpose: "the commands of scsi-pr on a multipath map register, reserve and release by every path",
    run: on_a_map,
};

/// Two hosts of an NVMe namespace.
pub(super) const NVME: Scenario = Scenario {
    name: "administration-nvme",
    boot: "nvme",
    purpose: "the commands of scsi-pr on an NVMe namespace with two hosts",
    run: |lab, report| {
        let disks = lab.nvmet()?.namespace()?.disks;
        Checks { program: lab.scsi_pr(), report }.on_nvme(&disks)
    },
};

struct Checks<'a> {
    program: PathBuf,
    report: &'a mut Report,
}

/// The end of a command.
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Checks<'_> {
    fn run(&self, command: &str, device: &Path, options: &[&str]) -> Result<Ended> {
        let output = Command::new(&self.program)
            .args(command.split(' '))
            .arg(device)
            .args(options)
            .stdin(Stdio::null())
            .output()
            .context("start scsi-pr")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Ended { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) })
    }

    /// Runs a command that ends with this code, and returns its standard error.
    fn expect(&mut self, command: &str, device: &Path, options: &[&str], code: i32) -> Result<String> {
        let Ended { code: actual, stdout, stderr } = self.run(command, device, options)?;
        let outcome = if actual == Some(code) { Ok(()) } else { Err(format!("{actual:?}: {stdout}{stderr}")) };
        self.report.check(format!("scsi-pr {command} {} ends with {code}", device.display()), outcome);
        Ok(stderr)
    }

    /// The unit in the JSON of `show`.
    fn show(&self, device: &Path, options: &[&str]) -> Result<Value> {
        let ended = self.run("show --json", device, options)?;
        let json: Value = serde_json::from_str(&ended.stdout).with_context(|| ended.stderr.clone())?;
        Ok(json["units"][0].clone())
    }

    /// `show` agrees with READ KEYS, READ RESERVATION and READ FULL STATUS of sg_persist.
    fn agrees_with_sg_persist(&mut self, when: &str, device: &Path, options: &[&str]) -> Result<()> {
        let unit = self.show(device, options)?;
        let registrations = unit["registrations"].as_array().cloned().unwrap_or_default();
        let number = |key: &Value| key.as_str().and_then(|key| u64::from_str_radix(&key[2..], 16).ok()).unwrap_or(0);
        let mut keys: Vec<u64> = registrations.iter().map(|one| number(&one["key"])).collect();
        let mut expected = sg_persist_keys(device)?;
        keys.sort_unstable();
        expected.sort_unstable();
        let same = if keys == expected { Ok(()) } else { Err(format!("{keys:x?}, not {expected:x?}")) };
        self.report.check(format!("{when}: the keys are those of sg_persist: {expected:x?}"), same);

        let reservation = run("sg_persist", &["--no-inquiry", "--in", "-r", &device.to_string_lossy()])?;
        let held = &unit["reservation"];
        let same = match held.is_null() {
            true => reservation.contains("NO reservation held"),
            false => reservation.contains(&format!("Key={:#x}", number(&held["key"]))),
        };
        let same = if same { Ok(()) } else { Err(format!("{held}, not {reservation}")) };
        self.report.check(format!("{when}: the reservation is that of sg_persist"), same);

        let status = run("sg_persist", &["--no-inquiry", "--in", "-s", &device.to_string_lossy()])?;
        let names = registrations.iter().filter_map(|one| one["transport-id"].as_str());
        let missing: Vec<_> = names.filter(|name| !status.contains(&name[..name.len().min(40)])).collect();
        let holders = registrations.iter().filter(|one| one["holder"] == true).count();
        let same = missing.is_empty()
            && registrations.iter().all(|one| one["transport-id"].is_string())
            && holders == status.matches("Reservation holder").count();
        let same = if same { Ok(()) } else { Err(format!("{unit}, not {status}")) };
        self.report.check(format!("{when}: initiators and holders are those of sg_persist"), same);
        Ok(())
    }

    fn readings_and_changes(&mut self, disks: &[PathBuf; 2]) -> Result<()> {
        let [a, b] = disks;
        self.agrees_with_sg_persist("nothing registered", a, &[])?;
        self.expect("register --key=0xaaa", a, &[], 0)?;
        self.expect("register --key=6e6f646532000000", b, &[], 0)?;
        self.expect("reserve --key=aaa --type=wero", a, &[], 0)?;
        for disk in [a, b] {
            self.agrees_with_sg_persist("two registrants and a reservation", disk, &[])?;
        }
        self.marks(a, "a")?;
        self.marks(b, "b")?;
        let text = self.run("show", b, &[])?.stdout;
        self.contains(
            "text has the key as text, the type and the mark",
            &text,
            &["\"node2\"", "Registrants Only", "this host"],
        );
        let text = self.run("capabilities", a, &[])?.stdout;
        self.contains("capabilities have the types", &text, &["write-exclusive-registrants-only"]);

        self.expect("preempt --key=6e6f646532000000 --victim=aaa --abort --yes", b, &[], 0)?;
        self.agrees_with_sg_persist("after PREEMPT AND ABORT", b, &[])?;
        let write = Disk::open(a)?.write(1);
        let refused = matches!(&write, Err(error) if is_conflict(error));
        self.report.check(
            "a write of the preempted initiator is refused",
            if refused { Ok(()) } else { Err(format!("{write:?}")) },
        );
        let ended = self.run("keys -v", a, &[])?;
        self.report.equal("the preempted initiator reads keys: exit code", &0, &ended.code.unwrap_or(-1));

        self.expect("register --key=0xaaa", a, &[], 0)?;
        let port = format!("{},i,0x", name_of("a"));
        let to = self.show(a, &[])?["registrations"]
            .as_array()
            .into_iter()
            .flatten()
            .find_map(|one| one["transport-id"].as_str().filter(|id| id.starts_with(&port)).map(str::to_owned));
        let to = to.context("initiator a is not registered")?;
        let hand_over = ["--to", &to, "--to-key=0xaab", "--unregister", "--yes"];
        self.expect("move --key=6e6f646532000000", b, &hand_over, 0)?;
        self.agrees_with_sg_persist("after REGISTER AND MOVE", a, &[])?;
        self.expect("release --key=aab", a, &[], 0)?;
        self.agrees_with_sg_persist("after RELEASE", a, &[])?;
        self.expect("unregister --key=aab", a, &[], 0)?;
        self.expect("register --key=1", a, &[], 0)?;
        self.expect("register --key=2", b, &[], 0)?;
        self.expect("clear --key=1 --yes", a, &[], 0)?;
        self.agrees_with_sg_persist("after CLEAR, past the unit attention", b, &[])
    }

    fn refusals(&mut self, disks: &[PathBuf; 2]) -> Result<()> {
        let [a, b] = disks;
        // LIO has NOT READY where the standard has RESERVATION CONFLICT.
        let stderr = self.expect("reserve --key=5 --type=we", a, &[], 5)?;
        self.contains("the message names the cause", &stderr, &["not registered"]);
        self.expect("register --key=1", a, &[], 0)?;
        self.expect("register --key=2", b, &[], 0)?;
        self.expect("reserve --key=1 --type=ea", a, &[], 0)?;
        self.expect("reserve --key=2 --type=ea", b, &[], 3)?;
        self.expect("preempt --key=2 --victim=1", b, &[], 2)?;
        self.agrees_with_sg_persist("nothing is changed without --yes", a, &[])?;
        let list = self.run("list", Path::new("--json"), &[])?.stdout;
        // Both disks are one unit.
        let count = list.matches("\"registrations\":2").count();
        self.report.equal("list has the disk once", &1, &count);
        self.expect("clear --key=1 --yes", a, &[], 0)?;
        self.expect("keys", b, &[], 0)?;
        let partition = Layer::partition(a)?;
        let stderr = self.expect("register --key=1", &partition.path, &[], 2)?;
        self.contains("a partition is refused by name", &stderr, &["partition"]);
        drop(partition);
        let unprivileged = Command::new("setpriv")
            .args(["--bounding-set=-all", "--inh-caps=-all"])
            .arg(&self.program)
            .arg("show")
            .arg(a)
            .output()?;
        let stderr = String::from_utf8_lossy(&unprivileged.stderr).into_owned();
        self.report.equal("without privileges: exit code", &1, &unprivileged.status.code().unwrap_or(-1));
        self.contains("the message names the capability", &stderr, &["CAP_SYS_RAWIO", "root"]);
        Ok(())
    }

    fn on_nvme(&mut self, disks: &[PathBuf; 2]) -> Result<()> {
        let [a, b] = disks;
        self.registered("nothing is registered", a, &[])?;
        self.expect("register --key=0xaaa", a, &[], 0)?;
        self.expect("register --key=0xbbb", b, &[], 0)?;
        self.expect("reserve --key=aaa --type=wero", a, &[], 0)?;
        let two = [("0x0000000000000aaa", true), ("0x0000000000000bbb", false)];
        for disk in [a, b] {
            self.registered("both hosts are registered, and the first holds", disk, &two)?;
        }
        for (disk, key) in [(a, "0x0000000000000aaa"), (b, "0x0000000000000bbb")] {
            let unit = self.show(disk, &[])?;
            let mut own = unit["registrations"].as_array().into_iter().flatten().filter(|one| one["own"] == true);
            let is_own = own.next().is_some_and(|one| one["key"] == key) && own.next().is_none();
            let outcome = if is_own { Ok(()) } else { Err(unit.to_string()) };
            self.report.check(format!("{} marks the registration of its host alone", disk.display()), outcome);
        }
        self.expect("reserve --key=bbb --type=we", b, &[], 3)?;
        self.expect("preempt --key=bbb --victim=aaa --yes", b, &[], 0)?;
        self.registered("the second host preempted the first", a, &[("0x0000000000000bbb", true)])?;
        self.expect("release --key=bbb", b, &[], 0)?;
        self.expect("clear --key=bbb --yes", b, &[], 0)?;
        self.registered("everything is cleared", a, &[])
    }

    /// The keys and the holder are these, in any order.
    fn registered(&mut self, what: &str, disk: &Path, expected: &[(&str, bool)]) -> Result<()> {
        let unit = self.show(disk, &[])?;
        let all = unit["registrations"].as_array().into_iter().flatten();
        let mut actual: Vec<_> = all
            .map(|one| (one["key"].as_str().unwrap_or_default(), one["holder"] == true && !one["initiator"].is_null()))
            .collect();
        actual.sort_unstable();
        let outcome = if actual == expected && unit["complete"] == true { Ok(()) } else { Err(unit.to_string()) };
        self.report.check(format!("{}: {what}", disk.display()), outcome);
        Ok(())
    }

    /// `scsi-pr check` before a cluster uses the unit.
    fn test_of_the_unit(&mut self, disks: &[PathBuf; 2]) -> Result<()> {
        let [a, b] = disks;
        let works =
            ["read-full-status", "register-with-aptpl", "reserve-write-exclusive-registrants-only", "identifiers"];
        let report = self.check_report(a, &[])?;
        self.works(&report, &works);
        let clusters = [
            ("Windows failover cluster", "no-obstacle-found"),
            ("Pacemaker, fence_scsi", "no-obstacle-found"),
            ("Pacemaker, fence_mpath", "not-examined"),
        ];
        self.verdicts(&report, &clusters);
        let milliseconds = report["longest-reservation-ms"].as_u64().unwrap_or(u64::MAX);
        let outcome = if milliseconds < 1000 { Ok(()) } else { Err(format!("{milliseconds} ms")) };
        self.report.check(format!("no reservation of the check lasts a second ({milliseconds} ms)"), outcome);
        self.agrees_with_sg_persist("after a check", b, &[])?;
        self.report.equal("no key is left", "[]", &*format!("{:x?}", sg_persist_keys(b)?));
        self.expect("register --key=5", b, &[], 0)?;
        let stderr = self.expect("check", a, &[], 3)?;
        self.contains("a registered unit is refused", &stderr, &["1 registrations", "changed nothing"]);
        self.report.equal("its key stays", "[5]", &*format!("{:x?}", sg_persist_keys(b)?));
        self.expect("unregister --key=5", b, &[], 0).map(drop)
    }

    /// The JSON of a check.
    fn check_report(&self, device: &Path, options: &[&str]) -> Result<Value> {
        let ended = self.run("check --json", device, options)?;
        serde_json::from_str(&ended.stdout).with_context(|| ended.stderr.clone())
    }

    /// These tests of a check have the outcome "works".
    fn works(&mut self, report: &Value, tests: &[&str]) {
        for name in tests {
            let test = report["tests"].as_array().into_iter().flatten().find(|test| test["test"] == *name);
            let works = test.is_some_and(|test| test["outcome"] == "works");
            self.report.check(format!("check: {name} works"), if works { Ok(()) } else { Err(format!("{test:?}")) });
        }
    }

    fn verdicts(&mut self, report: &Value, clusters: &[(&str, &str)]) {
        for (name, verdict) in clusters {
            let cluster = report["clusters"].as_array().into_iter().flatten().find(|one| one["cluster"] == *name);
            let same = cluster.is_some_and(|cluster| cluster["verdict"] == *verdict);
            let outcome = if same { Ok(()) } else { Err(format!("{cluster:?}")) };
            self.report.check(format!("check: {name}: {verdict}"), outcome);
        }
    }

    fn through_a_helper(&mut self, helper: &Helper, disks: &[PathBuf; 2]) -> Result<()> {
        let [a, _] = disks;
        let via = format!("--via={}", helper.socket().display());
        self.expect("register --key=7", a, &[&via], 0)?;
        self.agrees_with_sg_persist("registered through the helper", a, &[&via])?;
        self.marks(a, "a")?;
        self.expect("unregister --key=7", a, &[&via], 0)?;
        self.agrees_with_sg_persist("unregistered through the helper", a, &[&via])?;
        let report = self.check_report(a, &[&via])?;
        self.works(&report, &["register-with-aptpl", "reserve-exclusive-access", "identifiers", "unregister"]);
        self.report.equal(
            "no key is left by a check through the helper",
            "[]",
            &*format!("{:x?}", sg_persist_keys(a)?),
        );
        let socket = format!("--socket={}", helper.socket().display());
        let ended = self.run("doctor", Path::new(&socket), &[])?;
        self.contains("doctor finds the helper", &ended.stdout, &["good   helper: ", "scsi-pr's helper, answers"]);
        Ok(())
    }

    /// The registration of `initiator`, and no other, is marked as this host's.
    fn marks(&mut self, disk: &Path, initiator: &str) -> Result<()> {
        let unit = self.show(disk, &[])?;
        let own: Vec<_> = unit["registrations"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|one| one["own"] == true)
            .map(|one| one["initiator"].as_str().unwrap_or_default().to_owned())
            .collect();
        let is_own = matches!(&own[..], [only] if only.starts_with(&name_of(initiator)));
        let outcome = if is_own { Ok(()) } else { Err(format!("{own:?}")) };
        self.report.check(format!("{} marks the registration of {initiator} alone", disk.display()), outcome);
        Ok(())
    }

    fn contains(&mut self, what: &str, text: &str, parts: &[&str]) {
        let is_there = parts.iter().all(|part| text.contains(part));
        self.report.check(what, if is_there { Ok(()) } else { Err(format!("{parts:?} in {text}")) });
    }
}

fn on_a_map(lab: &mut Lab, report: &mut Report) -> Result<()> {
    let program = lab.scsi_pr();
    let map = lab.multipath()?.map(2, 0)?;
    let (device, paths) = (map.device.clone(), [map.paths[0].path(), map.paths[1].path()]);
    let mut checks = Checks { program, report };
    checks.expect("register --key=0xaaa --ignore-existing", &device, &[], 0)?;
    let keys = sg_persist_keys(&paths[0])?;
    checks.report.equal("both paths are registered", "[aaa, aaa]", &*format!("{keys:x?}"));
    checks.agrees_with_sg_persist("registered by every path", &device, &[])?;
    let unit = checks.show(&device, &[])?;
    let own = unit["registrations"].as_array().into_iter().flatten().filter(|one| one["own"] == true).count();
    checks.report.equal("both registrations are this host's", &2, &own);
    checks.expect("reserve --key=aaa --type=wero", &device, &[], 0)?;
    checks.agrees_with_sg_persist("reserved", &device, &[])?;
    checks.expect("release --key=aaa", &device, &[], 0)?;
    checks.expect("unregister --key=aaa", &device, &[], 0)?;
    let keys = sg_persist_keys(&paths[0])?;
    checks.report.equal("no path is registered", "[]", &*format!("{keys:x?}"));
    let report = checks.check_report(&device, &[])?;
    let works = ["register", "reserve-write-exclusive-registrants-only", "same-identifiers-by-all-paths", "unregister"];
    checks.works(&report, &works);
    checks.verdicts(&report, &[("Pacemaker, fence_mpath", "no-obstacle-found")]);
    let keys = sg_persist_keys(&paths[0])?;
    checks.report.equal("a check leaves no path registered", "[]", &*format!("{keys:x?}"));
    Ok(())
}

/// The keys by `sg_persist --in -k`.
fn sg_persist_keys(disk: &Path) -> Result<Vec<u64>> {
    let text = run("sg_persist", &["--no-inquiry", "--in", "-k", &disk.to_string_lossy()])?;
    Ok(text.lines().filter_map(|line| u64::from_str_radix(line.trim().strip_prefix("0x")?, 16).ok()).collect())
}
