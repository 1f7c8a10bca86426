//! The commands of a history other than those of reservations: reads and writes of stamped blocks, and others.

use model::Answer;

use super::unit::{BLOCK, READ, WRITE, block_cdb, block_of};
use crate::sg::Transfer;

/// The blocks that histories read and write.
pub(super) const BLOCKS: u8 = 4;

/// A command.
#[derive(Clone, Copy, Debug)]
pub(super) enum Access {
    Read,
    Write,
    /// COMPARE AND WRITE of the stamp that the block has.
    CompareEqual,
    /// COMPARE AND WRITE of another stamp.
    CompareOther,
    /// Any other command: name, CDB, length of the data from the unit.
    Other(&'static str, &'static [u8], usize),
}

/// Commands of each class that LIO supports, as often as histories send them.
const ACCESSES: [Access; 16] = [
    Access::Write,
    Access::Write,
    Access::Write,
    Access::Write,
    Access::Read,
    Access::Read,
    Access::Read,
    Access::Read,
    Access::CompareEqual,
    Access::CompareOther,
    Access::Other("TEST UNIT READY", &[0; 6], 0),
    Access::Other("SYNCHRONIZE CACHE(10)", &[0x35, 0, 0, 0, 0, 0, 0, 0, 1, 0], 0),
    Access::Other("INQUIRY", &[0x12, 0, 0, 0, 36, 0], 36),
    Access::Other("MODE SENSE(6)", &[0x1a, 0, 0x3f, 0, 192, 0], 192),
    Access::Other("READ CAPACITY(10)", &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8),
    Access::Other("READ CAPACITY(16)", &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], 32),
];

const MISCOMPARE: Answer = Answer::Check(0x0e, 0x1d, 0x00);

impl Access {
    /// One of the commands, and its block.
    pub(super) fn choose(choice: u64) -> (Self, u8) {
        let index = usize::try_from(choice % ACCESSES.len() as u64).expect("it is less than the length");
        let lba = choice / ACCESSES.len() as u64 % u64::from(BLOCKS);
        (ACCESSES[index], u8::try_from(lba).expect("there are few blocks"))
    }

    /// The CDB, and the data to the unit. `stamps` are the present stamp of the block and a new one.
    pub(super) fn encode(self, lba: u8, stamps: [u64; 2]) -> (Vec<u8>, Vec<u8>) {
        let [present, new] = stamps;
        match self {
            Self::Read => (block_cdb(READ, lba).to_vec(), Vec::new()),
            Self::Write => (block_cdb(WRITE, lba).to_vec(), block_of(new)),
            Self::CompareEqual => (compare_and_write(lba), [block_of(present), block_of(new)].concat()),
            Self::CompareOther => (compare_and_write(lba), [block_of(new), block_of(new)].concat()),
            Self::Other(_, cdb, _) => (cdb.to_vec(), Vec::new()),
        }
    }

    /// The data phase of the command, with these data to the unit.
    pub(super) fn transfer(self, data: &[u8]) -> Transfer<'_> {
        match self {
            Self::Read => Transfer::In(BLOCK),
            Self::Other(_, _, length) => Transfer::In(length),
            Self::Write | Self::CompareEqual | Self::CompareOther => Transfer::Out(data),
        }
    }

    /// The effect of the command, once LIO permits it: its answer. A write changes `block`.
    pub(super) fn effect(self, block: &mut u64, new: u64) -> Answer {
        match self {
            Self::Read => return Answer::Good(block.to_be_bytes().to_vec()),
            Self::CompareOther => return MISCOMPARE,
            Self::Write | Self::CompareEqual => *block = new,
            Self::Other(..) => {}
        }
        Answer::Good(Vec::new())
    }

    /// The name of the command.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Read => "READ(10)",
            Self::Write => "WRITE(10)",
            Self::CompareEqual => "COMPARE AND WRITE of the same block",
            Self::CompareOther => "COMPARE AND WRITE of another block",
            Self::Other(name, ..) => name,
        }
    }
}

fn compare_and_write(lba: u8) -> Vec<u8> {
    let mut cdb = vec![0; 16];
    (cdb[0], cdb[9], cdb[13]) = (0x89, lba, 1);
    cdb
}
