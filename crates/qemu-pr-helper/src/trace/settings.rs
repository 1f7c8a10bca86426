//! The value of `-T`: `[enable=]PATTERN,events=FILE,file=FILE`, as QEMU's option parser reads it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::{EVENTS, pattern};
use crate::message::{Message, Result, reason};

/// The events to write, and the file for them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Names from [`EVENTS`], in no order.
    pub(super) enabled: Vec<&'static str>,
    /// The file; without it the events go to standard error.
    pub(super) file: Option<PathBuf>,
}

/// The effect of one `-T`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Applied {
    /// The settings have changed.
    Settings,
    /// It asked for the list of events.
    ListRequested,
}

impl Settings {
    /// Applies the value of one `-T`. As in QEMU, only the `file=` of the last `-T` counts.
    pub(crate) fn add(&mut self, text: &OsStr, warn: &mut dyn FnMut(Message)) -> Result<Applied> {
        let mut enable = None;
        let mut events = None;
        let mut file = None;
        let mut list_requested = false;
        for (index, part) in split(text.as_bytes()).into_iter().enumerate() {
            let equals = part.iter().position(|byte| *byte == b'=');
            let (name, value) = match equals {
                Some(at) => (&part[..at], part[at + 1..].to_vec()),
                None if index == 0 => (&b"enable"[..], part.clone()),
                None if part == b"help" || part == b"?" => {
                    list_requested = true;
                    continue;
                }
                None => (&part[..], b"on".to_vec()),
            };
            match name {
                b"enable" => enable = Some(String::from_utf8_lossy(&value).into_owned()),
                b"events" => events = Some(PathBuf::from(OsString::from_vec(value))),
                b"file" => file = Some(PathBuf::from(OsString::from_vec(value))),
                name => return Err(Message::new(format!("Invalid parameter '{}'", String::from_utf8_lossy(name)))),
            }
        }
        if list_requested || matches!(enable.as_deref(), Some("help" | "?")) {
            return Ok(Applied::ListRequested);
        }
        if let Some(pattern) = enable {
            self.switch(&pattern, &mut *warn);
        }
        if let Some(path) = events {
            // QEMU names the path as the place of the error.
            let text = std::fs::read(&path).map_err(|error| Message::new(reason(error)).at(path.display()))?;
            for (number, line) in (1..).zip(String::from_utf8_lossy(&text).lines()) {
                if !line.is_empty() && !line.starts_with('#') {
                    self.switch(line, |message| warn(message.at(format_args!("{}:{number}", path.display()))));
                }
            }
        }
        self.file = file;
        Ok(Applied::Settings)
    }

    /// Enables the events that `pattern` stands for, or disables them where it begins with `-`.
    fn switch(&mut self, pattern: &str, mut warn: impl FnMut(Message)) {
        let (on, wanted) = match pattern.strip_prefix('-') {
            Some(wanted) => (false, wanted),
            None => (true, pattern),
        };
        let mut known = false;
        for &event in EVENTS.iter().filter(|event| pattern::matches(wanted, event)) {
            known = true;
            self.enabled.retain(|enabled| *enabled != event);
            if on {
                self.enabled.push(event);
            }
        }
        if !known && !pattern::is_pattern(wanted) {
            warn(Message::warning(format_args!("trace event '{wanted}' does not exist")));
        }
    }
}

/// The parts between commas; a doubled comma is one that belongs to the part.
fn split(text: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = Vec::new();
    let mut bytes = text.iter().peekable();
    while bytes.peek().is_some() {
        let mut part = Vec::new();
        while let Some(&byte) = bytes.next() {
            if byte == b',' && bytes.next_if_eq(&&b',').is_none() {
                break;
            }
            part.push(byte);
        }
        parts.push(part);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// The settings after these options, and the warnings.
    fn settings(options: &[&str]) -> (Settings, Vec<Message>) {
        let (mut settings, mut warnings) = (Settings::default(), Vec::new());
        for option in options {
            let added = settings.add(OsStr::new(option), &mut |warning| warnings.push(warning));
            assert_eq!(added, Ok(Applied::Settings), "{option}");
        }
        (settings, warnings)
    }

    fn added(option: &str) -> Result<Applied> {
        Settings::default().add(OsStr::new(option), &mut |_| {})
    }

    #[test]
    fn events_are_enabled_by_name_and_pattern() {
        for option in ["pr_manager_run", "enable=pr_manager_run", "pr_manager_ru?", "x,enable=pr_manager_run"] {
            assert_eq!(settings(&[option]).0.enabled, ["pr_manager_run"], "{option}");
        }
        assert_eq!(settings(&["*"]).0.enabled.len(), EVENTS.len());
        assert_eq!(settings(&["pr_manager_*", "-pr_manager_run"]).0.enabled, ["pr_manager_execute"]);
        assert_eq!(settings(&["pr_manager_run", "pr_manager_run"]).0.enabled, ["pr_manager_run"]);
        assert_eq!(settings(&[""]), Default::default());
    }

    #[test]
    fn unknown_events_are_warned_of() {
        for (option, name) in [("nosuch", "nosuch"), ("-nosuch", "nosuch"), (",,", ","), ("enable=a,,b", "a,b")] {
            let warning = Message::new(format!("warning: trace event '{name}' does not exist"));
            assert_eq!(settings(&[option]), (Settings::default(), vec![warning]), "{option}");
        }
        assert_eq!(settings(&["nosuch*"]), Default::default());
    }

    #[test]
    fn the_last_option_says_where_the_lines_go() {
        assert_eq!(settings(&["file=/a,,b", "*,file=c"]).0.file, Some("c".into()));
        assert_eq!(settings(&["file=/a,,b"]).0.file, Some("/a,b".into()));
        assert_eq!(settings(&["file=/a", "*"]).0.file, None);
    }

    #[test]
    fn events_come_from_a_file() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "# comment\npr_manager_*\n\n-pr_manager_run\nnosuch\n pr_manager_run").unwrap();
        let path = file.path().display();
        let (settings, warnings) = settings(&[&format!("events={path}")]);
        assert_eq!(settings.enabled, ["pr_manager_execute"]);
        let warning = |line: u8, name| {
            Message::warning(format!("trace event '{name}' does not exist")).at(format!("{path}:{line}"))
        };
        assert_eq!(warnings, [warning(5, "nosuch"), warning(6, " pr_manager_run")]);
    }

    #[test]
    fn bad_options_are_refused() {
        let invalid = |name| Err(Message::new(format!("Invalid parameter '{name}'")));
        assert_eq!(added("bogus=1"), invalid("bogus"));
        assert_eq!(added("a,b"), invalid("b"));
        assert_eq!(added("help,bogus=1"), invalid("bogus"));
        let missing = Err(Message::new("No such file or directory").at("/nonexistent"));
        assert_eq!(added("events=/nonexistent"), missing);
        for help in ["help", "?", "enable=help", "help,events=/nonexistent", "x,help"] {
            assert_eq!(added(help), Ok(Applied::ListRequested), "{help}");
        }
    }
}
