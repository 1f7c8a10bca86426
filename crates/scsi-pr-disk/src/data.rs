//! [`DataIn`]: the data that a command returns.

use std::ops::Range;

/// The alignment of blocks in memory. With it, direct I/O needs no copy.
const PAGE: usize = 4096;

/// The longest data whose memory is kept for the next command.
const KEPT: usize = 1 << 20;

/// The smallest block. Shorter data are no blocks.
const BLOCK: usize = 512;

/// A buffer that is used for one command after the other, so that no command has to allocate.
#[derive(Debug, Default)]
pub struct DataIn {
    memory: Vec<u8>,
    used: Range<usize>,
}

impl DataIn {
    /// An empty buffer.
    pub const fn new() -> Self {
        Self { memory: Vec::new(), used: 0..0 }
    }

    /// The data of the last command.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.used.clone()]
    }

    pub(crate) fn clear(&mut self) {
        self.used = 0..0;
        if self.memory.len() > KEPT + PAGE {
            self.memory = Vec::new();
        }
    }

    /// Room for `length` bytes, which hold whatever was there before. Blocks begin at a page boundary.
    pub(crate) fn room(&mut self, length: usize) -> &mut [u8] {
        let alignment = if length < BLOCK { 1 } else { PAGE };
        let wanted = length + alignment - 1;
        if self.memory.len() < wanted {
            self.memory.resize(wanted, 0);
        }
        let start = self.memory.as_ptr().align_offset(alignment);
        self.used = start..start + length;
        &mut self.memory[self.used.clone()]
    }

    /// The first `allocation_length` bytes of `data`.
    pub(crate) fn set(&mut self, data: &[u8], allocation_length: usize) {
        let length = data.len().min(allocation_length);
        self.room(length).copy_from_slice(&data[..length]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_begin_at_a_page_and_short_data_take_no_page() {
        let mut data_in = DataIn::new();
        data_in.set(&[1; 36], 36);
        assert!(data_in.memory.len() < BLOCK);
        for length in [512, 4096, 1 << 20, 512] {
            let room = data_in.room(length);
            assert!(room.as_ptr().addr().is_multiple_of(PAGE));
            room.fill(7);
            assert_eq!(data_in.bytes(), vec![7; length]);
        }
        data_in.set(&[1; 36], 8);
        assert_eq!(data_in.bytes(), [1; 8]);
        data_in.room(8 << 20);
        data_in.clear();
        assert!(data_in.bytes().is_empty());
        assert!(data_in.memory.is_empty());
    }
}
