//! The commands of Windows' cluster service (MS-CSVP, ClusDisk), by two initiators of a disk that enforces reservations.
#![forbid(unsafe_code)]

mod common;

use common::Place;
use common::disk::*;
use testing_support::Initiator;

/// Write Exclusive - Registrants Only.
const WERO: u8 = 5;
const RESERVE: u8 = 1;
const RELEASE: u8 = 2;
const CLEAR: u8 = 3;
const PREEMPT: u8 = 4;
const REGISTER_AND_IGNORE: u8 = 6;
const READ_RESERVATION: [u8; 10] = [0x5e, 1, 0, 0, 0, 0, 0, 2, 0, 0];

/// The lower half marks keys of Windows.
const KEY_A: u64 = 0x0102_0304_7466_734d;
const KEY_B: u64 = 0x0506_0708_7466_734d;
const REGISTRATIONS_PREEMPTED: Option<[u8; 3]> = Some([6, 0x2a, 5]);

fn nodes(disks: &Disks) -> [Initiator; 2] {
    ["node-a", "node-b"].map(|name| disks.session("shared", name))
}

/// The key and the type of the reservation.
#[track_caller]
fn reservation(node: &mut Initiator) -> Option<(u64, u8)> {
    let answer = node.read(&READ_RESERVATION, 512);
    assert_eq!(answer.status, GOOD, "{answer:?}");
    let held = answer.data.get(8..24)?;
    Some((u64::from_be_bytes(held[..8].try_into().unwrap()), held[13]))
}

#[track_caller]
fn join(node: &mut Initiator, key: u64) {
    assert_eq!(reserve(node, REGISTER_AND_IGNORE, 0, 0, key).status, GOOD);
}

/// Runs `scenario` with the owner, which holds the reservation, and a challenger, which has registered.
#[track_caller]
fn during_arbitration(scenario: impl FnOnce(&mut Initiator, &mut Initiator)) {
    let place = Place::new();
    let disks = Start::shared(&place).start();
    let [mut owner, mut challenger] = nodes(&disks);
    join(&mut owner, KEY_A);
    assert_eq!(reserve(&mut owner, RESERVE, WERO, KEY_A, 0).status, GOOD);
    join(&mut challenger, KEY_B);
    scenario(&mut owner, &mut challenger);
}

#[test]
fn validation_passes() {
    let place = Place::new();
    let disks = Start::shared(&place).start();
    let [mut a, mut b] = nodes(&disks);
    join(&mut a, KEY_A);
    assert_eq!(reserve(&mut a, CLEAR, 0, KEY_A, 0).status, GOOD);
    for (first, second, key, other) in [(0, 1, KEY_A, KEY_B), (1, 0, KEY_B, KEY_A)] {
        let mut nodes = [&mut a, &mut b];
        join(nodes[first], key);
        assert_eq!(reserve(nodes[first], RESERVE, WERO, key, 0).status, GOOD);
        for node in &mut nodes {
            assert_eq!(reservation(node), Some((key, WERO)));
            assert_eq!(keys(node), [key]);
        }
        assert_eq!(write_block(nodes[first], 1, 1).status, GOOD);
        assert_eq!(write_block(nodes[second], 1, 2).status, CONFLICT);
        assert_eq!(read_block(nodes[second], 1)[0], 1);

        join(nodes[second], other);
        assert_eq!(reserve(nodes[second], RESERVE, WERO, other, 0).status, CONFLICT);
        assert_eq!(reserve(nodes[second], PREEMPT, WERO, other, key).status, GOOD);
        assert_eq!(write_block(nodes[first], 1, 3).sense, REGISTRATIONS_PREEMPTED);
        assert_eq!(write_block(nodes[first], 1, 3).status, CONFLICT);
        assert_eq!(reserve(nodes[first], RESERVE, WERO, key, 0).status, CONFLICT);
        assert_eq!(reservation(nodes[first]), Some((other, WERO)));

        assert_eq!(reserve(nodes[second], RELEASE, WERO, other, 0).status, GOOD);
        assert_eq!(reservation(nodes[second]), None);
        join(nodes[second], 0);
        assert!(keys(nodes[second]).is_empty());
        assert_eq!(write_block(nodes[first], 1, 4).status, GOOD);
    }
}

/// The owner hangs while another node arbitrates.
#[test]
fn owner_that_does_not_defend_loses_the_disk() {
    during_arbitration(|owner, challenger| {
        // The wait of the challenger, in which the owner would defend: what it reads does not change.
        for _ in 0..3 {
            assert_eq!(keys(challenger), [KEY_A, KEY_B]);
            assert_eq!(reservation(challenger), Some((KEY_A, WERO)));
        }
        assert_eq!(reserve(challenger, PREEMPT, WERO, KEY_B, KEY_A).status, GOOD);
        assert_eq!(write_block(challenger, 2, 7).status, GOOD);
        // The owner wakes up, and goes on to write.
        assert_eq!(write_block(owner, 2, 8).sense, REGISTRATIONS_PREEMPTED);
        for _ in 0..3 {
            assert_eq!(write_block(owner, 2, 8).status, CONFLICT);
        }
        assert_eq!(read_block(owner, 2)[0], 7);
        assert_eq!(keys(owner), [KEY_B]);
    });
}

/// The owner finds the challenger's key while it reads, and preempts it.
#[test]
fn owner_that_defends_keeps_the_disk() {
    during_arbitration(|owner, challenger| {
        assert_eq!(keys(owner), [KEY_A, KEY_B]);
        assert_eq!(reserve(owner, PREEMPT, WERO, KEY_A, KEY_B).status, GOOD);
        let refused = reserve(challenger, PREEMPT, WERO, KEY_B, KEY_A);
        assert_eq!(refused.sense, REGISTRATIONS_PREEMPTED);
        assert_eq!(reserve(challenger, PREEMPT, WERO, KEY_B, KEY_A).status, CONFLICT);
        assert_eq!(write_block(challenger, 3, 9).status, CONFLICT);
        assert_eq!(write_block(owner, 3, 1).status, GOOD);
        assert_eq!(reservation(challenger), Some((KEY_A, WERO)));
    });
}
