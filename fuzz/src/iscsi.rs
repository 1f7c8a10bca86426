//! iSCSI: the byte stream of an initiator before and after its login, and commands to the disk behind it.

use std::sync::{Arc, Mutex};

use scsi_pr::{Completion, InitiatorPort, Nexus, Reservations, TransportId};
use scsi_pr_disk::{
    Allocation, DataIn, Disk, DiskOptions, Durability, Identity, Lun, MAX_TRANSFER, Medium, MediumError, Port,
    ReservationStore, StoreError, Target,
};
use scsi_pr_iscsi::chap::Secret;
use scsi_pr_iscsi::directory::{Account, Allowed, Directory, TargetEntry};
use scsi_pr_iscsi::login::{Login, LoginStep, Negotiated, is_name};
use scsi_pr_iscsi::memory;
use scsi_pr_iscsi::pdu::{Decoder, MAX_RECV_DATA_SEGMENT};
use scsi_pr_iscsi::reply::{Bounds, Replies, ScsiResponse};
use scsi_pr_iscsi::session::{Action, CommandWindow, Session};

const TARGET: &str = "iqn.2026-11.fuzz:disk";
const SIZE: usize = 64 << 10;
const BLOCK: usize = 512;
/// More than the commands of a session and the data that they were promised.
const MOST_IN_FLIGHT: u32 = 4096;

struct Memory(Mutex<Vec<u8>>);

impl Medium for Memory {
    fn size(&self) -> u64 {
        SIZE as u64
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

struct Store;

impl ReservationStore for Store {
    fn load(&self) -> Result<(u64, Reservations), StoreError> {
        Ok((0, Reservations::new()))
    }

    fn replace(&self, expected: u64, _: &Reservations) -> Result<u64, StoreError> {
        Ok(expected + 1)
    }
}

fn disk() -> Arc<Disk> {
    let mut options = DiskOptions::new(Identity::from_uuid(*b"fuzz fuzz fuzz f"));
    options.physical_block_size = options.block_size;
    Arc::new(Disk::open(options, Box::new(Memory(Mutex::new(vec![0; SIZE]))), Box::new(Store)).unwrap())
}

fn directory(accounts: Vec<Account>) -> Directory {
    let target = Target::new();
    target.add(Lun(0), disk());
    let mut directory = Directory::default();
    directory.targets.push(TargetEntry { name: TARGET.to_owned(), target: Arc::new(target), allowed: Allowed::All });
    directory.accounts = accounts;
    directory
}

/// Gives bytes to a decoder. Returns the number of bytes that it took.
fn feed(decoder: &mut Decoder, data: &[u8]) -> usize {
    let room = decoder.room();
    let length = room.len().min(data.len());
    room[..length].copy_from_slice(&data[..length]);
    decoder.filled(length);
    length
}

/// Login requests. The first byte says whether the target has an account of CHAP.
pub fn iscsi_login(data: &[u8]) {
    let Some((has_account, mut data)) = data.split_first() else { return };
    let account = || Account {
        name: "account".to_owned(),
        secret: Secret::new("a secret that no input knows").unwrap(),
        initiators: vec!["iqn.2026-11.fuzz:initiator".to_owned()],
        mutual: None,
    };
    let accounts = if has_account & 1 == 1 { vec![account()] } else { Vec::new() };
    let has_account = !accounts.is_empty();
    let directory = directory(accounts);
    let (mut decoder, mut login) = (Decoder::default(), Login::new(1));
    loop {
        match decoder.next_pdu() {
            Err(_) => return,
            Ok(None) if data.is_empty() => return,
            Ok(None) => data = &data[feed(&mut decoder, data)..],
            Ok(Some(pdu)) => match login.step(&pdu, &directory, 1) {
                LoginStep::Continue(_, text) => assert!(text.len() <= 8192, "the default MaxRecvDataSegmentLength"),
                LoginStep::Refused(..) => return,
                LoginStep::Complete(_, _, negotiated) => {
                    assert!(!has_account, "a login without the secret");
                    let Negotiated { initiator, max_send_segment, max_burst, first_burst, .. } = *negotiated;
                    assert!(is_name(&initiator), "{initiator:?}");
                    assert!((512..=0xff_ffff).contains(&max_send_segment));
                    assert!((512..=0xff_ffff).contains(&max_burst) && (512..=max_burst).contains(&first_burst));
                    return;
                }
            },
        }
    }
}

/// A session after this login.
fn negotiated() -> Negotiated {
    let keys = format!("InitiatorName=iqn.2026-11.fuzz:initiator\0TargetName={TARGET}\0InitialR2T=No\0");
    let mut request = vec![0; 48];
    (request[0], request[1]) = (0x43, 0x87);
    request[5..8].copy_from_slice(&(keys.len() as u32).to_be_bytes()[1..]);
    request.extend_from_slice(keys.as_bytes());
    request.resize(request.len().next_multiple_of(4), 0);
    let mut decoder = Decoder::default();
    assert_eq!(feed(&mut decoder, &request), request.len());
    let pdu = decoder.next_pdu().unwrap().unwrap();
    match Login::new(1).step(&pdu, &directory(Vec::new()), 1) {
        LoginStep::Complete(_, _, negotiated) => *negotiated,
        _ => panic!("the login is valid"),
    }
}

/// Requests of the full feature phase. Commands run on a disk, and their answers are encoded.
pub fn iscsi_session(mut data: &[u8]) {
    let negotiated = negotiated();
    let (_, target) = negotiated.target.clone().expect("a session with a target");
    let nexus = Nexus::new(transport_id(&negotiated.initiator), 1);
    let units = target.open_session(nexus);
    let mut session = Session::new(&negotiated, Arc::new(memory::Memory::new(1 << 20)));
    let window = CommandWindow::new(negotiated.command_number);
    let bounds = Bounds {
        digests: negotiated.digests,
        max_segment: negotiated.max_send_segment,
        max_burst: negotiated.max_burst,
    };
    let (mut replies, mut out) = (Replies::new(bounds, 1), Vec::new());
    let mut decoder = Decoder::default();
    decoder.limit = MAX_RECV_DATA_SEGMENT;
    loop {
        let action = match decoder.next_pdu() {
            Err(_) => return,
            Ok(None) if data.is_empty() => return,
            Ok(None) => {
                data = &data[feed(&mut decoder, data)..];
                continue;
            }
            Ok(Some(pdu)) => match session.receive(&pdu, &window) {
                Ok(action) => action,
                Err(_) => return,
            },
        };
        assert!(window.in_flight() <= MOST_IN_FLIGHT, "{} commands are in flight", window.in_flight());
        match action {
            Action::Run(command) => {
                assert!(command.data.len() <= MAX_TRANSFER as usize, "{} bytes of data", command.data.len());
                let lun = Lun::from_bytes(command.lun).unwrap_or(Lun(255));
                let mut data_in = DataIn::new();
                if let Some(task) = units.add_task(lun, u64::from(command.task_tag)) {
                    let response = units.execute(&task, &port(), &command.cdb, &command.data, &mut data_in);
                    let completion = response.completion.expect("nothing aborts the command");
                    let response = ScsiResponse {
                        task_tag: command.task_tag,
                        completion: &completion,
                        data: data_in.bytes(),
                        expected_in: command.expected_in,
                        expected_out: command.expected_out,
                        transfer_length: response.transfer_length,
                    };
                    out.clear();
                    replies.scsi(&mut out, &response, window.now());
                    assert!(out.len() >= 48 && out.len().is_multiple_of(4));
                }
                window.end(command.delivery);
                session.give_back(command.held);
            }
            Action::Fail(command, _) => {
                window.end(command.delivery);
                session.give_back(command.held);
            }
            Action::Manage(management) => {
                let _ = units.manage(Lun::from_bytes(management.lun).unwrap_or(Lun(255)), management.function);
            }
            Action::Logout(0) => return,
            _ => {}
        }
        while session.next_transfer().is_some() {}
    }
}

/// Commands of two initiators. Each has a byte with the initiator, 16 bytes of CDB, and two bytes with the length of its data.
pub fn disk_commands(data: &[u8]) {
    const HEAD: usize = 19;
    let disk = disk();
    let sessions =
        ["iqn.2026-11.fuzz:a", "iqn.2026-11.fuzz:b"].map(|name| disk.open_session(Nexus::new(transport_id(name), 1)));
    let (mut data_in, mut rest) = (DataIn::new(), data);
    for tag in 0.. {
        let Some((head, more)) = rest.split_at_checked(HEAD) else { return };
        let length = usize::from(u16::from_be_bytes([head[17], head[18]])).min(more.len());
        let (data_out, more) = more.split_at(length);
        rest = more;
        let task = disk.add_task(sessions[usize::from(head[0] & 1)], tag).expect("each has a tag of its own");
        let response = disk.execute(&task, &port(), &head[1..17], data_out, &mut data_in);
        let completion = response.completion.expect("nothing aborts the command");
        let is_good = matches!(completion, Completion::Good(_));
        assert!(data_in.bytes().len() <= SIZE.max(64 << 10), "{} bytes", data_in.bytes().len());
        assert!(is_good || data_in.bytes().is_empty(), "a command that fails returns no data");
        if let Completion::CheckCondition(sense) = completion {
            assert!(sense.code().is_some_and(|code| code.key.byte() != 0), "{sense:?}");
        }
        let is_read = is_good && matches!(head[1], 0x28 | 0x88 | 0xa8);
        assert!(!is_read || data_in.bytes().len().is_multiple_of(BLOCK));
    }
}

fn transport_id(name: &str) -> TransportId {
    TransportId::new(InitiatorPort::Iscsi { name, isid: Some([0; 6]) }).unwrap()
}

fn port() -> Port {
    Port { relative_target_port: [0, 1], name: format!("{TARGET},t,0x0001") }
}
