//! [`serve_one`]: one command of one client, for a process that lives for it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::SendFlags;
use scsi_pr::{CommandBuf, Completion, PrManager, SenseCode, Status};

use super::request_stream::{self, Read, RequestStream};
use crate::wire::{FEATURE_CLEANUP, feature_word};

/// The result of [`serve_one`].
#[derive(Debug)]
pub enum Served {
    /// The client closed the connection, or broke the protocol, before it had sent a command. No command was run.
    Nothing,
    /// The command was run, and the client has the answer.
    Answered,
    /// The command was run, and the client was gone before it had the answer.
    Unheard(CommandBuf, Completion),
}

/// Serves one command of the client at the other end of `socket`, which has sent and received nothing yet. Blocks until
/// the command is answered. The client is trusted because it holds this socket.
///
/// CLEANUP is offered, which QEMU's helper does not do: the client is to be a [`HelperClient`](crate::HelperClient).
pub fn serve_one(socket: OwnedFd, manager: Arc<dyn PrManager>) -> Served {
    /// Never reached, because the answer fits into the buffer of any socket.
    const SEND_TIMEOUT: Duration = Duration::from_secs(10);
    if rustix::net::send(&socket, &feature_word(FEATURE_CLEANUP), SendFlags::NOSIGNAL).is_err() {
        return Served::Nothing;
    }
    let (request, completion) = match RequestStream::default().read(socket.as_fd(), Duration::MAX) {
        Read::Request(request, device) => {
            let executed = manager.execute(device.as_fd(), request.command());
            let completion = executed.unwrap_or_else(|error| {
                tracing::warn!("{error}");
                Completion::check(SenseCode::LUN_COMMUNICATION_FAILURE)
            });
            (request, completion)
        }
        Read::WithoutDescriptor(request) => (request, Completion::Status(Status::BUSY)),
        Read::Idle | Read::End | Read::Broken(_) => return Served::Nothing,
    };
    let allocation_length = request.cdb().allocation_length();
    match request_stream::answer(socket.as_fd(), &completion, allocation_length, SEND_TIMEOUT, || true) {
        Ok(()) => Served::Answered,
        Err(_) => Served::Unheard(request, completion),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HelperClient;
    use crate::descriptor::IoMode;
    use crate::wire::RESPONSE_HEADER_LENGTH;
    use scsi_pr::{Command, Error};
    use std::fs::File;
    use std::io::{Read as _, Write as _};
    use std::os::fd::BorrowedFd;
    use std::os::unix::net::UnixStream;

    /// Answers with the number of the command's opcode.
    struct Echo;

    impl PrManager for Echo {
        fn execute(&self, _: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
            match command.cdb().bytes()[0] {
                0x5e => Ok(Completion::Good(vec![0x5e])),
                0xff => Ok(Completion::Good(Vec::new())),
                _ => Err(Error::outcome_unknown("run anything")),
            }
        }
    }

    fn command(opcode: u8) -> CommandBuf {
        let mut bytes = [0; 16];
        (bytes[0], bytes[8]) = (opcode, if opcode == 0x5e { 8 } else { 0 });
        CommandBuf::new(scsi_pr::Cdb::new(bytes).unwrap(), Vec::new()).unwrap()
    }

    #[test]
    fn one_command_is_served_and_no_more() {
        let device = File::open("/dev/null").unwrap();
        let failure = Completion::check(SenseCode::LUN_COMMUNICATION_FAILURE);
        for (opcode, answer) in
            [(0x5e, Completion::Good(vec![0x5e])), (0xff, Completion::Good(Vec::new())), (0x5f, failure)]
        {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let server = std::thread::spawn(|| serve_one(theirs.into(), Arc::new(Echo)));
            let client = HelperClient::over(ours);
            assert_eq!(client.execute(device.as_fd(), command(opcode).command()).unwrap(), answer);
            assert!(matches!(server.join().unwrap(), Served::Answered));
            let again = client.execute(device.as_fd(), command(opcode).command()).unwrap_err();
            assert!(!again.may_have_run(), "{again}");
        }
    }

    #[test]
    fn without_a_command_there_is_nothing_to_serve() {
        let whole = command(0x5e);
        let bytes = [&[0; 4][..], whole.cdb().bytes()].concat();
        // The last sends all of it, but no descriptor.
        for length in [0, 3, 4, 19, 20] {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            ours.write_all(&bytes[..length]).unwrap();
            ours.shutdown(std::net::Shutdown::Write).unwrap();
            assert!(matches!(serve_one(theirs.into(), Arc::new(Echo)), Served::Nothing), "{length}");
            let mut answer = Vec::new();
            ours.read_to_end(&mut answer).unwrap();
            assert!(answer.len() < RESPONSE_HEADER_LENGTH);
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(ours);
        assert!(matches!(serve_one(theirs.into(), Arc::new(Echo)), Served::Nothing));
    }

    /// Has the client gone before it answers.
    struct Slow(std::sync::Mutex<Option<UnixStream>>);

    impl PrManager for Slow {
        fn execute(&self, _: BorrowedFd<'_>, _: Command<'_>) -> Result<Completion, Error> {
            self.0.lock().unwrap().take();
            Ok(Completion::Good(vec![1]))
        }
    }

    #[test]
    fn answer_without_a_reader_is_unheard() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (device, request) = (File::open("/dev/null").unwrap(), command(0x5e));
        rustix::net::send(&ours, &[0; 4], SendFlags::empty()).unwrap();
        crate::descriptor::send(&ours, request.cdb().bytes(), device.as_fd(), IoMode::Blocking).unwrap();
        match serve_one(theirs.into(), Arc::new(Slow(std::sync::Mutex::new(Some(ours))))) {
            Served::Unheard(command, Completion::Good(data)) => assert_eq!((command, data), (request, vec![1])),
            other => panic!("{other:?}"),
        }
    }
}
