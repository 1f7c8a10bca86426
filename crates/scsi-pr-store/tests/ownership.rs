//! A disk owns a unit: which claims are refused, and which writers.
#![forbid(unsafe_code)]

use std::sync::Arc;

use scsi_pr::{InitiatorPort, Key, Nexus, Reservations, ReserveOut, TransportId, Type};
use scsi_pr_store::{
    Claim, Fault, Host, MediumReach, MemoryStore, Owner, Ownership, Store, StoreError, Swap, UnitId, Version, open,
};

fn unit() -> UnitId {
    UnitId::named("shared").unwrap()
}

fn nexus() -> Nexus {
    let port = InitiatorPort::Iscsi { name: "iqn.2001-04.com.example:vm1", isid: Some([0; 6]) };
    Nexus::new(TransportId::new(port).unwrap(), 1)
}

/// A claim by a process of this host and boot, with a file of a local file system.
fn claim(host: &str, boot: &str) -> Claim {
    Claim {
        host: Host { id: host.into(), name: format!("node {host}"), boot: boot.into() },
        owner: Owner { process: 7, control: "/run/control".into(), medium: "1:2".into() },
        reach: MediumReach::Host,
        takeover: None,
        uuid: None,
    }
}

fn take(store: &Arc<dyn Store>, claim: &Claim) -> Result<Ownership, StoreError> {
    Ownership::claim(Arc::clone(store), unit(), claim)
}

/// The text of a refused claim.
#[track_caller]
fn refusal(store: &Arc<dyn Store>, claim: &Claim) -> String {
    let error = take(store, claim).err().expect("the claim is refused");
    assert_eq!(error.fault(), Fault::Refused);
    error.to_string()
}

/// Registers and reserves, as a disk does.
fn reserve(ownership: &Ownership, aptpl: bool) {
    let (mut version, reservations) = ownership.load().unwrap();
    let mut reservations = (*reservations).clone();
    let register = ReserveOut::Register {
        key: Key(0),
        service_action_key: Key(1),
        initiator_ports: None,
        all_tg_pt: false,
        aptpl,
    };
    let reserve = ReserveOut::Reserve { key: Key(1), reservation_type: Type::WriteExclusive };
    for request in [register, reserve] {
        assert!(reservations.reserve_out(&nexus(), &request).changed);
        match ownership.replace(version, &reservations).unwrap() {
            Swap::Done(new) => version = new,
            Swap::Lost => panic!("the owner alone writes"),
        }
    }
}

/// Each kind of store.
fn stores(directory: &std::path::Path) -> Vec<Arc<dyn Store>> {
    let sqlite = format!("sqlite+local:{}", directory.join("pr.db").display());
    let shared = format!("dir+local:{}", directory.join("pr").display());
    vec![Arc::new(MemoryStore::new()), open(&sqlite).unwrap(), open(&shared).unwrap()]
}

#[test]
fn while_a_disk_owns_a_unit_every_other_writer_is_refused() {
    let directory = testing_support::directory();
    for store in stores(directory.path()) {
        let ownership = take(&store, &claim("a", "1")).unwrap();
        reserve(&ownership, true);
        let version = store.load(&unit()).unwrap().version;
        let errors = [
            store.replace(&unit(), version, &Reservations::new()).map(drop).unwrap_err(),
            store.update(&unit(), &mut |_, _| true).unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.fault(), Fault::Refused);
            let text = error.to_string();
            assert!(text.contains("process 7 on node a (epoch 1)") && text.contains("/run/control"), "{text}");
        }
        assert_eq!(store.load(&unit()).unwrap().version, version, "nothing was changed");
        ownership.release().unwrap();
        store.update(&unit(), &mut |reservations, _| reservations.reserve_out(&nexus(), &release()).changed).unwrap();
        // The identity outlives changes of others.
        let uuid = ownership.record().uuid;
        assert_eq!(take(&store, &claim("b", "2")).unwrap().record().uuid, uuid);
    }
}

fn release() -> ReserveOut {
    ReserveOut::Release { key: Key(1), reservation_type: Type::WriteExclusive }
}

#[test]
fn an_owner_that_is_proven_gone_is_followed() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    for (epoch, claim) in (1..).zip([
        claim("a", "1"),
        // The lock of the same medium proves it on the same boot, also for a block device that other hosts reach.
        claim("a", "1"),
        Claim { reach: MediumReach::Hosts, ..claim("a", "1") },
        // A restart ends all I/O to a local file.
        claim("a", "2"),
    ]) {
        assert_eq!(take(&store, &claim).unwrap().record().epoch, epoch);
    }
}

#[test]
fn an_owner_that_may_still_write_is_taken_over_by_its_epoch_alone() {
    let other_medium = |boot| {
        let mut claim = claim("a", boot);
        claim.owner.medium = "1:3".into();
        claim
    };
    for (next, sure) in [
        (claim("b", "2"), "once that host is fenced"),
        (Claim { reach: MediumReach::Hosts, ..claim("a", "2") }, "once no other host writes to the medium"),
        (other_medium("1"), "once that process has ended"),
        // Requests on their way to a file server outlive the lock of a process that was killed.
        (Claim { reach: MediumReach::FileServer, ..claim("a", "1") }, "the file server has none of its requests"),
    ] {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let former = take(&store, &claim("a", "1")).unwrap();
        let text = refusal(&store, &next);
        assert!(text.contains(sure) && text.contains("--takeover=1") && text.contains("node a"), "{text}");
        assert!(refusal(&store, &Claim { takeover: Some(2), ..next.clone() }).contains("--takeover=1"));
        let successor = take(&store, &Claim { takeover: Some(1), ..next }).unwrap();
        assert_eq!(successor.record().epoch, 2);
        // The former owner finds that out, and changes nothing.
        assert!(former.load().unwrap_err().to_string().contains("epoch 2"));
        assert!(former.release().is_err());
        assert_eq!(former.replace(Version(1), &Reservations::new()).unwrap(), Swap::Lost);
        successor.load().unwrap();
    }
}

#[test]
fn a_released_unit_moves_to_another_host_with_its_reservations() {
    for aptpl in [false, true] {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let ownership = take(&store, &claim("a", "1")).unwrap();
        reserve(&ownership, aptpl);
        ownership.release().unwrap();
        let moved = take(&store, &Claim { reach: MediumReach::Hosts, ..claim("b", "2") }).unwrap();
        assert_eq!(moved.load().unwrap().1.registrations().len(), 1);
        assert_eq!(moved.record().uuid, ownership.record().uuid);
    }
}

#[test]
fn a_restart_of_the_host_is_a_loss_of_power_and_a_restart_of_the_disk_is_none() {
    for (boot, aptpl, registrations) in [("1", false, 1), ("1", true, 1), ("2", false, 0), ("2", true, 1)] {
        for release in [false, true] {
            let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
            let ownership = take(&store, &claim("a", "1")).unwrap();
            reserve(&ownership, aptpl);
            if release {
                ownership.release().unwrap();
            }
            let next = take(&store, &claim("a", boot)).unwrap();
            let reservations = next.load().unwrap().1;
            assert_eq!(reservations.registrations().len(), registrations, "{boot} {aptpl} {release}");
            assert_eq!(reservations.reservation().is_some(), registrations > 0);
        }
    }
}

#[test]
fn a_unit_of_an_earlier_version_has_no_owner_and_keeps_its_reservations() {
    let directory = testing_support::directory();
    for store in stores(directory.path()) {
        let mut reservations = Reservations::new();
        let register = ReserveOut::Register {
            key: Key(0),
            service_action_key: Key(1),
            initiator_ports: None,
            all_tg_pt: false,
            aptpl: false,
        };
        assert!(reservations.reserve_out(&nexus(), &register).changed);
        assert_eq!(store.replace(&unit(), Version(0), &reservations).unwrap(), Swap::Done(Version(1)));
        let ownership = take(&store, &claim("a", "1")).unwrap();
        assert_eq!((ownership.record().epoch, ownership.load().unwrap().1.registrations().len()), (1, 1));
    }
}

#[test]
fn the_identity_of_a_disk_from_elsewhere_is_stored() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let uuid = Some(*b"0123456789abcdef");
    take(&store, &Claim { uuid, ..claim("a", "1") }).unwrap();
    assert_eq!(take(&store, &claim("a", "1")).unwrap().record().uuid, *b"0123456789abcdef");
    let random: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let random = take(&random, &claim("a", "1")).unwrap().record().uuid;
    assert_eq!((random[6] >> 4, random[8] >> 6), (4, 2), "a random UUID of version 4");
}
