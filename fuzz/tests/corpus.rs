//! Every target over its corpus.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use fuzz::TARGETS;

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

#[test]
fn every_corpus_has_a_target_and_every_target_a_corpus() {
    let directories: BTreeSet<_> = entries(&corpus()).iter().map(|path| path.file_name().unwrap().to_owned()).collect();
    assert_eq!(directories, TARGETS.iter().map(|(name, _)| (*name).into()).collect());
}

#[test]
fn targets_do_not_panic_over_their_corpora() {
    for (name, target) in TARGETS {
        let paths = entries(&corpus().join(name));
        assert!(paths.len() > 3, "the corpus of {name} has only {paths:?}");
        for path in paths {
            let bytes = fs::read(&path).unwrap();
            let outcome = std::panic::catch_unwind(|| {
                // Parsers often fail on truncated input.
                (0..=bytes.len().min(512)).for_each(|length| target(&bytes[..length]));
                target(&bytes);
            });
            assert!(outcome.is_ok(), "{name} panicked over {}", path.display());
        }
    }
}
