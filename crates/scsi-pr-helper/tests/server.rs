//! [`scsi_pr_helper::serve`], as a client sees it.

mod support;

use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use scsi_pr::{Command, Completion, Error, PrManager};
use scsi_pr_helper::{Limits, Peer, serve};
use support::*;

#[test]
fn commands_are_answered() {
    let server = Server::start(Limits::default(), Echo);
    let mut client = server.client();
    for length in [0, 1, 8, 4096, 8192] {
        let answer = client.ask(&reserve_in(3, length), null());
        assert_eq!(answer, Answer { status: 0, sense: [0; 96], data: vec![3; length.into()] });
    }
    for list in [&[][..], &[1, 2, 3], &[1; 8192]] {
        let answer = client.ask(&reserve_out(1, list), null());
        let sum = list.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        assert_eq!((answer.status, &answer.sense[..4]), (2, &sum.to_be_bytes()[..]));
        assert_eq!((&answer.sense[4..], answer.data), (&[0; 92][..], vec![]));
    }
    // QEMU's CLEANUP, which was not announced; its length is not looked at.
    assert_eq!(client.ask(&any_cdb(0xff, 0xffff), null()), Answer { status: 0, sense: [0; 96], data: vec![] });
}

#[test]
fn a_connection_that_fell_silent_is_served_again() {
    // Silence is not half a request: the timeout of one has passed many times.
    let server = Server::start(Limits::default().with_receive_timeout(Duration::from_millis(2)), Echo);
    let mut clients: Vec<Client> = (0..5).map(|_| server.client()).collect();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(20));
        for client in &mut clients {
            assert_eq!(client.ask(&reserve_in(1, 4), null()).data, [1; 4]);
        }
    }
}

#[test]
fn the_handshake_may_come_in_pieces_and_first() {
    let server = Server::start(Limits::default(), Echo);
    let mut client = server.connect();
    for byte in [0; 4] {
        client.send(&[byte], &[]);
        std::thread::sleep(Duration::from_millis(15));
    }
    assert_eq!(client.ask(&reserve_in(0, 1), null()).status, 0);

    let mut client = server.connect_unheard();
    client.send(&[0; 4], &[]);
    client.send(&reserve_in(0, 1), &[null().as_fd()]);
    assert_eq!(client.receive::<4>(), [0; 4]);
    assert_eq!(client.answer().status, 0);
}

#[test]
fn only_the_feature_that_there_is_may_be_wanted() {
    let server = Server::start(Limits::default(), Echo);
    let mut client = server.connect();
    client.send(&[0, 0, 0, 1], &[]);
    assert_eq!(client.ask(&reserve_in(0, 1), null()).status, 0);
    for word in [0x8000_0000_u32, 0x0100_0000, 0x8000_0001, 2, u32::MAX] {
        let mut client = server.connect();
        client.send(&word.to_be_bytes(), &[]);
        assert!(client.is_closed(), "{word:#x}");
    }
}

#[test]
fn a_cdb_that_is_none_closes_the_connection() {
    let server = Server::start(Limits::default(), Echo);
    let bad = [0x00, 0x12, 0x5d, 0x60, 0xfe].map(|opcode| any_cdb(opcode, 0));
    let long = [(0x5e, 8193), (0x5e, 65535), (0x5f, 8193)].map(|(opcode, length)| any_cdb(opcode, length));
    for cdb in bad.iter().chain(&long) {
        let mut client = server.client();
        client.send(cdb, &[null().as_fd()]);
        assert!(client.is_closed(), "{cdb:02x?}");
    }
}

/// Which connections with descriptors in odd places are served: those of QEMU's helper.
#[test]
fn one_descriptor_comes_with_the_cdb() {
    let server = Server::start(Limits::default(), Echo);
    let null = null();
    let (cdb, out) = (reserve_in(1, 1), reserve_out(1, &[5; 24]));
    let descriptors = vec![null.as_fd(); 253];
    /// Bytes, and with how many descriptors.
    type Pieces<'a> = Vec<(&'a [u8], usize)>;
    let served: Vec<(&str, Pieces<'_>)> = vec![
        ("first byte", vec![(&[0; 4], 0), (&cdb[..1], 1), (&cdb[1..], 0)]),
        ("a byte in the middle", vec![(&[0; 4], 0), (&cdb[..7], 0), (&cdb[7..8], 1), (&cdb[8..], 0)]),
        ("last byte", vec![(&[0; 4], 0), (&cdb[..15], 0), (&cdb[15..], 1)]),
        ("with the list", vec![(&[0; 4], 0), (&out, 1)]),
        ("the handshake has one too", vec![(&[0; 4], 1), (&cdb, 1)]),
        ("the handshake has many", vec![(&[0; 4], 253), (&cdb, 1)]),
        ("the list has one too", vec![(&[0; 4], 0), (&out[..16], 1), (&out[16..], 1)]),
        ("the list has many", vec![(&[0; 4], 0), (&out[..16], 1), (&out[16..], 253)]),
    ];
    for (name, pieces) in served {
        let mut client = server.connect();
        pieces.iter().for_each(|(bytes, count)| client.send(bytes, &descriptors[..*count]));
        let answer = client.answer();
        assert!(answer.data == [1] || answer.sense[3] == 120, "{name}: {answer:?}");
        assert!(client.is_silent(), "{name}");
    }
    let together = [&[0; 4][..], &cdb].concat();
    let closed: Vec<(&str, Pieces<'_>)> = vec![
        ("none", vec![(&[0; 4], 0), (&cdb, 0)]),
        ("with the handshake only", vec![(&[0; 4], 1), (&cdb, 0)]),
        ("handshake and CDB together", vec![(&together, 1)]),
        ("with the list only", vec![(&[0; 4], 0), (&out[..16], 0), (&out[16..], 1)]),
        ("two", vec![(&[0; 4], 0), (&cdb, 2)]),
        ("seventeen", vec![(&[0; 4], 0), (&cdb, 17)]),
        ("253", vec![(&[0; 4], 0), (&cdb, 253)]),
        ("twice", vec![(&[0; 4], 0), (&cdb[..4], 1), (&cdb[4..8], 1)]),
        ("again at the end", vec![(&[0; 4], 0), (&cdb[..4], 1), (&cdb[4..], 1)]),
    ];
    for (name, pieces) in closed {
        let mut client = server.connect();
        for (bytes, count) in pieces {
            // The server may have closed before the last piece.
            let _ = client.try_send(bytes, &descriptors[..count]);
        }
        assert!(client.is_closed(), "{name}");
    }
}

#[test]
fn every_request_brings_its_own_descriptor() {
    let server = Server::start(Limits::default(), Echo);
    let mut client = server.client();
    client.ask(&reserve_in(1, 1), null());
    client.send(&reserve_in(1, 1), &[]);
    assert!(client.is_closed());

    // Two CDBs and one descriptor: the first is served.
    let mut client = server.client();
    client.send(&[reserve_in(1, 1), reserve_in(2, 1)].concat(), &[null().as_fd()]);
    assert_eq!(client.answer().data, [1]);
    assert!(client.is_closed());
}

#[test]
fn bytes_may_come_one_at_a_time() {
    let server = Server::start(Limits::default(), Echo);
    let mut client = server.client();
    let request = reserve_out(0, &[7; 24]);
    let null = null();
    for with_descriptor in [0, 9, 15] {
        for (at, byte) in request.iter().enumerate() {
            let descriptors = [null.as_fd()];
            client.send(&[*byte], if at == with_descriptor { &descriptors } else { &[] });
            if at % 5 == 0 {
                // Long enough for the server to read what there is.
                std::thread::sleep(Duration::from_millis(12));
            }
        }
        assert_eq!(client.answer().sense[3], 168);
    }
}

#[test]
fn requests_may_be_sent_ahead() {
    let server = Server::start(Limits::default(), Echo);
    let mut client = server.client();
    for service_action in 1..31 {
        client.send(&reserve_in(service_action, 3), &[null().as_fd()]);
    }
    // An end of what is sent does not keep the answers back.
    client.stream.shutdown(Shutdown::Write).unwrap();
    for service_action in 1..31 {
        assert_eq!(client.answer().data, [service_action; 3]);
    }
    assert!(client.is_closed());
}

#[test]
fn the_flags_of_the_descriptor_are_left_alone() {
    let server = Server::start(Limits::default(), Echo);
    let (reader, _writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&reader, true).unwrap();
    let before = rustix::fs::fcntl_getfl(&reader).unwrap();
    server.client().ask(&reserve_in(1, 1), &reader);
    assert_eq!(rustix::fs::fcntl_getfl(&reader).unwrap(), before);
    assert!(before.contains(rustix::fs::OFlags::NONBLOCK));
}

#[test]
fn once_answered_a_descriptor_is_not_held() {
    let server = Server::start(Limits::default(), Echo);
    let mut client = server.client();
    for _ in 0..100 {
        let (reader, writer) = std::io::pipe().unwrap();
        client.ask(&reserve_in(1, 1), &writer);
        drop(writer);
        // The end of the file comes at once, because no descriptor of the writing end is left.
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        assert_eq!(rustix::io::read(&reader, &mut [0; 1]), Ok(0));
    }
}

#[test]
fn a_command_runs_although_its_client_is_gone() {
    let gate = Gate::default();
    let server = Server::start(Limits::default(), gate.clone());
    let mut client = server.client();
    client.send(&reserve_in(HANG, 1), &[null().as_fd()]);
    gate.wait_for(1);
    drop(client);
    let mut other = server.client();
    assert_eq!(other.ask(&reserve_in(0, 1), null()), io_process_terminated());
    assert_eq!(gate.hanging(), 1);
    gate.let_go(1);
    gate.wait_for(0);
    assert_eq!(other.ask(&reserve_in(0, 1), null()), io_process_terminated());
}

#[test]
fn hanging_commands_do_not_disturb_the_others() {
    let gate = Gate::default();
    let server = Server::start(Limits::default().with_peer_share(1), gate.clone());
    // More than the C helper runs at a time; each on a file of its own, so that no device has too many.
    let files: Vec<_> = (0..200).map(|_| tempfile::tempfile().unwrap()).collect();
    let mut hanging: Vec<Client> = files
        .iter()
        .map(|file| {
            let mut client = server.client();
            client.send(&reserve_in(HANG, 1), &[file.as_fd()]);
            client
        })
        .collect();
    gate.wait_for(200);
    let mut other = server.client();
    for file in &files {
        assert_eq!(other.ask(&reserve_in(0, 1), file), io_process_terminated());
    }
    gate.let_go(200);
    for client in &mut hanging {
        assert_eq!(client.answer(), io_process_terminated());
    }
}

/// A process of its own asks once: another peer. It is this test program, with only this test.
#[test]
fn as_another_process() {
    if let Some(path) = std::env::var_os("SERVER_OF_ANOTHER_PROCESS") {
        let mut client = Client::connect(path.as_ref());
        assert_eq!(client.receive::<4>(), [0; 4]);
        client.send(&[0; 4], &[]);
        let other = std::fs::File::open("/dev/zero").unwrap();
        assert_eq!(client.ask(&reserve_in(0, 1), &other), io_process_terminated());
    } else {
        let server = Server::start(Limits::default(), Gate::default());
        assert_another_process_is_served(&server.path);
    }
}

fn assert_another_process_is_served(path: &Path) {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "as_another_process"])
        .env("SERVER_OF_ANOTHER_PROCESS", path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_process_has_its_share_of_running_commands() {
    let gate = Gate::default();
    let limits = Limits::default().with_running(16).with_peer_share(4);
    let server = Server::start(limits, gate.clone());
    let mut hanging: Vec<Client> = (0..4).map(|_| server.client()).collect();
    for client in &mut hanging {
        client.send(&reserve_in(HANG, 1), &[null().as_fd()]);
    }
    gate.wait_for(4);
    let mut waiting = server.client();
    waiting.send(&reserve_in(HANG, 2), &[null().as_fd()]);
    assert_another_process_is_served(&server.path);
    assert_eq!(waiting.answer().status, BUSY);
    assert!(!gate.began().contains(&2), "a command that was answered BUSY was run");
    // A client that repeats its command at once does not take the processor.
    let start = Instant::now();
    for _ in 0..2 {
        assert_eq!(waiting.ask(&reserve_in(HANG, 2), null()).status, BUSY);
    }
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());

    gate.let_go(1);
    gate.wait_for(3);
    waiting.send(&reserve_in(HANG, 3), &[null().as_fd()]);
    wait_until("there is room for the command", || gate.began().contains(&3));
    gate.let_go(4);
    for client in hanging.iter_mut().chain([&mut waiting]) {
        assert_eq!(client.answer(), io_process_terminated());
    }
}

#[test]
fn a_process_has_its_share_of_connections() {
    let limits = Limits::default().with_connections(20).with_peer_share(4);
    let server = Server::start(limits, Gate::default());
    let mut clients: Vec<Client> = (0..5).map(|_| server.client()).collect();
    for client in &mut clients {
        client.ask(&reserve_in(0, 1), null());
    }
    let mut over = server.connect_unheard();
    wait_until("the sixth is closed", || over.is_closed());
    assert_another_process_is_served(&server.path);
    drop(clients.pop());
    clients.push(client_once_there_is_room(&server.path));
    for client in &mut clients {
        assert_eq!(client.ask(&reserve_in(0, 1), null()), io_process_terminated());
    }
}

/// In a container the helper sees no process of the others: they all are process 0 to it.
#[test]
fn processes_that_cannot_be_seen_have_a_share_each() {
    const PATH: &str = "SERVER_THAT_SEES_NO_OTHER_PROCESS";
    if let Some(path) = std::env::var_os(PATH) {
        let limits = Limits::default().with_connections(8).with_peer_share(4);
        let manager: Arc<dyn PrManager> = Arc::new(Gate::default());
        let manager_for = move |peer: &Peer| {
            assert_eq!(peer.pid, 0);
            Arc::clone(&manager)
        };
        let listener = UnixListener::bind(path).unwrap();
        serve(listener.into(), manager_for, limits, std::io::stdin().as_fd()).unwrap().wait(LONG);
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    // Root needs no user namespace for it, and may not have one in a chroot.
    let user: &[_] = if rustix::process::geteuid().is_root() { &[] } else { &["--user", "--map-root-user"] };
    let mut server = std::process::Command::new("unshare")
        .args(user)
        .args(["--pid", "--fork", "--kill-child"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "processes_that_cannot_be_seen_have_a_share_each"])
        .env(PATH, &path)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("the server listens", || std::os::unix::net::UnixStream::connect(&path).is_ok());
    let mut clients = [client_once_there_is_room(&path), client_once_there_is_room(&path)];
    let mut over = Client::connect(&path);
    wait_until("the third is closed", || over.is_closed());
    assert_another_process_is_served(&path);
    for client in &mut clients {
        assert_eq!(client.ask(&reserve_in(0, 1), null()), io_process_terminated());
    }
    drop(server.stdin.take());
    assert!(server.wait().unwrap().success());
}

/// A process that becomes another user before it connects has no other share for it.
#[test]
fn process_has_one_share_whatever_its_user() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can become another user");
        return;
    }
    let server = Server::start(Limits::default().with_connections(8).with_peer_share(4), Gate::default());
    for (path, mode) in [(server.path.parent().unwrap(), 0o755), (&server.path, 0o777)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut clients = [server.client(), server.client()];
    for client in &mut clients {
        client.ask(&reserve_in(0, 1), null());
    }
    let path = server.path.clone();
    let connect_as_other = move || {
        let other = rustix::process::Uid::from_raw(0x5c51_0001);
        // Of this thread alone.
        rustix::thread::set_thread_res_uid(other, other, other).unwrap();
        Client::connect(&path)
    };
    let mut third = std::thread::spawn(connect_as_other).join().unwrap();
    assert!(third.is_closed());
    assert_another_process_is_served(&server.path);
}

#[test]
fn half_a_request_is_given_up_in_time() {
    let limits = Limits::default().with_receive_timeout(Duration::from_millis(200));
    let server = Server::start(limits, Gate::default());
    let null = null();
    let out = reserve_out(0, &[0; 24]);
    let mut idle = [server.connect(), server.client()];
    let mut half: Vec<Client> = [&[][..], &out[..1], &out[..16], &out[..39]]
        .iter()
        .map(|part| {
            let mut client = server.connect();
            match part {
                [] => client.send(&[0; 3], &[]),
                part => {
                    client.send(&[0; 4], &[]);
                    client.send(part, &[null.as_fd()]);
                }
            }
            client
        })
        .collect();
    for client in &mut half {
        assert!(client.is_closed());
    }
    // Silence is not half a request.
    idle[0].send(&[0; 4], &[]);
    for client in &mut idle {
        assert_eq!(client.ask(&reserve_in(0, 1), &null), io_process_terminated());
    }
}

#[test]
fn limits_may_be_for_ever() {
    let for_ever = Duration::MAX;
    let limits = Limits::default().with_send_timeout(for_ever).with_receive_timeout(for_ever);
    let gate = Gate::default();
    let server = Server::start(limits, gate.clone());
    let null = null();
    let mut half = server.client();
    half.send(&reserve_in(0, 1)[..3], &[null.as_fd()]);
    let mut asks = [1, 2].map(|length| (length, server.client()));
    for (length, client) in &mut asks {
        client.send(&reserve_in(HANG, *length), &[null.as_fd()]);
    }
    gate.wait_for(2);
    let mut deaf = send_without_reading(&server);
    gate.let_go(2);
    for (_, client) in &mut asks {
        assert_eq!(client.answer(), io_process_terminated());
    }
    half.send(&reserve_in(0, 1)[3..], &[]);
    assert_eq!(half.answer(), io_process_terminated());
    assert_eq!(deaf.answer(), io_process_terminated());
}

#[test]
fn limits_of_zero_admit_one_client() {
    let limits = Limits::default().with_connections(0).with_running(0).with_peer_share(0);
    let server = Server::start(limits, Gate::default());
    assert_eq!(server.client().ask(&reserve_in(0, 1), null()), io_process_terminated());
}

/// Far more requests than the answers fit in the socket's buffer.
fn send_without_reading(server: &Server) -> Client {
    let mut deaf = server.client();
    deaf.stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    for _ in 0..400 {
        // Some may stay unsent: the server reads no more once it cannot answer.
        if deaf.try_send(&reserve_in(1, 8192), &[null().as_fd()]).is_err() {
            break;
        }
    }
    deaf
}

#[test]
fn client_that_never_reads_does_not_delay_another() {
    let limits = Limits::default().with_send_timeout(LONG);
    let server = Server::start(limits, Echo);
    let deaf = send_without_reading(&server);
    wait_until("nothing is read any more", || !is_writable(&deaf));
    let mut other = server.client();
    for _ in 0..20 {
        assert_eq!(other.ask(&reserve_in(2, 1), null()).data, [2]);
    }
}

#[test]
fn a_client_that_never_reads_is_given_up_in_time() {
    let limits = Limits::default().with_send_timeout(Duration::from_millis(300));
    let server = Server::start(limits, Echo);
    let mut deaf = send_without_reading(&server);
    wait_until("the connection is closed", || deaf.try_send(&[0; 1], &[]).is_err_and(|error| is_broken_pipe(&error)));
}

fn is_broken_pipe(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::BrokenPipe
}

/// Whether a client could send more: whether the server reads what it sends.
fn is_writable(client: &Client) -> bool {
    let mut writable = [PollFd::new(&client.stream, PollFlags::OUT)];
    poll(&mut writable, Some(&Timespec::default())).unwrap() > 0
}

/// Panics, or has no answer.
struct Broken;

impl PrManager for Broken {
    fn execute(&self, _device: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        match command.cdb().service_action() {
            0 => Err(Error::outcome_unknown("ask the unit").because("it is on fire")),
            1 => panic!("a panic that a test wants"),
            _ => Ok(Completion::Good(Vec::new())),
        }
    }
}

#[test]
fn a_manager_without_an_answer_is_a_communication_failure() {
    let server = Server::start(Limits::default().with_running(1).with_peer_share(1), Broken);
    let mut client = server.client();
    // One command may run: a panic that does not give its place back would make the next one BUSY.
    for _ in 0..5 {
        for service_action in [0, 1] {
            assert_eq!(client.ask(&reserve_in(service_action, 8), null()), check_condition(0xb, 0x08, 0x00));
        }
        assert_eq!(client.ask(&reserve_in(2, 8), null()).status, 0);
    }
    let mut other = server.client();
    assert_eq!(other.ask(&reserve_in(2, 8), null()).status, 0);
}

/// Returns more than it was asked for.
struct Generous;

impl PrManager for Generous {
    fn execute(&self, _device: BorrowedFd<'_>, _command: Command<'_>) -> Result<Completion, Error> {
        Ok(Completion::Good(vec![1; 8192]))
    }
}

#[test]
fn data_over_the_allocation_length_do_not_go_out() {
    let server = Server::start(Limits::default(), Generous);
    let mut client = server.client();
    for length in [0, 8, 8192] {
        assert_eq!(client.ask(&reserve_in(0, length), null()).data.len(), usize::from(length));
    }
    assert_eq!(client.ask(&reserve_out(0, &[0; 24]), null()).data, []);
    assert_eq!(client.ask(&any_cdb(0xff, 0), null()).data, []);
    assert!(client.is_silent());
}

#[test]
fn the_peer_is_who_connected() {
    let seen = Arc::new(Mutex::new(Vec::<Peer>::new()));
    let server = Server::start_with(Limits::default(), {
        let seen = Arc::clone(&seen);
        move |peer| {
            seen.lock().unwrap().push(*peer);
            Arc::new(Gate::default())
        }
    });
    server.client().ask(&reserve_in(0, 1), null());
    assert_another_process_is_served(&server.path);
    let seen = seen.lock().unwrap();
    let this = Peer {
        pid: std::process::id(),
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
    };
    assert_eq!(seen.len(), 2, "a manager for each connection");
    assert_eq!(seen[0], this);
    assert!(seen[1].pid != this.pid && seen[1].pid != 0 && seen[1].uid == this.uid);
}

#[test]
fn request_that_was_sent_before_the_stop_is_run_and_answered() {
    let gate = Gate::default();
    let server = Server::start(Limits::default(), gate.clone());
    let mut client = server.client();
    client.send(&reserve_in(HANG, 1), &[null().as_fd()]);
    client.send(&reserve_in(HANG, 2), &[null().as_fd()]);
    gate.wait_for(1);
    let draining = server.stop();
    gate.let_go(2);
    assert_eq!(client.answer(), io_process_terminated());
    assert_eq!(client.answer(), io_process_terminated());
    assert!(client.is_closed());
    assert_eq!(draining.wait(LONG), 0);
    assert_eq!(gate.began(), [1, 2]);
}

#[test]
fn the_end_does_not_wait_for_who_does_not_read() {
    let server = Server::start(Limits::default().with_send_timeout(LONG), Echo);
    let deaf = send_without_reading(&server);
    wait_until("nothing is read any more", || !is_writable(&deaf));
    server.stop().wait(LONG);
}

#[test]
fn nothing_to_drain_is_drained_at_once() {
    let server = Server::start(Limits::default(), Echo);
    let draining = server.stop();
    assert_eq!(draining.running(), 0);
    draining.wait(LONG);
}

#[test]
fn the_drain_ends_at_its_limit_while_a_command_hangs() {
    let gate = Gate::default();
    let server = Server::start(Limits::default(), gate.clone());
    let mut client = server.client();
    client.send(&reserve_in(HANG, 1), &[null().as_fd()]);
    gate.wait_for(1);
    let draining = server.stop();
    assert_eq!(draining.running(), 1);
    assert_eq!(draining.wait(Duration::from_millis(100)), 1);
    gate.let_go(1);
    assert_eq!(client.answer(), io_process_terminated());
}

#[test]
fn stopping_closes_idle_connections_and_delivers_what_runs() {
    let gate = Gate::default();
    let server = Server::start(Limits::default(), gate.clone());
    let (path, null) = (server.path.clone(), null());
    let mut idle = [server.connect(), server.client()];
    idle[1].ask(&reserve_in(0, 1), &null);
    let mut half = server.client();
    half.send(&reserve_out(0, &[0; 24])[..20], &[null.as_fd()]);
    let mut running: Vec<Client> = (0..2).map(|_| server.client()).collect();
    for client in &mut running {
        client.send(&reserve_in(HANG, 1), &[null.as_fd()]);
    }
    gate.wait_for(2);
    let draining = server.stop();
    assert_eq!(draining.running(), 2);
    for client in idle.iter_mut().chain([&mut half]) {
        assert!(client.is_closed());
    }
    assert!(std::os::unix::net::UnixStream::connect(&path).is_err(), "the socket still accepts connections");
    assert!(running.iter().all(Client::is_silent));
    let waiter = std::thread::spawn(move || draining.wait(LONG));
    gate.let_go(1);
    gate.wait_for(1);
    assert!(!waiter.is_finished(), "a command still runs");
    gate.let_go(1);
    assert_eq!(waiter.join().unwrap(), 0);
    for client in &mut running {
        assert_eq!(client.answer(), io_process_terminated());
        assert!(client.is_closed());
    }
}

#[test]
fn a_slow_sender_of_a_request_is_closed_in_time() {
    let limits = Limits::default().with_receive_timeout(Duration::from_millis(300));
    let server = Server::start(limits, Gate::default());
    let mut client = server.client();
    let request = reserve_out(0, &[0; 200]);
    let null = null();
    // Each byte comes long before the timeout, the last one long after it.
    client.send(&request[..1], &[null.as_fd()]);
    let is_closed = request[1..].iter().any(|byte| {
        std::thread::sleep(Duration::from_millis(20));
        client.try_send(&[*byte], &[]).is_err()
    });
    assert!(is_closed, "the server waited for {} ms", 20 * request.len());
}

#[derive(Clone, Debug)]
enum Ask {
    In(u8, u16),
    Out(Vec<u8>),
    Cleanup,
}

fn ask() -> impl Strategy<Value = Ask> {
    prop_oneof![
        (0u8..32, 0u16..300).prop_map(|(action, length)| Ask::In(action, length)),
        prop::collection::vec(any::<u8>(), 0..100).prop_map(Ask::Out),
        Just(Ask::Cleanup),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// An answer has the bytes that its command returned and no other. Earlier requests, and the pieces in which a client
    /// sends one, do not matter.
    #[test]
    fn answers_have_nothing_of_other_requests(asks in prop::collection::vec(ask(), 1..20), ahead: bool, piece in 1usize..40) {
        let server = Server::start(Limits::default(), Echo);
        let mut client = server.client();
        let null = null();
        let expected: Vec<Answer> = asks.iter().map(|ask| match ask {
            Ask::In(action, length) =>
                Answer { status: 0, sense: [0; 96], data: vec![*action; usize::from(*length)] },
            Ask::Out(list) => {
                let mut sense = [0; 96];
                sense[..4].copy_from_slice(&list.iter().map(|byte| u32::from(*byte)).sum::<u32>().to_be_bytes());
                Answer { status: 2, sense, data: Vec::new() }
            }
            Ask::Cleanup => Answer { status: 0, sense: [0; 96], data: Vec::new() },
        }).collect();
        let mut answers = Vec::new();
        for ask in &asks {
            let bytes = match ask {
                Ask::In(action, length) => reserve_in(*action, *length).to_vec(),
                Ask::Out(list) => reserve_out(1, list),
                Ask::Cleanup => any_cdb(0xff, 300).to_vec(),
            };
            let mut descriptors = &[null.as_fd()][..];
            for piece in bytes.chunks(piece) {
                client.send(piece, descriptors);
                descriptors = &[];
            }
            if !ahead {
                answers.push(client.answer());
            }
        }
        while answers.len() < asks.len() {
            answers.push(client.answer());
        }
        prop_assert_eq!(answers, expected);
        prop_assert!(client.is_silent());
    }
}
