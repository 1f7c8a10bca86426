//! Helpers that misbehave, written by the tests that use them, on real sockets.

#![allow(dead_code, reason = "every test program uses a part of it")]

use std::fs::File;
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;

use scsi_pr::{Cdb, Command, CommandBuf, Completion};
use scsi_pr_helper::client::Config;
use scsi_pr_helper::descriptor::{self, IoMode, Passed};
use scsi_pr_helper::wire::{self, Event, RequestDecoder};
use testing_support::{command, eventually};

pub(crate) use testing_support::DEADLINE as LONG;

/// Limits that no test runs into unless it means to.
pub(crate) fn patient() -> Config {
    let config = Config::default().with_attempts(1).with_pause(LONG).with_connect(LONG);
    config.with_turn(LONG).with_send(LONG).with_answer(LONG)
}

/// The actions of the clients of a [`FakeHelper`].
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) connections: AtomicUsize,
    /// Requests that came whole.
    pub(crate) requests: AtomicUsize,
}

/// A socket in a directory of its own; a function plays the helper, on a thread for each connection.
pub(crate) struct FakeHelper {
    path: PathBuf,
    seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    /// Every connection that a thread still plays on, so that they end with the helper.
    streams: Arc<Mutex<Vec<Weak<UnixStream>>>>,
    acceptor: Option<JoinHandle<()>>,
    _directory: Option<tempfile::TempDir>,
}

impl FakeHelper {
    pub(crate) fn new(play: impl Fn(Peer) -> Option<()> + Send + Sync + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut helper = Self::at(&directory.path().join("helper.sock"), play);
        helper._directory = Some(directory);
        helper
    }

    pub(crate) fn at(path: &Path, play: impl Fn(Peer) -> Option<()> + Send + Sync + 'static) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let (seen, stop, play) = (Arc::new(Seen::default()), Arc::new(AtomicBool::new(false)), Arc::new(play));
        let streams = Arc::<Mutex<Vec<Weak<UnixStream>>>>::default();
        let (path, accepted, stopped) = (path.to_owned(), Arc::clone(&seen), Arc::clone(&stop));
        let kept = Arc::clone(&streams);
        let acceptor = std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let stream = Arc::new(stream);
                kept.lock().unwrap().push(Arc::downgrade(&stream));
                let number = accepted.connections.fetch_add(1, Ordering::SeqCst);
                let (play, seen) = (Arc::clone(&play), Arc::clone(&accepted));
                std::thread::spawn(move || play(Peer { stream, number, seen, decoder: RequestDecoder::new() }));
            }
        });
        Self { path, seen, stop, streams, acceptor: Some(acceptor), _directory: None }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Ends every connection.
    pub(crate) fn hang_up(&self) {
        for stream in self.streams.lock().unwrap().drain(..).filter_map(|stream| stream.upgrade()) {
            // Its client may have closed it already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn requests(&self) -> usize {
        self.seen.requests.load(Ordering::SeqCst)
    }
}

impl Drop for FakeHelper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the acceptor, if it still listens.
        let _ = UnixStream::connect(&self.path);
        let ended = self.acceptor.take().unwrap().join();
        self.hang_up();
        std::fs::remove_file(&self.path).unwrap();
        assert!(std::thread::panicking() || ended.is_ok());
    }
}

/// The helper's end of one connection. `None` from its functions means that the client is gone.
pub(crate) struct Peer {
    pub(crate) stream: Arc<UnixStream>,
    /// Which connection this is, from 0.
    pub(crate) number: usize,
    seen: Arc<Seen>,
    decoder: RequestDecoder,
}

impl Peer {
    /// The helper's end of a connection that was not accepted from a listener.
    pub(crate) fn over(stream: UnixStream) -> Self {
        Self { stream: Arc::new(stream), number: 0, seen: Arc::default(), decoder: RequestDecoder::new() }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> Option<()> {
        (&*self.stream).write_all(bytes).ok()
    }

    /// The handshake; the features that the client wants.
    pub(crate) fn shake(&mut self, offered: u32) -> Option<u32> {
        self.send(&wire::feature_word(offered))?;
        self.wanted_features()
    }

    /// The client's half of the handshake.
    pub(crate) fn wanted_features(&mut self) -> Option<u32> {
        match self.event()? {
            (Event::Negotiated(features), _) => Some(features),
            (event, _) => panic!("{event:?} in place of a handshake"),
        }
    }

    /// The next request and its descriptor.
    pub(crate) fn request(&mut self) -> Option<(CommandBuf, OwnedFd)> {
        match self.event()? {
            (Event::Request(request), descriptor) => {
                self.seen.requests.fetch_add(1, Ordering::SeqCst);
                Some((request, descriptor.expect("every request has a descriptor")))
            }
            (event, _) => panic!("{event:?} in place of a request"),
        }
    }

    fn event(&mut self) -> Option<(Event, Option<OwnedFd>)> {
        let mut descriptor = None;
        loop {
            let (count, passed) = descriptor::receive(&self.stream, self.decoder.wanted(), IoMode::Blocking).ok()?;
            match passed {
                Passed::None => {}
                Passed::One(one) => assert!(descriptor.replace(one).is_none(), "a second descriptor"),
                other => panic!("{other:?}"),
            }
            if count == 0 {
                return None;
            }
            if let Some(event) = self.decoder.advance(count).expect("the client keeps to the protocol") {
                return Some((event, descriptor));
            }
        }
    }

    pub(crate) fn answer(&mut self, request: &CommandBuf, completion: &Completion) -> Option<()> {
        self.send(&response(request.cdb(), completion))
    }

    /// Waits until the client has closed the connection.
    pub(crate) fn wait_for_end(&mut self) {
        let mut room = [0; 64];
        while matches!(descriptor::receive(&self.stream, &mut room, IoMode::Blocking), Ok((1.., _))) {}
    }
}

/// A response as it goes over the wire.
pub(crate) fn response(cdb: &Cdb, completion: &Completion) -> Vec<u8> {
    let (header, data) = wire::encode_response(completion, cdb.allocation_length());
    [&header[..], data].concat()
}

/// A header that says whatever is wanted.
pub(crate) fn header(result: i32, size: i32) -> Vec<u8> {
    let mut bytes = [result.to_be_bytes(), size.to_be_bytes()].concat();
    bytes.resize(wire::RESPONSE_HEADER_LENGTH, 0);
    bytes
}

/// Plays a good helper: answers PERSISTENT RESERVE IN with as many bytes as were asked for, each byte 15 of the CDB.
pub(crate) fn play_well(mut peer: Peer) -> Option<()> {
    peer.shake(0)?;
    loop {
        let (request, _) = peer.request()?;
        let completion = good(request.cdb());
        peer.answer(&request, &completion)?;
    }
}

/// The answer of [`play_well`].
pub(crate) fn good(cdb: &Cdb) -> Completion {
    Completion::Good(vec![cdb.bytes()[15]; cdb.allocation_length()])
}

/// PERSISTENT RESERVE IN, READ KEYS; `mark` is byte 15, which no device looks at.
pub(crate) fn read_keys(allocation_length: u16, mark: u8) -> Cdb {
    let mut bytes = command::reserve_in(0, allocation_length);
    bytes[15] = mark;
    Cdb::new(bytes).unwrap()
}

/// PERSISTENT RESERVE IN with room for 8 bytes.
pub(crate) fn read_keys_command() -> Command<'static> {
    Command::new(read_keys(8, 0x55), &[]).unwrap()
}

/// PERSISTENT RESERVE OUT, REGISTER, with this list.
pub(crate) fn register(list: &[u8]) -> Command<'_> {
    Command::new(Cdb::new(command::reserve_out(0, 0, list.len())).unwrap(), list).unwrap()
}

/// A device that refuses every ioctl.
pub(crate) fn device() -> File {
    testing_support::null()
}

/// Waits until `condition` holds.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    eventually(what, || condition().then_some(()));
}
