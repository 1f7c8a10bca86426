//! TOML files of settings. `scsi-pr serve` and `scsi-pr disk` have one format: the same form of keys, values and errors.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;

/// Reads the file at `path` as TOML, and gives its text too.
///
/// # Errors
///
/// The file cannot be read, or those of [`parse`].
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<(T, String)> {
    let text = std::fs::read_to_string(path).with_context(|| cannot_read(path))?;
    Ok((parse(path, &text)?, text))
}

/// Reads the text of a TOML file. The error names line and column, and shows nothing of the file: it may have secrets.
///
/// # Errors
///
/// The text is no TOML, or has other keys or values.
pub(crate) fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T> {
    toml::from_str(text).map_err(|error| {
        let position = Position::of(text, error.span().map_or(0, |span| span.start));
        anyhow::anyhow!("{}:{position}: {}", path.display(), error.message())
    })
}

/// The text of an error about a file.
pub(crate) fn cannot_read(path: &Path) -> String {
    format!("cannot read {}", path.display())
}

/// A place in a text. It displays as `LINE:COLUMN`, as compilers write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    line: usize,
    /// In characters.
    column: usize,
}

impl Position {
    /// The place of the byte at `offset`.
    pub(crate) fn of(text: &str, offset: usize) -> Self {
        let before = &text[..text.floor_char_boundary(offset)];
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self { line: before.matches('\n').count() + 1, column: before[start..].chars().count() + 1 }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_counts_lines_and_characters_from_one() {
        let text = "a = 1\nü = \"ä\" x\n";
        for (part, position) in [("a", "1:1"), ("1", "1:5"), ("ü", "2:1"), ("x", "2:9")] {
            assert_eq!(Position::of(text, text.find(part).unwrap()).to_string(), position, "{part}");
        }
        assert_eq!(Position::of(text, text.len()).to_string(), "3:1");
        assert_eq!(Position::of(text, 1_000).to_string(), "3:1");
        assert_eq!(Position::of("", 0).to_string(), "1:1");
    }
}
