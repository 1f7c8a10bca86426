//! [`Geometry`]: the blocks of a disk, and the limits of commands.

/// The longest COMPARE AND WRITE, in blocks.
pub(crate) const MAX_COMPARE_AND_WRITE: u8 = 255;
/// The most block descriptors in the parameter list of UNMAP.
pub(crate) const MAX_UNMAP_DESCRIPTORS: u16 = 256;
/// The longest transfer in bytes. A transport needs that much memory for a command at most.
pub const MAX_TRANSFER: u32 = 8 << 20;
const OPTIMAL_TRANSFER: u32 = 1 << 20;
/// The most blocks that one UNMAP gives back, so that a command does not take minutes.
pub(crate) const MAX_UNMAP_BLOCKS: u32 = 1 << 20;
/// The most blocks that one WRITE SAME writes.
pub(crate) const MAX_WRITE_SAME: u64 = 65_535;

/// How the bytes of the medium are divided into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) block_size: u32,
    pub(crate) physical_block_size: u32,
    pub(crate) blocks: u64,
}

impl Geometry {
    pub(crate) const fn block_size(&self) -> u32 {
        self.block_size
    }

    pub(crate) const fn blocks(&self) -> u64 {
        self.blocks
    }

    /// The number of logical blocks in a physical one.
    pub(crate) const fn physical_blocks(&self) -> u32 {
        self.physical_block_size / self.block_size
    }

    pub(crate) const fn max_transfer_blocks(&self) -> u32 {
        MAX_TRANSFER / self.block_size
    }

    pub(crate) const fn optimal_transfer_blocks(&self) -> u32 {
        OPTIMAL_TRANSFER / self.block_size
    }

    /// The block descriptor of MODE SENSE (SBC-4 6.5.2).
    pub(crate) fn block_descriptor(&self, long: bool) -> Vec<u8> {
        let mut descriptor = Vec::new();
        if long {
            descriptor.extend_from_slice(&self.blocks.to_be_bytes());
            descriptor.extend_from_slice(&[0; 4]);
            descriptor.extend_from_slice(&self.block_size.to_be_bytes());
        } else {
            descriptor.extend_from_slice(&u32::try_from(self.blocks).unwrap_or(u32::MAX).to_be_bytes());
            descriptor.extend_from_slice(&self.block_size.to_be_bytes());
        }
        descriptor
    }

    /// Whether MODE SELECT may name these numbers: the ones that the disk has; a number of blocks of zero means no change.
    pub(crate) fn accepts_block_descriptor(&self, descriptor: &[u8], long: bool) -> bool {
        let own = self.block_descriptor(long);
        let blocks = if long { 8 } else { 4 };
        descriptor.len() == own.len()
            && descriptor[blocks..] == own[blocks..]
            && (descriptor[..blocks] == own[..blocks] || descriptor[..blocks].iter().all(|byte| *byte == 0))
    }
}
