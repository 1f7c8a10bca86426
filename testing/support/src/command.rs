//! PERSISTENT RESERVE IN and OUT as bytes (SPC-4, 6.15 and 6.16).

/// Operation code of PERSISTENT RESERVE IN.
pub const IN: u8 = 0x5e;
/// Operation code of PERSISTENT RESERVE OUT.
pub const OUT: u8 = 0x5f;

/// Service actions of PERSISTENT RESERVE IN.
pub mod action_in {
    /// READ KEYS.
    pub const READ_KEYS: u8 = 0;
    /// READ RESERVATION.
    pub const READ_RESERVATION: u8 = 1;
    /// REPORT CAPABILITIES.
    pub const REPORT_CAPABILITIES: u8 = 2;
    /// READ FULL STATUS.
    pub const READ_FULL_STATUS: u8 = 3;
}

/// Service actions of PERSISTENT RESERVE OUT.
pub mod action_out {
    /// REGISTER.
    pub const REGISTER: u8 = 0;
    /// RESERVE.
    pub const RESERVE: u8 = 1;
    /// RELEASE.
    pub const RELEASE: u8 = 2;
    /// CLEAR.
    pub const CLEAR: u8 = 3;
    /// PREEMPT.
    pub const PREEMPT: u8 = 4;
    /// PREEMPT AND ABORT.
    pub const PREEMPT_AND_ABORT: u8 = 5;
    /// REGISTER AND IGNORE EXISTING KEY.
    pub const REGISTER_AND_IGNORE_EXISTING_KEY: u8 = 6;
}

/// SCOPE and TYPE of a Write Exclusive reservation of the logical unit.
pub const WRITE_EXCLUSIVE: u8 = 1;
/// SCOPE and TYPE of a Write Exclusive – Registrants Only reservation of the logical unit.
pub const WRITE_EXCLUSIVE_REGISTRANTS_ONLY: u8 = 5;

/// A CDB with a service action in byte 1 and a length in bytes 7 and 8, padded to the 16 bytes of the helper protocol.
pub fn cdb(opcode: u8, service_action: u8, length: u16) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (opcode, service_action);
    cdb[7..9].copy_from_slice(&length.to_be_bytes());
    cdb
}

/// The CDB of PERSISTENT RESERVE IN. `allocation_length` is in bytes.
pub fn reserve_in(service_action: u8, allocation_length: u16) -> [u8; 16] {
    cdb(IN, service_action, allocation_length)
}

/// The CDB of PERSISTENT RESERVE OUT. `list_length` is the length of its parameter list in bytes.
pub fn reserve_out(service_action: u8, scope_type: u8, list_length: usize) -> [u8; 16] {
    let mut cdb = cdb(OUT, service_action, list_length.try_into().expect("a parameter list of at most 65,535 bytes"));
    cdb[2] = scope_type;
    cdb
}

/// The basic parameter list (24 bytes): RESERVATION KEY, SERVICE ACTION RESERVATION KEY, no flags.
pub fn basic_list(key: u64, service_action_key: u64) -> [u8; 24] {
    let mut list = [0; 24];
    list[..8].copy_from_slice(&key.to_be_bytes());
    list[8..16].copy_from_slice(&service_action_key.to_be_bytes());
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn register_has_the_bytes_of_the_standard() {
        assert_eq!(reserve_out(action_out::REGISTER, 0, 24)[..10], [0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0]);
        assert_eq!(reserve_out(action_out::PREEMPT, 5, 24)[..10], [0x5f, 4, 5, 0, 0, 0, 0, 0, 24, 0]);
        assert_eq!(reserve_in(action_in::READ_KEYS, 0x1ff)[..10], [0x5e, 0, 0, 0, 0, 0, 0, 1, 0xff, 0]);
        let list = basic_list(0x0102, 0x0a0b);
        assert_eq!((&list[6..8], &list[14..16], &list[16..]), (&[1, 2][..], &[0xa, 0xb][..], &[0; 8][..]));
    }
}
