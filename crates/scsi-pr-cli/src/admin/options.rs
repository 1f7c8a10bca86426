//! The command line of the administrator's commands.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::PossibleValue;
use clap::{ArgAction, Args, Subcommand, ValueEnum};
use scsi_pr::{Key, TransportId, Type};
use scsi_pr_store::{InitiatorName, Naming};

use crate::options::store_address;

/// The administrator's commands.
#[derive(Debug, Subcommand)]
pub(crate) enum AdminTask {
    /// Show who is registered, and who holds the reservation
    ///
    /// Reads READ FULL STATUS, READ KEYS and READ RESERVATION. Of a unit without READ FULL STATUS, it shows the keys without
    /// the initiators, and says so.
    Show(Read),
    /// Show the registered keys (READ KEYS)
    Keys(Read),
    /// Show the reservation (READ RESERVATION)
    Reservation(Read),
    /// Show the abilities of the unit (REPORT CAPABILITIES)
    Capabilities(Read),
    /// Show every registration with its initiator (READ FULL STATUS)
    Status(Read),
    /// List the units of a store or a disk, or the disks of this host, that have registrations or a reservation
    List(List),
    /// Show the same as "show" again with each change
    Watch(Watch),
    /// Register a key for this initiator (REGISTER, REGISTER AND IGNORE EXISTING KEY)
    Register(Register),
    /// Remove this initiator's registration (REGISTER with key 0)
    ///
    /// If this initiator alone holds the reservation, the unit releases it. With --as, the command asks first.
    Unregister(Unregister),
    /// Reserve the unit for this initiator (RESERVE)
    Reserve(Reserve),
    /// Give the reservation up, and stay registered (RELEASE)
    ///
    /// With --as, the command asks first.
    Release(Release),
    /// Remove every registration and the reservation (CLEAR)
    Clear(Clear),
    /// Remove the registrations with another key, and take their reservation (PREEMPT, PREEMPT AND ABORT)
    Preempt(Preempt),
    /// Register another initiator, and hand it the reservation (REGISTER AND MOVE)
    Move(Move),
    /// Register and reserve anew after the unit has lost its reservations (REPLACE LOST RESERVATION)
    ///
    /// A unit that has lost nothing refuses it, and so does one that does not know the service action: exit code 4.
    ReplaceLost(ReplaceLost),
    /// Remove the registrations of a machine that no longer exists
    ///
    /// Removes every registration of the initiator NAME: of the units DEVICE, or of all units of the store or disk. All other
    /// registrations stay. A reservation that NAME holds passes to another registrant by PREEMPT, so that the unit is reserved
    /// all the while. Without another registrant, the unit releases it. The log has a line for each registration.
    ///
    /// Fence the machine first: one that still runs may write until the command ends. The command refuses an initiator with a
    /// session at the disk.
    ///
    /// If one unit cannot be read, or the reservations change during the question, nothing is changed. The exit code 7 stands
    /// for an eviction that was made in part.
    Evict(Evict),
    /// Test whether a Windows, Pacemaker or Oracle RAC cluster would work on an unreserved unit
    ///
    /// Registers a random key, reserves the unit by each type for less than a second, and removes the registration. After each
    /// step, the readings of the unit must agree. Prints first the command that removes the key after SIGKILL.
    ///
    /// Refuses a unit with a registration or a reservation. One initiator cannot test everything: the report says what was not
    /// examined.
    Check(Target),
    /// Find faults of this host: the helper and its socket, AppArmor or SELinux, multipath, libvirt
    ///
    /// Names the line to change for each fault. Changes nothing. Run it as root, on the host of the virtual machines.
    Doctor(Doctor),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

impl AdminTask {
    /// The form of the output, where it can be chosen.
    pub(crate) fn output(&self) -> Option<OutputOptions> {
        Some(match self {
            Self::Show(options)
            | Self::Keys(options)
            | Self::Reservation(options)
            | Self::Capabilities(options)
            | Self::Status(options) => options.output,
            Self::List(options) => options.output,
            Self::Watch(options) => options.read.output,
            Self::Register(options) => options.target.output,
            Self::Unregister(options) => options.target.output,
            Self::Reserve(options) => options.target.output,
            Self::Release(options) => options.target.output,
            Self::Clear(options) => options.target.output,
            Self::Preempt(options) => options.target.output,
            Self::Move(options) => options.target.output,
            Self::ReplaceLost(options) => options.target.output,
            Self::Evict(options) => options.output,
            Self::Check(target) => target.output,
            Self::Doctor(options) => options.output,
            Self::Completions { .. } => return None,
        })
    }
}

/// The way to a unit. The heading holds for all arguments that follow, so this comes last.
#[derive(Args, Debug)]
#[command(next_help_heading = "Access")]
pub(crate) struct AccessOptions {
    /// Send commands to the helper that listens at SOCKET: qemu-pr-helper or "scsi-pr serve"
    #[arg(long, value_name = "SOCKET", group = "way")]
    pub(crate) via: Option<PathBuf>,

    /// Send commands to the "scsi-pr disk" whose control socket is SOCKET. DEVICE is then the name of a unit, or its file
    #[arg(long, value_name = "SOCKET", group = "way")]
    pub(crate) disk: Option<PathBuf>,

    /// Use the reservations in this store: sqlite:PATH or dir:PATH. DEVICE is then a path, or an identifier of "list"
    ///
    /// A unit that a disk serves is refused: use --disk with the socket that the message names.
    #[arg(long, value_name = "STORE", value_parser = store_address, group = "way")]
    pub(crate) store: Option<String>,

    /// Act as the initiator NAME, with --store or --disk
    #[arg(long = "as", value_name = "NAME")]
    pub(crate) initiator: Option<InitiatorName>,

    /// Act at this target port of the disk: the number of its --listen
    #[arg(long, value_name = "NUMBER", default_value = "1", value_parser = clap::value_parser!(u16).range(1..), requires = "disk")]
    pub(crate) target_port: u16,

    /// The names of units in the store, as "scsi-pr serve" has them
    #[arg(long, value_name = "NAME=PATH|MAJOR:MINOR|IDENTIFIER", requires = "store")]
    pub(crate) unit: Vec<Naming>,
}

/// The form of the output.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputOptions {
    /// Print JSON instead of text
    #[arg(long)]
    pub(crate) json: bool,

    /// Log more on standard error: unit attentions, retries; may be repeated
    #[arg(short, long, action = ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// A command that reads.
#[derive(Args, Debug)]
pub(crate) struct Read {
    /// The disk: /dev/sda, /dev/mapper/mpatha, /dev/nvme0n1; see --disk and --store for other names
    #[arg(required = true, value_name = "DEVICE")]
    pub(crate) devices: Vec<PathBuf>,

    #[command(flatten)]
    pub(crate) access: AccessOptions,

    #[command(flatten)]
    pub(crate) output: OutputOptions,
}

/// `list`.
#[derive(Args, Debug)]
pub(crate) struct List {
    #[command(flatten)]
    pub(crate) access: AccessOptions,

    #[command(flatten)]
    pub(crate) output: OutputOptions,
}

/// `watch`.
#[derive(Args, Debug)]
pub(crate) struct Watch {
    /// The time between two readings, in seconds: 0.1 to 3600
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub(crate) interval: Duration,

    #[command(flatten)]
    pub(crate) read: Read,
}

/// The target of a change.
#[derive(Args, Debug)]
pub(crate) struct Target {
    /// The disk
    #[arg(value_name = "DEVICE")]
    pub(crate) device: PathBuf,

    #[command(flatten)]
    pub(crate) access: AccessOptions,

    #[command(flatten)]
    pub(crate) output: OutputOptions,
}

/// The consent to a change that others feel.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Consent {
    /// Do it without a question. Needed where standard input is not a terminal, except for "unregister" and "release" without
    /// --as, which do not ask
    #[arg(long)]
    pub(crate) yes: bool,
}

/// The key of this initiator.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct OwnKey {
    /// The key that this initiator has registered, in hexadecimal digits
    #[arg(long, value_name = "KEY", value_parser = key)]
    pub(crate) key: Key,
}

/// `register`.
#[derive(Args, Debug)]
pub(crate) struct Register {
    /// The key to register, in hexadecimal digits: 0x123abc
    #[arg(long, value_name = "KEY", value_parser = key)]
    pub(crate) key: Key,

    /// The key that this initiator has registered until now
    #[arg(long, value_name = "KEY", value_parser = key, conflicts_with = "ignore_existing")]
    pub(crate) old_key: Option<Key>,

    /// Register whatever key this initiator has until now (REGISTER AND IGNORE EXISTING KEY)
    #[arg(long)]
    pub(crate) ignore_existing: bool,

    /// Keep registrations and reservation also through a loss of power (APTPL). The last "register" decides for all
    /// registrants of the unit
    #[arg(long)]
    pub(crate) aptpl: bool,

    /// Register at every target port (ALL_TG_PT)
    #[arg(long)]
    pub(crate) all_tg_pt: bool,

    /// Register also this initiator, with the same key (SPEC_I_PT); may be given any number of times. The value is that of
    /// "move --to"
    ///
    /// The standard permits it to an initiator that is not registered itself, and for others that are not. Many targets,
    /// multipath maps of several paths, and NVMe refuse it.
    #[arg(long, value_name = "INITIATOR", conflicts_with_all = ["ignore_existing", "old_key"])]
    pub(crate) spec_i_pt: Vec<PortOption>,

    #[command(flatten)]
    pub(crate) target: Target,
}

/// `unregister`.
#[derive(Args, Debug)]
pub(crate) struct Unregister {
    /// The key that this initiator has registered [default: any, by REGISTER AND IGNORE EXISTING KEY]
    #[arg(long, value_name = "KEY", value_parser = key)]
    pub(crate) key: Option<Key>,

    #[command(flatten)]
    pub(crate) consent: Consent,

    #[command(flatten)]
    pub(crate) target: Target,
}

/// `reserve`.
#[derive(Args, Debug)]
pub(crate) struct Reserve {
    #[command(flatten)]
    pub(crate) own: OwnKey,

    /// The type of the reservation
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) reservation_type: TypeOption,

    #[command(flatten)]
    pub(crate) target: Target,
}

/// `release`.
#[derive(Args, Debug)]
pub(crate) struct Release {
    #[command(flatten)]
    pub(crate) own: OwnKey,

    /// The type of the reservation [default: the type that the unit reports]
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) reservation_type: Option<TypeOption>,

    #[command(flatten)]
    pub(crate) consent: Consent,

    #[command(flatten)]
    pub(crate) target: Target,
}

/// `clear`.
#[derive(Args, Debug)]
pub(crate) struct Clear {
    #[command(flatten)]
    pub(crate) own: OwnKey,

    #[command(flatten)]
    pub(crate) consent: Consent,

    #[command(flatten)]
    pub(crate) target: Target,
}

/// `preempt`.
#[derive(Args, Debug)]
pub(crate) struct Preempt {
    #[command(flatten)]
    pub(crate) own: OwnKey,

    /// The key of the registrations to remove. 0 removes all others, if all registrants hold the reservation
    #[arg(long, value_name = "KEY")]
    pub(crate) victim: Key,

    /// The type of the reservation that this initiator gets, if the victim holds one [default: the type that the unit reports]
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) reservation_type: Option<TypeOption>,

    /// Also abort the commands of the removed initiators (PREEMPT AND ABORT)
    #[arg(long)]
    pub(crate) abort: bool,

    #[command(flatten)]
    pub(crate) consent: Consent,

    #[command(flatten)]
    pub(crate) target: Target,
}

/// `move`.
#[derive(Args, Debug)]
pub(crate) struct Move {
    #[command(flatten)]
    pub(crate) own: OwnKey,

    /// The other initiator: its name in a store, or its port as "show" prints it
    #[arg(long, value_name = "INITIATOR")]
    pub(crate) to: PortOption,

    /// The key to register for the other initiator
    #[arg(long, value_name = "KEY", value_parser = key)]
    pub(crate) to_key: Key,

    /// The relative target port of the other initiator
    #[arg(long, value_name = "NUMBER", default_value = "1")]
    pub(crate) to_port: u16,

    /// Remove this initiator's registration afterwards (UNREG)
    #[arg(long)]
    pub(crate) unregister: bool,

    /// Keep registrations and reservation also through a loss of power (APTPL)
    #[arg(long)]
    pub(crate) aptpl: bool,

    #[command(flatten)]
    pub(crate) consent: Consent,

    #[command(flatten)]
    pub(crate) target: Target,
}

/// `replace-lost`.
#[derive(Args, Debug)]
pub(crate) struct ReplaceLost {
    /// The key to register, in hexadecimal digits
    #[arg(long, value_name = "KEY", value_parser = key)]
    pub(crate) key: Key,

    /// The type of the reservation
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) reservation_type: TypeOption,

    /// Keep registrations and reservation also through a loss of power (APTPL)
    #[arg(long)]
    pub(crate) aptpl: bool,

    #[command(flatten)]
    pub(crate) consent: Consent,

    #[command(flatten)]
    pub(crate) target: Target,
}

/// `evict`.
#[derive(Args, Debug)]
pub(crate) struct Evict {
    /// The initiator whose machine no longer exists
    #[arg(value_name = "NAME")]
    pub(crate) name: InitiatorName,

    /// The units [default: all units of the store or disk]
    #[arg(value_name = "DEVICE")]
    pub(crate) devices: Vec<PathBuf>,

    /// The registrant that gets the reservation of NAME [default: for a registrants only type, the first registrant]
    #[arg(long, value_name = "NAME")]
    pub(crate) successor: Option<InitiatorName>,

    #[command(flatten)]
    pub(crate) consent: Consent,

    #[command(flatten)]
    pub(crate) access: AccessOptions,

    #[command(flatten)]
    pub(crate) output: OutputOptions,
}

/// `doctor`.
#[derive(Args, Debug)]
pub(crate) struct Doctor {
    /// The socket of the helper [default: /run/qemu-pr-helper.sock]
    #[arg(long, value_name = "SOCKET")]
    pub(crate) socket: Option<PathBuf>,

    /// Read the files of the host below this directory. For tests
    #[arg(long, value_name = "DIRECTORY", default_value = "/", hide = true)]
    pub(crate) root: PathBuf,

    #[command(flatten)]
    pub(crate) output: OutputOptions,
}

/// A key that is not zero.
fn key(text: &str) -> Result<Key, String> {
    match text.parse::<Key>().map_err(|error| error.to_string())? {
        Key::ZERO => Err("key 0 stands for no registration".to_owned()),
        key => Ok(key),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=3600.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "it must be a number of seconds from 0.1 to 3600".to_owned())
}

/// An initiator port by its text, or the port of an initiator name.
#[derive(Clone, Debug)]
pub(crate) struct PortOption(pub(crate) TransportId);

impl FromStr for PortOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<TransportId>() {
            // The name alone stands for no port (SPC-4 6.16.4); names in stores have the ISID 0.
            Ok(id) if text.contains(",i,0x") || text.contains(' ') => Ok(Self(id)),
            _ => match text.parse::<InitiatorName>() {
                Ok(name) => Ok(Self(name.transport_id().clone())),
                Err(error) => Err(error.to_string()),
            },
        }
    }
}

/// A type of reservation on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TypeOption(pub(crate) Type);

impl ValueEnum for TypeOption {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [TypeOption; 6] = {
            let mut all = [TypeOption(Type::WriteExclusive); 6];
            let mut index = 0;
            while index < all.len() {
                all[index] = TypeOption(Type::ALL[index]);
                index += 1;
            }
            all
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        // The aliases are the numbers of the standard, and the abbreviations that administrators use.
        let abbreviation = match self.0 {
            Type::WriteExclusive => "we",
            Type::ExclusiveAccess => "ea",
            Type::WriteExclusiveRegistrantsOnly => "wero",
            Type::ExclusiveAccessRegistrantsOnly => "earo",
            Type::WriteExclusiveAllRegistrants => "wear",
            Type::ExclusiveAccessAllRegistrants => "eaar",
        };
        const CODES: [&str; 9] = ["0", "1", "2", "3", "4", "5", "6", "7", "8"];
        let code = CODES[usize::from(self.0.code())];
        Some(PossibleValue::new(type_name(self.0)).aliases([abbreviation, code]))
    }
}

/// The type in one word, for options and JSON.
pub(crate) const fn type_name(reservation_type: Type) -> &'static str {
    match reservation_type {
        Type::WriteExclusive => "write-exclusive",
        Type::ExclusiveAccess => "exclusive-access",
        Type::WriteExclusiveRegistrantsOnly => "write-exclusive-registrants-only",
        Type::ExclusiveAccessRegistrantsOnly => "exclusive-access-registrants-only",
        Type::WriteExclusiveAllRegistrants => "write-exclusive-all-registrants",
        Type::ExclusiveAccessAllRegistrants => "exclusive-access-all-registrants",
    }
}
