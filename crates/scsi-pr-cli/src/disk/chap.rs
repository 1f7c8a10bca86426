//! The CHAP file: the accounts of initiators.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use scsi_pr_iscsi::chap::Secret;
use scsi_pr_iscsi::directory::Account;
use serde::Deserialize;
use toml::Spanned;

use super::names::InitiatorIqn;
use crate::toml_file::{Position, cannot_read, parse};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChapFile {
    account: Vec<Spanned<Entry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Entry {
    name: String,
    secret: SecretText,
    initiators: Vec<InitiatorIqn>,
    mutual_name: Option<String>,
    mutual_secret: Option<SecretText>,
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct SecretText(Secret);

impl TryFrom<String> for SecretText {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Secret::new(text).map(Self).map_err(|short| short.to_string())
    }
}

/// Reads the accounts.
///
/// # Errors
///
/// The file cannot be read, others than its owner may read it, or an account is malformed. The text has no secret.
pub(crate) fn read(path: &Path) -> Result<Vec<Account>> {
    let mut file = File::open(path).with_context(|| cannot_read(path))?;
    let mode = file.metadata().with_context(|| cannot_read(path))?.mode();
    ensure!(
        mode & 0o077 == 0,
        "{} has secrets, and its group or others may use it (mode {:o}): make it private with chmod 600",
        path.display(),
        mode & 0o777
    );
    let mut text = String::new();
    file.read_to_string(&mut text).with_context(|| cannot_read(path))?;
    accounts(path, &text)
}

fn accounts(path: &Path, text: &str) -> Result<Vec<Account>> {
    let ChapFile { account: entries } = parse(path, text)?;
    ensure!(!entries.is_empty(), "{} has no [[account]]", path.display());
    let mut accounts: Vec<Account> = Vec::new();
    for spanned in entries {
        let position = Position::of(text, spanned.span().start);
        let account = account(spanned.into_inner(), &accounts);
        accounts.push(account.with_context(|| format!("{}:{position}", path.display()))?);
    }
    Ok(accounts)
}

fn account(entry: Entry, others: &[Account]) -> Result<Account> {
    let Entry { name, secret: SecretText(secret), initiators, mutual_name, mutual_secret } = entry;
    ensure!(!name.is_empty() && others.iter().all(|other| other.name != name), "each account has a name of its own");
    ensure!(!initiators.is_empty(), "the account {name} has no initiators that may use it");
    let mutual = match (mutual_name, mutual_secret) {
        (Some(mutual_name), Some(SecretText(mutual))) => {
            // Else a peer could have the target answer the target's own challenge (RFC 7143 9.2.1).
            ensure!(mutual != secret, "the account {name} has one secret for both directions: they must differ");
            Some((mutual_name, mutual))
        }
        (None, None) => None,
        _ => anyhow::bail!("the account {name} needs mutual-name and mutual-secret, or neither"),
    };
    let initiators = initiators.iter().map(ToString::to_string).collect();
    Ok(Account { name, secret, initiators, mutual })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    const FILE: &str = r#"
[[account]]
name = "vm1"
secret = "secret of vm one"
initiators = ["iqn.2001-04.com.example:VM1"]
mutual-name = "target"
mutual-secret = "secret of target"

[[account]]
name = "vm2"
secret = "secret of vm two"
initiators = ["iqn.2001-04.com.example:vm2"]
"#;

    fn error(text: &str) -> String {
        format!("{:#}", accounts(Path::new("f"), text).unwrap_err())
    }

    #[test]
    fn accounts_are_bound_to_their_initiators() {
        let accounts = accounts(Path::new("f"), FILE).unwrap();
        assert!(accounts[0].may_use("iqn.2001-04.com.example:vm1") && accounts[0].mutual.is_some());
        assert!(!accounts[1].may_use("iqn.2001-04.com.example:vm1") && accounts[1].mutual.is_none());
    }

    #[test]
    fn malformed_accounts_are_refused_without_a_word_of_their_secrets() {
        for (from, to, expected) in [
            ("secret of vm two", "short", "f:11:10: a CHAP secret has at least 12 bytes"),
            ("secret of target", "secret of vm one", "f:2:1: the account vm1 has one secret for both directions"),
            ("mutual-name = \"target\"\n", "", "f:2:1: the account vm1 needs mutual-name and mutual-secret"),
            ("[\"iqn.2001-04.com.example:vm2\"]", "[]", "f:9:1: the account vm2 has no initiators"),
            ("\"vm2\"", "\"vm1\"", "f:9:1: each account has a name of its own"),
            ("\"secret of vm two\"", "\"secret of vm two", "f:11:"),
        ] {
            let error = error(&FILE.replacen(from, to, 1));
            assert!(error.starts_with(expected) && !error.contains("secret of vm"), "{error}, not {expected}");
        }
        assert_eq!(error("account = []"), "f has no [[account]]");
    }

    #[test]
    fn a_file_that_others_may_use_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("chap");
        fs::write(&path, FILE).unwrap();
        for mode in [0o640, 0o604, 0o620] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert!(format!("{:#}", read(&path).unwrap_err()).contains("chmod 600"), "{mode:o}");
        }
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read(&path).unwrap().len(), 2);
    }
}
