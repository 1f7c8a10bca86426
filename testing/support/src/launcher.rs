//! How a program is started, and the process that it becomes.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::{Client, DEADLINE, Process, eventually};

/// An environment variable by which every process that a program became is found, also a daemon.
#[derive(Debug)]
struct Mark(String);

impl Mark {
    const NAME: &str = "SCSI_PR_TEST";

    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        Self(format!("{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)))
    }

    fn processes(&self) -> Vec<Process> {
        Process::with_variable(Self::NAME, &self.0)
    }
}

impl Drop for Mark {
    /// Nothing that was started outlives its test.
    fn drop(&mut self) {
        self.processes().into_iter().for_each(|process| process.signal(Signal::KILL));
    }
}

/// Destination of an output.
#[derive(Debug, Default)]
pub enum Output {
    /// A file without a name, which [`Program::stdout`] and [`Program::stderr`] read.
    #[default]
    Recorded,
    /// A pipe, whose reader [`Program::child`] has.
    Pipe,
    /// An open file or the end of a pipe.
    To(OwnedFd),
}

impl Output {
    /// The destination, and the file where the output is recorded.
    fn open(self) -> io::Result<(Stdio, Option<File>)> {
        Ok(match self {
            Self::Recorded => {
                let file = tempfile::tempfile()?;
                (Stdio::from(file.try_clone()?), Some(file))
            }
            Self::Pipe => (Stdio::piped(), None),
            Self::To(file) => (Stdio::from(file), None),
        })
    }
}

/// A start of a program that is being prepared.
///
/// The program finds every signal unblocked and with its default action, `/dev/null` as standard input, and none of the
/// variables by which systemd passes sockets. All that it became is killed when its [`Launcher`] and every [`Program`]
/// of it are dropped.
#[derive(Debug)]
pub struct Launcher {
    program: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, Option<OsString>)>,
    is_environment_cleared: bool,
    directory: Option<PathBuf>,
    shell: String,
    redirections: String,
    stdin: Option<OwnedFd>,
    stdout: Output,
    stderr: Output,
    mark: Arc<Mark>,
}

impl Launcher {
    /// A start of this program without arguments.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let passed = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET"];
        Self {
            program: program.as_ref().to_owned(),
            arguments: Vec::new(),
            environment: passed.map(|name| (name.into(), None)).to_vec(),
            is_environment_cleared: false,
            directory: None,
            shell: String::new(),
            redirections: String::new(),
            stdin: None,
            stdout: Output::default(),
            stderr: Output::default(),
            mark: Arc::new(Mark::new()),
        }
    }

    /// Replaces the program.
    pub fn program(&mut self, program: impl AsRef<OsStr>) -> &mut Self {
        self.program = program.as_ref().to_owned();
        self
    }

    /// Adds an argument.
    pub fn arg(&mut self, argument: impl AsRef<OsStr>) -> &mut Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(&mut self, arguments: impl IntoIterator<Item = S>) -> &mut Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Runs `wrapper` in place of the program, with the program and its arguments as its last arguments.
    pub fn wrapped_by<S: AsRef<OsStr>>(&mut self, wrapper: impl IntoIterator<Item = S>) -> &mut Self {
        let mut words = wrapper.into_iter().map(|word| word.as_ref().to_owned());
        let program = std::mem::replace(&mut self.program, words.next().expect("a wrapper has a name"));
        self.arguments.splice(..0, words.chain([program])).for_each(drop);
        self
    }

    /// Sets an environment variable.
    pub fn env(&mut self, name: &str, value: impl AsRef<OsStr>) -> &mut Self {
        self.environment.push((name.into(), Some(value.as_ref().to_owned())));
        self
    }

    /// Starts with an empty environment, but for the variables that are set afterwards.
    pub fn env_clear(&mut self) -> &mut Self {
        self.environment.clear();
        self.is_environment_cleared = true;
        self
    }

    /// The working directory.
    pub fn current_dir(&mut self, directory: impl Into<PathBuf>) -> &mut Self {
        self.directory = Some(directory.into());
        self
    }

    /// Shell commands that run first, in the process that becomes the program, such as `umask 022` or `ulimit -n 64`.
    pub fn shell(&mut self, commands: &str) -> &mut Self {
        self.shell.push_str(commands);
        self.shell.push('\n');
        self
    }

    /// Shell redirections of the program, such as `3<&0 0</dev/null`.
    pub fn redirect(&mut self, redirections: &str) -> &mut Self {
        self.redirections.push(' ');
        self.redirections.push_str(redirections);
        self
    }

    /// Passes `socket` as systemd does: as descriptor 3, with the variables, such as `LISTEN_PID=$$ LISTEN_FDS=1`.
    pub fn activated_with(&mut self, socket: impl Into<OwnedFd>, variables: &str) -> &mut Self {
        self.shell(&format!("export {variables}")).stdin(socket).redirect("3<&0 0</dev/null")
    }

    /// Sets standard input.
    pub fn stdin(&mut self, file: impl Into<OwnedFd>) -> &mut Self {
        self.stdin = Some(file.into());
        self
    }

    /// Sets standard output.
    pub fn stdout(&mut self, output: Output) -> &mut Self {
        self.stdout = output;
        self
    }

    /// Sets standard error.
    pub fn stderr(&mut self, output: Output) -> &mut Self {
        self.stderr = output;
        self
    }

    /// Starts the program. Its standard input and outputs go to this start alone.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    #[track_caller]
    pub fn spawn(&mut self) -> Program {
        self.try_spawn().unwrap_or_else(|error| panic!("{} cannot be started: {error}", self.program.display()))
    }

    /// Starts the program.
    pub fn try_spawn(&mut self) -> io::Result<Program> {
        // A shell starts background jobs with some signals ignored, and a thread of a test may have blocked some.
        let mut command = Command::new("env");
        command.arg("--default-signal");
        if !self.shell.is_empty() || !self.redirections.is_empty() {
            let script = format!("{}exec \"$@\"{}", self.shell, self.redirections);
            command.args(["/bin/sh", "-c", &script, "sh"]);
        }
        command.arg(&self.program).args(&self.arguments);
        if self.is_environment_cleared {
            command.env_clear();
        }
        for (name, value) in &self.environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        let (out, stdout) = std::mem::take(&mut self.stdout).open()?;
        let (err, stderr) = std::mem::take(&mut self.stderr).open()?;
        command
            .env(Mark::NAME, &self.mark.0)
            .stdin(self.stdin.take().map_or_else(Stdio::null, Stdio::from))
            .stdout(out)
            .stderr(err);
        let child = command.spawn()?;
        Ok(Program { child, command, stdout, stderr, mark: Arc::clone(&self.mark) })
    }

    /// Starts the program and waits until it serves at `socket`.
    #[track_caller]
    pub fn serve(&mut self, socket: &Path) -> Program {
        let mut program = self.spawn();
        program.wait_until_served(socket);
        program
    }

    /// Starts the program and waits for its end: the exit code, standard output and standard error.
    #[track_caller]
    pub fn outcome(&mut self) -> (Option<i32>, String, String) {
        let mut program = self.spawn();
        let status = program.wait();
        (status.code(), program.stdout(), program.stderr())
    }
}

/// A program that was started. It is killed with the value.
#[derive(Debug)]
pub struct Program {
    child: Child,
    command: Command,
    stdout: Option<File>,
    stderr: Option<File>,
    mark: Arc<Mark>,
}

impl Program {
    /// The child process.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// The id of the process that was started. A daemon that it left has another.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process that was started.
    pub fn process(&self) -> Process {
        Process::new(self.pid())
    }

    /// Every process that the launcher's programs became.
    pub fn processes(&self) -> Vec<Process> {
        self.mark.processes()
    }

    /// Everything so far on standard output, when that is [`Output::Recorded`].
    pub fn stdout(&self) -> String {
        read(self.stdout.as_ref())
    }

    /// Everything so far on standard error, when that is [`Output::Recorded`].
    pub fn stderr(&self) -> String {
        read(self.stderr.as_ref())
    }

    /// Waits until the program has written `text` to standard error.
    #[track_caller]
    pub fn wait_for_stderr(&self, text: &str) {
        eventually(&format!("standard error has {text:?}, not {:?}", self.stderr()), || {
            self.stderr().contains(text).then_some(())
        });
    }

    /// Waits until the program serves at `socket`.
    ///
    /// # Panics
    ///
    /// When the program ends, or after [`DEADLINE`].
    #[track_caller]
    pub fn wait_until_served(&mut self, socket: &Path) {
        self.try_wait_until_served(socket).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Waits until the program serves at `socket`: it has sent its features to a client. A connection alone proves less,
    /// for it may be to a socket that the program is about to replace.
    pub fn try_wait_until_served(&mut self, socket: &Path) -> io::Result<()> {
        let start = Instant::now();
        loop {
            let served = Client::connect(socket).and_then(|mut client| client.read_features());
            let Err(error) = served else { return Ok(()) };
            if let Some(status) = self.try_wait() {
                return Err(io::Error::other(format!("the program ended with {status}: {}", self.stderr())));
            }
            if start.elapsed() > DEADLINE {
                let message = format!("{} is not served after {DEADLINE:?}: {error}", socket.display());
                return Err(io::Error::new(error.kind(), message));
            }
            sleep(Duration::from_millis(2));
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.process().signal(signal);
    }

    /// The exit status, if the program has ended.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the status of a child")
    }

    /// Waits for the end of the program.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        eventually("the program ends", || self.try_wait())
    }

    /// Sends a signal and waits for the end of the program.
    #[track_caller]
    pub fn end_by(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.wait()
    }

    /// Sends SIGTERM, as systemd does, and waits for the end of the program.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.end_by(Signal::TERM)
    }

    /// Kills the process that was started, and leaves the rest as it is.
    pub fn kill(&mut self) {
        // It fails when the program has been waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Kills everything that the launcher's programs became.
    pub fn kill_all(&mut self) {
        self.kill();
        self.processes().into_iter().for_each(|process| process.signal(Signal::KILL));
    }

    /// Kills the program and starts it again with the same arguments and files.
    #[track_caller]
    pub fn restart(&mut self) {
        self.kill();
        self.child =
            self.command.spawn().unwrap_or_else(|error| panic!("{:?} does not start again: {error}", self.command));
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Reads from the start without moving the offset, at which the program writes.
fn read(file: Option<&File>) -> String {
    let Some(file) = file else { return String::new() };
    let mut bytes = vec![0; file.metadata().map_or(0, |metadata| metadata.len()) as usize];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], filled as u64).expect("a temporary file") {
            0 => break,
            count => filled += count,
        }
    }
    bytes.truncate(filled);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_that_ends_gives_its_status_and_its_output() {
        let mut launcher = Launcher::new("sh");
        launcher.args(["-c", "echo out; echo err >&2; exit 3"]);
        assert_eq!(launcher.outcome(), (Some(3), "out\n".to_owned(), "err\n".to_owned()));
    }

    #[test]
    fn shell_commands_run_in_the_process_that_becomes_the_program() {
        let mut launcher = Launcher::new("sh");
        launcher.args(["-c", "test $FIRST = $$ && cat <&3"]).shell("export FIRST=$$").redirect("3<&0 0</dev/null");
        let (reader, mut writer) = io::pipe().unwrap();
        io::Write::write_all(&mut writer, b"passed").unwrap();
        drop(writer);
        assert_eq!(launcher.stdin(reader).outcome(), (Some(0), "passed".to_owned(), String::new()));
    }

    #[test]
    fn variables_of_systemd_are_not_inherited() {
        let mut launcher = Launcher::new("env");
        launcher.env("LISTEN_FDS", "1");
        assert!(launcher.outcome().1.contains("LISTEN_FDS=1\n"));
        assert!(!Launcher::new("env").outcome().1.contains("LISTEN_"));
    }

    #[test]
    fn wrapper_gets_the_program_as_its_last_arguments() {
        let mut launcher = Launcher::new("echo");
        launcher.arg("b").wrapped_by(["env", "echo", "a"]);
        assert_eq!(launcher.outcome().1, "a echo b\n");
    }

    #[test]
    fn daemon_ends_with_its_launcher() {
        let mut launcher = Launcher::new("sh");
        launcher.args(["-c", "sleep 1000 >/dev/null 2>&1 & echo $!"]);
        let daemon = Process::new(launcher.outcome().1.trim().parse().unwrap());
        assert!(daemon.is_running());
        drop(launcher);
        eventually("the daemon ends", || (!daemon.is_running()).then_some(()));
    }

    #[test]
    fn program_that_is_dropped_ends() {
        let mut launcher = Launcher::new("sleep");
        let program = launcher.arg("1000").spawn();
        let process = program.process();
        assert!(process.is_running());
        drop(program);
        assert!(!process.is_running());
    }

    #[test]
    fn restart_keeps_the_arguments_and_the_record() {
        let mut program = Launcher::new("sh").args(["-c", "echo started; exec sleep 1000"]).spawn();
        for count in 1..=2 {
            eventually("a start", || (program.stdout().lines().count() == count).then_some(()));
            program.restart();
        }
        let first = program.pid();
        program.restart();
        assert_ne!(program.pid(), first);
    }
}
