//! The target, as an initiator sees it.

mod common;

use std::collections::BTreeSet;
use std::io::Write;
use std::time::Duration;

use common::*;
use md5::{Digest, Md5};
use proptest::prelude::*;
use scsi_pr_iscsi::chap::Secret;
use scsi_pr_iscsi::directory::{Account, Allowed};

const NODE1: &str = "iqn.2026-11.test:node1";
const NODE2: &str = "iqn.2026-11.test:node2";

fn open() -> Fixture {
    Fixture::start(Vec::new(), Allowed::All)
}

/// Logs in, and takes the unit attention of the new session.
fn ready(fixture: &Fixture, name: &str) -> Initiator {
    let mut initiator = fixture.connect().log_in(name);
    assert_eq!(initiator.read(&[0; 6], 0).sense.map(|[key, ..]| key), Some(6));
    initiator
}

fn ten(opcode: u8, lba: u32, blocks: u16) -> [u8; 10] {
    let mut cdb = [0; 10];
    cdb[0] = opcode;
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb[7..9].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

fn reserve_out(action: u8, reservation_type: u8, key: u64, service_action_key: u64) -> ([u8; 10], Vec<u8>) {
    let list = [&key.to_be_bytes()[..], &service_action_key.to_be_bytes(), &[0; 8]].concat();
    ([0x5f, action, reservation_type, 0, 0, 0, 0, 0, 24, 0], list)
}

#[test]
fn what_was_written_is_read_again() {
    let fixture = open();
    let mut node = ready(&fixture, NODE1);
    // More than one burst, and more than one data segment.
    let blocks = 5000;
    let data: Vec<u8> = (0..blocks * BLOCK).map(|at| (at / 7) as u8).collect();
    assert_eq!(node.write(&ten(0x2a, 100, blocks as u16), &data).status, 0);
    assert_eq!(node.read(&ten(0x28, 100, blocks as u16), data.len() as u32).data, data);
}

#[test]
fn a_server_that_stops_answers_the_commands_that_run_and_reads_no_more() {
    let mut fixture = Fixture::with_delay(Vec::new(), Allowed::All, Duration::from_millis(500));
    let mut node = ready(&fixture, NODE1);
    // One runs, and one waits for data that never come.
    let running = node.command_header(0xa0, 512, &ten(0x2a, 1, 1));
    node.send(running, &[]);
    let request = node.receive();
    assert_eq!(request.opcode(), 0x31);
    let mut out = [0; 48];
    (out[0], out[1]) = (0x05, 0x80);
    out[16..20].copy_from_slice(&running[16..20]);
    out[20..24].copy_from_slice(&request.header[20..24]);
    node.send(out, &[7; BLOCK]);
    let waiting = node.command_header(0xa0, 512, &ten(0x2a, 2, 1));
    node.send(waiting, &[]);
    assert_eq!(node.receive().opcode(), 0x31);
    fixture.stop();
    let answer = node.receive();
    assert_eq!((answer.opcode(), &answer.header[16..20], answer.header[3]), (0x21, &running[16..20], 0));
    assert!(node.try_receive().is_none(), "the connection is closed");
}

const MIB: usize = 1 << 20;

/// Sends so many writes of 1 MiB, and their data as the target asks for it. All of them must be GOOD. Returns the number of those
/// that were asked for data before the first answer.
fn asked_before_the_first_answer(node: &mut Initiator, count: usize) -> usize {
    for _ in 0..count {
        let header = node.command_header(0xa0, MIB as u32, &ten(0x2a, 0, (MIB / BLOCK) as u16));
        node.send(header, &[]);
    }
    let data = vec![7; MIB];
    let (mut asked, mut asked_first) = (BTreeSet::new(), None);
    let mut answered = 0;
    while answered < count {
        let received = node.receive();
        match received.opcode() {
            0x31 => {
                asked.insert(received.header[16..20].to_vec());
                node.send_burst(&received, &data);
            }
            0x21 => {
                assert_eq!(received.header[3], 0);
                asked_first.get_or_insert(asked.len());
                answered += 1;
            }
            opcode => panic!("{opcode:x}"),
        }
    }
    asked_first.unwrap()
}

#[test]
fn a_session_holds_32_mib_of_the_data_of_its_writes() {
    let fixture = Fixture::with_delay(Vec::new(), Allowed::All, Duration::from_secs(2));
    let mut node = ready(&fixture, NODE1);
    assert!(asked_before_the_first_answer(&mut node, 40) <= 32);
}

#[test]
fn over_the_memory_of_all_sessions_each_has_one_write_at_a_time() {
    let fixture = Fixture::with_memory(Duration::from_millis(200), 4 * MIB);
    let run = || asked_before_the_first_answer(&mut ready(&fixture, NODE1), 8);
    assert!(run() <= 4);
    let (mut one, mut other) = (ready(&fixture, NODE1), ready(&fixture, NODE2));
    std::thread::scope(|scope| {
        let one = scope.spawn(move || asked_before_the_first_answer(&mut one, 8));
        let other = scope.spawn(move || asked_before_the_first_answer(&mut other, 8));
        let asked = one.join().unwrap() + other.join().unwrap();
        assert!((2..=5).contains(&asked), "{asked}");
    });
}

#[test]
fn the_loser_of_a_preempt_can_no_longer_write() {
    let fixture = open();
    let (mut node1, mut node2) = (ready(&fixture, NODE1), ready(&fixture, NODE2));
    for (node, key) in [(&mut node1, 1), (&mut node2, 2)] {
        let (cdb, list) = reserve_out(0, 0, 0, key);
        assert_eq!(node.write(&cdb, &list).status, 0);
    }
    let (cdb, list) = reserve_out(1, 5, 1, 0);
    assert_eq!(node1.write(&cdb, &list).status, 0);
    let block = [7; BLOCK];
    assert_eq!(node2.write(&ten(0x2a, 0, 1), &block).status, 0, "a registrant may write");
    let (cdb, list) = reserve_out(5, 5, 2, 1);
    assert_eq!(node2.write(&cdb, &list).status, 0);
    assert_eq!(node1.read(&[0; 6], 0).sense, Some([6, 0x2a, 0x05]));
    assert_eq!(node1.write(&ten(0x2a, 0, 1), &[8; BLOCK]).status, 0x18);
    assert_eq!(node1.read(&ten(0x28, 0, 1), 512).data, block);
}

#[test]
fn a_new_session_of_the_same_name_is_the_same_registrant() {
    let fixture = open();
    let mut node = ready(&fixture, NODE1);
    let (cdb, list) = reserve_out(0, 0, 0, 1);
    assert_eq!(node.write(&cdb, &list).status, 0);
    drop(node);
    // The same ISID: the former session is reinstated, if it has not ended by now.
    let mut again = ready(&fixture, NODE1);
    let (cdb, list) = reserve_out(1, 1, 1, 0);
    assert_eq!(again.write(&cdb, &list).status, 0);
}

#[test]
fn only_allowed_initiators_find_the_target() {
    let fixture = Fixture::start(Vec::new(), Allowed::Names(vec![NODE1.to_owned()]));
    for (name, status) in [(NODE1, 0), (NODE2, 0x0203)] {
        let response = fixture.connect().login_step(0x87, &[("InitiatorName", name), ("TargetName", TARGET)]);
        assert_eq!(response.login_status(), status);
        let mut discovery = fixture.connect();
        discovery.login_step(0x87, &[("InitiatorName", name), ("SessionType", "Discovery")]);
        let mut header = [0; 48];
        (header[0], header[1]) = (0x04, 0x80);
        header[20..24].fill(0xff);
        header[24..28].copy_from_slice(&1u32.to_be_bytes());
        discovery.send(header, b"SendTargets=All\0");
        let text = discovery.receive();
        assert_eq!(text.key("TargetName").is_some(), status == 0, "{text:?}");
    }
    let response =
        fixture.connect().login_step(0x87, &[("InitiatorName", NODE1), ("TargetName", "iqn.2026-11.test:x")]);
    assert_eq!(response.login_status(), 0x0203);
}

fn account() -> Account {
    let secret = |text: &str| Secret::new(text).unwrap();
    Account {
        name: "user".to_owned(),
        secret: secret("secret-of-the-user"),
        initiators: vec![NODE1.to_owned()],
        mutual: Some(("target".to_owned(), secret("secret-of-the-target"))),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = &hex[2..];
    (0..digits.len() / 2).map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap()).collect()
}

fn response(id: u8, secret: &str, challenge: &[u8]) -> Vec<u8> {
    Md5::new().chain_update([id]).chain_update(secret).chain_update(challenge).finalize().to_vec()
}

/// The status of a CHAP login, and CHAP_R of the target.
fn chap(fixture: &Fixture, initiator: &str, user: &str, secret: &str, reflect: bool) -> (u16, Option<Vec<u8>>) {
    let mut node = fixture.connect();
    let keys = [("InitiatorName", initiator), ("TargetName", TARGET), ("AuthMethod", "CHAP,None")];
    let first = node.login_step(0x81, &keys);
    assert_eq!(first.key("AuthMethod").as_deref(), Some("CHAP"));
    let second = node.login_step(0x00, &[("CHAP_A", "5")]);
    assert_eq!(second.key("CHAP_A").as_deref(), Some("5"));
    let (id, challenge) = (second.key("CHAP_I").unwrap().parse().unwrap(), bytes(&second.key("CHAP_C").unwrap()));
    let own = if reflect { challenge.clone() } else { b"a challenge of the initiator".to_vec() };
    let answer = hex(&response(id, secret, &challenge));
    let keys = [("CHAP_N", user), ("CHAP_R", &answer), ("CHAP_I", "9"), ("CHAP_C", &hex(&own))];
    let third = node.login_step(0x81, &keys);
    (third.login_status(), third.key("CHAP_R").map(|text| bytes(&text)))
}

#[test]
fn chap_authenticates_both_sides_and_binds_the_name() {
    let fixture = Fixture::start(vec![account()], Allowed::All);
    let (status, answer) = chap(&fixture, NODE1, "user", "secret-of-the-user", false);
    assert_eq!(status, 0);
    assert_eq!(answer, Some(response(9, "secret-of-the-target", b"a challenge of the initiator")));
    for (initiator, user, secret, reflect, status) in [
        (NODE1, "user", "another-secret-of-it", false, 0x0201),
        (NODE1, "other", "secret-of-the-user", false, 0x0201),
        // An authenticated peer must not pose as another initiator.
        (NODE2, "user", "secret-of-the-user", false, 0x0202),
        (NODE1, "user", "secret-of-the-user", true, 0x0201),
    ] {
        assert_eq!(chap(&fixture, initiator, user, secret, reflect), (status, None), "{initiator} {user}");
    }
}

#[test]
fn authentication_cannot_be_left_out() {
    let fixture = Fixture::start(vec![account()], Allowed::All);
    let names = [("InitiatorName", NODE1), ("TargetName", TARGET)];
    assert_eq!(fixture.connect().login_step(0x87, &names).login_status(), 0x0201);
    let none = [names[0], names[1], ("AuthMethod", "None")];
    assert_eq!(fixture.connect().login_step(0x81, &none).login_status(), 0x0201);
    // A request to go on without any method is answered, and not followed.
    let silent = fixture.connect().login_step(0x83, &names);
    assert_eq!((silent.login_status(), silent.header[1] & 0x80), (0, 0));
}

#[test]
fn a_session_that_breaks_the_protocol_ends_and_disturbs_no_other() {
    let fixture = open();
    let mut other = ready(&fixture, NODE2);
    for breach in 0..4 {
        let mut node = ready(&fixture, NODE1);
        match breach {
            // A gap in the command numbers.
            0 => {
                node.command_header(0x80, 0, &[0; 6]);
                let header = node.command_header(0x80, 0, &[0; 6]);
                node.send(header, &[]);
            }
            // Data of a command that has none.
            1 => {
                let header = node.command_header(0x80, 0, &[0; 6]);
                node.send(header, &[0; 8]);
            }
            // A data segment over the limit.
            2 => {
                let mut header = node.command_header(0x80, 0, &[0; 6]);
                header[5..8].fill(0xff);
                node.socket.write_all(&header).unwrap();
            }
            // The end in the middle of a PDU.
            _ => {
                let header = node.command_header(0x80, 0, &[0; 6]);
                node.socket.write_all(&header[..20]).unwrap();
                node.socket.shutdown(std::net::Shutdown::Write).unwrap();
            }
        }
        assert!(node.try_receive().is_none(), "breach {breach}");
        assert_eq!(other.read(&[0; 6], 0).status, 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_end_in_an_answer_or_a_closed_connection(
        is_logged_in: bool,
        pdus in prop::collection::vec((any::<[u8; 16]>(), prop::collection::vec(any::<u8>(), 0..100)), 1..8),
    ) {
        let fixture = open();
        let mut node = fixture.connect();
        if is_logged_in {
            node = node.log_in(NODE1);
        }
        for (random, data) in pdus {
            let mut header = [0; 48];
            header[..16].copy_from_slice(&random);
            header[4] = 0;
            header[16..32].copy_from_slice(&random);
            header[32..].copy_from_slice(&random);
            header[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
            let mut bytes = header.to_vec();
            bytes.extend_from_slice(&data);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            if node.socket.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = node.socket.shutdown(std::net::Shutdown::Write);
        while node.try_receive().is_some() {}
        // The server still serves.
        ready(&fixture, NODE2);
    }
}
