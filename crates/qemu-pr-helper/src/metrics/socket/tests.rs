use super::*;
use crate::workers::Pool;
use scsi_pr_linux::policy::Counters;
use std::net::Shutdown;
use std::path::PathBuf;
use std::sync::Arc;
use tempfile::TempDir;

const SHORT: Timeouts = Timeouts { request: Duration::from_millis(100), answer: Duration::from_millis(100) };

const LONG: Timeouts = Timeouts { request: Duration::from_secs(600), answer: Duration::from_secs(600) };

fn metrics() -> Metrics {
    Metrics::new(Arc::new(Counters::with_metrics()), Arc::default(), Arc::new(Pool::new(None)))
}

/// A server whose thread runs until the tests end.
struct Running {
    _directory: TempDir,
    path: PathBuf,
}

impl Running {
    fn new(timeouts: Timeouts) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m");
        serve_within(UnixListener::bind(&path).unwrap(), metrics(), timeouts).unwrap();
        Self { _directory: directory, path }
    }

    fn connect(&self) -> UnixStream {
        let client = UnixStream::connect(&self.path).unwrap();
        client.set_read_timeout(Some(testing_support::DEADLINE)).unwrap();
        client
    }

    /// The answer to a client that does `ask`.
    fn answer_to(&self, ask: impl FnOnce(&mut UnixStream)) -> String {
        let mut client = self.connect();
        ask(&mut client);
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        text
    }
}

fn is_plain(text: &str) -> bool {
    text.starts_with("# HELP ") && text.ends_with("\n# EOF\n")
}

#[test]
fn client_that_sends_nothing_has_plain_text() {
    assert!(is_plain(&Running::new(SHORT).answer_to(|_| {})));
    assert!(is_plain(&Running::new(LONG).answer_to(|client| client.shutdown(Shutdown::Write).unwrap())));
    assert!(is_plain(&Running::new(SHORT).answer_to(|client| client.write_all(b"GE").unwrap())));
}

#[test]
fn client_that_asks_in_another_protocol_has_plain_text_at_once() {
    let running = Running::new(LONG);
    for request in ["metrics\n", "POST / HTTP/1.0\r\n", "GEX", "get / HTTP/1.0\r\n\r\n"] {
        let text = running.answer_to(|client| client.write_all(request.as_bytes()).unwrap());
        assert!(is_plain(&text), "{request}: {text}");
    }
}

#[test]
fn http_request_has_an_http_answer() {
    let running = Running::new(LONG);
    for request in [&["GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"][..], &["GET / HTTP/1.0\r\n", "\r\n"]] {
        let text =
            running.answer_to(|client| request.iter().for_each(|part| client.write_all(part.as_bytes()).unwrap()));
        let (header, body) = text.split_once("\r\n\r\n").unwrap();
        let lines: Vec<&str> = header.split("\r\n").collect();
        assert_eq!(lines[0], "HTTP/1.0 200 OK");
        assert_eq!(lines[1], "Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8");
        assert_eq!(lines[2], format!("Content-Length: {}", body.len()));
        assert!(is_plain(body), "{body}");
    }
}

#[test]
fn request_without_end_is_answered_in_time() {
    let mut client = Running::new(SHORT).connect();
    client.write_all(b"GET /").unwrap();
    while client.write_all(b"x").is_ok() {
        thread::sleep(Duration::from_millis(10));
    }
    let mut begin = [0; 4];
    client.read_exact(&mut begin).unwrap();
    assert_eq!(&begin, b"HTTP");
}

#[test]
fn request_of_the_greatest_length_is_answered_at_once() {
    let mut client = Running::new(LONG).connect();
    client.write_all(&[b"GET ", &[b'x'; 3 * MAX_REQUEST][..]].concat()).unwrap();
    let mut begin = [0; 4];
    client.read_exact(&mut begin).unwrap();
    assert_eq!(&begin, b"HTTP");
}

#[test]
fn client_that_does_not_read_is_left_in_time() {
    let (stream, _peer) = UnixStream::pair().unwrap();
    stream.set_nonblocking(true).unwrap();
    let mut client = Client::new(stream, SHORT);
    // More than the socket takes.
    client.phase = Phase::Answer(vec![0; 16 << 20]);
    assert_eq!(client.advance(&metrics(), SHORT), Progress::Waits);
    testing_support::eventually("the client has ended", || {
        (client.advance(&metrics(), SHORT) == Progress::Ended).then_some(())
    });
}

#[test]
fn clients_that_hang_delay_no_other() {
    let running = Running::new(LONG);
    let hanging: Vec<UnixStream> = (0..MAX_CLIENTS - 1)
        .map(|index| {
            let mut client = running.connect();
            client.write_all(&b"GET /"[..index % 6]).unwrap();
            client
        })
        .collect();
    for _ in 0..2 {
        let text = running.answer_to(|client| client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap());
        assert!(text.ends_with("\n# EOF\n"), "{text}");
    }
    // None of them was closed for it.
    for mut client in hanging {
        client.set_nonblocking(true).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

#[test]
fn client_above_the_bound_takes_the_place_of_the_oldest() {
    let running = Running::new(LONG);
    let mut hanging: Vec<UnixStream> = (0..MAX_CLIENTS + 1).map(|_| running.connect()).collect();
    assert_eq!(hanging[0].read(&mut [0]).unwrap(), 0);
    hanging[1].set_nonblocking(true).unwrap();
    assert_eq!(hanging[1].read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    hanging[1].set_nonblocking(false).unwrap();
    let text = running.answer_to(|client| client.shutdown(Shutdown::Write).unwrap());
    assert!(is_plain(&text), "{text}");
    assert_eq!(hanging[1].read(&mut [0]).unwrap(), 0);
}
