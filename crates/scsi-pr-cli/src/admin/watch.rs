//! `scsi-pr watch`: the state of units, again with each change.

use std::io::{self, IsTerminal};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use scsi_pr_daemon::log::escape;
use serde_json::json;

use super::access::Access;
use super::failure::{Code, Effect, Failure};
use super::options::Watch;
use super::output::{self, Format, Reader};
use super::{show, text};

/// Moves the cursor to the upper left corner, and clears the screen (ECMA-48: CUP, ED).
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Prints the state at the beginning and after each change, until the reader of standard output has gone.
pub(crate) fn run(options: &Watch) -> Result<(), Failure> {
    let access = Access::open(&options.read.access)?;
    let format = Format::of(options.read.output.json);
    let clear = if format == Format::Text && io::stdout().is_terminal() { CLEAR } else { "" };
    let mut last = None;
    loop {
        let (text, values) = look(&access, options, last.is_none())?;
        if last.as_ref() != Some(&text) {
            let reader = match format {
                Format::Json => output::print_json(&json!({ "units": values }))?,
                Format::Text => output::print(&format!("{clear}{text}\n"))?,
            };
            if reader == Reader::Gone {
                return Ok(());
            }
            last = Some(text);
        }
        if pause(options.interval)? == Reader::Gone {
            return Ok(());
        }
    }
}

/// One reading of all units. A unit that cannot be read now is shown as such, except at the beginning.
fn look(access: &Access, options: &Watch, is_first: bool) -> Result<(String, Vec<serde_json::Value>), Failure> {
    let mut text = String::new();
    let mut values = Vec::new();
    for device in &options.read.devices {
        let name = device.to_string_lossy();
        let reading = access.unit(device, Effect::Reads).and_then(|unit| Ok(((show::STATE)(&unit)?, unit)));
        match reading {
            Ok((reading, unit)) => {
                text += &(text::heading(&name, unit.identifier.as_deref()) + &reading.text);
                values.push(show::with_names(reading.json, &name, unit.identifier.as_deref()));
            }
            Err(failure) if is_first => return Err(failure.of(&name)),
            Err(failure) => {
                text += &format!("{}\n  {failure}\n", escape(&name));
                values.push(show::of_failure(&name, &failure));
            }
        }
    }
    Ok((text, values))
}

/// Waits for the next reading, and ends early when the reader of standard output has gone.
fn pause(interval: Duration) -> Result<Reader, Failure> {
    let timeout = Timespec::try_from(interval).map_err(|_| Failure::usage("the interval is too long"))?;
    let stdout = io::stdout();
    // A pipe or a socket without a reader has an error. No other event is asked for.
    let mut files = [PollFd::new(&stdout, PollFlags::empty())];
    match poll(&mut files, Some(&timeout)) {
        Ok(0) | Err(rustix::io::Errno::INTR) => Ok(Reader::Present),
        Ok(_) => Ok(Reader::Gone),
        Err(error) => Err(Failure::new(Code::Failure, format!("cannot wait: {error}"))),
    }
}
