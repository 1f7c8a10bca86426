//! Examples of each rule.

use std::path::Path;

use super::banned::Banned;
use super::finding::Rule;
use super::{check, is_public_document, part_of_workspace};

fn findings(path: &str, text: &str) -> Vec<(usize, Rule)> {
    check(Path::new(path), text, &Banned::list()).iter().map(|finding| (finding.line, finding.rule)).collect()
}

fn in_comment(text: &str) -> Vec<(usize, Rule)> {
    findings("a.rs", text)
}

/// Sentences of `counts` words each, one after the other.
fn sentences(counts: &[usize]) -> String {
    counts.iter().map(|count| format!("Word{}. ", " word".repeat(count - 1))).collect()
}

#[test]
fn sentence_of_26_words_in_document_is_found() {
    let text = format!("# Title\n\n{}\n\n{}\n", sentences(&[25, 25]), sentences(&[26]));
    assert_eq!(findings("README.md", &text), [(5, Rule::LongSentence)]);
}

#[test]
fn length_counts_in_public_documents_only() {
    let text = sentences(&[26]);
    for path in ["README.md", "SECURITY.md", "docs/guide/libvirt.md", "crates/scsi-pr/README.md"] {
        assert!(is_public_document(Path::new(path)) && findings(path, &text).len() == 1, "{path}");
    }
    for path in ["CHANGELOG.md", "testing/lab/README.md", "crates/scsi-pr/src/README.md"] {
        assert!(!is_public_document(Path::new(path)) && findings(path, &text).is_empty(), "{path}");
    }
}

#[test]
fn code_spans_and_addresses_count_as_one_word() {
    let link = "[the text](docs/a%20page.md \"a long title of a link\")";
    let text = format!("`a b c d e f` {link} https://example.org/a/b — {}", sentences(&[21]));
    assert_eq!(findings("README.md", &text), []);
    let text = format!("`a b c d e f` {link} https://example.org/a/b — {}", sentences(&[22]));
    assert_eq!(findings("README.md", &text), [(1, Rule::LongSentence)]);
}

#[test]
fn code_blocks_and_headings_have_no_length() {
    let long = sentences(&[30]);
    let text = format!("# {long}\n\n```\n{long}\n```\n\n| {long} | b |\n| --- | --- |\n| a | b |\n\n[a]: {long}\n");
    assert_eq!(findings("README.md", &text), []);
}

#[test]
fn cells_and_list_items_are_sentences_of_their_own() {
    let half = sentences(&[20]).replace('.', "");
    assert_eq!(findings("README.md", &format!("{half}:\n- {half}\n- {half}\n\n| {half} | {half} |\n")), []);
    assert_eq!(findings("README.md", &format!("| a | {} |\n", sentences(&[26]))), [(1, Rule::LongSentence)]);
}

#[test]
fn full_stop_of_abbreviation_ends_no_sentence() {
    let text = "Some devices, e.g. What the Kernel Calls One, i.e. Who knows, have files (etc. and so on).";
    assert_eq!(findings("README.md", text), []);
}

#[test]
fn headless_clause_is_found_in_documents_and_comments() {
    assert_eq!(findings("docs/a.md", "It stays.\nWhat does not fit is refused.\n"), [(2, Rule::HeadlessClause)]);
    assert_eq!(findings("docs/a.md", "- **Who asks** is served.\n"), [(1, Rule::HeadlessClause)]);
    assert_eq!(in_comment("/// A type.\n///\n/// Whose it is stays open.\n"), [(3, Rule::HeadlessClause)]);
    assert_eq!(in_comment("let a = 1; // what a user sees\n"), [(1, Rule::HeadlessClause)]);
    assert_eq!(findings("deny.toml", "# Whatever comes in.\n"), [(1, Rule::HeadlessClause)]);
}

#[test]
fn question_is_no_headless_clause() {
    assert_eq!(findings("docs/a.md", "What happens after a crash? Nothing does.\n"), []);
    assert_eq!(in_comment("// Who holds it?\n"), []);
}

#[test]
fn headless_clause_in_code_is_not_prose() {
    assert_eq!(in_comment("fn what() -> &'static str { \"What is here\" }\n"), []);
    assert_eq!(in_comment("/// An example.\n///\n/// ```\n/// // What is here.\n/// ```\n"), []);
}

#[test]
fn banned_term_is_found_in_prose_and_messages() {
    assert_eq!(findings("CHANGELOG.md", "## The house\n\nNobody's.\n"), [(1, Rule::BannedTerm), (3, Rule::BannedTerm)]);
    assert_eq!(findings("docs/a.md", "The client is\ntold once.\n"), [(1, Rule::BannedTerm)]);
    assert_eq!(in_comment("// One chore.\n"), [(1, Rule::BannedTerm)]);
    assert_eq!(in_comment("fn a() {\n    warn!(\"the keeper {} ended\", 1);\n}\n"), [(2, Rule::BannedTerm)]);
    assert_eq!(in_comment("const A: &str = r#\"a\na house \"for\" two\"#;\n"), [(2, Rule::BannedTerm)]);
    assert_eq!(findings("man/a.8", ".SH STORY\nThe \\fIstory\\fR of it.\n"), [(2, Rule::BannedTerm)]);
}

#[test]
fn banned_identifier_is_found_in_code_and_code_spans() {
    for code in ["struct Books;", "see_off();", "const PATIENCE: u8 = 1;", "fn nobody_reads() {}", "let x: MapIn<'_>;"]
    {
        assert_eq!(in_comment(code), [(1, Rule::BannedTerm)], "{code}");
    }
    assert_eq!(findings("docs/a.md", "A `Books` of it.\n"), [(1, Rule::BannedTerm)]);
}

#[test]
fn words_that_contain_a_banned_term_are_allowed() {
    let code = "// A warehouse, a storyteller, unit attention and SO_LINGER.\nfn storytelling() { c.sorted(); \"house\"; '\"' }\n";
    assert_eq!(in_comment(code), []);
    assert_eq!(findings("docs/a.md", "The scenario `paths-told` and `SO_LINGER`, https://example.org/house/\n"), []);
}

#[test]
fn unix_user_nobody_is_allowed() {
    assert_eq!(in_comment("// The helper with -u nobody.\nconst NOBODY: u32 = 65534; f(\"the user nobody\");\n"), []);
    assert_eq!(in_comment("// The group nobody.\n"), [(1, Rule::BannedTerm)]);
}

#[test]
fn literals_and_lifetimes_do_not_confuse_the_scanner() {
    let code = "fn f<'a>(x: &'a str) { m('\\'', '\"', b'\\\\', '\\u{1F600}', \"\\\"// no\"); } // nobody\n";
    assert_eq!(in_comment(code), [(1, Rule::BannedTerm)]);
    assert_eq!(in_comment("/* a /* nested */ one */ let r#type = br\"// no\"; // nobody\n"), [(1, Rule::BannedTerm)]);
}

#[test]
fn summary_is_by_crate() {
    for (path, part) in
        [("crates/scsi-pr/src/lib.rs", "crates/scsi-pr"), ("xtask/src/a.rs", "xtask"), ("README.md", "README.md")]
    {
        assert_eq!(part_of_workspace(Path::new(path)), part);
    }
}
