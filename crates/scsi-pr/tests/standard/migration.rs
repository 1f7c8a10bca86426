//! The commands by which QEMU 11 moves reservations to the destination of a live migration (`scsi-block,migrate-pr=on`),
//! byte by byte. At no time may an unregistered initiator get access.

use scsi_pr::{Access, Cdb, Command, Completion, Key, Nexus, ReserveInAction, Type};

use crate::unit::*;

/// The nexus from which the destination sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Destination {
    /// The nexus is the virtual machine, wherever it runs.
    SameNexus,
    /// The nexus is the host.
    OtherNexus,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Connected,
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Holder,
    /// Another nexus made the reservation.
    Registrant,
}

/// A 10-byte CDB, padded as on its way through the helper.
fn cdb(service_action: u8, scope_type: u8) -> Cdb {
    Cdb::from_slice(&[0x5f, service_action, scope_type, 0, 0, 0, 0, 0, 24, 0]).unwrap()
}

fn list(key: Key, service_action_key: Key) -> [u8; 24] {
    let mut list = [0; 24];
    list[..8].copy_from_slice(&key.0.to_be_bytes());
    list[8..16].copy_from_slice(&service_action_key.0.to_be_bytes());
    list
}

/// The commands that QEMU sends from the destination.
fn sequence(key: Key, scope_type: u8) -> [(Cdb, [u8; 24]); 3] {
    let register = (cdb(6, 0), list(NONE, key));
    [register, (cdb(4, scope_type), list(key, key)), register]
}

struct Migration {
    reservation_type: Type,
    role: Role,
    destination: Destination,
    source: Source,
    scope_type: u8,
}

impl Migration {
    /// A is the virtual machine at the source, C another one, D is not registered.
    fn unit(&self) -> Unit {
        let (holder, key) = match self.role {
            Role::Holder => (A, KEY_A),
            Role::Registrant => (C, KEY_C),
        };
        let mut steps = vec![register(A, NONE, KEY_A)];
        if self.role == Role::Registrant {
            steps.push(register(C, NONE, KEY_C));
        }
        steps.push(reserve(holder, key, self.reservation_type));
        Unit::after(&steps)
    }

    fn replay(&self) -> (Unit, Nexus) {
        let mut unit = self.unit();
        let destination = match self.destination {
            Destination::SameNexus => A.nexus(),
            Destination::OtherNexus => B.nexus(),
        };
        if self.source == Source::Gone && self.destination == Destination::OtherNexus {
            unit.0.lose_nexus(&A.nexus());
        }
        for (cdb, list) in sequence(KEY_A, self.scope_type) {
            let outcome = unit.0.execute(&destination, Command::new(cdb, &list).unwrap());
            assert_eq!(outcome.completion, Completion::Good(Vec::new()), "{cdb:02x?}");
            assert!(!unit.0.permits(&D.nexus(), Access::Write), "an unregistered nexus may write after {cdb:02x?}");
            let kind = unit.0.reservation().map(|reserved| reserved.reservation_type);
            assert_eq!(kind, Some(self.reservation_type), "after {cdb:02x?}");
            if self.source == Source::Connected {
                unit.send(&read(A, ReserveInAction::ReadKeys, 136));
            }
        }
        (unit, destination)
    }
}

/// Every type, role, destination and source, with the types that QEMU may have remembered.
fn migrations() -> Vec<Migration> {
    let mut all = Vec::new();
    for reservation_type in Type::ALL {
        for destination in [Destination::SameNexus, Destination::OtherNexus] {
            for source in [Source::Connected, Source::Gone] {
                for (role, scope_type) in [
                    (Role::Holder, reservation_type.code()),
                    (Role::Registrant, reservation_type.code()),
                    (Role::Registrant, 0),
                ] {
                    all.push(Migration { reservation_type, role, destination, source, scope_type });
                }
            }
        }
    }
    all
}

#[test]
fn migration_moves_access_and_never_loses_the_reservation() {
    for migration in migrations() {
        let before = migration.unit().0;
        let had_access = before.permits(&A.nexus(), Access::Write);
        let (unit, destination) = migration.replay();
        let Migration { reservation_type, role, destination: kind, source, .. } = migration;
        let case = format!("{reservation_type}, {role:?}, {kind:?}, source {source:?}");
        assert_eq!(unit.0.key_of(&destination), Some(KEY_A), "{case}");
        assert_eq!(unit.0.permits(&destination, Access::Write), had_access, "{case}");
        assert_eq!(unit.0.is_holder(&destination), before.is_holder(&A.nexus()), "{case}");
        if kind == Destination::OtherNexus {
            assert_eq!(unit.0.key_of(&A.nexus()), None, "{case}: the source is still registered");
            assert!(!unit.0.permits(&A.nexus(), Access::Write), "{case}: the source may still write");
        }
        if role == Role::Registrant {
            assert_eq!(unit.0.key_of(&C.nexus()), Some(KEY_C), "{case}");
            assert!(unit.0.is_holder(&C.nexus()), "{case}");
        }
    }
}

/// Since 11.1 the source sends CLEANUP once the destination runs.
#[test]
fn cleanup_of_the_source_changes_nothing_after_the_destination_has_preempted_it() {
    for migration in migrations().into_iter().filter(|it| it.destination == Destination::OtherNexus) {
        let (mut unit, _) = migration.replay();
        let before = unit.0.clone();
        let outcome = unit.0.execute(&A.nexus(), Command::cleanup());
        assert_eq!((outcome.completion, outcome.changed), (Completion::Good(Vec::new()), false));
        assert!(unit.0 == before);
    }
}

/// When the migration fails, the source sends the same commands to get its reservation back.
#[test]
fn failed_migration_gives_the_reservation_back_to_the_source() {
    for migration in migrations() {
        let before = migration.unit().0;
        let (mut unit, _) = migration.replay();
        unit.reported();
        for (cdb, list) in sequence(KEY_A, migration.scope_type) {
            let outcome = unit.0.execute(&A.nexus(), Command::new(cdb, &list).unwrap());
            assert_eq!(outcome.completion, Completion::Good(Vec::new()), "{cdb:02x?}");
        }
        assert_eq!(unit.0.is_holder(&A.nexus()), before.is_holder(&A.nexus()));
        assert_eq!(unit.0.permits(&A.nexus(), Access::Write), before.permits(&A.nexus(), Access::Write));
        assert!(!unit.0.permits(&D.nexus(), Access::Write));
    }
}
