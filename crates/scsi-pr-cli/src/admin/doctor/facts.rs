//! [`Facts`]: the state of a host, as far as helpers need it.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use scsi_pr_linux::multipath::Tools;

use super::apparmor::{self, Denial};
use super::socket::{self, SocketState};

/// The default socket of a helper for the whole host.
pub(super) const DEFAULT_SOCKET: &str = "/run/qemu-pr-helper.sock";

/// The path at which libvirt looks for a helper if qemu.conf names none.
pub(super) const DEFAULT_HELPER: &str = "/usr/bin/qemu-pr-helper";

/// The most bytes of a log or a program that are read.
const MAX_LENGTH: u64 = 64 << 20;

/// The end of a log that is searched for denials, in bytes.
const LOG_TAIL: u64 = 4 << 20;

/// How long journalctl may take.
const JOURNAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Text that only this project's helper has: the name of its monitor process.
const MARK: &[u8] = b"qemu-pr-helper-monitor";

/// The origin of a helper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// `qemu-pr-helper` of this project.
    ScsiPr,
    /// `scsi-pr serve`.
    Serve,
    /// Another program: QEMU's.
    Other,
}

/// A program of a helper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) origin: Origin,
}

/// A user or a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) user: u32,
    pub(super) groups: Vec<u32>,
}

/// `pr_helper` in qemu.conf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PrHelper {
    pub(super) path: String,
    /// The line number, from 1; `None` for libvirt's default.
    pub(super) line: Option<usize>,
    /// The program at the path; `Err` is the reason why it cannot be executed.
    pub(super) program: Result<Program, String>,
}

/// A profile of AppArmor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Profile {
    /// The name of its file in /etc/apparmor.d.
    pub(super) name: String,
    /// Whether it lets its program execute the helper.
    pub(super) may_execute: bool,
}

/// The state of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) socket: PathBuf,
    /// Whether an option named the socket.
    pub(super) is_named: bool,
    pub(super) state: SocketState,
    /// The program behind the socket, where /proc tells it.
    pub(super) program: Option<Program>,
    /// The name of the group of the socket.
    pub(super) group_name: Option<String>,
    /// The user of virtual machines.
    pub(super) qemu: Option<Account>,
    /// `None`: libvirt has no qemu.conf here.
    pub(super) pr_helper: Option<PrHelper>,
    /// AppArmor's profile of libvirt's daemon; `None` where none is enforced or it cannot be read.
    pub(super) profile: Option<Profile>,
    pub(super) denials: Vec<Denial>,
    /// Why no log could be searched for denials.
    pub(super) no_log: Option<String>,
    pub(super) has_maps: bool,
    pub(super) multipath: Tools,
}

impl Facts {
    /// Reads the files below `root`. Sockets, processes and the log are those of this host.
    pub(super) fn gather(root: &Path, named: Option<&Path>) -> Self {
        let socket = named.unwrap_or(Path::new(DEFAULT_SOCKET)).to_owned();
        let state = socket::probe(&socket);
        let read = |path: &str| read_text(&at(root, path));
        let (passwd, group) = (read("/etc/passwd").unwrap_or_default(), read("/etc/group").unwrap_or_default());
        let qemu_conf = read("/etc/libvirt/qemu.conf");
        let user = qemu_conf.as_deref().and_then(|text| setting(text, "user")).map(|(_, value)| value);
        let candidates: Vec<&str> = user.as_deref().into_iter().chain(["libvirt-qemu", "qemu"]).collect();
        let pr_helper = qemu_conf.as_deref().map(|text| pr_helper(root, text));
        let group_name = match &state {
            SocketState::Present { group: id, .. } => name_of_group(&group, *id),
            _ => None,
        };
        let helper = pr_helper.as_ref().map_or(DEFAULT_HELPER, |helper| &helper.path).to_owned();
        let log = logs(root);
        let paths = [helper.as_str(), &socket.to_string_lossy()];
        Self {
            is_named: named.is_some(),
            program: program_behind(&state),
            group_name,
            qemu: candidates.iter().find_map(|name| account(&passwd, &group, name)),
            profile: profile(root, &helper),
            denials: log.as_ref().map_or_else(|_| Vec::new(), |log| apparmor::denials(log, &paths)),
            no_log: log.err(),
            pr_helper,
            has_maps: has_maps(root),
            multipath: Tools::inspect(),
            socket,
            state,
        }
    }
}

/// `path` below `root`.
fn at(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn read_text(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(MAX_LENGTH).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last value of `NAME = "VALUE"`, and the number of its line.
pub(super) fn setting(text: &str, name: &str) -> Option<(usize, String)> {
    let of_line = |(index, line): (usize, &str)| {
        let value = line.trim().strip_prefix(name)?.trim_start().strip_prefix('=')?.trim();
        let value =
            value.strip_prefix(['"', '\'']).map_or(value, |rest| rest.split(['"', '\'']).next().unwrap_or(rest));
        Some((index + 1, value.to_owned()))
    };
    text.lines().enumerate().filter_map(of_line).last()
}

fn pr_helper(root: &Path, qemu_conf: &str) -> PrHelper {
    let (line, path) = match setting(qemu_conf, "pr_helper") {
        Some((line, path)) => (Some(line), path),
        None => (None, DEFAULT_HELPER.to_owned()),
    };
    let program = program(&at(root, &path)).map(|origin| Program { path: PathBuf::from(&path), origin });
    PrHelper { path, line, program }
}

/// The origin of an executable file.
fn program(path: &Path) -> Result<Origin, String> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = fs::metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 {
        return Err("it is not an executable file".to_owned());
    }
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(MAX_LENGTH).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    Ok(if bytes.windows(MARK.len()).any(|window| window == MARK) { Origin::ScsiPr } else { Origin::Other })
}

/// The helper that serves a socket. Where systemd listens, it is a process with the name of a helper.
fn program_behind(state: &SocketState) -> Option<Program> {
    let SocketState::Present { peer: Ok(listener), .. } = state else { return None };
    let direct = program_of(&listener.pid.to_string());
    if direct.is_some() || listener.pid != 1 {
        return direct;
    }
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut numbers = processes.filter_map(|entry| entry.file_name().into_string().ok());
    numbers.find_map(|number| if number.parse::<u32>().is_ok() { program_of(&number) } else { None })
}

/// The program of a process, if it is a helper.
fn program_of(pid: &str) -> Option<Program> {
    let link = Path::new("/proc").join(pid).join("exe");
    let path = fs::read_link(&link).ok()?;
    let origin = match path.file_name()?.to_str()?.trim_end_matches(" (deleted)") {
        "scsi-pr" => Origin::Serve,
        name if name.starts_with("qemu-pr-helper") => program(&link).ok()?,
        _ => return None,
    };
    Some(Program { path, origin })
}

/// A user with all its groups.
fn account(passwd: &str, group: &str, name: &str) -> Option<Account> {
    let mut fields = passwd.lines().map(|line| line.split(':')).find_map(|mut fields| {
        let is_it = fields.next()? == name;
        is_it.then_some(fields)
    })?;
    let (user, own) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
    let is_member =
        |line: &&str| line.rsplit(':').next().is_some_and(|members| members.split(',').any(|one| one == name));
    let numbers = group.lines().filter(is_member).filter_map(|line| line.split(':').nth(2)?.parse().ok());
    Some(Account { name: name.to_owned(), user, groups: std::iter::once(own).chain(numbers).collect() })
}

fn name_of_group(group: &str, id: u32) -> Option<String> {
    let mut lines = group.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines.find(|fields| fields.get(2).is_some_and(|number| number.parse() == Ok(id))).map(|fields| fields[0].to_owned())
}

/// AppArmor's profile of libvirt's daemon, where it is enforced.
fn profile(root: &Path, helper: &str) -> Option<Profile> {
    let enabled = read_text(&at(root, "/sys/module/apparmor/parameters/enabled"))?;
    if enabled.trim() != "Y" {
        return None;
    }
    let loaded = read_text(&at(root, "/sys/kernel/security/apparmor/profiles")).unwrap_or_default();
    let is_enforced = |daemon: &str| {
        let names = loaded.lines().filter_map(|line| line.strip_suffix(" (enforce)"));
        names.into_iter().any(|name| name.rsplit('/').next() == Some(daemon))
    };
    let daemon = ["libvirtd", "virtqemud"].into_iter().find(|daemon| is_enforced(daemon))?;
    let name = format!("usr.sbin.{daemon}");
    let directory = at(root, "/etc/apparmor.d");
    let text =
        read_text(&directory.join(&name))? + &read_text(&directory.join("local").join(&name)).unwrap_or_default();
    Some(Profile { may_execute: apparmor::may_execute(&text, helper), name })
}

/// The kernel's log of this boot, and the end of auditd's.
fn logs(root: &Path) -> Result<String, String> {
    let audit = tail(&at(root, "/var/log/audit/audit.log"));
    match (journal(), audit) {
        (Ok(journal), audit) => Ok(journal + &audit.unwrap_or_default()),
        (Err(_), Some(audit)) => Ok(audit),
        (Err(why), None) => Err(why),
    }
}

fn tail(path: &Path) -> Option<String> {
    let mut file = fs::File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL))).ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The lines of the kernel in the journal.
fn journal() -> Result<String, String> {
    let failed = |error: std::io::Error| format!("journalctl does not run: {error}");
    let mut child = Command::new("journalctl")
        .args(["-k", "-b", "-o", "cat", "--no-pager", "-q", "-n", "20000"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let Some(stdout) = child.stdout.take() else { return Err("journalctl has no output".to_owned()) };
    // A thread reads, so that neither a full pipe nor a journalctl that hangs stops this process.
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stdout.take(MAX_LENGTH).read_to_end(&mut bytes);
        bytes
    });
    let end = Instant::now() + JOURNAL_TIMEOUT;
    let status = loop {
        match child.try_wait().map_err(failed)? {
            Some(status) => break status,
            None if Instant::now() < end => thread::sleep(Duration::from_millis(10)),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("journalctl took longer than {JOURNAL_TIMEOUT:?}"));
            }
        }
    };
    let bytes = reader.join().unwrap_or_default();
    match status.success() {
        // Each boot has lines of the kernel.
        true if bytes.is_empty() => Err("the journal has no lines of the kernel".to_owned()),
        true => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        false => Err(format!("journalctl failed ({status})")),
    }
}

/// Whether this host has a multipath map.
fn has_maps(root: &Path) -> bool {
    let entries = fs::read_dir(at(root, "/sys/block")).into_iter().flatten().flatten();
    entries
        .into_iter()
        .any(|entry| fs::read_to_string(entry.path().join("dm/uuid")).is_ok_and(|uuid| uuid.starts_with("mpath-")))
}
