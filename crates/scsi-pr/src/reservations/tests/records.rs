//! Records as they are in stores: the bytes of version 1 must be read for ever.

use super::*;

/// Two registrants and a preempted nexus. One registrant is the holder, and the other has pending unit attentions.
const VERSION_1: &[u8] = b"scsi-pr\0\
    \x00\x01\
    \x00\x00\x00\x94\
    \x00\x00\x00\x06\x01\x05\x00\x00\x00\x00\x00\x00\x27\x10\
    \x00\x01\x00\x01\
    \x00\x00\x00\x02\
    \x00\x00\x00\x00\x00\x00\x01\x01\x00\x01\x00\x06\
    \x06\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\
    \x00\x00\x00\x00\x00\x00\x01\x02\x00\x01\x02\x01\x04\x06\
    \x06\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\
    \x00\x00\x00\x01\
    \x00\x01\x02\x01\x05\x06\
    \x06\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\
    \xb4\xac\xaa\x1f";

#[test]
fn version_1_is_written_and_read() {
    let mut unit = Unit::reserved(3, WE_RO);
    assert_eq!(unit.release(1, WE_RO), GOOD);
    assert_eq!((unit.reported(3), unit.reserve(1, WE_RO)), (vec![RELEASED], GOOD));
    assert_eq!(unit.preempt(1, key(3), WE), GOOD);
    let ignore = ReserveOut::RegisterAndIgnoreExistingKey { service_action_key: key(1), all_tg_pt: false, aptpl: true };
    assert_eq!((unit.out(1, &ignore), unit.out(1, &ignore)), (GOOD, GOOD));
    unit.0.reset();
    assert_eq!(unit.reported(1), [(0x29, 0)]);

    assert_eq!(unit.0.to_record(), VERSION_1);
    let mut again = Unit(Reservations::from_record(VERSION_1).unwrap());
    assert_eq!(again.0, unit.0);
    again.keys_are(6, &[1, 2]);
    assert_eq!((again.held(), again.0.aptpl()), (Some((key(1), WE_RO)), true));
    assert_eq!(
        (again.reported(2), again.reported(3)),
        (vec![(0x29, 0), RELEASED], vec![(0x29, 0), REGISTRATION_PREEMPTED])
    );
}

#[test]
fn a_later_version_is_refused_by_its_number() {
    let mut record = VERSION_1.to_vec();
    record[9] = 2;
    record::seal(&mut record);
    let refused = Reservations::from_record(&record).unwrap_err();
    assert_eq!(refused, InvalidRecord::Newer(2));
    assert!(refused.to_string().contains("format 2"));
    record[8] = 1;
    record::seal(&mut record);
    assert_eq!(Reservations::from_record(&record), Err(InvalidRecord::Newer(0x102)));
    (record[8], record[9]) = (0, 0);
    record::seal(&mut record);
    assert_eq!(Reservations::from_record(&record), Err(InvalidRecord::Damaged));
}

#[test]
fn what_is_no_record_is_refused_for_what_it_is() {
    assert_eq!(Reservations::from_record(b"").unwrap_err(), InvalidRecord::Truncated { expected: 18, actual: 0 });
    assert_eq!(Reservations::from_record(b"scsi").unwrap_err(), InvalidRecord::Truncated { expected: 18, actual: 4 });
    assert_eq!(Reservations::from_record(b"SQLite format 3\0").unwrap_err(), InvalidRecord::NotOurs);
    assert_eq!(Reservations::from_record(&[0; 4096]).unwrap_err(), InvalidRecord::NotOurs);
    let cut = &VERSION_1[..100];
    assert_eq!(Reservations::from_record(cut).unwrap_err(), InvalidRecord::Truncated { expected: 148, actual: 100 });
}

/// A length that is not that of the record, before a checksum that is right.
#[test]
fn a_length_of_something_else_is_refused() {
    let with_length = |record: &[u8], length: u8| {
        let (content, _) = record.split_at(record.len() - 4);
        let mut record = content.to_vec();
        record[10..14].copy_from_slice(&[0, 0, 0, length]);
        record.extend(crc32fast::hash(&record).to_be_bytes());
        Reservations::from_record(&record)
    };
    assert_eq!(with_length(VERSION_1, 149).err(), Some(InvalidRecord::Truncated { expected: 149, actual: 148 }));
    assert!(with_length(VERSION_1, 148).is_ok());
    for length in [0, 18, 147] {
        assert_eq!(with_length(VERSION_1, length), Err(InvalidRecord::Damaged));
    }
    // So short that the last byte of the length is the first of the checksum, and both are right.
    let least = (0..=u16::MAX).find_map(|version| {
        let mut record = [&VERSION_1[..8], &version.to_be_bytes(), &[0; 3]].concat();
        record.extend(crc32fast::hash(&record).to_be_bytes());
        (record[13] == 17).then_some(record)
    });
    let refused = Reservations::from_record(&least.unwrap()).unwrap_err();
    assert_eq!(refused, InvalidRecord::Truncated { expected: 18, actual: 17 });
}

/// Content that no value has, with a right checksum.
#[test]
fn what_cannot_be_is_refused() {
    for (offset, byte) in [
        // Flags, type, holder, room, no port, a key of zero.
        (18, 0x03),
        (19, 0x04),
        (19, 0x07),
        (19, 0x00),
        (23, 0x02),
        (20, 0xff),
        (24, 0x7f),
        (29, 0x00),
    ] {
        let mut record = VERSION_1.to_vec();
        record[offset] = byte;
        record::seal(&mut record);
        assert_eq!(Reservations::from_record(&record), Err(InvalidRecord::Damaged), "{offset} {byte:#x}");
    }
    // The same nexus twice: two registrants, or one of them among the others.
    let address = |n: u8| VERSION_1.windows(4).rposition(|it| it == [0, 0, n, 0]).unwrap() + 2;
    for (n, other) in [(2, 1), (3, 1), (3, 2)] {
        let mut record = VERSION_1.to_vec();
        assert_eq!(record[address(n)], n);
        record[address(n)] = other;
        record::seal(&mut record);
        assert_eq!(Reservations::from_record(&record), Err(InvalidRecord::Damaged));
    }
}

#[test]
fn thousands_are_kept_in_their_order() {
    let mut unit = Unit::new();
    for n in (1..=3000).rev() {
        assert_eq!(
            unit.outcome(
                &nexus(n),
                &ReserveOut::RegisterAndIgnoreExistingKey {
                    service_action_key: key(n),
                    all_tg_pt: false,
                    aptpl: false,
                }
            )
            .completion,
            GOOD
        );
    }
    let again = Reservations::from_record(&unit.0.to_record()).unwrap();
    assert!(again.registrations().map(|it| it.key).eq((1..=3000).rev().map(key)));
    assert_eq!(again, unit.0);
}
