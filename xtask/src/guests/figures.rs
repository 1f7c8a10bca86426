//! `cargo xtask bench guest`: a guest's disk of `scsi-pr disk`, beside a disk that QEMU itself makes of the same kind of file.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{MEMORY, SIZE, disk_options};
use crate::disk_server::DiskServer;
use crate::kernel::Kernel;
use crate::lab::lock;
use crate::qemu::INSTALLED;
use crate::shell::Shell;
use crate::workspace::Workspace;
use crate::{cargo, command, packages};

/// The rounds of each load. The disks take turns.
const ROUNDS: usize = 5;

/// The disks of the guest, by the vendor in their INQUIRY data.
const VENDORS: [&str; 2] = ["scsi-pr", "QEMU"];

/// Measures 4 KiB random reads and writes with fio, and prints a table.
pub(crate) fn run(workspace: &Workspace) -> Result<bool> {
    packages::ensure_guests()?;
    let _lock = lock(&workspace.lab)?;
    let kernel = Kernel::fetch(&workspace.lab)?;
    let mut build = cargo::command(workspace);
    command::show(build.args(["build", "--release", "--quiet", "--package", "scsi-pr-cli"]))?;
    fs::create_dir_all(&workspace.lab)?;
    let directory = tempfile::Builder::new().prefix("guest-").tempdir_in(&workspace.lab)?;
    let server = DiskServer::start(&workspace.target.join("release/scsi-pr"), directory.path(), SIZE)?;
    let image = directory.path().join("qemu.img");
    File::create_new(&image)?.set_len(SIZE)?;

    let mut guest = Shell::start(Path::new(INSTALLED), &kernel, &workspace.lab, "figures", &devices(&server, &image))?;
    guest.wait_until_ready()?;
    run_line(&mut guest, "modprobe -a virtio_scsi sd_mod sg && until test -b /dev/sdb; do sleep 0.2; done")?;
    let mut disks = Vec::new();
    for vendor in VENDORS {
        // The kernel finds disks in any order.
        let disk = run_line(&mut guest, &format!("grep -il {vendor} /sys/block/sd*/device/vendor | cut -d/ -f4"))?;
        let disk = disk.trim_ascii_end().to_owned();
        run_line(&mut guest, &format!("dd if=/dev/urandom of=/dev/{disk} bs=1M count={} conv=fsync", SIZE >> 20))?;
        disks.push(disk);
    }
    println!("| 4 KiB random, in a guest (TCG) | QEMU's virtio-scsi | scsi-pr disk over iSCSI | ratio |");
    println!("| --- | --- | --- | --- |");
    for depth in [1, 32] {
        for load in ["randread", "randwrite"] {
            let mut rates = [const { Vec::new() }; 2];
            for _ in 0..ROUNDS {
                for (disk, rates) in disks.iter().zip(&mut rates) {
                    rates.push(rate(&mut guest, disk, load, depth)?);
                }
            }
            let [own, qemu] = rates.map(median);
            println!("| {load}, depth {depth} | {qemu:.0}/s | {own:.0}/s | {:.2} |", own / qemu);
        }
    }
    Ok(true)
}

fn devices(server: &DiskServer, image: &Path) -> Vec<String> {
    let file = format!("driver=raw,node-name=file,file.driver=file,file.filename={}", image.display());
    let disk = disk_options(server, "figures");
    let blocks = ["-blockdev", &disk, "-blockdev", &file];
    let bus = ["-device", "virtio-scsi-pci,id=bus"];
    let disks =
        ["-device", "scsi-block,bus=bus.0,scsi-id=0,drive=disk", "-device", "scsi-hd,bus=bus.0,scsi-id=1,drive=file"];
    let memory = ["-m", MEMORY];
    memory.iter().chain(&blocks).chain(&bus).chain(&disks).map(|&argument| argument.to_owned()).collect()
}

/// The commands of a second.
fn rate(guest: &mut Shell, disk: &str, load: &str, depth: u32) -> Result<f64> {
    let output = run_line(
        guest,
        &format!(
            "fio --name=load --filename=/dev/{disk} --direct=1 --ioengine=libaio --rw={load} --bs=4k --iodepth={depth} \
             --time_based --runtime=4 --output-format=terse --terse-version=3"
        ),
    )?;
    // fio's HOWTO, "Terse output": the IOPS of reads are field 8, those of writes are field 49.
    let field = if load == "randread" { 7 } else { 48 };
    let line = output.lines().find(|line| line.starts_with("3;")).context("no line of fio")?;
    line.split(';').nth(field).and_then(|rate| rate.parse().ok()).with_context(|| format!("no rate in {line:?}"))
}

/// The output of a line of shell that must succeed.
fn run_line(guest: &mut Shell, line: &str) -> Result<String> {
    let ending = guest.run(line)?;
    match ending.status {
        0 => Ok(ending.output),
        _ => bail!("{line:?} failed in the guest: {ending}"),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
