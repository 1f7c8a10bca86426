//! The lab guest: a virtual machine whose root file system is this machine's own.
//!
//! Programs that are installed or built here run there. The guest returns nothing but the lines that it prints. QEMU
//! emulates the processor (TCG), because KVM may exist and hang where this machine is itself a virtual one.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::command::quoted;
use crate::initramfs::Initramfs;
use crate::kernel::Kernel;

/// The first process of the guest's own root directory.
#[derive(Clone, Copy)]
pub(crate) enum Init {
    /// The program itself, from a script.
    Script,
    /// systemd, with the program as a service. No unit that is enabled on this machine runs.
    Systemd,
}

/// One boot of the guest: `program` runs in it as root, and the guest ends with the program.
pub(crate) struct Boot<'a> {
    /// The directory of this boot's files.
    pub(crate) name: &'a str,
    /// The command line, with paths of this machine.
    pub(crate) program: &'a [String],
    /// The program of QEMU.
    pub(crate) qemu: &'a Path,
    /// QEMU's arguments for the guest's memory and for more devices.
    pub(crate) devices: &'a [String],
    /// The longest time for the boot and the program.
    pub(crate) deadline: Duration,
    pub(crate) init: Init,
}

/// The memory of a guest that runs the lab's scenarios.
pub(crate) const LAB_MEMORY: [&str; 2] = ["-m", "1536"];

/// A guest that was started.
pub(crate) struct Guest {
    pub(crate) qemu: Qemu,
    /// The lines of the second serial port, while the guest runs.
    pub(crate) lines: Receiver<String>,
    /// The kernel's log.
    pub(crate) console: PathBuf,
}

impl Boot<'_> {
    /// Starts the guest. Its second serial port is QEMU's standard output, and reads from `input`.
    pub(crate) fn start(&self, kernel: &Kernel, lab: &Path, input: Stdio) -> Result<Guest> {
        let files = lab.join(self.name);
        fs::create_dir_all(&files)?;
        let initramfs = files.join("initramfs");
        Initramfs::new(files.join("tree"))?
            .with_modules(kernel, &["virtio_pci", "9pnet_virtio", "9p", "overlay"])?
            .pack(&initramfs, &self.script(kernel))?;
        let console = files.join("console.log");
        let mut qemu = Qemu(self.start_qemu(kernel, &initramfs, &console, input)?);
        let lines = lines_of(&mut qemu.0)?;
        Ok(Guest { qemu, lines, console })
    }

    fn start_qemu(&self, kernel: &Kernel, initramfs: &Path, console: &Path, input: Stdio) -> Result<Child> {
        let mut console_option = std::ffi::OsString::from("file:");
        console_option.push(console);
        // The guest must not outlive this program, however this program ends.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL"]).arg(self.qemu);
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        // Without RDRAND, getrandom(2) may wait for entropy for minutes.
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "qemu64,+rdrand", "-smp", "2"]).args(self.devices);
        qemu.arg("-kernel").arg(kernel.image()).arg("-initrd").arg(initramfs);
        // On a busy machine, the kernel's check of its timer fails although the timer works.
        qemu.args(["-append", "console=ttyS0 quiet panic=-1 no_timer_check"]);
        qemu.args(["-fsdev", "local,id=machine,path=/,security_model=none,readonly=on,multidevs=remap"]);
        qemu.args(["-device", "virtio-9p-pci,fsdev=machine,mount_tag=machine"]);
        qemu.arg("-serial").arg(console_option).args(["-serial", "stdio"]);
        qemu.stdin(input).stdout(Stdio::piped());
        qemu.spawn().context("start QEMU")
    }

    /// Boots, and passes every line that the program prints to `line`, until the guest powers off.
    pub(crate) fn run(&self, kernel: &Kernel, lab: &Path, mut line: impl FnMut(&str)) -> Result<()> {
        let Guest { mut qemu, lines, console } = self.start(kernel, lab, Stdio::null())?;
        let end = Instant::now() + self.deadline;
        loop {
            match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(text) => line(&text),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    bail!("the guest did not end within {:?}; {}", self.deadline, end_of(&console))
                }
            }
        }
        let status = qemu.0.wait()?;
        if !status.success() {
            bail!("QEMU failed ({status}); {}", end_of(&console));
        }
        Ok(())
    }

    /// The script of process 1: it mounts a writable layer in memory above this machine's root, and runs the program there.
    fn script(&self, kernel: &Kernel) -> String {
        let program = self.program.iter().map(|argument| quoted(argument)).collect::<Vec<_>>().join(" ");
        let modules = quoted(&kernel.root.join("lib/modules").to_string_lossy());
        let start = match self.init {
            Init::Script => START_PROGRAM.replace("PROGRAM", &program),
            Init::Systemd => START_SYSTEMD.replace("PROGRAM", &program),
        };
        format!(
            "\
mkdir -p /machine /layer /new /var/target/pr # the last is where the target keeps reservations for APTPL
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000 machine /machine
mount -t tmpfs tmpfs /layer
mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/machine,upperdir=/layer/upper,workdir=/layer/work overlay /new
mount -t proc proc /new/proc
mount -t sysfs sysfs /new/sys
mount -t devtmpfs devtmpfs /new/dev
mkdir -p /new/dev/shm /new/dev/pts /new/lib/modules
mount -t tmpfs tmpfs /new/dev/shm
mount -t devpts devpts /new/dev/pts
mount -t tmpfs tmpfs /new/run
mount --bind /new{modules} /new/lib/modules
{start}"
        )
    }
}

/// Runs the program, then powers off.
const START_PROGRAM: &str = "\
printf '#!/bin/sh\\nexec chroot /new /sbin/modprobe \"$@\"\\n' >/bin/load # when the kernel itself wants a module
chmod +x /bin/load
echo /bin/load >/proc/sys/kernel/modprobe
/bin/load configfs
mount -t configfs configfs /new/sys/kernel/config
ifconfig lo up
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root RUST_BACKTRACE=1
chroot /new PROGRAM >/dev/ttyS1
echo o >/proc/sysrq-trigger
sleep 60
";

/// Becomes systemd, which powers off after the program.
const START_SYSTEMD: &str = "\
rm -rf /new/etc/systemd/system/*.wants /new/etc/fstab
rm -f /new/.dockerenv # else systemd takes the guest for a container, and skips multipathd
rm -f /new/usr/sbin/policy-rc.d # it may forbid packages to start services on this machine
mkdir -p /new/etc/tmpfiles.d
printf 'd /tmp 1777\\nd /var/tmp 1777\\n' >/new/etc/tmpfiles.d/tmp.conf # else systemd empties them, and the programs may be there
cat >/new/run/program <<'END'
#!/bin/sh
export HOME=/root RUST_BACKTRACE=1
PROGRAM >/dev/ttyS1 2>/dev/ttyS0
echo o >/proc/sysrq-trigger
END
mkdir -p /new/run/systemd/system
cat >/new/run/systemd/system/program.service <<'END'
[Service]
Type=exec
ExecStart=/bin/sh /run/program
END
mkdir -p /new/var/target/pr # the kernel's threads get the new root directory too
exec switch_root /new /lib/systemd/systemd --unit=program.service
";

/// The last lines of the kernel's log, for an error.
pub(crate) fn end_of(console: &Path) -> String {
    let log = fs::read(console).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<_> = log.lines().rev().take(20).collect();
    let lines: Vec<_> = lines.into_iter().rev().collect();
    format!("its console ({}) ends with\n{}", console.display(), lines.join("\n"))
}

/// The lines of the second serial port, while the guest runs.
pub(crate) fn lines_of(qemu: &mut Child) -> Result<Receiver<String>> {
    let output = BufReader::new(qemu.stdout.take().context("QEMU has no output")?);
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in output.split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
        }
    });
    Ok(receiver)
}

/// Ends QEMU when it is dropped.
pub(crate) struct Qemu(pub(crate) Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
