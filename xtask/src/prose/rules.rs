//! The rules, on words and identifiers.

use super::banned::{Banned, Term};
use super::finding::{Finding, Rule};
use super::markdown::{Passage, Word};

/// Words that start a headless relative clause.
const HEADLESS: [&str; 8] = ["what", "who", "whom", "whose", "whoever", "whatever", "whomever", "whichever"];

/// Abbreviations whose full stop ends no sentence.
const ABBREVIATIONS: [&str; 6] = ["e.g.", "i.e.", "cf.", "vs.", "approx.", "incl."];

/// The check of one file.
pub(super) struct Check<'a> {
    banned: &'a Banned,
    findings: Vec<Finding>,
}

impl<'a> Check<'a> {
    pub(super) fn new(banned: &'a Banned) -> Self {
        Self { banned, findings: Vec::new() }
    }

    /// The findings by line.
    pub(super) fn findings(mut self) -> Vec<Finding> {
        self.findings.sort_by_key(|finding| (finding.line, finding.rule));
        self.findings.dedup();
        self.findings
    }

    /// Checks prose of documents and comments.
    pub(super) fn document(&mut self, passages: &[Passage]) {
        self.message(passages);
        for passage in passages.iter().filter(|passage| !passage.is_heading) {
            sentences(&passage.words).into_iter().for_each(|sentence| self.headless(sentence));
        }
    }

    /// Checks the terms of prose. Code in it is checked as code.
    pub(super) fn message(&mut self, passages: &[Passage]) {
        for sentence in passages.iter().flat_map(|passage| sentences(&passage.words)) {
            self.terms(sentence);
            for word in sentence {
                code_spans(&word.text).for_each(|code| {
                    identifiers(code).for_each(|name| self.identifier(word.line, name));
                });
            }
        }
    }

    /// Checks the length of sentences.
    pub(super) fn lengths(&mut self, passages: &[Passage], max: usize) {
        for passage in passages.iter().filter(|passage| !passage.is_heading) {
            for sentence in sentences(&passage.words) {
                let count = sentence.iter().filter(|word| word.text.chars().any(char::is_alphanumeric)).count();
                if count > max {
                    self.push(sentence[0].line, Rule::LongSentence, format!("{count} words"), joined(sentence));
                }
            }
        }
    }

    /// Checks an identifier and its parts.
    pub(super) fn identifier(&mut self, line: usize, name: &str) {
        let banned = self.banned;
        if banned.allowed_identifiers.iter().any(|term| term.words == [name]) {
            return;
        }
        let whole = banned.identifiers.iter().find(|term| term.words == [name]);
        let parts = parts(name);
        let part = || banned.parts.iter().find(|term| parts.iter().any(|part| term.words == [part.as_str()]));
        if let Some(term) = whole.or_else(part) {
            self.push(line, Rule::BannedTerm, replacement(term), name.to_owned());
        }
    }

    fn terms(&mut self, sentence: &[Word]) {
        let banned = self.banned;
        let words: Vec<(String, usize)> = sentence.iter().flat_map(plain_words).collect();
        let is_allowed = |end: usize| banned.allowed.iter().any(|term| ends_with(&words[..end], term));
        for term in &banned.prose {
            for end in term.words.len()..=words.len() {
                if ends_with(&words[..end], term) && !is_allowed(end) {
                    let line = words[end - term.words.len()].1;
                    self.push(line, Rule::BannedTerm, replacement(term), joined(sentence));
                }
            }
        }
    }

    fn headless(&mut self, sentence: &[Word]) {
        let [first, .., last] = sentence else { return };
        let Some((start, _)) = plain_words(first).into_iter().next() else { return };
        let is_question = last.text.trim_end_matches(CLOSERS).ends_with('?');
        if HEADLESS.contains(&&*start) && !is_question {
            let detail = format!("starts with \"{}\"", first.text.trim_matches(|c: char| !c.is_alphanumeric()));
            self.push(first.line, Rule::HeadlessClause, detail, joined(sentence));
        }
    }

    fn push(&mut self, line: usize, rule: Rule, detail: String, text: String) {
        self.findings.push(Finding { line, rule, detail, text });
    }
}

fn ends_with(words: &[(String, usize)], term: &Term) -> bool {
    words.len() >= term.words.len()
        && words.iter().rev().zip(term.words.iter().rev()).all(|((word, _), banned)| word == banned)
}

fn replacement(Term { words, replacement }: &Term) -> String {
    format!("\"{}\"; use: {replacement}", words.join(" "))
}

/// Characters that may follow the mark at the end of a sentence.
const CLOSERS: [char; 6] = [')', '"', '\'', '”', '’', '_'];

/// Splits words at the end of sentences.
fn sentences(words: &[Word]) -> Vec<&[Word]> {
    let mut sentences = Vec::new();
    let mut start = 0;
    for (index, word) in words.iter().enumerate() {
        let next = words.get(index + 1).and_then(|next| next.text.chars().find(|c| c.is_alphabetic()));
        if ends_sentence(&word.text, next) || index + 1 == words.len() {
            sentences.push(&words[start..=index]);
            start = index + 1;
        }
    }
    sentences
}

fn ends_sentence(word: &str, next: Option<char>) -> bool {
    let word = word.trim_end_matches(CLOSERS);
    let abbreviation = word.trim_start_matches(['(', '"']);
    match abbreviation {
        "etc." | "…" | "..." => next.is_some_and(char::is_uppercase),
        _ => word.ends_with(['.', '!', '?']) && !ABBREVIATIONS.contains(&abbreviation),
    }
}

/// The words in `word` outside code, in lower case and without punctuation; a possessive counts as its noun.
fn plain_words(word: &Word) -> Vec<(String, usize)> {
    if word.text.contains('`') || word.text.contains("://") {
        return Vec::new();
    }
    let lower = word.text.to_lowercase().replace('’', "'");
    let separated = |c: char| !c.is_alphanumeric() && c != '_' && c != '\'';
    let words = lower.split(separated).map(|part| part.trim_matches('\'').trim_end_matches("'s"));
    words.filter(|part| !part.is_empty()).map(|part| (part.to_owned(), word.line)).collect()
}

/// The contents of code spans that may be names of Rust.
fn code_spans(word: &str) -> impl Iterator<Item = &str> {
    word.split('`').skip(1).step_by(2).filter(|code| !code.contains('-') && !code.contains(' '))
}

fn identifiers(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|name| !name.is_empty())
}

/// The parts of `UnitSerial`, `unit_serial` and `UNIT_SERIAL` are `unit` and `serial`.
fn parts(identifier: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut last_lower = false;
    for c in identifier.chars() {
        if c == '_' || (c.is_uppercase() && last_lower) {
            parts.push(String::new());
        }
        last_lower = c.is_lowercase();
        if let Some(part) = parts.last_mut().filter(|_| c != '_') {
            part.extend(c.to_lowercase());
        }
    }
    parts
}

fn joined(sentence: &[Word]) -> String {
    sentence.iter().map(|word| word.text.as_str()).collect::<Vec<_>>().join(" ")
}
