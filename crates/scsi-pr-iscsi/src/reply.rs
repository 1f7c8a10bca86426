//! [`Replies`]: what a target sends in the full feature phase, numbered and encoded.

use scsi_pr::{Completion, Status};

use crate::pdu::{Answer, Digests, FINAL, Header, NO_TAG, encode};

/// The bounds of the data that a target sends, as they were negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// HeaderDigest and DataDigest.
    pub digests: Digests,
    /// The longest data segment in bytes.
    pub max_segment: usize,
    /// The most data in one burst in bytes.
    pub max_burst: usize,
}

/// The command window: ExpCmdSN and MaxCmdSN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// ExpCmdSN.
    pub expected: u32,
    /// MaxCmdSN.
    pub last: u32,
}

/// Numbers and encodes PDUs of a target.
#[derive(Debug)]
pub struct Replies {
    bounds: Bounds,
    stat_sn: u32,
}

/// The answer to a SCSI command.
#[derive(Debug)]
pub struct ScsiResponse<'a> {
    /// Initiator Task Tag.
    pub task_tag: u32,
    /// Status and sense data.
    pub completion: &'a Completion,
    /// The data, of GOOD.
    pub data: &'a [u8],
    /// The bytes that the initiator expected to receive; `None` for a command without the R bit.
    pub expected_in: Option<u32>,
    /// The bytes that the initiator expected to send; `None` for a command without the W bit.
    pub expected_out: Option<u32>,
    /// The bytes that the CDB asked for, in its direction.
    pub transfer_length: u64,
}

/// A response code of task management (RFC 7143 11.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TaskManagementResponse {
    /// Function complete.
    Complete = 0,
    /// Task does not exist.
    NoTask = 1,
    /// LUN does not exist.
    NoUnit = 2,
    /// Task allegiance reassignment not supported.
    NoReassignment = 4,
    /// Task management function not supported.
    NotSupported = 5,
}

/// A reason of a Reject (RFC 7143 11.17.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RejectReason {
    /// SNACK reject.
    Snack = 0x03,
    /// Protocol error.
    Protocol = 0x04,
    /// Command not supported.
    NotSupported = 0x05,
    /// Immediate command reject.
    TooManyImmediate = 0x06,
    /// Task in progress.
    TaskInProgress = 0x07,
    /// Invalid PDU field.
    InvalidField = 0x09,
}

const UNDERFLOW: u8 = 0x02;
const OVERFLOW: u8 = 0x04;
const STATUS: u8 = 0x01;

impl Replies {
    /// Replies after a login; `stat_sn` is the StatSN of the first one.
    pub const fn new(bounds: Bounds, stat_sn: u32) -> Self {
        Self { bounds, stat_sn }
    }

    /// Sets the longest data segment that the initiator accepts, in bytes.
    pub fn set_max_segment(&mut self, max_segment: usize) {
        self.bounds.max_segment = max_segment;
    }

    /// The bounds.
    pub const fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// A header that carries a status, which counts in StatSN.
    fn with_status(&mut self, answer: Answer, flags: u8, task_tag: u32, window: Window) -> Header {
        let header = self.without_status(answer, flags, task_tag, window);
        self.stat_sn = self.stat_sn.wrapping_add(1);
        header
    }

    fn without_status(&self, answer: Answer, flags: u8, task_tag: u32, window: Window) -> Header {
        let mut header = Header::new(answer, flags);
        header.set_word(16, task_tag);
        header.set_word(24, self.stat_sn);
        header.set_word(28, window.expected);
        header.set_word(32, window.last);
        header
    }

    /// SCSI Data-In and SCSI Response. The status of GOOD is in the last Data-In, if there is any data.
    pub fn scsi(&mut self, out: &mut Vec<u8>, response: &ScsiResponse<'_>, window: Window) {
        let sent = response.data.len().min(response.expected_in.unwrap_or(0) as usize);
        let data = &response.data[..sent];
        let residual = residual(response);
        let is_good = matches!(response.completion, Completion::Good(_));
        let mut data_sn = 0;
        let mut offset = 0;
        while offset < data.len() {
            let burst_end = (offset / self.bounds.max_burst + 1) * self.bounds.max_burst;
            let end = (offset + self.bounds.max_segment).min(burst_end).min(data.len());
            let is_last = end == data.len();
            let flags = if end == burst_end || is_last { FINAL } else { 0 };
            let mut header = if is_last && is_good {
                let mut header =
                    self.with_status(Answer::DataIn, flags | STATUS | residual.0, response.task_tag, window);
                header.set_word(44, residual.1);
                header
            } else {
                let mut header = self.without_status(Answer::DataIn, flags, response.task_tag, window);
                // Reserved without the S bit.
                header.set_word(24, 0);
                header
            };
            header.set_word(20, NO_TAG);
            header.set_word(36, data_sn);
            header.set_word(40, offset as u32);
            let segment = &data[offset..end];
            encode(out, &header, segment, self.bounds.digests);
            data_sn += 1;
            offset = end;
        }
        if is_good && !data.is_empty() {
            return;
        }
        let mut header = self.with_status(Answer::ScsiResponse, FINAL | residual.0, response.task_tag, window);
        header.0[3] = status(response.completion);
        header.set_word(36, data_sn);
        header.set_word(44, residual.1);
        let sense = match response.completion {
            Completion::CheckCondition(sense) => {
                let length = sense.length();
                let mut data = (length as u16).to_be_bytes().to_vec();
                data.extend_from_slice(&sense.bytes()[..length]);
                data
            }
            _ => Vec::new(),
        };
        encode(out, &header, &sense, self.bounds.digests);
    }

    /// Ready To Transfer.
    pub fn ready_to_transfer(&mut self, out: &mut Vec<u8>, lun: [u8; 8], request: &ReadyToTransfer, window: Window) {
        let mut header = self.without_status(Answer::ReadyToTransfer, FINAL, request.task_tag, window);
        header.0[8..16].copy_from_slice(&lun);
        header.set_word(20, request.transfer_tag);
        header.set_word(36, request.number);
        header.set_word(40, request.offset);
        header.set_word(44, request.length);
        encode(out, &header, &[], self.bounds.digests);
    }

    /// NOP-In that answers a NOP-Out: the same data.
    pub fn nop_in(&mut self, out: &mut Vec<u8>, request: &Header, data: &[u8], window: Window) {
        let mut header = self.with_status(Answer::NopIn, FINAL, request.task_tag(), window);
        header.0[8..16].copy_from_slice(&request.lun());
        header.set_word(20, NO_TAG);
        let data = &data[..data.len().min(self.bounds.max_segment)];
        encode(out, &header, data, self.bounds.digests);
    }

    /// NOP-In that asks for an answer with `transfer_tag`.
    pub fn ping(&mut self, out: &mut Vec<u8>, transfer_tag: u32, window: Window) {
        let mut header = self.without_status(Answer::NopIn, FINAL, NO_TAG, window);
        header.set_word(20, transfer_tag);
        encode(out, &header, &[], self.bounds.digests);
    }

    /// Task Management Function Response.
    pub fn task_management(
        &mut self,
        out: &mut Vec<u8>,
        task_tag: u32,
        response: TaskManagementResponse,
        window: Window,
    ) {
        let mut header = self.with_status(Answer::TaskManagement, FINAL, task_tag, window);
        header.0[2] = response as u8;
        encode(out, &header, &[], self.bounds.digests);
    }

    /// Text Response; `transfer_tag` when more follows.
    pub fn text(&mut self, out: &mut Vec<u8>, task_tag: u32, text: &[u8], transfer_tag: Option<u32>, window: Window) {
        const CONTINUE: u8 = 0x40;
        let flags = if transfer_tag.is_some() { CONTINUE } else { FINAL };
        let mut header = self.with_status(Answer::Text, flags, task_tag, window);
        header.set_word(20, transfer_tag.unwrap_or(NO_TAG));
        encode(out, &header, text, self.bounds.digests);
    }

    /// Logout Response: 0, closed; 2, recovery is not supported.
    pub fn logout(&mut self, out: &mut Vec<u8>, task_tag: u32, response: u8, window: Window) {
        let mut header = self.with_status(Answer::Logout, FINAL, task_tag, window);
        header.0[2] = response;
        encode(out, &header, &[], self.bounds.digests);
    }

    /// Reject, with the header of the rejected PDU.
    pub fn reject(&mut self, out: &mut Vec<u8>, rejected: &Header, reason: RejectReason, window: Window) {
        let mut header = self.with_status(Answer::Reject, FINAL, NO_TAG, window);
        header.0[2] = reason as u8;
        encode(out, &header, &rejected.0, self.bounds.digests);
    }

    /// Asynchronous Message: the target asks for a logout within `seconds` (event 1).
    pub fn request_logout(&mut self, out: &mut Vec<u8>, seconds: u16, window: Window) {
        let mut header = self.with_status(Answer::Asynchronous, FINAL, NO_TAG, window);
        header.0[36] = 1;
        header.0[42..44].copy_from_slice(&seconds.to_be_bytes());
        encode(out, &header, &[], self.bounds.digests);
    }
}

/// A Ready To Transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadyToTransfer {
    /// Initiator Task Tag.
    pub task_tag: u32,
    /// Target Transfer Tag.
    pub transfer_tag: u32,
    /// R2TSN.
    pub number: u32,
    /// Buffer Offset in bytes.
    pub offset: u32,
    /// Desired Data Transfer Length in bytes.
    pub length: u32,
}

const fn status(completion: &Completion) -> u8 {
    match completion {
        Completion::Good(_) => 0x00,
        Completion::CheckCondition(_) => 0x02,
        Completion::Status(status) => Status::byte(*status),
    }
}

/// The residual flag and count (RFC 7143 11.4.5). A command that fails moves no data.
fn residual(response: &ScsiResponse<'_>) -> (u8, u32) {
    let expected = u64::from(response.expected_in.or(response.expected_out).unwrap_or(0));
    let moved = match response.completion {
        Completion::Good(_) => response.transfer_length,
        _ if response.expected_out.is_some() => expected,
        _ => 0,
    };
    let count = |difference: u64| u32::try_from(difference).unwrap_or(u32::MAX);
    match moved.cmp(&expected) {
        std::cmp::Ordering::Equal => (0, 0),
        std::cmp::Ordering::Less => (UNDERFLOW, count(expected - moved)),
        std::cmp::Ordering::Greater => (OVERFLOW, count(moved - expected)),
    }
}
