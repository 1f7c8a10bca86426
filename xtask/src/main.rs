//! The tasks of the project: see `cargo xtask help`.
#![forbid(unsafe_code)]

#[macro_use]
mod output;

mod apt;
mod cargo;
mod command;
mod container;
mod demo;
mod dependencies;
mod disk_server;
mod fuzz;
mod guest;
mod guests;
mod initiator;
mod initramfs;
mod kernel;
mod lab;
mod machine;
mod package;
mod packages;
mod prose;
mod qemu;
mod shell;
mod test;
mod testing_kernel;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use lexopt::{Arg, Parser, ValueExt};

use lab::{Lab, Tally};
use qemu::QemuSource;
use workspace::Workspace;

const HELP: &str = "\
The tasks of the project. Each one installs missing packages of Debian, and names them first.

  cargo xtask demo                 two virtual machines share a disk, and it refuses the fenced one; seconds
  cargo xtask demo --real          two QEMU guests share a disk, and fence_scsi fences one of them; two minutes
  cargo xtask demo --helper        qemu-pr-helper on a real SCSI target, in a virtual machine; about a minute
  cargo xtask test                 every test; without root, those that take no root and no virtual machine
  cargo xtask guests               the checks of two QEMU guests on one disk; about two minutes
  cargo xtask guests --release=forky  the same with the QEMU of that release of Debian; --qemu=PROGRAM: with that one
  cargo xtask lab [SCENARIO...]    scenarios on real SCSI targets, in a virtual machine (default: all)
  cargo xtask lab --list           the names of the scenarios
  cargo xtask soak [FACTOR]        random histories and changed inputs, FACTOR times as many as in a test (default: 100)
  cargo xtask fuzz TARGET [SECONDS]  libFuzzer on a target of fuzz/ (default: 60); needs a nightly toolchain
  cargo xtask prose [PATH...]      names, sentences and links that break the rules of CONTRIBUTING.md
  cargo xtask package              Debian packages and RPMs, checked, in target/package/release; ten minutes at first
  cargo xtask container            the image of KubeVirt's pr-helper container, built and started without a registry
  cargo xtask manual               writes the manuals of scsi-pr from the options of the program
  cargo xtask bench [FIGURE...]    speed and size side by side with QEMU's helper
  cargo xtask bench disk [FIGURE...]  speed and size of `scsi-pr disk` side by side with tgt
  cargo xtask bench guest          a guest's disk of `scsi-pr disk`, beside a disk that QEMU makes of a file
  cargo xtask help                 this text
";

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the task that the command line names. Returns whether it succeeded.
fn run() -> Result<bool> {
    let workspace = Workspace::find()?;
    let mut arguments = Parser::from_env();
    let task = match arguments.next()? {
        Some(Arg::Value(task)) => task.string()?,
        Some(Arg::Long("help") | Arg::Short('h')) | None => "help".to_owned(),
        Some(other) => return Err(other.unexpected().into()),
    };
    match task.as_str() {
        "demo" => demo(&workspace, arguments),
        "guests" => check_guests(&workspace, arguments),
        "test" => {
            none(arguments)?;
            test::run(&workspace)
        }
        "manual" => {
            none(arguments)?;
            manual(&workspace)
        }
        "prose" => {
            let paths: Vec<_> = arguments.raw_args()?.map(PathBuf::from).collect();
            prose::run(&workspace.root, &paths)
        }
        "package" => {
            none(arguments)?;
            package::run(&workspace)
        }
        "container" => {
            none(arguments)?;
            container::run(&workspace)
        }
        "lab" => lab(&workspace, arguments),
        "bench" => bench(&workspace, arguments),
        "soak" => soak(&workspace, arguments),
        "fuzz" => {
            let Some(target) = arguments.next()? else { bail!("name a target, a directory of fuzz/corpus") };
            let Arg::Value(target) = target else { return Err(target.unexpected().into()) };
            let target = target.string()?;
            let seconds = number(&mut arguments, 60)?;
            none(arguments)?;
            fuzz::run(&workspace, &target, seconds)
        }
        "help" => {
            print!("{HELP}");
            Ok(true)
        }
        other => bail!("there is no task {other:?}; try `cargo xtask help`"),
    }
}

/// `--server=PROGRAM` is for tests: the demo runs that program, and builds none.
fn demo(workspace: &Workspace, mut arguments: Parser) -> Result<bool> {
    let (mut real, mut helper, mut server) = (false, false, None);
    while let Some(argument) = arguments.next()? {
        match argument {
            Arg::Long("real") => real = true,
            Arg::Long("helper") => helper = true,
            Arg::Long("server") => server = Some(PathBuf::from(arguments.value()?)),
            other => return Err(other.unexpected().into()),
        }
    }
    match (real, helper) {
        (true, true) => bail!("--real and --helper are two demos"),
        (true, false) => guests::demo::run(workspace),
        (false, true) => helper_demo(workspace),
        (false, false) => demo::run(workspace, server.as_deref()),
    }
}

fn helper_demo(workspace: &Workspace) -> Result<bool> {
    println!("Preparing: building the helper, and booting a virtual machine that has a SCSI target.\n");
    let lab = Lab::prepare(workspace)?;
    let Tally { failed, .. } = lab.boot("demo", ["--demo".to_owned()], |line| println!("{line}"))?;
    Ok(failed == 0)
}

fn check_guests(workspace: &Workspace, mut arguments: Parser) -> Result<bool> {
    let mut qemu = QemuSource::Installed;
    while let Some(argument) = arguments.next()? {
        qemu = match argument {
            Arg::Long("qemu") => QemuSource::Program(PathBuf::from(arguments.value()?)),
            Arg::Long("release") => QemuSource::Release(arguments.value()?.string()?),
            other => return Err(other.unexpected().into()),
        };
    }
    let Tally { passed, failed } = guests::checks::run(workspace, &qemu, |line| println!("{line}"))?;
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}

/// `--figures=DIRECTORY` is for the bench: the lab measures the programs there, and builds only its own.
fn lab(workspace: &Workspace, mut arguments: Parser) -> Result<bool> {
    let mut names = Vec::new();
    let mut list = false;
    let mut measured = None;
    while let Some(argument) = arguments.next()? {
        match argument {
            Arg::Long("list") => list = true,
            Arg::Long("figures") => measured = Some(PathBuf::from(arguments.value()?)),
            Arg::Value(name) => names.push(name.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    if let Some(programs) = measured {
        let Tally { failed, .. } =
            Lab::prepare_without_programs(workspace)?.measure(&programs.canonicalize()?, |line| println!("{line}"))?;
        return Ok(failed == 0);
    }
    let lab = Lab::prepare(workspace)?;
    if list {
        let scenarios = lab.scenarios()?;
        let width = scenarios.iter().map(|scenario| scenario.name.len()).max().unwrap_or_default();
        for scenario in scenarios {
            println!("{:<width$}  {}", scenario.name, scenario.purpose);
        }
        return Ok(true);
    }
    let Tally { passed, failed } = lab.run(&names, |line| println!("{line}"))?;
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}

/// The name of the figures of the rules. They take nanoseconds, so divan measures them in a process of their own, without
/// sockets, and with the optimizations of a library.
const RULES: &str = "rules";

/// The benchmarks of `scsi-pr disk`.
const DISK: &str = "disk";

/// The benchmark in a QEMU guest.
const GUEST: &str = "guest";

fn bench(workspace: &Workspace, mut arguments: Parser) -> Result<bool> {
    let mut names: Vec<_> = arguments.raw_args()?.collect();
    if names.first().is_some_and(|name| name == DISK) {
        packages::ensure_bench_disk()?;
        let mut build = cargo::command(workspace);
        command::show(build.args(["build", "--release", "--quiet", "--package", "scsi-pr-cli"]))?;
        let mut run = cargo::command(workspace);
        run.args(["run", "--release", "--quiet", "--package", "bench", "--"]).args(names);
        command::show(&mut run)?;
        return Ok(true);
    }
    if names == [GUEST] {
        return guests::figures::run(workspace);
    }
    let all = names.is_empty();
    let rules = all || names.iter().any(|name| name == RULES);
    names.retain(|name| name != RULES);
    if all || !names.is_empty() {
        packages::ensure_bench()?;
        let mut run = cargo::command(workspace);
        run.args(["run", "--release", "--quiet", "--package", "bench", "--"]).args(names);
        command::show(&mut run)?;
    }
    if rules {
        let mut run = cargo::command(workspace);
        run.args(["bench", "--quiet", "--package", "scsi-pr", "--package", "scsi-pr-store"]);
        run.args(["--bench", "reservations", "--bench", "manager"]);
        command::show(&mut run)?;
    }
    Ok(true)
}

/// The tests with random input, with more of it.
fn soak(workspace: &Workspace, mut arguments: Parser) -> Result<bool> {
    let factor = number(&mut arguments, 100)?;
    none(arguments)?;
    for arguments in
        [&["--package", "scsi-pr-iscsi", "--test", "histories"][..], &["--package", "fuzz", "--test", "mutations"]]
    {
        let mut test = cargo::command(workspace);
        test.args(["test", "--release"]).args(arguments).args(["--", "--nocapture"]);
        command::show(test.env("SCSI_PR_SOAK", factor.to_string()))?;
    }
    Ok(true)
}

/// The test that compares the page writes it when this variable is set.
fn manual(workspace: &Workspace) -> Result<bool> {
    let mut test = cargo::command(workspace);
    test.args(["test", "--quiet", "--package", "scsi-pr-cli", "manual"]).env("SCSI_PR_WRITE_MANUAL", "1");
    command::output(&mut test)?;
    Ok(true)
}

/// The next argument, or the default.
fn number(arguments: &mut Parser, default: u32) -> Result<u32> {
    match arguments.next()? {
        Some(Arg::Value(number)) => Ok(number.parse()?),
        Some(other) => Err(other.unexpected().into()),
        None => Ok(default),
    }
}

fn none(mut arguments: Parser) -> Result<()> {
    match arguments.next()? {
        None => Ok(()),
        Some(argument) => Err(argument.unexpected().into()),
    }
}
