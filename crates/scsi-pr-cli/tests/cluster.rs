//! Clusters over the sockets of real servers, with every store that several processes can share.
#![forbid(unsafe_code)]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{Machine, Place, Server, conflict, good, preempt, register, release, reserve};

/// The stores that outlive a server.
fn stores(place: &Place) -> [String; 2] {
    let directory = place.path("reservations");
    std::fs::create_dir(&directory).unwrap();
    [place.sqlite(), format!("dir:{}", directory.display())]
}

/// A file is known to its host alone, so a store for several hosts needs a name for it.
fn two_nodes(place: &Place, store: &str) -> (Server, [Machine; 2]) {
    let sockets = ["a", "b"].map(|name| place.path(&format!("{name}.sock")));
    let server = place
        .serve(store)
        .arg(format!("--unit=disk={}", place.path("disk.img").display()))
        .listen("a", sockets[0].clone())
        .listen("b", sockets[1].clone())
        .start();
    (server, sockets.map(|socket| Machine::new(place, &socket)))
}

#[test]
fn second_node_takes_over_from_the_first() {
    let place = Place::new();
    let [sqlite, directory] = stores(&place);
    for store in [sqlite, directory, "memory:".to_owned()] {
        let (server, [a, b]) = two_nodes(&place, &store);
        assert_eq!(a.out(&register(0, 0xa)), good(), "{store}");
        assert_eq!(b.out(&register(0, 0xb)), good());
        assert_eq!(a.out(&reserve(0xa)), good());
        assert_eq!(b.out(&reserve(0xb)), conflict());
        assert_eq!((b.keys().generation.0, b.holder()), (2, Some(0xa)));
        let names = ["a", "b"].map(|name| format!("iqn.2026-11.scsi-pr:{name},i,0x000000000000"));
        assert_eq!(b.registrants(), [(names[0].clone(), 0xa), (names[1].clone(), 0xb)]);
        assert_eq!(b.out(&preempt(0xb, 0xa)), good());
        assert_eq!(a.holder(), Some(0xb));
        assert_eq!(a.out(&reserve(0xa)), conflict());
        assert_eq!(b.registrants(), [(names[1].clone(), 0xb)]);
        assert_eq!(server.stop().code(), Some(0));
    }
}

/// Killed while a node changes its key as fast as it can: afterwards the key is the one that was acknowledged last, or
/// that of the change whose answer was lost.
#[test]
fn a_killed_server_has_lost_nothing_that_it_answered() {
    let place = Place::new();
    for store in stores(&place) {
        let (mut server, [a, b]) = two_nodes(&place, &store);
        assert_eq!(b.out(&register(0, 0xb)), good());
        assert_eq!(b.out(&reserve(0xb)), good());
        let acknowledged = AtomicU64::new(0);
        for round in 1..=8 {
            let over = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !over.load(Ordering::SeqCst) {
                        let key = acknowledged.load(Ordering::SeqCst);
                        // The answer is lost, or the connection was: then the next server runs the command.
                        let Ok(answer) = a.try_out(&register(key, key + 1)) else { break };
                        assert_eq!(answer, good(), "{store}");
                        acknowledged.store(key + 1, Ordering::SeqCst);
                    }
                });
                let enough = acknowledged.load(Ordering::SeqCst) + round;
                testing_support::eventually("some changes", || {
                    (acknowledged.load(Ordering::SeqCst) >= enough).then_some(())
                });
                server.restart();
                over.store(true, Ordering::SeqCst);
            });
            let known = acknowledged.load(Ordering::SeqCst);
            let keys = b.keys();
            let [first, second] = keys.keys[..] else { panic!("{store}: {keys}") };
            assert_eq!(first.0, 0xb, "the untouched registration");
            assert!((known..=known + 1).contains(&second.0), "{store}: {keys}, and {known} was acknowledged");
            assert_eq!(b.holder(), Some(0xb));
            acknowledged.store(second.0, Ordering::SeqCst);
        }
    }
}

/// Two hosts, each with its server; the machine moves from one to the other.
#[test]
fn a_migrated_machine_stays_itself() {
    let place = Place::new();
    for store in stores(&place) {
        let name = format!("--unit=disk={}", place.path("disk.img").display());
        let [source, target] = ["source", "target"].map(|host| {
            let socket = place.path(&format!("{host}.sock"));
            (place.serve(&store).arg(name.clone()).listen("vm1", socket.clone()).start(), socket)
        });
        let before = Machine::new(&place, &source.1);
        assert_eq!(before.out(&register(0, 1)), good());
        assert_eq!(before.out(&reserve(1)), good());
        let after = Machine::new(&place, &target.1);
        // Only the holder may reserve again.
        assert_eq!(after.out(&reserve(1)), good());
        assert_eq!(after.registrants().len(), 1);
        assert_eq!(source.0.stop().code(), Some(0));
        assert_eq!(after.out(&release(1)), good());
        assert_eq!((after.holder(), after.out(&register(1, 0))), (None, good()));
    }
}

#[test]
fn two_sockets_of_one_name_are_one_initiator() {
    let place = Place::new();
    let [one, two, other] = ["1", "2", "3"].map(|name| place.path(name));
    let _server = place
        .serve("memory:")
        .listen("vm", one.clone())
        .listen("vm", two.clone())
        .listen("iqn.2026-11.scsi-pr:other", other.clone())
        .start();
    let [one, two, other] = [one, two, other].map(|socket| Machine::new(&place, &socket));
    assert_eq!(one.out(&register(0, 1)), good());
    assert_eq!(two.out(&reserve(1)), good());
    assert_eq!(other.out(&register(0, 2)), good());
    assert_eq!(other.out(&reserve(2)), conflict());
    assert_eq!(other.registrants().len(), 2);
}

/// Initiators in two servers register, reserve by turns and give up, all at once.
#[test]
fn sixty_four_initiators_contend() {
    let place = Place::new();
    for store in stores(&place) {
        let name = format!("--unit=disk={}", place.path("disk.img").display());
        let sockets: Vec<_> = (0..64).map(|number| place.path(&format!("{number}.sock"))).collect();
        let servers: Vec<_> = (0..2)
            .map(|host| {
                let mine = sockets.iter().enumerate().filter(|(number, _)| number % 2 == host);
                let start = place.serve(&store).arg(name.clone());
                mine.fold(start, |start, (number, socket)| start.listen(&format!("vm{number}"), socket.clone())).start()
            })
            .collect();
        let machines: Vec<_> = sockets.iter().map(|socket| Machine::new(&place, socket)).collect();
        std::thread::scope(|scope| {
            for (number, machine) in (1..).zip(&machines) {
                scope.spawn(move || {
                    assert_eq!(machine.out(&register(0, number)), good());
                    for change in 1..4 {
                        let key = |change: u64| number + 1000 * change;
                        assert_eq!(machine.out(&register(key(change - 1), key(change))), good());
                    }
                });
            }
        });
        let keys = machines[0].keys();
        assert_eq!((keys.generation.0, keys.keys.len()), (4 * 64, 64), "{store}");
        // One of them wins.
        let won: Vec<_> = std::thread::scope(|scope| {
            let attempts: Vec<_> = (1..)
                .zip(&machines)
                .map(|(number, machine)| scope.spawn(move || machine.out(&reserve(number + 3000))))
                .collect();
            attempts.into_iter().map(|attempt| attempt.join().unwrap()).collect()
        });
        assert_eq!(won.iter().filter(|answer| **answer == good()).count(), 1);
        assert_eq!(won.iter().filter(|answer| **answer == conflict()).count(), 63);
        servers.into_iter().for_each(|server| assert_eq!(server.stop().code(), Some(0)));
        std::fs::remove_file(place.path("disk.img")).unwrap();
        std::fs::File::create(place.path("disk.img")).unwrap();
    }
}
