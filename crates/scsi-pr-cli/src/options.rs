//! The command line and its values.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{ArgAction, Args, Parser, Subcommand};
use nix::unistd::Group;
use scsi_pr_store::{InitiatorName, Naming};
use tracing::level_filters::LevelFilter;

use crate::admin::failure::EXIT_CODES;
use crate::admin::options::AdminTask;
use crate::disk::options::ServeDisks;
use crate::log;

/// Persistent reservations: show and change them, and serve them to virtual machines
#[derive(Debug, Parser)]
#[command(name = "scsi-pr", version, disable_help_subcommand = true, max_term_width = 100, after_help = EXIT_CODES)]
pub(crate) struct Options {
    #[command(subcommand)]
    pub(crate) task: Task,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    #[command(flatten)]
    Admin(AdminTask),
    Serve(Serve),
    Disk(ServeDisks),
}

/// Serve reservations that are kept in a store
///
/// Keeps the persistent reservations of disks that have none (image files, logical volumes, Ceph RBD, loop devices and
/// the like) in a store. Serves them over the protocol of QEMU's qemu-pr-helper. Each socket is one initiator: a virtual
/// machine, wherever it runs.
///
/// LIMITS: this program enforces the rules of reservations, and nothing else. It answers which initiators are registered
/// and which one holds a disk, and it refuses a RESERVE or PREEMPT that the standard refuses. Reads and writes do not pass
/// it, and it blocks none: a preempted virtual machine can still write. Clusters are safe if their nodes stop when they
/// learn that the reservation is gone. Clusters that need the disk to refuse writes are not.
///
/// QEMU sends only the commands of its scsi-block and scsi-generic disks. From QEMU, nothing arrives but commands for SCSI
/// devices.
#[derive(Args, Debug)]
#[command(
    after_help = "Sockets that systemd passes (LISTEN_FDS) are served too. FileDescriptorName= names the initiator of \
                  each.\nSee scsi-pr-serve(1) for systemd, for libvirt and for the causes of refusals."
)]
pub(crate) struct Serve {
    /// The store of the reservations: sqlite:PATH (one host), dir:PATH (a directory on a cluster file system or NFSv4, for
    /// several hosts), or memory: (until the program ends)
    #[arg(long, value_name = "STORE", value_parser = store_address, required_unless_present = "config")]
    pub(crate) store: Option<String>,

    /// Serve initiator NAME on the Unix socket SOCKET; may be given any number of times
    ///
    /// NAME holds the reservations: choose one for each virtual machine, and keep it when the machine moves to another
    /// host. A name that begins with iqn., eui. or naa. is used unchanged. Any other becomes iqn.2026-11.scsi-pr:NAME. Two
    /// sockets with one NAME are one initiator, as the two ends of a migration are. SOCKET is an absolute path.
    #[arg(long, value_name = "NAME=SOCKET")]
    pub(crate) listen: Vec<Listen>,

    /// The permissions of the sockets that --listen creates, in octal. A client that may write to a socket is its initiator
    #[arg(long, value_name = "MODE", default_value = "600", value_parser = mode)]
    pub(crate) socket_mode: u32,

    /// The group of the sockets that --listen creates, by name or number
    #[arg(long, value_name = "GROUP", value_parser = group)]
    pub(crate) socket_group: Option<u32>,

    /// Send commands for devices that have reservations of their own to the helper that listens at SOCKET
    ///
    /// These are SCSI devices, multipath maps and NVMe namespaces. Without this option, or --keep, the program refuses
    /// commands for them: hosts that use the reservations of the device itself would not see those of the store.
    /// One initiator uses at most 16 connections to the helper.
    #[arg(long, value_name = "SOCKET", value_parser = absolute)]
    pub(crate) pass: Option<PathBuf>,

    /// Keep the reservations of the device at PATH in the store although it has its own; may be given any number of times
    ///
    /// For a SCSI target without persistent reservations, and for virtual machines that share a disk on one host: to the
    /// disk itself, these are one initiator. All users of the disk must then use this store. The program looks PATH up for
    /// each command. PATH stands for /dev/sdX and /dev/sgX alike. It also stands for all paths and maps of a unit that
    /// reports its identity (VPD page 83h). Of a unit that does not, name each one.
    #[arg(long, value_name = "PATH", value_parser = absolute)]
    pub(crate) keep: Vec<PathBuf>,

    /// Call the device or file at PATH, the block device MAJOR:MINOR, or the unit with this IDENTIFIER by NAME in the
    /// store; may be given any number of times
    ///
    /// The store knows a unit by an identity that is the same on every host (a WWN, the UUID of a volume). A unit without
    /// such an identity is known to this host only. A store that several hosts share refuses it until it has a name, the
    /// same on every host. IDENTIFIER is the name of the unit in the log (naa.600140500000001). Use it for a disk with
    /// several paths. Another NAME for a unit is another unit, without reservations.
    #[arg(long, value_name = "NAME=PATH|MAJOR:MINOR|IDENTIFIER")]
    pub(crate) unit: Vec<Naming>,

    /// The number of registrants of a unit, 1 to 10000; further ones are refused with 05/55/04
    ///
    /// A virtual machine may register others (SPEC_I_PT), and each change of a unit writes its whole record. This number
    /// bounds the record, which has some 250 bytes for each registrant.
    #[arg(long, value_name = "NUMBER", default_value = "1024", value_parser = clap::value_parser!(u16).range(1..=MAX_REGISTRANTS))]
    pub(crate) registrants: u16,

    /// Read the store, initiators, units and all other settings from a TOML file
    ///
    /// See scsi-pr-serve(1) for its keys.
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["store", "listen", "socket_mode", "socket_group", "pass", "keep", "unit", "registrants"]
    )]
    pub(crate) config: Option<PathBuf>,

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
        log::level(self.verbose, self.quiet)
    }
}

/// The default of `--registrants`.
pub(crate) const REGISTRANTS: u16 = 1_024;

/// The greatest value of `--registrants`.
pub(crate) const MAX_REGISTRANTS: i64 = 10_000;

/// The default of `--socket-mode`.
pub(crate) const SOCKET_MODE: u32 = 0o600;

/// A socket and its initiator.
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
pub(crate) fn absolute(text: &str) -> Result<PathBuf, String> {
    match Path::new(text) {
        path if path.is_absolute() => Ok(path.to_owned()),
        _ => Err("the path must be absolute".to_owned()),
    }
}

/// The address of a store, which need not be there.
pub(crate) fn store_address(text: &str) -> Result<String, String> {
    match scsi_pr_store::is_address(text) {
        true => Ok(text.to_owned()),
        false => Err("it must be sqlite:PATH, dir:PATH or memory:".to_owned()),
    }
}

/// Permissions in octal, `0660` or `660`.
pub(crate) fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 && !text.starts_with('+') => Ok(mode),
        _ => Err("it must be an octal number up to 777".to_owned()),
    }
}

/// A group by its name, else by its number.
pub(crate) fn group(text: &str) -> Result<u32, String> {
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
        match Options::try_parse_from(all).unwrap().task {
            Task::Serve(serve) => serve,
            _ => panic!("another task"),
        }
    }

    #[test]
    fn definition_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn defaults_are_safe() {
        let serve = serve(&[]);
        assert_eq!((serve.socket_mode, serve.socket_group, serve.pass), (0o600, None, None));
        assert_eq!(serve.registrants, 1_024);
        assert!(serve.keep.is_empty() && serve.listen.is_empty() && serve.unit.is_empty());
    }

    #[test]
    fn every_option_is_read() {
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
    fn settings_are_in_a_file_or_on_the_command_line() {
        let parse = |arguments: &[&str]| Options::try_parse_from(["scsi-pr", "serve"].iter().chain(arguments)).is_ok();
        assert!(parse(&["--config=/etc/serve.toml"]) && parse(&["--config=/etc/serve.toml", "-v"]));
        assert!(!parse(&[]));
        for option in
            ["--store=memory:", "--listen=a=/b", "--socket-mode=600", "--pass=/a", "--keep=/a", "--registrants=1"]
        {
            assert!(!parse(&["--config=/etc/serve.toml", option]), "{option}");
        }
    }

    #[test]
    fn number_of_registrants_out_of_range_is_refused() {
        for number in ["0", "10001", "-1", "x"] {
            let arguments = ["scsi-pr", "serve", "--store=memory:", &format!("--registrants={number}")];
            assert!(Options::try_parse_from(arguments).is_err(), "{number}");
        }
    }

    #[test]
    fn options_set_the_log_level() {
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
