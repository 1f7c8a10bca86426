//! The client against helpers that misbehave in every way the protocol allows to name.

mod fake;

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use fake::{
    FakeHelper, LONG, Peer, device, good, header, patient, play_well, read_keys, read_keys_command, register, response,
    wait_until,
};
use rustix::net::{RecvFlags, SendFlags, recv};
use scsi_pr::{Command, Completion, Error, PrManager, ReserveIn, ReserveInAction, Sense, SenseCode, Status};
use scsi_pr_helper::client::Config;
use scsi_pr_helper::wire::FEATURE_CLEANUP;
use scsi_pr_helper::{HelperClient, MAX_TRANSFER};

const SHORT: Duration = Duration::from_millis(100);

fn client(helper: &FakeHelper) -> HelperClient {
    HelperClient::new(helper.path()).with_config(patient())
}

fn run(client: &HelperClient, command: Command<'_>) -> Result<Completion, Error> {
    client.execute(device().as_fd(), command)
}

#[track_caller]
fn assert_unknown(result: Result<Completion, Error>) {
    let error = result.expect_err("there was no answer");
    assert!(error.may_have_run(), "{error}");
}

#[track_caller]
fn assert_not_run(result: Result<Completion, Error>) {
    let error = result.expect_err("nothing was sent");
    assert!(!error.may_have_run(), "{error}");
}

/// Plays the handshake and one request, then answers with `bytes` and closes.
fn answering(bytes: Vec<u8>) -> FakeHelper {
    FakeHelper::new(move |mut peer| {
        peer.shake(0)?;
        peer.request()?;
        peer.send(&bytes)
    })
}

#[test]
fn every_kind_of_answer_comes_back_as_it_was_given() {
    let answers = [
        Completion::Good(vec![1, 2, 3]),
        Completion::Good(Vec::new()),
        Completion::Status(Status::RESERVATION_CONFLICT),
        Completion::Status(Status::BUSY),
        Completion::check(SenseCode::REGISTRATIONS_PREEMPTED),
        Completion::CheckCondition(Sense::from_bytes(&[0x72; 96])),
    ];
    let given = answers.clone();
    let helper = FakeHelper::new(move |mut peer| {
        peer.shake(0)?;
        given.iter().cycle().try_for_each(|completion| {
            let (request, _) = peer.request()?;
            peer.answer(&request, completion)
        })
    });
    let client = client(&helper);
    for answer in answers {
        assert_eq!(run(&client, read_keys_command()).unwrap(), answer);
    }
    assert_eq!((helper.connections(), helper.requests()), (1, 6));
}

#[test]
fn the_request_comes_byte_for_byte_with_the_device() {
    let (sender, received) = mpsc::channel();
    let sender = Mutex::new(sender);
    let helper = FakeHelper::new(move |mut peer| {
        peer.shake(0)?;
        loop {
            let (request, descriptor) = peer.request()?;
            peer.answer(&request, &Completion::Good(Vec::new()))?;
            sender.lock().unwrap().send((request, rustix::fs::fstat(&descriptor).unwrap().st_ino)).unwrap();
        }
    });
    let client = client(&helper);
    let file = tempfile::tempfile().unwrap();
    let inode = rustix::fs::fstat(&file).unwrap().st_ino;
    let list: Vec<u8> = (0..8192_u32).map(|i| i as u8).collect();
    for command in [
        register(&list),
        register(&list[..24]),
        register(&[]),
        Command::new(read_keys(0, 1), &[]).unwrap(),
        Command::new(read_keys(8192, 2), &[]).unwrap(),
    ] {
        assert_eq!(client.execute(file.as_fd(), command).unwrap(), Completion::Good(Vec::new()));
        let (request, received_inode) = received.recv_timeout(LONG).unwrap();
        assert_eq!((request.command(), received_inode), (command, inode));
    }
}

#[test]
fn the_flags_of_the_device_are_left_alone() {
    let helper = FakeHelper::new(play_well);
    let (reader, _writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
    let flags = || rustix::fs::fcntl_getfl(&reader).unwrap();
    let before = flags();
    client(&helper).execute(reader.as_fd(), read_keys_command()).unwrap();
    assert_eq!(flags(), before);
}

#[test]
fn a_helper_that_closes_in_the_handshake_has_got_nothing() {
    for bytes in 0..4 {
        let helper = FakeHelper::new(move |mut peer| peer.send(&[0; 4][..bytes]));
        let config = patient().with_attempts(3).with_pause(Duration::from_millis(1));
        assert_not_run(run(&HelperClient::new(helper.path()).with_config(config), read_keys_command()));
        assert_eq!(helper.connections(), 3, "after {bytes} bytes");
    }
}

#[test]
fn a_helper_that_closes_anywhere_in_its_answer_is_not_asked_again() {
    let whole = response(&read_keys(8, 0), &good(&read_keys(8, 0)));
    for cut in 0..whole.len() {
        let helper = answering(whole[..cut].to_vec());
        let client = HelperClient::new(helper.path()).with_config(patient().with_attempts(5));
        assert_unknown(run(&client, read_keys_command()));
        assert!(!client.is_connected());
        assert_eq!((helper.connections(), helper.requests()), (1, 1), "after {cut} bytes");
    }
}

#[test]
fn a_helper_that_closes_anywhere_in_the_request_is_not_asked_again() {
    const WHOLE: usize = 16 + 24;
    for cut in 0..=WHOLE {
        let helper = FakeHelper::new(move |mut peer| {
            peer.shake(0)?;
            wait_until("the request", || {
                matches!(recv(&peer.stream, &mut [0; WHOLE], RecvFlags::PEEK), Ok((_, WHOLE)))
            });
            (&*peer.stream).read_exact(&mut vec![0; cut]).ok()
        });
        let client = HelperClient::new(helper.path()).with_config(patient().with_attempts(5));
        assert_unknown(run(&client, register(&[0; 24])));
        assert_eq!(helper.connections(), 1, "after {cut} bytes");
    }
}

#[test]
fn what_the_protocol_does_not_allow_is_no_answer() {
    for (result, size) in [
        (0x100, 0),
        (-1, 0),
        (i32::MIN, 0),
        (i32::MAX, 0),
        (0, 9),
        (0, -1),
        (0, i32::MIN),
        (0, i32::MAX),
        (2, 1),
        (0x18, 8),
    ] {
        let helper = answering([header(result, size), vec![0; 64]].concat());
        let client = client(&helper);
        assert_unknown(run(&client, read_keys_command()));
        assert!(!client.is_connected(), "{result:#x} {size}");
    }
    let helper = answering([header(0, 1), vec![0; 1]].concat());
    assert_unknown(run(&client(&helper), register(&[0; 24])));
}

#[test]
fn bytes_without_a_request_are_not_the_next_answer() {
    let extra = response(&read_keys(8, 0), &Completion::Good(vec![0xee; 8]));
    let helper = FakeHelper::new(move |mut peer| {
        peer.shake(0)?;
        let (request, _) = peer.request()?;
        let answer = response(request.cdb(), &good(request.cdb()));
        peer.send(&[answer, extra.clone()].concat())?;
        peer.wait_for_end();
        Some(())
    });
    let client = client(&helper);
    for mark in 1..4 {
        let cdb = read_keys(8, mark);
        assert_eq!(run(&client, Command::new(cdb, &[]).unwrap()).unwrap(), good(&cdb));
    }
    assert_eq!((helper.connections(), helper.requests()), (3, 3));
}

#[test]
fn a_silent_helper_is_given_up_and_its_late_answer_is_nobodys() {
    let (late, answer_now) = mpsc::channel::<()>();
    let answer_now = Mutex::new(answer_now);
    let helper = FakeHelper::new(move |mut peer| {
        if peer.number > 0 {
            return play_well(peer);
        }
        peer.shake(0)?;
        let (request, _) = peer.request()?;
        answer_now.lock().unwrap().recv().ok()?;
        peer.answer(&request, &Completion::Good(vec![0xee; 8]))
    });
    let client = HelperClient::new(helper.path()).with_config(patient().with_answer(SHORT));
    assert_unknown(run(&client, read_keys_command()));
    assert!(!client.is_connected());
    let client = client.with_config(patient());
    late.send(()).unwrap();
    assert_eq!(run(&client, read_keys_command()).unwrap(), Completion::Good(vec![0x55; 8]));
    assert_eq!((helper.connections(), helper.requests()), (2, 2));
}

/// A helper closes the connection on which such a command comes.
#[test]
fn command_beyond_the_transfer_length_is_refused_without_being_sent() {
    let helper = FakeHelper::new(play_well);
    let client = client(&helper);
    let command = |length| ReserveIn::new(ReserveInAction::ReadKeys, length).encode();
    let refused = Completion::check(SenseCode::INVALID_FIELD_IN_CDB);
    assert_eq!(run(&client, command(MAX_TRANSFER + 1).command()).unwrap(), refused);
    assert_eq!(helper.requests(), 0);
    assert!(matches!(run(&client, command(MAX_TRANSFER).command()), Ok(Completion::Good(_))));
    assert_eq!(helper.requests(), 1);
}

#[test]
fn an_answer_may_come_byte_by_byte() {
    let helper = FakeHelper::new(|mut peer| {
        for byte in [0; 4] {
            peer.send(&[byte])?;
            std::thread::yield_now();
        }
        peer.wanted_features()?;
        loop {
            let (request, _) = peer.request()?;
            for byte in response(request.cdb(), &good(request.cdb())) {
                peer.send(&[byte])?;
                std::thread::yield_now();
            }
        }
    });
    let client = client(&helper);
    for _ in 0..3 {
        assert_eq!(run(&client, read_keys_command()).unwrap(), Completion::Good(vec![0x55; 8]));
    }
}

#[test]
fn a_trickle_does_not_stretch_the_limits() {
    let trickle = |mut peer: Peer, pause| {
        loop {
            peer.send(&[0])?;
            std::thread::sleep(pause);
        }
    };
    // The 104 bytes would take twenty seconds.
    let helper = FakeHelper::new(move |mut peer| {
        peer.shake(0)?;
        peer.request()?;
        trickle(peer, Duration::from_millis(200))
    });
    let client = HelperClient::new(helper.path()).with_config(patient().with_answer(SHORT));
    assert_unknown(run(&client, read_keys_command()));

    // The four of the handshake too.
    let helper = FakeHelper::new(move |peer| trickle(peer, Duration::from_secs(7)));
    let client = HelperClient::new(helper.path()).with_config(patient().with_connect(SHORT));
    assert_not_run(run(&client, read_keys_command()));
}

#[test]
fn a_helper_that_never_accepts_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("helper.sock");
    let listener = UnixListener::bind(&path).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let connect = || HelperClient::new(&path).with_config(patient().with_connect(SHORT));
    // The first is queued and waits for its handshake in vain; it stays in the queue, so the second does not fit.
    assert_not_run(run(&connect(), read_keys_command()));
    assert_not_run(run(&connect(), read_keys_command()));
}

#[test]
fn a_missing_or_impossible_path_is_not_run() {
    let directory = tempfile::tempdir().unwrap();
    let dead = directory.path().join("dead.sock");
    drop(UnixListener::bind(&dead).unwrap());
    for path in [directory.path().join("missing.sock"), dead, directory.path().join("x".repeat(200)), "".into()] {
        let config = patient().with_attempts(3).with_pause(Duration::from_millis(1));
        let client = HelperClient::new(&path).with_config(config);
        assert_not_run(run(&client, read_keys_command()));
        let error = client.connect().unwrap_err().to_string();
        assert!(error.contains(&format!("connect to the helper at {}", path.display())), "{error}");
        assert!(!client.is_connected());
    }
}

#[test]
fn a_helper_that_comes_back_in_the_pause_is_used() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("helper.sock");
    let config = patient().with_attempts(u32::MAX).with_pause(Duration::from_millis(5));
    let client = HelperClient::new(&path).with_config(config);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| run(&client, read_keys_command()));
        std::thread::sleep(SHORT);
        assert!(!waiting.is_finished());
        let _helper = FakeHelper::at(&path, play_well);
        assert_eq!(waiting.join().unwrap().unwrap(), Completion::Good(vec![0x55; 8]));
    });
    // A helper that ends and starts again between commands causes no error.
    let helper = FakeHelper::at(&path, play_well);
    assert_eq!(run(&client, read_keys_command()).unwrap(), Completion::Good(vec![0x55; 8]));
    assert_eq!(helper.requests(), 1);
}

#[test]
fn others_may_run_in_the_pause() {
    let helper = FakeHelper::new(|peer| if peer.number == 0 { None } else { play_well(peer) });
    let hour = Duration::from_secs(60 * 60);
    let config = patient().with_attempts(2).with_pause(hour).with_turn(2 * hour);
    let client = Arc::new(HelperClient::new(helper.path()).with_config(config));
    // No thread joins this one: it sleeps until the test program ends.
    let pausing = Arc::clone(&client);
    std::thread::spawn(move || run(&pausing, read_keys_command()));
    wait_until("the attempt that fails", || helper.connections() == 1);
    let (sender, answer) = mpsc::channel();
    std::thread::spawn(move || sender.send(run(&client, read_keys_command())));
    assert_eq!(answer.recv_timeout(LONG).unwrap().unwrap(), Completion::Good(vec![0x55; 8]));
}

#[test]
fn the_pause_ends_with_the_time_for_a_turn() {
    let directory = tempfile::tempdir().unwrap();
    let config = patient().with_attempts(u32::MAX).with_pause(Duration::from_millis(5)).with_turn(SHORT);
    let client = HelperClient::new(directory.path().join("missing.sock")).with_config(config);
    assert_not_run(run(&client, read_keys_command()));
}

#[test]
fn a_stale_connection_is_replaced_without_a_pause() {
    let helper = FakeHelper::new(|mut peer| {
        peer.shake(0)?;
        let (request, _) = peer.request()?;
        peer.answer(&request, &good(request.cdb()))
    });
    // One attempt, and a pause that the test would not outlive.
    let client = client(&helper);
    for _ in 0..20 {
        assert_eq!(run(&client, read_keys_command()).unwrap(), Completion::Good(vec![0x55; 8]));
        wait_until("the end of the connection", || !client.is_connected());
    }
    assert_eq!((helper.connections(), helper.requests()), (20, 20));
}

#[test]
fn a_helper_that_closes_whenever_it_likes_gets_no_command_twice() {
    // Closes at once after each answer, so that the next command may find the connection open, closing or closed.
    let helper = FakeHelper::new(|mut peer| {
        peer.shake(0)?;
        let (request, _) = peer.request()?;
        peer.answer(&request, &good(request.cdb()))
    });
    let client = client(&helper);
    let (mut answered, mut unknown) = (0, 0);
    for _ in 0..500 {
        match run(&client, read_keys_command()) {
            Ok(completion) => {
                assert_eq!(completion, Completion::Good(vec![0x55; 8]));
                answered += 1;
            }
            Err(error) => {
                assert!(error.may_have_run(), "{error}");
                unknown += 1;
            }
        }
    }
    assert_eq!(answered + unknown, 500);
    assert_eq!(helper.requests(), answered, "{unknown} went into a connection that was closing");
}

#[test]
fn cleanup_goes_only_to_a_helper_that_announced_it() {
    for (offered, wanted) in [(0, 0), (1, 1), (u32::MAX, 1), (!1, 0), (0x0100_0000, 0)] {
        let got = Arc::new(AtomicUsize::new(usize::MAX));
        let seen = Arc::clone(&got);
        let helper = FakeHelper::new(move |mut peer| {
            let features = peer.shake(offered)?;
            seen.store(features as usize, Ordering::SeqCst);
            loop {
                let (request, _) = peer.request()?;
                peer.answer(&request, &Completion::Good(Vec::new()))?;
            }
        });
        let client = client(&helper);
        let answer = run(&client, Command::cleanup()).unwrap();
        run(&client, register(&[0; 24])).unwrap();
        assert_eq!(got.load(Ordering::SeqCst), wanted, "{offered:#x}");
        if wanted & FEATURE_CLEANUP as usize != 0 {
            assert_eq!((answer, helper.requests()), (Completion::Good(Vec::new()), 2));
        } else {
            assert_eq!((answer, helper.requests()), (Completion::check(SenseCode::INVALID_OPCODE), 1));
        }
        assert_eq!(helper.connections(), 1);
    }
}

#[test]
fn callback_sees_changes_in_order_and_may_ask_for_the_state() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("helper.sock");
    let events = Arc::new(Mutex::new(Vec::new()));
    let recorded = Arc::clone(&events);
    let asked: Arc<Mutex<Option<Arc<HelperClient>>>> = Arc::default();
    let ask = Arc::clone(&asked);
    let client = Arc::new(HelperClient::new(&path).with_config(patient()).on_change(move |connected| {
        let client = ask.lock().unwrap().clone().unwrap();
        recorded.lock().unwrap().push((connected, client.is_connected()));
    }));
    *asked.lock().unwrap() = Some(Arc::clone(&client));
    let events = || std::mem::take(&mut *events.lock().unwrap());

    assert_not_run(run(&client, read_keys_command()));
    assert!(!client.is_connected());
    assert_eq!(events(), [], "a failure to connect changes nothing");

    let close_second = |mut peer: Peer| {
        peer.shake(0)?;
        let (request, _) = peer.request()?;
        peer.answer(&request, &good(request.cdb()))?;
        peer.request().map(drop)
    };
    let helper = FakeHelper::at(&path, close_second);
    client.connect().unwrap();
    client.connect().unwrap();
    assert!(client.is_connected());
    assert_eq!(events(), [(true, true)]);
    run(&client, read_keys_command()).unwrap();
    assert_eq!(events(), []);
    assert_unknown(run(&client, read_keys_command()));
    assert_eq!(events(), [(false, false)]);
    run(&client, read_keys_command()).unwrap();
    assert_eq!(events(), [(true, true)]);
    drop(helper);
    *asked.lock().unwrap() = None;
}

#[test]
fn restart_of_the_helper_is_reported_as_a_loss_and_a_connection() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("helper.sock");
    let (sender, events) = mpsc::channel();
    let client = HelperClient::new(&path).with_config(patient()).on_change(move |connected| {
        sender.send(connected).unwrap();
    });
    let once = |mut peer: Peer| {
        peer.shake(0)?;
        let (request, _) = peer.request()?;
        peer.answer(&request, &good(request.cdb()))
    };
    drop({
        let helper = FakeHelper::at(&path, once);
        run(&client, read_keys_command()).unwrap();
        helper
    });
    wait_until("the end of the helper", || !client.is_connected());
    assert_eq!(events.try_iter().collect::<Vec<_>>(), [true], "asking changes nothing");
    let _helper = FakeHelper::at(&path, once);
    run(&client, read_keys_command()).unwrap();
    assert_eq!(events.try_iter().collect::<Vec<_>>(), [false, true]);
}

#[test]
fn a_given_connection_is_used_once() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let helper = std::thread::spawn(move || {
        let mut peer = Peer::over(theirs);
        peer.shake(0)?;
        for _ in 0..2 {
            let (request, _) = peer.request()?;
            peer.answer(&request, &good(request.cdb()))?;
        }
        Some(())
    });
    // Neither the attempts nor the pause apply.
    let client = HelperClient::over(ours).with_config(patient().with_attempts(5));
    for _ in 0..2 {
        assert_eq!(run(&client, read_keys_command()).unwrap(), Completion::Good(vec![0x55; 8]));
    }
    helper.join().unwrap().unwrap();
    for _ in 0..2 {
        assert_not_run(run(&client, read_keys_command()));
    }
}

#[test]
fn threads_take_turns_and_each_gets_its_own_answer() {
    let in_flight = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&in_flight);
    let helper = FakeHelper::new(move |mut peer| {
        peer.shake(0)?;
        loop {
            let (request, _) = peer.request()?;
            assert_eq!(count.fetch_add(1, Ordering::SeqCst), 0, "one command at a time");
            std::thread::yield_now();
            count.fetch_sub(1, Ordering::SeqCst);
            peer.answer(&request, &good(request.cdb()))?;
        }
    });
    let client = client(&helper);
    std::thread::scope(|scope| {
        for mark in 0..16 {
            let client = &client;
            scope.spawn(move || {
                for round in 0..50 {
                    let cdb = read_keys(round, mark);
                    assert_eq!(run(client, Command::new(cdb, &[]).unwrap()).unwrap(), good(&cdb));
                }
            });
        }
    });
    assert_eq!((helper.connections(), helper.requests()), (1, 800));
}

#[test]
fn a_hung_command_does_not_hold_the_others_for_ever() {
    let helper = FakeHelper::new(|mut peer| {
        peer.shake(0)?;
        peer.request()?;
        peer.wait_for_end();
        Some(())
    });
    let client = HelperClient::new(helper.path()).with_config(patient().with_turn(SHORT));
    std::thread::scope(|scope| {
        let hung = scope.spawn(|| run(&client, read_keys_command()));
        wait_until("the first request", || helper.requests() == 1);
        let others: Vec<_> = (0..8).map(|_| scope.spawn(|| run(&client, read_keys_command()))).collect();
        assert!(client.is_connected(), "asking does not wait");
        for other in others {
            assert_not_run(other.join().unwrap());
        }
        assert_eq!(helper.requests(), 1);
        helper.hang_up();
        assert_unknown(hung.join().unwrap());
    });
}

/// A client whose socket takes little more than a CDB, and the helper's end after the handshake.
fn narrow(config: Config) -> (HelperClient, UnixStream, Peer) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&ours, 1).unwrap();
    let second = ours.try_clone().unwrap();
    let helper = std::thread::spawn(move || {
        let mut peer = Peer::over(theirs);
        peer.shake(0).unwrap();
        peer
    });
    let client = HelperClient::over(ours).with_config(config);
    client.connect().unwrap();
    (client, second, helper.join().unwrap())
}

#[test]
fn a_request_that_does_not_fit_the_socket_goes_in_pieces() {
    let (client, _, mut peer) = narrow(patient());
    let list: Vec<u8> = (0..8192_u32).map(|i| (i / 7) as u8).collect();
    let helper = std::thread::spawn(move || {
        let (request, _) = peer.request().unwrap();
        peer.answer(&request, &Completion::Good(Vec::new())).unwrap();
        request
    });
    assert_eq!(run(&client, register(&list)).unwrap(), Completion::Good(Vec::new()));
    assert_eq!(helper.join().unwrap().command(), register(&list));
}

#[test]
fn half_a_parameter_list_may_have_been_run() {
    let (client, _, _peer) = narrow(patient().with_send(SHORT));
    assert_unknown(run(&client, register(&[0; 8192])));
    assert!(!client.is_connected());
}

#[test]
fn a_request_that_never_left_was_not_run() {
    let (client, ours, _peer) = narrow(patient().with_send(SHORT));
    while rustix::net::send(&ours, &[0; 512], SendFlags::DONTWAIT).is_ok() {}
    assert_not_run(run(&client, read_keys_command()));
    assert!(!client.is_connected());
}
