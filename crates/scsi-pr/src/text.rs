//! Commands in words, for logs: who did what with which key.

use std::fmt;

use crate::{Command, Opcode, ReserveIn, ReserveInAction, ReserveOut, ReserveOutAction, SenseCode};

impl fmt::Display for Command<'_> {
    /// The command on one line: opcode, service action, keys, type and whatever else counts for it. Of one that is
    /// malformed (a device server may be more lenient), what can be read, and the sense that should refuse it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.opcode().fmt(f)?;
        let code = self.cdb().service_action();
        match self.opcode() {
            Opcode::ReserveIn => match ReserveIn::parse(*self) {
                Ok(value) => write!(f, ", {value}"),
                Err(refusal) => {
                    service_action(f, ReserveInAction::from_code(code), code)?;
                    malformed(f, refusal)
                }
            },
            Opcode::ReserveOut => match ReserveOut::parse(*self) {
                Ok(value) => write!(f, ", {value}"),
                Err(refusal) => {
                    service_action(f, ReserveOutAction::from_code(code), code)?;
                    if let Some((key, service_action_key)) = ReserveOut::keys(*self) {
                        write!(f, ", key {key}, service action key {service_action_key}")?;
                    }
                    malformed(f, refusal)
                }
            },
            Opcode::Cleanup => Ok(()),
        }
    }
}

fn service_action(f: &mut fmt::Formatter<'_>, known: Option<impl fmt::Display>, code: u8) -> fmt::Result {
    match known {
        Some(action) => write!(f, ", {action}"),
        None => write!(f, ", service action {code:02x}h"),
    }
}

fn malformed(f: &mut fmt::Formatter<'_>, refusal: SenseCode) -> fmt::Result {
    write!(f, ", malformed: {refusal}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reserve_out::tests::{out, reserve_outs};
    use crate::{Cdb, CommandBuf, Key};
    use proptest::prelude::*;

    #[test]
    fn text_of_commands_has_the_terms_of_the_standard() {
        let keys = [1u64.to_be_bytes(), 2u64.to_be_bytes(), [0; 8]].concat();
        let read_keys = ReserveIn::new(ReserveInAction::ReadKeys, 4096).encode();
        let clear = ReserveOut::Clear { key: Key(0xabc) }.encode().unwrap();
        let (one, two) = ("key 0x0000000000000001", "service action key 0x0000000000000002");
        for (command, text) in [
            (read_keys.command(), "PERSISTENT RESERVE IN, READ KEYS, up to 4096 bytes".to_owned()),
            (clear.command(), "PERSISTENT RESERVE OUT, CLEAR, key 0x0000000000000abc".to_owned()),
            (
                out(5, 5, &keys).command(),
                format!("PERSISTENT RESERVE OUT, PREEMPT AND ABORT, {one}, {two}, Write Exclusive - Registrants Only"),
            ),
            (
                out(1, 0, &keys).command(),
                format!("PERSISTENT RESERVE OUT, RESERVE, {one}, {two}, malformed: 05/24/00 (INVALID FIELD IN CDB)"),
            ),
            (
                out(0, 0, &keys[..16]).command(),
                format!(
                    "PERSISTENT RESERVE OUT, REGISTER, {one}, {two}, malformed: 05/1a/00 (PARAMETER LIST LENGTH ERROR)"
                ),
            ),
            (
                out(0x1f, 0, &keys[..15]).command(),
                "PERSISTENT RESERVE OUT, service action 1fh, malformed: 05/1a/00 (PARAMETER LIST LENGTH ERROR)"
                    .to_owned(),
            ),
            (Command::cleanup(), "CLEANUP".to_owned()),
        ] {
            assert_eq!(command.to_string(), text);
        }
    }

    fn is_one_short_line(command: Command<'_>) -> bool {
        let text = command.to_string();
        // Four names of 223 bytes, of which escaping makes at most ten each, and some words.
        text.len() < 4 * 2230 + 500 && !text.contains(char::is_control)
    }

    proptest! {
        #[test]
        fn whatever_a_command_says_is_one_short_line(
            value in reserve_outs(),
            cut: prop::sample::Index,
            mut cdb: [u8; 16],
            opcode in prop::sample::select(vec![0x5e, 0x5f, 0xff]),
            list in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let encoded = value.encode().unwrap();
            prop_assert!(is_one_short_line(encoded.command()));
            prop_assert!(!encoded.command().to_string().contains("malformed"));

            let whole = encoded.command().parameter_list();
            let bytes = encoded.cdb().bytes();
            let short = out(bytes[1], bytes[2], &whole[..cut.index(whole.len())]);
            prop_assert!(short.command().to_string().contains("malformed"));
            prop_assert!(is_one_short_line(short.command()));

            cdb[0] = opcode;
            cdb[7..9].copy_from_slice(&u16::try_from(list.len()).unwrap().to_be_bytes());
            let cdb = Cdb::new(cdb).unwrap();
            let list = if opcode == 0x5f { list } else { Vec::new() };
            prop_assert!(is_one_short_line(CommandBuf::new(cdb, list).unwrap().command()));
        }
    }
}
