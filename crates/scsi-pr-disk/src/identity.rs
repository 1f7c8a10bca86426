//! [`Identity`]: the names of a disk, which must never change.

use thiserror::Error;

/// The designators of a logical unit (SPC-4 7.8.6) and its serial number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    uuid: [u8; 16],
    naa: [u8; 8],
    serial: String,
}

/// A name that a disk cannot have.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidIdentity {
    /// The serial number is empty, longer than 64 characters, or has a character that is not printable ASCII.
    #[error("a serial number has 1 to 64 printable ASCII characters")]
    Serial,
    /// The NAA identifier is of no format with eight bytes.
    #[error("an NAA identifier of eight bytes begins with the hexadecimal digit 2, 3 or 5")]
    Naa,
}

impl Identity {
    /// The identity that follows from a UUID: an NAA identifier of format 3h (locally assigned, SPC-4 7.8.6.5.4) with the
    /// first 60 bits of the UUID's random part, and the UUID's hexadecimal digits as the serial number.
    pub fn from_uuid(uuid: [u8; 16]) -> Self {
        // The version and the variant of a UUID are not random: bytes 6 and 8 are left out.
        let mut naa = [uuid[0], uuid[1], uuid[2], uuid[3], uuid[4], uuid[5], uuid[7], uuid[9]];
        naa[0] = 0x30 | naa[0] & 0x0f;
        let serial = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { uuid, naa, serial }
    }

    /// The same with another serial number, for a disk that had one elsewhere.
    ///
    /// # Errors
    ///
    /// [`InvalidIdentity::Serial`].
    pub fn with_serial(self, serial: &str) -> Result<Self, InvalidIdentity> {
        let is_valid = (1..=64).contains(&serial.len()) && serial.bytes().all(|byte| (0x20..0x7f).contains(&byte));
        if is_valid { Ok(Self { serial: serial.to_owned(), ..self }) } else { Err(InvalidIdentity::Serial) }
    }

    /// The same with another NAA identifier, for a disk that had one elsewhere.
    ///
    /// # Errors
    ///
    /// [`InvalidIdentity::Naa`].
    pub fn with_naa(self, naa: [u8; 8]) -> Result<Self, InvalidIdentity> {
        if matches!(naa[0] >> 4, 2 | 3 | 5) { Ok(Self { naa, ..self }) } else { Err(InvalidIdentity::Naa) }
    }

    /// UNIT SERIAL NUMBER.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// The NAA identifier.
    pub fn naa(&self) -> &[u8; 8] {
        &self.naa
    }

    /// The UUID that the identity follows from.
    pub fn uuid(&self) -> &[u8; 16] {
        &self.uuid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: [u8; 16] = [0xab, 1, 2, 3, 4, 5, 0x46, 7, 0x88, 9, 10, 11, 12, 13, 14, 15];

    #[test]
    fn the_naa_identifier_is_locally_assigned_and_follows_from_the_uuid() {
        let identity = Identity::from_uuid(UUID);
        assert_eq!(identity.naa(), &[0x3b, 1, 2, 3, 4, 5, 7, 9]);
        assert_eq!(identity.serial(), "ab010203040546078809".to_owned() + "0a0b0c0d0e0f");
        assert_eq!(Identity::from_uuid(UUID), identity);
    }

    #[test]
    fn names_that_a_disk_cannot_have_are_refused() {
        let identity = || Identity::from_uuid(UUID);
        for serial in ["", "a\tb", "ä", &"x".repeat(65)] {
            assert_eq!(identity().with_serial(serial), Err(InvalidIdentity::Serial), "{serial:?}");
        }
        assert_eq!(identity().with_naa([0x60; 8]), Err(InvalidIdentity::Naa));
        assert_eq!(identity().with_naa([0x50; 8]).unwrap().naa(), &[0x50; 8]);
        assert_eq!(identity().with_serial("disk 1").unwrap().serial(), "disk 1");
    }
}
