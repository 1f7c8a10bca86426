//! The stamp test: a loser writes numbered blocks without pause to `scsi-pr disk` on a medium whose writes take long, and a
//! winner takes its registration away. From the winner's GOOD on, no block may change.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testing_support::iscsi::{Initiator, ScsiCommand, Unit};

use crate::lab::Lab;
use crate::layer::Layer;
use crate::report::Report;
use crate::scenario::Scenario;
use crate::system::{run, wait_for};

/// On a device-mapper device that delays writes.
pub(super) const STAMPS: Scenario = Scenario {
    name: "disk-stamps",
    boot: "stamps",
    purpose: "after GOOD to a preempt, no write of the loser changes a block: beside kill -9, SIGSTOP and an aborted preempt",
    run: stamps,
};

/// The time that the medium takes for a write.
const WRITE: Duration = Duration::from_millis(300);
const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 3260);
const LOSER: &str = "iqn.2026-11.lab:loser";
const WINNER: &str = "iqn.2026-11.lab:winner";
/// Sessions of the loser; each writes a block of its own.
const WRITERS: u16 = 4;
const BLOCK: usize = 512;

const GOOD: u8 = 0x00;
const CHECK_CONDITION: u8 = 0x02;
const RESERVATION_CONFLICT: u8 = 0x18;
const REGISTER_AND_IGNORE: u8 = 6;
const RESERVE: u8 = 1;
const PREEMPT: u8 = 4;
const PREEMPT_AND_ABORT: u8 = 5;
const LOSERS_KEY: u64 = 1;
const WINNERS_KEY: u64 = 2;

/// The event between the loser's writes and the winner's GOOD.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Disturbance {
    Nothing,
    /// The server is killed, and started again.
    Kill,
    /// The server stops for a second.
    Stop,
    /// The winner aborts its preempt, and reads the keys until the loser's is gone.
    Abort,
}

fn stamps(lab: &mut Lab, report: &mut Report) -> Result<()> {
    run("modprobe", &["--all", "brd", "dm-delay"])?;
    let medium = Layer::delayed(Path::new("/dev/ram0"), WRITE)?;
    let unit = Unit { address: ADDRESS, target: "iqn.2026-11.io.scsi-pr:stamps".to_owned(), lun: 0 };
    let mut server = Server::start(&lab.scsi_pr(), &medium.path)?;
    for (action, disturbance) in [
        (PREEMPT, Disturbance::Nothing),
        (PREEMPT_AND_ABORT, Disturbance::Nothing),
        (PREEMPT, Disturbance::Stop),
        (PREEMPT_AND_ABORT, Disturbance::Abort),
        (PREEMPT, Disturbance::Kill),
        (PREEMPT_AND_ABORT, Disturbance::Kill),
    ] {
        let outcome = fence(&unit, &mut server, action, disturbance);
        let what = format!("service action {action}, {disturbance:?}: no stamp changes after GOOD");
        report.check(what, outcome.map_err(|error| format!("{error:#}")));
    }
    Ok(())
}

/// The loser writes, the winner fences it.
fn fence(unit: &Unit, server: &mut Server, action: u8, disturbance: Disturbance) -> Result<()> {
    let mut loser = Initiator::log_in(unit, LOSER, WRITERS)?;
    let mut winner = Initiator::log_in(unit, WINNER, 0)?;
    reserve_out(&mut winner, REGISTER_AND_IGNORE, 0, WINNERS_KEY)?;
    reserve_out(&mut loser, REGISTER_AND_IGNORE, 0, LOSERS_KEY)?;
    // After the first time the winner holds it already, which permits registrants as well.
    let _ = reserve_out(&mut loser, RESERVE, LOSERS_KEY, 0);

    let writers: Vec<_> = (0..WRITERS).map(|number| Writer::start(unit.clone(), number)).collect();
    wait_for("writes of every session", || {
        match writers.iter().all(|writer| writer.done.load(Ordering::SeqCst) >= 2) {
            true => Ok(()),
            false => bail!("not yet"),
        }
    })?;
    if disturbance == Disturbance::Kill {
        server.restart()?;
        winner = wait_for("login of the winner", || Initiator::log_in(unit, WINNER, 0))?;
    }
    let (cdb, list) = command(action, WINNERS_KEY, LOSERS_KEY);
    let preempt = ScsiCommand { cdb, data: &list, expected: 0 };
    match disturbance {
        Disturbance::Stop => {
            server.signal(Signal::SIGSTOP)?;
            let pid = server.pid();
            let go_on = thread::spawn(move || {
                thread::sleep(Duration::from_secs(1));
                kill(pid, Signal::SIGCONT)
            });
            let status = winner.run(preempt)?.0;
            go_on.join().expect("a thread that sends a signal")?;
            ensure!(status == GOOD, "the preempt ended with status {status:#04x}");
        }
        Disturbance::Abort => {
            winner.start(preempt)?;
            thread::sleep(WRITE / 4);
            winner.abort_task_set()?;
            wait_for("keys without the loser's", || match keys(&mut winner)?.contains(&LOSERS_KEY) {
                true => bail!("the loser is registered"),
                false => Ok(()),
            })?;
        }
        Disturbance::Nothing | Disturbance::Kill => reserve_out(&mut winner, action, WINNERS_KEY, LOSERS_KEY)?,
    }
    let at_good = read_stamps(&mut winner)?;
    thread::sleep(WRITE * 5);
    let later = read_stamps(&mut winner)?;
    let refused = writers.iter().all(|writer| writer.refused.load(Ordering::SeqCst) > 0);
    drop(writers);
    ensure!(at_good.iter().any(|stamp| *stamp > 0), "the loser has written nothing");
    ensure!(at_good == later, "stamps at GOOD: {at_good:?}, later: {later:?}");
    ensure!(refused, "a session of the loser was not refused");
    Ok(())
}

/// A session of the loser that writes increasing numbers to its block, until this is dropped. It logs in again when the
/// server was killed.
struct Writer {
    done: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(unit: Unit, number: u16) -> Self {
        let (done, refused, stop): (Arc<AtomicU64>, Arc<AtomicU64>, Arc<AtomicBool>) = Default::default();
        let (written, conflicts, ends) = (Arc::clone(&done), Arc::clone(&refused), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut stamp = 0_u64;
            while !ends.load(Ordering::SeqCst) {
                let Ok(mut session) = Initiator::log_in(&unit, LOSER, number) else {
                    thread::sleep(Duration::from_millis(20));
                    continue;
                };
                while !ends.load(Ordering::SeqCst) {
                    stamp += 1;
                    let mut data = [0; BLOCK];
                    data[..8].copy_from_slice(&stamp.to_be_bytes());
                    let mut cdb = [0; 16];
                    (cdb[0], cdb[5], cdb[8]) = (0x2a, number as u8, 1);
                    match session.run(ScsiCommand { cdb, data: &data, expected: 0 }) {
                        Ok((GOOD, _)) => _ = written.fetch_add(1, Ordering::SeqCst),
                        Ok((RESERVATION_CONFLICT, _)) => {
                            conflicts.fetch_add(1, Ordering::SeqCst);
                            thread::sleep(Duration::from_millis(5));
                        }
                        Ok(_) => {}
                        Err(_) => break,
                    }
                }
            }
        });
        Self { done, refused, stop, thread: Some(thread) }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// PERSISTENT RESERVE OUT with Write Exclusive – Registrants Only.
fn command(action: u8, key: u64, service_action_key: u64) -> ([u8; 16], Vec<u8>) {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[2], cdb[8]) = (0x5f, action, 5, 24);
    (cdb, [&key.to_be_bytes()[..], &service_action_key.to_be_bytes(), &[0; 8]].concat())
}

/// Sends PERSISTENT RESERVE OUT, again after a unit attention. Any status but GOOD is an error.
fn reserve_out(initiator: &mut Initiator, action: u8, key: u64, service_action_key: u64) -> Result<()> {
    let (cdb, list) = command(action, key, service_action_key);
    match run_past_attentions(initiator, ScsiCommand { cdb, data: &list, expected: 0 })? {
        (GOOD, _) => Ok(()),
        (status, _) => bail!("PERSISTENT RESERVE OUT {action} ended with status {status:#04x}"),
    }
}

fn run_past_attentions(initiator: &mut Initiator, command: ScsiCommand<'_>) -> Result<(u8, Vec<u8>)> {
    let mut last = initiator.run(command)?;
    for _ in 0..5 {
        if last.0 != CHECK_CONDITION {
            break;
        }
        last = initiator.run(command)?;
    }
    Ok(last)
}

fn keys(initiator: &mut Initiator) -> Result<Vec<u64>> {
    let mut cdb = [0; 16];
    (cdb[0], cdb[7]) = (0x5e, 1);
    let (status, data) = run_past_attentions(initiator, ScsiCommand { cdb, data: &[], expected: 256 })?;
    ensure!(status == GOOD, "READ KEYS ended with status {status:#04x}");
    Ok(data[8..].chunks_exact(8).map(|key| key.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))).collect())
}

/// The stamps of all blocks.
fn read_stamps(initiator: &mut Initiator) -> Result<Vec<u64>> {
    let mut cdb = [0; 16];
    (cdb[0], cdb[8]) = (0x28, WRITERS as u8);
    let expected = usize::from(WRITERS) * BLOCK;
    let (status, data) = run_past_attentions(initiator, ScsiCommand { cdb, data: &[], expected })?;
    ensure!(status == GOOD && data.len() == expected, "a read ended with status {status:#04x}");
    let stamp = |block: &[u8]| block[..8].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    Ok(data.chunks_exact(BLOCK).map(stamp).collect())
}

/// `scsi-pr disk` with O_DIRECT on the medium. It is killed when dropped.
struct Server {
    process: Child,
    program: PathBuf,
    medium: PathBuf,
}

impl Server {
    fn start(program: &Path, medium: &Path) -> Result<Self> {
        let process = spawn(program, medium)?;
        Ok(Self { process, program: program.to_owned(), medium: medium.to_owned() })
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.process.id().cast_signed())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(self.pid(), signal)?)
    }

    /// Kills the server while writes are on the medium, and starts it again.
    fn restart(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        self.process = spawn(&self.program, &self.medium)?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts the server, and waits until it listens: after the lock of the medium is free.
fn spawn(program: &Path, medium: &Path) -> Result<Child> {
    let mut command = Command::new(program);
    command.args(["disk", "--store=sqlite:/run/stamps.db", "--cache=none", "--control=/run/stamps.sock"]);
    command.arg(format!("--listen={ADDRESS}")).arg(format!("--unit=stamps={}", medium.display()));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let process = command.spawn().with_context(|| format!("start {}", program.display()))?;
    wait_for("listening server", || std::net::TcpStream::connect(ADDRESS))?;
    Ok(process)
}
