//! For tests: any command, and units with persistent reservations, written from the standards and apart from the code
//! under test.

pub(crate) mod nvme;
pub(crate) mod spc;

use proptest::prelude::*;
use scsi_pr::{Cdb, CommandBuf};

/// Any PERSISTENT RESERVE IN or OUT, most of them nonsense.
pub(crate) fn commands() -> impl Strategy<Value = CommandBuf> {
    let list = prop::collection::vec(any::<u8>(), 8192);
    (any::<[u8; 15]>(), any::<bool>(), list).prop_map(|(rest, out, mut list)| {
        let mut bytes = [0; 16];
        bytes[0] = if out { 0x5f } else { 0x5e };
        bytes[1..].copy_from_slice(&rest);
        bytes[7] &= 0x1f;
        let cdb = Cdb::new(bytes).unwrap();
        list.truncate(cdb.parameter_list_length());
        CommandBuf::new(cdb, list).unwrap()
    })
}
