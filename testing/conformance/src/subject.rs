//! Which helper is under test, and where it is.

use std::env;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use testing_support::require_root;

use crate::Start;

const WHY_ROOT: &str = "both helpers drop privileges, which an ordinary user lacks";

/// A helper program under test.
#[derive(Debug)]
pub struct Subject {
    program: PathBuf,
    is_c: bool,
}

static SCSI_PR: LazyLock<Option<Subject>> = LazyLock::new(|| {
    chosen("scsi-pr").then(|| Subject {
        program: env::var_os("PR_HELPER_OURS").map_or_else(build_scsi_pr, PathBuf::from),
        is_c: false,
    })
});

static C: LazyLock<Option<Subject>> = LazyLock::new(|| {
    let asked_for = env::var_os("HELPER_UNDER_TEST").is_some();
    let program = PathBuf::from(env::var_os("PR_HELPER_C").unwrap_or_else(|| "/usr/bin/qemu-pr-helper".into()));
    if !chosen("qemu") {
        return None;
    }
    if !program.exists() {
        let message = format!(
            "QEMU's helper is not at {}: NOT COMPARED WITH IT (Debian: apt install qemu-system-common)",
            program.display()
        );
        assert!(!asked_for, "{message}");
        // Past the capture of the test harness: passing without having compared must be seen.
        let _ = writeln!(std::io::stderr(), "\n*** {message} ***\n");
        return None;
    }
    Some(Subject { program, is_c: true })
});

/// Whether HELPER_UNDER_TEST leaves this helper in.
fn chosen(name: &str) -> bool {
    match env::var("HELPER_UNDER_TEST") {
        Err(_) => true,
        Ok(choice) if ["scsi-pr", "qemu"].contains(&choice.as_str()) => choice == name,
        Ok(other) => panic!("HELPER_UNDER_TEST={other}: it can be scsi-pr or qemu"),
    }
}

/// The directory into which cargo builds this profile's binaries, next to the `deps` that this test lies in.
pub(crate) fn build_directory() -> PathBuf {
    let test = env::current_exe().expect("the path of this test");
    test.ancestors().nth(2).expect("a test lies in target/PROFILE/deps").to_owned()
}

/// Builds scsi-pr's helper as this test was built.
fn build_scsi_pr() -> PathBuf {
    let directory = build_directory();
    let profile = match directory.file_name().expect("the directory of a profile") {
        name if name == "debug" => OsString::from("dev"),
        name => name.to_owned(),
    };
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--package", "qemu-pr-helper", "--profile"])
        .arg(profile)
        .arg("--target-dir")
        .arg(directory.parent().expect("the target directory"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo is started");
    assert!(status.success(), "scsi-pr's helper does not build");
    directory.join("qemu-pr-helper")
}

impl Subject {
    /// scsi-pr's helper, unless it was left out. It needs root.
    pub fn scsi_pr() -> Option<&'static Self> {
        require_root!(WHY_ROOT);
        SCSI_PR.as_ref()
    }

    /// QEMU's helper, unless it was left out or is not installed. It needs root.
    pub fn c() -> Option<&'static Self> {
        require_root!(WHY_ROOT);
        let subject = C.as_ref();
        if subject.is_none() && chosen("qemu") {
            println!("skipped: QEMU's helper is not installed (Debian: apt install qemu-system-common)");
        }
        subject
    }

    /// The path of the program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// A difference on purpose: `c` is the behaviour of QEMU's helper, and `scsi_pr` that of scsi-pr's. `_id` is its name in
    /// `docs/reference/differences.md`; the suite checks that names and document agree.
    pub fn differs<T>(&self, _id: &str, c: T, scsi_pr: T) -> T {
        if self.is_c { c } else { scsi_pr }
    }

    /// Prepares a start of the program, in a directory of its own.
    pub fn command(&self) -> Start {
        Start::new(self.program())
    }

    /// Starts the program with a socket in a directory of its own, and waits until it can be connected to.
    pub fn serve(&self) -> crate::Helper {
        self.command().serve()
    }
}
