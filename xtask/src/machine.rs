//! The virtual machine that runs inside the lab guest, with a shell on its serial port.
//!
//! In the lab guest everything is emulated twice, and a boot takes minutes. So the machine boots here, and QEMU saves its
//! state as for a migration. In the lab guest it resumes from that state and finds the disks there.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::guest::Qemu;
use crate::initramfs::Initramfs;
use crate::kernel::Kernel;
use crate::qemu::INSTALLED;

/// Saves a booted machine in the directory that is returned. The file `state` is for QEMU's `-incoming`; `arguments` has
/// QEMU's other arguments, one on each line.
pub(crate) fn boot(kernel: &Kernel, lab: &Path) -> Result<PathBuf> {
    let directory = prepare(kernel, lab)?;
    save(&directory)?;
    Ok(directory)
}

/// Makes the files of a machine, which is not booted yet, in the directory that is returned.
pub(crate) fn prepare(kernel: &Kernel, lab: &Path) -> Result<PathBuf> {
    let directory = lab.join("machine-in-guest");
    fs::create_dir_all(&directory)?;
    Initramfs::new(directory.join("tree"))?
        .with_modules(kernel, &["virtio_pci", "virtio_scsi", "sd_mod", "sg"])?
        .with_program("sg_persist")?
        .pack(&directory.join("initramfs"), SCRIPT)?;
    let image = kernel.image();
    let image = image.to_str().context("the path of the kernel is not UTF-8")?;
    let arguments = [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-accel",
        "tcg",
        "-icount",
        "shift=4",
        "-m",
        "128",
    ]
    .into_iter()
    .chain(["-kernel", image, "-initrd", "initramfs", "-append", "quiet panic=-1 tsc=reliable mitigations=off"])
    .chain(["-device", "virtio-scsi-pci"]);
    let arguments: Vec<_> = arguments.collect();
    fs::write(directory.join("arguments"), arguments.join("\n"))?;
    Ok(directory)
}

/// Boots, waits until the shell is ready, and writes the state of the machine to a file.
fn save(directory: &Path) -> Result<()> {
    let arguments = fs::read_to_string(directory.join("arguments"))?;
    let (console, log) = (directory.join("console"), fs::File::create(directory.join("qemu.log"))?);
    fs::write(&console, "")?;
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL", INSTALLED]).args(arguments.lines()).current_dir(directory);
    qemu.args(["-serial", "file:console", "-monitor", "stdio"]);
    qemu.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
    let mut qemu = Qemu(qemu.spawn().context("start QEMU")?);
    let failure = || format!("the virtual machine for the lab guest did not boot; see {}", directory.display());
    let end = Instant::now() + Duration::from_secs(300);
    while !fs::read_to_string(&console)?.lines().any(|line| line == "ready") {
        if Instant::now() > end || qemu.0.try_wait()?.is_some() {
            bail!(failure());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut monitor = qemu.0.stdin.take().context("QEMU has no input")?;
    monitor.write_all(b"migrate \"exec:cat >state\"\nquit\n")?;
    if !qemu.0.wait()?.success() {
        bail!(failure());
    }
    Ok(())
}

/// Runs each line of the serial port in the shell, and prints its exit status.
pub(crate) const SCRIPT: &str = "\
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo -onlcr
echo ready
while read -r line; do
eval \"$line\"
echo \"exit $?\"
done
";
