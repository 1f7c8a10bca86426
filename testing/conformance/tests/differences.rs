//! `docs/reference/differences.md` has the differences that the suite and the lab know, and no others. Those of the lab
//! are the differences from a helper of QEMU that was built with libmpathpersist.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Every text between `before` and the next `after`.
fn between<'a>(text: &'a str, before: &'a str, after: char) -> impl Iterator<Item = &'a str> {
    text.split(before).skip(1).filter_map(move |rest| rest.split(after).next())
}

#[test]
fn document_and_tests_name_the_same_differences() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let document = fs::read_to_string(repository.join("docs/reference/differences.md")).unwrap();
    let documented: Vec<&str> = document.lines().filter_map(|line| between(line, "| `", '`').next()).collect();
    let mut named = BTreeSet::new();
    for directory in ["testing/conformance/tests", "testing/lab/src", "testing/lab/src/scenarios"] {
        for file in fs::read_dir(repository.join(directory)).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let source = fs::read_to_string(path).unwrap();
            // However it was broken into lines.
            let source: String = source.split_whitespace().collect();
            named.extend(between(&source, ".differs(\"", '"').map(str::to_owned));
        }
    }
    let names: BTreeSet<String> = documented.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(names.len(), documented.len(), "a name is documented twice");
    assert_eq!(names, named, "left: documented, right: named in tests");
}
