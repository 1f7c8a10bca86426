//! The command sequences of cluster software and of QEMU's migration, over two sockets. Another initiator preempts,
//! releases or clears between any two commands. No command may get a unit attention: these programs take one for a
//! failed disk.
#![forbid(unsafe_code)]

mod common;

use std::fs::File;

use common::{Machine, Place, Server, good};
use scsi_pr::{Cdb, CommandBuf, Completion, Key, Keys, Reservation, Status, Type};

const A: u64 = 0xa;
const B: u64 = 0xb;

/// PERSISTENT RESERVE IN, as sg_persist sends it.
fn read(service_action: u8, allocation_length: u16) -> CommandBuf {
    let mut cdb = [0; 10];
    (cdb[0], cdb[1]) = (0x5e, service_action);
    cdb[7..9].copy_from_slice(&allocation_length.to_be_bytes());
    CommandBuf::new(Cdb::from_slice(&cdb).unwrap(), Vec::new()).unwrap()
}

fn read_keys() -> CommandBuf {
    read(0, 8192)
}

fn read_reservation() -> CommandBuf {
    read(1, 8192)
}

fn report_capabilities() -> CommandBuf {
    read(2, 8192)
}

/// PERSISTENT RESERVE OUT with a list of 24 bytes.
fn out(service_action: u8, scope_type: u8, key: u64, service_action_key: u64) -> CommandBuf {
    let cdb = Cdb::from_slice(&[0x5f, service_action, scope_type, 0, 0, 0, 0, 0, 24, 0]).unwrap();
    let list = [&key.to_be_bytes()[..], &service_action_key.to_be_bytes(), &[0; 8]].concat();
    CommandBuf::new(cdb, list).unwrap()
}

fn register_and_ignore(key: u64) -> CommandBuf {
    out(6, 0, 0, key)
}

/// The type that fence_scsi uses.
const WE_RO: u8 = 5;

fn fence_scsi_on() -> Vec<CommandBuf> {
    vec![
        read_keys(),
        register_and_ignore(A),
        // These two are for a key that was registered before, without the reservation.
        out(4, WE_RO, A, A),
        register_and_ignore(A),
        read_keys(),
        read_reservation(),
        out(1, WE_RO, A, 0),
    ]
}

fn fence_scsi_off() -> Vec<CommandBuf> {
    vec![register_and_ignore(A), read_keys(), out(5, WE_RO, A, B), read_keys(), read_reservation()]
}

fn fence_scsi_monitor() -> Vec<CommandBuf> {
    vec![read_keys(), read_reservation()]
}

fn fence_scsi_check() -> Vec<CommandBuf> {
    vec![read_keys()]
}

fn lvmpersist_start(scope_type: u8) -> Vec<CommandBuf> {
    vec![report_capabilities(), register_and_ignore(A), read_reservation(), out(1, scope_type, A, 0)]
}

fn lvmpersist_take_over(scope_type: u8) -> Vec<CommandBuf> {
    vec![report_capabilities(), read_keys(), register_and_ignore(A), out(5, scope_type, A, B), read_keys()]
}

fn lvmpersist_stop() -> Vec<CommandBuf> {
    vec![out(0, 0, A, 0), read_keys()]
}

fn lvmpersist_remove(scope_type: u8) -> Vec<CommandBuf> {
    vec![read_reservation(), out(5, scope_type, A, B), read_keys()]
}

fn lvmpersist_clear() -> Vec<CommandBuf> {
    vec![read_keys(), register_and_ignore(A), out(3, 0, A, 0), read_keys(), read_reservation()]
}

/// QEMU's commands at the destination.
fn qemu_migration(scope_type: u8) -> Vec<CommandBuf> {
    vec![
        read(1, 24),
        read(0, 136),
        register_and_ignore(A),
        out(4, scope_type, A, A),
        register_and_ignore(A),
        read(1, 24),
    ]
}

fn sequences(scope_type: u8) -> Vec<(&'static str, Vec<CommandBuf>)> {
    vec![
        ("fence_scsi -o on", fence_scsi_on()),
        ("fence_scsi -o off", fence_scsi_off()),
        ("fence_scsi -o monitor", fence_scsi_monitor()),
        ("fence_scsi_check", fence_scsi_check()),
        ("lvmpersist start", lvmpersist_start(scope_type)),
        ("lvmpersist take-over", lvmpersist_take_over(scope_type)),
        ("lvmpersist stop", lvmpersist_stop()),
        ("lvmpersist remove", lvmpersist_remove(scope_type)),
        ("lvmpersist clear", lvmpersist_clear()),
        ("QEMU's migration", qemu_migration(scope_type)),
    ]
}

/// The commands of the other initiator. Each would leave a unit attention for A.
fn disturbances(scope_type: u8) -> [(&'static str, CommandBuf); 4] {
    [
        ("PREEMPT", out(4, scope_type, B, A)),
        ("PREEMPT AND ABORT", out(5, scope_type, B, A)),
        ("RELEASE", out(2, scope_type, B, 0)),
        ("CLEAR", out(3, 0, B, 0)),
    ]
}

/// New disks, on one server with two sockets.
struct Disks {
    place: Place,
    _server: Server,
    count: u32,
}

impl Disks {
    fn new() -> Self {
        let place = Place::new();
        let server = place.serve("memory:").arg("-q").listen("a", place.path("a")).listen("b", place.path("b")).start();
        Self { place, _server: server, count: 0 }
    }

    /// Both are registered. B holds the reservation, so that it can release it.
    fn next(&mut self, scope_type: u8) -> [Machine; 2] {
        // An initiator may bring 256 units into a store.
        if self.count == 120 {
            *self = Self::new();
        }
        self.count += 1;
        let path = self.place.path(&format!("{}.img", self.count));
        File::create(&path).unwrap();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let [a, b] = ["a", "b"].map(|socket| Machine::with(open(), &self.place.path(socket)));
        assert_eq!(a.run(&register_and_ignore(A)), good());
        assert_eq!(b.run(&register_and_ignore(B)), good());
        assert_eq!(b.run(&out(1, scope_type, B, 0)), good());
        [a, b]
    }
}

#[test]
fn no_sequence_of_commands_gets_a_unit_attention() {
    let conflict = Completion::Status(Status::RESERVATION_CONFLICT);
    let mut disks = Disks::new();
    let mut commands = 0;
    for scope_type in [Type::WriteExclusiveRegistrantsOnly, Type::WriteExclusiveAllRegistrants].map(Type::code) {
        for (name, sequence) in sequences(scope_type) {
            for (disturbance, disturb) in disturbances(scope_type) {
                for before in 0..sequence.len() {
                    let [a, b] = disks.next(scope_type);
                    for (index, command) in sequence.iter().enumerate() {
                        if index == before {
                            b.run(&disturb);
                        }
                        let answer = a.run(command);
                        let case = format!("{name}, {disturbance} before command {before}: command {index}");
                        match command.cdb().bytes()[..2] {
                            [0x5e, _] | [0x5f, 6] => {
                                assert!(matches!(answer, Completion::Good(_)), "{case}: {answer}");
                            }
                            _ => assert!(answer == good() || answer == conflict, "{case}: {answer}"),
                        }
                        commands += 1;
                    }
                }
            }
        }
    }
    assert!(commands > 500);
}

fn keys_of(machine: &Machine) -> Vec<u64> {
    let Completion::Good(data) = machine.run(&read_keys()) else { panic!("READ KEYS") };
    Keys::parse(&data).unwrap().value.keys.into_iter().map(|Key(key)| key).collect()
}

fn type_of(machine: &Machine) -> Option<Type> {
    let Completion::Good(data) = machine.run(&read_reservation()) else { panic!("READ RESERVATION") };
    Reservation::parse(&data).unwrap().value.held.map(|held| held.reservation_type)
}

/// A node that was fenced joins again: `fence_scsi -o on` exits 0, and the check finds the key.
#[test]
fn fenced_node_joins_again() {
    let mut disks = Disks::new();
    let [a, b] = disks.next(WE_RO);
    assert_eq!(b.run(&out(5, WE_RO, B, A)), good());
    assert_eq!(keys_of(&a), [B]);
    for command in [read_keys(), register_and_ignore(A), read_keys(), read_reservation()] {
        assert!(matches!(a.run(&command), Completion::Good(_)));
    }
    assert_eq!(keys_of(&a), [B, A]);
}

/// The destination is the same initiator on another socket; the source stays connected.
#[test]
fn migration_keeps_the_reservation_of_every_type() {
    for reservation_type in Type::ALL {
        for is_holder in [true, false] {
            let place = Place::new();
            let sockets = ["source", "destination", "other"].map(|name| place.path(name));
            let _server = place
                .serve("memory:")
                .arg("-q")
                .listen("vm", sockets[0].clone())
                .listen("vm", sockets[1].clone())
                .listen("other", sockets[2].clone())
                .start();
            let [source, destination, other] = sockets.map(|socket| Machine::new(&place, &socket));
            let scope_type = reservation_type.code();
            assert_eq!(source.run(&register_and_ignore(A)), good());
            if !is_holder {
                assert_eq!(other.run(&register_and_ignore(B)), good());
            }
            let (holder, key) = if is_holder { (&source, A) } else { (&other, B) };
            assert_eq!(holder.run(&out(1, scope_type, key, 0)), good());
            for command in qemu_migration(scope_type) {
                let answer = destination.run(&command);
                assert!(matches!(answer, Completion::Good(_)), "{reservation_type}: {answer}");
                assert_eq!(type_of(&source), Some(reservation_type));
            }
            assert!(keys_of(&destination).contains(&A));
            assert_eq!(type_of(&destination), Some(reservation_type));
        }
    }
}
