//! Starts the program that changes a store, and reads its reports.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use scsi_pr_store::Fault;

/// The running program. It waits for [`begin`](Self::begin).
#[derive(Debug)]
pub struct Changer {
    pub(crate) child: Child,
    output: BufReader<ChildStdout>,
}

/// The program's reports.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The number of acknowledged changes since [`Changer::begin`].
    pub acknowledged: u32,
    /// The errors of the other changes.
    pub failed: Vec<(Fault, String)>,
    /// The errors of opening the store.
    pub unopened: Vec<(Fault, String)>,
    /// Whether the program closed the store.
    pub closed: bool,
}

impl Changer {
    /// Starts `program`, which opens the store and makes `before` changes. If `before` is 0, the store is not open yet.
    pub fn start(program: &Path, address: &str, before: u32, changes: u32) -> Self {
        let mut command = Command::new(program);
        command.arg(address).args([before, changes].map(|number| number.to_string()));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the program starts");
        let mut output = BufReader::new(child.stdout.take().expect("its output"));
        let mut line = String::new();
        output.read_line(&mut line).expect("its first line");
        assert_eq!(line, "ready\n");
        Self { child, output }
    }

    /// Lets the program continue, with `changes` further changes.
    pub fn begin(&mut self) {
        self.child.stdin.as_mut().expect("its input").write_all(b"go\n").expect("the program reads");
    }

    /// Waits until the program ends, and returns its reports.
    pub fn report(mut self) -> Report {
        let mut text = String::new();
        self.output.read_to_string(&mut text).expect("its output");
        // A tracer has reaped it already.
        let _ = self.child.wait();
        let mut report = Report::default();
        text.lines().for_each(|line| report.add(line));
        report
    }
}

impl Report {
    /// Adds one line of the program's output.
    pub fn add(&mut self, line: &str) {
        let mut fields = line.splitn(3, ' ');
        let error = |fault: Option<&str>, text: Option<&str>| {
            let fault = match fault {
                Some("Unavailable") => Fault::Unavailable,
                Some("Contended") => Fault::Contended,
                Some("Refused") => Fault::Refused,
                Some("OutcomeUnknown") => Fault::OutcomeUnknown,
                other => panic!("unknown fault {other:?}"),
            };
            (fault, text.unwrap_or_default().to_owned())
        };
        match fields.next() {
            Some("acknowledged") => self.acknowledged += 1,
            Some("failed") => self.failed.push(error(fields.next(), fields.next())),
            Some("unopened") => self.unopened.push(error(fields.next(), fields.next())),
            Some("closed") => self.closed = true,
            other => panic!("unknown report {other:?}"),
        }
    }
}
