//! How long the rules take: `cargo bench -p scsi-pr`.

use divan::{Bencher, black_box};
use scsi_pr::{
    Access, Completion, InitiatorPort, Key, Nexus, Reservations, ReserveIn, ReserveInAction, ReserveOut, ScopeType,
    TransportId, Type,
};

/// Counts allocations, so that the memory of each command is reported beside its time.
#[global_allocator]
static ALLOCATOR: divan::AllocProfiler = divan::AllocProfiler::system();

fn main() {
    divan::main();
}

const REGISTRANTS: [usize; 3] = [1, 1_000, 10_000];

/// An iSCSI initiator port, as shared reservations name virtual machines.
fn nexus(n: usize) -> Nexus {
    let name = format!("iqn.2026-11.org.example:virtual-machine-{n}");
    Nexus::new(TransportId::new(InitiatorPort::Iscsi { name: &name, isid: Some([0; 6]) }).unwrap(), 1)
}

fn key(n: usize) -> Key {
    Key(n as u64 + 1)
}

fn good(reservations: &mut Reservations, sender: &Nexus, value: &ReserveOut) {
    let outcome = reservations.execute(sender, value.encode().unwrap().command());
    assert_eq!(outcome.completion, Completion::Good(Vec::new()));
}

fn register(key: Key, service_action_key: Key) -> ReserveOut {
    ReserveOut::Register { key, service_action_key, initiator_ports: None, all_tg_pt: false, aptpl: false }
}

fn registered(count: usize) -> Reservations {
    let mut reservations = Reservations::new().with_room_for(count + 1);
    for n in 0..count {
        good(&mut reservations, &nexus(n), &register(Key::ZERO, key(n)));
    }
    reservations
}

/// The first registrant is the holder.
fn reserved(count: usize, reservation_type: Type) -> Reservations {
    let mut reservations = registered(count);
    good(&mut reservations, &nexus(0), &ReserveOut::Reserve { key: key(0), reservation_type });
    reservations
}

/// Of the last registrant, under a reservation of registrants only.
#[divan::bench(args = REGISTRANTS)]
fn permits_registrant(bencher: Bencher<'_, '_>, count: usize) {
    let reservations = reserved(count, Type::ExclusiveAccessRegistrantsOnly);
    // Not the one that is registered, but one that is equal to it.
    let nexus = nexus(count - 1);
    bencher.bench_local(|| black_box(&reservations).permits(black_box(&nexus), black_box(Access::Write)));
}

/// Of many registrants in turn: what the caches of the processor do not help with.
#[divan::bench(args = [1_000, 10_000])]
fn permits_any_registrant(bencher: Bencher<'_, '_>, count: usize) {
    let reservations = reserved(count, Type::WriteExclusiveAllRegistrants);
    // 7919 is a prime: each has its turn.
    let nexuses: Vec<Nexus> = (0..count).map(|n| nexus(n * 7919 % count)).collect();
    let mut next = nexuses.iter().cycle();
    bencher.bench_local(|| black_box(&reservations).permits(next.next().unwrap(), black_box(Access::Write)));
}

#[divan::bench(args = REGISTRANTS)]
fn permits_unregistered(bencher: Bencher<'_, '_>, count: usize) {
    let reservations = reserved(count, Type::WriteExclusiveAllRegistrants);
    let nexus = nexus(count);
    bencher.bench_local(|| black_box(&reservations).permits(black_box(&nexus), black_box(Access::Write)));
}

/// A command and the one that undoes it, so that every iteration finds the same.
fn there_and_back(bencher: Bencher<'_, '_>, mut reservations: Reservations, n: usize, values: [ReserveOut; 2]) {
    let nexus = nexus(n);
    let commands = values.map(|value| value.encode().unwrap());
    bencher.bench_local(move || {
        for command in &commands {
            let outcome = reservations.execute(black_box(&nexus), black_box(command).command());
            assert!(outcome.changed);
        }
    });
}

#[divan::bench(args = REGISTRANTS)]
fn reserve_and_release(bencher: Bencher<'_, '_>, count: usize) {
    let (key, reservation_type) = (key(0), Type::WriteExclusiveRegistrantsOnly);
    let values = [ReserveOut::Reserve { key, reservation_type }, ReserveOut::Release { key, reservation_type }];
    there_and_back(bencher, registered(count), 0, values);
}

#[divan::bench(args = REGISTRANTS)]
fn change_key_twice(bencher: Bencher<'_, '_>, count: usize) {
    let values = [register(key(0), Key(u64::MAX)), register(Key(u64::MAX), key(0))];
    there_and_back(bencher, registered(count), 0, values);
}

#[divan::bench(args = REGISTRANTS)]
fn register_and_unregister(bencher: Bencher<'_, '_>, count: usize) {
    let values = [register(Key::ZERO, key(count)), register(key(count), Key::ZERO)];
    there_and_back(bencher, registered(count), count, values);
}

/// One registration of many is preempted, and made again.
#[divan::bench(args = [1_000, 10_000])]
fn preempt_one(bencher: Bencher<'_, '_>, count: usize) {
    let mut reservations = reserved(count, Type::WriteExclusiveRegistrantsOnly);
    let (holder, victim) = (nexus(0), nexus(1));
    let scope_type = ScopeType::from(Type::WriteExclusiveRegistrantsOnly);
    let preempt = ReserveOut::PreemptAndAbort { key: key(0), service_action_key: key(1), scope_type };
    let (preempt, again) = (preempt.encode().unwrap(), register(Key::ZERO, key(1)).encode().unwrap());
    bencher.bench_local(move || {
        assert_eq!(reservations.execute(&holder, preempt.command()).aborted.len(), 1);
        assert!(reservations.take_unit_attention(&victim).is_some());
        assert!(reservations.execute(&victim, again.command()).changed);
    });
}

#[divan::bench(args = REGISTRANTS)]
fn clear(bencher: Bencher<'_, '_>, count: usize) {
    let (reservations, nexus) = (registered(count), nexus(0));
    let clear = ReserveOut::Clear { key: key(0) }.encode().unwrap();
    bencher
        .with_inputs(|| reservations.clone())
        .bench_local_refs(|reservations| reservations.execute(&nexus, clear.command()));
}

fn read(bencher: Bencher<'_, '_>, count: usize, action: ReserveInAction, allocation_length: usize) {
    let (reservations, nexus) = (reserved(count, Type::WriteExclusiveAllRegistrants), nexus(0));
    let value = ReserveIn::new(action, allocation_length);
    bencher.bench_local(|| black_box(&reservations).reserve_in(&nexus, black_box(&value)));
}

#[divan::bench(args = REGISTRANTS)]
fn read_keys(bencher: Bencher<'_, '_>, count: usize) {
    read(bencher, count, ReserveInAction::ReadKeys, 8192);
}

#[divan::bench(args = REGISTRANTS)]
fn read_full_status(bencher: Bencher<'_, '_>, count: usize) {
    read(bencher, count, ReserveInAction::ReadFullStatus, 8192);
}

/// The generation and the length alone.
#[divan::bench(args = REGISTRANTS)]
fn read_keys_header(bencher: Bencher<'_, '_>, count: usize) {
    read(bencher, count, ReserveInAction::ReadKeys, 8);
}

#[divan::bench(args = REGISTRANTS)]
fn read_full_status_header(bencher: Bencher<'_, '_>, count: usize) {
    read(bencher, count, ReserveInAction::ReadFullStatus, 8);
}

#[divan::bench(args = [8, 1_000, 10_000])]
fn to_record(bencher: Bencher<'_, '_>, count: usize) {
    let reservations = reserved(count, Type::WriteExclusiveRegistrantsOnly);
    bencher.bench_local(|| black_box(&reservations).to_record());
}

#[divan::bench(args = [8, 1_000, 10_000])]
fn from_record(bencher: Bencher<'_, '_>, count: usize) {
    let record = reserved(count, Type::WriteExclusiveRegistrantsOnly).to_record();
    bencher.bench_local(|| Reservations::from_record(black_box(&record)).unwrap());
}
