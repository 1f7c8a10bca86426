//! The Device Identification VPD page, 83h (SPC-4 7.8.6), of each path of a unit, from sysfs (`vpd_pg83`).

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use scsi_pr_linux::device::{Device, DeviceClass, unit_designators};

use super::verdict::Outcome;

/// The pages of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Identifiers {
    /// The pages cannot be read by this way; the reason.
    NotExamined(String),
    /// The paths, each with its page.
    Pages {
        /// Whether the paths are those of a multipath map.
        is_map: bool,
        /// The kernel's names of the paths, each with the page or why there is none.
        paths: Vec<(String, Result<Vec<u8>, String>)>,
    },
}

impl Identifiers {
    /// Those of a device.
    pub(crate) fn of(device: BorrowedFd<'_>) -> Self {
        Device::of(device).map_or_else(
            |error| Self::NotExamined(format!("sysfs does not tell the device: {error}")),
            |device| Self::read(&device, Path::new("/sys")),
        )
    }

    fn read(device: &Device, sysfs: &Path) -> Self {
        let Some(number) = device.number() else {
            return Self::NotExamined(format!("DEVICE is {}", device.class()));
        };
        let directory = |kind: &str| sysfs.join("dev").join(kind).join(number.to_string());
        let (is_map, directories) = match device.class() {
            DeviceClass::ScsiBlock => (false, vec![directory("block")]),
            DeviceClass::ScsiGeneric => (false, vec![directory("char")]),
            DeviceClass::Multipath { .. } => (true, entries(&directory("block").join("slaves"))),
            class => return Self::NotExamined(format!("DEVICE is {class}, which has no VPD page here")),
        };
        let paths = directories.iter().map(|directory| {
            let name = fs::canonicalize(directory).ok().and_then(|path| Some(path.file_name()?.to_owned()));
            let name = name.unwrap_or_default().to_string_lossy().into_owned();
            (name, fs::read(directory.join("device/vpd_pg83")).map_err(|error| error.to_string()))
        });
        Self::Pages { is_map, paths: paths.collect() }
    }

    /// Whether each path has an identifier that Windows takes.
    pub(super) fn present(&self) -> Outcome {
        let paths = match self {
            Self::NotExamined(why) => return Outcome::NotExamined(why.clone()),
            Self::Pages { paths, .. } => paths,
        };
        for (name, page) in paths {
            match page {
                Err(why) => return Outcome::NotExamined(format!("the page of {name} cannot be read: {why}")),
                Ok(page) if identifiers(page).is_empty() => {
                    let text =
                        "no designator of the type NAA, EUI-64, T10 vendor ID or SCSI name string for the logical unit";
                    return Outcome::Fails(format!("{name} has {text}"));
                }
                Ok(_) => {}
            }
        }
        match paths.is_empty() {
            true => Outcome::NotExamined("the map has no path".to_owned()),
            false => Outcome::Works,
        }
    }

    /// Whether all paths have the same identifiers.
    pub(super) fn same_by_all_paths(&self) -> Outcome {
        let paths = match self {
            Self::NotExamined(why) => return Outcome::NotExamined(why.clone()),
            Self::Pages { is_map: false, .. } => {
                return Outcome::NotExamined("DEVICE is one path: give the multipath map".to_owned());
            }
            Self::Pages { paths, .. } => paths,
        };
        let mut first: Option<(&str, BTreeSet<Identifier<'_>>)> = None;
        for (name, page) in paths {
            let Ok(page) = page else {
                return Outcome::NotExamined(format!("the page of {name} cannot be read"));
            };
            let own = identifiers(page);
            match &first {
                None => first = Some((name, own)),
                Some((other, expected)) if *expected != own => {
                    return Outcome::Fails(format!("{other} and {name} have different identifiers"));
                }
                Some(_) => {}
            }
        }
        match paths.len() {
            0 | 1 => Outcome::NotExamined("the map has fewer than two paths".to_owned()),
            _ => Outcome::Works,
        }
    }

    /// Whether the unit is a multipath map.
    pub(super) fn map(&self) -> Outcome {
        match self {
            Self::Pages { is_map: true, .. } => Outcome::Works,
            _ => Outcome::NotExamined("DEVICE is not a multipath map".to_owned()),
        }
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> =
        fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    all.sort_unstable();
    all
}

/// DESIGNATOR TYPE and the bytes of a designator.
type Identifier<'a> = (u8, &'a [u8]);

/// The designators of the logical unit of the types T10 vendor ID (1h), EUI-64 (2h), NAA (3h) and SCSI name string (8h).
fn identifiers(page: &[u8]) -> BTreeSet<Identifier<'_>> {
    let designators = unit_designators(page).filter(|one| matches!(one.designator_type, 0x1 | 0x2 | 0x3 | 0x8));
    designators.map(|one| (one.designator_type, one.bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NAA: [u8; 12] = [1, 3, 0, 8, 0x50, 1, 2, 3, 4, 5, 6, 7];
    /// NAA of the target port.
    const PORT: [u8; 12] = [1, 0x13, 0, 8, 0x50, 1, 2, 3, 4, 5, 6, 8];

    fn page(designators: &[[u8; 12]]) -> Vec<u8> {
        let length = u8::try_from(designators.len() * 12).unwrap();
        [&[0, 0x83, 0, length][..], &designators.concat()].concat()
    }

    fn map(pages: &[Vec<u8>]) -> Identifiers {
        let paths = pages.iter().enumerate().map(|(number, page)| (format!("sd{number}"), Ok(page.clone())));
        Identifiers::Pages { is_map: true, paths: paths.collect() }
    }

    #[test]
    fn only_identifiers_of_the_unit_count() {
        assert_eq!(map(&[page(&[PORT, NAA])]).present(), Outcome::Works);
        for page in [page(&[PORT]), page(&[]), vec![], vec![0, 0x80, 0, 0], page(&[NAA])[..10].to_vec()] {
            assert!(matches!(map(std::slice::from_ref(&page)).present(), Outcome::Fails(_)), "{page:?}");
        }
    }

    #[test]
    fn paths_are_of_one_unit_if_their_unit_identifiers_agree() {
        let mut other = NAA;
        other[11] = 9;
        assert_eq!(map(&[page(&[NAA]), page(&[PORT, NAA])]).same_by_all_paths(), Outcome::Works);
        assert!(matches!(map(&[page(&[NAA]), page(&[other])]).same_by_all_paths(), Outcome::Fails(_)));
        assert!(matches!(map(&[page(&[NAA])]).same_by_all_paths(), Outcome::NotExamined(_)));
    }

    #[test]
    fn page_that_cannot_be_read_is_not_examined() {
        let paths = vec![("sda".to_owned(), Err("no such file".to_owned()))];
        let unread = Identifiers::Pages { is_map: true, paths };
        assert!(matches!(unread.present(), Outcome::NotExamined(_)));
        assert!(matches!(unread.same_by_all_paths(), Outcome::NotExamined(_)));
    }

    proptest! {
        #[test]
        fn any_page_is_read_without_a_panic(bytes: Vec<u8>) {
            let _ = identifiers(&[&[0, 0x83, 0, 200][..], &bytes].concat());
        }
    }
}
