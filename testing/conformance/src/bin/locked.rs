//! `locked PROGRAM ARGUMENTS…`: takes a write lock (fcntl(2)) on the file that is its standard input, as libvirt does on
//! the pid file that it keeps of a helper, and becomes PROGRAM. The lock is the process's: it is lost when the process
//! closes any descriptor of the file, or goes on in a child.
#![forbid(unsafe_code)]

use std::env::args_os;
use std::error::Error;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{FlockOperation, fcntl_lock};

fn main() -> Result<(), Box<dyn Error>> {
    fcntl_lock(std::io::stdin(), FlockOperation::NonBlockingLockExclusive)?;
    let mut words = args_os().skip(1);
    let program = words.next().ok_or("usage: locked PROGRAM ARGUMENTS…")?;
    // Returns only when it failed.
    Err(Command::new(program).args(words).exec().into())
}
