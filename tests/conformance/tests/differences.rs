//! `docs/differences.md` has the differences that the suite knows, and no others.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// What stands between `before` and `after`, wherever it does.
fn between<'a>(text: &'a str, before: &'a str, after: char) -> impl Iterator<Item = &'a str> {
    text.split(before).skip(1).filter_map(move |rest| rest.split(after).next())
}

#[test]
fn the_document_and_the_suite_name_the_same() {
    let suite = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = fs::read_to_string(suite.join("../../docs/differences.md")).unwrap();
    let documented: Vec<&str> = document.lines().filter_map(|line| between(line, "| `", '`').next()).collect();
    let mut named = BTreeSet::new();
    for file in fs::read_dir(suite.join("tests")).unwrap() {
        let source = fs::read_to_string(file.unwrap().path()).unwrap();
        // However it was broken into lines.
        let source: String = source.split_whitespace().collect();
        named.extend(between(&source, ".differs(\"", '"').map(str::to_owned));
    }
    let names: BTreeSet<String> = documented.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(names.len(), documented.len(), "a name is documented twice");
    assert_eq!(names, named, "left: documented, right: named in tests");
}
