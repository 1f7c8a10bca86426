//! The data formats of the standard: parameter lists, returned data, TransportIDs, sense data.

use std::fmt;

use scsi_pr::{
    Capabilities, Cdb, Command, FullStatus, InvalidData, Keys, Parsed, Reservation, ReserveInAction, ReserveOut, Sense,
    SenseCode, TransportId,
};
use scsi_pr_helper::MAX_TRANSFER;

/// Checks that a log may show `text`: a guest must not be able to add lines, or to reverse the direction of text.
pub(crate) fn assert_printable(text: &str) {
    let quoted = text.replace('\\', r"\\").replace('"', r#"\""#).replace('\'', r"\'");
    assert!(!text.is_empty() && text.escape_debug().eq(quoted.chars()), "{text:?}");
}

/// 16 bytes of a PERSISTENT RESERVE OUT and its parameter list. The target sets opcode and length.
pub fn parameter_list(data: &[u8]) {
    let Some((cdb, list)) = data.split_first_chunk::<16>() else { return };
    let list = &list[..list.len().min(MAX_TRANSFER)];
    let mut cdb = *cdb;
    cdb[0] = 0x5f;
    cdb[7..9].copy_from_slice(&u16::try_from(list.len()).expect("8192 bytes at most").to_be_bytes());
    let command = Command::new(Cdb::new(cdb).expect("the CDB is valid"), list).expect("the CDB is valid");
    assert_printable(&command.to_string());

    match ReserveOut::parse(command) {
        Ok(value) => {
            let encoded = value.encode().expect("it came in one command");
            assert_eq!(encoded.cdb().service_action(), command.cdb().service_action());
            assert_eq!(encoded.command().parameter_list().len(), list.len(), "the lengths are equal");
            // The encoder drops ignored bytes, and the meaning stays the same.
            let again = ReserveOut::parse(encoded.command()).expect("it was accepted before");
            assert_eq!(again, value);
            assert_eq!(again.encode().expect("as before").command(), encoded.command());
            assert_printable(&value.to_string());
        }
        Err(code) => assert!(
            [
                SenseCode::PARAMETER_LIST_LENGTH_ERROR,
                SenseCode::INVALID_FIELD_IN_CDB,
                SenseCode::INVALID_FIELD_IN_PARAMETER_LIST,
            ]
            .contains(&code),
            "{code}"
        ),
    }
}

/// A service action of PERSISTENT RESERVE IN (its low two bits), and the data that it returned.
pub fn returned_data(data: &[u8]) {
    let Some((action, data)) = data.split_first() else { return };
    match ReserveInAction::from_code(action & 3).expect("there are four") {
        ReserveInAction::ReadKeys => returned(data, Keys::parse, Keys::encode),
        ReserveInAction::ReadReservation => returned(data, Reservation::parse, Reservation::encode),
        ReserveInAction::ReportCapabilities => returned(data, Capabilities::parse, Capabilities::encode),
        ReserveInAction::ReadFullStatus => returned(data, FullStatus::parse, FullStatus::encode),
        other => panic!("a service action that this target does not know: {other}"),
    }
}

fn returned<T: fmt::Debug + fmt::Display + PartialEq>(
    data: &[u8],
    parse: fn(&[u8]) -> Result<Parsed<T>, InvalidData>,
    encode: fn(&T) -> Vec<u8>,
) {
    match parse(data) {
        Ok(parsed) => {
            assert_eq!(parsed.truncated, data.len() < parsed.length);
            assert_printable(&parsed.to_string());
            assert_printable(&format!("{parsed:#}").replace('\n', ""));
            let encoded = encode(&parsed.value);
            assert!(encoded.len() <= parsed.length, "the encoder adds no bytes");
            assert!(parsed.truncated || encoded.len() == parsed.length, "the lengths are equal");
            let again = parse(&encoded).expect("it was accepted before");
            assert_eq!(again, Parsed { value: parsed.value, length: encoded.len(), truncated: false });
            assert_eq!(encode(&again.value), encoded);
        }
        Err(error) => assert_printable(&error.to_string()),
    }
}

/// A list of TransportIDs.
pub fn transport_id(data: &[u8]) {
    let ids = match TransportId::list_from_bytes(data) {
        Ok(ids) => ids,
        Err(error) => {
            assert!(TransportId::from_bytes(data).is_err(), "a valid TransportID is a valid list");
            return assert_printable(&error.to_string());
        }
    };
    assert_eq!(ids.iter().map(TransportId::bytes).collect::<Vec<_>>().concat(), data);
    assert_eq!(TransportId::from_bytes(data).is_ok(), ids.len() == 1);
    for id in &ids {
        assert_eq!(TransportId::from_bytes(id.bytes()).as_ref().map(TransportId::bytes), Ok(id.bytes()));
        let canonical = TransportId::new(id.port()).expect("it was read from a TransportID");
        assert_eq!((&canonical, canonical.port()), (id, id.port()));
        assert!(canonical.bytes().len() <= id.bytes().len(), "the canonical form is the shortest");
        assert_printable(&id.to_string());
    }
}

/// Sense data.
pub fn sense(data: &[u8]) {
    let sense = Sense::from_bytes(data);
    let length = data.len().min(Sense::LENGTH);
    assert_eq!(sense.bytes()[..length], data[..length]);
    assert!(sense.bytes()[length..].iter().all(|byte| *byte == 0));
    assert_eq!(Sense::from_bytes(sense.bytes()), sense);
    assert!(sense.length() <= Sense::LENGTH);
    assert_eq!(sense.code().is_some(), sense.length() >= 8);
    assert!(!sense.is_deferred() || sense.code().is_some());
    assert_printable(&sense.to_string());
    assert_printable(&format!("{sense:?}"));
    if let Some(code) = sense.code() {
        // The bytes beyond the length do not change the code.
        assert_eq!(Sense::from_bytes(&sense.bytes()[..sense.length()]).code(), Some(code));
        for made in [Sense::fixed(code), Sense::descriptor(code)] {
            assert_eq!((made.code(), made.is_deferred()), (Some(code), false));
        }
    }
}
