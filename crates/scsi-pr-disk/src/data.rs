//! [`DataIn`]: the data that a command returns.

/// A buffer that is used for one command after the other, so that no command has to allocate.
#[derive(Debug, Default)]
pub struct DataIn {
    bytes: Vec<u8>,
    length: usize,
}

impl DataIn {
    /// An empty buffer.
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), length: 0 }
    }

    /// The data of the last command.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    pub(crate) fn clear(&mut self) {
        self.length = 0;
    }

    /// Room for `length` bytes, which hold whatever was there before.
    pub(crate) fn room(&mut self, length: usize) -> &mut [u8] {
        if self.bytes.len() < length {
            self.bytes.resize(length, 0);
        }
        self.length = length;
        &mut self.bytes[..length]
    }

    /// The first `allocation_length` bytes of `data`.
    pub(crate) fn set(&mut self, data: &[u8], allocation_length: usize) {
        let length = data.len().min(allocation_length);
        self.room(length).copy_from_slice(&data[..length]);
    }
}
