//! The chores of the project: `cargo xtask help`.
#![forbid(unsafe_code)]

mod cargo;
mod command;
mod demo;
mod guest;
mod initramfs;
mod kernel;
mod lab;
mod machine;
mod packages;
mod place;
mod prose;
mod test;
mod testing_kernel;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use lexopt::{Arg, Parser, ValueExt};

use lab::{Lab, Tally};
use place::Place;

const HELP: &str = "\
The chores of the project. Each fetches what it needs from Debian's packages, and says so first.

  cargo xtask demo                 two virtual machines share a disk: the story of a cluster; seconds
  cargo xtask demo --real          the same on a real SCSI target, in a virtual machine; about a minute
  cargo xtask test                 every test there is
  cargo xtask lab [SCENARIO...]    scenarios on real SCSI targets, in a virtual machine (all of them)
  cargo xtask lab --list           which scenarios there are
  cargo xtask prose [PATH...]      names and sentences that break the rules of CONTRIBUTING.md
  cargo xtask manual               writes man/scsi-pr-serve.1 anew, from the options of the program
  cargo xtask bench [FIGURE...]    speed and size side by side with QEMU's helper
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

/// Does the chore that the command line names. Whether all is well.
fn run() -> Result<bool> {
    let place = Place::find()?;
    let mut arguments = Parser::from_env();
    let chore = match arguments.next()? {
        Some(Arg::Value(chore)) => chore.string()?,
        Some(Arg::Long("help") | Arg::Short('h')) | None => "help".to_owned(),
        Some(other) => return Err(other.unexpected().into()),
    };
    match chore.as_str() {
        "demo" => demo(&place, arguments),
        "test" => {
            none(arguments)?;
            test::run(&place)
        }
        "manual" => {
            none(arguments)?;
            manual(&place)
        }
        "prose" => {
            let paths: Vec<_> = arguments.raw_args()?.map(PathBuf::from).collect();
            prose::run(&place.workspace, &paths)
        }
        "lab" => lab(&place, arguments),
        "bench" => bench(&place, arguments),
        "help" => {
            print!("{HELP}");
            Ok(true)
        }
        other => bail!("there is no chore {other:?}; try `cargo xtask help`"),
    }
}

/// `--server=PROGRAM` is for tests: that one is run as it is, and nothing is built.
fn demo(place: &Place, mut arguments: Parser) -> Result<bool> {
    let (mut real, mut server) = (false, None);
    while let Some(argument) = arguments.next()? {
        match argument {
            Arg::Long("real") => real = true,
            Arg::Long("server") => server = Some(PathBuf::from(arguments.value()?)),
            other => return Err(other.unexpected().into()),
        }
    }
    if real { real_demo(place) } else { demo::run(place, server.as_deref()) }
}

fn real_demo(place: &Place) -> Result<bool> {
    println!("Preparing: building the helper, and booting a virtual machine that has a SCSI target.\n");
    let lab = Lab::prepare(place)?;
    let Tally { failed, .. } = lab.boot("demo", ["--demo".to_owned()], say)?;
    Ok(failed == 0)
}

/// `--figures=DIRECTORY` is for the bench: the programs there are measured, and nothing is built but the lab.
fn lab(place: &Place, mut arguments: Parser) -> Result<bool> {
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
        let Tally { failed, .. } = Lab::prepare_without_programs(place)?.measure(&programs.canonicalize()?, say)?;
        return Ok(failed == 0);
    }
    let lab = Lab::prepare(place)?;
    if list {
        let scenarios = lab.scenarios()?;
        let width = scenarios.iter().map(|scenario| scenario.name.len()).max().unwrap_or_default();
        for scenario in scenarios {
            say(&format!("{:<width$}  {}", scenario.name, scenario.purpose));
        }
        return Ok(true);
    }
    let Tally { passed, failed } = lab.run(&names, say)?;
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}

/// What the figures of the rules are called. They take nanoseconds, so they are measured in a process of their own, without
/// sockets (divan), and with the optimizations of a library.
const RULES: &str = "rules";

fn bench(place: &Place, mut arguments: Parser) -> Result<bool> {
    let mut names: Vec<_> = arguments.raw_args()?.collect();
    let all = names.is_empty();
    let rules = all || names.iter().any(|name| name == RULES);
    names.retain(|name| name != RULES);
    if all || !names.is_empty() {
        packages::ensure_bench()?;
        let mut run = cargo::command(place);
        run.args(["run", "--release", "--quiet", "--package", "bench", "--"]).args(names);
        command::show(&mut run)?;
    }
    if rules {
        let mut run = cargo::command(place);
        run.args(["bench", "--quiet", "--package", "scsi-pr", "--package", "scsi-pr-store"]);
        run.args(["--bench", "reservations", "--bench", "manager"]);
        command::show(&mut run)?;
    }
    Ok(true)
}

/// The test that compares the page writes it when it is told to.
fn manual(place: &Place) -> Result<bool> {
    let mut test = cargo::command(place);
    test.args(["test", "--quiet", "--package", "scsi-pr-cli", "manual"]).env("SCSI_PR_WRITE_MANUAL", "1");
    command::output(&mut test)?;
    Ok(true)
}

fn none(mut arguments: Parser) -> Result<()> {
    match arguments.next()? {
        None => Ok(()),
        Some(argument) => Err(argument.unexpected().into()),
    }
}

/// Prints a line, and does not mind when nobody reads on.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
