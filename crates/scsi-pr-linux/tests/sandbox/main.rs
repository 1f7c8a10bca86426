//! The sandbox of the process that serves clients: the system calls and files that it permits and forbids.
//!
//! It belongs to a thread, so each test enters it on a thread of its own. As root, so that permissions forbid nothing.

mod sys;

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use nix::libc;
use scsi_pr::{Cdb, Command, Completion, PrManager, SenseCode};
use scsi_pr_daemon::sandbox::Sandbox;
use scsi_pr_linux::SgIo;
use scsi_pr_linux::device::Device;

/// Runs `act` on a thread that is confined, and on one that it starts. `false` where the kernel offers no sandbox.
fn confined(act: impl Fn() + Send + Sync) -> bool {
    let act = &act;
    thread::scope(|scope| {
        let confined = scope.spawn(move || {
            let missing = Sandbox::new().enter();
            if !missing.is_empty() {
                eprintln!("skipped: {missing:?}");
                return false;
            }
            act();
            thread::scope(|scope| scope.spawn(act).join().unwrap());
            true
        });
        confined.join().unwrap()
    })
}

#[test]
fn forbidden_system_calls_end_in_an_error() {
    confined(|| {
        let null = 0;
        for (name, number, arguments) in [
            ("execve", libc::SYS_execve, [null, null, null, 0]),
            ("execveat", libc::SYS_execveat, [-1, null, null, null]),
            ("ptrace", libc::SYS_ptrace, [0, 0, 0, 0]),
            ("process_vm_writev", libc::SYS_process_vm_writev, [1, null, 0, null]),
            ("socket(AF_INET)", libc::SYS_socket, [i64::from(libc::AF_INET), i64::from(libc::SOCK_STREAM), 0, 0]),
            ("socket(AF_INET6)", libc::SYS_socket, [i64::from(libc::AF_INET6), i64::from(libc::SOCK_DGRAM), 0, 0]),
            ("socket(AF_NETLINK)", libc::SYS_socket, [i64::from(libc::AF_NETLINK), i64::from(libc::SOCK_RAW), 0, 0]),
            #[cfg(target_arch = "x86_64")]
            ("iopl", libc::SYS_iopl, [3, 0, 0, 0]),
            #[cfg(target_arch = "x86_64")]
            ("ioperm", libc::SYS_ioperm, [0x80, 1, 1, 0]),
            #[cfg(target_arch = "x86_64")]
            ("fork", libc::SYS_fork, [0; 4]),
            #[cfg(target_arch = "x86_64")]
            ("creat", libc::SYS_creat, [null, 0o600, 0, 0]),
            ("clone of a process", libc::SYS_clone, [i64::from(libc::SIGCHLD), 0, 0, 0]),
            ("openat2", libc::SYS_openat2, [-1, null, null, 0]),
            ("open_by_handle_at", libc::SYS_open_by_handle_at, [-1, null, 0, 0]),
            ("memory that is executable", libc::SYS_mmap, [0, 4096, i64::from(libc::PROT_EXEC), 0x22]),
            ("kill", libc::SYS_kill, [1, 0, 0, 0]),
            ("tgkill", libc::SYS_tgkill, [1, 1, 0, 0]),
            ("setuid", libc::SYS_setuid, [0; 4]),
            ("capset", libc::SYS_capset, [null, null, 0, 0]),
            ("unshare", libc::SYS_unshare, [0; 4]),
            ("mount", libc::SYS_mount, [null, null, null, 0]),
            ("chroot", libc::SYS_chroot, [null, 0, 0, 0]),
            ("bpf", libc::SYS_bpf, [0, null, 0, 0]),
            ("io_uring_setup", libc::SYS_io_uring_setup, [1, null, 0, 0]),
            ("perf_event_open", libc::SYS_perf_event_open, [null, 0, -1, -1]),
            ("init_module", libc::SYS_init_module, [null, 0, null, 0]),
            ("keyctl", libc::SYS_keyctl, [0; 4]),
            ("prctl(PR_SET_DUMPABLE)", libc::SYS_prctl, [i64::from(libc::PR_SET_DUMPABLE), 1, 0, 0]),
            ("unlinkat", libc::SYS_unlinkat, [-1, null, 0, 0]),
            ("fchmodat", libc::SYS_fchmodat, [-1, null, 0o777, 0]),
            ("linkat", libc::SYS_linkat, [-1, null, -1, null]),
            ("a system call of the future", 4000, [0; 4]),
        ] {
            assert_eq!(sys::attempt(number, arguments), Some(libc::EPERM), "{name}");
        }
        // The C library falls back to clone(2).
        assert_eq!(sys::attempt(libc::SYS_clone3, [null, 0, 0, 0]), Some(libc::ENOSYS));
    });
}

#[test]
fn files_open_for_reading_alone() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path();
    confined(|| {
        File::open(path).unwrap();
        for options in [
            File::options().write(true),
            File::options().read(true).write(true),
            File::options().append(true),
            File::options().write(true).truncate(true),
        ] {
            for path in [path, "/proc/sys/kernel/core_pattern".as_ref()] {
                let error = options.open(path).unwrap_err();
                assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{}: {error}", path.display());
            }
        }
        assert!(File::create(path.with_extension("new")).is_err());
        assert!(std::fs::remove_file(path).is_err() && std::fs::rename(path, path.with_extension("new")).is_err());
        assert!(std::process::Command::new("/bin/true").status().is_err());
    });
}

#[test]
fn landlock_alone_protects_files_in_other_directories() {
    let (own, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let paths = [own.path().join("s"), other.path().join("s")];
    paths.iter().for_each(|path| drop(UnixListener::bind(path).unwrap()));
    let directory = File::open(own.path()).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let missing = Sandbox::new().permit_removing_from(&[directory.as_fd()]).enter();
            if !missing.is_empty() {
                return eprintln!("skipped: {missing:?}");
            }
            let remove = |path| rustix::fs::unlinkat(rustix::fs::CWD, path, rustix::fs::AtFlags::empty());
            assert_eq!(remove(&paths[1]), Err(rustix::io::Errno::ACCESS));
            assert_eq!(remove(&paths[0]), Ok(()));
        });
    });
}

#[test]
fn serving_clients_works() {
    let directory = tempfile::tempdir().unwrap();
    let journal = directory.path().join("journal");
    let receiver = UnixDatagram::bind(&journal).unwrap();
    let listener = UnixListener::bind(directory.path().join("s")).unwrap();
    let sender = UnixDatagram::unbound().unwrap();
    let null = File::options().write(true).open("/dev/null").unwrap();
    let log = tempfile::tempfile().unwrap();
    confined(|| {
        // A connection, and data both ways.
        let mut client = UnixStream::connect(directory.path().join("s")).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        client.write_all(b"x").unwrap();
        server.read_exact(&mut [0]).unwrap();
        // A command on a descriptor that a client passed: the ioctl reaches the kernel.
        let mut cdb = [0; 16];
        (cdb[0], cdb[8]) = (0x5e, 8);
        let command = Command::new(Cdb::new(cdb).unwrap(), &[]).unwrap();
        let completion = SgIo::new().execute(null.as_fd(), command).unwrap();
        assert_eq!(completion, Completion::check(SenseCode::IO_PROCESS_TERMINATED));
        // sysfs and /proc.
        assert!(Device::of(null.as_fd()).unwrap().to_string().starts_with("1:3 "));
        assert!(!std::fs::read("/proc/self/cmdline").unwrap().is_empty());
        assert!(std::fs::read_dir("/sys").unwrap().count() > 0);
        // The log: a file that is open, and the journal.
        (&log).write_all(b"line\n").unwrap();
        sender.send_to(b"MESSAGE=x\n", &journal).unwrap();
        receiver.recv(&mut [0; 16]).unwrap();
        // Threads with names, memory, random numbers, time, and a panic that is caught.
        thread::Builder::new().name("pr-client".into()).spawn(|| drop(vec![1_u8; 1 << 22])).unwrap().join().unwrap();
        assert_eq!(HashMap::from([(1, 2)]).get(&1), Some(&2));
        thread::sleep(Duration::from_millis(1));
        assert!(thread::available_parallelism().is_ok());
        std::panic::set_hook(Box::new(|_| {}));
        assert!(std::panic::catch_unwind(|| panic!("of a manager")).is_err());
        let _ = std::panic::take_hook();
    });
}
