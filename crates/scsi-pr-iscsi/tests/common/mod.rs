//! A server in this process, and an initiator that writes its PDUs by hand: it shares no encoder with the crate.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use scsi_pr::Reservations;
use scsi_pr_disk::{
    Allocation, Disk, DiskOptions, Durability, Identity, Lun, Medium, MediumError, ReservationStore, StoreError, Target,
};
use scsi_pr_iscsi::directory::{Account, Allowed, Directory, TargetEntry};
use scsi_pr_iscsi::{Portal, Server, ServerOptions};

pub(crate) const TARGET: &str = "iqn.2026-11.test:target";
pub(crate) const BLOCK: usize = 512;

struct Memory(Mutex<Vec<u8>>);

impl Medium for Memory {
    fn size(&self) -> u64 {
        self.0.lock().unwrap().len() as u64
    }

    fn is_quick(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), MediumError> {
        buffer.copy_from_slice(&self.0.lock().unwrap()[offset as usize..][..buffer.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8], _: Durability) -> Result<(), MediumError> {
        self.0.lock().unwrap()[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }

    fn flush(&self) -> Result<(), MediumError> {
        Ok(())
    }

    fn zero(&self, offset: u64, length: u64, _: Allocation, _: Durability) -> Result<(), MediumError> {
        self.0.lock().unwrap()[offset as usize..][..length as usize].fill(0);
        Ok(())
    }
}

struct Store(AtomicU64);

impl ReservationStore for Store {
    fn load(&self) -> Result<(u64, Reservations), StoreError> {
        Ok((0, Reservations::new()))
    }

    fn replace(&self, _: u64, _: &Reservations) -> Result<u64, StoreError> {
        Ok(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

pub(crate) struct Fixture {
    pub(crate) address: SocketAddr,
    stop: Option<std::io::PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Fixture {
    pub(crate) fn start(accounts: Vec<Account>, allowed: Allowed) -> Self {
        let mut options = DiskOptions::new(Identity::from_uuid(*b"0123456789abcdef"));
        options.physical_block_size = 512;
        let medium = Memory(Mutex::new(vec![0; 64 << 20]));
        let disk = Disk::open(options, Box::new(medium), Box::new(Store(AtomicU64::new(1)))).unwrap();
        let target = Target::new();
        target.add(Lun(0), Arc::new(disk));
        let mut directory = Directory::default();
        directory.targets.push(TargetEntry { name: TARGET.to_owned(), target: Arc::new(target), allowed });
        directory.accounts = accounts;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::new(vec![Portal { listener, group: 1 }], directory, ServerOptions::default()).unwrap();
        let (stopped, stop) = std::io::pipe().unwrap();
        let thread = std::thread::spawn(move || server.run(stopped.as_fd()).unwrap());
        Self { address, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn connect(&self) -> Initiator {
        let socket = TcpStream::connect(self.address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Initiator { socket, command_number: 1, tag: 1 }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

pub(crate) struct Initiator {
    pub(crate) socket: TcpStream,
    command_number: u32,
    tag: u32,
}

/// A PDU of the target.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) header: [u8; 48],
    pub(crate) data: Vec<u8>,
}

impl Received {
    pub(crate) fn opcode(&self) -> u8 {
        self.header[0] & 0x3f
    }

    pub(crate) fn login_status(&self) -> u16 {
        u16::from_be_bytes([self.header[36], self.header[37]])
    }

    pub(crate) fn keys(&self) -> Vec<(String, String)> {
        let text = String::from_utf8(self.data.clone()).unwrap();
        let pairs = text.split('\0').filter(|pair| !pair.is_empty());
        pairs.map(|pair| pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())).unwrap()).collect()
    }

    pub(crate) fn key(&self, key: &str) -> Option<String> {
        self.keys().into_iter().find(|(known, _)| known == key).map(|(_, value)| value)
    }
}

/// The answer to a SCSI command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u8,
    /// Key, ASC and ASCQ.
    pub(crate) sense: Option<[u8; 3]>,
    pub(crate) data: Vec<u8>,
}

impl Initiator {
    pub(crate) fn send(&mut self, mut header: [u8; 48], data: &[u8]) {
        header[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
        let mut pdu = header.to_vec();
        pdu.extend_from_slice(data);
        pdu.resize(pdu.len().next_multiple_of(4), 0);
        self.socket.write_all(&pdu).unwrap();
    }

    /// `None` when the target has closed the connection.
    pub(crate) fn try_receive(&mut self) -> Option<Received> {
        let mut header = [0; 48];
        self.socket.read_exact(&mut header).ok()?;
        let length = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
        let mut data = vec![0; length.next_multiple_of(4)];
        self.socket.read_exact(&mut data).ok()?;
        data.truncate(length);
        Some(Received { header, data })
    }

    pub(crate) fn receive(&mut self) -> Received {
        self.try_receive().expect("the connection is open")
    }

    /// One request of the login phase, with `flags` as byte 1, and its response.
    pub(crate) fn login_step(&mut self, flags: u8, keys: &[(&str, &str)]) -> Received {
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
    pub(crate) fn log_in(mut self, name: &str) -> Self {
        // From operational negotiation to the full feature phase.
        let keys = [("InitiatorName", name), ("TargetName", TARGET), ("InitialR2T", "Yes"), ("ImmediateData", "No")];
        let response = self.login_step(0x87, &keys);
        assert_eq!((response.header[1] & 0x83, response.login_status()), (0x83, 0));
        self
    }

    /// The header of a SCSI command with a number of its own.
    pub(crate) fn command_header(&mut self, flags: u8, expected: u32, cdb: &[u8]) -> [u8; 48] {
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

    pub(crate) fn read(&mut self, cdb: &[u8], expected: u32) -> Answer {
        let header = self.command_header(0xc0, expected, cdb);
        self.send(header, &[]);
        self.answer()
    }

    /// A command with data, which the target asks for.
    pub(crate) fn write(&mut self, cdb: &[u8], data: &[u8]) -> Answer {
        let header = self.command_header(0xa0, data.len() as u32, cdb);
        self.send(header, &[]);
        let tag = header[16..20].to_vec();
        let mut sent = 0;
        while sent < data.len() {
            let request = self.receive();
            if request.opcode() != 0x31 {
                return answer_of(request, Vec::new());
            }
            let word = |at: usize| u32::from_be_bytes(request.header[at..at + 4].try_into().unwrap()) as usize;
            assert_eq!(word(40), sent, "the target asks for the data in their order");
            let burst = &data[sent..sent + word(44)];
            for (number, segment) in burst.chunks(64 << 10).enumerate() {
                let mut out = [0; 48];
                out[0] = 0x05;
                out[1] = if (number + 1) * (64 << 10) >= burst.len() { 0x80 } else { 0 };
                out[16..20].copy_from_slice(&tag);
                out[20..24].copy_from_slice(&request.header[20..24]);
                out[36..40].copy_from_slice(&(number as u32).to_be_bytes());
                out[40..44].copy_from_slice(&((sent + number * (64 << 10)) as u32).to_be_bytes());
                self.send(out, segment);
            }
            sent += burst.len();
        }
        self.answer()
    }

    /// LOGICAL UNIT RESET, and its response.
    pub(crate) fn reset_unit(&mut self) {
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

    fn answer(&mut self) -> Answer {
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
