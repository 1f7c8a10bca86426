//! The socket for metrics: one thread answers a few clients at once, so that a client that hangs delays no other.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use scsi_pr_daemon::socket::Access;

use super::Metrics;
use crate::message::{Message, Result, reason};

/// Its owner is the user that starts the helper. Its group is that of a new file: that of the directory, if the directory
/// has the set-group-ID bit.
pub(crate) const ACCESS: Access = Access::Exactly { mode: 0o660, group: None };

const STACK: usize = 128 << 10;

/// The number of clients that are served at once. A further one takes the place of the oldest.
const MAX_CLIENTS: usize = 16;

/// The times that a client may take.
#[derive(Clone, Copy)]
struct Timeouts {
    /// For the request. A client that has not asked for HTTP then gets plain text.
    request: Duration,
    /// For reading the answer.
    answer: Duration,
}

impl Timeouts {
    const DEFAULT: Self = Self { request: Duration::from_secs(1), answer: Duration::from_secs(2) };
}

/// A request is read up to this length: what follows is not needed.
const MAX_REQUEST: usize = 8192;

/// The time after which poll(2) or accept(2) is tried again that had no room.
const BACK_OFF: Duration = Duration::from_millis(500);

/// Starts the thread that answers clients of `listener` until the process ends.
///
/// # Errors
///
/// No thread can be started.
pub(crate) fn serve(listener: OwnedFd, metrics: Metrics) -> Result<()> {
    serve_within(listener.into(), metrics, Timeouts::DEFAULT)
}

fn serve_within(listener: UnixListener, metrics: Metrics, timeouts: Timeouts) -> Result<()> {
    listener
        .set_nonblocking(true)
        .map_err(|error| Message::new(format!("Failed to prepare the socket for metrics: {}", reason(error))))?;
    let mut server = Server { listener, clients: VecDeque::new(), metrics, timeouts };
    let serve = move || {
        loop {
            server.wait();
            server.accept();
            server.advance();
        }
    };
    thread::Builder::new()
        .name("pr-metrics".into())
        .stack_size(STACK)
        .spawn(serve)
        .map(drop)
        .map_err(|error| Message::new(format!("Failed to start a thread for metrics: {}", reason(error))))
}

/// The listener, and the clients that have no whole answer yet, the oldest first.
struct Server {
    listener: UnixListener,
    clients: VecDeque<Client>,
    metrics: Metrics,
    timeouts: Timeouts,
}

impl Server {
    /// Waits until a client comes, can be read or written, or has taken too long.
    fn wait(&self) {
        let mut events = vec![PollFd::new(&self.listener, PollFlags::IN)];
        events.extend(self.clients.iter().map(|client| PollFd::new(&client.stream, client.phase.events())));
        let deadline = self.clients.iter().map(|client| client.deadline).min();
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec::try_from(left).expect("a deadline is near"));
        if let Err(errno) = poll(&mut events, timeout.as_ref())
            && errno != Errno::INTR
        {
            thread::sleep(BACK_OFF);
        }
    }

    fn accept(&mut self) {
        match self.listener.accept() {
            Ok((stream, _)) if stream.set_nonblocking(true).is_ok() => {
                if self.clients.len() == MAX_CLIENTS {
                    self.clients.pop_front();
                }
                self.clients.push_back(Client::new(stream, self.timeouts));
            }
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted
                ) => {}
            Err(_) => thread::sleep(BACK_OFF),
        }
    }

    /// Reads and writes as far as that is possible without waiting.
    fn advance(&mut self) {
        self.clients.retain_mut(|client| client.advance(&self.metrics, self.timeouts) == Progress::Waits);
    }
}

/// A client and its request or answer.
struct Client {
    stream: UnixStream,
    phase: Phase,
    /// The end of the phase.
    deadline: Instant,
}

enum Phase {
    /// The bytes that were received.
    Request(Vec<u8>),
    /// The bytes that are not yet sent.
    Answer(Vec<u8>),
}

impl Phase {
    const fn events(&self) -> PollFlags {
        match self {
            Self::Request(_) => PollFlags::IN,
            Self::Answer(_) => PollFlags::OUT,
        }
    }
}

/// Whether a client waits, or has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Waits,
    /// It has its answer, has taken too long, or is gone.
    Ended,
}

impl Client {
    fn new(stream: UnixStream, timeouts: Timeouts) -> Self {
        Self { stream, phase: Phase::Request(Vec::new()), deadline: Instant::now() + timeouts.request }
    }

    fn advance(&mut self, metrics: &Metrics, timeouts: Timeouts) -> Progress {
        loop {
            let in_time = Instant::now() < self.deadline;
            match &mut self.phase {
                Phase::Request(request) => {
                    let mut room = [0; 1024];
                    let is_complete = match self.stream.read(&mut room) {
                        Ok(0) => true,
                        Ok(count) => {
                            request.extend(&room[..count]);
                            is_complete(request)
                        }
                        Err(error) if error.kind() == ErrorKind::Interrupted => false,
                        Err(error) if error.kind() == ErrorKind::WouldBlock && in_time => return Progress::Waits,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => true,
                        Err(_) => return Progress::Ended,
                    };
                    if is_complete || !in_time {
                        self.phase = Phase::Answer(answer(request, metrics));
                        self.deadline = Instant::now() + timeouts.answer;
                    }
                }
                Phase::Answer(rest) if rest.is_empty() => return Progress::Ended,
                Phase::Answer(rest) => match self.stream.write(rest) {
                    Ok(count) => drop(rest.drain(..count)),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock && in_time => return Progress::Waits,
                    Err(_) => return Progress::Ended,
                },
            }
        }
    }
}

const GET: &[u8] = b"GET ";

/// Whether no more has to be read before the answer.
fn is_complete(request: &[u8]) -> bool {
    let may_be_http = GET.starts_with(&request[..request.len().min(GET.len())]);
    // The header of HTTP is read to its end: to close a socket with unread bytes would reset the connection.
    !may_be_http || request.len() >= MAX_REQUEST || request.windows(4).any(|bytes| bytes == b"\r\n\r\n")
}

/// The text; as HTTP/1.0 if the request begins with `GET `.
fn answer(request: &[u8], metrics: &Metrics) -> Vec<u8> {
    let text = metrics.text();
    if !request.starts_with(GET) {
        return text.into_bytes();
    }
    let header = format!(
        "HTTP/1.0 200 OK\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        text.len()
    );
    (header + &text).into_bytes()
}

#[cfg(test)]
mod tests;
