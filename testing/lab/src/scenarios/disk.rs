//! Both halves of the project together: `scsi-pr disk` with two portal groups, open-iscsi and dm-multipath on it, and
//! `qemu-pr-helper` on the map.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use scsi_pr::{Completion, FullStatus, PrManager};

use crate::commands::{Request, preempt_and_abort, read_full_status, register, register_ignoring, reserve};
use crate::disk::{Disk, is_conflict};
use crate::fixture::{GOOD, OURS, RO, THEIRS};
use crate::helper::Helper;
use crate::map::{active_paths, start_multipathd, start_udev, write_configuration};
use crate::report::Report;
use crate::scenario::Scenario;
use crate::system::{run, wait_for};
use crate::target::{discover, name_of, start_iscsid};

/// A map over both portal groups.
pub(super) const MULTIPATH: Scenario = Scenario {
    name: "disk-multipath",
    boot: "disk",
    purpose: "qemu-pr-helper on a multipath map over two portal groups of scsi-pr disk, which refuses a fenced map",
    run: |lab, report| {
        run("modprobe", &["--all", "iscsi_tcp", "sd_mod", "sg"])?;
        start_iscsid()?;
        start_udev()?;
        write_configuration("reservation_key file")?;
        start_multipathd()?;
        let server = Server::start(&lab.scsi_pr())?;
        discover(HOST)?;
        for action in ["--login", "--rescan"] {
            run("iscsiadm", &["-m", "node", "-T", TARGET, "-I", HOST, action])?;
        }
        let map = wait_for_map()?;
        let helper = Helper::start(&lab.helper(), "disk-multipath", &["-u", "nobody"])?;
        Checks { report, server, helper, map }.run()
    },
};

const TARGET: &str = "iqn.2026-11.io.scsi-pr:shared";
const PORTALS: [&str; 2] = ["127.0.0.1:3260", "127.0.0.2:3260"];
const IMAGE: &str = "/dev/shm/shared.img";
const CONTROL: &str = "/run/disk.sock";

/// The initiator with both paths, and the one that fences it.
const HOST: &str = "host";
const OTHER: &str = "other";

/// A registration as READ FULL STATUS has it: target port, key, held?
type Registration = (u16, u64, bool);

struct Checks<'a> {
    report: &'a mut Report,
    server: Server,
    helper: Helper,
    map: PathBuf,
}

impl Checks<'_> {
    fn run(mut self) -> Result<()> {
        self.through_the_map(&register(scsi_pr::Key::ZERO, OURS))?;
        self.through_the_map(&reserve(OURS, RO))?;
        let paths = self.registrations()?;
        let is_each = matches!(paths[..], [(1, key, a), (2, other, b)] if key == OURS.0 && other == key && a != b);
        self.check("both target ports are registered, and one holds the reservation", is_each, &paths);
        self.writes(true)?;

        self.as_other(&register(scsi_pr::Key::ZERO, THEIRS))?;
        self.as_other(&preempt_and_abort(THEIRS, OURS, RO))?;
        self.writes(false)?;
        let rest = self.registrations()?;
        self.check("the map has no registration", rest == [(1, THEIRS.0, true)], &rest);

        self.server.restart()?;
        self.writes(false)?;
        self.through_the_map(&register_ignoring(OURS))?;
        self.writes(true)?;
        let paths = self.registrations()?;
        let expected = [(1, OURS.0, false), (1, THEIRS.0, true), (2, OURS.0, false)];
        self.check("after a restart of the disk and a new registration, both paths have it", paths == expected, &paths);
        Ok(())
    }

    fn check(&mut self, what: &str, is_expected: bool, actual: &[Registration]) {
        self.report.check(what, if is_expected { Ok(()) } else { Err(format!("{actual:x?}")) });
    }

    /// The answer of the helper, after the unit attentions of both paths.
    fn answer(&self, request: &Request) -> Result<Completion> {
        let map = Disk::open(&self.map)?;
        let answer = || self.helper.client().execute(map.file().as_fd(), request.command());
        let mut last = answer()?;
        for _ in 0..4 {
            if !matches!(last, Completion::CheckCondition(_)) {
                break;
            }
            last = answer()?;
        }
        Ok(last)
    }

    fn through_the_map(&mut self, request: &Request) -> Result<()> {
        let answer = self.answer(request)?;
        let outcome = if answer == GOOD { Ok(()) } else { Err(format!("{answer}; {:?}", self.helper.logged())) };
        self.report.check(format!("qemu-pr-helper on the map: {request}"), outcome);
        Ok(())
    }

    /// Another initiator's command, through the control socket of the disk.
    fn as_other(&mut self, request: &Request) -> Result<()> {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let command = request.command();
        let mut socket = UnixStream::connect(CONTROL).context("connect to the control socket")?;
        writeln!(
            socket,
            r#"{{"request":"execute","unit":"shared","initiator":"{}","cdb":"{}","data":"{}"}}"#,
            name_of(OTHER),
            hex(&command.cdb().bytes()[..10]),
            hex(command.parameter_list())
        )?;
        let mut answer = String::new();
        BufReader::new(socket).read_line(&mut answer)?;
        let outcome = if answer.contains(r#""status":0,"#) { Ok(()) } else { Err(answer) };
        self.report.check(format!("another host: {request}"), outcome);
        Ok(())
    }

    fn registrations(&self) -> Result<Vec<Registration>> {
        let data = match self.answer(&read_full_status())? {
            Completion::Good(data) => data,
            other => bail!("the registrations cannot be read: {other}"),
        };
        let descriptors = FullStatus::parse(&data)?.value.descriptors;
        let mut registrations: Vec<_> = descriptors
            .iter()
            .map(|descriptor| (descriptor.relative_target_port, descriptor.key.0, descriptor.held.is_some()))
            .collect();
        registrations.sort_unstable();
        Ok(registrations)
    }

    /// A write to the map passes, or the disk refuses it.
    fn writes(&mut self, passes: bool) -> Result<()> {
        let outcome = match (Disk::open(&self.map)?.write(1), passes) {
            (Ok(()), true) => Ok(()),
            (Err(error), false) if is_conflict(&error) => Ok(()),
            (other, _) => Err(format!("{other:?}")),
        };
        self.report.check(format!("a write to the map {}", if passes { "passes" } else { "is refused" }), outcome);
        Ok(())
    }
}

/// The map over both disks, once both paths are in use.
fn wait_for_map() -> Result<PathBuf> {
    wait_for("map with two active paths", || {
        let status = run("dmsetup", &["status", "--target", "multipath"])?;
        let (name, rest) = status.split_once(':').context("no map")?;
        if active_paths(rest) < 2 {
            bail!("{status}");
        }
        let device = Path::new("/dev/mapper").join(name);
        fs::metadata(&device)?;
        Ok(device)
    })
}

/// `scsi-pr disk` with two portal groups. It is killed when dropped.
struct Server {
    process: Child,
    program: PathBuf,
}

impl Server {
    fn start(program: &Path) -> Result<Self> {
        File::create(IMAGE)?.set_len(64 << 20)?;
        let server = Self { process: spawn(program)?, program: program.to_owned() };
        server.wait_until_served()?;
        Ok(server)
    }

    /// Kills the server, without a chance to put anything in order, and starts it again.
    fn restart(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        self.process = spawn(&self.program)?;
        self.wait_until_served()
    }

    fn wait_until_served(&self) -> Result<()> {
        for portal in PORTALS {
            wait_for(portal, || TcpStream::connect(portal))?;
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(program: &Path) -> Result<Child> {
    let mut command = Command::new(program);
    command.args(["disk", "--store=sqlite:/run/disk.db", &format!("--unit=shared={IMAGE}")]);
    command.args(PORTALS.map(|portal| format!("--listen={portal}"))).arg(format!("--control={CONTROL}"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().with_context(|| format!("start {}", program.display()))
}
