//! Decimal numbers with the habits of strtoul(3), which the C helper reads its ids and its environment with.

/// A number as strtoul(3) reads it, over the whole text: leading white space and a sign are taken, trailing characters
/// and an empty text are not. The sign, and the magnitude; `None` too when that has more than 64 bits.
pub(crate) fn decimal(text: &str) -> Option<(bool, u64)> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    // `parse` would take a second sign.
    let magnitude = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())??;
    Some((negative, magnitude))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn habits_of_strtoul() {
        for (text, number) in [
            ("12", Some((false, 12))),
            (" 12", Some((false, 12))),
            ("\t+12", Some((false, 12))),
            ("0012", Some((false, 12))),
            ("-1", Some((true, 1))),
            ("18446744073709551615", Some((false, u64::MAX))),
            ("18446744073709551616", None),
            ("", None),
            (" ", None),
            ("+", None),
            ("+-12", None),
            ("- 1", None),
            ("12 ", None),
            ("12abc", None),
            ("0x10", None),
        ] {
            assert_eq!(decimal(text), number, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn every_number_is_read_back(number: u64) {
            prop_assert_eq!(decimal(&number.to_string()), Some((false, number)));
        }

        #[test]
        fn any_text_is_read_or_refused(text: String) {
            if let Some((_, number)) = decimal(&text) {
                let digits = text.trim_start_matches(|c: char| !c.is_ascii_digit()).trim_start_matches('0');
                prop_assert_eq!(if digits.is_empty() { "0" } else { digits }, number.to_string());
            }
        }
    }
}
