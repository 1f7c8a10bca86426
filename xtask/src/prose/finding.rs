//! Rules, and the places that break them.

/// The number of rules.
pub(super) const RULES: usize = Rule::ALL.len();

/// A rule of CONTRIBUTING.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rule {
    LongSentence,
    BannedTerm,
    HeadlessClause,
    BrokenLink,
    UnknownTest,
}

impl Rule {
    /// Every rule.
    pub(super) const ALL: [Self; 5] =
        [Self::LongSentence, Self::BannedTerm, Self::HeadlessClause, Self::BrokenLink, Self::UnknownTest];

    /// The name in reports.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::LongSentence => "long-sentence",
            Self::BannedTerm => "banned-term",
            Self::HeadlessClause => "headless-clause",
            Self::BrokenLink => "broken-link",
            Self::UnknownTest => "unknown-test",
        }
    }
}

/// One place that breaks a rule.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// Counted from 1.
    pub(super) line: usize,
    pub(super) rule: Rule,
    /// The number of words, or the term and its replacement.
    pub(super) detail: String,
    /// The sentence, or the identifier.
    pub(super) text: String,
}
