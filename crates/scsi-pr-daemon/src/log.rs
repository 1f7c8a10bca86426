//! Lines for a log that may be full.

use std::io::Write;
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Writes a line to a log, unless somebody would have to be waited for: a pipe that is full because its reader hangs must
/// not stop a daemon. The line is lost then, as it is when the disk is full.
pub fn write(log: &mut (impl Write + AsFd), line: &[u8]) {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // A pipe with room has room for a page, which is more than a line.
    if poll(&mut [PollFd::new(log, PollFlags::OUT)], Some(&now)) == Ok(1) {
        let _ = log.write_all(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_line_is_written_where_there_is_room_and_lost_where_there_is_none() {
        let (mut reader, mut log) = std::io::pipe().unwrap();
        write(&mut log, b"first\n");
        let mut line = [0; 6];
        reader.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"first\n");
        rustix::io::ioctl_fionbio(&log, true).unwrap();
        while log.write(&[b'x'; 4096]).is_ok() {}
        rustix::io::ioctl_fionbio(&log, false).unwrap();
        // It would wait for ever.
        write(&mut log, b"second\n");
        drop(log);
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).unwrap();
        assert!(rest.iter().all(|byte| *byte == b'x'));
    }
}
