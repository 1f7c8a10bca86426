//! The commands that read and write blocks (SBC-4 5).

use std::ops::Range;

use scsi_pr::{Completion, Sense, SenseCode, Status};

use crate::call::{Call, Failure};
use crate::commands::Operation;
use crate::disk::Disk;
use crate::gate::Refusal;
use crate::geometry::{Geometry, MAX_UNMAP_BLOCKS, MAX_UNMAP_DESCRIPTORS, MAX_WRITE_SAME};
use crate::medium::{Allocation, Durability, MediumError};
use crate::range_lock::Mode;
use crate::sense_code;

/// The bytes that are handled at a time by commands that need memory of their own.
const CHUNK: usize = 1 << 20;

/// The blocks that a CDB names.
#[derive(Clone, Copy, Debug)]
struct Extent {
    lba: u64,
    blocks: u64,
    block_size: u64,
}

impl Extent {
    fn start(&self) -> u64 {
        self.lba * self.block_size
    }

    fn length(&self) -> u64 {
        self.blocks * self.block_size
    }

    fn bytes(&self) -> Range<u64> {
        self.start()..self.start() + self.length()
    }
}

const FUA: u8 = 0x08;
const BYTCHK: u8 = 0x06;
const PROTECT: u8 = 0xe0;

impl Disk {
    pub(crate) fn read_capacity(&self, call: &mut Call<'_>, operation: Operation) -> Result<(), Failure> {
        let geometry = self.geometry();
        let last = geometry.blocks().checked_sub(1).ok_or(SenseCode::NO_MEDIUM)?;
        let block_size = geometry.block_size().to_be_bytes();
        if operation == Operation::ReadCapacity10 {
            // An address without PMI, and PMI itself, are obsolete.
            if call.be32(2) != 0 || call.cdb[8] & 1 != 0 {
                return Err(SenseCode::INVALID_FIELD_IN_CDB.into());
            }
            let mut data = u32::try_from(last).unwrap_or(u32::MAX).to_be_bytes().to_vec();
            data.extend_from_slice(&block_size);
            call.answer(&data, data.len());
            return Ok(());
        }
        const LBPME: u8 = 0x80;
        const LBPRZ: u8 = 0x40;
        let mut data = last.to_be_bytes().to_vec();
        data.extend_from_slice(&block_size);
        data.extend_from_slice(&[0, geometry.physical_blocks().trailing_zeros() as u8, LBPME | LBPRZ, 0]);
        data.resize(32, 0);
        let allocation_length = call.be32(10) as usize;
        call.answer(&data, allocation_length);
        Ok(())
    }

    pub(crate) fn read(&self, call: &mut Call<'_>) -> Result<(), Failure> {
        let extent = self.transfer(call)?;
        call.transfer_length = extent.length();
        if extent.blocks == 0 {
            return Ok(());
        }
        let _range = self.ranges.lock(extent.bytes(), Mode::Shared);
        not_aborted(call)?;
        let buffer = call.data_in.room(extent.length() as usize);
        self.medium.read(extent.start(), buffer).map_err(|error| self.read_failure(error))
    }

    pub(crate) fn write(&self, call: &mut Call<'_>) -> Result<(), Failure> {
        let extent = self.transfer(call)?;
        self.writable()?;
        let data = blocks_out(call, &extent);
        if data.is_empty() {
            return Ok(());
        }
        let _range = self.ranges.lock(extent.bytes(), Mode::Shared);
        not_aborted(call)?;
        let durability = self.durability(call);
        self.medium.write(extent.start(), data, durability).map_err(|error| self.write_failure(error))
    }

    pub(crate) fn write_and_verify(&self, call: &mut Call<'_>) -> Result<(), Failure> {
        let extent = self.transfer(call)?;
        let compare = match call.cdb[1] & BYTCHK {
            0x00 => false,
            0x02 => true,
            _ => return Err(SenseCode::INVALID_FIELD_IN_CDB.into()),
        };
        self.writable()?;
        let data = blocks_out(call, &extent);
        if data.is_empty() {
            return Ok(());
        }
        let extent = Extent { blocks: data.len() as u64 / extent.block_size, ..extent };
        let _range = self.ranges.lock(extent.bytes(), Mode::Exclusive);
        not_aborted(call)?;
        self.medium.write(extent.start(), data, Durability::Durable).map_err(|error| self.write_failure(error))?;
        self.compare(
            &extent,
            |offset, stored| {
                if compare { mismatch(stored, &data[offset..offset + stored.len()]) } else { None }
            },
        )
    }

    pub(crate) fn verify(&self, call: &mut Call<'_>) -> Result<(), Failure> {
        let extent = self.addressed(call)?;
        no_protection(call)?;
        let data = match call.cdb[1] & BYTCHK {
            0x00 => None,
            0x02 => {
                self.check_transfer_length(&extent)?;
                Some((data_out(call, extent.length())?, extent.length()))
            }
            0x06 if extent.blocks == 0 => None,
            0x06 => Some((data_out(call, extent.block_size)?, extent.block_size)),
            _ => return Err(SenseCode::INVALID_FIELD_IN_CDB.into()),
        };
        let _range = self.ranges.lock(extent.bytes(), Mode::Shared);
        not_aborted(call)?;
        self.compare(&extent, |offset, stored| {
            let (data, length) = data?;
            // Chunks are whole blocks, so with one block of data each chunk begins at its beginning.
            let expected = data[offset % length as usize..].iter().chain(data.iter().cycle());
            stored.iter().zip(expected).position(|(stored, expected)| stored != expected)
        })
    }

    pub(crate) fn compare_and_write(&self, call: &mut Call<'_>) -> Result<(), Failure> {
        let extent = self.extent(call.be64(2), u64::from(call.cdb[13]))?;
        no_protection(call)?;
        self.writable()?;
        let data = exact_data_out(call, 2 * extent.length())?;
        if data.is_empty() {
            return Ok(());
        }
        let (expected, new) = data.split_at(extent.length() as usize);
        let _range = self.ranges.lock(extent.bytes(), Mode::Exclusive);
        not_aborted(call)?;
        self.compare(&extent, |offset, stored| mismatch(stored, &expected[offset..offset + stored.len()]))?;
        let durability = self.durability(call);
        self.medium.write(extent.start(), new, durability).map_err(|error| self.write_failure(error))
    }

    pub(crate) fn or_write(&self, call: &mut Call<'_>) -> Result<(), Failure> {
        let extent = self.transfer(call)?;
        self.writable()?;
        let data = data_out(call, extent.length())?;
        if data.is_empty() {
            return Ok(());
        }
        let _range = self.ranges.lock(extent.bytes(), Mode::Exclusive);
        not_aborted(call)?;
        let mut stored = vec![0; data.len()];
        self.medium.read(extent.start(), &mut stored).map_err(|error| self.read_failure(error))?;
        stored.iter_mut().zip(data).for_each(|(stored, data)| *stored |= data);
        let durability = self.durability(call);
        self.medium.write(extent.start(), &stored, durability).map_err(|error| self.write_failure(error))
    }

    pub(crate) fn write_same(&self, call: &mut Call<'_>) -> Result<(), Failure> {
        const ANCHOR: u8 = 0x10;
        const UNMAP: u8 = 0x08;
        const NDOB: u8 = 0x01;
        let extent = self.addressed(call)?;
        no_protection(call)?;
        let flags = call.cdb[1];
        let without_data = call.cdb[0] == 0x93 && flags & NDOB != 0;
        // WSNZ: zero does not mean "to the end". There is no anchored state.
        if extent.blocks == 0 || extent.blocks > MAX_WRITE_SAME || flags & ANCHOR != 0 {
            return Err(SenseCode::INVALID_FIELD_IN_CDB.into());
        }
        self.writable()?;
        let block: &[u8] = if without_data { &[] } else { exact_data_out(call, extent.block_size)? };
        let _range = self.ranges.lock(extent.bytes(), Mode::Exclusive);
        not_aborted(call)?;
        let durability = self.durability(call);
        if block.iter().all(|byte| *byte == 0) {
            let allocation = if flags & UNMAP != 0 { Allocation::Deallocate } else { Allocation::Keep };
            return self
                .medium
                .zero(extent.start(), extent.length(), allocation, durability)
                .map_err(|error| self.write_failure(error));
        }
        let pattern = block.repeat((CHUNK / block.len()).min(extent.blocks as usize));
        let end = extent.start() + extent.length();
        let mut offset = extent.start();
        while offset < end {
            not_aborted(call)?;
            let length = (pattern.len() as u64).min(end - offset);
            self.medium
                .write(offset, &pattern[..length as usize], durability)
                .map_err(|error| self.write_failure(error))?;
            offset += length;
        }
        Ok(())
    }

    pub(crate) fn unmap(&self, call: &mut Call<'_>) -> Result<(), Failure> {
        const ANCHOR: u8 = 0x01;
        if call.cdb[1] & ANCHOR != 0 {
            return Err(SenseCode::INVALID_FIELD_IN_CDB.into());
        }
        self.writable()?;
        let length = usize::from(call.be16(7));
        let list = call.parameter_list(length)?;
        if list.is_empty() {
            return Ok(());
        }
        let header = list.get(..8).ok_or(SenseCode::PARAMETER_LIST_LENGTH_ERROR)?;
        let described = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let descriptors = &list[8..list.len().min(8 + described)];
        let mut extents = Vec::new();
        for descriptor in descriptors.chunks_exact(16) {
            let lba = u64::from_be_bytes(descriptor[..8].try_into().expect("eight bytes"));
            let blocks = u32::from_be_bytes(descriptor[8..12].try_into().expect("four bytes"));
            // A descriptor without blocks names nothing.
            if blocks > 0 {
                extents.push(self.extent(lba, u64::from(blocks))?);
            }
        }
        let blocks: u64 = extents.iter().map(|extent| extent.blocks).sum();
        if extents.len() > usize::from(MAX_UNMAP_DESCRIPTORS) || blocks > u64::from(MAX_UNMAP_BLOCKS) {
            return Err(SenseCode::INVALID_FIELD_IN_PARAMETER_LIST.into());
        }
        let durability = self.durability(call);
        for extent in &extents {
            let _range = self.ranges.lock(extent.bytes(), Mode::Shared);
            not_aborted(call)?;
            let (start, length) = (extent.start(), extent.length());
            self.medium
                .zero(start, length, Allocation::Deallocate, durability)
                .map_err(|error| self.write_failure(error))?;
        }
        Ok(())
    }

    /// GET LBA STATUS(16): as many descriptors as there is room for, at most 256.
    pub(crate) fn get_lba_status(&self, call: &mut Call<'_>) -> Result<(), Failure> {
        const MAPPED: u8 = 0;
        const DEALLOCATED: u8 = 1;
        let geometry = self.geometry();
        let allocation_length = call.be32(10) as usize;
        let mut lba = call.be64(2);
        if lba >= geometry.blocks() {
            return Err(sense_code::LBA_OUT_OF_RANGE.into());
        }
        let block_size = u64::from(geometry.block_size());
        let room = (allocation_length.saturating_sub(8) / 16).clamp(1, 256);
        let mut data = vec![0; 8];
        while lba < geometry.blocks() && data.len() < 8 + 16 * room {
            let rest = (geometry.blocks() - lba) * block_size;
            let found = self.medium.extent(lba * block_size, rest).map_err(|error| self.read_failure(error))?;
            // A block of which a part has storage is mapped.
            let whole = if found.is_mapped { found.length.div_ceil(block_size) } else { found.length / block_size };
            let (is_mapped, blocks) = if whole == 0 { (true, 1) } else { (found.is_mapped, whole) };
            let blocks = u32::try_from(blocks.min(geometry.blocks() - lba)).unwrap_or(u32::MAX);
            data.extend_from_slice(&lba.to_be_bytes());
            data.extend_from_slice(&blocks.to_be_bytes());
            data.extend_from_slice(&[if is_mapped { MAPPED } else { DEALLOCATED }, 0, 0, 0]);
            lba += u64::from(blocks);
        }
        let length = ((data.len() - 4) as u32).to_be_bytes();
        data[..4].copy_from_slice(&length);
        call.answer(&data, allocation_length);
        Ok(())
    }

    pub(crate) fn synchronize_cache(&self, call: &mut Call<'_>) -> Result<(), Failure> {
        self.addressed(call)?;
        not_aborted(call)?;
        // A file system flushes from time to time, so that its initiator learns of a new size soon.
        self.check_capacity();
        self.flush()
    }

    /// PRE-FETCH: CONDITION MET, as all of the blocks can be read fast.
    pub(crate) fn pre_fetch(&self, call: &mut Call<'_>) -> Result<(), Failure> {
        self.addressed(call)?;
        Err(Failure::Completion(Completion::Status(Status::CONDITION_MET)))
    }

    pub(crate) fn flush(&self) -> Result<(), Failure> {
        self.medium.flush().map_err(|error| self.write_failure(error))
    }

    /// The blocks of a command whose data are as long as they are.
    fn transfer(&self, call: &Call<'_>) -> Result<Extent, Failure> {
        let extent = self.addressed(call)?;
        no_protection(call)?;
        self.check_transfer_length(&extent)?;
        Ok(extent)
    }

    fn check_transfer_length(&self, extent: &Extent) -> Result<(), Failure> {
        match extent.blocks <= u64::from(self.known_geometry().max_transfer_blocks()) {
            true => Ok(()),
            false => Err(SenseCode::INVALID_FIELD_IN_CDB.into()),
        }
    }

    fn addressed(&self, call: &Call<'_>) -> Result<Extent, Failure> {
        let (lba, blocks) = address(&call.cdb);
        self.extent(lba, blocks)
    }

    fn extent(&self, lba: u64, blocks: u64) -> Result<Extent, Failure> {
        // The medium may have grown since the last look.
        extent_within(self.known_geometry(), lba, blocks)
            .or_else(|| extent_within(self.geometry(), lba, blocks))
            .ok_or_else(|| self.out_of_range().into())
    }

    /// Whether the blocks of a READ are in memory.
    pub(crate) fn is_cached(&self, cdb: &[u8; 16]) -> bool {
        let (lba, blocks) = address(cdb);
        extent_within(self.known_geometry(), lba, blocks)
            .is_some_and(|extent| self.medium.is_cached(extent.start(), extent.length()))
    }

    fn writable(&self) -> Result<(), Failure> {
        match self.medium.is_read_only() || self.modes().write_protect {
            true => Err(sense_code::WRITE_PROTECTED.into()),
            false => Ok(()),
        }
    }

    fn durability(&self, call: &Call<'_>) -> Durability {
        // READ(6) and WRITE(6) have an address where the others have FUA.
        let fua = call.cdb[0] >> 5 != 0 && call.cdb[0] != 0x42 && call.cdb[0] != 0x41 && call.cdb[0] != 0x93;
        let durable = fua && call.cdb[1] & FUA != 0 || !self.modes().write_cache;
        if durable { Durability::Durable } else { Durability::Cached }
    }

    /// Reads the blocks, and hands each chunk with its offset in the extent to `find`, which returns the index of a byte
    /// that differs.
    ///
    /// # Errors
    ///
    /// MISCOMPARE DURING VERIFY OPERATION, with the offset of the first difference as the INFORMATION field.
    fn compare(&self, extent: &Extent, find: impl Fn(usize, &[u8]) -> Option<usize>) -> Result<(), Failure> {
        let length = extent.length() as usize;
        let mut buffer = vec![0; CHUNK.min(length)];
        let mut offset = 0;
        while offset < length {
            let chunk = CHUNK.min(length - offset);
            let stored = &mut buffer[..chunk];
            self.medium.read(extent.start() + offset as u64, stored).map_err(|error| self.read_failure(error))?;
            if let Some(index) = find(offset, stored) {
                let mut sense = *Sense::fixed(sense_code::MISCOMPARE_DURING_VERIFY).bytes();
                sense[0] |= 0x80; // VALID
                sense[3..7].copy_from_slice(&((offset + index) as u32).to_be_bytes());
                return Err(Failure::Completion(Completion::CheckCondition(Sense::from_bytes(&sense))));
            }
            offset += chunk;
        }
        Ok(())
    }

    fn read_failure(&self, error: MediumError) -> Failure {
        match error {
            MediumError::Gone => SenseCode::NO_MEDIUM,
            MediumError::BeyondEnd => self.shrunk(),
            _ => SenseCode::READ_ERROR,
        }
        .into()
    }

    fn write_failure(&self, error: MediumError) -> Failure {
        match error {
            MediumError::NoSpace => SenseCode::SPACE_ALLOCATION_FAILED,
            MediumError::Io => sense_code::WRITE_ERROR,
            MediumError::Gone => SenseCode::NO_MEDIUM,
            MediumError::BeyondEnd => self.shrunk(),
            MediumError::ReadOnly => sense_code::WRITE_PROTECTED,
        }
        .into()
    }

    /// The medium has become smaller since the last look.
    fn shrunk(&self) -> SenseCode {
        self.check_capacity();
        self.out_of_range()
    }

    /// The sense code for blocks that the medium does not have, by its known size.
    fn out_of_range(&self) -> SenseCode {
        if self.known_geometry().blocks() == 0 { SenseCode::NO_MEDIUM } else { sense_code::LBA_OUT_OF_RANGE }
    }
}

/// The LBA and the number of blocks of a CDB, by the group of its operation code.
fn address(cdb: &[u8; 16]) -> (u64, u64) {
    let be32 = |at: usize| u64::from(u32::from_be_bytes([cdb[at], cdb[at + 1], cdb[at + 2], cdb[at + 3]]));
    match cdb[0] >> 5 {
        0 => (be32(0) & 0x001f_ffff, if cdb[4] == 0 { 256 } else { u64::from(cdb[4]) }),
        4 => (be32(2) << 32 | be32(6), be32(10)),
        5 => (be32(2), be32(6)),
        _ => (be32(2), be32(5) & 0xffff),
    }
}

fn extent_within(geometry: Geometry, lba: u64, blocks: u64) -> Option<Extent> {
    match lba.checked_add(blocks) {
        Some(end) if end <= geometry.blocks() && lba < geometry.blocks() => {
            Some(Extent { lba, blocks, block_size: u64::from(geometry.block_size()) })
        }
        _ => None,
    }
}

/// Protection information is not supported.
fn no_protection(call: &Call<'_>) -> Result<(), Failure> {
    match call.cdb[0] >> 5 != 0 && call.cdb[1] & PROTECT != 0 {
        true => Err(SenseCode::INVALID_FIELD_IN_CDB.into()),
        false => Ok(()),
    }
}

/// The data that came with the command.
///
/// # Errors
///
/// INVALID FIELD IN CDB when there is less than the CDB says: the command does nothing.
fn data_out<'a>(call: &mut Call<'a>, length: u64) -> Result<&'a [u8], Failure> {
    call.transfer_length = length;
    call.data_out.get(..length as usize).ok_or(SenseCode::INVALID_FIELD_IN_CDB.into())
}

/// As [`data_out`], when more data than the CDB says is as wrong as less.
fn exact_data_out<'a>(call: &mut Call<'a>, length: u64) -> Result<&'a [u8], Failure> {
    let data = data_out(call, length)?;
    if call.data_out.len() == data.len() { Ok(data) } else { Err(SenseCode::INVALID_FIELD_IN_CDB.into()) }
}

/// The data of a write: those whole blocks that the initiator has sent. Where it announced less than the CDB says, the
/// transport reports the rest as a residual overflow (SAM-5 5.4.3, RFC 7143 11.4.5.2).
fn blocks_out<'a>(call: &mut Call<'a>, extent: &Extent) -> &'a [u8] {
    call.transfer_length = extent.length();
    let sent = (call.data_out.len() as u64).min(extent.length());
    &call.data_out[..(sent - sent % extent.block_size) as usize]
}

/// The last look before the medium is touched.
fn not_aborted(call: &Call<'_>) -> Result<(), Failure> {
    if call.task.is_aborted() { Err(Refusal::Aborted.into()) } else { Ok(()) }
}

fn mismatch(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b { None } else { a.iter().zip(b).position(|(a, b)| a != b) }
}
