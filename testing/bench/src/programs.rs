//! The programs that are measured, and how each is started.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::program::{Program, SOCKET, option_and_socket};

/// The programs that are measured.
pub(crate) struct Programs {
    pub(crate) c: Program,
    pub(crate) scsi_pr: Program,
    /// scsi-pr's helper without its sandbox.
    pub(crate) without_sandbox: Program,
    /// scsi-pr's helper with its sandbox and metrics.
    pub(crate) with_metrics: Program,
    /// `scsi-pr serve`, next to scsi-pr's helper.
    pub(crate) shared: Program,
    pub(crate) floor: Program,
}

impl Programs {
    /// Debian's C helper, scsi-pr's helper as cargo builds it, and this very program as the floor. `PR_HELPER_C` and
    /// `PR_HELPER_OURS` name others.
    pub(crate) fn find() -> Result<Self> {
        let c = std::env::var_os("PR_HELPER_C").map_or("/usr/bin/qemu-pr-helper".into(), PathBuf::from);
        ensure!(c.exists(), "{} is not there: apt-get install qemu-system-common, or set PR_HELPER_C", c.display());
        let bench = std::env::current_exe()?;
        let scsi_pr = match std::env::var_os("PR_HELPER_OURS") {
            Some(path) => path.into(),
            None => {
                let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
                let built = Command::new(cargo)
                    .args(["build", "--quiet", "--release", "--package", "qemu-pr-helper", "--package", "scsi-pr-cli"])
                    .args(["--manifest-path"])
                    .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml"))
                    .status()
                    .context("run cargo")?;
                ensure!(built.success(), "cargo could not build the programs");
                // The programs are built with --release, so the path must not be that of a debug build.
                bench.with_file_name("../release/qemu-pr-helper")
            }
        };
        Ok(Self {
            c: Program { path: c, arguments: Box::new(|directory| option_and_socket("-k", directory)), on_disk: false },
            shared: Program {
                path: scsi_pr.with_file_name("scsi-pr"),
                arguments: Box::new(serve_arguments),
                on_disk: true,
            },
            without_sandbox: Program {
                path: scsi_pr.clone(),
                arguments: Box::new(|directory| {
                    [vec!["--sandbox=off".into()], option_and_socket("-k", directory)].concat()
                }),
                on_disk: false,
            },
            with_metrics: Program {
                path: scsi_pr.clone(),
                arguments: Box::new(|directory| {
                    [option_and_socket("-k", directory), vec!["--metrics".into(), directory.join("metrics").into()]]
                        .concat()
                }),
                on_disk: false,
            },
            scsi_pr: Program {
                path: scsi_pr,
                arguments: Box::new(|directory| option_and_socket("-k", directory)),
                on_disk: false,
            },
            floor: Program {
                path: bench,
                arguments: Box::new(|directory| option_and_socket("floor", directory)),
                on_disk: false,
            },
        })
    }
}

/// The registrants of a full unit.
pub(crate) const REGISTRANTS: usize = 10_000;

/// The number of initiators of `scsi-pr serve`.
pub(crate) const NODES: usize = 64;

/// The name of an initiator's socket. That of the first is where a program is expected to listen.
pub(crate) fn socket_of(node: usize) -> String {
    if node == 0 { SOCKET.to_owned() } else { format!("node{node}") }
}

/// `scsi-pr serve` with a socket for each initiator.
fn serve_arguments(directory: &Path) -> Vec<OsString> {
    let place = |name: &str| directory.join(name).display().to_string();
    let mut arguments = vec![
        "serve".into(),
        "--quiet".into(),
        format!("--registrants={REGISTRANTS}"),
        format!("--store=sqlite:{}", place("reservations.db")),
    ];
    arguments.extend((0..NODES).map(|node| format!("--listen=node{node}={}", place(&socket_of(node)))));
    arguments.into_iter().map(OsString::from).collect()
}
