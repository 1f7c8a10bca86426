//! What workers log: lines that come by a pipe, from a process that runs code of others as root.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use scsi_pr_linux::device::Number;
use tracing::warn;

use super::told::{Event, Told};

/// How many bytes of one worker are told. More is read, so that its end is seen, and dropped.
const MOST: usize = 16 * 1024;

/// How many bytes of a line are told.
const LONGEST_LINE: usize = 1024;

/// The log of one worker.
pub(super) struct Log {
    /// Does not block.
    pipe: OwnedFd,
    /// The line that is not yet whole.
    line: Vec<u8>,
    /// How many bytes have come.
    length: usize,
    /// What a line with this hash is to be told as.
    event: fn(u64) -> Event,
}

impl Log {
    pub(super) const fn new(pipe: OwnedFd) -> Self {
        Self { pipe, line: Vec::new(), length: 0, event: Event::Line }
    }

    /// The same, of a worker that ended without an answer.
    pub(super) fn of_a_loss(self) -> Self {
        Self { event: Event::LastLine, ..self }
    }

    /// Tells the log what there is, and waits for the worker's end, at most for `patience`. Whether it has ended.
    pub(super) fn say(&mut self, number: Number, told: &Told, patience: Duration) -> bool {
        let event = self.event;
        self.read(patience, &mut |line| {
            let mut hasher = DefaultHasher::new();
            without_time(line).hash(&mut hasher);
            if told.permits(number, event(hasher.finish())) {
                warn!("worker for {number}: {line}");
            }
        })
    }

    fn read(&mut self, patience: Duration, say: &mut dyn FnMut(&str)) -> bool {
        let end = Instant::now() + patience;
        let mut room = [0; 4096];
        // As much as a pipe holds, and then it is looked at the clock.
        let mut reads = 0;
        loop {
            match rustix::io::read(&self.pipe, &mut room) {
                Ok(0) => {
                    self.finish_line(say);
                    return true;
                }
                Ok(count) => {
                    self.take(&room[..count], say);
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

    fn take(&mut self, bytes: &[u8], say: &mut dyn FnMut(&str)) {
        let bytes = &bytes[..bytes.len().min(MOST.saturating_sub(self.length))];
        self.length += bytes.len();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, whole) = piece.strip_suffix(b"\n").map_or((piece, false), |text| (text, true));
            let room = LONGEST_LINE.saturating_sub(self.line.len());
            self.line.extend(&text[..text.len().min(room)]);
            if whole {
                self.finish_line(say);
            }
        }
    }

    fn finish_line(&mut self, say: &mut dyn FnMut(&str)) {
        let line = std::mem::take(&mut self.line);
        if !line.is_empty() {
            say(&printable(&line));
        }
    }
}

/// A line without the time at which libmultipath wrote it, as in `68.418265 | `: it is the same line at any time.
fn without_time(line: &str) -> &str {
    match line.split_once(" | ") {
        Some((time, text)) if time.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') => text,
        _ => line,
    }
}

/// The text on one line, with what would act on a terminal or look like another line escaped.
fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for character in String::from_utf8_lossy(bytes).chars() {
        match character {
            _ if character.is_control() => text.extend(character.escape_default()),
            // What turns the direction of writing around.
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                text.extend(character.escape_unicode());
            }
            _ => text.push(character),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::pipe::{PipeFlags, pipe_with};

    fn log() -> (Log, OwnedFd) {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        (Log::new(reader), writer)
    }

    fn lines(log: &mut Log, patience: Duration) -> (Vec<String>, bool) {
        let mut lines = Vec::new();
        let ended = log.read(patience, &mut |line| lines.push(line.to_owned()));
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
    fn the_end_is_waited_for() {
        let (mut log, writer) = log();
        let ending = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            write(&writer, b"late\n");
        });
        assert_eq!(lines(&mut log, Duration::from_secs(60)), (vec!["late".to_owned()], true));
        ending.join().unwrap();
    }

    #[test]
    fn what_is_too_much_is_dropped_and_the_end_is_seen() {
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
        assert!(said.iter().all(|line| line.len() <= LONGEST_LINE));
        assert!((5..=6).contains(&said.len()), "{}", said.len());
    }

    #[test]
    fn who_writes_without_end_does_not_keep_the_reader() {
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
    fn the_same_line_is_told_once_whatever_the_time() {
        assert_eq!(without_time("68.418265 | can't set"), "can't set");
        for line in ["a | b", "| b", "1.5", "1.5|b", ""] {
            assert!(line.ends_with(without_time(line)), "{line}");
            assert_eq!(without_time(line).contains('|'), line.contains('|'), "{line}");
        }
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(printable(b"a\x1b[2Jb\r\tc\x00"), "a\\u{1b}[2Jb\\r\\tc\\u{0}");
        assert_eq!(printable("é \u{85} \u{202e} \u{7f}".as_bytes()), "é \\u{85} \\u{202e} \\u{7f}");
        assert_eq!(printable(b"\xff"), "\u{fffd}");
        assert_eq!(printable(b"say \"it's\" \\ fine"), "say \"it's\" \\ fine");
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_printable_lines(
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
