//! [`Settings`]: the settings of `scsi-pr serve`, from the command line or a TOML file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use scsi_pr_linux::device::Number;
use scsi_pr_store::{InitiatorName, Naming};
use serde::Deserialize;
use toml::Spanned;

use crate::options::{self, Listen, MAX_REGISTRANTS, REGISTRANTS, SOCKET_MODE, Serve};
use crate::toml_file::{self, Position};

/// The settings. Each is that of the option with its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) store: String,
    pub(crate) listen: Vec<Listen>,
    pub(crate) socket_mode: u32,
    pub(crate) socket_group: Option<u32>,
    pub(crate) pass: Option<PathBuf>,
    pub(crate) keep: Vec<PathBuf>,
    pub(crate) unit: Vec<Naming>,
    pub(crate) registrants: u16,
}

/// The file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    store: String,
    socket_mode: Option<Mode>,
    socket_group: Option<Group>,
    pass: Option<AbsolutePath>,
    #[serde(default)]
    keep: Vec<AbsolutePath>,
    registrants: Option<Registrants>,
    #[serde(default)]
    initiator: Vec<Spanned<Initiator>>,
    #[serde(default)]
    unit: Vec<Spanned<Unit>>,
}

/// An initiator and its socket.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Initiator {
    name: Name,
    socket: AbsolutePath,
}

/// A name for a unit, and one way to find the unit.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unit {
    name: String,
    path: Option<PathBuf>,
    /// MAJOR:MINOR.
    device: Option<String>,
    identifier: Option<String>,
}

/// A value that an option has too, in the form of the option.
macro_rules! value {
    ($name:ident($value:ty), $read:expr) => {
        #[derive(Deserialize)]
        #[serde(try_from = "String")]
        struct $name($value);

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                let read: fn(&str) -> Result<$value, String> = $read;
                read(&text).map(Self)
            }
        }
    };
}

value!(Mode(u32), options::mode);
value!(Group(u32), options::group);
value!(AbsolutePath(PathBuf), options::absolute);
value!(Name(InitiatorName), |text| text
    .parse()
    .map_err(|error: scsi_pr_store::InvalidInitiatorName| error.to_string()));

/// The number of registrants.
#[derive(Deserialize)]
#[serde(try_from = "u16")]
struct Registrants(u16);

impl TryFrom<u16> for Registrants {
    type Error = String;

    fn try_from(number: u16) -> Result<Self, String> {
        match (1..=MAX_REGISTRANTS).contains(&i64::from(number)) {
            true => Ok(Self(number)),
            false => Err(format!("the number of registrants is 1 to {MAX_REGISTRANTS}")),
        }
    }
}

impl Settings {
    /// The settings of the command line, or of its file.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or has an invalid key or value; the text names line and column.
    pub(crate) fn read(options: &Serve) -> Result<Self> {
        if let Some(path) = &options.config {
            let (file, text) = toml_file::read(path)?;
            return Self::of_file(file, path, &text);
        }
        Ok(Self {
            store: options.store.clone().unwrap_or_default(),
            listen: options.listen.clone(),
            socket_mode: options.socket_mode,
            socket_group: options.socket_group,
            pass: options.pass.clone(),
            keep: options.keep.clone(),
            unit: options.unit.clone(),
            registrants: options.registrants,
        })
    }

    fn of_file(file: File, path: &Path, text: &str) -> Result<Self> {
        let place = |offset| format!("{}:{}", path.display(), Position::of(text, offset));
        let mut sockets = BTreeSet::new();
        let mut listen = Vec::new();
        for spanned in file.initiator {
            let start = spanned.span().start;
            let Initiator { name: Name(initiator), socket: AbsolutePath(socket) } = spanned.into_inner();
            ensure!(
                sockets.insert(socket.clone()),
                "{}: initiator {initiator}: another one has the socket {}",
                place(start),
                socket.display()
            );
            listen.push(Listen { initiator, socket });
        }
        let unit = file.unit.into_iter().map(|spanned| {
            let start = spanned.span().start;
            naming(spanned.into_inner()).with_context(|| place(start))
        });
        Ok(Self {
            store: file.store,
            listen,
            socket_mode: file.socket_mode.map_or(SOCKET_MODE, |mode| mode.0),
            socket_group: file.socket_group.map(|group| group.0),
            pass: file.pass.map(|path| path.0),
            keep: file.keep.into_iter().map(|path| path.0).collect(),
            unit: unit.collect::<Result<_>>()?,
            registrants: file.registrants.map_or(REGISTRANTS, |number| number.0),
        })
    }
}

fn naming(unit: Unit) -> Result<Naming> {
    let Unit { name, path, device, identifier } = unit;
    let one_of = "a unit has one of path, device and identifier";
    match (path, device, identifier) {
        (Some(path), None, None) => Ok(Naming::path(&name, path)?),
        (None, Some(device), None) => {
            let number = device.parse::<Number>().ok();
            let Number { major, minor } =
                number.with_context(|| format!("the device must be MAJOR:MINOR, unlike '{device}'"))?;
            Ok(Naming::block(&name, major, minor)?)
        }
        (None, None, Some(identifier)) => Ok(Naming::identifier(&name, &identifier)?),
        _ => anyhow::bail!(one_of),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Options, Task};
    use clap::Parser;

    const FILE: &str = r#"
store = "sqlite:/var/lib/scsi-pr/reservations.db"
socket-mode = "0660"
socket-group = "root"
pass = "/run/qemu-pr-helper.sock"
keep = ["/dev/sda", "/dev/sdb"]
registrants = 10000

[[initiator]]
name = "vm1"
socket = "/run/scsi-pr/vm1.sock"

[[initiator]]
name = "iqn.2001-04.com.example:vm2"
socket = "/run/scsi-pr/vm2.sock"

[[unit]]
name = "disk"
path = "/srv/disk.img"

[[unit]]
name = "lun"
identifier = "naa.600140500000001"

[[unit]]
name = "block"
device = "252:0"
"#;

    fn read(text: &str) -> Result<Settings, String> {
        let path = Path::new("f");
        let settings = toml_file::parse(path, text).and_then(|file| Settings::of_file(file, path, text));
        settings.map_err(|error| format!("{error:#}"))
    }

    fn of_options(arguments: &[&str]) -> Settings {
        match Options::try_parse_from(["scsi-pr", "serve"].iter().chain(arguments)).unwrap().task {
            Task::Serve(serve) => Settings::read(&serve).unwrap(),
            _ => panic!("another task"),
        }
    }

    #[test]
    fn file_means_what_the_options_of_the_same_names_mean() {
        let options = of_options(&[
            "--store=sqlite:/var/lib/scsi-pr/reservations.db",
            "--socket-mode=0660",
            "--socket-group=root",
            "--pass=/run/qemu-pr-helper.sock",
            "--keep=/dev/sda",
            "--keep=/dev/sdb",
            "--registrants=10000",
            "--listen=vm1=/run/scsi-pr/vm1.sock",
            "--listen=iqn.2001-04.com.example:vm2=/run/scsi-pr/vm2.sock",
            "--unit=disk=/srv/disk.img",
            "--unit=lun=naa.600140500000001",
            "--unit=block=252:0",
        ]);
        assert_eq!(read(FILE).unwrap(), options);
        assert_eq!(read("store = \"memory:\"").unwrap(), of_options(&["--store=memory:"]));
    }

    #[test]
    fn example_of_the_packaging_is_valid() {
        let example = include_str!("../../../../packaging/serve.toml");
        assert!(read(example).unwrap().listen.is_empty(), "each instance of scsi-pr@.service would make the sockets");
        // Each key has its value after "# ", and "#" is an empty line.
        let (settings, initiators) = example.rsplit_once("# socket-mode").unwrap();
        let commented: String =
            initiators.lines().map(|line| line.trim_start_matches(['#', ' ']).to_owned() + "\n").collect();
        let all = settings.replace("# pass", "pass") + "socket-mode" + &commented.replace("\"kvm\"", "\"root\"");
        let settings = read(&all).unwrap();
        assert_eq!((settings.socket_mode, settings.listen.len()), (0o660, 2));
        assert_eq!(settings.pass, Some("/run/qemu-pr-helper.sock".into()));
    }

    #[test]
    fn errors_name_line_and_column() {
        for (from, to, error) in [
            ("registrants = 10000", "registrant = 1", "f:7:1: unknown field `registrant`"),
            ("registrants = 10000", "registrants = 10001", "f:7:15: the number of registrants is 1 to 10000"),
            ("registrants = 10000", "registrants = 0", "f:7:15: the number of registrants"),
            ("registrants = 10000", "[[portal-group]]", "f:7:3: unknown field `portal-group`"),
            ("\"0660\"", "\"0x660\"", "f:3:15: it must be an octal number"),
            ("\"root\"", "\"no-such-group\"", "f:4:16: there is no such group"),
            ("\"/run/qemu-pr-helper.sock\"", "\"helper.sock\"", "f:5:8: the path must be absolute"),
            // The place of an element is that of its array.
            ("\"/dev/sdb\"", "\"sdb\"", "f:6:8: the path must be absolute"),
            ("name = \"vm1\"", "name = \"\"", "f:10:8: "),
            (
                "/run/scsi-pr/vm2.sock",
                "/run/scsi-pr/vm1.sock",
                "f:13:1: initiator iqn.2001-04.com.example:vm2: another",
            ),
            ("path = \"/srv/disk.img\"", "", "f:17:1: a unit has one of path, device and identifier"),
            ("path = \"/srv/disk.img\"", "path = \"x\"", "f:17:1: a unit is found by an absolute path"),
            ("\"252:0\"", "\"vda\"", "f:25:1: the device must be MAJOR:MINOR, unlike 'vda'"),
            ("store = \"sqlite", "store = sqlite", "f:2:9: "),
        ] {
            assert!(FILE.contains(from), "{from}");
            let found = read(&FILE.replacen(from, to, 1)).map(drop).unwrap_err();
            assert!(found.starts_with(error), "{found}, not {error}");
        }
    }
}
