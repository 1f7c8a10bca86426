//! `cargo xtask lab`: scenarios on real targets, in the lab guest. The scenarios themselves are in `testing/lab/`.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::command;
use crate::guest::{Boot, Init, LAB_MEMORY, end_of};
use crate::kernel::Kernel;
use crate::workspace::Workspace;
use crate::{cargo, machine, package, packages, qemu, testing_kernel};

/// The longest time for a boot and its scenarios. It is long because the machine may be slow and busy.
const DEADLINE: Duration = Duration::from_secs(20 * 60);

/// The environment variable that multiplies the number of the random histories, and the deadline with it.
const SOAK: &str = "SCSI_PR_SOAK";

/// The boots that need the kernel of Debian testing.
const TESTING: &[&str] = &["nvme", "nvme-paths"];

/// The environment variable that replaces the seed of the random histories.
const SEED: &str = "LAB_SEED";

/// The boot whose scenarios resume a virtual machine in the guest.
const MACHINE: &str = "machine";

/// The boot in which libvirt starts virtual machines, which boot there.
const LIBVIRT: &str = "libvirt";

/// The boots under systemd, in which Debian packages of this project are installed.
const PACKAGES: &[&str] = &["packages", "packages-service"];

/// How many checks passed and failed.
#[derive(Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
}

/// A line of `lab-guest --list`.
pub(crate) struct Scenario {
    boot: String,
    pub(crate) name: String,
    pub(crate) purpose: String,
}

/// The lab, ready to boot: packages, kernel and programs exist.
pub(crate) struct Lab<'a> {
    workspace: &'a Workspace,
    kernel: Kernel,
    /// Other runs of this program wait for it.
    _lock: File,
}

impl<'a> Lab<'a> {
    /// Downloads and builds the missing parts.
    pub(crate) fn prepare(workspace: &'a Workspace) -> Result<Self> {
        Self::prepare_with(workspace, &["lab", "qemu-pr-helper", "scsi-pr-cli"])
    }

    /// As [`prepare`](Self::prepare), without building the products.
    pub(crate) fn prepare_without_programs(workspace: &'a Workspace) -> Result<Self> {
        Self::prepare_with(workspace, &["lab"])
    }

    fn prepare_with(workspace: &'a Workspace, packages: &[&str]) -> Result<Self> {
        if std::env::consts::ARCH != "x86_64" {
            bail!("the lab's guests are x86-64 machines that run programs of this machine, which is not one");
        }
        packages::ensure_lab()?;
        let lock = lock(&workspace.lab)?;
        let kernel = Kernel::fetch(&workspace.lab)?;
        cargo::build(workspace, packages)?;
        Ok(Self { workspace, kernel, _lock: lock })
    }

    /// Every scenario.
    pub(crate) fn scenarios(&self) -> Result<Vec<Scenario>> {
        let list = command::output(Command::new(self.workspace.program("lab-guest")).arg("--list"))?;
        list.lines()
            .map(|line| {
                let mut fields = line.splitn(3, '\t').map(str::to_owned);
                let mut field = || fields.next().with_context(|| format!("a scenario without a purpose: {line:?}"));
                Ok(Scenario { boot: field()?, name: field()?, purpose: field()? })
            })
            .collect()
    }

    /// Runs the named scenarios, or all, with one boot for each group. Every line of output goes to `line`.
    pub(crate) fn run(&self, names: &[String], mut line: impl FnMut(&str)) -> Result<Tally> {
        let all = self.scenarios()?;
        if let Some(unknown) = names.iter().find(|name| all.iter().all(|scenario| scenario.name != **name)) {
            let known: Vec<_> = all.iter().map(|scenario| scenario.name.as_str()).collect();
            bail!("there is no scenario {unknown:?}; there are: {}", known.join(", "));
        }
        let chosen: Vec<_> = all.iter().filter(|scenario| names.is_empty() || names.contains(&scenario.name)).collect();
        let mut boots: Vec<&str> = Vec::new();
        for scenario in &chosen {
            if !boots.contains(&scenario.boot.as_str()) {
                boots.push(&scenario.boot);
            }
        }
        let mut tally = Tally::default();
        for boot in boots {
            let names = chosen.iter().filter(|scenario| scenario.boot == boot).map(|scenario| scenario.name.clone());
            let start = Instant::now();
            let outcome = self.boot(boot, names, &mut line);
            line(&format!("boot {boot}: {:.0} s", start.elapsed().as_secs_f64()));
            match outcome {
                Ok(Tally { passed, failed }) => {
                    tally.passed += passed;
                    tally.failed += failed;
                }
                // The other boots do not depend on this one.
                Err(error) => {
                    line(&format!("  FAILED  boot {boot}: {error:#}"));
                    tally.failed += 1;
                }
            }
        }
        Ok(tally)
    }

    /// Measures the figures of multipath with the programs in that directory.
    pub(crate) fn measure(&self, programs: &Path, line: impl FnMut(&str)) -> Result<Tally> {
        self.boot_with(programs, "figures", ["--figures".to_owned()], line)
    }

    /// Boots once, with the programs that were built together with this one.
    pub(crate) fn boot(
        &self,
        name: &str,
        arguments: impl IntoIterator<Item = String>,
        line: impl FnMut(&str),
    ) -> Result<Tally> {
        self.boot_with(&self.workspace.programs, name, arguments, line)
    }

    /// Boots once. A guest that does not complete its report is an error.
    fn boot_with(
        &self,
        programs: &Path,
        name: &str,
        arguments: impl IntoIterator<Item = String>,
        mut line: impl FnMut(&str),
    ) -> Result<Tally> {
        let mut program = vec![utf8(self.workspace.program("lab-guest"))?];
        program.extend(["--programs".to_owned(), utf8(programs.to_path_buf())?]);
        let machine = match name {
            MACHINE => Some(machine::boot(&self.kernel, &self.workspace.lab)?),
            LIBVIRT => Some(machine::prepare(&self.kernel, &self.workspace.lab)?),
            _ => None,
        };
        if let Some(machine) = machine {
            program.extend(["--machine".to_owned(), utf8(machine)?]);
        }
        if PACKAGES.contains(&name) || name == LIBVIRT {
            program.extend(["--packages".to_owned(), utf8(package::for_test(self.workspace)?)?]);
        }
        for (variable, option) in [(SEED, "--seed"), (SOAK, "--factor")] {
            if let Ok(value) = std::env::var(variable) {
                program.extend([option.to_owned(), value]);
            }
        }
        program.extend(arguments);
        let mut tally = Tally::default();
        let mut ended = false;
        let testing = if TESTING.contains(&name) { Some(testing_kernel::fetch(&self.workspace.lab)?) } else { None };
        let kernel = testing.as_ref().unwrap_or(&self.kernel);
        let devices = LAB_MEMORY.map(str::to_owned);
        let factor = std::env::var(SOAK).ok().map_or(Ok(1), |factor| factor.parse::<u32>())?;
        let deadline = DEADLINE.saturating_mul(factor);
        let init = if PACKAGES.contains(&name) { Init::Systemd } else { Init::Script };
        Boot { name, program: &program, qemu: Path::new(qemu::INSTALLED), devices: &devices, deadline, init }.run(
            kernel,
            &self.workspace.lab,
            |text| {
                match text.trim_start().split(' ').next() {
                    Some("ok") => tally.passed += 1,
                    Some("FAILED") => tally.failed += 1,
                    _ if text == "end of report" => {
                        ended = true;
                        return;
                    }
                    _ => {}
                }
                line(text);
            },
        )?;
        if !ended {
            bail!("the guest ended in the middle of its report; {}", end_of(&self.workspace.console(name)));
        }
        Ok(tally)
    }
}

/// Waits until no other run uses the lab's directory.
pub(crate) fn lock(lab: &Path) -> Result<File> {
    fs::create_dir_all(lab)?;
    let lock = File::create(lab.join("lock"))?;
    if let Err(TryLockError::WouldBlock) = lock.try_lock() {
        println!("Another run uses {}; waiting until it ends.", lab.display());
    }
    lock.lock()?;
    Ok(lock)
}

/// A path as an argument in a script.
fn utf8(path: PathBuf) -> Result<String> {
    path.into_os_string().into_string().map_err(|path| anyhow!("the path {path:?} is not UTF-8"))
}
