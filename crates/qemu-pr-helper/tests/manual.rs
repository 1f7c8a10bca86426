//! `man/qemu-pr-helper.8` has the options of `--help`, and their defaults.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// `-k`, `--socket` …: the options that begin the lines of `text` for which `is_option_line` holds.
fn options(text: &str, is_option_line: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let words = text.lines().filter(|line| is_option_line(line)).flat_map(|line| {
        line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).map(str::to_owned).collect::<Vec<_>>()
    });
    words.filter(|word| word.starts_with('-') && word.len() > 1).collect()
}

/// Numbers and paths that the text of an option calls its default.
fn defaults(text: &str) -> Vec<String> {
    let after = text.split("default ").skip(1).filter_map(|rest| rest.split(')').next());
    after.map(|value| value.trim_matches('\'').to_owned()).filter(|value| value != "auto").collect()
}

fn manual() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../man/qemu-pr-helper.8");
    fs::read_to_string(path).unwrap().replace("\\-", "-")
}

fn help() -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_qemu-pr-helper")).arg("--help").output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn manual_and_help_have_the_same_options() {
    let manual = manual();
    let (_, section) = manual.split_once(".SH OPTIONS\n").unwrap();
    let (section, _) = section.split_once("\n.SH ").unwrap();
    let in_manual = options(section, |line| line.starts_with(".BR -"));
    let in_help = options(&help(), |line| line.trim_start().starts_with('-'));
    assert!(in_help.len() > 20, "{in_help:?}");
    assert_eq!(in_manual, in_help, "left: the manual, right: --help");
}

#[test]
fn manual_has_the_defaults_of_help() {
    let (manual, help) = (manual(), help());
    let defaults = defaults(&help);
    assert!(defaults.len() >= 4, "{defaults:?}");
    for value in defaults {
        let value = value.trim_start_matches("by default ").trim_matches('\'');
        assert!(manual.contains(value), "the manual lacks the default {value:?}");
    }
}

#[test]
fn manual_is_of_this_version() {
    assert!(manual().contains(concat!("\"scsi-pr ", env!("CARGO_PKG_VERSION"), "\"")));
}
