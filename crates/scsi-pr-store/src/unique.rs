//! Names that no other process has.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

/// 32 hexadecimal digits by chance: never given before, here or elsewhere.
pub(crate) fn unique() -> io::Result<String> {
    let mut bytes = [0_u8; 16];
    // Up to 256 bytes come whole or not at all (getrandom(2)).
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_are_alike() {
        let (first, second) = (unique().expect("chance"), unique().expect("chance"));
        assert_ne!(first, second);
        assert!([first, second].iter().all(|name| name.len() == 32 && name.bytes().all(|b| b.is_ascii_hexdigit())));
    }
}
