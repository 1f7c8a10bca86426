//! multipathd, asked over its socket (multipath-tools, libmpathcmd): a length in the machine's own `size_t`, then as many
//! bytes of text with a NUL at their end, each way.
//!
//! Nothing here waits longer than it was told to, and what comes back is not trusted: the abstract socket may be taken by
//! anybody while multipathd is down, so only one of root's is asked.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt::socket_peercred,
};

/// Where multipathd listens: from 0.12 on here too, so that a container can be given it.
const PATH: &str = "/run/multipathd.socket";
/// An abstract address, of one network namespace.
const ABSTRACT: &str = "/org/kernel/linux/storage/multipathd";

/// More than multipathd itself gives a command (`uxsock_timeout`, 4 s).
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest answer that is read. The configuration takes some kilobytes, and some hundred bytes for each map.
const LONGEST: usize = 4 << 20;

/// A way to multipathd. Each question is asked over a connection of its own.
#[derive(Clone, Debug)]
pub(super) struct Daemon {
    patience: Duration,
}

/// Why multipathd did not answer.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// There is nobody at its addresses; of the last, the error.
    NotThere(io::Error),
    /// It does not accept, take or answer in time.
    TooSlow(Duration),
    /// Whoever is there is not root.
    NotRoot(u32),
    /// It could not do it: what it says.
    Refused(String),
    /// It closed the connection, or sent what is no answer.
    Malformed(String),
    /// The conversation broke off.
    Broken(io::Error),
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotThere(error) => write!(f, "multipathd does not listen ({error})"),
            Self::TooSlow(patience) => write!(f, "multipathd did not answer within {patience:?}"),
            Self::NotRoot(uid) => write!(f, "user {uid}, not root, listens in place of multipathd"),
            Self::Refused(reply) => write!(f, "multipathd refused: {:?}", reply.trim_end()),
            Self::Malformed(what) => write!(f, "what multipathd answered is no answer: {what}"),
            Self::Broken(error) => write!(f, "the connection to multipathd broke: {error}"),
        }
    }
}

impl Daemon {
    pub(super) const fn new() -> Self {
        Self { patience: PATIENCE }
    }

    /// The configuration that multipathd goes by, with what it has for the maps that there are.
    pub(super) fn configuration(&self) -> Result<String, Unanswered> {
        // An error is one word; a configuration has sections.
        let reply = self.ask("show config local")?;
        if reply.contains('{') { Ok(reply) } else { Err(Unanswered::Refused(reply)) }
    }

    /// Whether multipathd registers the map's key on paths that appear or come back.
    pub(super) fn registers_paths(&self, map: &str) -> Result<bool, Unanswered> {
        let reply = self.ask(&format!("getprstatus map {map}"))?;
        match reply.trim_end() {
            // Up to 0.12, and from 0.13 on.
            "1" | "set" => Ok(true),
            "0" | "unset" | "unknown" => Ok(false),
            _ => Err(Unanswered::Refused(reply)),
        }
    }

    /// Has multipathd forget that the map holds its reservation.
    pub(super) fn forget_holder(&self, map: &str) -> Result<(), Unanswered> {
        self.order(&format!("unsetprhold map {map}"))
    }

    /// Has multipathd forget the key of the map.
    pub(super) fn forget_key(&self, map: &str) -> Result<(), Unanswered> {
        self.order(&format!("unsetprkey map {map}"))
    }

    /// Has multipathd no longer register the map's key on paths that appear or come back.
    pub(super) fn stop_registering_paths(&self, map: &str) -> Result<(), Unanswered> {
        self.order(&format!("unsetprstatus map {map}"))
    }

    fn order(&self, command: &str) -> Result<(), Unanswered> {
        let reply = self.ask(command)?;
        if reply.trim_end() == "ok" { Ok(()) } else { Err(Unanswered::Refused(reply)) }
    }

    fn ask(&self, command: &str) -> Result<String, Unanswered> {
        let end = Instant::now() + self.patience;
        let stream = find(self.patience)?;
        let reply = converse(&stream, command, end).map_err(|error| match error {
            Unanswered::Broken(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Unanswered::TooSlow(self.patience)
            }
            other => other,
        })?;
        Ok(reply)
    }
}

/// A connection to the first address at which somebody listens.
fn find(patience: Duration) -> Result<UnixStream, Unanswered> {
    let addresses = [SocketAddrUnix::new(PATH), SocketAddrUnix::new_abstract_name(ABSTRACT.as_bytes())];
    let mut last = Unanswered::NotThere(ErrorKind::NotFound.into());
    for address in addresses {
        match address.map_err(io::Error::from).and_then(|address| dial(&address)) {
            Ok(stream) => return of_root(stream, 0),
            // Its queue of connections is full.
            Err(error) if error.kind() == ErrorKind::WouldBlock => last = Unanswered::TooSlow(patience),
            Err(error) => last = Unanswered::NotThere(error),
        }
    }
    Err(last)
}

/// Connects without waiting for room.
fn dial(address: &SocketAddrUnix) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, address)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// `stream`, if user `root` is at its other end.
fn of_root(stream: UnixStream, root: u32) -> Result<UnixStream, Unanswered> {
    let peer = socket_peercred(&stream).map_err(|errno| Unanswered::Broken(errno.into()))?;
    match peer.uid.as_raw() {
        uid if uid == root => Ok(stream),
        uid => Err(Unanswered::NotRoot(uid)),
    }
}

/// Asks and reads the answer, until `end`.
fn converse(mut stream: &UnixStream, command: &str, end: Instant) -> Result<String, Unanswered> {
    let mut question = (command.len() + 1).to_ne_bytes().to_vec();
    question.extend(command.as_bytes());
    question.push(0);
    stream.set_write_timeout(Some(left(end)?)).map_err(Unanswered::Broken)?;
    stream.write_all(&question).map_err(Unanswered::Broken)?;

    let length = receive(stream, size_of::<usize>(), end)?;
    let length = usize::from_ne_bytes(length.try_into().expect("as long as was asked for"));
    if !(1..=LONGEST).contains(&length) {
        return Err(Unanswered::Malformed(format!("a text of {length} bytes")));
    }
    let mut text = receive(stream, length, end)?;
    text.truncate(text.iter().position(|byte| *byte == 0).unwrap_or(text.len()));
    String::from_utf8(text).map_err(|_| Unanswered::Malformed("a text that is not UTF-8".to_owned()))
}

/// Exactly `length` bytes. Memory is taken as they come, not as they are announced.
fn receive(mut stream: &UnixStream, length: usize, end: Instant) -> Result<Vec<u8>, Unanswered> {
    let mut bytes = Vec::new();
    let mut piece = [0; 8192];
    while bytes.len() < length {
        stream.set_read_timeout(Some(left(end)?)).map_err(Unanswered::Broken)?;
        let room = piece.len().min(length - bytes.len());
        match stream.read(&mut piece[..room]) {
            Ok(0) => return Err(Unanswered::Malformed(format!("{} of {length} bytes", bytes.len()))),
            Ok(count) => bytes.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(Unanswered::Broken(error)),
        }
    }
    Ok(bytes)
}

/// How much time there is until `end`; never zero, which would mean no time-out.
fn left(end: Instant) -> Result<Duration, Unanswered> {
    match end.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(Unanswered::Broken(ErrorKind::TimedOut.into())),
        left => Ok(left),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Shutdown;
    use std::thread;

    const SOON: Duration = Duration::from_secs(60);

    /// What a conversation brings when the peer, having read the question, sends these bytes and closes.
    fn answered_with(reply: &[u8]) -> Result<String, Unanswered> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut question = [0; size_of::<usize>() + 5];
                theirs.read_exact(&mut question).unwrap();
                assert_eq!(question[..size_of::<usize>()], 5_usize.to_ne_bytes());
                assert_eq!(&question[size_of::<usize>()..], b"ping\0");
                // Whoever has heard enough closes.
                let _ = theirs.write_all(reply);
                let _ = theirs.shutdown(Shutdown::Write);
            });
            let result = converse(&ours, "ping", Instant::now() + SOON);
            drop(ours);
            result
        })
    }

    fn framed(text: &[u8]) -> Vec<u8> {
        [&text.len().to_ne_bytes()[..], text].concat()
    }

    #[test]
    fn an_answer_is_a_length_and_a_text() {
        assert_eq!(answered_with(&framed(b"ok\n\0")).unwrap(), "ok\n");
        // What follows the first NUL is not looked at, and a missing NUL is forgiven.
        assert_eq!(answered_with(&framed(b"ok\n\0\xff")).unwrap(), "ok\n");
        assert_eq!(answered_with(&framed(b"ok")).unwrap(), "ok");
        let long = "x".repeat(100_000);
        assert_eq!(answered_with(&framed(long.as_bytes())).unwrap(), long);
    }

    #[test]
    fn what_is_no_answer_is_told() {
        let too_long = (LONGEST + 1).to_ne_bytes();
        for reply in [
            &b""[..],
            &[1],
            &0_usize.to_ne_bytes(),
            &usize::MAX.to_ne_bytes(),
            &too_long,
            &framed(b"ok\n\0")[..10],
            &framed(b"\xff\xff\0"),
        ] {
            assert!(matches!(answered_with(reply), Err(Unanswered::Malformed(_))), "{reply:?}");
        }
    }

    #[test]
    fn nobody_is_waited_for_longer_than_that() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let error = converse(&ours, "ping", Instant::now() + Duration::from_millis(20)).unwrap_err();
        assert!(matches!(error, Unanswered::Broken(_)), "{error:?}");
        // Nor for who sends a byte now and then.
        let (mine, mut slow) = UnixStream::pair().unwrap();
        let drip = thread::spawn(move || {
            while slow.write_all(&[1]).is_ok() {
                thread::sleep(Duration::from_millis(1));
            }
        });
        let error = receive(&mine, usize::MAX, Instant::now() + Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, Unanswered::Broken(_)), "{error:?}");
        drop((mine, theirs));
        drip.join().unwrap();
        // Nor for who does not read.
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let long = "x".repeat(16 << 20);
        let error = converse(&ours, &long, Instant::now() + Duration::from_millis(20)).unwrap_err();
        assert!(matches!(error, Unanswered::Broken(_)), "{error:?}");
    }

    #[test]
    fn only_root_is_believed() {
        let uid = rustix::process::getuid().as_raw();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let ours = of_root(ours, uid).unwrap();
        let error = of_root(ours, uid + 1).unwrap_err();
        assert!(error.to_string().contains(&format!("user {uid}")), "{error}");
    }

    #[test]
    fn an_address_without_a_listener_is_told() {
        let address = SocketAddrUnix::new("/nonexistent/multipathd.socket").unwrap();
        assert_eq!(dial(&address).unwrap_err().kind(), ErrorKind::NotFound);
        let address = SocketAddrUnix::new_abstract_name(b"/scsi-pr/test/nobody-is-here").unwrap();
        assert_eq!(dial(&address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_full_queue_is_not_waited_for() {
        use rustix::net::{bind, listen};
        let name = format!("/scsi-pr/test/full/{}", std::process::id());
        let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
        let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        bind(&listener, &address).unwrap();
        listen(&listener, 0).unwrap();
        let mut connected = Vec::new();
        let error = loop {
            match dial(&address) {
                Ok(stream) => connected.push(stream),
                Err(error) => break error,
            }
            assert!(connected.len() < 100, "the queue has no end");
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_none(reply in prop::collection::vec(any::<u8>(), 0..40), framing: bool) {
            let reply = if framing { framed(&reply) } else { reply };
            match answered_with(&reply) {
                Ok(text) => prop_assert!(!text.contains('\0')),
                Err(error) => prop_assert!(matches!(error, Unanswered::Malformed(_)), "{:?}", error),
            }
        }
    }
}
