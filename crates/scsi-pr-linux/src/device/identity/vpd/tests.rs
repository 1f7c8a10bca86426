use super::*;
use proptest::prelude::*;
use testing_support::{Designator, device_identification as page};

const NAA: [u8; 16] = [0x60, 1, 0x40, 5, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

#[test]
fn best_designator_counts_wherever_it_is() {
    let (eui, local_naa) = (&NAA[..8], [0x30, 1, 2, 3, 4, 5, 6, 7]);
    let five = [0x50, 1, 2, 3, 4, 5, 6, 7];
    let uuid = [&[0x10, 0], &NAA[..]].concat();
    let mut ordered: Vec<(Designator<'_>, &str)> = vec![
        ((1, 3, &NAA), "naa.6001400501020304050607080 90a0b0c"),
        ((1, 3, &five), "naa.5001020304050607"),
        ((1, 2, &NAA), "eui.6001400501020304050607080 90a0b0c"),
        ((1, 2, &NAA[..12]), "eui.600140050102030405060708"),
        ((1, 2, eui), "eui.6001400501020304"),
        ((1, 0xa, &uuid), "uuid.6001400501020304050607080 90a0b0c"),
        ((3, 8, b"iqn.2003-01.org:x,L,0x6\0\0\0"), "iqn.2003-01.org:x%2cL%2c0x6"),
        ((2, 1, b"VENDOR  disk 1  "), "t10.VENDOR%20%20disk%201"),
        ((1, 3, &local_naa), "naa.3001020304050607"),
    ];
    while let Some((_, expected)) = ordered.first() {
        let designators: Vec<_> = ordered.iter().map(|(designator, _)| *designator).collect();
        let expected = expected.replace(' ', "");
        let unit = identify(&page(&designators)).unwrap();
        assert_eq!(unit.as_str(), expected);
        let reversed: Vec<_> = designators.into_iter().rev().collect();
        assert_eq!(identify(&page(&reversed)).unwrap(), unit);
        assert_eq!((unit.scope() == Scope::Global), !expected.starts_with("naa.3"));
        ordered.remove(0);
    }
}

#[test]
fn unusable_designators_are_ignored() {
    for designators in [
        // Of the port and of the target, not of the unit; relative; vendor specific; empty; zeros; vendor alone.
        &[(1, 0x13, &NAA[..]), (1, 0x23, &NAA[..])][..],
        &[(1, 4, &NAA[..4]), (1, 0, &NAA[..])],
        &[(1, 3, &[]), (1, 3, &[0; 16]), (1, 2, &[0; 8])],
        &[(2, 1, b"VENDOR  "), (2, 1, b"VENDOR          ")],
        &[(2, 3, &NAA[..]), (1, 3, &NAA[..15]), (1, 2, &NAA[..9]), (3, 8, b"eui_6001")],
        &[(3, 8, &[b'i'; 250])],
    ] {
        assert_eq!(identify(&page(designators)), None, "{designators:?}");
    }
    let whole = page(&[(1, 3, &NAA)]);
    assert_eq!(identify(&whole[..whole.len() - 1]), None);
    assert_eq!(identify(&[]), None);
    assert_eq!(identify(&[0, 0x80, 0, 20]), None);
}

proptest! {
    #[test]
    fn any_page_has_a_plain_identifier_or_none(bytes: Vec<u8>, designators in prop::collection::vec(
        (0u8..4, 0u8..0x40, prop::collection::vec(any::<u8>(), 0..40)), 0..6)) {
        let designators: Vec<_> = designators.iter().map(|(set, kind, bytes)| (*set, *kind, &bytes[..])).collect();
        let whole = page(&designators);
        let reversed: Vec<_> = designators.iter().rev().copied().collect();
        prop_assert_eq!(identify(&whole), identify(&page(&reversed)));
        for page in [bytes, whole] {
            if let Some(unit) = identify(&page) {
                let text = unit.as_str();
                prop_assert!(text.len() <= Identity::MAX_LENGTH && text.as_bytes()[0].is_ascii_lowercase());
                prop_assert!(text.bytes().all(|byte| super::super::is_plain(byte) || byte == b'%'));
            }
        }
    }

    #[test]
    fn different_texts_are_different_identifiers(one: Vec<u8>, other: Vec<u8>) {
        let [first, second] = [&one, &other].map(|text| Identity::fit(text, Scope::Host));
        if let (Some(first), Some(second)) = (first, second) {
            prop_assert_eq!(first == second, one == other);
        }
    }
}
