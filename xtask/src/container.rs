//! `cargo xtask container`: builds the image of KubeVirt's pr-helper container without a registry, and starts it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use testing_support::command::{IN, action_in, cdb};
use testing_support::{Client, Launcher, Process};

use crate::workspace::Workspace;
use crate::{cargo, command, package, packages};

/// The release of Debian of the image.
const RELEASE: &str = "forky";

const BASE: &str = "localhost/debian:forky-slim";
const IMAGE: &str = "localhost/scsi-pr/pr-helper";

/// The socket that KubeVirt names in the arguments of the container.
const SOCKET: &str = "/var/run/kubevirt/daemons/pr/pr-helper.sock";

/// Starts `/entrypoint.sh` with the mounts of KubeVirt's container. `$0` is the root directory, `$1` the directory of the
/// socket. /var/run is a link to /run.
const START: &str = "\
mkdir -p \"$0/run/kubevirt/daemons/pr\"
mount --bind \"$1\" \"$0/run/kubevirt/daemons/pr\"
mount --rbind /dev \"$0/dev\"
mount -t proc proc \"$0/proc\"
root=$0
shift
exec chroot \"$root\" /entrypoint.sh \"$@\"";

/// Builds the image from the programs of the profile of this program, starts it and sends it a command.
pub(crate) fn run(workspace: &Workspace) -> Result<bool> {
    packages::ensure_container()?;
    let base = base(workspace)?;
    cargo::build(workspace, &["qemu-pr-helper", "scsi-pr-cli"])?;
    let deb = package::helper_deb(workspace)?;
    let deb = deb.strip_prefix(&workspace.root).context("the target directory is not below the sources")?;
    println!("Building the image {IMAGE}");
    let mut import = Command::new("podman");
    import.arg("import").arg(&base).arg(BASE);
    command::output(&mut import)?;
    let mut build = Command::new("podman");
    build.args(["build", "--isolation", "chroot", "--network", "host", "--file", "packaging/container/Containerfile"]);
    build.args(["--build-arg", &format!("BASE={BASE}"), "--build-arg", &format!("PACKAGE={}", deb.display())]);
    command::output(build.args(["--tag", IMAGE, "."]).current_dir(&workspace.root))?;
    let container = podman(&["create", IMAGE])?;
    let checked = podman(&["mount", &container]).and_then(|root| check(Path::new(&root)));
    podman(&["rm", "--force", &container])?;
    checked?;
    println!("The image is {IMAGE}. Its helper answered a command, and removed its socket at the end.");
    Ok(true)
}

/// An archive of a minimal Debian. debootstrap makes it when it is missing.
fn base(workspace: &Workspace) -> Result<PathBuf> {
    let archive = workspace.target.join("container").join(format!("{RELEASE}.tar"));
    if archive.exists() {
        return Ok(archive);
    }
    let root = archive.with_extension("new");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    fs::create_dir_all(&root)?;
    let mut debootstrap = Command::new("debootstrap");
    debootstrap.args(["--variant=minbase", RELEASE]).arg(&root).arg("http://deb.debian.org/debian");
    // debootstrap of an older Debian does not know the name. All releases of today have the same script.
    debootstrap.arg("/usr/share/debootstrap/scripts/sid");
    println!("Fetching a minimal Debian: {}", command::line(&debootstrap));
    command::output(&mut debootstrap)?;
    // A mirror may be a snapshot.
    fs::write(root.join("etc/apt/apt.conf.d/snapshot"), "Acquire::Check-Valid-Until \"false\";\n")?;
    let packed = archive.with_extension("tar.new");
    command::output(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&packed).arg("."))?;
    fs::remove_dir_all(&root)?;
    fs::rename(packed, &archive)?;
    Ok(archive)
}

/// Starts the container in the root directory, in a process and a mount namespace of its own, and sends it a command. Not
/// every machine has the control groups that a runtime of containers needs.
fn check(root: &Path) -> Result<()> {
    let library = command::output(Command::new("chroot").arg(root).args(["ldconfig", "--print-cache"]))?;
    ensure!(library.contains("libmpathpersist.so.0"), "the image has no libmpathpersist.so.0");
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("pr-helper.sock");
    let mut helper = Launcher::new("unshare");
    helper.args(["--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "sh", "-ec", START]);
    helper.arg(root).arg(directory.path()).args(["-k", SOCKET]);
    let mut helper = helper.serve(&socket);
    let device = tempfile::tempfile()?;
    let response = Client::open(&socket)?.run(&cdb(IN, action_in::READ_KEYS, 8192), &[], &device)?;
    // ENOTTY: a file has no reservations.
    ensure!(response.sense_code() == Some([0x0b, 0x00, 0x06]), "the helper answered {response:?}");
    let processes = Process::with_argument(SOCKET);
    let server = processes.into_iter().find(|process| process.is_named("/usr/bin/qemu-pr-helper"));
    let server = server.context("no process of the helper has the socket as its argument")?;
    let user = user(server)?;
    ensure!(user != "0", "the process that serves clients is user 0");
    let monitor = server.children().first().copied().context("the helper has no monitor")?;
    ensure!(self::user(monitor)? == "0", "the monitor is not user 0");
    server.signal(rustix::process::Signal::TERM);
    let status = helper.wait();
    if !status.success() || socket.exists() {
        bail!("the helper ended with {status}; its socket {}", if socket.exists() { "stays" } else { "is gone" });
    }
    Ok(())
}

/// The effective user of a process.
fn user(process: Process) -> Result<String> {
    let status = process.status();
    let users = status.get("Uid").context("a process has no users")?;
    Ok(users.split_whitespace().nth(1).unwrap_or_default().to_owned())
}

fn podman(arguments: &[&str]) -> Result<String> {
    Ok(command::output(Command::new("podman").args(arguments))?.trim().to_owned())
}
