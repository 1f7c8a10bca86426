//! The administrator's commands as real processes.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use testing_support::Launcher;

use super::{PROGRAM, Place};

/// The end of a command.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs `scsi-pr` with these arguments, without a terminal.
#[track_caller]
pub(crate) fn scsi_pr<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Ended {
    let mut launcher = Launcher::new(PROGRAM);
    launcher.args(arguments).stdin(testing_support::null());
    let (code, stdout, stderr) = launcher.outcome();
    Ended { code: code.expect("no signal ends it"), stdout, stderr }
}

impl Ended {
    /// Standard output of a command that succeeded.
    #[track_caller]
    pub(crate) fn text(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (0, ""), "{self:?}");
        self.stdout
    }

    /// The JSON of a command, and its exit code.
    #[track_caller]
    pub(crate) fn json(&self) -> (Value, i32) {
        (serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}")), self.code)
    }

    /// The one line on standard error of a command that failed with `code`.
    #[track_caller]
    pub(crate) fn refusal(&self, code: i32) -> &str {
        let line = self.stderr.trim_end_matches('\n');
        assert!(self.code == code && !line.contains('\n') && line.starts_with("scsi-pr: "), "{code}: {self:?}");
        line
    }
}

/// The address of a store that a server has made: the commands make none.
#[track_caller]
pub(crate) fn made_store(place: &Place) -> String {
    let store = place.sqlite();
    drop(place.serve(&store).listen("vm1", place.path("vm1.sock")).start());
    store
}

/// Runs `scsi-pr` as [`answer_after`], and agrees.
#[track_caller]
pub(crate) fn agree_after<S: AsRef<OsStr>>(
    arguments: impl IntoIterator<Item = S>,
    meanwhile: impl FnOnce(),
) -> (i32, String) {
    answer_after(arguments, meanwhile, "y")
}

/// Runs `scsi-pr` on a terminal, by script(1). `meanwhile` runs during the question, which then gets the answer. Returns the
/// exit code, and all output.
#[track_caller]
pub(crate) fn answer_after<S: AsRef<OsStr>>(
    arguments: impl IntoIterator<Item = S>,
    meanwhile: impl FnOnce(),
    answer: &str,
) -> (i32, String) {
    let words = arguments.into_iter().map(|word| format!("'{}'", word.as_ref().display()));
    let command = std::iter::once(PROGRAM.to_owned()).chain(words).collect::<Vec<_>>().join(" ");
    let mut script = Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = script.stdout.take().unwrap();
    let mut text = Vec::new();
    while !text.ends_with(b"Continue? [y/N] ") {
        let mut byte = [0];
        stdout.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&text)));
        text.push(byte[0]);
    }
    meanwhile();
    writeln!(script.stdin.as_mut().unwrap(), "{answer}").unwrap();
    stdout.read_to_end(&mut text).unwrap();
    (script.wait().unwrap().code().unwrap(), String::from_utf8_lossy(&text).into_owned())
}

/// A way to a unit, as options.
#[derive(Clone)]
pub(crate) struct Way {
    options: Vec<String>,
}

impl Way {
    pub(crate) fn via(socket: &Path) -> Self {
        Self { options: vec![format!("--via={}", socket.display())] }
    }

    pub(crate) fn disk(socket: &Path, name: &str) -> Self {
        Self { options: vec![format!("--disk={}", socket.display()), format!("--as={name}")] }
    }

    pub(crate) fn store(store: &str, name: &str) -> Self {
        Self { options: vec![format!("--store={store}"), format!("--as={name}")] }
    }

    /// Runs a command on a terminal: see [`agree_after`].
    #[track_caller]
    pub(crate) fn agree_after(&self, command: &str, device: &Path, meanwhile: impl FnOnce()) -> (i32, String) {
        let words = command.split_whitespace().map(OsStr::new).chain([device.as_os_str()]);
        agree_after(words.chain(self.options.iter().map(OsStr::new)), meanwhile)
    }

    /// Runs a command: the words of `command`, then the device and the options of this way.
    #[track_caller]
    pub(crate) fn run(&self, command: &str, device: impl AsRef<OsStr>) -> Ended {
        let words = command.split_whitespace().map(OsStr::new).chain([device.as_ref()]);
        scsi_pr(words.chain(self.options.iter().map(OsStr::new)))
    }
}
