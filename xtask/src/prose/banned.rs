//! The terms that no prose and no identifier may use.

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
    /// Words and phrases of prose, in any case.
    pub(super) prose: Vec<Term>,
    /// Whole identifiers.
    pub(super) identifiers: Vec<Term>,
    /// Parts of identifiers in snake case or camel case, in any case.
    pub(super) parts: Vec<Term>,
}

impl Banned {
    pub(super) fn list() -> Self {
        let mut banned = Self { prose: Vec::new(), identifiers: Vec::new(), parts: Vec::new() };
        for line in LIST.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (terms, replacement) = line.split_once(':').unwrap_or((line, ""));
            let (kind, terms) = terms.split_once(' ').unwrap_or((terms, ""));
            for term in terms.split(',') {
                let term = Term { words: term.split_whitespace().collect(), replacement: replacement.trim() };
                match kind {
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
