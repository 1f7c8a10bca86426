//! The commands of the demo's nodes and their responses, in bytes and as text.
//!
//! This module encodes and parses by itself (SPC-4, 6.15 and 6.16). It shares no code with the product, so that the demo
//! does not repeat an error of the product.

use std::fmt;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use testing_support::command::{WRITE_EXCLUSIVE, action_in, action_out, basic_list, reserve_in, reserve_out};
use testing_support::{Client, Response};

pub(super) const KEY_1: u64 = 0x1111;
pub(super) const KEY_2: u64 = 0x2222;

/// The most that the helper protocol transfers, in bytes.
const MOST: u16 = 8192;

/// RESERVATION CONFLICT (SAM-5, 5.3.1).
const RESERVATION_CONFLICT: i32 = 0x18;

/// A command of a node.
pub(super) struct Request {
    text: String,
    cdb: [u8; 16],
    list: Vec<u8>,
}

impl Request {
    fn read(name: &str, service_action: u8) -> Self {
        Self { text: name.to_owned(), cdb: reserve_in(service_action, MOST), list: Vec::new() }
    }

    fn out(text: String, service_action: u8, scope_type: u8, list: [u8; 24]) -> Self {
        Self { text, cdb: reserve_out(service_action, scope_type, list.len()), list: list.to_vec() }
    }

    /// Sends the command to the server at `socket`. Returns the response as text.
    pub(super) fn run(&self, socket: &Path, disk: &File) -> Result<String> {
        let mut client = Client::open(socket).with_context(|| format!("connect to {}", socket.display()))?;
        let response = client.run(&self.cdb, &self.list, disk).with_context(|| format!("run {self}"))?;
        self.as_text(&response)
    }

    fn as_text(&self, response: &Response) -> Result<String> {
        if let Some([key, code, qualifier]) = response.sense_code() {
            return Ok(format!("CHECK CONDITION {key:02x}/{code:02x}/{qualifier:02x}"));
        }
        match response.status {
            0 => {}
            RESERVATION_CONFLICT => return Ok("RESERVATION CONFLICT".to_owned()),
            status => return Ok(format!("status {status:#04x}")),
        }
        if !self.list.is_empty() {
            return Ok("GOOD".to_owned());
        }
        let (generation, data) = parse_header(&response.data)?;
        match self.cdb[1] {
            action_in::READ_KEYS => {
                let keys: Vec<_> = data.chunks_exact(8).map(|key| short(number(key))).collect();
                Ok(format!("generation {generation}: {}", keys.join(", ")))
            }
            action_in::READ_RESERVATION if data.is_empty() => Ok("not reserved".to_owned()),
            action_in::READ_RESERVATION => {
                ensure!(data.len() == 16, "READ RESERVATION returned {} bytes", data.len());
                Ok(format!("held by {}, {}", short(number(&data[..8])), type_name(data[13])))
            }
            action_in::READ_FULL_STATUS => Ok(registrants(data)?.join("; ")),
            other => bail!("service action {other:#04x} has no text"),
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

pub(super) fn read_keys() -> Request {
    Request::read("READ KEYS", action_in::READ_KEYS)
}

pub(super) fn read_reservation() -> Request {
    Request::read("READ RESERVATION", action_in::READ_RESERVATION)
}

pub(super) fn read_full_status() -> Request {
    Request::read("READ FULL STATUS", action_in::READ_FULL_STATUS)
}

pub(super) fn register(to: u64) -> Request {
    Request::out(format!("REGISTER {}", short(to)), action_out::REGISTER, 0, basic_list(0, to))
}

pub(super) fn reserve(key: u64) -> Request {
    let text = format!("RESERVE {} with {}", type_name(WRITE_EXCLUSIVE), short(key));
    Request::out(text, action_out::RESERVE, WRITE_EXCLUSIVE, basic_list(key, 0))
}

pub(super) fn release(key: u64) -> Request {
    let text = format!("RELEASE with {}", short(key));
    Request::out(text, action_out::RELEASE, WRITE_EXCLUSIVE, basic_list(key, 0))
}

pub(super) fn preempt_and_abort(key: u64, victim: u64) -> Request {
    let text = format!("PREEMPT AND ABORT {} with {}", short(victim), short(key));
    Request::out(text, action_out::PREEMPT_AND_ABORT, WRITE_EXCLUSIVE, basic_list(key, victim))
}

/// PRGENERATION, and the data that ADDITIONAL LENGTH announces (SPC-4, 6.15.2).
fn parse_header(data: &[u8]) -> Result<(u64, &[u8])> {
    ensure!(data.len() >= 8, "a header of {} bytes", data.len());
    let (generation, length) = (number(&data[..4]), number(&data[4..8]) as usize);
    let rest = &data[8..];
    ensure!(rest.len() == length, "{length} bytes are announced, and {} came", rest.len());
    Ok((generation, rest))
}

/// The full status descriptors (SPC-4, 6.15.5), in the order of the registrations.
fn registrants(mut data: &[u8]) -> Result<Vec<String>> {
    let mut registrants = Vec::new();
    while !data.is_empty() {
        let length = data.get(20..24).map(number).context("a full status descriptor has 24 bytes and more")? as usize;
        let transport_id = data.get(24..24 + length).context("a full status descriptor is cut")?;
        let holder = if data[12] & 1 == 1 { ", the holder" } else { "" };
        registrants.push(format!("{} with {}{holder}", node_name(transport_id)?, short(number(&data[..8]))));
        data = &data[24 + length..];
    }
    Ok(registrants)
}

/// The end of the iSCSI name in a TransportID (SPC-4, 7.6.4.6), which is the name of a node.
fn node_name(transport_id: &[u8]) -> Result<String> {
    const ISCSI: u8 = 5;
    ensure!(transport_id.len() > 4 && transport_id[0] & 0xf == ISCSI, "{transport_id:02x?} is no iSCSI TransportID");
    let name = transport_id[4..].split(|byte| *byte == 0).next().unwrap_or_default();
    let name = std::str::from_utf8(name).context("read the name of a registrant")?;
    let name = name.split(",i,0x").next().unwrap_or(name);
    Ok(name.rsplit(':').next().unwrap_or(name).to_owned())
}

fn type_name(scope_type: u8) -> String {
    match scope_type {
        WRITE_EXCLUSIVE => "Write Exclusive".to_owned(),
        other => format!("scope and type {other:#04x}"),
    }
}

/// A big-endian number of at most eight bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// A key without its leading zeros.
fn short(key: u64) -> String {
    format!("{key:#x}")
}
