//! Stands between a helper and the kernel: a seccomp filter stops the helper at chosen system calls, and this module
//! decides about them (seccomp_unotify(2)).
//!
//! SG_IO is answered without ever reaching a device: its header is read and written through /proc/TID/mem. Other system
//! calls wait until the test lets them go on, which holds a helper at a certain point of its start.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use libseccomp::{ScmpNotifReq, ScmpNotifResp, ScmpNotifRespFlags, notify_id_valid};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use scsi_pr_helper::descriptor::{IoMode, Passed, receive};
use zerocopy::{FromZeros, IntoBytes};

use crate::sg_io::{Call, Done, Header, Reply};
use testing_support::eventually;

/// A launcher that will ask for a supervisor.
#[derive(Debug)]
pub(crate) struct Launch {
    listener: UnixListener,
    path: PathBuf,
    calls: Vec<&'static str>,
}

impl Launch {
    pub(crate) fn new(directory: &Path, calls: &[&'static str]) -> Self {
        let path = directory.join("supervisor");
        let listener = UnixListener::bind(&path).expect("a socket for the launcher");
        listener.set_nonblocking(true).expect("non-blocking");
        Self { listener, path, calls: calls.to_vec() }
    }

    pub(crate) fn arguments(&self) -> [OsString; 2] {
        [self.path.clone().into(), self.calls.join(",").into()]
    }

    /// The supervisor, once the launcher has asked for it.
    pub(crate) fn accept(&self) -> Option<Supervisor> {
        let (socket, _) = self.listener.accept().ok()?;
        socket.set_nonblocking(false).expect("blocking");
        match receive(&socket, &mut [0], IoMode::Blocking) {
            Ok((1, Passed::One(notifications))) => Some(Supervisor::new(notifications)),
            other => panic!("the launcher passed no descriptor: {other:?}"),
        }
    }
}

type Script = dyn Fn(&Call) -> Option<Reply> + Send + Sync;

struct State {
    script: Arc<Script>,
    /// Every SG_IO so far.
    calls: Vec<Call>,
    /// Those that the script left without a reply.
    held: Vec<(u64, Call, Header)>,
    /// Other system calls, waiting to go on.
    stopped: Vec<(u64, Stop)>,
    /// Whether other system calls are stopped at all.
    stopping: bool,
    /// Those that it was not.
    passed: Vec<Stop>,
}

/// A system call at which a helper is stopped, or could have been.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Its name.
    pub call: String,
    /// The thread that made it.
    pub thread: u32,
}

/// Decides about the system calls of one helper.
pub struct Supervisor {
    notifications: Arc<OwnedFd>,
    state: Arc<Mutex<State>>,
    /// Ends the thread when it is closed.
    stop: Option<io::PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Supervisor").finish_non_exhaustive()
    }
}

impl Supervisor {
    fn new(notifications: OwnedFd) -> Self {
        let notifications = Arc::new(notifications);
        // A device that answers GOOD and transfers nothing.
        let script = |call: &Call| Some(Reply::data(&[])(call));
        let state = State {
            script: Arc::new(script),
            calls: Vec::new(),
            held: Vec::new(),
            stopped: Vec::new(),
            stopping: true,
            passed: Vec::new(),
        };
        let state = Arc::new(Mutex::new(state));
        let (stopped, stop) = io::pipe().expect("a pipe");
        let thread = {
            let (notifications, state) = (Arc::clone(&notifications), Arc::clone(&state));
            thread::spawn(move || watch(&notifications, &state, &stopped))
        };
        Self { notifications, state, stop: Some(stop), thread: Some(thread) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// How SG_IO is answered from now on.
    pub fn reply_with(&self, script: impl Fn(&Call) -> Reply + Send + Sync + 'static) {
        self.state().script = Arc::new(move |call| Some(script(call)));
    }

    /// One answer to every SG_IO from now on.
    pub fn reply(&self, reply: Reply) {
        self.reply_with(move |_| reply.clone());
    }

    /// From now on SG_IO waits until it is [released](Self::release).
    pub fn hold(&self) {
        self.state().script = Arc::new(|_| None);
    }

    /// How many SG_IO wait.
    pub fn held(&self) -> usize {
        let mut state = self.state();
        // A signal takes the helper out of the call: it makes a new one.
        state.held.retain(|(id, _, _)| notify_id_valid(self.notifications.as_raw_fd(), *id).is_ok());
        state.held.len()
    }

    /// Waits until `count` SG_IO wait.
    #[track_caller]
    pub fn wait_for_held(&self, count: usize) {
        eventually(&format!("{count} commands are being run"), || (self.held() >= count).then_some(()));
    }

    /// Answers everything that waits.
    pub fn release(&self, reply: impl Fn(&Call) -> Reply) {
        let held = std::mem::take(&mut self.state().held);
        for (id, call, header) in held {
            answer(&self.notifications, id, call.thread, header, &reply(&call));
        }
    }

    /// Every SG_IO so far.
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// Waits until the helper is stopped at a system call other than SG_IO.
    #[track_caller]
    pub fn wait_for_stop(&self) -> Stop {
        eventually("the helper reaches a system call that it is stopped at", || self.stopped())
    }

    /// The system call other than SG_IO that the helper is stopped at.
    pub fn stopped(&self) -> Option<Stop> {
        let mut state = self.state();
        state.stopped.retain(|(id, _)| notify_id_valid(self.notifications.as_raw_fd(), *id).is_ok());
        state.stopped.first().map(|(_, stop)| stop.clone())
    }

    /// Lets the helper go on.
    pub fn go_on(&self) {
        for (id, _) in std::mem::take(&mut self.state().stopped) {
            pass_on(&self.notifications, id);
        }
    }

    /// Lets the helper go on, and stops it no more but for SG_IO.
    pub fn let_go(&self) {
        self.state().stopping = false;
        self.go_on();
    }

    /// The system calls other than SG_IO that it was not stopped at since this was last asked, of those that it was to be
    /// stopped at.
    pub fn passed(&self) -> Vec<Stop> {
        std::mem::take(&mut self.state().passed)
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The request of ioctl(2), in 32 bits (Linux `scsi/sg.h`).
const SG_IO: u32 = 0x2285;

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn watch(notifications: &OwnedFd, state: &Mutex<State>, stop: &io::PipeReader) {
    let ioctl = libseccomp::ScmpSyscall::from_name("ioctl").expect("a known system call");
    loop {
        let mut ready = [PollFd::new(notifications, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut ready, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => panic!("poll: {error}"),
        }
        // Hung up: no process of the helper is left.
        let over = |fd: &PollFd<'_>| fd.revents().intersects(PollFlags::HUP | PollFlags::ERR);
        if over(&ready[1]) || (over(&ready[0]) && !ready[0].revents().contains(PollFlags::IN)) {
            return;
        }
        // The thread that asked may have ended.
        let Ok(request) = ScmpNotifReq::receive(notifications.as_raw_fd()) else { continue };
        if request.data.syscall != ioctl || request.data.args[1] as u32 != SG_IO {
            let call = request.data.syscall.get_name().unwrap_or_default();
            let stop = Stop { call, thread: request.pid };
            let mut state = lock(state);
            if state.stopping {
                state.stopped.push((request.id, stop));
            } else {
                state.passed.push(stop);
                pass_on(notifications, request.id);
            }
            continue;
        }
        let [descriptor, _, address, ..] = request.data.args;
        let (call, header) = match read_call(request.pid, descriptor as i32, address) {
            Ok(read) => read,
            // Gone, or a header that cannot be read: the kernel's own answer to that.
            Err(_) => {
                pass_on(notifications, request.id);
                continue;
            }
        };
        let script = {
            let mut state = lock(state);
            state.calls.push(call.clone());
            Arc::clone(&state.script)
        };
        match script(&call) {
            Some(reply) => answer(notifications, request.id, call.thread, header, &reply),
            None => lock(state).held.push((request.id, call, header)),
        }
    }
}

fn memory(thread: u32) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(format!("/proc/{thread}/mem"))
}

fn read_call(thread: u32, descriptor: i32, address: u64) -> io::Result<(Call, Header)> {
    let memory = memory(thread)?;
    let mut header = Header::new_zeroed();
    memory.read_exact_at(header.as_mut_bytes(), address)?;
    let read = |address: u64, length: u32| {
        let mut bytes = vec![0; length as usize];
        memory.read_exact_at(&mut bytes, address).map(|()| bytes)
    };
    let call = Call {
        interface_id: header.interface_id,
        direction: header.direction,
        command: read(header.command, header.command_length.into())?,
        sense_room: header.sense_room,
        iovec_count: header.iovec_count,
        transfer_length: header.transfer_length,
        buffer: read(header.data, header.transfer_length)?,
        timeout: header.timeout,
        flags: header.flags,
        descriptor,
        thread,
    };
    // Where the header itself lies, kept in the field that user space may use for itself.
    header.user_pointer = address;
    Ok((call, header))
}

fn answer(notifications: &OwnedFd, id: u64, thread: u32, header: Header, reply: &Reply) {
    let response = match reply {
        Reply::Errno(errno) => ScmpNotifResp::new_error(id, -errno, ScmpNotifRespFlags::empty()),
        Reply::Done(done) => {
            // A thread that is gone needs no answer.
            let _ = write_reply(thread, header, done);
            ScmpNotifResp::new_val(id, 0, ScmpNotifRespFlags::empty())
        }
        Reply::Ignored => ScmpNotifResp::new_val(id, 0, ScmpNotifRespFlags::empty()),
    };
    let _ = response.respond(notifications.as_raw_fd());
}

fn write_reply(thread: u32, mut header: Header, done: &Done) -> io::Result<()> {
    let memory = memory(thread)?;
    let address = header.user_pointer;
    // Only what the kernel writes: all from the status on.
    (header.status, header.host_status, header.driver_status) = (done.status, done.host_status, done.driver_status);
    header.masked_status = (done.status >> 1) & 0x1f;
    header.sense_written = u8::try_from(done.sense.len()).expect("sense data have at most 252 bytes");
    (header.residual, header.duration) = (done.residual, 1);
    header.info = u32::from(done.status != 0 || done.host_status != 0 || done.driver_status != 0);
    const WRITTEN: usize = std::mem::offset_of!(Header, status);
    memory.write_all_at(&header.as_bytes()[WRITTEN..], address + WRITTEN as u64)?;
    let fits = |bytes: &[u8], room: u32| bytes[..bytes.len().min(room as usize)].to_vec();
    memory.write_all_at(&fits(&done.sense, header.sense_room.into()), header.sense)?;
    memory.write_all_at(&fits(&done.data, header.transfer_length), header.data)
}

fn pass_on(notifications: &OwnedFd, id: u64) {
    let _ = ScmpNotifResp::new_continue(id, ScmpNotifRespFlags::empty()).respond(notifications.as_raw_fd());
}
