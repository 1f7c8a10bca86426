//! `cargo xtask package`: the Debian packages and the RPMs, by cargo-deb and cargo-generate-rpm.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;
use crate::{cargo, command, packages};

/// Tools of crates.io, with their versions.
const CARGO_DEB: (&str, &str) = ("cargo-deb", "3.8.0");
const CARGO_GENERATE_RPM: (&str, &str) = ("cargo-generate-rpm", "0.21.1");

/// The crates that become packages: name and directory of the crate, program, and name of the package.
const PRODUCTS: [Product; 2] = [
    Product {
        crate_name: "qemu-pr-helper",
        directory: "crates/qemu-pr-helper",
        program: "qemu-pr-helper",
        package: "scsi-pr-helper",
    },
    Product { crate_name: "scsi-pr-cli", directory: "crates/scsi-pr-cli", program: "scsi-pr", package: "scsi-pr" },
];

struct Product {
    crate_name: &'static str,
    directory: &'static str,
    program: &'static str,
    package: &'static str,
}

/// The version of all crates.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The revision of the packages of a release. `packaging/debian` and the manifests have it too.
const REVISION: &str = "1";

/// The revision that a test upgrades to.
const NEXT_REVISION: &str = "2";

/// AppArmor, the package that has libvirtd's profile, and the reader of the metrics in a file.
const DEBIAN: [&str; 3] = ["apparmor", "libvirt-daemon-system", "prometheus-node-exporter"];

/// Shells, and the file that each one looks for.
const COMPLETIONS: [(&str, &str); 3] = [("bash", "scsi-pr"), ("zsh", "_scsi-pr"), ("fish", "scsi-pr.fish")];

/// How well packages are compressed.
#[derive(Clone, Copy)]
enum Compression {
    Best,
    /// For tests.
    Fast,
}

/// The path of the helper in the RPM. An RPM cannot divert the file of another package.
const RPM_HELPER: &str = "/usr/libexec/scsi-pr/qemu-pr-helper";

/// Builds the programs in release mode and packs them. Returns whether the checks found no error.
pub(crate) fn run(workspace: &Workspace) -> Result<bool> {
    packages::ensure_package()?;
    install(workspace, CARGO_DEB)?;
    install(workspace, CARGO_GENERATE_RPM)?;
    let mut build = cargo::command(workspace);
    build.args(["build", "--release", "--locked", "--quiet"]);
    for product in PRODUCTS {
        build.args(["--package", product.crate_name]);
    }
    println!("Building: {}", command::line(&build));
    command::show(&mut build)?;
    let staging = Staging::new(workspace, &workspace.target.join("release"), "release")?;
    let mut made = staging.debs(workspace, REVISION, Compression::Best)?;
    lintian(&made)?;
    let rpms = staging.rpms(workspace)?;
    check_rpms(&rpms)?;
    made.extend(rpms);
    for file in made {
        println!("{} ({} KiB)", file.display(), fs::metadata(&file)?.len().div_ceil(1024));
    }
    Ok(true)
}

/// Makes the Debian packages of the programs that are built already, for a test, and fetches those of Debian that it
/// unpacks. Returns their directory. The packages have two revisions, so that one can be upgraded.
pub(crate) fn for_test(workspace: &Workspace) -> Result<PathBuf> {
    packages::ensure_package()?;
    install(workspace, CARGO_DEB)?;
    let staging = Staging::new(workspace, &workspace.programs, "lab")?;
    lintian(&staging.debs(workspace, REVISION, Compression::Fast)?)?;
    staging.debs(workspace, NEXT_REVISION, Compression::Fast)?;
    let debian = workspace.lab.join("debian");
    fs::create_dir_all(&debian)?;
    let present: Vec<_> =
        fs::read_dir(&debian)?.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<_, _>>()?;
    let is_missing = |package: &&str| {
        let prefix = format!("{package}_");
        !present.iter().any(|file| file.to_string_lossy().starts_with(&prefix))
    };
    let missing: Vec<_> = DEBIAN.into_iter().filter(is_missing).collect();
    if !missing.is_empty() {
        let mut download = Command::new("apt-get");
        download.args(["download", "-qq", "-o", "APT::Sandbox::User=root"]).args(missing).current_dir(&debian);
        println!("Fetching packages of Debian, which are not installed: {}", command::line(&download));
        command::output(&mut download)?;
    }
    for entry in fs::read_dir(&debian)? {
        let file = entry?.path();
        let name = file.file_name().context("a file has a name")?;
        fs::copy(&file, staging.output.join(name))?;
    }
    Ok(staging.output)
}

/// The Debian package of the helper, of the program that is built already.
pub(crate) fn helper_deb(workspace: &Workspace) -> Result<PathBuf> {
    packages::ensure_package()?;
    install(workspace, CARGO_DEB)?;
    let staging = Staging::new(workspace, &workspace.programs, "container")?;
    let debs = staging.debs(workspace, REVISION, Compression::Fast)?;
    debs.into_iter().next().context("there is no package")
}

/// Installs a tool of crates.io below the target directory, unless it is there in this version.
fn install(workspace: &Workspace, (tool, version): (&str, &str)) -> Result<()> {
    let program = workspace.tools.join("bin").join(tool);
    let present = command::output(Command::new(&program).arg("--version")).unwrap_or_default();
    if present.split_whitespace().any(|word| word == version) {
        return Ok(());
    }
    let mut install = cargo::command(workspace);
    install.args(["install", "--debug", "--quiet", "--locked", "--version", version, "--root"]);
    install.arg(&workspace.tools).arg(tool).env("CARGO_PROFILE_DEV_DEBUG", "0");
    println!("Missing on this machine: {tool} {version}. Building it from crates.io: {}", command::line(&install));
    command::output(&mut install).map(drop)
}

/// A target directory for the tools: they look for the programs in `release` below it, also where those are of another
/// profile.
struct Staging {
    target: PathBuf,
    /// The path of `target/tools/bin`, before the others.
    path: String,
    /// The directory of the packages.
    output: PathBuf,
}

impl Staging {
    /// Copies the programs in `programs`, without symbols, and makes the files that have no source in `packaging`.
    ///
    /// The packages are in the directory `name` of `target/package`, which is emptied first.
    fn new(workspace: &Workspace, programs: &Path, name: &str) -> Result<Self> {
        let output = workspace.target.join("package").join(name);
        let target = output.join("staging");
        let release = target.join("release");
        if output.exists() {
            fs::remove_dir_all(&output)?;
        }
        fs::create_dir_all(release.join("rpm"))?;
        for Product { program, .. } in PRODUCTS {
            let mut strip = Command::new("strip");
            strip.args(["--strip-unneeded", "--remove-section=.comment", "-o"]).arg(release.join(program));
            command::output(strip.arg(programs.join(program)))?;
        }
        // Fedora's package of QEMU's helper has units of the names qemu-pr-helper.*.
        for kind in ["socket", "service"] {
            let unit = workspace.root.join(format!("packaging/systemd/qemu-pr-helper.{kind}"));
            let text = fs::read_to_string(&unit).with_context(|| format!("read {}", unit.display()))?;
            let text = text
                .replace("ExecStart=/usr/bin/qemu-pr-helper", &format!("ExecStart={RPM_HELPER}"))
                .replace("qemu-pr-helper.socket", "scsi-pr-helper.socket")
                .replace("man:qemu-pr-helper(8)\n", "man:scsi-pr-helper(8)\nConflicts=qemu-pr-helper.socket\n");
            fs::write(release.join("rpm").join(format!("scsi-pr-helper.{kind}")), text)?;
        }
        let completions = release.join("completions");
        fs::create_dir_all(&completions)?;
        for (shell, file) in COMPLETIONS {
            let text = command::output(Command::new(programs.join("scsi-pr")).args(["completions", shell]))?;
            fs::write(completions.join(file), text)?;
        }
        let tools = workspace.tools.join("bin");
        let tools = tools.to_str().context("the path of the target directory is not UTF-8")?;
        Ok(Self { target, path: format!("{tools}:{}", env::var("PATH").unwrap_or_default()), output })
    }

    /// One package for each product.
    fn debs(&self, workspace: &Workspace, revision: &str, compression: Compression) -> Result<Vec<PathBuf>> {
        let architecture = command::output(Command::new("dpkg").arg("--print-architecture"))?;
        let mut debs = Vec::new();
        for Product { crate_name, package, .. } in PRODUCTS {
            let file = self.output.join(format!("{package}_{VERSION}-{revision}_{}.deb", architecture.trim()));
            let mut deb = self.tool(workspace, "deb");
            deb.args(["--quiet", "--no-build", "--no-strip", "--package", crate_name, "--deb-revision", revision]);
            if let Compression::Fast = compression {
                deb.arg("--fast");
            }
            command::output(deb.arg("--output").arg(&file))?;
            debs.push(file);
        }
        Ok(debs)
    }

    fn rpms(&self, workspace: &Workspace) -> Result<Vec<PathBuf>> {
        let mut rpms = Vec::new();
        for Product { directory, package, .. } in PRODUCTS {
            let file = self.output.join(format!("{package}-{VERSION}-{REVISION}.{}.rpm", env::consts::ARCH));
            let mut rpm = self.tool(workspace, "generate-rpm");
            rpm.args(["--package", directory, "--output"]).arg(&file).arg("--target-dir").arg(&self.target);
            command::output(&mut rpm)?;
            rpms.push(file);
        }
        Ok(rpms)
    }

    fn tool(&self, workspace: &Workspace, subcommand: &str) -> Command {
        let mut tool = cargo::command(workspace);
        tool.arg(subcommand).env("PATH", &self.path).env("CARGO_TARGET_DIR", &self.target);
        tool
    }
}

/// Prints the findings of lintian. An error of lintian is an error.
fn lintian(debs: &[PathBuf]) -> Result<()> {
    let output = Command::new("lintian")
        .args(["--allow-root", "--fail-on", "error", "--tag-display-limit", "0"])
        .args(debs)
        .output()
        .context("start lintian")?;
    let findings = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("lintian found errors:\n{findings}{}", String::from_utf8_lossy(&output.stderr));
    }
    print!("{findings}");
    Ok(())
}

/// Installs the RPMs in an empty directory, verifies the files and removes them. The scripts do not run, because they need a
/// system. No file may belong to the distribution's package of QEMU's helper.
fn check_rpms(rpms: &[PathBuf]) -> Result<()> {
    for file in rpms {
        command::output(Command::new("rpm").arg("--checksig").arg(file))?;
        let files = command::output(Command::new("rpm").args(["--query", "--list", "--package"]).arg(file))?;
        if let Some(file) = files.lines().find(|line| line.contains("/qemu-pr-helper") && *line != RPM_HELPER) {
            bail!("{file} would conflict with the package qemu-pr-helper");
        }
    }
    let root = tempfile::tempdir()?;
    let rpm = |operation: &str| {
        let mut rpm = Command::new("rpm");
        // Debian's rpm is for other systems than its own.
        rpm.arg(operation).args(["--nodeps", "--noscripts", "--force-debian", "--root"]).arg(root.path());
        rpm
    };
    command::output(rpm("--install").args(rpms))?;
    let packages = PRODUCTS.map(|product| product.package);
    let verified = command::output(rpm("--verify").args(packages));
    command::output(rpm("--erase").args(packages))?;
    verified?;
    Ok(())
}
