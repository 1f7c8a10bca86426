//! Patterns of names: `*` stands for any characters, `?` for one.

/// Whether `text` is a pattern rather than a name.
pub(super) fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?'])
}

/// Whether `pattern` stands for `name`. The pattern comes from the administrator, so the time that many `*` take does no
/// harm.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    fn bytes_match(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern, name) {
            ([], []) => true,
            ([b'*', b'*', ..], _) => bytes_match(&pattern[1..], name),
            ([b'*', rest @ ..], _) => (0..=name.len()).any(|skipped| bytes_match(rest, &name[skipped..])),
            ([b'?', rest @ ..], [_, name @ ..]) => bytes_match(rest, name),
            ([expected, rest @ ..], [byte, name @ ..]) => expected == byte && bytes_match(rest, name),
            _ => false,
        }
    }
    bytes_match(pattern.as_bytes(), name.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_patterns() {
        assert!(is_pattern("pr_*") && is_pattern("pr_manager_ru?") && !is_pattern("pr_manager_run"));
        for (pattern, name, expected) in [
            ("pr_manager_ru?", "pr_manager_run", true),
            ("pr_manager_?", "pr_manager_run", false),
            ("pr_manager_run?", "pr_manager_run", false),
            ("*", "", true),
            ("***", "pr", true),
            ("", "", true),
            ("", "pr", false),
            ("*_run", "pr_manager_run", true),
            ("pr*_*n", "pr_manager_run", true),
            ("pr*_*x", "pr_manager_run", false),
            ("*manager*", "pr_manager_run", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
