//! multipathd's socket (multipath-tools, libmpathcmd): a length in the machine's own `size_t`, then as many bytes of text
//! with a NUL at their end, in each direction.
//!
//! Each question has a deadline, and the answers are not trusted: while multipathd is down, any process may listen at its
//! abstract address, so only a listener of root is asked.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt::socket_peercred,
};

/// The addresses of multipathd, as libmpathcmd names them: `@` stands for the abstract namespace, which belongs to a network
/// namespace. From 0.12 on, multipathd listens at a path too, which a container can be given.
const DEFAULT_SOCKETS: [&str; 2] = ["/run/multipathd.socket", "@/org/kernel/linux/storage/multipathd"];

/// The environment variable with the only address that libmpathcmd uses, from 0.12 on.
const SOCKET_VARIABLE: &str = "MULTIPATH_SOCKET_NAME";

/// More than multipathd itself gives a command (`uxsock_timeout`, 4 s).
const DAEMON_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest answer that is read. The configuration takes some kilobytes, and some hundred bytes for each map.
const MAX_REPLY: usize = 4 << 20;

/// Asks multipathd, each question over a connection of its own.
#[derive(Clone, Debug)]
pub(super) struct Daemon {
    /// The addresses, in the order in which they are tried.
    sockets: Vec<String>,
    timeout: Duration,
}

/// Why multipathd did not answer.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// No process listens at these addresses; the error of the last one.
    NotListening(Vec<String>, io::Error),
    /// It does not accept, take or answer in time.
    Timeout(Duration),
    /// The listener is a process of this user, not of root.
    NotRoot(u32),
    /// It could not do it; its answer.
    Refused(String),
    /// It closed the connection, or sent no valid answer.
    Malformed(String),
    /// The connection failed.
    Broken(io::Error),
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotListening(sockets, error) => match &sockets[..] {
                [socket] => {
                    write!(f, "multipathd does not listen at {socket}, the value of {SOCKET_VARIABLE} ({error})")
                }
                _ => write!(f, "multipathd does not listen ({error})"),
            },
            Self::Timeout(timeout) => write!(f, "multipathd did not answer within {timeout:?}"),
            Self::NotRoot(uid) => write!(f, "a process of user {uid}, not of root, listens in place of multipathd"),
            Self::Refused(reply) => write!(f, "multipathd refused: {:?}", reply.trim_end()),
            Self::Malformed(what) => write!(f, "multipathd sent no valid answer: {what}"),
            Self::Broken(error) => write!(f, "the connection to multipathd failed: {error}"),
        }
    }
}

impl Daemon {
    /// At the address that the environment names, or at the default ones.
    pub(super) fn new() -> Self {
        Self::at(std::env::var(SOCKET_VARIABLE).ok())
    }

    fn at(socket: Option<String>) -> Self {
        let sockets = match socket.filter(|socket| !socket.is_empty()) {
            Some(socket) => vec![socket],
            None => DEFAULT_SOCKETS.map(str::to_owned).into(),
        };
        Self { sockets, timeout: DAEMON_TIMEOUT }
    }

    /// multipathd's configuration, with the sections of the present maps.
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

    /// The paths that multipathd takes to work, by their kernel names: it has not noticed that they are dead.
    pub(super) fn working_paths(&self) -> Result<Vec<String>, Unanswered> {
        let reply = self.ask("show paths raw format %d:%T")?;
        if reply.trim_end() == "fail" {
            return Err(Unanswered::Refused(reply));
        }
        let paths = reply.lines().filter_map(|line| line.trim().split_once(':'));
        // `ghost` is a path in standby.
        Ok(paths.filter(|(_, state)| matches!(*state, "ready" | "ghost")).map(|(name, _)| name.to_owned()).collect())
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
        let end = Instant::now() + self.timeout;
        let stream = self.connect()?;
        converse(&stream, command, end).map_err(|error| match error {
            Unanswered::Broken(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Unanswered::Timeout(self.timeout)
            }
            other => other,
        })
    }

    /// A connection to the first address that has a listener.
    fn connect(&self) -> Result<UnixStream, Unanswered> {
        let not_listening = |error| Unanswered::NotListening(self.sockets.clone(), error);
        let mut last = not_listening(ErrorKind::NotFound.into());
        for socket in &self.sockets {
            match address(socket).and_then(|address| dial(&address)) {
                Ok(stream) => return of_root(stream, 0),
                // Its queue of connections is full.
                Err(error) if error.kind() == ErrorKind::WouldBlock => last = Unanswered::Timeout(self.timeout),
                Err(error) => last = not_listening(error),
            }
        }
        Err(last)
    }
}

fn address(socket: &str) -> io::Result<SocketAddrUnix> {
    Ok(match socket.strip_prefix('@') {
        Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes())?,
        None => SocketAddrUnix::new(socket)?,
    })
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

/// `stream`, if its peer is a process of user `root`.
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
    if !(1..=MAX_REPLY).contains(&length) {
        return Err(Unanswered::Malformed(format!("a text of {length} bytes")));
    }
    let mut text = receive(stream, length, end)?;
    text.truncate(text.iter().position(|byte| *byte == 0).unwrap_or(text.len()));
    String::from_utf8(text).map_err(|_| Unanswered::Malformed("a text that is not UTF-8".to_owned()))
}

/// Reads `length` bytes. It allocates memory as they come, not as they are announced.
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

/// The time until `end`; never zero, which would mean no time-out.
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

    /// The result of a conversation whose peer reads the question, sends these bytes and closes.
    fn answered_with(reply: &[u8]) -> Result<String, Unanswered> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut question = [0; size_of::<usize>() + 5];
                theirs.read_exact(&mut question).unwrap();
                assert_eq!(question[..size_of::<usize>()], 5_usize.to_ne_bytes());
                assert_eq!(&question[size_of::<usize>()..], b"ping\0");
                // The client closes once it has read enough.
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
        // Bytes after the first NUL are ignored, and a missing NUL is accepted.
        assert_eq!(answered_with(&framed(b"ok\n\0\xff")).unwrap(), "ok\n");
        assert_eq!(answered_with(&framed(b"ok")).unwrap(), "ok");
        let long = "x".repeat(100_000);
        assert_eq!(answered_with(&framed(long.as_bytes())).unwrap(), long);
    }

    #[test]
    fn an_invalid_answer_is_an_error() {
        let too_long = (MAX_REPLY + 1).to_ne_bytes();
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
    fn a_slow_peer_is_given_up_at_the_deadline() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let error = converse(&ours, "ping", Instant::now() + Duration::from_millis(20)).unwrap_err();
        assert!(matches!(error, Unanswered::Broken(_)), "{error:?}");
        // One that sends a byte now and then is slow, too.
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
        // So is one that does not read.
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let long = "x".repeat(16 << 20);
        let error = converse(&ours, &long, Instant::now() + Duration::from_millis(20)).unwrap_err();
        assert!(matches!(error, Unanswered::Broken(_)), "{error:?}");
    }

    #[test]
    fn a_listener_of_another_user_is_refused() {
        let uid = rustix::process::getuid().as_raw();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let ours = of_root(ours, uid).unwrap();
        let error = of_root(ours, uid + 1).unwrap_err();
        assert!(error.to_string().contains(&format!("user {uid}")), "{error}");
    }

    #[test]
    fn the_address_of_the_environment_is_the_only_one() {
        assert_eq!(Daemon::at(None).sockets, DEFAULT_SOCKETS);
        assert_eq!(Daemon::at(Some(String::new())).sockets, DEFAULT_SOCKETS);
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let daemon = Daemon::at(Some(socket.to_str().unwrap().to_owned()));
        let error = daemon.connect().unwrap_err();
        let line = error.to_string();
        assert!(line.contains(socket.to_str().unwrap()) && line.contains("MULTIPATH_SOCKET_NAME"), "{line}");
        // The listener is found there; whether it is root's depends on the user of this test.
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(matches!(daemon.connect(), Ok(_) | Err(Unanswered::NotRoot(_))));
        let name = format!("scsi-pr/test/abstract/{}", std::process::id());
        let daemon = Daemon::at(Some(format!("@{name}")));
        assert!(matches!(daemon.connect(), Err(Unanswered::NotListening(..))));
        use std::os::linux::net::SocketAddrExt;
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
        assert!(matches!(daemon.connect(), Ok(_) | Err(Unanswered::NotRoot(_))));
    }

    #[test]
    fn an_address_without_a_listener_is_an_error() {
        let address = SocketAddrUnix::new("/nonexistent/multipathd.socket").unwrap();
        assert_eq!(dial(&address).unwrap_err().kind(), ErrorKind::NotFound);
        let address = SocketAddrUnix::new_abstract_name(b"/scsi-pr/test/unused").unwrap();
        assert_eq!(dial(&address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_full_queue_does_not_block() {
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
