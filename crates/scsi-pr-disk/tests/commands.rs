//! Each command, with its effect read back.

mod common;

use common::*;
use scsi_pr::{Completion, Status};
use scsi_pr_disk::MediumError;

fn node(fixture: &Fixture) -> Initiator {
    fixture.initiator("iqn.2026-11.test:node")
}

#[test]
fn writes_of_every_length_are_read_back() {
    let fixture = Fixture::new();
    let node = node(&fixture);
    let block = |byte: u8| vec![byte; BLOCK];
    node.good(&[0x0a, 0, 0, 1, 1, 0], &block(6));
    node.good(&write10(2, 1), &block(10));
    node.good(&[0xaa, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0], &block(12));
    node.good(&sixteen(0x8a, 0, 4, 1), &block(16));
    let expected = [block(6), block(10), block(12), block(16)].concat();
    assert_eq!(node.good(&[0x08, 0, 0, 1, 4, 0], &[]), expected);
    assert_eq!(node.read(1, 4), expected);
    assert_eq!(node.good(&[0xa8, 0, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0], &[]), expected);
    assert_eq!(node.good(&sixteen(0x88, 0, 1, 4), &[]), expected);
    // A length of zero is 256 blocks in a CDB of six bytes, and none in the others.
    assert_eq!(node.good(&[0x08, 0, 0, 0, 0, 0], &[]).len(), 256 * BLOCK);
    assert_eq!(node.read(0, 0), []);
}

#[test]
fn addresses_beyond_the_end_are_refused() {
    let fixture = Fixture::new();
    let node = node(&fixture);
    let last = BLOCKS as u32 - 1;
    node.read(last, 1);
    for (lba, blocks) in [(last, 2), (last + 1, 1), (last + 1, 0), (u32::MAX, 1)] {
        assert_eq!(node.sense(&read10(lba, blocks)), "05/21/00");
        assert_eq!(node.sense_of(&write10(lba, blocks), &vec![0; usize::from(blocks) * BLOCK]), "05/21/00");
    }
    assert_eq!(node.sense(&sixteen(0x88, 0, u64::MAX, 2)), "05/21/00");
}

#[test]
fn a_transfer_over_the_limit_is_refused() {
    let fixture = Fixture::with(|options| options);
    fixture.medium.resize(16 << 20);
    let node = node(&fixture);
    // The initiator learns the new size with its next command.
    assert_eq!(node.sense(&sixteen(0x88, 0, 0, (8 << 20) / 512 + 1)), "05/24/00");
    assert_eq!(node.sense(&[0; 6]), "06/2a/09");
}

#[test]
fn fua_and_a_disabled_cache_make_writes_durable() {
    let fixture = Fixture::new();
    let node = node(&fixture);
    node.write(0, &[1; BLOCK]);
    assert_eq!(fixture.medium.durable_writes(), 0);
    let mut cdb = write10(0, 1);
    cdb[1] = 0x08;
    node.good(&cdb, &[1; BLOCK]);
    assert_eq!(fixture.medium.durable_writes(), 1);
    // MODE SELECT(6) of the Caching page without WCE, as Windows' compliance test sends it.
    let mut page = node.good(&[0x1a, 8, 8, 0, 255, 0], &[]);
    page[0] = 0;
    page[2] = 0;
    page[4] &= 0x7f;
    page[6] &= !0x04;
    node.good(&[0x15, 0x10, 0, 0, page.len() as u8, 0], &page);
    assert_eq!(fixture.medium.flushes(), 1, "earlier writes are made durable first");
    assert_eq!(node.good(&[0x1a, 8, 8, 0, 255, 0], &[])[6] & 0x04, 0);
    node.write(0, &[1; BLOCK]);
    assert_eq!(fixture.medium.durable_writes(), 2);
    node.good(&ten(0x35, 0, 0), &[]);
    assert_eq!(fixture.medium.flushes(), 2);
}

#[test]
fn change_of_modes_is_a_unit_attention_for_others_and_fixed_bits_are_refused() {
    let fixture = Fixture::new();
    let (a, b) = (fixture.initiator("iqn.2026-11.test:a"), fixture.initiator("iqn.2026-11.test:b"));
    let mut page = a.good(&[0x1a, 8, 0x0a, 0, 255, 0], &[]);
    (page[0], page[2]) = (0, 0);
    page[8] |= 0x08; // SWP
    a.good(&[0x15, 0x10, 0, 0, page.len() as u8, 0], &page);
    assert_eq!(b.sense(&[0; 6]), "06/2a/01");
    assert_eq!(b.sense_of(&write10(0, 1), &[0; BLOCK]), "07/27/00");
    assert_eq!(b.good(&[0x1a, 8, 0x3f, 0, 255, 0], &[])[2] & 0x80, 0x80, "WP");
    page[8] &= !0x08;
    page[7] ^= 0x10; // QUEUE ALGORITHM MODIFIER
    assert_eq!(a.sense_of(&[0x15, 0x10, 0, 0, page.len() as u8, 0], &page), "05/26/00");
    assert_eq!(a.sense_of(&[0x15, 0x10, 0, 0, 3, 0], &page[..3]), "05/1a/00");
    // Saved values, a page that does not exist, saving.
    assert_eq!(a.sense(&[0x1a, 8, 0xff, 0, 255, 0]), "05/39/00");
    assert_eq!(a.sense(&[0x1a, 8, 0x1c, 0, 255, 0]), "05/24/00");
    assert_eq!(a.sense_of(&[0x15, 0x11, 0, 0, page.len() as u8, 0], &page), "05/24/00");
}

#[test]
fn compare_and_write_writes_only_what_it_expected() {
    let fixture = Fixture::new();
    let node = node(&fixture);
    let compare_and_write = |blocks: u8| {
        let mut cdb = [0; 16];
        (cdb[0], cdb[9], cdb[13]) = (0x89, 5, blocks);
        cdb
    };
    let (zeros, ones) = (vec![0; 2 * BLOCK], vec![1; 2 * BLOCK]);
    node.good(&compare_and_write(2), &[&zeros[..], &ones].concat());
    assert_eq!(node.read(5, 2), ones);
    let mut wrong = ones.clone();
    wrong[BLOCK + 3] = 9;
    let (completion, _) = node.send(&compare_and_write(2), &[&wrong[..], &zeros].concat());
    let Completion::CheckCondition(sense) = completion else { panic!("{completion}") };
    assert_eq!(sense_text(&sense), "0e/1d/00");
    // VALID, and the offset of the first difference.
    assert_eq!(sense.bytes()[0], 0xf0);
    assert_eq!(sense.bytes()[3..7], (BLOCK as u32 + 3).to_be_bytes());
    assert_eq!(node.read(5, 2), ones);
    assert_eq!(node.sense_of(&compare_and_write(2), &ones), "05/24/00");
}

#[test]
fn compare_and_write_is_atomic_across_nexuses() {
    let fixture = Fixture::new();
    std::thread::scope(|scope| {
        for number in 0..4 {
            let node = fixture.initiator(&format!("iqn.2026-11.test:{number}"));
            scope.spawn(move || {
                let mut cdb = [0; 16];
                (cdb[0], cdb[13]) = (0x89, 1);
                for _ in 0..50 {
                    // A counter in the first eight bytes of block 0.
                    loop {
                        let old = node.read(0, 1);
                        let mut new = old.clone();
                        let count = u64::from_be_bytes(old[..8].try_into().unwrap()) + 1;
                        new[..8].copy_from_slice(&count.to_be_bytes());
                        if is_good(&node.send(&cdb, &[old, new].concat()).0) {
                            break;
                        }
                    }
                }
            });
        }
    });
    assert_eq!(fixture.medium.block(0)[..8], 200u64.to_be_bytes());
}

#[test]
fn write_same_unmap_and_lba_status() {
    let fixture = Fixture::new();
    let node = node(&fixture);
    node.good(&sixteen(0x93, 0, 10, 6), &[7; BLOCK]);
    assert_eq!(node.read(10, 6), vec![7; 6 * BLOCK]);
    let status = |lba: u64| {
        let data = node.good(&sixteen(0x9e, 0x12, lba, 24), &[]);
        (u64::from_be_bytes(data[8..16].try_into().unwrap()), data[19], data[20])
    };
    assert_eq!(status(10), (10, 6, 0));
    // UNMAP of two blocks; one that names no block is none.
    let descriptor = |lba: u64, blocks: u32| [&lba.to_be_bytes()[..], &blocks.to_be_bytes(), &[0; 4]].concat();
    let list = [&[0, 38, 0, 32, 0, 0, 0, 0][..], &descriptor(11, 2), &descriptor(BLOCKS, 0)].concat();
    node.good(&[0x42, 0, 0, 0, 0, 0, 0, 0, list.len() as u8, 0], &list);
    assert_eq!(node.read(10, 4), [vec![7; BLOCK], vec![0; 2 * BLOCK], vec![7; BLOCK]].concat());
    assert_eq!([status(10), status(11), status(13)], [(10, 1, 0), (11, 2, 1), (13, 3, 0)]);
    // WRITE SAME with UNMAP, and with NDOB.
    node.good(&sixteen(0x93, 0x08, 13, 1), &[0; BLOCK]);
    node.good(&sixteen(0x93, 0x09, 14, 1), &[]);
    assert_eq!(status(11), (11, 4, 1));
    for (byte1, blocks) in [(0x10, 1), (0, 0), (0x20, 1), (0, 65_536)] {
        assert_eq!(
            node.sense_of(&sixteen(0x93, byte1, 0, blocks), &[0; BLOCK]),
            if blocks > 4096 { "05/21/00" } else { "05/24/00" }
        );
    }
}

#[test]
fn verify_and_or_write() {
    let fixture = Fixture::new();
    let node = node(&fixture);
    node.write(3, &[0x0f; 2 * BLOCK]);
    node.good(&sixteen(0x8b, 0, 3, 1), &[0xf0; BLOCK]);
    assert_eq!(node.read(3, 2), [[0xff; BLOCK], [0x0f; BLOCK]].concat());
    let verify = |bytchk: u8, blocks: u16| {
        let mut cdb = ten(0x2f, 3, blocks);
        cdb[1] = bytchk;
        cdb
    };
    node.good(&verify(0, 2), &[]);
    node.good(&verify(2, 2), &[[0xff; BLOCK], [0x0f; BLOCK]].concat());
    assert_eq!(node.sense_of(&verify(2, 2), &[0xff; 2 * BLOCK]), "0e/1d/00");
    // One block of data for all.
    node.write(3, &[0xff; 2 * BLOCK]);
    node.good(&verify(6, 2), &[0xff; BLOCK]);
    assert_eq!(node.sense_of(&verify(6, 2), &[0xfe; BLOCK]), "0e/1d/00");
    assert_eq!(node.sense(&verify(4, 1)), "05/24/00");
    let mut cdb = ten(0x2e, 3, 1);
    cdb[1] = 2;
    node.good(&cdb, &[1; BLOCK]);
    assert_eq!(node.read(3, 1), [1; BLOCK]);
    assert_eq!(node.send(&ten(0x34, 0, 8), &[]).0, Completion::Status(Status::CONDITION_MET));
}

#[test]
fn failures_of_the_medium_have_their_sense_and_change_no_state() {
    let fixture = Fixture::new();
    let node = node(&fixture);
    for (error, write, read) in [
        (MediumError::NoSpace, "07/27/07", "03/11/00"),
        (MediumError::Io, "03/0c/00", "03/11/00"),
        (MediumError::Gone, "02/3a/00", "02/3a/00"),
        (MediumError::ReadOnly, "07/27/00", "03/11/00"),
    ] {
        fixture.medium.fail(Some(error));
        assert_eq!(node.sense_of(&write10(0, 1), &[1; BLOCK]), write);
        assert_eq!(node.sense(&read10(0, 1)), read);
    }
    fixture.medium.fail(None);
    assert_eq!(node.read(0, 1), [0; BLOCK]);
}

#[test]
fn new_size_is_a_unit_attention_once_for_each_session() {
    let fixture = Fixture::new();
    let (a, b) = (fixture.initiator("iqn.2026-11.test:a"), fixture.initiator("iqn.2026-11.test:b"));
    fixture.medium.resize(2 * BLOCKS * BLOCK as u64);
    a.good(&[0; 6], &[]);
    for initiator in [&a, &b] {
        assert_eq!(initiator.sense(&[0; 6]), "06/2a/09");
        let data = initiator.good(&sixteen(0x9e, 0x10, 0, 32), &[]);
        assert_eq!(data[..8], (2 * BLOCKS - 1).to_be_bytes());
        assert_eq!((&data[8..12], data[13], data[14]), (&512u32.to_be_bytes()[..], 3, 0xc0));
    }
}

#[test]
fn inquiry_names_the_disk() {
    let fixture = Fixture::new();
    let node = fixture.new_session("iqn.2026-11.test:node");
    // INQUIRY and REQUEST SENSE come before the unit attention.
    let data = node.good(&[0x12, 0, 0, 0, 96, 0], &[]);
    assert_eq!((data.len(), data[2], &data[8..16]), (96, 6, &b"SCSI-PR "[..]));
    let pages = node.good(&[0x12, 1, 0, 0, 255, 0], &[]);
    assert_eq!(pages[4..], [0x00, 0x80, 0x83, 0x86, 0xb0, 0xb1, 0xb2]);
    for page in &pages[4..] {
        let data = node.good(&[0x12, 1, *page, 0, 255, 0], &[]);
        let length = usize::from(u16::from_be_bytes([data[2], data[3]]));
        assert_eq!((data[1], data.len()), (*page, length + 4));
    }
    let identification = node.good(&[0x12, 1, 0x83, 0, 255, 0], &[]);
    assert_eq!(identification[4..8], [1, 3, 0, 8]);
    assert_eq!(identification[8] >> 4, 3, "locally assigned");
    assert_eq!(node.sense(&[0x12, 1, 0x42, 0, 255, 0]), "05/24/00");
    assert_eq!(node.sense(&[0x12, 0, 0x80, 0, 255, 0]), "05/24/00");
    let sense = node.good(&[0x03, 0, 0, 0, 18, 0], &[]);
    assert_eq!((sense[2], sense[12], sense[13]), (0x06, 0x29, 0x00));
    node.good(&[0; 6], &[]);
}

#[test]
fn unknown_commands_and_nested_aca_are_refused() {
    let fixture = Fixture::new();
    let node = node(&fixture);
    for cdb in [[0x83; 16], [0x7f; 16], [0x48; 16], [0xff; 16]] {
        assert_eq!(node.sense(&cdb), "05/20/00");
    }
    assert_eq!(node.sense(&[0x9e, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), "05/24/00");
    assert_eq!(node.sense(&[0, 0, 0, 0, 0, 0x04]), "05/24/00");
}

#[test]
fn supported_operation_codes_are_those_that_are_supported() {
    let fixture = Fixture::new();
    let node = node(&fixture);
    let data = node.good(&[0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0], &[]);
    let mut count = 0;
    for descriptor in data[4..].chunks_exact(8) {
        let (opcode, action, has_action) = (descriptor[0], descriptor[3], descriptor[5] & 1);
        let one = node.good(&[0xa3, 0x0c, 1 + has_action, opcode, 0, action, 0, 0, 0xff, 0xff, 0, 0], &[]);
        assert_eq!((one[1] & 7, one[3], one[4]), (3, descriptor[7], opcode));
        count += 1;
    }
    assert!(count > 50);
    let unsupported = node.good(&[0xa3, 0x0c, 1, 0x83, 0, 0, 0, 0, 0xff, 0xff, 0, 0], &[]);
    assert_eq!(unsupported, [0, 1, 0, 0]);
    assert_eq!(node.good(&[0xa3, 0x0d, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0], &[]), [0xd8, 0, 0, 0]);
}
