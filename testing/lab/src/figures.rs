//! `cargo xtask bench multipath`: the times of commands on multipath maps, each next to another measurement that alternates
//! with it in the same boot.
//!
//! Each round prints a line `round FIGURE HELPER OTHER`, separated by tabs. The bench makes its table from these lines.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use scsi_pr::{Completion, Key, PrManager, Type};
use scsi_pr_helper::HelperClient;

use crate::commands::{Request, read_full_status, read_keys, register_ignoring, release, reserve};
use crate::helper::Helper;
use crate::map::{Map, Multipath};
use crate::report::line;
use crate::system::{run as run_program, write};
use crate::target::Target;

const KEY: Key = Key(0xaaa);
const KIND: Type = Type::WriteExclusiveRegistrantsOnly;

/// The number of maps that are reserved at once.
const MAPS: usize = 10;

/// The number of paths of each map.
const PATHS: usize = 2;

/// Measures the helper at `program`, as an ordinary user.
pub(crate) fn run(program: &Path) -> Result<()> {
    let mut multipath = Multipath::start(Rc::new(Target::start()?), MAPS + 1)?;
    let paths = multipath.map(PATHS, 0)?.paths.iter().map(|path| File::open(path.path()));
    let paths = paths.collect::<Result<Vec<_>, _>>()?;
    let mut maps = Vec::new();
    for number in 0..2 {
        maps.push(Device::of_map(multipath.map(PATHS, number)?)?);
    }
    line("one command after the other, on one CPU");
    let all_cpus = sched_getaffinity(None)?;
    let mut one_cpu = CpuSet::new();
    one_cpu.set(0);
    sched_setaffinity(None, &one_cpu)?;
    let helper = start(program, "measured", &[])?;
    alone(&helper, &maps[0], &maps[1])?;
    reading(&helper, &maps[0], &paths)?;
    routing(program, &paths[0])?;
    sched_setaffinity(None, &all_cpus)?;
    let helper = start(program, "measured-at-once", &[])?;
    for number in 2..=MAPS {
        maps.push(Device::of_map(multipath.map(PATHS, number)?)?);
    }
    line("ten at once");
    at_once(&helper, &maps)
}

fn start(program: &Path, name: &str, options: &[&str]) -> Result<Helper> {
    Helper::start(program, name, &[&["-u", "nobody"], options].concat())
}

/// Prints a round: the helper's value, and the one that it is compared with.
fn round(figure: &str, helper: f64, other: f64) {
    line(&format!("round\t{figure}\t{helper}\t{other}"));
}

/// A map, for the helper and for mpathpersist.
struct Device {
    name: String,
    file: File,
}

impl Device {
    fn of_map(map: &Map) -> Result<Self> {
        Ok(Self {
            name: map.device.display().to_string(),
            file: File::options().read(true).write(true).open(&map.device)?,
        })
    }
}

/// A command, and the arguments of mpathpersist for the same command.
struct Step {
    name: &'static str,
    request: Request,
    arguments: Vec<String>,
}

/// The commands of a cluster. Each leaves the map in the state that the next one needs, and the last one in the initial
/// state.
fn steps() -> [Step; 4] {
    let step = |name, request, arguments: String| Step {
        name,
        request,
        arguments: arguments.split(' ').map(str::to_owned).collect(),
    };
    let (key, kind) = (format!("{:x}", KEY.0), KIND.code());
    [
        step("REGISTER", register_ignoring(KEY), format!("--register-ignore --param-sark={key}")),
        step("RESERVE", reserve(KEY, KIND), format!("--reserve --param-rk={key} --prout-type={kind}")),
        step("RELEASE", release(KEY, KIND), format!("--release --param-rk={key} --prout-type={kind}")),
        step("unregister", register_ignoring(Key::ZERO), "--register-ignore --param-sark=0".to_owned()),
    ]
}

/// A program that runs steps.
trait Runner {
    fn run(&self, step: &Step, device: &Device) -> Result<()>;
}

impl Runner for HelperClient {
    fn run(&self, step: &Step, device: &Device) -> Result<()> {
        send(self, &step.request, device.file.as_fd())
    }
}

/// Debian's mpathpersist, started once for each command.
struct Mpathpersist;

impl Runner for Mpathpersist {
    fn run(&self, step: &Step, device: &Device) -> Result<()> {
        let mut command = Command::new("mpathpersist");
        command.arg("--out").args(&step.arguments).arg(&device.name);
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().context("start mpathpersist")?;
        ensure!(status.success(), "{} by mpathpersist: {status}", step.request);
        Ok(())
    }
}

fn send(helper: &HelperClient, request: &Request, device: BorrowedFd<'_>) -> Result<()> {
    match helper.execute(device, request.command())? {
        Completion::Good(_) => Ok(()),
        other => bail!("{request}: {other}"),
    }
}

/// The time of `act`, in ms.
fn timed(act: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    act()?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// One command after the other, each by the helper and by mpathpersist. The two alternate in order and in map.
fn alone(helper: &Helper, one: &Device, other: &Device) -> Result<()> {
    const ROUNDS: usize = 41;
    let client = helper.client();
    let steps = steps();
    for number in 0..ROUNDS {
        let (helper_map, other_map) = if number % 4 < 2 { (one, other) } else { (other, one) };
        let (mut helper_sum, mut other_sum) = (0.0, 0.0);
        for step in &steps {
            let by_helper = || timed(|| client.run(step, helper_map));
            let by_other = || timed(|| Mpathpersist.run(step, other_map));
            let (helper_time, other_time);
            if number % 2 == 0 {
                helper_time = by_helper()?;
                other_time = by_other()?;
            } else {
                other_time = by_other()?;
                helper_time = by_helper()?;
            }
            round(&format!("alone {}", step.name), helper_time, other_time);
            helper_sum += helper_time;
            other_sum += other_time;
        }
        round("alone", helper_sum, other_sum);
    }
    Ok(())
}

/// A command on one map, and the same on ten others at once, from the first request until the last answer. The target
/// answers first without, then with a delay.
fn at_once(helper: &Helper, maps: &[Device]) -> Result<()> {
    const ROUNDS: usize = 5;
    let clients: Vec<HelperClient> = maps.iter().map(|_| helper.client()).collect();
    let by_helper: Vec<&(dyn Runner + Sync)> = clients.iter().map(|client| client as _).collect();
    let mpathpersist: Vec<&(dyn Runner + Sync)> = maps.iter().map(|_| &Mpathpersist as _).collect();
    let measure = |figure: &str, runners: &[&(dyn Runner + Sync)]| -> Result<()> {
        let (mut all, mut one) = (0.0, 0.0);
        for step in steps() {
            one += together(&maps[MAPS..], &runners[MAPS..], &step)?;
            all += together(&maps[..MAPS], &runners[..MAPS], &step)?;
        }
        round(figure, all, one);
        Ok(())
    };
    for _ in 0..ROUNDS {
        measure("at once, helper", &by_helper)?;
        measure("at once, mpathpersist", &mpathpersist)?;
    }
    // Each command of iSCSI crosses lo twice.
    run_program("modprobe", &["sch_netem"])?;
    let queue = |action, rest: &[&str]| run_program("tc", &[&["qdisc", action, "dev", "lo", "root"], rest].concat());
    queue("add", &["netem", "delay", "10ms", "limit", "10000"])?;
    for _ in 0..ROUNDS {
        measure("slow array, helper", &by_helper)?;
    }
    queue("del", &[])?;
    Ok(())
}

/// The time until the last answer, in ms.
fn together(maps: &[Device], runners: &[&(dyn Runner + Sync)], step: &Step) -> Result<f64> {
    let start = Barrier::new(maps.len() + 1);
    thread::scope(|scope| {
        let running: Vec<_> = maps
            .iter()
            .zip(runners)
            .map(|(map, runner)| {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    runner.run(step, map)
                })
            })
            .collect();
        timed(|| {
            start.wait();
            running.into_iter().try_for_each(|running| running.join().expect("the thread does not panic"))
        })
    })
}

/// PERSISTENT RESERVE IN on a map, next to one of its paths, and next to both paths in turn, as the kernel uses them. All
/// commands go through the helper.
fn reading(helper: &Helper, map: &Device, paths: &[File]) -> Result<()> {
    const ROUNDS: usize = 25;
    const COMMANDS: usize = 40;
    let client = helper.client();
    send(&client, &register_ignoring(KEY), map.file.as_fd())?;
    for (name, request) in [("READ KEYS", read_keys()), ("READ FULL STATUS", read_full_status())] {
        let median = |devices: &[BorrowedFd<'_>]| -> Result<f64> {
            let times = devices.iter().cycle().take(COMMANDS).map(|device| timed(|| send(&client, &request, *device)));
            let mut times = times.collect::<Result<Vec<f64>>>()?;
            times.sort_by(f64::total_cmp);
            Ok(times[COMMANDS / 2])
        };
        let paths: Vec<_> = paths.iter().map(AsFd::as_fd).collect();
        for _ in 0..ROUNDS {
            let (one, both) = (median(&paths[..1])?, median(&paths)?);
            let helper = median(&[map.file.as_fd()])?;
            round(&format!("in {name}"), helper, one);
            round(&format!("in turns {name}"), helper, both);
        }
    }
    send(&client, &register_ignoring(Key::ZERO), map.file.as_fd())
}

const TRACING: &str = "/sys/kernel/tracing";

/// The system calls that routing adds to a READ KEYS of a known disk. The helper with `--manager=sg-io` does not route.
/// The kernel counts the calls.
fn routing(program: &Path, path: &File) -> Result<()> {
    run_program("mount", &["-t", "tracefs", "tracefs", TRACING])?;
    let tracing = |attribute: &str| format!("{TRACING}/{attribute}");
    let count = |options: &[&str]| -> Result<f64> {
        const COMMANDS: usize = 20;
        let helper = start(program, "counted", options)?;
        let client = helper.client();
        for _ in 0..3 {
            send(&client, &read_keys(), path.as_fd())?;
        }
        let threads = fs::read_dir(format!("/proc/{}/task", helper.process()))?;
        let threads = threads.map(|thread| Ok(thread?.file_name().to_string_lossy().into_owned()));
        write(tracing("set_event_pid"), &threads.collect::<Result<Vec<_>>>()?.join(" "))?;
        write(tracing("trace"), "")?;
        write(tracing("events/raw_syscalls/sys_enter/enable"), "1")?;
        for _ in 0..COMMANDS {
            send(&client, &read_keys(), path.as_fd())?;
        }
        write(tracing("events/raw_syscalls/sys_enter/enable"), "0")?;
        let calls = fs::read_to_string(tracing("trace"))?.matches("sys_enter:").count();
        Ok(calls as f64 / COMMANDS as f64)
    };
    for _ in 0..5 {
        let routed = count(&[])?;
        round("routing", routed - count(&["--manager=sg-io"])?, 1.0);
    }
    Ok(())
}
