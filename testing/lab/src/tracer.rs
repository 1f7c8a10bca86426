//! [`Tracer`]: stops a worker of a helper in the middle of a command, at an exact step, by ptrace(2).
//!
//! A step is what may change something, or tell another process of it: a PERSISTENT RESERVE command to a path, a change of
//! a device-mapper device, something said over a socket (to multipathd, or the answer). They are counted over all threads,
//! and what is done at a step is done before it.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Waits for the next worker of a helper, and does something to it.
pub(crate) struct Tracer {
    thread: JoinHandle<Result<Trace>>,
    enough: Arc<AtomicBool>,
}

/// The result of a trace.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    /// The steps, up to the one at which something was done.
    pub(crate) steps: Vec<String>,
    /// Whether there was one.
    pub(crate) hit: bool,
    /// The worker, if it was stopped.
    pub(crate) stopped: Option<Pid>,
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {}, {}", self.steps.len(), self.steps.last().map_or("none", String::as_str))
    }
}

/// The action at the step.
pub(crate) enum Action {
    /// Kill the worker.
    Kill,
    /// Stop it, until SIGCONT.
    Stop,
    /// This, with what the step is, while the worker stands still; then it goes on.
    Do(Box<dyn FnOnce(&str) + Send>),
}

/// StepFilter step: its number, counted from 1, and what it is.
pub(crate) type StepFilter = Box<dyn Fn(usize, &str) -> bool + Send>;

/// The step of this number.
pub(crate) fn number(number: usize) -> StepFilter {
    Box::new(move |step, _| step == number)
}

/// The first PERSISTENT RESERVE OUT with this service action.
pub(crate) fn first_out(action: u8) -> StepFilter {
    let beginning = format!("PERSISTENT RESERVE OUT {action} ");
    Box::new(move |_, what| what.starts_with(&beginning))
}

impl Tracer {
    /// Does `act` at the first step that is wanted of the next worker that the monitor of `helper` starts.
    pub(crate) fn start(helper: u32, which: StepFilter, act: Action) -> Result<Self> {
        let monitor = monitor_of(helper)?;
        let enough = Arc::new(AtomicBool::new(false));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let stop = Arc::clone(&enough);
        // All of ptrace(2) has to come from one thread.
        let thread = thread::spawn(move || {
            let seized = ptrace::seize(monitor, FOLLOW).context("seize the monitor");
            let _ = ready.send(());
            seized?;
            trace(monitor, &which, act, &stop)
        });
        is_ready.recv().context("the tracer does not start")?;
        Ok(Self { thread, enough })
    }

    /// The result, once the action was done.
    pub(crate) fn wait_for_action(self) -> Result<Trace> {
        self.thread.join().expect("the tracer does not panic")
    }

    /// The result, once the command is answered.
    pub(crate) fn wait_for_answer(self) -> Result<Trace> {
        self.enough.store(true, Ordering::Relaxed);
        self.thread.join().expect("the tracer does not panic")
    }
}

const FOLLOW: Options = Options::PTRACE_O_TRACESYSGOOD
    .union(Options::PTRACE_O_TRACECLONE)
    .union(Options::PTRACE_O_TRACEFORK)
    .union(Options::PTRACE_O_TRACEVFORK)
    .union(Options::PTRACE_O_TRACEEXEC);

fn trace(monitor: Pid, which: &StepFilter, act: Action, enough: &AtomicBool) -> Result<Trace> {
    let mut seen = Trace::default();
    let mut act = Some(act);
    let mut monitor_is_traced = true;
    loop {
        let mut flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        if monitor_is_traced {
            flags |= WaitPidFlag::WNOHANG;
        }
        let status = match waitpid(None, Some(flags)) {
            Err(Errno::ECHILD) => return Ok(seen),
            status => status?,
        };
        // A killed process may be gone before it is continued.
        let go_on = |pid: Pid, signal: Option<Signal>| match ptrace::syscall(pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            error => error,
        };
        match status {
            WaitStatus::StillAlive if enough.load(Ordering::Relaxed) => {
                // No worker was started.
                ptrace::interrupt(monitor)?;
                waitpid(monitor, Some(WaitPidFlag::__WALL))?;
                ptrace::detach(monitor, None)?;
                return Ok(seen);
            }
            WaitStatus::StillAlive => thread::sleep(Duration::from_millis(1)),
            // The first process that it starts; what it starts when that has died is left alone.
            WaitStatus::PtraceEvent(pid, ..) if pid == monitor => {
                ptrace::detach(monitor, None)?;
                monitor_is_traced = false;
            }
            WaitStatus::PtraceSyscall(pid) if act.is_some() => {
                if let Some(what) = step_of(pid)? {
                    let wanted = which(seen.steps.len() + 1, &what);
                    seen.steps.push(what.clone());
                    if wanted {
                        seen.hit = true;
                        match act.take() {
                            Some(Action::Kill) => kill(process_of(pid)?, Signal::SIGKILL)?,
                            Some(Action::Stop) => {
                                let process = process_of(pid)?;
                                kill(process, Signal::SIGSTOP)?;
                                seen.stopped = Some(process);
                            }
                            Some(Action::Do(act)) => act(&what),
                            None => {}
                        }
                    }
                }
                go_on(pid, None)?;
            }
            // Nothing more is to be done to it.
            WaitStatus::PtraceSyscall(pid) | WaitStatus::PtraceEvent(pid, ..) if act.is_none() => {
                let _ = ptrace::detach(pid, None);
            }
            WaitStatus::PtraceSyscall(pid) | WaitStatus::PtraceEvent(pid, ..) => go_on(pid, None)?,
            WaitStatus::Stopped(pid, signal) => go_on(pid, Some(signal))?,
            _ => {}
        }
    }
}

/// The step that the thread is about to take, if it is one. x86-64, as the lab is.
fn step_of(thread: Pid) -> Result<Option<String>> {
    const SENDTO: u64 = 44;
    const SENDMSG: u64 = 46;
    const WRITE: u64 = 1;
    const IOCTL: u64 = 16;
    const SG_IO: u64 = 0x2285;
    let registers = match ptrace::getregs(thread) {
        Err(Errno::ESRCH) => return Ok(None),
        registers => registers?,
    };
    // At the entry of a system call; at its end, there is its result.
    if registers.rax.cast_signed() != -i64::from(Errno::ENOSYS as i32) {
        return Ok(None);
    }
    let file = || {
        let link = fs::read_link(format!("/proc/{thread}/fd/{}", registers.rdi)).unwrap_or_default();
        link.to_string_lossy().into_owned()
    };
    Ok(match (registers.orig_rax, registers.rsi) {
        (IOCTL, SG_IO) => {
            let memory = File::open(format!("/proc/{thread}/mem"))?;
            // `struct sg_io_hdr`: where the CDB is.
            let mut address = [0; 8];
            memory.read_exact_at(&mut address, registers.rdx + 24)?;
            let mut cdb = [0; 2];
            memory.read_exact_at(&mut cdb, u64::from_ne_bytes(address))?;
            match cdb {
                [0x5e, action] => Some(format!("PERSISTENT RESERVE IN {action} to {}", file())),
                [0x5f, action] => Some(format!("PERSISTENT RESERVE OUT {action} to {}", file())),
                _ => None,
            }
        }
        // DM_DEV_SUSPEND, which resumes too.
        (IOCTL, request) if request & 0xffff == 0xfd06 => Some("suspend or resume".to_owned()),
        (WRITE | SENDTO | SENDMSG, _) if file().starts_with("socket:") => Some("a message".to_owned()),
        _ => None,
    })
}

/// The process that a thread is of.
fn process_of(thread: Pid) -> Result<Pid> {
    Ok(Pid::from_raw(field(&format!("/proc/{thread}/status"), "Tgid:")?.parse()?))
}

/// The monitor of a helper: its child.
fn monitor_of(helper: u32) -> Result<Pid> {
    for entry in fs::read_dir("/proc")? {
        let directory = entry?.path();
        let Some(pid) = directory.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
        let status = directory.join("status");
        let status = status.to_string_lossy();
        if field(&status, "PPid:").is_ok_and(|parent| parent == helper.to_string()) {
            return Ok(Pid::from_raw(pid));
        }
    }
    anyhow::bail!("helper {helper} has no monitor")
}

fn field(file: &str, name: &str) -> Result<String> {
    let text = fs::read_to_string(file)?;
    let value =
        text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name} in {file}"))?;
    Ok(value.trim().to_owned())
}
