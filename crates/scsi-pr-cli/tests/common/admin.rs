//! The administrator's commands as real processes.

use std::ffi::OsStr;
use std::path::Path;

use serde_json::Value;
use testing_support::Launcher;

use super::PROGRAM;

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

    /// Runs a command: the words of `command`, then the device and the options of this way.
    #[track_caller]
    pub(crate) fn run(&self, command: &str, device: impl AsRef<OsStr>) -> Ended {
        let words = command.split_whitespace().map(OsStr::new).chain([device.as_ref()]);
        scsi_pr(words.chain(self.options.iter().map(OsStr::new)))
    }
}
