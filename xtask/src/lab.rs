//! `cargo xtask lab`: scenarios on real targets, in the lab guest. What they are is in `testing/lab/`.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::command;
use crate::guest::{Boot, end_of};
use crate::kernel::Kernel;
use crate::place::Place;
use crate::{cargo, machine, packages, testing_kernel};

/// A boot that takes longer hangs; the machine may be slow and busy.
const DEADLINE: Duration = Duration::from_secs(20 * 60);

/// The boots that take the kernel of Debian testing.
const TESTING: &[&str] = &["nvme", "nvme-paths"];

/// The environment variable with another seed for the random histories.
const SEED: &str = "LAB_SEED";

/// The boot whose scenarios want a virtual machine in the guest.
const MACHINE: &str = "machine";

/// How many checks passed and failed.
#[derive(Clone, Copy, Default)]
pub(crate) struct Tally {
    /// Those that passed.
    pub(crate) passed: usize,
    /// Those that failed.
    pub(crate) failed: usize,
}

/// A scenario, as `lab-guest --list` has it.
pub(crate) struct Scenario {
    boot: String,
    pub(crate) name: String,
    pub(crate) purpose: String,
}

/// The lab, ready to boot: its packages, its kernel and its programs are there.
pub(crate) struct Lab<'a> {
    place: &'a Place,
    kernel: Kernel,
    /// Keeps others out of the lab's directory.
    _lock: File,
}

impl<'a> Lab<'a> {
    /// Fetches and builds what is missing.
    pub(crate) fn prepare(place: &'a Place) -> Result<Self> {
        Self::prepare_with(place, &["lab", "qemu-pr-helper"])
    }

    /// For programs of our own that are there already.
    pub(crate) fn prepare_without_programs(place: &'a Place) -> Result<Self> {
        Self::prepare_with(place, &["lab"])
    }

    fn prepare_with(place: &'a Place, packages: &[&str]) -> Result<Self> {
        if std::env::consts::ARCH != "x86_64" {
            bail!("the lab's guests are x86-64 machines, with programs of this machine: it must be one too");
        }
        packages::ensure_lab()?;
        let lock = lock(&place.lab)?;
        let kernel = Kernel::fetch(&place.lab)?;
        cargo::build(place, packages)?;
        Ok(Self { place, kernel, _lock: lock })
    }

    /// Every scenario there is.
    pub(crate) fn scenarios(&self) -> Result<Vec<Scenario>> {
        let list = command::output(Command::new(self.place.program("lab-guest")).arg("--list"))?;
        list.lines()
            .map(|line| {
                let mut words = line.splitn(3, '\t').map(str::to_owned);
                let mut word = || words.next().with_context(|| format!("a scenario without a purpose: {line:?}"));
                Ok(Scenario { boot: word()?, name: word()?, purpose: word()? })
            })
            .collect()
    }

    /// Runs the scenarios named, or all, in as few boots as they allow. Every line that is printed goes to `line`.
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
                // The other boots have their own guests.
                Err(error) => {
                    line(&format!("  FAILED  boot {boot}: {error:#}"));
                    tally.failed += 1;
                }
            }
        }
        Ok(tally)
    }

    /// Has the figures of multipath taken, of the programs in that directory.
    pub(crate) fn measure(&self, programs: &Path, line: impl FnMut(&str)) -> Result<Tally> {
        self.boot_with(programs, "figures", ["--figures".to_owned()], line)
    }

    /// Boots once, with the programs that were built with this one.
    pub(crate) fn boot(
        &self,
        name: &str,
        arguments: impl IntoIterator<Item = String>,
        line: impl FnMut(&str),
    ) -> Result<Tally> {
        self.boot_with(&self.place.programs, name, arguments, line)
    }

    /// Boots once. A guest that does not come to the end of its report is an error, not a pass.
    fn boot_with(
        &self,
        programs: &Path,
        name: &str,
        arguments: impl IntoIterator<Item = String>,
        mut line: impl FnMut(&str),
    ) -> Result<Tally> {
        let mut program = vec![utf8(self.place.program("lab-guest"))?];
        program.extend(["--programs".to_owned(), utf8(programs.to_path_buf())?]);
        if name == MACHINE {
            program.extend(["--machine".to_owned(), utf8(machine::boot(&self.kernel, &self.place.lab)?)?]);
        }
        if let Ok(seed) = std::env::var(SEED) {
            program.extend(["--seed".to_owned(), seed]);
        }
        program.extend(arguments);
        let mut tally = Tally::default();
        let mut ended = false;
        let testing = if TESTING.contains(&name) { Some(testing_kernel::fetch(&self.place.lab)?) } else { None };
        let kernel = testing.as_ref().unwrap_or(&self.kernel);
        Boot { name, program: &program, deadline: DEADLINE }.run(kernel, &self.place.lab, |text| {
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
        })?;
        if !ended {
            bail!("the guest ended in the middle of its report; {}", end_of(&self.place.console(name)));
        }
        Ok(tally)
    }
}

/// Waits until nobody else uses the lab's directory.
fn lock(lab: &Path) -> Result<File> {
    fs::create_dir_all(lab)?;
    let lock = File::create(lab.join("lock"))?;
    if let Err(TryLockError::WouldBlock) = lock.try_lock() {
        println!("Another run uses {}; waiting for its end.", lab.display());
    }
    lock.lock()?;
    Ok(lock)
}

/// A path that can be a word of a script.
fn utf8(path: PathBuf) -> Result<String> {
    path.into_os_string().into_string().map_err(|path| anyhow!("the path {path:?} is not UTF-8"))
}
