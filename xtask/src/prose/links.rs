//! Relative links of documents, and the tests that they name.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::finding::{Finding, Rule};

/// The document whose promises name tests.
const PROMISES: &str = "SECURITY.md";

/// The relative links of the Markdown file at `path` that lead nowhere: no such file, or no such heading in it.
pub(super) fn broken(workspace: &Path, path: &Path, text: &str) -> Vec<Finding> {
    let directory = workspace.join(path).parent().map(Path::to_owned).unwrap_or_default();
    let finding = |line, detail: &str, target: &str| Finding {
        line,
        rule: Rule::BrokenLink,
        detail: detail.to_owned(),
        text: target.to_owned(),
    };
    let leads_nowhere = |(line, target): (usize, String)| {
        let (file, anchor) = target.split_once('#').map_or((&*target, None), |(file, anchor)| (file, Some(anchor)));
        let destination = if file.is_empty() { workspace.join(path) } else { directory.join(file) };
        if !destination.exists() {
            return Some(finding(line, "no such file", &target));
        }
        let anchor = anchor?;
        let anchors = anchors(&fs::read_to_string(destination).unwrap_or_default());
        (!anchors.contains(anchor)).then(|| finding(line, "no such heading", &target))
    };
    relative_links(text).into_iter().filter_map(leads_nowhere).collect()
}

/// The tests that SECURITY.md names and `functions` does not have.
pub(super) fn unknown_tests(path: &Path, text: &str, functions: &BTreeSet<String>) -> Vec<Finding> {
    if path != Path::new(PROMISES) {
        return Vec::new();
    }
    let lines = text.lines().enumerate().filter(|(_, line)| line.starts_with('|'));
    let names = lines.flat_map(|(index, line)| line.split('`').skip(1).step_by(2).map(move |name| (index + 1, name)));
    let unknown = names.filter(|(_, name)| is_test_name(name) && !functions.contains(*name));
    let finding = |(line, name): (usize, &str)| Finding {
        line,
        rule: Rule::UnknownTest,
        detail: "no such function".to_owned(),
        text: name.to_owned(),
    };
    unknown.map(finding).collect()
}

/// The names of the functions in a Rust source.
pub(super) fn functions(source: &str) -> impl Iterator<Item = String> {
    source.split("fn ").skip(1).filter_map(|rest| rest.split(['(', '<']).next()).map(str::to_owned)
}

/// Names of tests have at least four words. Names of kernel interfaces have fewer, or capitals.
fn is_test_name(span: &str) -> bool {
    span.matches('_').count() >= 3 && span.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// The targets of links without a scheme, with their line, outside code.
fn relative_links(text: &str) -> Vec<(usize, String)> {
    let mut in_code_block = false;
    let mut links = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let is_fence = line.trim_start().starts_with("```");
        in_code_block ^= is_fence;
        if in_code_block || is_fence {
            continue;
        }
        let without_code: String = line.split('`').step_by(2).collect();
        let targets = without_code.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
        links.extend(targets.filter(|target| !target.contains(':')).map(|target| (index + 1, target.to_owned())));
    }
    links
}

/// The anchors that GitHub gives to headings, and those of `id="…"`.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let slugs = headings.map(|line| {
        let heading = line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
    });
    let ids = text.split("id=\"").skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned);
    slugs.chain(ids).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text and detail of what is broken in a document in a directory `docs`, which has a neighbour `b.md`.
    fn in_docs(text: &str) -> Vec<(usize, String)> {
        let workspace = tempfile::tempdir().unwrap();
        fs::create_dir(workspace.path().join("docs")).unwrap();
        fs::write(workspace.path().join("docs/b.md"), "# The *title*, once more\n\n<a id=\"here\"></a>\n").unwrap();
        let findings = broken(workspace.path(), Path::new("docs/a.md"), text);
        findings.into_iter().map(|finding| (finding.line, finding.text)).collect()
    }

    #[test]
    fn link_to_missing_file_or_heading_is_found() {
        assert_eq!(in_docs("[a](c.md)"), [(1, "c.md".to_owned())]);
        assert_eq!(in_docs("\n[`a` b](b.md#title)"), [(2, "b.md#title".to_owned())]);
        assert_eq!(in_docs("[a](../b.md \"title\"), [b](b.md)"), [(1, "../b.md".to_owned())]);
    }

    #[test]
    fn link_that_leads_somewhere_is_allowed() {
        let text = "[a](b.md) [b](../docs/b.md#the-title-once-more) [c](b.md#here) [d](https://example.org/x.md)";
        assert_eq!(in_docs(text), []);
    }

    #[test]
    fn link_in_code_is_not_a_link() {
        assert_eq!(in_docs("`[a](c.md)`\n\n```\n[a](c.md)\n```\n"), []);
    }

    #[test]
    fn test_without_function_is_found_in_promises_only() {
        let functions = functions("fn this_is_a_test() {}").collect();
        let text = "| promise | `this_is_a_test`, `this_was_a_test`, `no_new_privs` |\n";
        let findings = unknown_tests(Path::new("SECURITY.md"), text, &functions);
        assert_eq!(findings.iter().map(|finding| &*finding.text).collect::<Vec<_>>(), ["this_was_a_test"]);
        assert!(unknown_tests(Path::new("README.md"), text, &functions).is_empty());
    }
}
