//! [`Writer`]: collects the PDUs of a connection, and sends them.

use std::io::{self, Write};
use std::mem;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::memory::Memory;
use crate::reply::{Replies, Window};

/// The bytes that may be collected while more requests are there, or while another thread sends.
const COLLECTED: usize = 256 << 10;
/// The memory for answers that a connection keeps until it is idle, in bytes: that of a usual transfer.
const KEPT: usize = 2 << 20;

/// The sending side of a connection, which its threads share.
///
/// One thread sends at a time, without the lock. The others leave their PDUs to it, so that no thread waits for a system
/// call of another, and one call sends the answers of several commands.
pub(crate) struct Writer {
    collected: Mutex<Collected>,
    sent: Condvar,
    memory: Arc<Memory>,
}

/// PDUs that wait to be sent.
pub(crate) struct Collected {
    pub(crate) replies: Replies,
    pub(crate) buffer: Vec<u8>,
    /// Empty, for the next PDUs while these are sent.
    spare: Vec<u8>,
    is_sending: bool,
    /// The bytes that are being sent.
    sending: usize,
    /// The bytes that running commands may add.
    promised: usize,
    /// The bytes that [`Memory`] knows of.
    held: usize,
    /// The threads that wait for the one that sends.
    waiting: u32,
    has_failed: bool,
}

impl Collected {
    /// Adds a NOP-In that wants an answer.
    pub(crate) fn ping(&mut self, window: Window) {
        self.replies.ping(&mut self.buffer, 0, window);
    }

    /// The bytes of answers, those that running commands may add included.
    fn used(&self) -> usize {
        self.buffer.len() + self.sending + self.promised
    }
}

impl Writer {
    /// Answers hold their data in `memory`; over its bounds, commands wait.
    pub(crate) fn new(replies: Replies, memory: Arc<Memory>) -> Self {
        let collected = Collected {
            replies,
            buffer: Vec::new(),
            spare: Vec::new(),
            is_sending: false,
            sending: 0,
            promised: 0,
            held: 0,
            waiting: 0,
            has_failed: false,
        };
        Self { collected: Mutex::new(collected), sent: Condvar::new(), memory }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Collected> {
        self.collected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what is collected, unless another thread sends: then that one sends these PDUs as well. Waits while too much is
    /// collected.
    ///
    /// # Errors
    ///
    /// Those of send(2). The socket is shut down then, so that its reader ends, and later PDUs are dropped.
    pub(crate) fn send(&self, socket: &TcpStream) -> io::Result<()> {
        let mut collected = self.lock();
        while collected.is_sending {
            if collected.buffer.len() < COLLECTED {
                return Ok(());
            }
            collected = self.wait(collected);
        }
        self.send_locked(collected, socket)
    }

    /// Sends if so much is collected that no more may wait.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub(crate) fn send_if_full(&self, socket: &TcpStream) -> io::Result<()> {
        let is_full = self.lock().buffer.len() >= COLLECTED;
        if is_full { self.send(socket) } else { Ok(()) }
    }

    /// Sends what is collected, and waits until it was sent.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub(crate) fn send_all(&self, socket: &TcpStream) -> io::Result<()> {
        let mut collected = self.lock();
        while collected.is_sending {
            collected = self.wait(collected);
        }
        self.send_locked(collected, socket)
    }

    /// Waits until there is room for `length` bytes of a command's answer, and promises it that room.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub(crate) fn promise(&self, length: usize, socket: &TcpStream) -> io::Result<()> {
        let mut collected = self.lock();
        loop {
            if self.memory.has_room(collected.used(), length) || collected.has_failed {
                collected.promised += length;
                self.update_memory(&mut collected);
                return Ok(());
            }
            if collected.is_sending || collected.buffer.is_empty() {
                collected = self.wait(collected);
            } else {
                self.send_locked(collected, socket)?;
                collected = self.lock();
            }
        }
    }

    /// The command has added its answer, or has none.
    pub(crate) fn end_promise(&self, length: usize) {
        let mut collected = self.lock();
        collected.promised -= length;
        self.update_memory(&mut collected);
        if collected.waiting > 0 {
            self.sent.notify_all();
        }
    }

    /// Whether a thread sends: the peer may take as long to read as [`send`](Self::send) allows.
    pub(crate) fn is_sending(&self) -> bool {
        self.lock().is_sending
    }

    /// Frees the memory that a connection without work does not need.
    pub(crate) fn release_memory(&self) {
        let mut collected = self.lock();
        collected.buffer.shrink_to(0);
        collected.spare = Vec::new();
    }

    fn update_memory(&self, collected: &mut Collected) {
        let used = collected.used();
        self.memory.update(mem::replace(&mut collected.held, used), used);
    }

    fn wait<'a>(&self, mut collected: MutexGuard<'a, Collected>) -> MutexGuard<'a, Collected> {
        collected.waiting += 1;
        let mut collected = self.sent.wait(collected).unwrap_or_else(PoisonError::into_inner);
        collected.waiting -= 1;
        collected
    }

    fn send_locked<'a>(&'a self, mut collected: MutexGuard<'a, Collected>, mut socket: &TcpStream) -> io::Result<()> {
        let mut result = Ok(());
        collected.is_sending = true;
        while !collected.buffer.is_empty() && !collected.has_failed {
            let spare = mem::take(&mut collected.spare);
            let mut bytes = mem::replace(&mut collected.buffer, spare);
            collected.sending = bytes.len();
            drop(collected);
            result = socket.write_all(&bytes);
            bytes.clear();
            bytes.shrink_to(KEPT);
            collected = self.lock();
            collected.spare = bytes;
            collected.sending = 0;
            self.update_memory(&mut collected);
            if result.is_err() {
                // A part of a PDU may be on the wire, so nothing may follow it.
                collected.has_failed = true;
                let _ = socket.shutdown(Shutdown::Both);
            }
            if collected.waiting > 0 {
                self.sent.notify_all();
            }
        }
        if collected.has_failed {
            collected.buffer.clear();
            self.update_memory(&mut collected);
        }
        collected.is_sending = false;
        if collected.waiting > 0 {
            self.sent.notify_all();
        }
        result
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let held = self.lock().held;
        self.memory.update(held, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::SESSION;
    use crate::pdu::Digests;
    use crate::reply::Bounds;
    use std::io::Read;
    use std::net::TcpListener;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    fn writer() -> (Arc<Writer>, TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (peer, _) = listener.accept().unwrap();
        let bounds = Bounds { digests: Digests::default(), max_segment: 8192, max_burst: 65536 };
        (Arc::new(Writer::new(Replies::new(bounds, 1), Arc::new(Memory::new(1 << 30)))), own, peer)
    }

    #[test]
    fn commands_over_the_bound_wait_for_those_before() {
        let (writer, own, _peer) = writer();
        writer.promise(SESSION, &own).unwrap();
        let (done, has_room) = mpsc::channel();
        let waiting = {
            let (writer, own) = (Arc::clone(&writer), own.try_clone().unwrap());
            thread::spawn(move || {
                writer.promise(1, &own).unwrap();
                done.send(()).unwrap();
            })
        };
        assert!(has_room.recv_timeout(Duration::from_millis(100)).is_err());
        writer.end_promise(SESSION);
        has_room.recv_timeout(Duration::from_secs(60)).unwrap();
        waiting.join().unwrap();
    }

    #[test]
    fn answers_of_a_peer_that_does_not_read_stop_further_commands() {
        let (writer, own, mut peer) = writer();
        writer.promise(SESSION, &own).unwrap();
        writer.lock().buffer.resize(SESSION, 7);
        writer.end_promise(SESSION);
        let (done, has_room) = mpsc::channel();
        let waiting = {
            let (writer, own) = (Arc::clone(&writer), own.try_clone().unwrap());
            thread::spawn(move || {
                writer.promise(1 << 20, &own).unwrap();
                done.send(()).unwrap();
            })
        };
        assert!(has_room.recv_timeout(Duration::from_millis(100)).is_err());
        let mut read = vec![0; SESSION];
        peer.read_exact(&mut read).unwrap();
        assert!(read.iter().all(|byte| *byte == 7));
        has_room.recv_timeout(Duration::from_secs(60)).unwrap();
        waiting.join().unwrap();
    }

    #[test]
    fn failed_connection_holds_up_no_command() {
        let (writer, own, peer) = writer();
        drop(peer);
        writer.lock().buffer.resize(SESSION, 7);
        assert!(writer.send_all(&own).is_err());
        writer.promise(SESSION, &own).unwrap();
        writer.promise(SESSION, &own).unwrap();
        writer.send(&own).unwrap();
    }
}
