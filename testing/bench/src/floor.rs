//! The floor under every helper: receive a command with its descriptor, an ioctl that fails, close, answer. It checks
//! nothing and serves one connection after the other, so no correct helper can be faster.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use anyhow::{Context, Result, bail};
use scsi_pr::{Completion, SenseCode};
use scsi_pr_helper::descriptor::{IoMode, Passed, receive};
use scsi_pr_helper::wire::{RESPONSE_HEADER_LENGTH, encode_response, feature_word};

/// Serves the socket at `path` until killed.
pub(crate) fn serve(path: &Path) -> Result<()> {
    let listener = UnixListener::bind(path).with_context(|| format!("bind {}", path.display()))?;
    let (answer, _) = encode_response(&Completion::check(SenseCode::IO_PROCESS_TERMINATED), 0);
    loop {
        let (socket, _) = listener.accept()?;
        serve_connection(socket, &answer)?;
    }
}

fn serve_connection(mut socket: UnixStream, answer: &[u8; RESPONSE_HEADER_LENGTH]) -> Result<()> {
    let greeted = socket.write_all(&feature_word(0)).and_then(|()| socket.read_exact(&mut [0; 4]));
    if greeted.is_err() {
        // A client that only tried whether the socket is there.
        return Ok(());
    }
    let mut cdb = [0; 16];
    loop {
        match receive(&socket, &mut cdb, IoMode::Blocking)? {
            (16, Passed::One(device)) => {
                // ENOTTY from the same path through the kernel as SG_IO on a file that is no SCSI device.
                let _ = rustix::termios::tcgetwinsize(&device);
            }
            (0, Passed::None) => return Ok(()),
            (count, passed) => bail!("{count} bytes came with {passed:?}: not a command of this bench"),
        }
        socket.write_all(answer)?;
    }
}
