//! `scsi-pr doctor`: examines the host of a helper, and names the line to change for each fault.
//!
//! | module | contents |
//! | --- | --- |
//! | `facts` | reads files and /proc, asks multipathd |
//! | `socket` | connects to the helper |
//! | `apparmor` | the rules of libvirtd's profile, and denials in logs |
//! | `findings` | the faults that the facts show, without I/O |

mod apparmor;
mod facts;
mod findings;
mod socket;

use scsi_pr_daemon::log::escape;
use serde_json::json;

use super::failure::{Code, Failure};
use super::options::Doctor;
use super::output::{self, Format};
use facts::Facts;
use findings::{Finding, Severity};

/// Examines this host.
pub(crate) fn run(options: &Doctor) -> Result<(), Failure> {
    let facts = Facts::gather(&options.root, options.socket.as_deref());
    let findings = findings::of(&facts);
    let faults = findings.iter().filter(|finding| finding.severity == Severity::Fault).count();
    let count = if faults == 1 { "1 fault".to_owned() } else { format!("{faults} faults") };
    let failure = Failure::new(Code::Failure, format!("{count} of this host: see the changes"));
    match Format::of(options.output.json) {
        Format::Json => {
            let code = if faults == 0 { 0 } else { failure.code() as u8 };
            output::print_json(&json!({ "findings": findings, "faults": faults, "exit-code": code }))?;
        }
        Format::Text => {
            output::print(&findings.iter().map(text).collect::<String>())?;
        }
    }
    if faults == 0 { Ok(()) } else { Err(failure) }
}

/// A finding for a terminal.
fn text(finding: &Finding) -> String {
    let severity = match finding.severity {
        Severity::Good => "good ",
        Severity::Note => "note ",
        Severity::Fault => "FAULT",
    };
    let line = format!("{severity}  {}: {}\n", finding.subject, escape(&finding.text));
    let change = finding.change.as_ref().map(|change| format!("       change: {}\n", escape(change)));
    line + &change.unwrap_or_default()
}
