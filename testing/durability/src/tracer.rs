//! Stops the changer at each of its system calls, with ptrace(2).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::changer::Changer;

/// A system call of the changer, before or after the kernel runs it.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// The number, `libc::SYS_…`.
    pub number: i64,
    /// Its arguments.
    pub arguments: [u64; 6],
    process: Pid,
}

/// The tracer's decision on a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The kernel runs it.
    Run,
    /// The process is killed before the kernel runs it.
    Kill,
    /// The kernel does not run it, and it returns this error number.
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

    /// The path that argument number `argument` points to, relative to the directory descriptor in argument number `at`.
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

    /// The path of a descriptor's file.
    pub fn descriptor(&self, descriptor: i32) -> PathBuf {
        std::fs::read_link(format!("/proc/{}/fd/{descriptor}", self.process)).unwrap_or_default()
    }

    /// The file offset of a descriptor, in bytes.
    pub fn position(&self, descriptor: i32) -> usize {
        let text = std::fs::read_to_string(format!("/proc/{}/fdinfo/{descriptor}", self.process)).expect("it is open");
        let position = text.lines().find_map(|line| line.strip_prefix("pos:"));
        position.and_then(|position| position.trim().parse().ok()).expect("a position")
    }

    /// The metadata of a descriptor's file.
    pub fn metadata(&self, descriptor: i32) -> std::io::Result<std::fs::Metadata> {
        std::fs::metadata(format!("/proc/{}/fd/{descriptor}", self.process))
    }
}

/// Lets the changer begin. Calls `decide` before each of its system calls, and `done` with the result of each. Returns when
/// the changer has ended.
pub fn run(changer: &mut Changer, mut decide: impl FnMut(&Call) -> Decision, mut done: impl FnMut(&Call, i64)) {
    let process = Pid::from_raw(i32::try_from(changer.child.id()).expect("a process number"));
    // EXITKILL: the changer ends with this process.
    ptrace::seize(process, Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL).expect("may be traced");
    // The interrupt ends its read of standard input, and the kernel restarts the call.
    ptrace::interrupt(process).expect("stops");
    wait(process);
    changer.begin();
    let mut inside: Option<(Call, Decision)> = None;
    // Calls up to the end of that read do not count.
    let mut begun = false;
    let mut signal = None;
    loop {
        ptrace::syscall(process, signal.take()).expect("continues");
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
                let decision = if begun { decide(&call) } else { Decision::Run };
                match decision {
                    Decision::Run => {}
                    Decision::Kill => {
                        // The kernel does not run the call of a killed process.
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
    waitpid(process, Some(WaitPidFlag::__WALL)).expect("the changer is a child")
}
