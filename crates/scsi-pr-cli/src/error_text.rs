//! The text of an error for a line of the log or of standard error.

/// The error and its causes. The text of many errors of libraries contains that of their cause: such a cause is left out.
pub(crate) fn with_causes(error: &anyhow::Error) -> String {
    let mut causes = error.chain().map(ToString::to_string);
    let mut text = causes.next().unwrap_or_default();
    for cause in causes {
        if !text.contains(&cause) && !contains_reason(&text, &cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Whether `text` has the text of an error of the kernel without its number, which std appends.
fn contains_reason(text: &str, cause: &str) -> bool {
    cause.split_once(" (os error ").is_some_and(|(reason, _)| text.contains(reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;
    use std::io;

    #[test]
    fn cause_is_named_once() {
        let kernel = || anyhow::Error::new(io::Error::from_raw_os_error(2));
        assert_eq!(
            with_causes(&kernel().context("cannot read f")),
            "cannot read f: No such file or directory (os error 2)"
        );
        let whole = "f cannot be opened: No such file or directory (os error 2)";
        assert_eq!(with_causes(&kernel().context(whole)), whole);
        let without_number = "f cannot be bound: No such file or directory";
        assert_eq!(with_causes(&kernel().context(without_number)), without_number);
        assert_eq!(with_causes(&anyhow!("c").context("b").context("a: b")), "a: b: c");
    }
}
