//! `cargo xtask prose`: checks names and sentences by the rules of CONTRIBUTING.md.
//!
//! - No sentence of the README, SECURITY.md, `docs/` and the crates' READMEs has more than [`MAX_WORDS`] words.
//! - No document, comment, message or identifier uses a term of `prose/banned.txt`.
//! - No sentence of a document or comment starts with a headless relative clause ("What does not fit …").
//! - Every relative link of a document leads to a file and a heading.
//! - Every test that SECURITY.md names exists.

mod banned;
mod finding;
mod links;
mod markdown;
mod rules;
mod rust;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use banned::Banned;
use finding::{Finding, RULES, Rule};

/// The longest sentence that a document may have, in words. A code span counts as one word.
const MAX_WORDS: usize = 25;

/// The examples of the checker's own tests break every rule on purpose.
const EXAMPLES: &str = "xtask/src/prose/tests.rs";

/// The directories with prose. `fuzz/corpus` is data.
const DIRECTORIES: [&str; 9] = ["crates", "testing", "fuzz", "xtask", "docs", "man", "packaging", ".ci", ".github"];

/// The findings of each file, by its path in the workspace.
struct Report(BTreeMap<PathBuf, Vec<Finding>>);

/// Prints the findings in the files below `paths`, or in all. Returns whether there are none.
pub(crate) fn run(workspace: &Path, paths: &[PathBuf]) -> Result<bool> {
    let report = Report::of(workspace, paths)?;
    print!("{report}");
    Ok(report.total() == 0)
}

/// Returns the number of rules, and a line for each rule that has findings.
pub(crate) fn broken_rules(workspace: &Path) -> Result<(usize, Vec<String>)> {
    let report = Report::of(workspace, &[])?;
    let broken = Rule::ALL.into_iter().filter_map(|rule| {
        let count = report.count(rule);
        (count > 0).then(|| format!("{}: {count} findings; run `cargo xtask prose`", rule.name()))
    });
    Ok((RULES, broken.collect()))
}

impl Report {
    fn of(workspace: &Path, paths: &[PathBuf]) -> Result<Self> {
        let banned = Banned::list();
        let mut findings = BTreeMap::new();
        let files = files(workspace)?;
        let functions = functions(workspace, &files)?;
        for path in files {
            if !paths.is_empty() && !paths.iter().any(|root| path.starts_with(root)) {
                continue;
            }
            let text = fs::read_to_string(workspace.join(&path)).with_context(|| format!("read {}", path.display()))?;
            let mut found = check(&path, &text, &banned);
            if path.extension().is_some_and(|extension| extension == "md") {
                found.extend(links::broken(workspace, &path, &text));
                found.extend(links::unknown_tests(&path, &text, &functions));
            }
            findings.insert(path, found);
        }
        if findings.is_empty() {
            bail!("no file with prose is below {paths:?}, relative to {}", workspace.display());
        }
        Ok(Self(findings))
    }

    fn total(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    fn count(&self, rule: Rule) -> usize {
        self.0.values().flatten().filter(|finding| finding.rule == rule).count()
    }
}

/// One line for each finding, then the counts of each crate.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut crates: BTreeMap<String, [usize; RULES]> = BTreeMap::new();
        for (path, findings) in &self.0 {
            for Finding { line, rule, detail, text } in findings {
                writeln!(f, "{}:{line}: {} ({detail}): {text}", path.display(), rule.name())?;
                crates.entry(part_of_workspace(path)).or_default()[*rule as usize] += 1;
            }
        }
        let mut row = |name: &str, cells: [String; RULES]| {
            let cells: String = cells.iter().map(|cell| format!(" {cell:>15}")).collect();
            writeln!(f, "{name:<26}{cells}")
        };
        row("", Rule::ALL.map(|rule| rule.name().to_owned()))?;
        for (part, counts) in crates {
            row(&part, counts.map(|count| count.to_string()))?;
        }
        row("all", Rule::ALL.map(|rule| self.count(rule).to_string()))
    }
}

/// The crate or directory of `path`, for the summary.
fn part_of_workspace(path: &Path) -> String {
    let mut components = path.iter().map(|component| component.to_string_lossy());
    let first = components.next().unwrap_or_default();
    match (&*first, components.next()) {
        ("crates" | "testing", Some(name)) => format!("{first}/{name}"),
        _ => first.into_owned(),
    }
}

/// Whether the length of sentences counts in this file.
fn is_public_document(path: &Path) -> bool {
    let path = path.to_string_lossy();
    let of_crate = path.strip_prefix("crates/").and_then(|path| path.split_once('/'));
    matches!(&*path, "README.md" | "SECURITY.md")
        || (path.starts_with("docs/") && path.ends_with(".md"))
        || of_crate.is_some_and(|(_, file)| file == "README.md")
}

/// Checks one file. The name decides how prose is found in it.
fn check(path: &Path, text: &str, banned: &Banned) -> Vec<Finding> {
    let mut check = rules::Check::new(banned);
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("rs") => {
            let source = rust::Source::scan(text);
            source.comments.iter().for_each(|comment| check.document(&markdown::passages(comment)));
            source.strings.iter().for_each(|string| check.message(&markdown::passages(string)));
            source.identifiers.iter().for_each(|(line, name)| check.identifier(*line, name));
        }
        Some("md") => {
            let lines: Vec<_> = text.lines().enumerate().map(|(index, line)| (index + 1, line.to_owned())).collect();
            check.document(&markdown::passages(&lines));
            if is_public_document(path) {
                check.lengths(&markdown::passages(&lines), MAX_WORDS);
            }
        }
        Some("sections" | "1" | "8") => check.document(&markdown::passages(&manual(text))),
        _ => hash_comments(text).iter().for_each(|comment| check.document(&markdown::passages(comment))),
    }
    check.findings()
}

/// The text lines of a manual page, without its requests and font changes.
fn manual(text: &str) -> Vec<(usize, String)> {
    let plain = |line: &str| {
        let line = if line.starts_with(['.', '\'']) { "" } else { line };
        ["\\fB", "\\fI", "\\fR", "\\fP"].iter().fold(line.to_owned(), |line, font| line.replace(font, ""))
    };
    text.lines().enumerate().map(|(index, line)| (index + 1, plain(line))).collect()
}

/// The comments of a file whose comments start with `#`.
fn hash_comments(text: &str) -> Vec<Vec<(usize, String)>> {
    let mut comments = vec![Vec::new()];
    for (index, line) in text.lines().enumerate() {
        match (line.trim_start().strip_prefix('#'), comments.last_mut()) {
            (Some(comment), Some(last)) => last.push((index + 1, comment.trim_start_matches(['#', '!']).to_owned())),
            _ => comments.push(Vec::new()),
        }
    }
    comments
}

/// Every file with prose, relative to the workspace.
fn files(workspace: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(workspace).with_context(|| format!("list {}", workspace.display()))? {
        let path = PathBuf::from(entry?.file_name());
        if workspace.join(&path).is_file() {
            files.push(path);
        }
    }
    let mut directories: Vec<PathBuf> = DIRECTORIES.iter().map(PathBuf::from).collect();
    while let Some(directory) = directories.pop() {
        let full = workspace.join(&directory);
        if !full.is_dir() || directory == Path::new("fuzz/corpus") {
            continue;
        }
        for entry in fs::read_dir(&full).with_context(|| format!("list {}", full.display()))? {
            let entry = entry?;
            let path = directory.join(entry.file_name());
            if entry.file_type()?.is_dir() { directories.push(path) } else { files.push(path) }
        }
    }
    files.retain(|path| has_prose(workspace, path));
    files.sort_unstable();
    Ok(files)
}

/// The names of all functions in the Rust files among `files`.
fn functions(workspace: &Path, files: &[PathBuf]) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for path in files.iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs")) {
        let source = fs::read_to_string(workspace.join(path)).with_context(|| format!("read {}", path.display()))?;
        names.extend(links::functions(&source));
    }
    Ok(names)
}

fn has_prose(workspace: &Path, path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    match extension {
        "rs" => path != Path::new(EXAMPLES),
        "md" | "sections" | "toml" | "yml" | "service" | "socket" | "conf" | "sh" | "py" => true,
        // A page with sections is generated from them.
        "1" | "8" => !workspace.join(path).with_extension("sections").exists(),
        _ => path.starts_with(".ci"),
    }
}
