//! [`Call`]: a command on its way through the device server.

use scsi_pr::{Completion, SenseCode};

use crate::data::DataIn;
use crate::gate::{Refusal, Task};

/// The target port through which a command came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// RELATIVE TARGET PORT IDENTIFIER, big endian.
    pub relative_target_port: [u8; 2],
    /// The SCSI name of the port (for iSCSI: `iqn…,t,0x0001`), at most 250 characters; empty if it has none.
    pub name: String,
}

/// The reason why a command ends without GOOD.
#[derive(Debug)]
pub(crate) enum Failure {
    Refused(Refusal),
    Completion(Completion),
}

impl From<SenseCode> for Failure {
    fn from(code: SenseCode) -> Self {
        Self::Completion(Completion::check(code))
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// A command on its way through the device server.
pub(crate) struct Call<'a> {
    pub(crate) task: &'a Task,
    pub(crate) port: &'a Port,
    /// Padded with zeros.
    pub(crate) cdb: [u8; 16],
    pub(crate) data_out: &'a [u8],
    pub(crate) data_in: &'a mut DataIn,
    pub(crate) transfer_length: u64,
}

impl<'a> Call<'a> {
    pub(crate) fn be16(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.cdb[at], self.cdb[at + 1]])
    }

    pub(crate) fn be32(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.cdb[at], self.cdb[at + 1], self.cdb[at + 2], self.cdb[at + 3]])
    }

    pub(crate) fn be64(&self, at: usize) -> u64 {
        u64::from(self.be32(at)) << 32 | u64::from(self.be32(at + 4))
    }

    /// Returns `data`, cut to the allocation length.
    pub(crate) fn answer(&mut self, data: &[u8], allocation_length: usize) {
        self.data_in.set(data, allocation_length);
        self.transfer_length = self.data_in.bytes().len() as u64;
    }

    /// The parameter list: exactly as long as the CDB says.
    ///
    /// # Errors
    ///
    /// PARAMETER LIST LENGTH ERROR when the initiator sent less.
    pub(crate) fn parameter_list(&mut self, length: usize) -> Result<&'a [u8], Failure> {
        self.transfer_length = length as u64;
        self.data_out.get(..length).ok_or(Failure::from(SenseCode::PARAMETER_LIST_LENGTH_ERROR))
    }
}

/// The CDB with zeros for the bytes that it lacks.
pub(crate) fn padded_cdb(cdb: &[u8]) -> [u8; 16] {
    let mut padded = [0; 16];
    let length = cdb.len().min(padded.len());
    padded[..length].copy_from_slice(&cdb[..length]);
    padded
}
