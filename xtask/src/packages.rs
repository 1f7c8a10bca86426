//! The Debian packages that the tasks need, and their installation.
//!
//! Only `apt-get install` changes the machine, and only when a file is missing. The kernel of the lab is unpacked below
//! the target directory instead (see [`crate::kernel`]).

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::command;

/// A file that must exist, its package, and its use.
struct Need {
    file: &'static str,
    package: &'static str,
    why: &'static str,
}

const fn need(file: &'static str, package: &'static str, why: &'static str) -> Need {
    Need { file, package, why }
}

/// For a virtual machine with a SCSI target in it.
const LAB: &[Need] = &[
    need("qemu-system-x86_64", "qemu-system-x86", "boots the lab guest, and a virtual machine in it"),
    need("qemu-pr-helper", "qemu-system-common", "QEMU's helper, for comparison"),
    need("/usr/share/seabios/bios-256k.bin", "seabios", "the firmware of the lab guest"),
    need("busybox", "busybox-static", "the initramfs of the guests"),
    need("modprobe", "kmod", "finds and loads the kernel modules of the guest"),
    need("sg_persist", "sg3-utils", "sends reservations without a helper"),
    need("iscsiadm", "open-iscsi", "initiators that have names"),
    need("dmsetup", "dmsetup", "device-mapper maps over a disk"),
    need("multipathd", "multipath-tools", "multipath maps, and the library that reserves them"),
    need("/lib/systemd/systemd-udevd", "udev", "reports disks to multipathd"),
    need("addpart", "util-linux", "a partition of a disk"),
    need("mkfs.ext4", "e2fsprogs", "a file system for a store and an image file"),
    need("unshare", "util-linux", "the namespaces of an imitated host"),
    need("xz", "xz-utils", "unpacks kernels and their modules"),
    need("ldd", "libc-bin", "finds the libraries of a program"),
    need("libvirtd", "libvirt-daemon", "starts virtual machines, and a helper for them"),
    need(
        "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so",
        "libvirt-daemon-driver-qemu",
        "libvirt's driver for QEMU",
    ),
    need("virsh", "libvirt-clients", "the commands of libvirt"),
    need("/lib/systemd/systemd-journald", "systemd", "the journal that a helper of libvirt logs to"),
    need("setpriv", "util-linux", "ends a guest together with its parent process"),
    need("curl", "curl", "reads the metrics of the helper, as the guide does"),
    need("socat", "socat", "the same"),
];

/// For two virtual machines on one disk of `scsi-pr disk`.
const GUESTS: &[Need] = &[
    need("qemu-system-x86_64", "qemu-system-x86", "boots the guests"),
    need(ISCSI_DRIVER, "qemu-block-extra", "QEMU's iSCSI initiator"),
    need("/usr/share/seabios/bios-256k.bin", "seabios", "the firmware of the guests"),
    need("busybox", "busybox-static", "the initramfs of the guests"),
    need("modprobe", "kmod", "finds and loads the kernel modules of the guests"),
    need("fence_scsi", "fence-agents", "fences a guest, as Pacemaker does"),
    need("sg_persist", "sg3-utils", "reservations, UNMAP, COMPARE AND WRITE"),
    need("fio", "fio", "reads and writes with verification"),
    need("mkfs.ext4", "e2fsprogs", "a file system on the disk"),
    need("xz", "xz-utils", "unpacks the kernel"),
    need("setpriv", "util-linux", "ends a guest together with its parent process"),
];

const ISCSI_DRIVER: &str = "/usr/lib/x86_64-linux-gnu/qemu/block-iscsi.so";

/// For the tests that run on this machine itself.
const TESTS: &[Need] = &[
    need("/usr/include/seccomp.h", "libseccomp-dev", "the conformance suite replaces results of system calls"),
    need("qemu-pr-helper", "qemu-system-common", "QEMU's helper, for comparison"),
    need("qemu-io", "qemu-utils", "QEMU's locks on images, against those of media"),
    need("iscsi-test-cu", "libiscsi-bin", "a conformance suite for iSCSI targets"),
];

/// For the packages.
const PACKAGE: &[Need] = &[
    need("strip", "binutils", "removes symbols"),
    need("dpkg-shlibdeps", "dpkg-dev", "finds the libraries that a program needs"),
    need("lintian", "lintian", "checks the Debian packages"),
    need("rpm", "rpm", "checks the RPMs"),
];

/// For the image of a container.
const CONTAINER: &[Need] = &[
    need("debootstrap", "debootstrap", "makes a minimal Debian"),
    need("podman", "podman", "builds the image"),
    need("unshare", "util-linux", "starts the image"),
];

/// For the benchmarks.
const BENCH: &[Need] = &[need("qemu-pr-helper", "qemu-system-common", "QEMU's helper, for comparison")];

/// For the benchmarks of the disk.
const BENCH_DISK: &[Need] = &[need("/usr/sbin/tgtd", "tgt", "an iSCSI target, for comparison")];

/// Installs the packages of the tests outside the lab.
pub(crate) fn ensure_tests() -> Result<()> {
    ensure(TESTS)
}

/// Installs the packages that build and check packages.
pub(crate) fn ensure_package() -> Result<()> {
    ensure(PACKAGE)
}

/// Installs the packages that build the image of a container.
pub(crate) fn ensure_container() -> Result<()> {
    ensure(CONTAINER)
}

/// Installs the packages of the benchmarks.
pub(crate) fn ensure_bench() -> Result<()> {
    ensure(BENCH)
}

/// Installs the packages of the benchmarks of the disk.
pub(crate) fn ensure_bench_disk() -> Result<()> {
    ensure(BENCH_DISK)
}

/// Installs the packages of the lab.
pub(crate) fn ensure_lab() -> Result<()> {
    ensure(LAB)
}

/// Installs the packages of two virtual machines on one disk.
pub(crate) fn ensure_guests() -> Result<()> {
    ensure(GUESTS)
}

fn ensure(needs: &[Need]) -> Result<()> {
    let missing: Vec<_> = needs.iter().filter(|need| !is_there(need.file)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("Missing on this machine:");
    for need in &missing {
        println!("  {:<20} {} (from Debian's package {})", need.file, need.why, need.package);
    }
    let mut packages: Vec<_> = missing.iter().map(|need| need.package).collect();
    packages.sort_unstable();
    packages.dedup();
    install(&packages)?;
    match needs.iter().find(|need| !is_there(need.file)) {
        None => Ok(()),
        Some(need) => bail!("{} is still missing after its package {} was installed", need.file, need.package),
    }
}

/// Whether a file exists: an absolute path, or a program in Debian's directories, which `PATH` may lack.
fn is_there(file: &str) -> bool {
    match file.strip_prefix('/') {
        Some(_) => Path::new(file).exists(),
        None => find(file).is_some(),
    }
}

/// The path of the program `name`.
pub(crate) fn find(name: &str) -> Option<std::path::PathBuf> {
    ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].iter().map(|dir| Path::new(dir).join(name)).find(|path| path.exists())
}

fn install(packages: &[&str]) -> Result<()> {
    if find("apt-get").is_none() {
        bail!("this machine has no apt-get; install the missing files with its own package manager");
    }
    if !is_root()? {
        bail!(
            "run this as root, then try again:\n\n  apt-get update && apt-get install --no-install-recommends -y {}\n",
            packages.join(" ")
        );
    }
    let install = || {
        let mut install = Command::new("apt-get");
        install
            .args(["install", "-qq", "--no-install-recommends", "-y"])
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive");
        install
    };
    println!("Installing them: {}", command::line(&install()));
    // The package lists may be missing or outdated.
    if command::output(&mut install()).is_err() {
        println!("The installation failed; updating the package lists first: apt-get update");
        command::output(Command::new("apt-get").args(["update", "-qq"]))?;
        command::output(&mut install())?;
    }
    Ok(())
}

/// Whether this process runs as root, by the owner of its entry in /proc.
pub(crate) fn is_root() -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata("/proc/self")?.uid() == 0)
}
