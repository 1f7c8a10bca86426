//! The terms that prose and identifiers must not use.

/// The list, with a replacement for each term.
const LIST: &str = include_str!("banned.txt");

/// A term and its replacement.
pub(super) struct Term {
    /// In lower case for prose and parts, one element for each word; exact for identifiers.
    pub(super) words: Vec<&'static str>,
    pub(super) replacement: &'static str,
}

/// The list, parsed.
pub(super) struct Banned {
    /// Phrases of prose that may have a banned word as their last word.
    pub(super) allowed: Vec<Term>,
    /// Whole identifiers that may have a banned part.
    pub(super) allowed_identifiers: Vec<Term>,
    /// Words and phrases of prose, in any case.
    pub(super) prose: Vec<Term>,
    /// Whole identifiers.
    pub(super) identifiers: Vec<Term>,
    /// Parts of identifiers in snake case or camel case, in any case.
    pub(super) parts: Vec<Term>,
}

impl Banned {
    pub(super) fn list() -> Self {
        let mut banned = Self {
            allowed: Vec::new(),
            allowed_identifiers: Vec::new(),
            prose: Vec::new(),
            identifiers: Vec::new(),
            parts: Vec::new(),
        };
        for line in LIST.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (terms, replacement) = line.split_once(':').unwrap_or((line, ""));
            let (kind, terms) = terms.split_once(' ').unwrap_or((terms, ""));
            for term in terms.split(',') {
                let term = Term { words: term.split_whitespace().collect(), replacement: replacement.trim() };
                match kind {
                    "allowed" => banned.allowed.push(term),
                    "allowed-identifier" => banned.allowed_identifiers.push(term),
                    "prose" => banned.prose.push(term),
                    "identifier" => banned.identifiers.push(term),
                    "part" => banned.parts.push(term),
                    other => panic!("banned.txt has the kind {other:?}"),
                }
            }
        }
        banned
    }
}
