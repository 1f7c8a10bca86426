//! The command line, and what its values mean.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{ArgAction, Args, Parser, Subcommand};
use nix::unistd::Group;
use scsi_pr_store::{InitiatorName, Naming};
use tracing::level_filters::LevelFilter;

/// Persistent reservations for virtual machines
#[derive(Debug, Parser)]
#[command(name = "scsi-pr", version, disable_help_subcommand = true, max_term_width = 100)]
pub(crate) struct Options {
    #[command(subcommand)]
    pub(crate) chore: Chore,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Chore {
    Serve(Serve),
}

/// Serve reservations that are kept in a store
///
/// Keeps the persistent reservations of disks that have none of their own (image files, logical volumes, Ceph RBD, loop
/// devices and the like) in a store, and serves them over the protocol of QEMU's qemu-pr-helper. Each socket is one initiator: a
/// virtual machine, wherever it runs.
///
/// WHAT IS ENFORCED: nothing but the reservations themselves. Who asks here is told who has registered and who holds a
/// disk, and a RESERVE or PREEMPT that the standard refuses is refused. Reads and writes do not come this way: none is
/// stopped, neither of a preempted virtual machine nor of anybody else. Clusters whose nodes stop by themselves when they
/// learn that they lost the reservation are safe; those that rely on the disk to refuse their writes are not.
///
/// QEMU sends here only what its scsi-block and scsi-generic disks receive, so from QEMU nothing comes but commands for
/// SCSI devices.
#[derive(Args, Debug)]
#[command(
    after_help = "Sockets that systemd passes (LISTEN_FDS) are served too; FileDescriptorName= says which initiator \
                        each is.\nSee scsi-pr-serve(1) for systemd, libvirt and what to do when something is refused."
)]
pub(crate) struct Serve {
    /// Where reservations are kept: sqlite:PATH (one host), dir:PATH (a directory on a cluster file system or NFSv4, for
    /// several hosts), or memory: (forgotten at the end)
    #[arg(long, value_name = "STORE")]
    pub(crate) store: String,

    /// Serve initiator NAME on the Unix socket SOCKET; may be given any number of times
    ///
    /// NAME is what reservations are held by: choose one for each virtual machine, and keep it when the machine moves to
    /// another host. A name that begins with iqn., eui. or naa. is taken as it is, any other becomes
    /// iqn.2026-11.scsi-pr:NAME. Two sockets may have one NAME; they are then one initiator, as the two ends of a
    /// migration are. SOCKET is an absolute path.
    #[arg(long, value_name = "NAME=SOCKET")]
    pub(crate) listen: Vec<Listen>,

    /// The permissions of the sockets that --listen makes, in octal. Who may write to a socket is its initiator
    #[arg(long, value_name = "MODE", default_value = "600", value_parser = mode)]
    pub(crate) socket_mode: u32,

    /// The group of the sockets that --listen makes, by name or number
    #[arg(long, value_name = "GROUP", value_parser = group)]
    pub(crate) socket_group: Option<u32>,

    /// Send commands for devices that have reservations of their own to the helper that listens at SOCKET
    ///
    /// These are SCSI devices, multipath maps and NVMe namespaces. Without this option, or --keep, commands for them are
    /// refused: what is kept here would not be known to hosts that use the reservations of the device itself.
    #[arg(long, value_name = "SOCKET", value_parser = absolute)]
    pub(crate) pass: Option<PathBuf>,

    /// Keep the reservations of the device at PATH in the store although it has its own; may be given any number of times
    ///
    /// For a SCSI target without persistent reservations, and for virtual machines that share a disk on one host, which
    /// are one initiator to the disk itself. Everybody who uses the disk must then come to this store. PATH is looked up
    /// for each command. It stands for /dev/sdX and /dev/sgX alike, and for all paths and maps of a unit that tells its
    /// identity (VPD page 83h); of one that does not, name each.
    #[arg(long, value_name = "PATH", value_parser = absolute)]
    pub(crate) keep: Vec<PathBuf>,

    /// Call the device or file at PATH, the block device MAJOR:MINOR, or the unit with this IDENTIFIER by NAME in the
    /// store; may be given any number of times
    ///
    /// Units are told apart by what identifies them everywhere (a WWN, the UUID of a volume). One that has nothing of the
    /// kind is known to this host alone, and a store that several hosts share refuses it until it is named, the same on
    /// every host. IDENTIFIER is what the log calls the unit without a name (naa.600140500000001), and right for a disk
    /// with several paths. A different NAME for a unit is a different unit, with no reservations.
    #[arg(long, value_name = "NAME=PATH|MAJOR:MINOR|IDENTIFIER")]
    pub(crate) unit: Vec<Naming>,

    /// How many registrants a unit has room for, 1 to 10000; more are refused with 05/55/04
    ///
    /// A virtual machine may register others than itself (SPEC_I_PT), and each change of a unit writes all that is known
    /// of it. It bounds what one machine can have the store write with a command: some 250 bytes for each registrant, and
    /// as much for each that has still to be told that it was preempted.
    #[arg(long, value_name = "NUMBER", default_value = "1024", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub(crate) registrants: u16,

    /// Log more; may be repeated
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "quiet")]
    pub(crate) verbose: u8,

    /// Log only what needs attention
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

impl Serve {
    /// The least severe messages that are logged.
    pub(crate) fn log_level(&self) -> LevelFilter {
        match self.verbose {
            _ if self.quiet => LevelFilter::WARN,
            0 => LevelFilter::INFO,
            1 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        }
    }
}

/// A socket and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listen {
    pub(crate) initiator: InitiatorName,
    pub(crate) socket: PathBuf,
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A name may have an equals sign in it, and the path is absolute.
        let slash = text.find("=/").map(|equals| equals + 1);
        let slash = slash.ok_or("it must be NAME=SOCKET, the socket with its whole path: vm1=/run/scsi-pr/vm1.sock")?;
        let initiator = text[..slash - 1].parse::<InitiatorName>().map_err(|error| error.to_string())?;
        Ok(Self { initiator, socket: text[slash..].into() })
    }
}

/// A path that means the same wherever the program is started.
fn absolute(text: &str) -> Result<PathBuf, String> {
    match Path::new(text) {
        path if path.is_absolute() => Ok(path.to_owned()),
        _ => Err("the path must be absolute".to_owned()),
    }
}

/// Permissions in octal, `0660` or `660`.
fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 && !text.starts_with('+') => Ok(mode),
        _ => Err("it must be an octal number up to 777".to_owned()),
    }
}

/// A group by its name, else by its number.
fn group(text: &str) -> Result<u32, String> {
    if let Ok(Some(group)) = Group::from_name(text) {
        return Ok(group.gid.as_raw());
    }
    // The last number is that of no group, and means "leave it" to chown(2).
    match text.parse() {
        Ok(number) if number != u32::MAX => Ok(number),
        _ => Err("there is no such group".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use proptest::prelude::*;

    fn serve(arguments: &[&str]) -> Serve {
        let all = ["scsi-pr", "serve", "--store=memory:"].iter().chain(arguments);
        let Chore::Serve(serve) = Options::try_parse_from(all).unwrap().chore;
        serve
    }

    #[test]
    fn the_definition_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn what_is_not_said_is_safe() {
        let serve = serve(&[]);
        assert_eq!((serve.socket_mode, serve.socket_group, serve.pass), (0o600, None, None));
        assert_eq!(serve.registrants, 1_024);
        assert!(serve.keep.is_empty() && serve.listen.is_empty() && serve.unit.is_empty());
    }

    #[test]
    fn everything_may_be_said() {
        let serve = serve(&[
            "--listen=vm1=/run/1",
            "--listen",
            "iqn.2001-04.com.example:vm2=/run/a=/2",
            "--socket-mode=0660",
            "--socket-group=root",
            "--pass=/run/helper",
            "--keep=/dev/sda",
            "--keep=/dev/sdb",
            "--unit=disk=/srv/disk.img",
            "--unit=lun=naa.600140500000001",
            "--registrants=10000",
        ]);
        let listen = |name: &str, socket: &str| Listen { initiator: name.parse().unwrap(), socket: socket.into() };
        assert_eq!(serve.listen, [listen("vm1", "/run/1"), listen("iqn.2001-04.com.example:vm2", "/run/a=/2")]);
        assert_eq!((serve.socket_mode, serve.socket_group), (0o660, Some(0)));
        assert_eq!(serve.pass, Some("/run/helper".into()));
        assert_eq!((serve.keep.len(), serve.unit.len(), serve.registrants), (2, 2, 10_000));
    }

    #[test]
    fn room_for_nobody_or_too_many_is_no_room() {
        for number in ["0", "10001", "-1", "x"] {
            let arguments = ["scsi-pr", "serve", "--store=memory:", &format!("--registrants={number}")];
            assert!(Options::try_parse_from(arguments).is_err(), "{number}");
        }
    }

    #[test]
    fn how_much_is_logged() {
        for (arguments, level) in [
            (&[][..], LevelFilter::INFO),
            (&["-q"], LevelFilter::WARN),
            (&["-v"], LevelFilter::DEBUG),
            (&["-vvv"], LevelFilter::TRACE),
        ] {
            assert_eq!(serve(arguments).log_level(), level, "{arguments:?}");
        }
    }

    #[test]
    fn groups_are_named_or_numbered() {
        assert_eq!(group("root"), Ok(0));
        assert_eq!(group("4294967294"), Ok(u32::MAX - 1));
        for text in ["", "4294967295", "-1", "no such group"] {
            assert!(group(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = (text.parse::<Listen>(), mode(&text));
        }

        #[test]
        fn a_name_and_a_path_are_found_again(name in "[!-+.-~]{1,20}", path in "(/[a-z=]{0,8}){1,4}") {
            // Where both have an equals sign before a slash, the first of them counts.
            prop_assume!(!name.contains("=/"));
            let listen: Listen = format!("{name}={path}").parse().unwrap();
            prop_assert_eq!(listen, Listen { initiator: name.parse().unwrap(), socket: path.into() });
        }

        #[test]
        fn modes_are_octal(mode_bits in 0_u32..0o1000) {
            prop_assert_eq!(mode(&format!("{mode_bits:o}")), Ok(mode_bits));
            prop_assert_eq!(mode(&format!("0{mode_bits:03o}")), Ok(mode_bits));
            let too_many = format!("1{mode_bits:03o}");
            prop_assert!(mode(&too_many).is_err());
        }
    }
}
