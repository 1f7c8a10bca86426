//! The figures of the helper, side by side with those of QEMU's C helper in the same run: `cargo xtask bench`.
//!
//! Every figure of the helper is taken on a descriptor that refuses at once, so that what is measured is the helper and
//! not a disk. Those of shared reservations are held against what a disk takes to keep a record; those of multipath are taken
//! in the lab's guest.
//! The programs take turns in many short rounds, so that what else the machine does meets all of them. A target that is
//! missed is said, and is no failure; a figure that cannot be measured is.
//!
//! ```text
//! bench [FIGURE...]                                                  all figures, or those that are named in `figures.rs`
//! bench disk [FIGURE...]                                             figures of `scsi-pr disk`, against tgt
//! bench null ADDRESS TARGET                                          an iSCSI target without a medium
//! bench floor SOCKET                                                 the loop that the helpers are measured against
//! bench crowd SOCKET COUNT                                           idle connections
//! ```
#![forbid(unsafe_code)]

mod blocking_files;
mod client;
mod crowd;
mod disk;
mod figures;
mod floor;
mod full_status;
mod journal;
mod machine;
mod memory_cgroup;
mod multipath;
mod program;
mod programs;
mod report;
mod shared;
mod stats;

use std::env;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};

use figures::ALL;
use programs::Programs;
use report::Row;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let outcome = match &arguments[..] {
        [word, socket] if word == "floor" => floor::serve(Path::new(socket)),
        [word, socket, count] if word == "crowd" => {
            count.parse().map_err(Into::into).and_then(|count| crowd::stand_by(Path::new(socket), count))
        }
        [word, address, target] if word == "null" => disk::null::serve(address, target),
        [word, names @ ..] if word == "disk" => bench_disk(names),
        names => bench(names),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures the figures named, or all, and prints the table.
fn bench(names: &[String]) -> Result<()> {
    if let Some(unknown) = names.iter().find(|name| ALL.iter().all(|(known, _)| known != name)) {
        let known: Vec<&str> = ALL.iter().map(|(name, _)| *name).collect();
        bail!("there is no figure {unknown:?}; there are: {}", known.join(", "));
    }
    machine::raise_descriptor_limit()?;
    let programs = Programs::find()?;
    println!("{}\n", machine::describe(&programs.c, &programs.scsi_pr)?);

    let mut rows: Vec<Row> = Vec::new();
    let mut unmeasured = Vec::new();
    for (name, measure) in ALL {
        if !names.is_empty() && !names.iter().any(|wanted| wanted == name) {
            continue;
        }
        eprintln!("measuring: {name}");
        match measure(&programs) {
            Ok(measured) => rows.extend(measured),
            Err(error) => unmeasured.push(format!("{name}: {error:#}")),
        }
    }
    print!("{}", report::table("C helper", &rows));
    if unmeasured.is_empty() { Ok(()) } else { bail!("could not be measured: {}", unmeasured.join("; ")) }
}

/// Measures figures of the disk, and prints the table.
fn bench_disk(names: &[String]) -> Result<()> {
    machine::raise_descriptor_limit()?;
    println!("{}\n", machine::describe_machine()?);
    print!("{}", report::table("tgt", &disk::measure(names)?));
    Ok(())
}
