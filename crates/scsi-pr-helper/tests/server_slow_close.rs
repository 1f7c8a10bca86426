//! [`scsi_pr_helper::serve`] whose clients pass descriptors that take long to close. A test program of its own: no process is
//! forked here, which would have copies of these descriptors and close them last.

mod support;

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use scsi_pr_helper::Limits;
use support::*;

/// The tests of this program run one after the other: one of them counts the descriptors of the process.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    wait_until("the server of the test before has closed everything", || threads() == 0);
    turn
}

/// A socket whose last close takes until its peer reads, and that peer.
fn slow_to_close() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    while stream.write(&[0; 65536]).is_ok() {}
    stream.set_nonblocking(false).unwrap();
    rustix::net::sockopt::set_socket_linger(&stream, Some(LONG)).unwrap();
    (stream, peer)
}

/// Has the server of `client` close such a socket; its peer.
fn send_slow_to_close(client: &mut Client, bytes: &[u8]) -> TcpStream {
    let (stream, reader) = slow_to_close();
    // In two pieces: until the second one comes, the server has the descriptor or it is on its way there, so that this
    // process does not close the last of it.
    client.send(&bytes[..1], &[stream.as_fd()]);
    drop(stream);
    client.send(&bytes[1..], &[]);
    reader
}

#[test]
fn slow_close_holds_up_only_its_own_connection() {
    let _turn = alone();
    let server = Server::start(Limits::default().with_receive_timeout(Duration::from_millis(100)), Gate::default());
    let mut other = server.client();
    other.ask(&reserve_in(0, 1), null());
    // Closed once its command has run; when its request is refused; when the time for a request is over.
    let (mut ran, mut refused, mut half) = (server.client(), server.client(), server.client());
    let readers = [
        send_slow_to_close(&mut ran, &reserve_in(0, 1)),
        send_slow_to_close(&mut refused, &any_cdb(0x12, 0)),
        send_slow_to_close(&mut half, &reserve_in(0, 1)[..8]),
    ];
    for _ in 0..50 {
        assert_eq!(other.ask(&reserve_in(0, 1), null()), io_process_terminated());
        assert_eq!(server.client().ask(&reserve_in(0, 1), null()), io_process_terminated());
    }
    assert!(ran.is_silent(), "closing its descriptor takes long indeed");
    // The others know it although their descriptors are not closed yet.
    for client in [&mut refused, &mut half] {
        assert!(client.is_closed());
    }
    drop(readers);
    assert_eq!(ran.answer(), io_process_terminated());
}

/// Descriptors that the server has not read are closed with the socket.
#[test]
fn slow_close_of_unread_descriptors_holds_up_no_other() {
    let _turn = alone();
    let server = Server::start(Limits::default(), Gate::default());
    let mut other = server.client();
    other.ask(&reserve_in(0, 1), null());
    let mut kept = Vec::new();
    for _ in 0..5 {
        let (stream, reader) = slow_to_close();
        let mut client = server.connect();
        // Three messages in one: the first breaks the protocol, and what follows is not read.
        client.send(&[0; 4], &[]);
        let (cdb, stream_fd) = (any_cdb(0x12, 0), [stream.as_fd()]);
        client.send(&cdb[..15], &[null().as_fd()]);
        let _ = client.try_send(&cdb[15..], &[]).and_then(|()| client.try_send(&[0; 8], &stream_fd));
        kept.push((std::thread::spawn(move || drop(stream)), reader));
        assert!(client.is_closed());
    }
    for _ in 0..20 {
        assert_eq!(other.ask(&reserve_in(0, 1), null()), io_process_terminated());
        assert_eq!(server.client().ask(&reserve_in(0, 1), null()), io_process_terminated());
    }
    for (closing, reader) in kept {
        drop(reader);
        closing.join().unwrap();
    }
}

#[test]
fn slow_close_of_refused_connections_holds_up_no_other() {
    let _turn = alone();
    let server = Server::start(Limits::default().with_connections(2).with_peer_share(1), Gate::default());
    let mut clients = vec![server.client(), server.client()];
    for client in &mut clients {
        client.ask(&reserve_in(0, 1), null());
    }
    let mut kept = Vec::new();
    for _ in 0..20 {
        let (stream, reader) = slow_to_close();
        let mut refused = server.connect_unheard();
        // The server may have refused it before.
        let _ = refused.try_send(&[0; 4], &[stream.as_fd()]);
        kept.push((std::thread::spawn(move || drop(stream)), reader));
        assert!(refused.is_closed());
    }
    drop(clients.pop());
    clients.push(client_once_there_is_room(&server.path));
    for client in &mut clients {
        assert_eq!(client.ask(&reserve_in(0, 1), null()), io_process_terminated());
    }
    for (closing, reader) in kept {
        drop(reader);
        closing.join().unwrap();
    }
}

#[test]
fn shutdown_does_not_wait_for_connections_that_were_never_accepted() {
    let _turn = alone();
    // Refused connections that hang, as many as may, stop the acceptor.
    let server = Server::start(Limits::default().with_connections(1).with_peer_share(1), Gate::default());
    let mut served = server.client();
    served.ask(&reserve_in(0, 1), null());
    let mut kept = Vec::new();
    for _ in 0..5 {
        // Closing the listener closes what waits there, with the descriptors that were sent.
        let (stream, reader) = slow_to_close();
        let mut waiting = server.connect_unheard();
        let _ = waiting.try_send(&[0; 4], &[stream.as_fd()]);
        kept.push((std::thread::spawn(move || drop(stream)), reader, waiting));
    }
    let before = Instant::now();
    assert_eq!(server.stop().wait(LONG), 0);
    assert!(before.elapsed() < LONG / 2, "it waited for a socket that takes long to close");
    for (closing, reader, _) in kept {
        drop(reader);
        closing.join().unwrap();
    }
}

/// The open descriptors of this process.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The kernel passes no more than two descriptors of one message, whatever their number and however long they take to close.
#[test]
fn message_brings_at_most_two_descriptors() {
    let _turn = alone();
    let server = Server::start(Limits::default(), Gate::default());
    let (streams, readers): (Vec<_>, Vec<_>) = (0..16).map(|_| slow_to_close()).unzip();
    let mut client = server.client();
    client.ask(&reserve_in(0, 1), null());
    let before = descriptors();
    let passed: Vec<_> = streams.iter().map(AsFd::as_fd).collect();
    client.send(&reserve_in(0, 1), &passed);
    // A thread for each: the close of some waits for the peer, that of others for the server.
    let closing: Vec<_> = streams.into_iter().map(|stream| std::thread::spawn(move || drop(stream))).collect();
    wait_until("this process has closed its own", || descriptors() <= before - 16 + 2);
    for _ in 0..100 {
        assert!(descriptors() <= before - 16 + 2);
        std::thread::sleep(Duration::from_millis(2));
    }
    drop(readers);
    assert!(client.is_closed());
    closing.into_iter().for_each(|thread| thread.join().unwrap());
}
