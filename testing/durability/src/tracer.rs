//! Stops the changer at each of its system calls (ptrace(2)).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::changer::Changer;

/// A system call that is about to be made, or was made.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Its number: `libc::SYS_…`.
    pub number: i64,
    /// Its arguments.
    pub arguments: [u64; 6],
    process: Pid,
}

/// What becomes of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is made.
    Go,
    /// It is not made, and the process is killed.
    Kill,
    /// It is not made, and returns this error number.
    Fail(i32),
}

impl Call {
    /// Reads memory of the process.
    pub fn memory(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let memory = File::open(format!("/proc/{}/mem", self.process)).expect("its memory");
        memory.read_exact_at(&mut bytes, address).expect("readable memory");
        bytes
    }

    /// The path that an argument points to, `at` the directory that another one is.
    pub fn path(&self, at: Option<usize>, argument: usize) -> PathBuf {
        let memory = File::open(format!("/proc/{}/mem", self.process)).expect("its memory");
        let (mut text, mut byte) = (Vec::new(), [0]);
        loop {
            memory.read_exact_at(&mut byte, self.arguments[argument] + text.len() as u64).expect("readable memory");
            match byte {
                [0] => break,
                [byte] => text.push(byte),
            }
        }
        let text = PathBuf::from(String::from_utf8(text).expect("a plain path"));
        match at {
            Some(at) if text.is_relative() => self.directory(self.arguments[at]).join(text),
            _ => text,
        }
    }

    fn directory(&self, descriptor: u64) -> PathBuf {
        match descriptor as i32 {
            libc::AT_FDCWD => std::fs::read_link(format!("/proc/{}/cwd", self.process)).expect("its directory"),
            descriptor => self.descriptor(descriptor),
        }
    }

    /// Where the file of a descriptor is.
    pub fn descriptor(&self, descriptor: i32) -> PathBuf {
        std::fs::read_link(format!("/proc/{}/fd/{descriptor}", self.process)).unwrap_or_default()
    }

    /// Where the next byte of a descriptor is read or written.
    pub fn position(&self, descriptor: i32) -> usize {
        let text = std::fs::read_to_string(format!("/proc/{}/fdinfo/{descriptor}", self.process)).expect("it is open");
        let position = text.lines().find_map(|line| line.strip_prefix("pos:"));
        position.and_then(|position| position.trim().parse().ok()).expect("a position")
    }

    /// The file of a descriptor itself.
    pub fn file(&self, descriptor: i32) -> std::io::Result<std::fs::Metadata> {
        std::fs::metadata(format!("/proc/{}/fd/{descriptor}", self.process))
    }
}

/// Tells the changer to begin, and lets `decide` look at each of its system calls from then on, and `done` at what those
/// returned that were made. Returns when it has ended.
pub fn run(changer: &mut Changer, mut decide: impl FnMut(&Call) -> Decision, mut done: impl FnMut(&Call, i64)) {
    let process = Pid::from_raw(i32::try_from(changer.child.id()).expect("a process number"));
    // Stays under control: it is killed when this ends.
    ptrace::seize(process, Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL).expect("may be traced");
    // It waits for its input, and is taken out of that to begin it anew.
    ptrace::interrupt(process).expect("stops");
    wait(process);
    changer.go();
    let mut inside: Option<(Call, Decision)> = None;
    // What was under way is not looked at: it waited.
    let mut begun = false;
    let mut signal = None;
    loop {
        ptrace::syscall(process, signal.take()).expect("goes on");
        match wait(process) {
            WaitStatus::PtraceSyscall(_) => {}
            WaitStatus::Stopped(_, received) => {
                signal = Some(received);
                continue;
            }
            WaitStatus::PtraceEvent(..) => continue,
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => return,
            other => panic!("{other:?}"),
        }
        let mut registers = ptrace::getregs(process).expect("its registers");
        match inside.take() {
            Some((call, Decision::Fail(error))) => {
                registers.rax = (-i64::from(error)).cast_unsigned();
                ptrace::setregs(process, registers).expect("its registers");
                done(&call, -i64::from(error));
            }
            Some((call, _)) if begun => done(&call, registers.rax.cast_signed()),
            Some((call, _)) => begun = call.number == libc::SYS_read,
            None => {
                assert_eq!(registers.rax.cast_signed(), -i64::from(libc::ENOSYS), "a system call begins");
                let registers_of = |r: &libc::user_regs_struct| [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9];
                let number = registers.orig_rax.cast_signed();
                let call = Call { number, arguments: registers_of(&registers), process };
                let decision = if begun { decide(&call) } else { Decision::Go };
                match decision {
                    Decision::Go => {}
                    Decision::Kill => {
                        // A call that a process is killed before is not made.
                        kill(process, Signal::SIGKILL).expect("killed");
                        assert!(matches!(wait(process), WaitStatus::Signaled(..)), "it ends");
                        return;
                    }
                    Decision::Fail(_) => {
                        registers.orig_rax = u64::MAX;
                        ptrace::setregs(process, registers).expect("its registers");
                    }
                }
                inside = Some((call, decision));
            }
        }
    }
}

fn wait(process: Pid) -> WaitStatus {
    waitpid(process, Some(WaitPidFlag::__WALL)).expect("it is ours")
}
