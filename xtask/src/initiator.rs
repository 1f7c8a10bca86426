//! [`Initiator`]: a session of an iSCSI initiator (RFC 7143), without authentication and digests.
//!
//! It shares no parser and no encoder with the product, so that it does not repeat an error of the product.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// The longest wait for the target.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The length of a basic header segment in bytes (RFC 7143, 11.2.1).
const HEADER: usize = 48;

/// The longest data segment, in bytes, when a side declares none (RFC 7143, 13.12).
const SEGMENT: usize = 8192;

/// The value of a tag that names no task (RFC 7143, 11.2.1.8).
const NO_TAG: u32 = 0xffff_ffff;

/// Operation codes of the initiator (RFC 7143, 11.2.1.2), with the bit I (immediate delivery) where it is always set.
mod request {
    pub(super) const NOP_OUT: u8 = 0x40;
    pub(super) const SCSI_COMMAND: u8 = 0x01;
    pub(super) const LOGIN: u8 = 0x43;
    pub(super) const DATA_OUT: u8 = 0x05;
}

/// Operation codes of the target.
mod answer {
    pub(super) const NOP_IN: u8 = 0x20;
    pub(super) const SCSI_RESPONSE: u8 = 0x21;
    pub(super) const LOGIN: u8 = 0x23;
    pub(super) const DATA_IN: u8 = 0x25;
    pub(super) const READY_TO_TRANSFER: u8 = 0x31;
}

/// F, in byte 1: the last PDU of a sequence.
const FINAL: u8 = 0x80;

/// The data of a command.
#[derive(Clone, Debug)]
pub(crate) enum Data {
    None,
    /// The initiator reads so many bytes at most.
    In(u32),
    Out(Vec<u8>),
}

/// The result of a SCSI command.
#[derive(Debug)]
pub(crate) struct Response {
    /// The status (SAM-5, 5.3.1).
    pub(crate) status: u8,
    /// Sense key, additional sense code and its qualifier.
    pub(crate) sense: Option<[u8; 3]>,
    pub(crate) data: Vec<u8>,
}

/// A session with one connection, in the full feature phase. All commands go to LUN 0.
pub(crate) struct Initiator {
    socket: TcpStream,
    /// CmdSN of the next command.
    command_number: u32,
    /// ExpStatSN.
    status_number: u32,
    tag: u32,
}

/// A PDU of the target.
struct Pdu {
    header: [u8; HEADER],
    data: Vec<u8>,
}

impl Pdu {
    fn opcode(&self) -> u8 {
        self.header[0] & 0x3f
    }

    fn word(&self, at: usize) -> u32 {
        number(&self.header[at..at + 4])
    }
}

impl Initiator {
    /// Logs in to the target of this name as the initiator `name` (RFC 7143, 6.3 and 11.12).
    pub(crate) fn log_in(address: SocketAddr, name: &str, target: &str) -> Result<Self> {
        let socket = TcpStream::connect_timeout(&address, TIMEOUT)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.set_nodelay(true)?;
        let mut session = Self { socket, command_number: 1, status_number: 0, tag: 0 };
        let mut header = [0; HEADER];
        // T, CSG and NSG: from LoginOperationalNegotiation to FullFeaturePhase.
        (header[0], header[1]) = (request::LOGIN, 0x80 | 1 << 2 | 3);
        // An ISID of the type "random".
        header[8..12].copy_from_slice(&[0x80, 0x5c, 0x51, 0x01]);
        header[24..28].copy_from_slice(&session.command_number.to_be_bytes());
        let keys = [
            ("InitiatorName", name),
            ("TargetName", target),
            ("SessionType", "Normal"),
            ("HeaderDigest", "None"),
            ("DataDigest", "None"),
            ("ImmediateData", "No"),
            ("InitialR2T", "Yes"),
            ("ErrorRecoveryLevel", "0"),
        ];
        let keys: String = keys.iter().map(|(key, value)| format!("{key}={value}\0")).collect();
        session.send(header, keys.as_bytes())?;
        let response = session.receive()?;
        ensure!(response.opcode() == answer::LOGIN, "the answer to a login has the opcode {:#04x}", response.opcode());
        let (class, detail) = (response.header[36], response.header[37]);
        ensure!(class == 0, "{name} may not log in to {target}: status {class:02x}{detail:02x}h");
        ensure!(response.header[1] == header[1], "the target wants more negotiation, which this initiator cannot do");
        session.status_number = response.word(24).wrapping_add(1);
        Ok(session)
    }

    /// Sends a SCSI command and waits for its end.
    pub(crate) fn execute(&mut self, cdb: &[u8; 16], data: &Data) -> Result<Response> {
        self.tag += 1;
        let (direction, length) = match data {
            Data::None => (0, 0),
            Data::In(most) => (0x40, *most),
            Data::Out(data) => (0x20, u32::try_from(data.len())?),
        };
        let mut header = [0; HEADER];
        // ATTR is SIMPLE.
        (header[0], header[1]) = (request::SCSI_COMMAND, FINAL | direction | 1);
        header[16..20].copy_from_slice(&self.tag.to_be_bytes());
        header[20..24].copy_from_slice(&length.to_be_bytes());
        header[24..28].copy_from_slice(&self.command_number.to_be_bytes());
        header[28..32].copy_from_slice(&self.status_number.to_be_bytes());
        header[32..48].copy_from_slice(cdb);
        self.command_number = self.command_number.wrapping_add(1);
        self.send(header, &[])?;
        let mut received = Vec::new();
        loop {
            let pdu = self.receive()?;
            let is_for_this = pdu.word(16) == self.tag;
            match pdu.opcode() {
                answer::NOP_IN => self.answer_nop(&pdu)?,
                answer::READY_TO_TRANSFER if is_for_this => {
                    let Data::Out(data) = data else { bail!("the target asks for data of a command that has none") };
                    self.send_data(&pdu, data)?;
                }
                answer::DATA_IN if is_for_this => {
                    ensure!(pdu.word(40) as usize == received.len(), "data came out of order");
                    received.extend_from_slice(&pdu.data);
                    // S: the PDU carries the status too.
                    if pdu.header[1] & 1 != 0 {
                        self.status_number = pdu.word(24).wrapping_add(1);
                        return Ok(Response { status: pdu.header[3], sense: None, data: received });
                    }
                }
                answer::SCSI_RESPONSE if is_for_this => {
                    self.status_number = pdu.word(24).wrapping_add(1);
                    ensure!(pdu.header[2] == 0, "the target failed: response {:#04x}", pdu.header[2]);
                    return Ok(Response { status: pdu.header[3], sense: sense(&pdu.data)?, data: received });
                }
                other => bail!("a PDU of the target has the opcode {other:#04x}"),
            }
        }
    }

    /// Sends the data that an R2T asks for (RFC 7143, 11.7 and 11.8).
    fn send_data(&mut self, request: &Pdu, data: &[u8]) -> Result<()> {
        let (offset, length) = (request.word(40) as usize, request.word(44) as usize);
        let burst = data.get(offset..offset + length).context("the target asks for more data than there is")?;
        let segments = burst.chunks(SEGMENT);
        let last = segments.len().saturating_sub(1);
        for (number, segment) in segments.enumerate() {
            let mut header = [0; HEADER];
            (header[0], header[1]) = (request::DATA_OUT, if number == last { FINAL } else { 0 });
            header[16..24].copy_from_slice(&request.header[16..24]);
            header[28..32].copy_from_slice(&self.status_number.to_be_bytes());
            header[36..40].copy_from_slice(&u32::try_from(number)?.to_be_bytes());
            header[40..44].copy_from_slice(&u32::try_from(offset + number * SEGMENT)?.to_be_bytes());
            self.send(header, segment)?;
        }
        Ok(())
    }

    /// Answers a ping of the target, when it wants an answer (RFC 7143, 11.19).
    fn answer_nop(&mut self, ping: &Pdu) -> Result<()> {
        if ping.word(20) == NO_TAG {
            return Ok(());
        }
        let mut header = [0; HEADER];
        (header[0], header[1]) = (request::NOP_OUT, FINAL);
        header[16..20].copy_from_slice(&NO_TAG.to_be_bytes());
        header[20..24].copy_from_slice(&ping.header[20..24]);
        header[24..28].copy_from_slice(&self.command_number.to_be_bytes());
        header[28..32].copy_from_slice(&self.status_number.to_be_bytes());
        self.send(header, &[])
    }

    fn send(&mut self, mut header: [u8; HEADER], data: &[u8]) -> Result<()> {
        header[5..8].copy_from_slice(&u32::try_from(data.len())?.to_be_bytes()[1..]);
        let mut pdu = [&header, data].concat();
        pdu.resize(pdu.len().next_multiple_of(4), 0);
        self.socket.write_all(&pdu).context("send to the target")
    }

    fn receive(&mut self) -> Result<Pdu> {
        let mut header = [0; HEADER];
        self.socket.read_exact(&mut header).context("receive from the target")?;
        ensure!(header[4] == 0, "the target sends additional header segments");
        let length = number(&header[5..8]) as usize;
        ensure!(length <= SEGMENT, "the target sends a data segment of {length} bytes");
        let mut data = vec![0; length.next_multiple_of(4)];
        self.socket.read_exact(&mut data).context("receive data from the target")?;
        data.truncate(length);
        Ok(Pdu { header, data })
    }
}

/// The sense data in the data segment of a response (RFC 7143, 11.4.7), in the fixed format (SPC-4, 4.5.3).
fn sense(data: &[u8]) -> Result<Option<[u8; 3]>> {
    let Some((length, rest)) = data.split_at_checked(2) else { return Ok(None) };
    let sense = rest.get(..number(length) as usize).context("the sense data are cut")?;
    ensure!(sense.len() >= 14 && sense[0] & 0x7f == 0x70, "the sense data have an unknown format");
    Ok(Some([sense[2] & 0xf, sense[12], sense[13]]))
}

/// A big-endian number of at most four bytes.
fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}
