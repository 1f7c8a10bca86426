//! Names of events, with `*` for any characters and `?` for one.

/// Whether `text` stands for names rather than being one.
pub(super) fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?'])
}

/// Whether `name` is one that `pattern` stands for.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut at, mut read) = (0, 0);
    // Where the last `*` was, and how far the name was read when it was met: what it stands for grows from there.
    let mut star = None;
    while read < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, read));
                at += 1;
            }
            Some(&byte) if byte == b'?' || byte == name[read] => {
                at += 1;
                read += 1;
            }
            _ => match star {
                None => return false,
                Some((star_at, star_read)) => {
                    star = Some((star_at, star_read + 1));
                    at = star_at + 1;
                    read = star_read + 1;
                }
            },
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same, by trying everything.
    fn naive(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern, name) {
            ([], []) => true,
            ([b'*', rest @ ..], name) => (0..=name.len()).any(|taken| naive(rest, &name[taken..])),
            ([b'?', rest @ ..], [_, name @ ..]) => naive(rest, name),
            ([wanted, rest @ ..], [byte, name @ ..]) => wanted == byte && naive(rest, name),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_trying_everything(pattern in "[ab*?]{0,8}", name in "[ab]{0,10}") {
            prop_assert_eq!(matches(&pattern, &name), naive(pattern.as_bytes(), name.as_bytes()));
        }
    }

    #[test]
    fn names_and_patterns() {
        assert!(is_pattern("pr_*") && is_pattern("pr_manager_ru?") && !is_pattern("pr_manager_run"));
        assert!(matches("pr_manager_ru?", "pr_manager_run") && !matches("pr_manager_?", "pr_manager_run"));
    }
}
