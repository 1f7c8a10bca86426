use super::*;
use proptest::prelude::*;

type TestBooks = Books<&'static str, u8, u8>;

const BOUNDS: Bounds = Bounds {
    connections: 12,
    connections_of_peer: 5,
    seats: [4, 2],
    seats_of_peer: [2, 1],
    per_device: 2,
    wait: Duration::from_secs(30),
};

fn parked(books: &mut TestBooks, peer: u8) -> Id {
    let id = books.open(peer).unwrap();
    books.park(id, "connection", None);
    id
}

/// The jobs that have a seat, as a crew without bound would take them.
fn take_jobs(books: &mut TestBooks) -> Vec<Job<&'static str, u8, u8>> {
    std::iter::from_fn(|| books.next_job()).collect()
}

fn ids(jobs: &[Job<&'static str, u8, u8>]) -> Vec<Id> {
    jobs.iter().map(|job| job.id).collect()
}

#[test]
fn a_peer_has_its_share_of_seats_and_the_others_have_the_rest() {
    let (mut books, now) = (TestBooks::new(BOUNDS), Instant::now());
    let of_one: Vec<Id> = (0..4).map(|_| parked(&mut books, 1)).collect();
    of_one.iter().for_each(|id| books.readable(*id, now));
    let jobs = take_jobs(&mut books);
    assert_eq!(ids(&jobs), of_one[..2]);
    assert!(books.should_yield(1) && !books.should_yield(2));
    let of_two = parked(&mut books, 2);
    books.readable(of_two, now);
    assert_eq!(ids(&take_jobs(&mut books)), [of_two]);

    books.leave_seat(1, &Task::Serve(None));
    assert_eq!(ids(&take_jobs(&mut books)), [of_one[2]], "in the order of arrival");
    books.leave_seat(1, &Task::Serve(None));
    assert_eq!(ids(&take_jobs(&mut books)), [of_one[3]]);
    assert!(!books.should_yield(1));
}

#[test]
fn when_all_seats_are_taken_the_next_is_for_who_waited_longest() {
    let (mut books, now) = (TestBooks::new(BOUNDS), Instant::now());
    for peer in [1, 1, 2, 2] {
        let id = parked(&mut books, peer);
        books.readable(id, now);
    }
    take_jobs(&mut books);
    let waiting: Vec<Id> = [3, 4, 1].map(|peer| parked(&mut books, peer)).into();
    waiting.iter().for_each(|id| books.readable(*id, now));
    assert!(books.should_yield(2));
    books.leave_seat(2, &Task::Serve(None));
    books.leave_seat(2, &Task::Serve(None));
    assert_eq!(ids(&take_jobs(&mut books)), waiting[..2]);
    books.leave_seat(3, &Task::Serve(None));
    assert!(take_jobs(&mut books).is_empty(), "peer 1 has its share");
    books.leave_seat(1, &Task::Serve(None));
    assert_eq!(ids(&take_jobs(&mut books)), waiting[2..]);
}

#[test]
fn a_slot_goes_to_the_command_that_waited_longest() {
    let (mut books, now) = (TestBooks::new(BOUNDS), Instant::now());
    assert!(books.take_slot(7) && books.take_slot(7) && !books.take_slot(7) && books.take_slot(8));
    let held: Vec<Id> = [1, 2].map(|peer| books.open(peer).unwrap()).into();
    held.iter().for_each(|id| books.hold(*id, "connection", 7, None, now));
    books.leave_slot(8);
    assert!(take_jobs(&mut books).is_empty());
    books.leave_slot(7);
    let jobs = take_jobs(&mut books);
    assert_eq!((ids(&jobs), jobs[0].task), (vec![held[0]], Task::Serve(Some(7))));
    assert!(!books.take_slot(7), "nobody overtakes");
    books.leave_slot(7);
    books.leave_slot(7);
    assert_eq!(ids(&take_jobs(&mut books)), held[1..]);
    assert!(books.take_slot(7) && !books.take_slot(7));
}

#[test]
fn who_waits_too_long_is_told_busy() {
    let (mut books, now) = (TestBooks::new(BOUNDS), Instant::now());
    for _ in 0..3 {
        let id = parked(&mut books, 1);
        books.readable(id, now);
    }
    let jobs = take_jobs(&mut books);
    assert_eq!(jobs.len(), 2);
    assert!(books.take_slot(7) && books.take_slot(7));
    // The first command keeps the turn that its connection had.
    books.hold(jobs[1].id, "connection", 7, Some(jobs[1].turn), now + BOUNDS.wait / 2);
    assert_eq!(books.deadline(), Some(now + BOUNDS.wait));
    books.expire(now + BOUNDS.wait - Duration::from_nanos(1));
    assert!(take_jobs(&mut books).is_empty());
    books.expire(now + BOUNDS.wait);
    assert_eq!(books.deadline(), None);
    // One errand of a peer at a time.
    let first = take_jobs(&mut books);
    books.leave_seat(1, &Task::Busy);
    let second = take_jobs(&mut books);
    assert_eq!((first.len(), second.len()), (1, 1));
    assert!(first.iter().chain(&second).all(|job| job.task == Task::Busy));
}

#[test]
fn a_slot_that_was_granted_and_not_used_in_time_goes_on() {
    let (mut books, now) = (TestBooks::new(BOUNDS), Instant::now());
    for _ in 0..2 {
        let id = parked(&mut books, 1);
        books.readable(id, now);
    }
    take_jobs(&mut books);
    assert!(books.take_slot(7) && books.take_slot(7));
    let [first, second] = [1, 2].map(|peer| books.open(peer).unwrap());
    books.hold(first, "connection", 7, None, now);
    books.hold(second, "connection", 7, None, now + Duration::from_secs(1));
    books.leave_slot(7);
    assert!(take_jobs(&mut books).is_empty(), "its peer has no seat left");
    books.expire(now + BOUNDS.wait);
    let jobs = take_jobs(&mut books);
    assert_eq!(
        jobs.iter().map(|job| (job.id, job.task)).collect::<Vec<_>>(),
        [(second, Task::Serve(Some(7))), (first, Task::Busy)]
    );
}

#[test]
fn half_a_request_is_given_up_in_time_or_for_a_new_connection_of_its_peer() {
    let (mut books, now) = (TestBooks::new(BOUNDS), Instant::now());
    let second = Duration::from_secs(1);
    let half: Vec<Id> = (0..3)
        .map(|age| {
            let id = books.open(1).unwrap();
            books.park(id, "connection", Some(now + age * second));
            id
        })
        .collect();
    books.expire(now);
    let jobs = take_jobs(&mut books);
    assert_eq!((ids(&jobs), jobs[0].task), (half[..1].to_vec(), Task::Close(Closing::HalfSent)));
    books.closed(half[0]);
    books.leave_seat(1, &jobs[0].task);

    (0..3).map(|_| parked(&mut books, 1)).for_each(|id| assert_ne!(id, half[1]));
    assert!(books.open(2).is_ok());
    assert!(take_jobs(&mut books).is_empty());
    assert!(books.open(1).is_ok(), "the share is reached");
    let jobs = take_jobs(&mut books);
    assert_eq!((ids(&jobs), jobs[0].task), (half[1..2].to_vec(), Task::Close(Closing::HalfSent)));
    // What goes on is not given up.
    books.readable(half[2], now);
    assert!(books.open(1).is_err());
    assert_eq!(books.deadline(), None);
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Open(u8),
    Readable(usize),
    /// A thread takes a job.
    Take,
    /// A thread's command begins, or waits for its device.
    Begin(usize, u8),
    /// A thread parks its connection, half sent or not, or closes it.
    Leave(usize, Option<bool>),
    Later(u64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (0u8..4).prop_map(Act::Open),
        any::<usize>().prop_map(Act::Readable),
        any::<usize>().prop_map(Act::Readable),
        Just(Act::Take),
        Just(Act::Take),
        (any::<usize>(), 0u8..3).prop_map(|(at, device)| Act::Begin(at, device)),
        (any::<usize>(), 0u8..3).prop_map(|(at, device)| Act::Begin(at, device)),
        (any::<usize>(), any::<Option<bool>>()).prop_map(|(at, how)| Act::Leave(at, how)),
        (0u64..40).prop_map(Act::Later),
    ]
}

/// A thread with its job, and the slot it holds.
type Busy = (Job<&'static str, u8, u8>, Option<u8>);

fn leave(books: &mut TestBooks, (job, slot): Busy, how: Option<Option<Instant>>) {
    match how {
        Some(half_sent) => books.park(job.id, job.connection, half_sent),
        None => books.closed(job.id),
    }
    slot.into_iter().for_each(|device| books.leave_slot(device));
    books.leave_seat(job.peer, &job.task);
}

fn check(books: &TestBooks) -> Result<(), TestCaseError> {
    let places = || books.places.iter().enumerate().filter_map(|(id, place)| Some((id, place.as_ref()?)));
    prop_assert_eq!(places().count(), books.connections());
    for kind in [COMMAND, ERRAND] {
        prop_assert!(books.seats[kind] <= BOUNDS.seats[kind]);
        prop_assert_eq!(books.seats[kind], books.accounts.values().map(|a| a.seats[kind]).sum::<usize>());
        prop_assert_eq!(books.queued[kind], books.accounts.values().map(|a| a.queues[kind].len()).sum::<usize>());
        for account in books.accounts.values() {
            prop_assert!(account.seats[kind] <= BOUNDS.seats_of_peer[kind]);
            prop_assert!(
                account.queues[kind].is_empty()
                    || account.seats[kind] == BOUNDS.seats_of_peer[kind]
                    || books.seats[kind] == BOUNDS.seats[kind],
                "somebody waits for a seat that is free"
            );
        }
    }
    for (peer, account) in &books.accounts {
        prop_assert_eq!(account.connections, places().filter(|(_, (owner, _))| owner == peer).count());
    }
    for device in books.devices.values() {
        prop_assert!((1..=BOUNDS.per_device).contains(&device.running));
        prop_assert!(device.waiting.is_empty() || device.running == BOUNDS.per_device);
    }
    let deadlines: BTreeSet<(Instant, Id)> = places()
        .filter_map(|(id, (_, place))| match place {
            Place::Parked { half_sent, .. } => half_sent.map(|deadline| (deadline, id)),
            Place::Queued { turn, .. } | Place::Held { turn, .. } => turn.deadline.map(|deadline| (deadline, id)),
            Place::Attended => None,
        })
        .collect();
    prop_assert_eq!(&deadlines, &books.deadlines);
    Ok(())
}

proptest! {
    #[test]
    fn the_books_balance(acts in prop::collection::vec(act(), 0..200)) {
        let mut books = TestBooks::new(BOUNDS);
        let mut now = Instant::now();
        let mut busy: Vec<Busy> = Vec::new();
        for act in acts {
            match act {
                Act::Open(_) if books.is_full() => {}
                Act::Open(peer) => match books.open(peer) {
                    Ok(id) => books.park(id, "connection", None),
                    Err(id) => books.dispose(id, "connection", Closing::Refused),
                },
                Act::Readable(at) => books.readable(at % BOUNDS.connections, now),
                Act::Take => busy.extend(books.next_job().map(|job| {
                    let slot = if let Task::Serve(slot) = job.task { slot } else { None };
                    (job, slot)
                })),
                _ if busy.is_empty() => {}
                Act::Begin(at, device) => {
                    let at = at % busy.len();
                    if let (Job { task: Task::Serve(_), .. }, None) = busy[at] {
                        if books.take_slot(device) {
                            busy[at].1 = Some(device);
                        } else {
                            let (job, _) = busy.swap_remove(at);
                            books.hold(job.id, job.connection, device, Some(job.turn), now);
                            books.leave_seat(job.peer, &job.task);
                        }
                    }
                }
                Act::Leave(at, how) => {
                    let job = busy.swap_remove(at % busy.len());
                    let how = how.map(|half| half.then(|| now + Duration::from_secs(10)));
                    leave(&mut books, job, how);
                }
                Act::Later(seconds) => {
                    now += Duration::from_secs(seconds);
                    books.expire(now);
                    prop_assert!(books.deadline().is_none_or(|deadline| deadline > now));
                }
            }
            check(&books)?;
        }
        // Nothing is lost: in the end everybody is attended, and nothing is left.
        books.close_all(|_| ());
        check(&books)?;
        loop {
            busy.extend(books.next_job().map(|job| {
                let slot = if let Task::Serve(slot) = job.task { slot } else { None };
                (job, slot)
            }));
            let Some(job) = busy.pop() else { break };
            leave(&mut books, job, None);
            check(&books)?;
        }
        prop_assert_eq!(books.connections(), 0);
        prop_assert!(books.accounts.is_empty() && books.devices.is_empty() && books.deadlines.is_empty());
    }
}
