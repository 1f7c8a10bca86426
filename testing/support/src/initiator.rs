//! [`Initiator`]: an iSCSI initiator that writes its PDUs by hand.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::DEADLINE;

/// A connection to an iSCSI target, as bytes.
pub struct Initiator {
    /// The connection.
    pub socket: TcpStream,
    target: String,
    command_number: u32,
    tag: u32,
}

/// A PDU of the target.
#[derive(Debug)]
pub struct Received {
    /// The basic header segment.
    pub header: [u8; 48],
    /// The data segment, without padding.
    pub data: Vec<u8>,
}

impl Received {
    /// The opcode.
    pub fn opcode(&self) -> u8 {
        self.header[0] & 0x3f
    }

    /// The 32-bit number at this byte of the header.
    fn word(&self, at: usize) -> usize {
        u32::from_be_bytes(self.header[at..at + 4].try_into().unwrap()) as usize
    }

    /// The status class and detail of a Login Response.
    pub fn login_status(&self) -> u16 {
        u16::from_be_bytes([self.header[36], self.header[37]])
    }

    /// The keys and values of a text.
    pub fn keys(&self) -> Vec<(String, String)> {
        let text = String::from_utf8(self.data.clone()).unwrap();
        let pairs = text.split('\0').filter(|pair| !pair.is_empty());
        pairs.map(|pair| pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())).unwrap()).collect()
    }

    /// The value of a key.
    pub fn key(&self, key: &str) -> Option<String> {
        self.keys().into_iter().find(|(known, _)| known == key).map(|(_, value)| value)
    }
}

/// The answer to a SCSI command.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The SCSI status.
    pub status: u8,
    /// Key, ASC and ASCQ.
    pub sense: Option<[u8; 3]>,
    /// The data.
    pub data: Vec<u8>,
}

impl Initiator {
    /// Connects to the portal, for a session with `target`.
    #[track_caller]
    pub fn connect(address: SocketAddr, target: &str) -> Self {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { socket, target: target.to_owned(), command_number: 1, tag: 1 }
    }

    /// Sends a PDU with `data`.
    pub fn send(&mut self, mut header: [u8; 48], data: &[u8]) {
        header[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
        let mut pdu = header.to_vec();
        pdu.extend_from_slice(data);
        pdu.resize(pdu.len().next_multiple_of(4), 0);
        self.socket.write_all(&pdu).unwrap();
    }

    /// `None` when the target has closed the connection.
    pub fn try_receive(&mut self) -> Option<Received> {
        let mut header = [0; 48];
        self.socket.read_exact(&mut header).ok()?;
        let length = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
        let mut data = vec![0; length.next_multiple_of(4)];
        self.socket.read_exact(&mut data).ok()?;
        data.truncate(length);
        Some(Received { header, data })
    }

    /// The next PDU of the target.
    #[track_caller]
    pub fn receive(&mut self) -> Received {
        self.try_receive().expect("the connection is open")
    }

    /// One request of the login phase, with `flags` as byte 1, and its response.
    pub fn login_step(&mut self, flags: u8, keys: &[(&str, &str)]) -> Received {
        let mut header = [0; 48];
        (header[0], header[1]) = (0x43, flags);
        header[8..14].copy_from_slice(&[0x80, 1, 2, 3, 4, 5]);
        header[16..20].copy_from_slice(&7u32.to_be_bytes());
        header[24..28].copy_from_slice(&self.command_number.to_be_bytes());
        let text: Vec<u8> = keys.iter().flat_map(|(key, value)| format!("{key}={value}\0").into_bytes()).collect();
        self.send(header, &text);
        let response = self.receive();
        assert_eq!(response.opcode(), 0x23);
        response
    }

    /// A whole login without authentication.
    #[track_caller]
    pub fn log_in(self, name: &str) -> Self {
        self.try_log_in(name).unwrap_or_else(|status| panic!("{name}: login status {status:#06x}"))
    }

    /// A whole login without authentication.
    ///
    /// # Errors
    ///
    /// The status class and detail.
    pub fn try_log_in(mut self, name: &str) -> Result<Self, u16> {
        let target = self.target.clone();
        let keys = [("InitiatorName", name), ("TargetName", &target), ("InitialR2T", "Yes"), ("ImmediateData", "No")];
        // From operational negotiation to the full feature phase.
        let response = self.login_step(0x87, &keys);
        match (response.header[1] & 0x83, response.login_status()) {
            (0x83, 0) => Ok(self),
            (_, status) => Err(status),
        }
    }

    /// The header of a SCSI command with a number of its own.
    pub fn command_header(&mut self, flags: u8, expected: u32, cdb: &[u8]) -> [u8; 48] {
        let mut header = [0; 48];
        (header[0], header[1]) = (0x01, flags);
        self.tag += 1;
        header[16..20].copy_from_slice(&self.tag.to_be_bytes());
        header[20..24].copy_from_slice(&expected.to_be_bytes());
        header[24..28].copy_from_slice(&self.command_number.to_be_bytes());
        self.command_number += 1;
        header[32..32 + cdb.len()].copy_from_slice(cdb);
        header
    }

    /// A command that returns up to `expected` bytes, or none.
    #[track_caller]
    pub fn read(&mut self, cdb: &[u8], expected: u32) -> Answer {
        let header = self.command_header(0xc0, expected, cdb);
        self.send(header, &[]);
        self.answer()
    }

    /// A command with data, which the target asks for.
    #[track_caller]
    pub fn write(&mut self, cdb: &[u8], data: &[u8]) -> Answer {
        let header = self.command_header(0xa0, data.len() as u32, cdb);
        self.send(header, &[]);
        let mut sent = 0;
        while sent < data.len() {
            let request = self.receive();
            if request.opcode() != 0x31 {
                return answer_of(request, Vec::new());
            }
            assert_eq!(request.word(40), sent, "the target asks for the data in their order");
            sent += self.send_burst(&request, data);
        }
        self.answer()
    }

    /// Sends the burst of `data` that a Ready To Transfer asks for. Returns its length.
    pub fn send_burst(&mut self, request: &Received, data: &[u8]) -> usize {
        let (offset, length) = (request.word(40), request.word(44));
        let burst = &data[offset..offset + length];
        for (number, segment) in burst.chunks(64 << 10).enumerate() {
            let mut out = [0; 48];
            out[0] = 0x05;
            out[1] = if (number + 1) * (64 << 10) >= burst.len() { 0x80 } else { 0 };
            out[16..24].copy_from_slice(&request.header[16..24]);
            out[36..40].copy_from_slice(&(number as u32).to_be_bytes());
            out[40..44].copy_from_slice(&((offset + number * (64 << 10)) as u32).to_be_bytes());
            self.send(out, segment);
        }
        length
    }

    /// LOGICAL UNIT RESET, and its response.
    #[track_caller]
    pub fn reset_unit(&mut self) {
        let mut header = [0; 48];
        (header[0], header[1]) = (0x42, 0x85);
        self.tag += 1;
        header[16..20].copy_from_slice(&self.tag.to_be_bytes());
        header[20..24].fill(0xff);
        header[24..28].copy_from_slice(&self.command_number.to_be_bytes());
        self.send(header, &[]);
        let response = self.receive();
        assert_eq!((response.opcode(), response.header[2]), (0x22, 0), "{response:02x?}");
    }

    /// The answer to the last command.
    #[track_caller]
    pub fn answer(&mut self) -> Answer {
        let mut data = Vec::new();
        loop {
            let pdu = self.receive();
            match pdu.opcode() {
                0x25 => {
                    data.extend_from_slice(&pdu.data);
                    if pdu.header[1] & 1 != 0 {
                        return Answer { status: pdu.header[3], sense: None, data };
                    }
                }
                _ => return answer_of(pdu, data),
            }
        }
    }
}

fn answer_of(pdu: Received, data: Vec<u8>) -> Answer {
    assert_eq!(pdu.opcode(), 0x21, "{pdu:02x?}");
    let sense = (!pdu.data.is_empty()).then(|| [pdu.data[4] & 0xf, pdu.data[14], pdu.data[15]]);
    Answer { status: pdu.header[3], sense, data }
}
