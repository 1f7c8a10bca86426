//! An iSCSI initiator (RFC 7143) that keeps a number of commands in flight.
//!
//! It has a parser of its own, so that a mistake of the target's crate does not go unnoticed, and it does the least work
//! that the protocol allows: the target is measured, not the initiator.

use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

const HEADER: usize = 48;
/// MaxRecvDataSegmentLength, and the most that one Data-Out PDU carries.
const SEGMENT: usize = 256 << 10;
/// FirstBurstLength.
const FIRST_BURST: usize = 64 << 10;
/// No answer takes as long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

const LOGIN: u8 = 0x43;
const SCSI_COMMAND: u8 = 0x01;
const DATA_OUT: u8 = 0x05;
const NOP_IN: u8 = 0x20;
const NOP_OUT: u8 = 0x40;
const TASK_MANAGEMENT: u8 = 0x42;
const SCSI_RESPONSE: u8 = 0x21;
const TASK_MANAGEMENT_RESPONSE: u8 = 0x22;
const LOGIN_RESPONSE: u8 = 0x23;
const DATA_IN: u8 = 0x25;
const READY_TO_TRANSFER: u8 = 0x31;
const FINAL: u8 = 0x80;
const STATUS: u8 = 0x01;

/// A logical unit of a target.
#[derive(Clone, Debug)]
pub struct Unit {
    /// The portal.
    pub address: SocketAddr,
    /// The iSCSI name of the target.
    pub target: String,
    /// The number of the unit.
    pub lun: u8,
}

/// A command: its CDB and the data that goes with it.
#[derive(Clone, Copy)]
pub struct ScsiCommand<'a> {
    /// Padded with zeros.
    pub cdb: [u8; 16],
    /// Data-Out; empty for none.
    pub data: &'a [u8],
    /// The expected length of Data-In in bytes.
    pub expected: usize,
}

/// A session with one connection.
pub struct Initiator {
    input: BufReader<TcpStream>,
    output: Vec<u8>,
    lun: u8,
    cmd_sn: u32,
    exp_stat_sn: u32,
    /// The target's MaxRecvDataSegmentLength.
    max_segment: usize,
}

/// One PDU of the target.
struct Pdu {
    header: [u8; HEADER],
    data: Vec<u8>,
}

impl Pdu {
    fn be32(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.header[at], self.header[at + 1], self.header[at + 2], self.header[at + 3]])
    }
}

impl Initiator {
    /// Logs in as `name`, and takes the unit attentions that are pending. Sessions of one name differ in their `number`,
    /// which is a part of the ISID.
    ///
    /// # Errors
    ///
    /// The target cannot be reached, refuses the login, or is not ready after ten attempts.
    pub fn log_in(unit: &Unit, name: &str, number: u16) -> Result<Self> {
        let socket = TcpStream::connect(unit.address)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        let mut initiator = Self {
            input: BufReader::with_capacity(SEGMENT, socket),
            output: Vec::new(),
            lun: unit.lun,
            cmd_sn: 1,
            exp_stat_sn: 0,
            max_segment: 8192,
        };
        initiator.negotiate(&unit.target, name, number).with_context(|| format!("log in to {}", unit.target))?;
        let mut ready = false;
        for _ in 0..10 {
            ready = initiator.run(ScsiCommand { cdb: [0; 16], data: &[], expected: 0 })?.0 == 0;
            if ready {
                break;
            }
        }
        ensure!(ready, "{} does not get ready", unit.target);
        Ok(initiator)
    }

    fn negotiate(&mut self, target: &str, name: &str, number: u16) -> Result<()> {
        let keys = format!(
            "InitiatorName={name}\0SessionType=Normal\0TargetName={target}\0HeaderDigest=None\0DataDigest=None\0\
             InitialR2T=No\0ImmediateData=Yes\0MaxRecvDataSegmentLength={SEGMENT}\0FirstBurstLength={FIRST_BURST}\0\
             MaxBurstLength=1048576\0MaxOutstandingR2T=1\0MaxConnections=1\0ErrorRecoveryLevel=0\0"
        );
        let mut keys = keys.into_bytes();
        for _ in 0..8 {
            let mut header = [0; HEADER];
            // From operational negotiation to the full-feature phase.
            (header[0], header[1]) = (LOGIN, 0x80 | 1 << 2 | 3);
            // An ISID of the random format.
            (header[8], header[9]) = (0x80, 1);
            header[12..14].copy_from_slice(&number.to_be_bytes());
            header[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
            header[28..32].copy_from_slice(&self.exp_stat_sn.to_be_bytes());
            self.push(header, &keys);
            self.send()?;
            let answer = self.receive()?;
            ensure!(answer.header[0] == LOGIN_RESPONSE, "no Login Response but {:#04x}", answer.header[0]);
            ensure!(answer.header[36] == 0, "refused: {:02x}{:02x}", answer.header[36], answer.header[37]);
            self.exp_stat_sn = answer.be32(24).wrapping_add(1);
            for key in answer.data.split(|byte| *byte == 0).filter_map(|key| std::str::from_utf8(key).ok()) {
                if let Some(value) = key.strip_prefix("MaxRecvDataSegmentLength=") {
                    self.max_segment = value.parse::<usize>()?.min(SEGMENT);
                }
            }
            if answer.header[1] & 0x83 == 0x83 {
                return Ok(());
            }
            keys.clear();
        }
        bail!("the login does not end")
    }

    /// Runs one command. Returns the status and the data.
    ///
    /// # Errors
    ///
    /// The connection fails, or the target breaks the protocol.
    pub fn run(&mut self, command: ScsiCommand<'_>) -> Result<(u8, Vec<u8>)> {
        self.start(command)?;
        self.finish(command)
    }

    /// Waits for the answer to a command that was [started](Self::start) alone. Returns the status and the data.
    ///
    /// # Errors
    ///
    /// The connection fails, or the target breaks the protocol.
    pub fn finish(&mut self, command: ScsiCommand<'_>) -> Result<(u8, Vec<u8>)> {
        let mut data = Vec::new();
        loop {
            let pdu = self.receive()?;
            if pdu.header[0] == DATA_IN {
                data.extend_from_slice(&pdu.data);
            }
            if let Some((_, status)) = self.handle(&pdu, &|_| command)? {
                return Ok((status, data));
            }
        }
    }

    /// Sends one command, and does not wait for its answer.
    ///
    /// # Errors
    ///
    /// The connection fails.
    pub fn start(&mut self, command: ScsiCommand<'_>) -> Result<()> {
        self.submit(0, command);
        self.send()
    }

    /// ABORT TASK SET: aborts every command of this session, and waits for the response.
    ///
    /// # Errors
    ///
    /// The connection fails, or the target refuses the function.
    pub fn abort_task_set(&mut self) -> Result<()> {
        let mut header = [0; HEADER];
        (header[0], header[1], header[9]) = (TASK_MANAGEMENT, FINAL | 2, self.lun);
        header[16..20].copy_from_slice(&u32::MAX.wrapping_sub(1).to_be_bytes());
        header[20..24].fill(0xff);
        header[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        header[28..32].copy_from_slice(&self.exp_stat_sn.to_be_bytes());
        self.push(header, &[]);
        self.send()?;
        loop {
            let pdu = self.receive()?;
            if pdu.header[0] == TASK_MANAGEMENT_RESPONSE {
                self.exp_stat_sn = pdu.be32(24).wrapping_add(1);
                ensure!(pdu.header[2] == 0, "ABORT TASK SET: response {}", pdu.header[2]);
                return Ok(());
            }
            self.handle(&pdu, &|_| ScsiCommand { cdb: [0; 16], data: &[], expected: 0 })?;
        }
    }

    /// Keeps `depth` commands in flight for `duration`. Returns the number of commands that were GOOD; any other status is
    /// an error.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub fn load<'a>(
        &mut self,
        depth: u32,
        duration: Duration,
        mut next: impl FnMut() -> ScsiCommand<'a>,
    ) -> Result<u64> {
        let mut slots: Vec<_> = (0..depth).map(|_| next()).collect();
        for (tag, command) in slots.iter().enumerate() {
            self.submit(tag as u32, *command);
        }
        self.send()?;
        let start = Instant::now();
        let (mut done, mut in_flight) = (0, depth);
        while in_flight > 0 {
            if self.input.buffer().len() < HEADER {
                self.send()?;
            }
            let pdu = self.receive()?;
            let Some((tag, status)) = self.handle(&pdu, &|tag| slots[tag as usize])? else { continue };
            ensure!(status == 0, "a command ended with status {status:#04x}");
            if start.elapsed() < duration {
                done += 1;
                let command = next();
                slots[tag as usize] = command;
                self.submit(tag, command);
            } else {
                in_flight -= 1;
            }
        }
        Ok(done)
    }

    fn submit(&mut self, tag: u32, command: ScsiCommand<'_>) {
        let ScsiCommand { cdb, data, expected } = command;
        let immediate = &data[..data.len().min(FIRST_BURST).min(self.max_segment)];
        let mut header = [0; HEADER];
        let direction = if !data.is_empty() {
            0x20
        } else if expected > 0 {
            0x40
        } else {
            0
        };
        // Simple task attribute. All unsolicited data is immediate.
        (header[0], header[1]) = (SCSI_COMMAND, FINAL | direction | 1);
        header[9] = self.lun;
        header[16..20].copy_from_slice(&tag.to_be_bytes());
        header[20..24].copy_from_slice(&(data.len().max(expected) as u32).to_be_bytes());
        header[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        header[28..32].copy_from_slice(&self.exp_stat_sn.to_be_bytes());
        header[32..48].copy_from_slice(&cdb);
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        self.push(header, immediate);
    }

    /// Takes a PDU. Returns the tag and the status of a command that has ended.
    fn handle<'a>(&mut self, pdu: &Pdu, command: &dyn Fn(u32) -> ScsiCommand<'a>) -> Result<Option<(u32, u8)>> {
        let tag = pdu.be32(16);
        match pdu.header[0] {
            DATA_IN if pdu.header[1] & STATUS == 0 => Ok(None),
            DATA_IN | SCSI_RESPONSE => {
                self.exp_stat_sn = pdu.be32(24).wrapping_add(1);
                Ok(Some((tag, pdu.header[3])))
            }
            READY_TO_TRANSFER => {
                let (offset, length) = (pdu.be32(40) as usize, pdu.be32(44) as usize);
                let data = command(tag).data.get(offset..offset + length).context("an R2T beyond the data")?;
                self.send_burst(pdu, tag, offset, data);
                self.send()?;
                Ok(None)
            }
            NOP_IN if pdu.be32(20) != u32::MAX => {
                let mut header = [0; HEADER];
                (header[0], header[1]) = (NOP_OUT, FINAL);
                header[16..20].fill(0xff);
                header[20..24].copy_from_slice(&pdu.header[20..24]);
                header[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
                header[28..32].copy_from_slice(&self.exp_stat_sn.to_be_bytes());
                self.push(header, &[]);
                Ok(None)
            }
            NOP_IN => Ok(None),
            other => bail!("an unexpected PDU {other:#04x}"),
        }
    }

    fn send_burst(&mut self, request: &Pdu, tag: u32, offset: usize, data: &[u8]) {
        let segments = data.chunks(self.max_segment);
        let last = segments.len() - 1;
        for (number, segment) in segments.enumerate() {
            let mut header = [0; HEADER];
            (header[0], header[1]) = (DATA_OUT, if number == last { FINAL } else { 0 });
            header[9] = self.lun;
            header[16..20].copy_from_slice(&tag.to_be_bytes());
            header[20..24].copy_from_slice(&request.header[20..24]);
            header[28..32].copy_from_slice(&self.exp_stat_sn.to_be_bytes());
            header[36..40].copy_from_slice(&(number as u32).to_be_bytes());
            header[40..44].copy_from_slice(&((offset + number * self.max_segment) as u32).to_be_bytes());
            self.push(header, segment);
        }
    }

    fn push(&mut self, mut header: [u8; HEADER], data: &[u8]) {
        header[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
        self.output.extend_from_slice(&header);
        self.output.extend_from_slice(data);
        self.output.resize(self.output.len().next_multiple_of(4), 0);
    }

    fn send(&mut self) -> Result<()> {
        let result = self.input.get_mut().write_all(&self.output);
        self.output.clear();
        result.context("send to the target")
    }

    fn receive(&mut self) -> Result<Pdu> {
        let mut header = [0; HEADER];
        let read = self.input.read_exact(&mut header);
        if let Err(error) = &read
            && matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
        {
            bail!("the target does not answer for {ANSWER_TIMEOUT:?}");
        }
        read.context("receive from the target")?;
        let length = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
        ensure!(length <= SEGMENT, "a data segment of {length} bytes");
        let mut data = vec![0; length.next_multiple_of(4) + 4 * usize::from(header[4])];
        self.input.read_exact(&mut data)?;
        data.truncate(length);
        Ok(Pdu { header, data })
    }
}
