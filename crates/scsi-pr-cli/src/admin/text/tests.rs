use proptest::prelude::*;
use scsi_pr::{
    FullStatus, FullStatusDescriptor, Generation, Held, InitiatorPort, Key, Keys, Reservation, TransportId, Type,
};

use super::*;
use crate::admin::report::{Own, Reading};

fn descriptors() -> impl Strategy<Value = FullStatusDescriptor> {
    // Devices send names with characters that act on a terminal.
    let names = prop_oneof!["iqn\\.[a-z0-9.:-]{1,40}", "[!-+--~\u{202e}\u{e9}\u{200f}]{1,40}"];
    let ports = prop_oneof![
        (names, any::<Option<[u8; 6]>>()).prop_map(|(name, isid)| TransportId::new(InitiatorPort::Iscsi {
            name: &name,
            isid
        })
        .unwrap()),
        any::<u64>().prop_map(|address| TransportId::new(InitiatorPort::Sas { address }).unwrap()),
    ];
    (any::<u64>(), ports, any::<u16>())
        .prop_map(|(key, port, number)| FullStatusDescriptor::new(Key(key), &port, number))
}

fn report(descriptors: Vec<FullStatusDescriptor>, held: Option<Held>) -> StateReport {
    let keys = Keys { generation: Generation(3), keys: descriptors.iter().map(|one| one.key).collect() };
    let status = FullStatus { generation: Generation(3), descriptors };
    StateReport::new(
        &Reading { value: keys, is_whole: true },
        &Reservation { generation: Generation(3), held },
        Some(&Reading { value: status, is_whole: true }),
        &Own { is_own: Box::new(|port| port.bytes()[5] % 2 == 0), remark: "this host" },
    )
}

proptest! {
    /// Each registration has a line with its key, its initiator and its target port; and there are no other lines.
    #[test]
    fn text_of_a_state_has_every_registration_on_a_line(
        descriptors in prop::collection::vec(descriptors(), 0..20),
        holder: prop::sample::Index,
        reservation_type in prop::option::of(prop::sample::select(&Type::ALL[..])),
    ) {
        let held = reservation_type.filter(|_| !descriptors.is_empty()).map(|reservation_type| {
            let all = reservation_type.is_all_registrants();
            let key = if all { Key::ZERO } else { descriptors[holder.index(descriptors.len())].key };
            Held { key, reservation_type }
        });
        let report = report(descriptors.clone(), held);
        prop_assert_eq!(report.registrations.len(), descriptors.len());
        let text = state(&report);
        let acts = |c: char| c != '\n' && (c.is_control() || ['\u{202e}', '\u{200f}'].contains(&c));
        prop_assert!(!text.contains(acts));
        let lines: Vec<_> = text.lines().filter(|line| line.starts_with("  0x")).collect();
        prop_assert_eq!(lines.len(), descriptors.len());
        for (line, one) in lines.iter().zip(&report.registrations) {
            prop_assert!(line.contains(&one.key.key) && line.contains(&one.target_port.unwrap().to_string()));
            prop_assert!(line.contains(&*escape(one.initiator.as_deref().unwrap())), "{line}");
            prop_assert_eq!(line.ends_with("this host"), one.own);
        }
        match held {
            Some(held) => prop_assert!(text.contains(&held.reservation_type.to_string())),
            None => prop_assert!(text.contains("not reserved")),
        }
    }

    #[test]
    fn key_text_is_the_bytes_of_the_key(number: u64, printable in "[ -~]{0,8}") {
        let padded = |text: &str, fill: u8| {
            let mut bytes = [fill; 8];
            bytes[..text.len()].copy_from_slice(text.as_bytes());
            KeyReport::from(Key(u64::from_be_bytes(bytes)))
        };
        let expected = Some(printable.trim_end_matches(' ').to_owned()).filter(|text| !text.is_empty());
        prop_assert_eq!(padded(&printable, 0).key_text, expected.clone());
        prop_assert_eq!(padded(&printable, b' ').key_text, expected);
        let any = KeyReport::from(Key(number));
        let digits = format!("{number:016x}");
        prop_assert!(key(&any).contains(&digits));
        prop_assert!(any.key_text.is_none_or(|text| number.to_be_bytes().starts_with(text.as_bytes())));
    }
}

#[test]
fn shared_key_of_the_holder_leaves_the_holder_unknown() {
    let keys =
        Reading { value: Keys { generation: Generation(1), keys: vec![Key(7), Key(7), Key(8)] }, is_whole: true };
    let held = Some(Held { key: Key(7), reservation_type: Type::WriteExclusive });
    let own = Own { is_own: Box::new(|_| false), remark: "this host" };
    let report = StateReport::new(&keys, &Reservation { generation: Generation(1), held }, None, &own);
    assert_eq!(report.registrations.iter().map(|one| one.holder).collect::<Vec<_>>(), [None, None, Some(false)]);
    assert_eq!(state(&report).matches("perhaps holder").count(), 2);
}

#[test]
fn columns_are_aligned() {
    let rows = [["A", "B"], ["long", "x"]].map(|row| row.map(str::to_owned));
    assert_eq!(columns(&rows), "  A     B\n  long  x\n");
}
