//! [`Session`]: the requests of the full feature phase (RFC 7143 11), without I/O.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use scsi_pr::{SenseCode, SenseKey};
use scsi_pr_disk::{MAX_TRANSFER, TaskManagement};
use thiserror::Error;

use crate::login::Negotiated;
use crate::memory::Memory;
use crate::pdu::{Header, NO_TAG, Pdu, Request};
use crate::reply::{ReadyToTransfer, RejectReason, TaskManagementResponse, Window};

/// The commands that a session may have in flight.
pub const COMMANDS: u32 = 128;

/// The immediate commands, besides.
const IMMEDIATE_COMMANDS: u32 = 16;

/// 0B/47/05.
const PROTOCOL_SERVICE_CRC_ERROR: SenseCode = SenseCode { key: SenseKey::ABORTED_COMMAND, asc: 0x47, ascq: 0x05 };

/// The numbers that bound the commands of a session. Requests move them on, and so does the end of a command.
#[derive(Debug)]
pub struct CommandWindow {
    /// ExpCmdSN in the upper half, the number of commands in flight in the lower: both change in one step, so that
    /// MaxCmdSN never goes back.
    numbers: AtomicU64,
    immediate: AtomicU32,
}

const ONE_NUMBER: u64 = 1 << 32;

impl CommandWindow {
    /// The window before the first command.
    pub const fn new(command_number: u32) -> Self {
        Self { numbers: AtomicU64::new((command_number as u64) << 32), immediate: AtomicU32::new(0) }
    }

    /// ExpCmdSN and MaxCmdSN now.
    pub fn now(&self) -> Window {
        let numbers = self.numbers.load(Ordering::Acquire);
        let (expected, in_flight) = ((numbers >> 32) as u32, numbers as u32);
        Window { expected, last: expected.wrapping_add(COMMANDS).wrapping_sub(in_flight).wrapping_sub(1) }
    }

    /// The number of commands without an answer.
    pub fn in_flight(&self) -> u32 {
        self.numbers.load(Ordering::Acquire) as u32 + self.immediate.load(Ordering::Acquire)
    }

    fn begin_command(&self) {
        self.numbers.fetch_add(ONE_NUMBER + 1, Ordering::AcqRel);
    }

    fn skip_number(&self) {
        self.numbers.fetch_add(ONE_NUMBER, Ordering::AcqRel);
    }

    /// A command has ended.
    pub fn end(&self, delivery: Delivery) {
        match delivery {
            Delivery::Numbered => _ = self.numbers.fetch_sub(1, Ordering::AcqRel),
            Delivery::Immediate => _ = self.immediate.fetch_sub(1, Ordering::AcqRel),
        };
    }
}

/// Whether a command counts in the command window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It has a CmdSN of its own.
    Numbered,
    /// The I bit is set.
    Immediate,
}

/// A SCSI command with all of its data.
#[derive(Debug, PartialEq, Eq)]
pub struct ScsiCommand {
    /// The LUN field.
    pub lun: [u8; 8],
    /// Initiator Task Tag.
    pub task_tag: u32,
    /// The CDB.
    pub cdb: [u8; 16],
    /// Expected Data Transfer Length, if the R bit is set.
    pub expected_in: Option<u32>,
    /// Expected Data Transfer Length, if the W bit is set.
    pub expected_out: Option<u32>,
    /// The data that the initiator sent.
    pub data: Vec<u8>,
    /// The bytes for [`Session::give_back`], once the data is freed.
    pub held: usize,
    /// How it was delivered.
    pub delivery: Delivery,
}

/// A task management function to carry out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Management {
    /// The LUN field.
    pub lun: [u8; 8],
    /// Initiator Task Tag of the request.
    pub task_tag: u32,
    /// The function.
    pub function: TaskManagement,
    /// Whether the session has dropped a command that the function names and that waited for its data.
    pub has_dropped: bool,
}

/// The action that a request asks of the driver.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// Run the command, answer it, and call [`CommandWindow::end`] and [`Session::give_back`].
    Run(ScsiCommand),
    /// The data of the command came out of order. Answer it with this sense code, and end it as one that ran.
    Fail(ScsiCommand, SenseCode),
    /// Send Ready To Transfer for the unit with this LUN field.
    Transfer([u8; 8], ReadyToTransfer),
    /// Carry the function out and answer it.
    Manage(Management),
    /// Answer a task management request.
    RefuseManagement(u32, TaskManagementResponse),
    /// Answer a NOP-Out with its data.
    Pong,
    /// Answer a Text request with its data; the tag.
    Text,
    /// Answer a Logout with this response, and close the connection if it is 0.
    Logout(u8),
    /// Reject the PDU.
    Reject(RejectReason),
}

/// The reason why a session ends.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProtocolError {
    /// A command is missing before this one.
    #[error("command {received} follows, where {expected} is the next")]
    CommandNumber {
        /// CmdSN.
        received: u32,
        /// ExpCmdSN.
        expected: u32,
    },
    /// Data that no request of the target allows.
    #[error("the initiator sends data that it may not send: {0}")]
    Data(&'static str),
}

/// The requests of one session.
pub struct Session {
    initial_r2t: bool,
    immediate_data: bool,
    first_burst: usize,
    max_burst: usize,
    next_transfer_tag: u32,
    /// Commands that wait for data, by Initiator Task Tag.
    writes: HashMap<u32, Write>,
    /// The bytes of the commands that were asked for their data, until it is freed.
    held: usize,
    memory: Arc<Memory>,
    /// Task tags of commands that wait for room, in their order.
    queue: VecDeque<u32>,
}

/// A command that waits for data.
struct Write {
    command: ScsiCommand,
    /// The bytes that are wanted in all.
    wanted: usize,
    phase: Phase,
    /// The next DataSN.
    data_number: u32,
    next_transfer: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Unsolicited data, up to this many bytes in all.
    Unsolicited(usize),
    /// It waits for room.
    Queued,
    /// The burst with this Target Transfer Tag, which ends at this offset.
    Burst(u32, usize),
}

impl Session {
    /// The requests after a login. Commands hold their data in `memory`.
    pub fn new(negotiated: &Negotiated, memory: Arc<Memory>) -> Self {
        Self {
            initial_r2t: negotiated.initial_r2t,
            immediate_data: negotiated.immediate_data,
            first_burst: negotiated.first_burst,
            max_burst: negotiated.max_burst,
            next_transfer_tag: 0,
            writes: HashMap::new(),
            held: 0,
            memory,
            queue: VecDeque::new(),
        }
    }

    /// Handles a PDU.
    ///
    /// # Errors
    ///
    /// [`ProtocolError`]: the connection is to be closed, as error recovery level 0 has it.
    pub fn receive(&mut self, pdu: &Pdu<'_>, window: &CommandWindow) -> Result<Action, ProtocolError> {
        let header = &pdu.header;
        let request = header.request();
        match request {
            Request::DataOut => return self.data_out(pdu),
            Request::Snack => return Ok(Action::Reject(RejectReason::Snack)),
            Request::Login => return Ok(Action::Reject(RejectReason::Protocol)),
            Request::Unknown(_) => return Ok(Action::Reject(RejectReason::NotSupported)),
            // An answer to a ping of the target, which is not numbered.
            Request::NopOut if header.task_tag() == NO_TAG => return Ok(Action::None),
            _ => {}
        }
        let Some(delivery) = number(header, window)? else { return Ok(Action::None) };
        if request == Request::ScsiCommand {
            return self.command(pdu, delivery, window);
        }
        // The others are answered at once.
        if delivery == Delivery::Numbered {
            window.skip_number();
        }
        Ok(match request {
            Request::NopOut => Action::Pong,
            Request::Text => Action::Text,
            Request::TaskManagement => self.task_management(header, window),
            _ => Action::Logout(if header.0[1] & 0x7f <= 1 { 0 } else { 2 }),
        })
    }

    /// The Ready To Transfer of the next command that waits for room, if there is room now. To be asked after
    /// [`give_back`](Self::give_back) and [`Action::Manage`].
    pub fn next_transfer(&mut self) -> Option<([u8; 8], ReadyToTransfer)> {
        let tag = *self.queue.front()?;
        let wanted = self.writes[&tag].wanted;
        if !self.memory.has_room(self.held, wanted) {
            return None;
        }
        self.queue.pop_front();
        self.hold(self.held + wanted);
        Some(self.begin_burst(tag))
    }

    /// The data of a command was freed.
    pub fn give_back(&mut self, held: usize) {
        self.hold(self.held - held);
    }

    fn hold(&mut self, held: usize) {
        self.memory.update(self.held, held);
        self.held = held;
    }

    /// The commands that wait for data end without an answer: no more data will come.
    pub fn abandon(&mut self, window: &CommandWindow) {
        self.queue.clear();
        for (_, write) in self.writes.drain() {
            window.end(write.command.delivery);
        }
    }

    fn command(&mut self, pdu: &Pdu<'_>, delivery: Delivery, window: &CommandWindow) -> Result<Action, ProtocolError> {
        const READ: u8 = 0x40;
        const WRITE: u8 = 0x20;
        let header = &pdu.header;
        let flags = header.0[1];
        let task_tag = header.task_tag();
        if task_tag == NO_TAG {
            return Ok(Action::Reject(RejectReason::InvalidField));
        }
        if self.writes.contains_key(&task_tag) {
            return Ok(Action::Reject(RejectReason::TaskInProgress));
        }
        let expected = header.word(20);
        let (reads, writes) = (flags & READ != 0, flags & WRITE != 0);
        if !writes && !pdu.data.is_empty() {
            return Err(ProtocolError::Data("a command without the W bit"));
        }
        let immediate_limit = self.first_burst.min(expected as usize);
        if !pdu.data.is_empty() && (!self.immediate_data || pdu.data.len() > immediate_limit) {
            return Err(ProtocolError::Data("immediate data"));
        }
        match delivery {
            Delivery::Numbered => window.begin_command(),
            Delivery::Immediate => {
                if window.immediate.load(Ordering::Acquire) >= IMMEDIATE_COMMANDS {
                    return Ok(Action::Reject(RejectReason::TooManyImmediate));
                }
                window.immediate.fetch_add(1, Ordering::AcqRel);
            }
        }
        let command = ScsiCommand {
            lun: header.lun(),
            task_tag,
            cdb: header.0[32..48].try_into().expect("sixteen bytes"),
            expected_in: (reads && !writes).then_some(expected),
            expected_out: writes.then_some(expected),
            data: pdu.data.to_vec(),
            held: 0,
            delivery,
        };
        // A longer transfer is refused by the unit, which needs no data for that.
        let wanted = (expected as usize).min(MAX_TRANSFER as usize);
        if !writes || command.data.len() >= wanted {
            return Ok(Action::Run(command));
        }
        let is_unsolicited = !header.is_final();
        if is_unsolicited && self.initial_r2t {
            return Err(ProtocolError::Data("unsolicited data with InitialR2T=Yes"));
        }
        let phase = if is_unsolicited { Phase::Unsolicited(self.first_burst.min(wanted)) } else { Phase::Queued };
        self.writes.insert(task_tag, Write { command, wanted, phase, data_number: 0, next_transfer: 0 });
        if is_unsolicited {
            return Ok(Action::None);
        }
        Ok(self.enqueue(task_tag))
    }

    fn enqueue(&mut self, task_tag: u32) -> Action {
        self.queue.push_back(task_tag);
        self.next_transfer().map_or(Action::None, |(lun, transfer)| Action::Transfer(lun, transfer))
    }

    fn begin_burst(&mut self, task_tag: u32) -> ([u8; 8], ReadyToTransfer) {
        self.next_transfer_tag = (self.next_transfer_tag + 1) % NO_TAG;
        let write = self.writes.get_mut(&task_tag).expect("the command waits for data");
        write.command.held = write.wanted;
        let offset = write.command.data.len();
        let length = self.max_burst.min(write.wanted - offset);
        write.phase = Phase::Burst(self.next_transfer_tag, offset + length);
        write.data_number = 0;
        let number = write.next_transfer;
        write.next_transfer += 1;
        let transfer = ReadyToTransfer {
            task_tag,
            transfer_tag: self.next_transfer_tag,
            number,
            offset: offset as u32,
            length: length as u32,
        };
        (write.command.lun, transfer)
    }

    fn data_out(&mut self, pdu: &Pdu<'_>) -> Result<Action, ProtocolError> {
        let header = &pdu.header;
        let task_tag = header.task_tag();
        // The data of a command that was aborted may still come.
        let Some(write) = self.writes.get_mut(&task_tag) else { return Ok(Action::None) };
        let transfer_tag = header.word(20);
        let limit = match write.phase {
            Phase::Unsolicited(limit) if transfer_tag == NO_TAG => limit,
            Phase::Burst(tag, end) if transfer_tag == tag => end,
            _ => return Err(ProtocolError::Data("no burst with this Target Transfer Tag")),
        };
        let data = &mut write.command.data;
        if header.word(40) as usize != data.len() || header.word(36) != write.data_number {
            // Without recovery within a command, the command fails (RFC 7143 7.8); the rest of its data is ignored.
            let command = self.take_write(task_tag);
            return Ok(Action::Fail(command, PROTOCOL_SERVICE_CRC_ERROR));
        }
        if data.len() + pdu.data.len() > limit {
            return Err(ProtocolError::Data("more than the burst has"));
        }
        data.extend_from_slice(pdu.data);
        write.data_number = write.data_number.wrapping_add(1);
        let length = data.len();
        if !header.is_final() {
            return Ok(Action::None);
        }
        let is_unsolicited = matches!(write.phase, Phase::Unsolicited(_));
        if length == write.wanted {
            return Ok(Action::Run(self.take_write(task_tag)));
        }
        if is_unsolicited {
            write.phase = Phase::Queued;
            return Ok(self.enqueue(task_tag));
        }
        if length < limit {
            return Err(ProtocolError::Data("less than the burst has"));
        }
        let (lun, transfer) = self.begin_burst(task_tag);
        Ok(Action::Transfer(lun, transfer))
    }

    /// The command does not wait for data any more.
    fn take_write(&mut self, task_tag: u32) -> ScsiCommand {
        self.writes.remove(&task_tag).expect("the command waits for data").command
    }

    fn task_management(&mut self, header: &Header, window: &CommandWindow) -> Action {
        let task_tag = header.task_tag();
        let function = match header.0[1] & 0x7f {
            1 => TaskManagement::AbortTask(u64::from(header.word(20))),
            2 => TaskManagement::AbortTaskSet,
            4 => TaskManagement::ClearTaskSet,
            5 => TaskManagement::LogicalUnitReset,
            6 => TaskManagement::TargetWarmReset,
            7 => TaskManagement::TargetColdReset,
            8 => return Action::RefuseManagement(task_tag, TaskManagementResponse::NoReassignment),
            _ => return Action::RefuseManagement(task_tag, TaskManagementResponse::NotSupported),
        };
        let lun = header.lun();
        let dropped: Vec<u32> = self
            .writes
            .iter()
            .filter(|(tag, write)| match function {
                TaskManagement::AbortTask(aborted) => u64::from(**tag) == aborted,
                TaskManagement::TargetWarmReset | TaskManagement::TargetColdReset => true,
                _ => write.command.lun == lun,
            })
            .map(|(tag, _)| *tag)
            .collect();
        self.queue.retain(|tag| !dropped.contains(tag));
        for tag in &dropped {
            let command = self.take_write(*tag);
            self.give_back(command.held);
            window.end(command.delivery);
        }
        Action::Manage(Management { lun, task_tag, function, has_dropped: !dropped.is_empty() })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.hold(0);
    }
}

/// How a request is delivered; `None` when it is outside the command window, and ignored (RFC 7143 4.2.2.1).
fn number(header: &Header, window: &CommandWindow) -> Result<Option<Delivery>, ProtocolError> {
    if header.is_immediate() {
        return Ok(Some(Delivery::Immediate));
    }
    let received = header.word(24);
    let Window { expected, last } = window.now();
    if received == expected && last.wrapping_sub(expected) < COMMANDS {
        return Ok(Some(Delivery::Numbered));
    }
    let ahead = received.wrapping_sub(expected);
    // On one connection commands come in their order, so one between them is lost.
    if ahead != 0 && ahead <= last.wrapping_sub(expected) && ahead < COMMANDS {
        return Err(ProtocolError::CommandNumber { received, expected });
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pdu::Digests;

    const LENGTH: u32 = 1 << 20;

    fn session(memory: &Arc<Memory>) -> Session {
        let negotiated = Negotiated {
            initiator: "iqn.2026-11.test:node".to_owned(),
            isid: [0; 6],
            target: None,
            digests: Digests::default(),
            max_send_segment: 8192,
            max_burst: LENGTH as usize,
            first_burst: 65_536,
            initial_r2t: true,
            immediate_data: false,
            command_number: 1,
        };
        Session::new(&negotiated, Arc::clone(memory))
    }

    /// A request with its words 16, 20 and 24: the tag, and CmdSN for all but data.
    fn request(opcode: u8, flags: u8, words: [u32; 3]) -> Header {
        let mut header = [0; 48];
        (header[0], header[1]) = (opcode, flags);
        for (at, word) in [16, 20, 24].into_iter().zip(words) {
            header[at..at + 4].copy_from_slice(&word.to_be_bytes());
        }
        Header(header)
    }

    fn receive(session: &mut Session, window: &CommandWindow, header: Header, data: &[u8]) -> Action {
        session.receive(&Pdu { header, ahs: &[], data }, window).unwrap()
    }

    fn write(session: &mut Session, window: &CommandWindow, tag: u32) -> Action {
        let number = window.now().expected;
        receive(session, window, request(0x01, 0xa0, [tag, LENGTH, number]), &[])
    }

    fn is_transfer_of(action: &Action, tag: u32) -> bool {
        matches!(action, Action::Transfer(_, transfer) if transfer.task_tag == tag)
    }

    #[test]
    fn write_waits_until_the_data_of_another_is_freed() {
        let memory = Arc::new(Memory::new(LENGTH as usize));
        let (mut session, window) = (session(&memory), CommandWindow::new(1));
        let first = write(&mut session, &window, 1);
        let Action::Transfer(_, transfer) = first else { panic!("{first:?}") };
        assert_eq!(write(&mut session, &window, 2), Action::None);
        let data = request(0x05, 0x80, [1, transfer.transfer_tag, 0]);
        let run = receive(&mut session, &window, data, &vec![7; LENGTH as usize]);
        let Action::Run(command) = run else { panic!("{run:?}") };
        assert_eq!(session.next_transfer(), None, "the command may still run");
        session.give_back(command.held);
        assert_eq!(session.next_transfer().map(|(_, transfer)| transfer.task_tag), Some(2));
    }

    #[test]
    fn aborted_write_gives_its_room_to_the_next_and_its_tag_can_be_used_again() {
        let memory = Arc::new(Memory::new(LENGTH as usize));
        let (mut session, window) = (session(&memory), CommandWindow::new(1));
        assert!(is_transfer_of(&write(&mut session, &window, 1), 1));
        for tag in [2, 3] {
            assert_eq!(write(&mut session, &window, tag), Action::None);
        }
        for tag in [1, 2] {
            let abort = request(0x02, 0x81, [9, tag, window.now().expected]);
            assert!(matches!(receive(&mut session, &window, abort, &[]), Action::Manage(_)));
        }
        assert!(is_transfer_of(&write(&mut session, &window, 2), 3), "it has waited for longer");
        assert_eq!(session.next_transfer(), None);
        session.give_back(LENGTH as usize);
        assert_eq!(session.next_transfer().map(|(_, transfer)| transfer.task_tag), Some(2));
        session.give_back(LENGTH as usize);
        assert_eq!(session.next_transfer(), None);
    }

    #[test]
    fn session_that_ends_gives_back_all_it_holds() {
        let memory = Arc::new(Memory::new(LENGTH as usize));
        let (mut one, mut other, window) = (session(&memory), session(&memory), CommandWindow::new(1));
        assert!(is_transfer_of(&write(&mut one, &window, 1), 1));
        assert!(is_transfer_of(&write(&mut other, &window, 1), 1), "one command each goes on");
        assert_eq!(write(&mut other, &window, 2), Action::None);
        assert!(!memory.has_room(1, 0));
        drop((one, other));
        assert!(memory.has_room(1, LENGTH as usize));
    }
}
