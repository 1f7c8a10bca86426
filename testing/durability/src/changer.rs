//! Starts the program that changes a store, and reads what it says.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use scsi_pr_store::Fault;

/// The program, waiting to be told to begin.
#[derive(Debug)]
pub struct Changer {
    pub(crate) child: Child,
    output: BufReader<ChildStdout>,
}

/// What the program said it did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How many changes were acknowledged after it was told to begin.
    pub kept: u32,
    /// What was not, and why: [`Fault`] and text.
    pub failed: Vec<(Fault, String)>,
    /// Why the store could not be opened.
    pub unopened: Vec<(Fault, String)>,
    /// Whether it came to its end.
    pub closed: bool,
}

impl Changer {
    /// Starts `program`, which makes `before` changes; it has not opened the store yet if that is 0.
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

    /// Tells it to begin.
    pub fn go(&mut self) {
        self.child.stdin.as_mut().expect("its input").write_all(b"go\n").expect("it listens");
    }

    /// Waits for its end, and what it has said by then.
    pub fn report(mut self) -> Report {
        let mut text = String::new();
        self.output.read_to_string(&mut text).expect("its output");
        // Whoever traced it has waited for it.
        let _ = self.child.wait();
        let mut report = Report::default();
        text.lines().for_each(|line| report.add(line));
        report
    }
}

impl Report {
    /// Takes one line into account.
    pub fn add(&mut self, line: &str) {
        let mut words = line.splitn(3, ' ');
        let because = |fault: Option<&str>, text: Option<&str>| {
            let fault = match fault {
                Some("Unavailable") => Fault::Unavailable,
                Some("Contended") => Fault::Contended,
                Some("Refused") => Fault::Refused,
                Some("OutcomeUnknown") => Fault::OutcomeUnknown,
                other => panic!("unknown fault {other:?}"),
            };
            (fault, text.unwrap_or_default().to_owned())
        };
        match words.next() {
            Some("kept") => self.kept += 1,
            Some("failed") => self.failed.push(because(words.next(), words.next())),
            Some("unopened") => self.unopened.push(because(words.next(), words.next())),
            Some("closed") => self.closed = true,
            other => panic!("unknown report {other:?}"),
        }
    }
}
