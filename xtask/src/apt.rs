//! [`Apt`]: apt with one release of Debian as its only source. This machine's sources and packages stay unchanged.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

/// apt, with all its files in one directory.
pub(crate) struct Apt(Vec<String>);

impl Apt {
    /// apt for packages of this release. It regards no package as installed.
    pub(crate) fn new(directory: PathBuf, release: &str) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(directory.join(part))?;
        }
        let sources = directory.join("sources.list");
        let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
        fs::write(&sources, format!("deb [signed-by={keyring}] http://deb.debian.org/debian {release} main\n"))?;
        let settings = [
            ("Dir::Etc::SourceList", sources),
            ("Dir::Etc::SourceParts", "/dev/null".into()),
            ("Dir::State::Lists", directory.join("lists")),
            ("Dir::State::Status", "/dev/null".into()),
            ("Dir::Cache", directory.join("cache")),
            // The packages of an outdated mirror are good enough. apt still checks their signature.
            ("Acquire::Check-Valid-Until", "false".into()),
            // As root, apt would download as the user _apt, who may not be able to write here.
            ("APT::Sandbox::User", "root".into()),
        ];
        let options = settings.map(|(name, value)| ["-o".to_owned(), format!("{name}={}", value.display())]);
        Ok(Self(options.concat()))
    }

    pub(crate) fn program(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command.args(&self.0);
        command
    }
}
