//! The command line of `scsi-pr disk`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgAction, Args, ValueEnum};
use serde::Deserialize;
use tracing::level_filters::LevelFilter;

use super::names::{InitiatorIqn, UnitName};
use crate::options::store_address;

/// Serve disks that enforce reservations, over iSCSI
///
/// Serves files and block devices as SCSI disks (SBC-4) to virtual machines and hosts. The disks obey persistent
/// reservations themselves: after GOOD to a PREEMPT, no write of the loser changes a block. Every initiator is known by its
/// iSCSI name. A registration belongs to that name and to the target port (the portal group), not to a connection.
///
/// The reservations and the identity of a unit are in the store. While this program serves a unit it owns the record:
/// `scsi-pr serve` and other disks that use the store refuse the unit. One process serves a unit; other hosts reach it over
/// TCP.
///
/// A target has the name iqn.2026-11.io.scsi-pr:NAME and one unit, LUN 0, unless the configuration file says otherwise.
/// Without --chap every address must be one of loopback, and any local user can pose as any initiator there.
///
/// After a restart, also after kill -9, initiators log in again by themselves, reads and writes go on, and the
/// reservations are those of before. A registration without APTPL ends when the host starts again (a new boot id).
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  scsi-pr disk --store=sqlite:/var/lib/scsi-pr/reservations.db --unit=shared=/srv/shared.img \
                  --listen=127.0.0.1:3260\n  qemu-system-x86_64 … -device virtio-scsi -device scsi-block,drive=hd \\\n    -blockdev \
                  driver=iscsi,node-name=hd,transport=tcp,portal=127.0.0.1:3260,target=iqn.2026-11.io.scsi-pr:shared,lun=0,\
                  initiator-name=iqn.2026-11.example:vm1\nSee scsi-pr-disk(8) for the configuration file, CHAP, the control \
                  socket and the move of a unit to another host."
)]
pub(crate) struct ServeDisks {
    /// Serve the file or block device at PATH as the disk NAME; may be given any number of times
    ///
    /// NAME has small letters, digits, - and . and names the unit in the store: the same NAME is the same disk with the
    /// same reservations and identity, on every host that uses the store. PATH is absolute. Its size is a multiple of the
    /// block size. The program locks the medium against other disks and against QEMU.
    #[arg(long, value_name = "NAME=PATH", required_unless_present = "config")]
    pub(crate) unit: Vec<UnitOption>,

    /// The store of reservations and identities: sqlite:PATH (one host), dir:PATH (a directory on a cluster file system or
    /// NFSv4, so that a unit can move to another host), or memory: (until the program ends)
    #[arg(long, value_name = "STORE", value_parser = store_address, required_unless_present = "config")]
    pub(crate) store: Option<String>,

    /// Listen on ADDRESS:PORT; may be given any number of times
    ///
    /// Each --listen is a portal group: a target port with a relative port identifier of its own (1, 2, …). Two paths of
    /// dm-multipath are two portal groups, and so two I_T nexuses. Several addresses of one portal group are separated by
    /// commas. The port of iSCSI is 3260.
    #[arg(long, value_name = "ADDRESS:PORT[,…]", required_unless_present = "config")]
    pub(crate) listen: Vec<PortalGroup>,

    /// Authenticate initiators by CHAP, with the accounts in FILE
    ///
    /// A TOML file that only its owner may read: an array of tables `account` with name, secret (12 characters or more), initiators (the
    /// iSCSI names that the account may use), and optionally mutual-name and mutual-secret, by which the target
    /// authenticates itself. The two secrets of an account differ.
    #[arg(long, value_name = "FILE")]
    pub(crate) chap: Option<PathBuf>,

    /// Let only the initiator with this iSCSI name see the units; may be given any number of times
    ///
    /// Without this option every initiator that may log in sees them. It holds for discovery as well.
    #[arg(long, value_name = "INITIATOR")]
    pub(crate) allow: Vec<InitiatorIqn>,

    /// Whether reads and writes use the page cache of the host
    ///
    /// none: they go to the storage directly (O_DIRECT). writeback: through the page cache. With either, the disk has a
    /// write cache that the guest can flush (SYNCHRONIZE CACHE, FUA) or switch off (MODE SELECT, WCE).
    #[arg(long, value_name = "CACHE", value_enum, default_value_t)]
    pub(crate) cache: Cache,

    /// Read portal groups, targets, units and all other settings from a TOML file; SIGHUP reads it and the CHAP file again
    ///
    /// See scsi-pr-disk(8) for its keys.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["unit", "store", "listen", "chap", "allow", "cache"])]
    pub(crate) config: Option<PathBuf>,

    /// Take over a unit whose former owner did not release it and cannot be proven gone; may be given for several units
    ///
    /// A refusal to start names the EPOCH. Use the option only once the former host is fenced: it is off, or it can no
    /// longer reach the medium. Two hosts that write to one medium destroy it. NAME may be left out with one unit.
    #[arg(long, value_name = "[NAME=]EPOCH")]
    pub(crate) takeover: Vec<Takeover>,

    /// The control socket, for reservations of a unit that is served [default: disk.sock in /run/scsi-pr, or in
    /// $XDG_RUNTIME_DIR/scsi-pr for a user other than root]
    ///
    /// Only the user of this program and root may connect.
    #[arg(long, value_name = "PATH")]
    pub(crate) control: Option<PathBuf>,

    /// Log more; may be repeated
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "quiet")]
    pub(crate) verbose: u8,

    /// Log only what needs attention
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

impl ServeDisks {
    /// The least severe messages that are logged.
    pub(crate) fn log_level(&self) -> LevelFilter {
        crate::log::level(self.verbose, self.quiet)
    }
}

/// The cache of a medium.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Cache {
    /// O_DIRECT.
    None,
    /// The page cache.
    #[default]
    Writeback,
}

/// A unit and its medium.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnitOption {
    pub(crate) name: UnitName,
    pub(crate) path: PathBuf,
}

impl FromStr for UnitOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, path) = text
            .split_once('=')
            .filter(|(_, path)| path.starts_with('/'))
            .ok_or("it must be NAME=PATH, the medium with its whole path: shared=/srv/shared.img")?;
        Ok(Self { name: name.parse()?, path: path.into() })
    }
}

/// The addresses of a target port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortalGroup(pub(crate) Vec<SocketAddr>);

impl FromStr for PortalGroup {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').map(address).collect::<Result<_, _>>().map(Self)
    }
}

/// An IP address and a port.
pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("'{text}' must be ADDRESS:PORT: 127.0.0.1:3260 or [::1]:3260"))
}

/// The epoch of a former owner, and the unit that it owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Takeover {
    /// `None` for the only unit.
    pub(crate) name: Option<UnitName>,
    pub(crate) epoch: u64,
}

impl FromStr for Takeover {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, epoch) = match text.split_once('=') {
            Some((name, epoch)) => (Some(name.parse()?), epoch),
            None => (None, text),
        };
        let epoch = epoch.parse().map_err(|_| "the epoch is a number, which the refusal to start names".to_owned())?;
        Ok(Self { name, epoch })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Options, Task};
    use clap::Parser;

    fn parse(arguments: &[&str]) -> Result<ServeDisks, clap::Error> {
        let options = Options::try_parse_from(["scsi-pr", "disk"].iter().chain(arguments))?;
        match options.task {
            Task::Disk(disks) => Ok(disks),
            _ => panic!("another task"),
        }
    }

    #[test]
    fn every_option_is_read() {
        let disks = parse(&[
            "--unit=shared=/srv/a=b.img",
            "--unit=other=/dev/vg/other",
            "--store=memory:",
            "--listen=127.0.0.1:3260,127.0.0.2:3260",
            "--listen=[::1]:3260",
            "--chap=/etc/chap",
            "--allow=iqn.2001-04.com.example:VM1",
            "--cache=none",
            "--takeover=7",
            "--takeover=other=8",
            "--control=/run/control",
        ]);
        let disks = disks.unwrap();
        assert_eq!(disks.unit[0], UnitOption { name: "shared".parse().unwrap(), path: "/srv/a=b.img".into() });
        assert_eq!((disks.unit.len(), disks.listen[0].0.len(), disks.listen.len()), (2, 2, 2));
        assert_eq!(disks.allow, ["iqn.2001-04.com.example:vm1".parse().unwrap()]);
        assert_eq!(disks.cache, Cache::None);
        assert_eq!(disks.takeover[0], Takeover { name: None, epoch: 7 });
        assert_eq!(disks.takeover[1], Takeover { name: Some("other".parse().unwrap()), epoch: 8 });
        assert_eq!((disks.chap, disks.control), (Some("/etc/chap".into()), Some("/run/control".into())));
    }

    #[test]
    fn settings_are_in_a_file_or_on_the_command_line_and_complete() {
        assert!(parse(&["--config=/etc/disk.toml", "--takeover=1"]).is_ok());
        assert!(parse(&["--config=/etc/disk.toml", "--store=memory:"]).is_err());
        assert!(parse(&["--unit=a=/a", "--listen=127.0.0.1:1"]).is_err());
        assert!(parse(&["--unit=a=/a", "--store=memory:"]).is_err());
        assert!(parse(&["--listen=127.0.0.1:1", "--store=memory:"]).is_err());
    }

    #[test]
    fn malformed_values_are_refused() {
        for argument in
            ["--unit=a", "--unit=a=b", "--unit=A=/b", "--unit==/b", "--listen=here", "--takeover=x", "--allow=vm1"]
        {
            let error = parse(&["--store=memory:", "--unit=a=/a", "--listen=127.0.0.1:1", argument]);
            assert_eq!(error.unwrap_err().kind(), clap::error::ErrorKind::ValueValidation, "{argument}");
        }
    }
}
