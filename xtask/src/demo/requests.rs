//! The commands of the demo's machines and their responses, in bytes and as text.
//!
//! This module encodes and parses by itself (SPC-4, 6.15 and 6.16; SBC-3, 5.12 and 5.31). It shares no code with the
//! product, so that the demo does not repeat an error of the product.

use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use testing_support::command::{
    self, WRITE_EXCLUSIVE_REGISTRANTS_ONLY, action_in, action_out, basic_list, reserve_in, reserve_out,
};

use crate::initiator::{Data, Initiator, Response};

/// The most data of a PERSISTENT RESERVE IN in bytes.
const MOST: u16 = 8192;

/// The length of a block in bytes.
const BLOCK: usize = 512;

/// Operation codes.
const TEST_UNIT_READY: u8 = 0x00;
const READ_10: u8 = 0x28;
const WRITE_10: u8 = 0x2a;

/// Statuses (SAM-5, 5.3.1).
const GOOD: u8 = 0;
const CHECK_CONDITION: u8 = 2;
const RESERVATION_CONFLICT: u8 = 0x18;

/// UNIT ATTENTION, REGISTRATIONS PREEMPTED.
const REGISTRATIONS_PREEMPTED: [u8; 3] = [0x6, 0x2a, 0x5];

/// A command of a machine.
pub(crate) struct Request {
    text: String,
    cdb: [u8; 16],
    data: Data,
}

impl Request {
    fn read(name: &str, service_action: u8) -> Self {
        Self { text: name.to_owned(), cdb: reserve_in(service_action, MOST), data: Data::In(MOST.into()) }
    }

    fn out(text: String, service_action: u8, scope_type: u8, list: [u8; 24]) -> Self {
        Self { text, cdb: reserve_out(service_action, scope_type, list.len()), data: Data::Out(list.to_vec()) }
    }

    /// Sends the command. Returns the response as text.
    pub(crate) fn run(&self, initiator: &mut Initiator) -> Result<String> {
        let response = initiator.execute(&self.cdb, &self.data).with_context(|| format!("run {self}"))?;
        self.as_text(&response)
    }

    fn as_text(&self, response: &Response) -> Result<String> {
        match (response.status, response.sense) {
            (GOOD, None) => {}
            (RESERVATION_CONFLICT, None) => return Ok("refused: RESERVATION CONFLICT".to_owned()),
            (CHECK_CONDITION, Some(REGISTRATIONS_PREEMPTED)) => {
                return Ok("refused: UNIT ATTENTION, registrations preempted (2a/05)".to_owned());
            }
            (CHECK_CONDITION, Some([key, code, qualifier])) => {
                return Ok(format!("CHECK CONDITION {key:02x}/{code:02x}/{qualifier:02x}"));
            }
            (status, sense) => return Ok(format!("status {status:#04x}, sense {sense:02x?}")),
        }
        match (self.cdb[0], self.cdb[1]) {
            (READ_10, _) => text_of(&response.data),
            (command::IN, action_in::READ_KEYS) => {
                let keys: Vec<_> = list(&response.data)?.chunks_exact(8).map(|key| short(number(key))).collect();
                Ok(keys.join(", "))
            }
            (command::IN, action_in::READ_FULL_STATUS) => Ok(registrants(list(&response.data)?)?.join("; ")),
            _ => Ok("GOOD".to_owned()),
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

pub(crate) fn test_unit_ready() -> Request {
    Request { text: "TEST UNIT READY".to_owned(), cdb: command::cdb(TEST_UNIT_READY, 0, 0), data: Data::None }
}

/// Reads block 0.
pub(crate) fn read() -> Request {
    Request { text: "READ block 0".to_owned(), cdb: command::cdb(READ_10, 0, 1), data: Data::In(BLOCK as u32) }
}

/// Writes this text to block 0.
pub(crate) fn write(text: &str) -> Request {
    let mut block = text.as_bytes().to_vec();
    block.resize(BLOCK, 0);
    Request { text: format!("WRITE block 0: {text:?}"), cdb: command::cdb(WRITE_10, 0, 1), data: Data::Out(block) }
}

pub(crate) fn read_keys() -> Request {
    Request::read("READ KEYS", action_in::READ_KEYS)
}

pub(crate) fn read_full_status() -> Request {
    Request::read("READ FULL STATUS", action_in::READ_FULL_STATUS)
}

pub(crate) fn register(to: u64) -> Request {
    let action = action_out::REGISTER_AND_IGNORE_EXISTING_KEY;
    Request::out(format!("REGISTER {}", short(to)), action, 0, basic_list(0, to))
}

pub(crate) fn reserve(key: u64) -> Request {
    let text = format!("RESERVE for registrants, with {}", short(key));
    Request::out(text, action_out::RESERVE, WRITE_EXCLUSIVE_REGISTRANTS_ONLY, basic_list(key, 0))
}

pub(crate) fn preempt_and_abort(key: u64, victim: u64) -> Request {
    let text = format!("PREEMPT AND ABORT {} with {}", short(victim), short(key));
    Request::out(text, action_out::PREEMPT_AND_ABORT, WRITE_EXCLUSIVE_REGISTRANTS_ONLY, basic_list(key, victim))
}

/// The data that ADDITIONAL LENGTH announces (SPC-4, 6.15.2).
fn list(data: &[u8]) -> Result<&[u8]> {
    ensure!(data.len() >= 8, "a header of {} bytes", data.len());
    let (length, rest) = (number(&data[4..8]) as usize, &data[8..]);
    ensure!(rest.len() == length, "{length} bytes are announced, and {} came", rest.len());
    Ok(rest)
}

/// The full status descriptors (SPC-4, 6.15.5), in the order of the registrations.
fn registrants(mut data: &[u8]) -> Result<Vec<String>> {
    let mut registrants = Vec::new();
    while !data.is_empty() {
        let length = data.get(20..24).map(number).context("a full status descriptor has 24 bytes and more")? as usize;
        let transport_id = data.get(24..24 + length).context("a full status descriptor is cut")?;
        let holder = if data[12] & 1 == 1 { format!(", holds {}", type_name(data[13])) } else { String::new() };
        registrants.push(format!("{} with {}{holder}", machine_name(transport_id)?, short(number(&data[..8]))));
        data = &data[24 + length..];
    }
    Ok(registrants)
}

/// The end of the iSCSI name in a TransportID (SPC-4, 7.6.4.6), which is the name of a machine.
fn machine_name(transport_id: &[u8]) -> Result<String> {
    const ISCSI: u8 = 5;
    ensure!(transport_id.len() > 4 && transport_id[0] & 0xf == ISCSI, "{transport_id:02x?} is no iSCSI TransportID");
    let name = transport_id[4..].split(|byte| *byte == 0).next().unwrap_or_default();
    let name = std::str::from_utf8(name).context("read the name of a registrant")?;
    let name = name.split(",i,0x").next().unwrap_or(name);
    Ok(name.rsplit(':').next().unwrap_or(name).to_owned())
}

fn type_name(scope_type: u8) -> String {
    match scope_type {
        WRITE_EXCLUSIVE_REGISTRANTS_ONLY => "Write Exclusive – Registrants Only".to_owned(),
        other => format!("scope and type {other:#04x}"),
    }
}

/// The text that [`write()`] has put into a block.
fn text_of(block: &[u8]) -> Result<String> {
    if block.len() != BLOCK {
        bail!("a READ of {BLOCK} bytes returned {}", block.len());
    }
    let text = block.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// A big-endian number of at most eight bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// A key without its leading zeros.
fn short(key: u64) -> String {
    format!("{key:#x}")
}
