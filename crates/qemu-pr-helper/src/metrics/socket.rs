//! The socket for metrics: one thread answers one client after the other, and gives each a few seconds.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use scsi_pr_daemon::socket::Access;

use super::Metrics;
use crate::message::{Message, Result, reason};

/// Its owner is the user that starts the helper. Its group is that of a new file: that of the directory, if the directory
/// has the set-group-ID bit.
pub(crate) const ACCESS: Access = Access::Exactly { mode: 0o660, group: None };

const STACK: usize = 128 << 10;

/// The times that a client may take.
#[derive(Clone, Copy)]
struct Timeouts {
    /// Silence, after which a client that has not asked for HTTP gets plain text.
    silence: Duration,
    /// The whole request.
    request: Duration,
    /// The whole answer.
    answer: Duration,
}

impl Timeouts {
    const DEFAULT: Self =
        Self { silence: Duration::from_secs(1), request: Duration::from_secs(2), answer: Duration::from_secs(2) };
}

/// A request is read up to this length: what follows is not needed.
const MAX_REQUEST: usize = 8192;

/// The time after which accept(2) is tried again that had no room.
const BACK_OFF: Duration = Duration::from_millis(500);

/// Starts the thread that answers clients of `listener` until the process ends.
///
/// # Errors
///
/// No thread can be started.
pub(crate) fn serve(listener: OwnedFd, metrics: Metrics) -> Result<()> {
    let listener = UnixListener::from(listener);
    let answer_all = move || {
        loop {
            match listener.accept() {
                // A client that goes away, or takes too long, has no answer.
                Ok((client, _)) => drop(answer(client, &metrics, Timeouts::DEFAULT)),
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(_) => thread::sleep(BACK_OFF),
            }
        }
    };
    thread::Builder::new()
        .name("pr-metrics".into())
        .stack_size(STACK)
        .spawn(answer_all)
        .map(drop)
        .map_err(|error| Message::new(format!("Failed to start a thread for metrics: {}", reason(error))))
}

/// Answers with the text; as HTTP/1.0 if the client begins with `GET `.
fn answer(mut client: UnixStream, metrics: &Metrics, timeouts: Timeouts) -> io::Result<()> {
    let is_http = read_request(&mut client, timeouts)?;
    let text = metrics.text();
    let header = match is_http {
        false => String::new(),
        true => format!(
            "HTTP/1.0 200 OK\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            text.len()
        ),
    };
    send(&mut client, (header + &text).as_bytes(), timeouts.answer)
}

/// Reads a request. Whether it is one of HTTP: others need not send one.
fn read_request(client: &mut UnixStream, timeouts: Timeouts) -> io::Result<bool> {
    const GET: &[u8] = b"GET ";
    client.set_read_timeout(Some(timeouts.silence))?;
    let end = Instant::now() + timeouts.request;
    let (mut request, mut room) = (Vec::new(), [0; 1024]);
    loop {
        match client.read(&mut room) {
            Ok(0) => break,
            Ok(count) => request.extend(&room[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
        let begins = GET.starts_with(&request[..request.len().min(GET.len())]);
        // The header of HTTP is read to its end: to close a socket with unread bytes would reset the connection.
        let is_complete = request.windows(4).any(|bytes| bytes == b"\r\n\r\n");
        if !begins || is_complete || request.len() >= MAX_REQUEST || Instant::now() >= end {
            break;
        }
    }
    Ok(request.starts_with(GET))
}

/// Sends all bytes, unless that takes longer than `timeout`.
fn send(client: &mut UnixStream, mut bytes: &[u8], timeout: Duration) -> io::Result<()> {
    client.set_write_timeout(Some(timeout))?;
    let end = Instant::now() + timeout;
    while !bytes.is_empty() {
        match client.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if Instant::now() >= end && !bytes.is_empty() {
            return Err(ErrorKind::TimedOut.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workers::Pool;
    use scsi_pr_linux::policy::Counters;
    use std::net::Shutdown;
    use std::sync::Arc;

    const SHORT: Timeouts = Timeouts {
        silence: Duration::from_millis(50),
        request: Duration::from_millis(100),
        answer: Duration::from_millis(100),
    };

    const LONG: Timeouts = Timeouts {
        silence: Duration::from_secs(60),
        request: Duration::from_secs(60),
        answer: Duration::from_secs(60),
    };

    fn metrics() -> Metrics {
        Metrics::new(Arc::new(Counters::with_metrics()), Arc::default(), Arc::new(Pool::new(None)))
    }

    /// The answer to a client that does `ask`.
    fn answer_to(timeouts: Timeouts, ask: impl FnOnce(&mut UnixStream)) -> String {
        let (mut client, theirs) = UnixStream::pair().unwrap();
        ask(&mut client);
        answer(theirs, &metrics(), timeouts).unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        text
    }

    fn is_plain(text: &str) -> bool {
        text.starts_with("# HELP ") && text.ends_with("\n# EOF\n")
    }

    #[test]
    fn client_that_sends_nothing_has_plain_text() {
        assert!(is_plain(&answer_to(SHORT, |_| {})));
        assert!(is_plain(&answer_to(LONG, |client| client.shutdown(Shutdown::Write).unwrap())));
        assert!(is_plain(&answer_to(SHORT, |client| client.write_all(b"GE").unwrap())));
    }

    #[test]
    fn client_that_asks_in_another_protocol_has_plain_text_at_once() {
        for request in ["metrics\n", "POST / HTTP/1.0\r\n", "GEX", "get / HTTP/1.0\r\n\r\n"] {
            let text = answer_to(LONG, |client| client.write_all(request.as_bytes()).unwrap());
            assert!(is_plain(&text), "{request}: {text}");
        }
    }

    #[test]
    fn http_request_has_an_http_answer() {
        for request in [&["GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"][..], &["GET / HTTP/1.0\r\n", "\r\n"]] {
            let text =
                answer_to(LONG, |client| request.iter().for_each(|part| client.write_all(part.as_bytes()).unwrap()));
            let (header, body) = text.split_once("\r\n\r\n").unwrap();
            let lines: Vec<&str> = header.split("\r\n").collect();
            assert_eq!(lines[0], "HTTP/1.0 200 OK");
            assert_eq!(lines[1], "Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8");
            assert_eq!(lines[2], format!("Content-Length: {}", body.len()));
            assert!(is_plain(body), "{body}");
        }
    }

    #[test]
    fn client_that_sends_without_end_is_answered_in_time() {
        let (mut client, mut theirs) = UnixStream::pair().unwrap();
        let sending = thread::spawn(move || {
            client.write_all(b"GET /").unwrap();
            while client.write_all(b"x").is_ok() {
                thread::sleep(Duration::from_millis(10));
            }
        });
        assert!(read_request(&mut theirs, SHORT).unwrap());
        drop(theirs);
        sending.join().unwrap();
        let (mut client, mut theirs) = UnixStream::pair().unwrap();
        client.write_all(&[b"GET ", &[b'x'; 3 * MAX_REQUEST][..]].concat()).unwrap();
        assert!(read_request(&mut theirs, LONG).unwrap());
    }

    #[test]
    fn client_that_does_not_read_is_left_in_time() {
        let (_client, mut theirs) = UnixStream::pair().unwrap();
        let begun = Instant::now();
        // More than the socket takes.
        let error = send(&mut theirs, &vec![0; 16 << 20], SHORT.answer).unwrap_err();
        assert!([ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
}
