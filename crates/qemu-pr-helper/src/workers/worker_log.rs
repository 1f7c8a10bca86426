//! The log of a worker: lines over a pipe, from a process that runs a library's code as root.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use scsi_pr_daemon::log::escape;

/// The bytes of one worker that are logged. More is read, to see its end, and dropped.
const MAX_BYTES: usize = 16 * 1024;

/// The bytes of a line that are logged.
const MAX_LINE: usize = 1024;

/// The log of one worker.
pub(super) struct WorkerLog {
    /// Does not block.
    pipe: OwnedFd,
    /// The line that is not yet whole.
    line: Vec<u8>,
    /// The bytes that have come.
    length: usize,
    /// Counts workers that run. The log is kept until its worker has ended.
    running: Arc<AtomicU64>,
}

impl Drop for WorkerLog {
    fn drop(&mut self) {
        self.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl WorkerLog {
    /// The log of a worker that was started, which counts in `running` until the value is dropped.
    pub(super) fn new(pipe: OwnedFd, running: Arc<AtomicU64>) -> Self {
        running.fetch_add(1, Ordering::Relaxed);
        Self { pipe, line: Vec::new(), length: 0, running }
    }

    /// Gives the lines that come within `timeout` to `log`. Whether the worker has ended.
    pub(super) fn read(&mut self, timeout: Duration, log: &mut dyn FnMut(&str)) -> bool {
        let end = Instant::now() + timeout;
        let mut room = [0; 4096];
        // A worker that writes without end is left after as much as a pipe holds.
        let mut reads = 0;
        loop {
            match rustix::io::read(&self.pipe, &mut room) {
                Ok(0) => {
                    self.finish_line(log);
                    return true;
                }
                Ok(count) => {
                    self.take(&room[..count], log);
                    reads += 1;
                    if reads >= 16 && Instant::now() >= end {
                        return false;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let left = end.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return false;
                    }
                    let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
                    let _ = poll(&mut [PollFd::new(&self.pipe, PollFlags::IN)], Some(&left));
                }
                Err(_) => return true,
            }
        }
    }

    fn take(&mut self, bytes: &[u8], log: &mut dyn FnMut(&str)) {
        let bytes = &bytes[..bytes.len().min(MAX_BYTES.saturating_sub(self.length))];
        self.length += bytes.len();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, whole) = piece.strip_suffix(b"\n").map_or((piece, false), |text| (text, true));
            let room = MAX_LINE.saturating_sub(self.line.len());
            self.line.extend(&text[..text.len().min(room)]);
            if whole {
                self.finish_line(log);
            }
        }
    }

    fn finish_line(&mut self, log: &mut dyn FnMut(&str)) {
        let line = std::mem::take(&mut self.line);
        if !line.is_empty() {
            log(&escape(&String::from_utf8_lossy(&line)));
        }
    }
}

/// The same for a line whenever it was written: libmultipath begins a line with the time, as in `68.418265 | `.
pub(super) fn hash(line: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    without_time(line).hash(&mut hasher);
    hasher.finish()
}

fn without_time(line: &str) -> &str {
    match line.split_once(" | ") {
        Some((time, text)) if time.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') => text,
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::pipe::{PipeFlags, pipe_with};

    fn log() -> (WorkerLog, OwnedFd) {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        (WorkerLog::new(reader, Arc::default()), writer)
    }

    fn lines(log: &mut WorkerLog, timeout: Duration) -> (Vec<String>, bool) {
        let mut lines = Vec::new();
        let ended = log.read(timeout, &mut |line| lines.push(line.to_owned()));
        (lines, ended)
    }

    fn write(writer: &OwnedFd, bytes: &[u8]) {
        assert_eq!(rustix::io::write(writer, bytes), Ok(bytes.len()));
    }

    #[test]
    fn lines_come_whole_and_the_last_with_the_end() {
        let (mut log, writer) = log();
        write(&writer, b"one\n\ntw");
        assert_eq!(lines(&mut log, Duration::ZERO), (vec!["one".to_owned()], false));
        write(&writer, b"o\nthree");
        assert_eq!(lines(&mut log, Duration::from_millis(1)), (vec!["two".to_owned()], false));
        drop(writer);
        assert_eq!(lines(&mut log, Duration::ZERO), (vec!["three".to_owned()], true));
    }

    #[test]
    fn end_within_the_timeout_is_seen() {
        let (mut log, writer) = log();
        let ending = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            write(&writer, b"late\n");
        });
        assert_eq!(lines(&mut log, Duration::from_secs(60)), (vec!["late".to_owned()], true));
        ending.join().unwrap();
    }

    #[test]
    fn bytes_over_the_limit_are_dropped_and_the_end_is_seen() {
        let (mut log, writer) = log();
        let line = [&[b'x'; 3000][..], b"\n"].concat();
        let writing = std::thread::spawn(move || {
            rustix::io::ioctl_fionbio(&writer, false).unwrap();
            for _ in 0..100 {
                write(&writer, &line);
            }
        });
        let (said, ended) = lines(&mut log, Duration::from_secs(60));
        writing.join().unwrap();
        assert!(ended);
        assert!(said.iter().all(|line| line.len() <= MAX_LINE));
        assert!((5..=6).contains(&said.len()), "{}", said.len());
    }

    #[test]
    fn worker_that_writes_without_end_does_not_hold_its_reader() {
        let (mut log, writer) = log();
        let writing = std::thread::spawn(move || {
            rustix::io::ioctl_fionbio(&writer, false).unwrap();
            while rustix::io::write(&writer, &[b'\n'; 65536]).is_ok() {}
        });
        assert!(!log.read(Duration::from_millis(10), &mut |_| {}));
        drop(log);
        writing.join().unwrap();
    }

    #[test]
    fn hash_of_a_line_is_that_of_its_text() {
        assert_eq!(without_time("68.418265 | can't set"), "can't set");
        for line in ["a | b", "| b", "1.5", "1.5|b", ""] {
            assert!(line.ends_with(without_time(line)), "{line}");
            assert_eq!(without_time(line).contains('|'), line.contains('|'), "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_printable_lines(
            bytes in prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..300),
            cut in 0_usize..300,
        ) {
            let (mut whole, mut cut_up) = (Vec::new(), Vec::new());
            let (mut log, _) = self::log();
            log.take(&bytes, &mut |line| whole.push(line.to_owned()));
            let (mut log, _) = self::log();
            let cut = cut.min(bytes.len());
            for part in [&bytes[..cut], &bytes[cut..]] {
                log.take(part, &mut |line| cut_up.push(line.to_owned()));
            }
            prop_assert!(whole.iter().all(|line| !line.chars().any(char::is_control)));
            prop_assert_eq!(whole, cut_up);
        }
    }
}
