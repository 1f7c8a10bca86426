//! The program of the lab guest: it sets up real targets and runs scenarios on them. `cargo xtask lab` starts it.
//!
//! ```text
//! lab-guest --list                              prints boot, name and purpose of each scenario
//! lab-guest --programs DIRECTORY SCENARIO...    runs scenarios; only in the guest, as root
//!     --packages DIRECTORY                      Debian packages of this project
//!     --machine DIRECTORY                       the files of a virtual machine
//!     --seed NUMBER                             the seed of the random histories (default: 29)
//!     --factor NUMBER                           multiplies the number of the random histories (default: 1)
//! lab-guest --programs DIRECTORY --demo         runs the steps of `cargo xtask demo --helper`
//! lab-guest --programs DIRECTORY --figures      measures for `cargo xtask bench multipath`
//! ```
#![forbid(unsafe_code)]

mod cluster;
mod commands;
mod console;
mod debian;
mod demo;
mod disk;
mod disk_server;
mod figures;
mod fixture;
mod helper;
mod lab;
mod layer;
mod library;
mod libvirt;
mod lio;
mod load;
mod machine;
mod map;
mod nvmet;
mod report;
mod scenario;
mod scenarios;
mod script;
mod scripts;
mod sg;
mod sg_raw;
mod stamps;
mod system;
mod target;
mod tracer;
mod write_log;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use lexopt::{Arg, ValueExt};

use lab::{DEFAULT_SEED, Lab};
use report::{Report, line};
use scenario::Scenario;
use scenarios::ALL;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-guest: {error:#}");
            line(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut programs: Option<PathBuf> = None;
    let mut machine: Option<PathBuf> = None;
    let mut packages: Option<PathBuf> = None;
    let (mut seed, mut factor) = (DEFAULT_SEED, 1);
    let (mut demo, mut figures) = (false, false);
    let mut chosen: Vec<&Scenario> = Vec::new();
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Arg::Long("list") => {
                for Scenario { boot, name, purpose, .. } in ALL {
                    println!("{boot}\t{name}\t{purpose}");
                }
                return Ok(());
            }
            Arg::Long("demo") => demo = true,
            Arg::Long("figures") => figures = true,
            Arg::Long("machine") => machine = Some(arguments.value()?.into()),
            Arg::Long("packages") => packages = Some(arguments.value()?.into()),
            Arg::Long("seed") => seed = arguments.value()?.parse()?,
            Arg::Long("factor") => factor = arguments.value()?.parse()?,
            Arg::Long("programs") => programs = Some(arguments.value()?.into()),
            Arg::Value(name) => {
                let name = name.string()?;
                let scenario = ALL.iter().find(|scenario| scenario.name == name);
                chosen.push(scenario.with_context(|| format!("there is no scenario {name:?}"))?);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    let Some(programs) = programs else { bail!("--programs is missing") };
    let mut report = Report;
    if demo && let Err(error) = demo::run(&programs.join("qemu-pr-helper")) {
        report.check("this step", Err(format!("{error:#}")));
    }
    if figures && let Err(error) = figures::run(&programs.join("qemu-pr-helper")) {
        report.check("the figures of multipath", Err(format!("{error:#}")));
    }
    let mut lab = Lab::new(programs, machine, packages);
    (lab.seed, lab.factor) = (seed, factor);
    for scenario in chosen {
        report.scenario(scenario.name, scenario.purpose);
        let start = std::time::Instant::now();
        if let Err(error) = (scenario.run)(&mut lab, &mut report) {
            report.check("the scenario runs to its end", Err(format!("{error:#}")));
        }
        line(&format!("  time    {:.0} s", start.elapsed().as_secs_f64()));
    }
    report.end();
    Ok(())
}
