//! `scsi-pr disk` as a real process, and initiators of it.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use testing_support::initiator::Answer;
use testing_support::{Initiator, Launcher, Program, eventually};

use super::{PROGRAM, Place};

pub(crate) const BLOCK: usize = 512;
pub(crate) const GOOD: u8 = 0;
pub(crate) const CONFLICT: u8 = 0x18;

/// The target of the unit `name`.
pub(crate) fn target(name: &str) -> String {
    format!("iqn.2026-11.io.scsi-pr:{name}")
}

pub(crate) fn initiator(name: &str) -> String {
    format!("iqn.2001-04.com.example:{name}")
}

/// A start of the program, with a control socket in `place`.
pub(crate) struct Start {
    launcher: Launcher,
    control: PathBuf,
}

impl Start {
    pub(crate) fn new(place: &Place) -> Self {
        Self::with_control(place, "control")
    }

    pub(crate) fn with_control(place: &Place, control: &str) -> Self {
        let control = place.path(control);
        let mut launcher = Launcher::new(PROGRAM);
        launcher.arg("disk").arg(format!("--control={}", control.display()));
        Self { launcher, control }
    }

    /// The unit `shared`, on the disk image of the place, at a free port of loopback.
    pub(crate) fn shared(place: &Place) -> Self {
        Self::new(place).store(&place.sqlite()).unit("shared", place.path("disk.img")).listen(0)
    }

    pub(crate) fn arg(mut self, argument: impl Into<std::ffi::OsString>) -> Self {
        self.launcher.arg(argument.into());
        self
    }

    pub(crate) fn store(self, store: &str) -> Self {
        self.arg(format!("--store={store}"))
    }

    pub(crate) fn unit(self, name: &str, path: PathBuf) -> Self {
        self.arg(format!("--unit={name}={}", path.display()))
    }

    pub(crate) fn listen(self, port: u16) -> Self {
        self.arg(format!("--listen=127.0.0.1:{port}"))
    }

    pub(crate) fn env(mut self, name: &str, value: impl Into<std::ffi::OsString>) -> Self {
        self.launcher.env(name, value.into());
        self
    }

    /// Starts the program, and waits until it serves.
    #[track_caller]
    pub(crate) fn start(mut self) -> Disks {
        let mut process = self.launcher.spawn();
        let address = eventually("the address", || {
            let log = process.stderr();
            assert!(process.try_wait().is_none(), "it has ended: {log}");
            let line = log.lines().find_map(|line| line.split_once("listening on "))?.1;
            line.split_once(' ')?.0.parse().ok()
        });
        Disks { process, address, control: self.control }
    }

    /// Standard error of a start that must fail.
    #[track_caller]
    pub(crate) fn refusal(mut self) -> String {
        let (code, _, stderr) = self.launcher.outcome();
        assert_eq!(code, Some(1), "{stderr}");
        stderr
    }
}

/// The program.
pub(crate) struct Disks {
    pub(crate) process: Program,
    pub(crate) address: SocketAddr,
    control: PathBuf,
}

impl Disks {
    /// The address of a portal group.
    #[track_caller]
    pub(crate) fn portal_group(&self, number: u16) -> SocketAddr {
        eventually("the portal group", || {
            let log = self.process.stderr();
            let (before, _) = log.split_once(&format!(" (portal group {number})"))?;
            before.rsplit_once("listening on ")?.1.parse().ok()
        })
    }

    /// A session of `name` with the unit `unit`, whose first unit attention is taken.
    #[track_caller]
    pub(crate) fn session(&self, unit: &str, name: &str) -> Initiator {
        let mut session = Initiator::connect(self.address, &target(unit)).log_in(&initiator(name));
        let sense = session.read(&[0; 6], 0).sense;
        assert!(matches!(sense, Some([6, 0x29, 0 | 7])), "{sense:?}");
        session
    }

    /// The same with every unit attention that was pending.
    #[track_caller]
    pub(crate) fn session_with_attentions(&self, unit: &str, name: &str) -> (Initiator, Vec<[u8; 3]>) {
        let mut session = Initiator::connect(self.address, &target(unit)).log_in(&initiator(name));
        let attentions = std::iter::from_fn(|| session.read(&[0; 6], 0).sense).collect();
        (session, attentions)
    }

    /// The same as `session` once the program serves again.
    #[track_caller]
    pub(crate) fn session_again(&self, unit: &str, name: &str) -> Initiator {
        eventually("the program", || std::net::TcpStream::connect(self.address).ok());
        self.session(unit, name)
    }

    /// The status of a login.
    pub(crate) fn try_login(&self, unit: &str, name: &str) -> Result<Initiator, u16> {
        Initiator::connect(self.address, &target(unit)).try_log_in(&initiator(name))
    }

    #[track_caller]
    pub(crate) fn control(&self) -> Control {
        Control::connect(&self.control)
    }

    pub(crate) fn log(&self) -> String {
        self.process.stderr()
    }

    /// The names of the targets that `name` discovers by libiscsi; `None` if it is not installed.
    #[track_caller]
    pub(crate) fn discover(&self, name: &str, account: &str) -> Option<Result<Vec<String>, String>> {
        let url = format!("iscsi://{account}{}/", self.address);
        let output = libiscsi("iscsi-ls", &["-i", &initiator(name), &url])?;
        let text = String::from_utf8(output.stdout).unwrap();
        let targets =
            text.lines().filter_map(|line| line.strip_prefix("Target:")?.split(' ').next().map(str::to_owned));
        Some(if output.status.success() {
            Ok(targets.collect())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        })
    }
}

/// Runs a program of libiscsi (Debian: libiscsi-bin); `None` if it is not installed.
pub(crate) fn libiscsi(program: &str, arguments: &[&str]) -> Option<std::process::Output> {
    let output = Command::new(program).args(arguments).output();
    output.map_err(|error| println!("skipped: {program} cannot be started ({error})")).ok()
}

/// A connection to the control socket.
pub(crate) struct Control(BufReader<UnixStream>);

impl Control {
    #[track_caller]
    pub(crate) fn connect(path: &std::path::Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self(BufReader::new(stream))
    }

    pub(crate) fn send(&mut self, line: &str) {
        // A program that has closed the connection is what `receive` reports.
        let _ = self.0.get_mut().write_all(line.as_bytes());
    }

    /// The next line; empty at the end.
    pub(crate) fn receive(&mut self) -> String {
        let mut line = String::new();
        let _ = self.0.read_line(&mut line);
        line
    }

    /// The answer to one request.
    #[track_caller]
    pub(crate) fn ask(&mut self, request: &str) -> serde_json::Value {
        self.send(&format!("{request}\n"));
        serde_json::from_str(&self.receive()).unwrap()
    }

    /// The status of a reservation command of `name` on the unit `shared`.
    #[track_caller]
    pub(crate) fn execute(&mut self, name: &str, cdb: &[u8], list: &[u8]) -> serde_json::Value {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let (name, cdb, list) = (initiator(name), hex(cdb), hex(list));
        self.ask(&format!(
            r#"{{"request":"execute","unit":"shared","initiator":"{name}","cdb":"{cdb}","data":"{list}"}}"#
        ))
    }
}

/// Makes a disk image.
pub(crate) fn image(place: &Place, name: &str, size: u64) -> PathBuf {
    let path = place.path(name);
    File::create(&path).unwrap().set_len(size).unwrap();
    path
}

/// READ(10) or WRITE(10) of one block. `fua` is the byte with FUA.
pub(crate) fn block(opcode: u8, lba: u8, fua: u8) -> [u8; 10] {
    [opcode, fua, 0, 0, 0, lba, 0, 0, 1, 0]
}

#[track_caller]
pub(crate) fn write_block(session: &mut Initiator, lba: u8, byte: u8) -> Answer {
    session.write(&block(0x2a, lba, 0), &[byte; BLOCK])
}

#[track_caller]
pub(crate) fn read_block(session: &mut Initiator, lba: u8) -> Vec<u8> {
    let answer = session.read(&block(0x28, lba, 0), BLOCK as u32);
    assert_eq!((answer.status, answer.data.len()), (GOOD, BLOCK), "{answer:?}");
    answer.data
}

/// PERSISTENT RESERVE OUT and its parameter list, with APTPL.
pub(crate) fn reserve_out(action: u8, reservation_type: u8, key: u64, service_action_key: u64) -> ([u8; 10], Vec<u8>) {
    // APTPL is a bit of REGISTER, and may not be set elsewhere.
    let aptpl = u8::from(matches!(action, 0 | 6));
    let list = [&key.to_be_bytes()[..], &service_action_key.to_be_bytes(), &[0, 0, 0, 0, aptpl, 0, 0, 0]].concat();
    ([0x5f, action, reservation_type, 0, 0, 0, 0, 0, 24, 0], list)
}

/// Registers a key, or preempts (and so on) as `action` says.
#[track_caller]
pub(crate) fn reserve(session: &mut Initiator, action: u8, kind: u8, key: u64, service_action_key: u64) -> Answer {
    let (cdb, list) = reserve_out(action, kind, key, service_action_key);
    session.write(&cdb, &list)
}

pub(crate) const READ_KEYS: [u8; 10] = [0x5e, 0, 0, 0, 0, 0, 0, 2, 0, 0];

#[track_caller]
pub(crate) fn keys(session: &mut Initiator) -> Vec<u64> {
    let answer = session.read(&READ_KEYS, 512);
    assert_eq!(answer.status, GOOD, "{answer:?}");
    answer.data[8..].chunks(8).map(|key| u64::from_be_bytes(key.try_into().unwrap())).collect()
}
