//! [`Config`]: the settings of the disks, from the command line or a TOML file.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use scsi_pr_disk::{Identity, InvalidIdentity};
use serde::Deserialize;
use toml::Spanned;

use super::names::{InitiatorIqn, TargetName, UnitName};
use super::options::{Cache, PortalGroup, ServeDisks, Takeover, address};
use crate::toml_file::{self, Position};

/// The settings of the disks.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Config {
    pub(crate) store: String,
    pub(crate) chap: Option<PathBuf>,
    pub(crate) control: Option<PathBuf>,
    /// The first one has the portal group tag 1.
    pub(crate) portal_group: Vec<Portals>,
    #[serde(default)]
    unit: Vec<Spanned<Unit>>,
}

/// A portal group.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Portals {
    pub(crate) addresses: Vec<Address>,
}

/// An IP address and a port.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(try_from = "String")]
pub(crate) struct Address(pub(crate) SocketAddr);

/// A unit.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Unit {
    pub(crate) name: UnitName,
    pub(crate) path: PathBuf,
    target: Option<TargetName>,
    #[serde(default)]
    pub(crate) lun: u8,
    #[serde(default)]
    pub(crate) read_only: bool,
    #[serde(default)]
    pub(crate) cache: Cache,
    #[serde(default = "default_block_size")]
    pub(crate) block_size: u32,
    pub(crate) serial: Option<String>,
    naa: Option<Hex<8>>,
    uuid: Option<Hex<16>>,
    /// `None`: every initiator.
    pub(crate) allow: Option<BTreeSet<InitiatorIqn>>,
}

/// Bytes as hexadecimal digits; hyphens, as in a UUID, are skipped.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
struct Hex<const N: usize>([u8; N]);

const fn default_block_size() -> u32 {
    512
}

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        address(&text).map(Self)
    }
}

impl<const N: usize> TryFrom<String> for Hex<N> {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bytes = super::hex::decode(&text.replace('-', ""));
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| format!("it must have {} hexadecimal digits, unlike '{text}'", 2 * N))
    }
}

impl Unit {
    /// The target that the unit belongs to.
    pub(crate) fn target(&self) -> TargetName {
        self.target.clone().unwrap_or_else(|| self.name.target())
    }

    /// Whether a unit with these settings is served in the same way. The initiators are of the target.
    pub(crate) fn is_same_disk(&self, other: &Self) -> bool {
        Self { allow: other.allow.clone(), target: Some(self.target()), ..self.clone() }
            == Self { target: Some(other.target()), ..other.clone() }
    }

    /// The UUID of a disk that was moved in from elsewhere.
    pub(crate) fn uuid(&self) -> Option<[u8; 16]> {
        self.uuid.map(|uuid| uuid.0)
    }

    /// The names of the disk with this UUID.
    ///
    /// # Errors
    ///
    /// The serial number or the NAA identifier is invalid.
    pub(crate) fn identity(&self, uuid: [u8; 16]) -> Result<Identity, InvalidIdentity> {
        let mut identity = Identity::from_uuid(uuid);
        if let Some(serial) = &self.serial {
            identity = identity.with_serial(serial)?;
        }
        match self.naa {
            Some(naa) => identity.with_naa(naa.0),
            None => Ok(identity),
        }
    }

    /// The epoch of the former owner that `takeovers` states to be gone.
    pub(crate) fn takeover(&self, takeovers: &[Takeover]) -> Option<u64> {
        let own = takeovers.iter().find(|takeover| takeover.name.as_ref().is_none_or(|name| *name == self.name));
        own.map(|takeover| takeover.epoch)
    }

    fn check(&self) -> Result<()> {
        ensure!(self.path.is_absolute(), "the path {} must be absolute", self.path.display());
        ensure!(matches!(self.block_size, 512 | 4096), "a block has 512 or 4096 bytes, not {}", self.block_size);
        self.identity([0; 16])?;
        Ok(())
    }
}

impl Config {
    /// The settings of the command line, or of its file.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or a setting contradicts another one; the text names line and column.
    pub(crate) fn read(options: &ServeDisks) -> Result<Self> {
        let config = match &options.config {
            Some(path) => {
                let (config, text) = toml_file::read(path)?;
                Self::checked(config, path, &text)?
            }
            None => Self::of_options(options)?,
        };
        for takeover in &options.takeover {
            match &takeover.name {
                Some(name) => ensure!(
                    config.units().any(|unit| unit.name == *name),
                    "--takeover names the unit {name}, which is not served"
                ),
                None => ensure!(config.unit.len() == 1, "there are several units: give --takeover=NAME=EPOCH"),
            }
        }
        Ok(Self { control: options.control.clone().or(config.control), ..config })
    }

    fn of_options(options: &ServeDisks) -> Result<Self> {
        let unit = options.unit.iter().map(|unit| {
            let unit = Unit {
                name: unit.name.clone(),
                path: unit.path.clone(),
                target: None,
                lun: 0,
                read_only: false,
                cache: options.cache,
                block_size: default_block_size(),
                serial: None,
                naa: None,
                uuid: None,
                allow: (!options.allow.is_empty()).then(|| options.allow.iter().cloned().collect()),
            };
            Spanned::new(0..0, unit)
        });
        let portals = |PortalGroup(addresses): &PortalGroup| Portals {
            addresses: addresses.iter().copied().map(Address).collect(),
        };
        let config = Self {
            store: options.store.clone().unwrap_or_default(),
            chap: options.chap.clone(),
            control: None,
            portal_group: options.listen.iter().map(portals).collect(),
            unit: unit.collect(),
        };
        config.check(|_| "--unit".to_owned())?;
        Ok(config)
    }

    fn checked(config: Self, path: &Path, text: &str) -> Result<Self> {
        config.check(|unit| format!("{}:{}", path.display(), Position::of(text, unit.span().start)))?;
        ensure!(
            config.portal_group.iter().all(|group| !group.addresses.is_empty()) && !config.portal_group.is_empty(),
            "{}: there must be a [[portal-group]], each with addresses",
            path.display()
        );
        Ok(config)
    }

    /// The units.
    pub(crate) fn units(&self) -> impl Iterator<Item = &Unit> {
        self.unit.iter().map(Spanned::get_ref)
    }

    /// Every address.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.portal_group.iter().flat_map(|group| &group.addresses).map(|address| address.0)
    }

    /// Checks the units against each other. `place` tells where the unit is defined.
    fn check(&self, place: impl Fn(&Spanned<Unit>) -> String) -> Result<()> {
        let (mut names, mut paths, mut numbers) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut allowed = BTreeMap::new();
        for spanned in &self.unit {
            let unit = spanned.get_ref();
            let check = || {
                unit.check()?;
                ensure!(names.insert(&unit.name), "another unit has this name");
                ensure!(paths.insert(&unit.path), "another unit has the medium {}", unit.path.display());
                let target = unit.target();
                ensure!(numbers.insert((target.clone(), unit.lun)), "another unit is LUN {} of {target}", unit.lun);
                if *allowed.entry(target).or_insert(&unit.allow) != &unit.allow {
                    bail!(
                        "another unit of the target has other initiators in allow: units of one target have the same"
                    );
                }
                Ok(())
            };
            let result: Result<()> = { check }();
            result.with_context(|| format!("{}: unit {}", place(spanned), unit.name))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
store = "sqlite:/var/lib/scsi-pr/reservations.db"
chap = "/etc/scsi-pr/chap.toml"

[[portal-group]]
addresses = ["192.0.2.1:3260", "[2001:db8::1]:3260"]

[[portal-group]]
addresses = ["198.51.100.1:3260"]

[[unit]]
name = "one"
path = "/srv/one.img"
allow = ["iqn.2001-04.com.example:VM1"]

[[unit]]
name = "two"
path = "/dev/vg/two"
target = "iqn.2001-04.com.example:array"
lun = 3
read-only = true
cache = "none"
block-size = 4096
serial = "S1"
naa = "5000c50015ea71ac"
uuid = "01234567-89ab-cdef-0123-456789abcdef"
"#;

    fn read(text: &str) -> Result<Config, String> {
        let path = Path::new("f");
        let config = toml_file::parse(path, text).and_then(|config| Config::checked(config, path, text));
        config.map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn every_key_is_read() {
        let config = read(FILE).unwrap();
        assert_eq!((config.addresses().count(), config.portal_group.len()), (3, 2));
        let [one, two] = config.units().collect::<Vec<_>>()[..] else { panic!("two units") };
        assert_eq!(one.target().as_ref(), "iqn.2026-11.io.scsi-pr:one");
        assert!(one.allow.as_ref().unwrap().contains(&"iqn.2001-04.com.example:vm1".parse().unwrap()));
        assert_eq!((one.lun, one.read_only, one.cache, one.block_size), (0, false, Cache::Writeback, 512));
        assert_eq!((two.lun, two.read_only, two.cache, two.block_size), (3, true, Cache::None, 4096));
        let identity = two.identity(two.uuid().unwrap()).unwrap();
        assert_eq!((identity.serial(), identity.naa()[0], identity.uuid()[15]), ("S1", 0x50, 0xef));
    }

    #[test]
    fn errors_name_line_and_column() {
        for (from, to, error) in [
            ("lun = 3", "lum = 3", "f:20:1: unknown field `lum`"),
            ("lun = 3", "lun = 300", "f:20:7: invalid value"),
            ("192.0.2.1:3260", "192.0.2.1", "f:6:13: '192.0.2.1' must be ADDRESS:PORT"),
            ("name = \"two\"", "name = \"one\"", "f:16:1: unit one: another unit has this name"),
            ("/dev/vg/two", "/srv/one.img", "f:16:1: unit two: another unit has the medium"),
            ("/dev/vg/two", "two", "f:16:1: unit two: the path two must be absolute"),
            ("5000c50015ea71ac", "5000", "f:25:7: it must have 16 hexadecimal digits"),
            ("5000c50015ea71ac", "6000c50015ea71ac", "f:16:1: unit two: an NAA identifier"),
            ("block-size = 4096", "block-size = 1024", "f:16:1: unit two: a block has 512 or 4096 bytes"),
            ("[[unit]]\nname = \"one\"", "[[unit]]", "f:11:1: missing field `name`"),
            ("addresses = [\"198.51.100.1:3260\"]", "addresses = []", "f: there must be a [[portal-group]]"),
        ] {
            assert!(FILE.contains(from), "{from}");
            let found = read(&FILE.replacen(from, to, 1)).map(drop).unwrap_err();
            assert!(found.starts_with(error), "{found}, not {error}");
        }
    }

    #[test]
    fn units_of_one_target_have_the_same_initiators_and_other_numbers() {
        let text = FILE.replace("iqn.2001-04.com.example:array", "iqn.2026-11.io.scsi-pr:one");
        assert!(read(&text).map(drop).unwrap_err().contains("other initiators in allow"));
        assert!(read(&text.replace("lun = 3", "lun = 0")).map(drop).unwrap_err().contains("is LUN 0 of"));
    }
}
