//! The privileges of the helper and of its monitor, on every thread.
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{
    HELPER, Helper, Launcher, Process, connect, directory, eventually, helper, helper_at, require_root,
    wait_until_removed, wait_until_unused,
};
use rustix::process::Signal;

/// CAP_SYS_RAWIO, capability(7), as /proc shows it.
const SYS_RAWIO: &str = "0000000000020000";
/// CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_SYS_RAWIO and CAP_SYS_ADMIN.
const MONITOR: &str = "000000000022000a";
const NONE: &str = "0000000000000000";

fn ids(id: u32) -> String {
    [id; 4].map(|id| id.to_string()).join("\t")
}

#[test]
fn every_thread_has_cap_sys_rawio_and_nothing_else() {
    require_root!();
    for (arguments, uid, gid) in [
        // A machine may have the default user.
        (&["-u", "root"][..], 0, 0),
        (&["-u", "nobody"], 65534, 0),
        (&["-u", "65533", "-g", "65532"], 65533, 65532),
        (&["-u", "root", "-g", "nogroup"], 0, 65534),
        (&["-u", "4294967295", "-g", "4294967295"], 0, 0),
    ] {
        let directory = directory();
        let socket = directory.path().join("s");
        let running = Helper::start(helper(arguments).arg("-k").arg(&socket), &socket);
        // Served by threads of their own, which are as many as there are clients for a moment.
        let _clients: Vec<_> = (0..16).map(|_| connect(&socket)).collect();
        let threads = running.process().threads();
        assert!(!threads.is_empty());
        for thread in threads {
            assert_eq!(thread["CapPrm"], SYS_RAWIO);
            assert_eq!(thread["CapEff"], SYS_RAWIO);
            for set in ["CapInh", "CapBnd", "CapAmb"] {
                assert_eq!(thread[set], NONE, "{set}");
            }
            assert_eq!(thread["NoNewPrivs"], "1");
            // A filter (SECCOMP_MODE_FILTER).
            assert_eq!(thread["Seccomp"], "2");
            assert_eq!(thread["Groups"], "");
            assert_eq!((thread["Uid"].clone(), thread["Gid"].clone()), (ids(uid), ids(gid)), "{arguments:?}");
        }
        assert_eq!(running.end_by(Signal::TERM).code(), Some(0));
    }
}

/// A helper in a mount namespace whose users are those of `passwd`.
fn with_users(passwd: &str, directory: &Path, arguments: &str) -> Helper {
    let file = directory.join("passwd");
    fs::write(&file, passwd).unwrap();
    let socket = directory.join("s");
    let script =
        format!("mount --bind {} /etc/passwd && exec {HELPER} -k {} {arguments}", file.display(), socket.display());
    let mut command = Launcher::new("unshare");
    command.args(["--mount", "--propagation=private", "sh", "-c", &script]);
    Helper::start(&mut command, &socket)
}

#[test]
fn helper_started_as_root_becomes_the_default_user_where_it_exists() {
    require_root!();
    const ROOT: &str = "root:x:0:0::/:/bin/sh\n";
    const OWN: &str = "root:x:0:0::/:/bin/sh\nqemu-pr-helper:x:64123:64124::/:/bin/false\n";
    for (passwd, arguments, uid, gid) in [
        (OWN, "", 64123, 64124),
        (OWN, "-g 7", 64123, 7),
        (OWN, "-u root", 0, 0),
        (OWN, "-u 4294967295", 0, 0),
        (OWN, "-u 65533", 65533, 0),
        (ROOT, "", 0, 0),
    ] {
        let directory = directory();
        let running = with_users(passwd, directory.path(), arguments);
        let _clients: Vec<_> = (0..8).map(|_| connect(&running.socket)).collect();
        for thread in running.process().threads() {
            assert_eq!((thread["Uid"].clone(), thread["Gid"].clone()), (ids(uid), ids(gid)), "{arguments:?}");
            assert_eq!((thread["CapEff"].as_str(), thread["Seccomp"].as_str()), (SYS_RAWIO, "2"), "{arguments:?}");
        }
        let socket = running.socket.clone();
        assert_eq!(running.end_by(Signal::TERM).code(), Some(0));
        assert!(!socket.exists());
    }
}

#[test]
fn helper_that_stays_root_says_so_when_it_is_verbose() {
    require_root!();
    let directory = directory();
    let log = directory.path().join("log");
    let arguments = format!("-v 2>{}", log.display());
    let running = with_users("root:x:0:0::/:/bin/sh\n", directory.path(), &arguments);
    let lines = fs::read_to_string(&log).unwrap();
    assert!(lines.contains("create the user qemu-pr-helper, or name one with -u"), "{lines}");
    assert_eq!(running.end_by(Signal::TERM).code(), Some(0));
}

#[test]
fn sandbox_can_be_switched_off() {
    require_root!();
    let directory = directory();
    let socket = directory.path().join("s");
    let running = Helper::start(helper(["--sandbox=off", "-k"]).arg(&socket), &socket);
    assert!(running.process().threads().iter().all(|thread| thread["Seccomp"] == "0"));
    assert_eq!(running.end_by(Signal::TERM).code(), Some(0));
}

#[test]
fn monitor_has_the_rights_of_its_work_and_no_others() {
    require_root!();
    let directory = directory();
    let socket = directory.path().join("s");
    // A descriptor that is inherited, as libvirt's and systemd's are.
    let mut command = helper(["-u", "nobody", "-k"]);
    command.arg(&socket).redirect("7</etc/passwd");
    // Of its environment, where libraries are and where multipathd listens.
    command.env_clear().env("LD_LIBRARY_PATH", "/x").env("OTHER", "y").env("MULTIPATH_SOCKET_NAME", "/z");
    let running = Helper::start(&mut command, &socket);
    assert!(fs::read_link(running.process().path("fd/7")).is_ok_and(|file| file.ends_with("passwd")));
    let monitor = running.monitor().expect("there is a monitor");
    let threads = eventually("the monitor to be ready", || {
        let threads = monitor.threads();
        (threads.first()?.get("NoNewPrivs")? == "1").then_some(threads)
    });
    let [thread] = &threads[..] else { panic!("the monitor has {} threads", threads.len()) };
    for (set, capabilities) in
        [("CapPrm", MONITOR), ("CapEff", MONITOR), ("CapBnd", MONITOR), ("CapInh", NONE), ("CapAmb", NONE)]
    {
        assert_eq!(thread[set], capabilities, "{set}");
    }
    assert_eq!((thread["Uid"].clone(), thread["Groups"].as_str()), (ids(0), ""));
    // The sandbox is for the process that reads what clients send.
    assert_eq!(thread["Seccomp"], "0");
    let descriptors: Vec<_> = fs::read_dir(monitor.path("fd"))
        .unwrap()
        .map(|entry| fs::read_link(entry.unwrap().path()).unwrap().display().to_string())
        .collect();
    let kept = [Path::new("/dev/null"), &socket, directory.path()];
    for file in &descriptors {
        assert!(kept.contains(&Path::new(file)) || file.starts_with("socket:["), "{descriptors:?}");
    }
    assert_eq!(fs::read_link(monitor.path("cwd")).unwrap().to_str(), Some("/"));
    let environment = fs::read_to_string(monitor.path("environ")).unwrap();
    assert_eq!(environment, "LD_LIBRARY_PATH=/x\0MULTIPATH_SOCKET_NAME=/z\0");
    assert_eq!(running.end_by(Signal::TERM).code(), Some(0));
}

#[test]
fn the_monitor_outlives_signals_to_the_group() {
    require_root!();
    let directory = directory();
    let socket = directory.path().join("s");
    let running = Helper::start(&mut helper_at(&socket), &socket);
    let monitor = running.monitor().expect("there is a monitor");
    // It has its name a moment before it keeps signals away.
    eventually("the monitor to be ready", || (monitor.threads().first()?.get("NoNewPrivs")? == "1").then_some(()));
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2] {
        monitor.signal(signal);
    }
    assert_eq!(running.monitor(), Some(monitor));
    assert_eq!(running.end_by(Signal::QUIT).code(), None);
    wait_until_removed(&socket);
}

#[test]
fn helper_with_the_capability_alone_serves_without_a_monitor() {
    require_root!();
    let directory = directory();
    let socket = directory.path().join("s");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = helper_at(&socket);
    command.wrapped_by(common::WITH_ONE_CAPABILITY);
    let running = Helper::start(&mut command, &socket);
    assert_eq!(Process::with_argument(&socket), [running.process()]);
    for thread in running.process().threads() {
        assert_eq!((thread["CapPrm"].as_str(), thread["CapEff"].as_str()), (SYS_RAWIO, SYS_RAWIO));
        assert_eq!((thread["CapInh"].as_str(), thread["CapAmb"].as_str()), (NONE, NONE));
        assert_eq!(thread["NoNewPrivs"], "1");
    }
    assert_eq!(running.end_by(Signal::TERM).code(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn start_without_the_capability_fails() {
    require_root!();
    let directory = directory();
    let socket = directory.path().join("s");
    let mut command = helper(["-u", "nobody", "-k"]);
    command.arg(&socket).wrapped_by(["setpriv", "--bounding-set=-sys_rawio"]);
    let (code, out, err) = command.outcome();
    let expected = "qemu-pr-helper: Failed to drop privileges: Operation not permitted\n";
    assert_eq!((code, out.as_str(), err.as_str()), (Some(1), "", expected));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    wait_until_unused(&socket);
}

#[test]
fn soft_limit_on_descriptors_becomes_the_hard_limit() {
    require_root!();
    let directory = directory();
    let socket = directory.path().join("s");
    let mut command = helper_at(&socket);
    command.shell("ulimit -Sn 100 && ulimit -Hn 2000");
    let running = Helper::start(&mut command, &socket);
    assert_eq!(open_files(running.process()), ["2000", "2000"]);
    // The monitor has what libmpathpersist asks for in its workers, if that may be had (CAP_SYS_RESOURCE).
    let ours = &Process::new(std::process::id()).threads()[0]["CapEff"];
    let permitted = u64::from_str_radix(ours, 16).unwrap() & (1 << 24) != 0;
    let most = if permitted { fs::read_to_string("/proc/sys/fs/nr_open").unwrap() } else { "2000".to_owned() };
    let monitor = running.monitor().expect("there is a monitor");
    let expected = [most.trim(); 2];
    eventually("the monitor's limit", || (open_files(monitor) == expected).then_some(()));
    assert_eq!(running.end_by(Signal::TERM).code(), Some(0));
}

/// The soft and the hard limit.
fn open_files(process: Process) -> Vec<String> {
    let limits = fs::read_to_string(process.path("limits")).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    line.split_whitespace().take(2).map(str::to_owned).collect()
}
