//! Runs other programs. Their output is shown only when they fail.

use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// The standard output of `command`. An error has the command line, the exit status and all output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().with_context(|| format!("start {}", line(command)))?;
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    if !status.success() {
        bail!("{} failed ({status})\n{}{}", line(command), stdout, String::from_utf8_lossy(&stderr));
    }
    Ok(stdout)
}

/// Runs `command` with the output of this program as its own.
pub(crate) fn show(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("start {}", line(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", line(command));
    }
    Ok(())
}

/// The command line as a user would type it.
pub(crate) fn line(command: &Command) -> String {
    let arguments = std::iter::once(command.get_program()).chain(command.get_args());
    arguments.map(|argument| quoted(&argument.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

/// Quotes `argument` for a POSIX shell.
pub(crate) fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./,:@%".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        argument.to_owned()
    } else {
        format!("'{}'", argument.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_argument_passes_a_shell_unchanged() {
        for argument in ["plain", "", "two words", "it's", "$HOME `x` \"y\" \\", "a;b&c|d>e"] {
            let printed = output(Command::new("sh").arg("-c").arg(format!("printf %s {}", quoted(argument)))).unwrap();
            assert_eq!(printed, argument);
        }
    }

    #[test]
    fn error_has_command_line_and_output() {
        let error = output(Command::new("sh").args(["-c", "echo seen; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("sh -c 'echo seen; exit 3' failed") && error.contains("seen\n"), "{error}");
    }
}
