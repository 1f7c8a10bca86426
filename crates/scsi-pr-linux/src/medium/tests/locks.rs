//! The lock of a medium, against other media and against QEMU's programs.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use super::*;

/// Held by each test that starts programs of QEMU: they do not wait for a lock that a new process of another test keeps.
static QEMU: Mutex<()> = Mutex::new(());

/// qemu-io with the image open, until this is dropped.
struct QemuIo(Child);

impl QemuIo {
    /// Opens the image, or returns QEMU's message.
    fn open(path: &Path, arguments: &[&str]) -> Result<Self, String> {
        let mut command = Command::new("qemu-io");
        command.args(["-f", "raw"]).args(arguments).arg(path);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("qemu-io (Debian: qemu-utils) starts");
        // The image is open when the first command has been answered.
        let asked = writeln!(child.stdin.as_mut().unwrap(), "length");
        let mut answer = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut answer).unwrap();
        if asked.is_ok() && answer.contains("KiB") {
            return Ok(Self(child));
        }
        let output = child.wait_with_output().unwrap();
        assert!(!output.status.success(), "qemu-io ends without an error: {answer}");
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn is_refused_lock(result: Result<QemuIo, String>) -> bool {
    let message = result.err().unwrap_or_default();
    message.contains("Failed to lock byte") || message.contains("Is another process using the image")
}

#[test]
fn medium_that_is_open_is_refused_with_its_holder() {
    let directory = directory();
    let mut options = file(&directory, 64 << 10);
    let first = open(&options);
    let message = refusal(&options);
    assert!(message.contains(&format!("in use by process {} (", std::process::id())), "{message}");
    options.access = Access::ReadOnly;
    assert!(refusal(&options).contains("in use by process"));
    drop(first);
    let reader = open(&options);
    let _second_reader = open(&options);
    options.access = Access::ReadWrite;
    assert!(refusal(&options).contains("in use by process"));
    drop(reader);
    assert!(refusal(&options).contains("in use by process"));
}

#[test]
fn qemu_does_not_open_a_writable_medium() {
    let _alone = QEMU.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = directory();
    let options = file(&directory, 64 << 10);
    let medium = open(&options);
    assert!(is_refused_lock(QemuIo::open(&options.path, &[])));
    assert!(is_refused_lock(QemuIo::open(&options.path, &["-r"])));
    let resize =
        Command::new("qemu-img").args(["resize", "-f", "raw"]).arg(&options.path).arg("128K").output().unwrap();
    assert!(!resize.status.success());
    drop(medium);
    QemuIo::open(&options.path, &[]).expect("the lock ends with the medium");
}

#[test]
fn medium_that_qemu_writes_is_refused_in_both_modes() {
    let _alone = QEMU.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = directory();
    let mut options = file(&directory, 64 << 10);
    let qemu = QemuIo::open(&options.path, &[]).unwrap();
    let message = refusal(&options);
    assert!(message.contains(&format!("in use by process {} (qemu-io)", qemu.0.id())), "{message}");
    options.access = Access::ReadOnly;
    assert!(refusal(&options).contains("in use by process"));
    drop(qemu);
    open(&options);
}

#[test]
fn qemu_and_a_read_only_medium_read_together_but_do_not_write() {
    let _alone = QEMU.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = directory();
    let mut options = file(&directory, 64 << 10);
    options.access = Access::ReadOnly;
    let medium = open(&options);
    assert!(is_refused_lock(QemuIo::open(&options.path, &[])));
    let reader = QemuIo::open(&options.path, &["-r"]).expect("QEMU may read");
    drop(medium);
    let medium = open(&options);
    options.access = Access::ReadWrite;
    assert!(refusal(&options).contains("in use by process"));
    drop((reader, medium));
    open(&options);
}

#[test]
fn wait_for_the_lock_ends_when_it_is_free_or_at_the_timeout() {
    let directory = directory();
    let mut options = file(&directory, 64 << 10);
    let first = open(&options);
    options.lock_timeout = Duration::from_millis(100);
    let begin = std::time::Instant::now();
    assert!(refusal(&options).contains("in use"));
    assert!(begin.elapsed() >= options.lock_timeout);

    options.lock_timeout = Duration::from_secs(60);
    std::thread::scope(|scope| {
        let second = scope.spawn(|| open(&options));
        std::thread::sleep(Duration::from_millis(200));
        assert!(!second.is_finished());
        drop(first);
        second.join().unwrap();
    });
}
