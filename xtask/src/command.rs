//! Running other programs: quietly while they work, with all that they said when they fail.

use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// What `command` printed; an error has its command line and everything it said.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().with_context(|| format!("start {}", line(command)))?;
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    if !status.success() {
        bail!("{} failed ({status})\n{}{}", line(command), stdout, String::from_utf8_lossy(&stderr));
    }
    Ok(stdout)
}

/// Runs `command` with its output where ours goes.
pub(crate) fn show(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("start {}", line(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", line(command));
    }
    Ok(())
}

/// The command line as a user would type it.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

/// `word` as a POSIX shell takes it literally.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./,:@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_a_shell() {
        for word in ["plain", "", "two words", "it's", "$HOME `x` \"y\" \\", "a;b&c|d>e"] {
            let printed = output(Command::new("sh").arg("-c").arg(format!("printf %s {}", quoted(word)))).unwrap();
            assert_eq!(printed, word);
        }
    }

    #[test]
    fn a_failure_says_what_was_run_and_what_it_said() {
        let error = output(Command::new("sh").args(["-c", "echo seen; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("sh -c 'echo seen; exit 3' failed") && error.contains("seen\n"), "{error}");
    }
}
