//! [`SgRaw`]: an independent [`PrManager`], by `sg_raw` of sg3_utils. It uses no helper and no code of this project.

use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::process::{Command as Process, Stdio};

use anyhow::{Context, Result, bail};
use scsi_pr::{Command, Completion, Error, Opcode, PrManager, Sense, Status};
use scsi_pr_helper::MAX_TRANSFER;

const DATA: &str = "/run/sg_raw.data";

/// Sends every command with `sg_raw`.
pub(crate) struct SgRaw;

impl PrManager for SgRaw {
    fn execute(&self, device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        send(device, command).map_err(|error| Error::outcome_unknown("send a command with sg_raw").because(error))
    }
}

fn send(device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion> {
    let disk = fs::read_link(format!("/proc/self/fd/{}", device.as_raw_fd()))?;
    fs::write(DATA, command.parameter_list())?;
    let mut sg_raw = Process::new("sg_raw");
    sg_raw.args(["--verbose", "--timeout=30"]);
    match command.opcode() {
        // Always the longest transfer, because LIO of Linux 6.1 writes past a shorter buffer for READ FULL STATUS.
        Opcode::ReserveIn => {
            sg_raw.args(["--binary", &format!("--outfile={DATA}"), &format!("--request={MAX_TRANSFER}")]);
        }
        Opcode::ReserveOut if !command.parameter_list().is_empty() => {
            sg_raw.args([&format!("--infile={DATA}"), &format!("--send={}", command.parameter_list().len())]);
        }
        _ => {}
    }
    sg_raw.arg(disk).args(command.cdb().bytes()[..10].iter().map(|byte| format!("{byte:02x}")));
    let output = sg_raw.stdin(Stdio::null()).output().context("start sg_raw")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    match stderr.lines().find_map(|line| line.strip_prefix("SCSI Status: ")).map(str::trim) {
        Some("Good") if command.opcode() == Opcode::ReserveIn => Ok(Completion::Good(fs::read(DATA)?)),
        Some("Good") => Ok(Completion::Good(Vec::new())),
        Some("Check Condition") => Ok(Completion::CheckCondition(sense(&stderr)?)),
        Some("Reservation Conflict") => Ok(Completion::Status(Status::RESERVATION_CONFLICT)),
        _ => bail!("sg_raw ended ({}): {stderr}", output.status),
    }
}

/// The sense data in the output of `sg_raw --verbose`: lines of hexadecimal bytes after a heading.
fn sense(output: &str) -> Result<Sense> {
    let (_, dump) = output.split_once("Raw sense data").context("sg_raw shows no sense data")?;
    let mut bytes = Vec::new();
    for line in dump.lines().skip(1).take_while(|line| line.starts_with(' ')) {
        for byte in line.split_whitespace() {
            bytes.push(u8::from_str_radix(byte, 16).with_context(|| format!("sense data {line:?}"))?);
        }
    }
    Ok(Sense::from_bytes(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use scsi_pr::SenseCode;

    #[test]
    fn sense_data_is_read_from_output_of_sg_raw() {
        let output = "SCSI Status: Check Condition \n\nSense Information:\nFixed format, current; Sense key: Not Ready\n\
                    \x20Raw sense data (in hex), sb_len=18, embedded_len=18\n        70 00 05 00 00 00 00 0a  00 00 00 00 24 00 00 00\n\
                    \x20       00 00\n\nError 5 occurred, no data received\n";
        assert_eq!(sense(output).unwrap(), Sense::fixed(SenseCode::INVALID_FIELD_IN_CDB));
        assert!(sense("SCSI Status: Check Condition").is_err());
    }
}
