//! The version of libmpathpersist, which has no function that tells it.
//!
//! libmpathpersist is linked to libmultipath's symbol versions, `LIBMULTIPATH_17.0.0` in multipath-tools 0.9.4. The number
//! grows with each incompatible change of that interface.

use std::fs;
use std::io::Read;
use std::path::Path;

/// The interface of multipath-tools 0.9.4.
pub(super) const OLDEST_INTERFACE: u32 = 17;

const PREFIX: &[u8] = b"LIBMULTIPATH_";

/// A library is some hundred kilobytes long.
const MAX_LENGTH: u64 = 16 << 20;

/// The interface of libmultipath that the loaded library `name` uses. `None`: it names no interface, or cannot be read.
pub(super) fn interface_of_loaded(name: &str) -> Option<u32> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let path = maps
        .lines()
        .filter_map(|line| line.find('/').map(|start| Path::new(&line[start..])))
        .find(|path| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name)))?;
    let mut library = Vec::new();
    fs::File::open(path).ok()?.take(MAX_LENGTH).read_to_end(&mut library).ok()?;
    interface_in(&library)
}

/// The greatest number behind the prefix in the bytes of a library.
fn interface_in(library: &[u8]) -> Option<u32> {
    let names = library.windows(PREFIX.len()).enumerate().filter(|(_, window)| *window == PREFIX);
    let number = |start: usize| {
        let digits: Vec<u8> = library[start..].iter().copied().take_while(u8::is_ascii_digit).take(9).collect();
        String::from_utf8(digits).ok()?.parse().ok()
    };
    names.filter_map(|(start, _)| number(start + PREFIX.len())).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_is_the_greatest_number() {
        assert_eq!(interface_in(b"\0LIBMULTIPATH_9.0.0\0LIBMULTIPATH_9.1.0\0"), Some(9));
        assert_eq!(interface_in(b"LIBMPATHCMD_1.0.0\0LIBMULTIPATH_16.0.0\0LIBMULTIPATH_17.0.0"), Some(17));
        for bytes in [&b""[..], b"LIBMULTIPATH_", b"LIBMULTIPATH_x", b"LIBMPATHPERSIST_2.1.0"] {
            assert_eq!(interface_in(bytes), None);
        }
        assert_eq!(interface_in(b"LIBMULTIPATH_99999999999999"), Some(999_999_999));
    }

    #[test]
    fn a_library_that_is_not_loaded_has_no_interface() {
        assert_eq!(interface_of_loaded("libmpathpersist-that-is-not-there.so"), None);
        // A library without such names.
        assert_eq!(interface_of_loaded("libc.so.6"), None);
    }
}
