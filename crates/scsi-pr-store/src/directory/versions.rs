//! The files of a unit, one for each version: their names, and the rules by which they come and go.

use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;

use rustix::fd::OwnedFd;
use rustix::fs::{RawDir, SeekFrom, seek};

use super::root::refresh;
use crate::Version;

/// The number of versions that the store keeps. If others make this many changes between a writer's link(2) and its
/// listing, the writer cannot know whether it was in time.
pub(super) const KEPT: u64 = 32;

/// The knowledge of a writer that has tried to make a version, and has then listed the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The writer made the version.
    Done,
    /// Another writer made the version.
    Lost,
    /// Either.
    Unknown,
}

/// The writer of `version`, from whether this writer could link it, and from the `newest` version after that.
///
/// A version is removed only once there is one that is newer by [`KEPT`], and the newest is never removed. As long as
/// no version is newer by so much, the name of `version` has never been removed. So the writer that could link it was
/// the first.
pub(super) fn verdict(version: Version, linked: bool, newest: Version) -> Verdict {
    match linked {
        _ if is_outdated(version, newest) => Verdict::Unknown,
        true => Verdict::Done,
        false => Verdict::Lost,
    }
}

/// Whether `version` may be removed when `newest` is there, durably.
pub(super) fn is_outdated(version: Version, newest: Version) -> bool {
    newest.0.saturating_sub(version.0) >= KEPT
}

/// The name of a version's file: sorts as the version does.
pub(super) fn name(version: Version) -> String {
    format!("{version:020}")
}

fn parse(name: &[u8]) -> Option<Version> {
    let name = str::from_utf8(name).ok()?;
    // `parse` alone would take a sign.
    let version =
        Version(if name.bytes().all(|byte| byte.is_ascii_digit()) { name.parse().ok()? } else { return None });
    (version != Version(0) && self::name(version) == name).then_some(version)
}

/// The versions that are in a unit's directory. Anything else there is an error of kind `InvalidData`, but for hidden
/// files: NFS clients keep a removed file that is still open as `.nfs…`.
pub(super) fn list(directory: &OwnedFd) -> io::Result<Vec<Version>> {
    refresh(directory)?;
    let (mut listed, mut whole) = list_once(directory)?;
    // Several calls are no picture of one time: until nothing changed from one to the next.
    while !whole {
        let (again, is_whole) = list_once(directory)?;
        whole = is_whole || again.iter().max() == listed.iter().max();
        listed = again;
    }
    Ok(listed)
}

/// The versions, and whether they came all at once.
fn list_once(directory: &OwnedFd) -> io::Result<(Vec<Version>, bool)> {
    seek(directory, SeekFrom::Start(0))?;
    // Room for several hundred names.
    let mut buffer = [MaybeUninit::uninit(); 32 * 1024];
    let mut entries = RawDir::new(directory, &mut buffer);
    let mut versions = Vec::new();
    let mut calls = 0;
    loop {
        calls += u32::from(entries.is_buffer_empty());
        let Some(entry) = entries.next() else { break };
        let name = entry?.file_name().to_bytes().to_owned();
        match parse(&name) {
            Some(version) => versions.push(version),
            None if name.starts_with(b".") => {}
            None => {
                let name = String::from_utf8_lossy(&name).into_owned();
                return Err(io::Error::new(ErrorKind::InvalidData, format!("{name:?} is not the name of a version")));
            }
        }
    }
    // The last call is the one that finds nothing more.
    Ok((versions, calls <= 2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_have_twenty_digits() {
        assert_eq!(name(Version(7)), "00000000000000000007");
        for text in
            ["7", "00000000000000000000", "+0000000000000000007", "0000000000000000007x", "99999999999999999999", "é"]
        {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn who_could_link_was_first_unless_the_name_may_have_been_removed() {
        let version = Version(5);
        for (linked, newest, expected) in [
            (true, 5, Verdict::Done),
            (true, 5 + KEPT - 1, Verdict::Done),
            (false, 5, Verdict::Lost),
            (true, 5 + KEPT, Verdict::Unknown),
            (false, 5 + KEPT, Verdict::Unknown),
        ] {
            assert_eq!(verdict(version, linked, Version(newest)), expected, "{linked} {newest}");
        }
    }

    proptest! {
        #[test]
        fn versions_survive_their_names(version in 1..=u64::MAX) {
            prop_assert_eq!(parse(name(Version(version)).as_bytes()), Some(Version(version)));
        }

        #[test]
        fn any_name_is_a_version_or_not(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }

        #[test]
        fn names_sort_as_versions(one: u64, other: u64) {
            prop_assert_eq!(name(Version(one)).cmp(&name(Version(other))), one.cmp(&other));
        }
    }
}
