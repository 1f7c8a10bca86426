//! [`Package`]: Debian packages, installed by dpkg.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::system::{make, run};

/// A program of another package, which an installation that is to fail would overwrite.
const OF_ANOTHER_PACKAGE: &str = "usr/bin/sg_persist";

/// A package, of which there may be several revisions.
pub(crate) struct Package<'a> {
    directory: &'a Path,
    name: &'a str,
    /// The name of its program.
    program: &'a str,
}

impl<'a> Package<'a> {
    /// The package `name` in `directory`, which has this program.
    pub(crate) fn new(directory: &'a Path, name: &'a str, program: &'a str) -> Self {
        Self { directory, name, program }
    }

    /// Installs the revision, or upgrades to it. Returns the messages on standard error.
    pub(crate) fn install(&self, revision: &str) -> Result<String> {
        dpkg(&["--force-confdef", "--force-confold", "--install", utf8(&self.file(revision)?)?])
    }

    /// Tries to install a package of this name that has a file of another package. Returns whether dpkg refused it.
    pub(crate) fn install_conflicting(&self, revision: &str) -> Result<Result<(), String>> {
        let (tree, file) = ("/run/conflicting", "/run/conflicting.deb");
        make(format!("{tree}/usr/bin"))?;
        run("dpkg-deb", &["--control", utf8(&self.file("1")?)?, &format!("{tree}/DEBIAN")])?;
        let _ = fs::remove_file(format!("{tree}/DEBIAN/conffiles"));
        let control = fs::read_to_string(format!("{tree}/DEBIAN/control"))?;
        let control: Vec<_> = control
            .lines()
            .map(|line| match line.strip_prefix("Version: ").and_then(|version| version.split_once('-')) {
                Some((version, _)) => format!("Version: {version}-{revision}"),
                None => line.to_owned(),
            })
            .collect();
        fs::write(format!("{tree}/DEBIAN/control"), control.join("\n") + "\n")?;
        fs::write(format!("{tree}/usr/bin/{}", self.program), "")?;
        fs::write(format!("{tree}/{OF_ANOTHER_PACKAGE}"), "")?;
        run("dpkg-deb", &["-Znone", "--build", tree, file])?;
        fs::remove_dir_all(tree)?;
        Ok(match dpkg(&["--install", file]) {
            Err(error) if format!("{error:#}").contains("trying to overwrite") => Ok(()),
            Err(error) => Err(format!("{error:#}")),
            Ok(_) => Err("dpkg installed it".to_owned()),
        })
    }

    /// Unpacks it into a directory, without an installation.
    pub(crate) fn unpack(&self, directory: &Path) -> Result<()> {
        run("dpkg-deb", &["--extract", utf8(&self.file("")?)?, utf8(directory)?]).map(drop)
    }

    pub(crate) fn remove(&self) -> Result<()> {
        dpkg(&["--remove", self.name]).map(drop)
    }

    pub(crate) fn purge(&self) -> Result<()> {
        dpkg(&["--purge", self.name]).map(drop)
    }

    /// The version that is installed.
    pub(crate) fn version(&self) -> Result<String> {
        run("dpkg-query", &["--show", "--showformat", "${Version}", self.name])
    }

    fn file(&self, revision: &str) -> Result<PathBuf> {
        let prefix = format!("{}_", self.name);
        for entry in fs::read_dir(self.directory)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.starts_with(&prefix) && (revision.is_empty() || name.contains(&format!("-{revision}_"))) {
                return Ok(self.directory.join(name));
            }
        }
        bail!("{} has no package {} of revision {revision:?}", self.directory.display(), self.name)
    }
}

/// The diversions of a package, or the empty text.
pub(crate) fn divert_list(package: &str) -> Result<String> {
    let all = run("dpkg-divert", &["--list"])?;
    let of_package = format!(" by {package}");
    Ok(all.lines().filter(|line| line.ends_with(&of_package)).collect::<Vec<_>>().join("; "))
}

/// Runs dpkg without questions, and without triggers: man-db's would read all manual pages of the machine. Returns its standard
/// error; a failure has all output.
pub(crate) fn dpkg(arguments: &[&str]) -> Result<String> {
    let mut dpkg = Command::new("dpkg");
    dpkg.arg("--no-triggers").args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    let output = dpkg.output().context("start dpkg")?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.success(),
        "{dpkg:?} failed ({}): {}{errors}",
        output.status,
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(errors)
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
