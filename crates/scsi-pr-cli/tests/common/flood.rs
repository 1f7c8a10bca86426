//! A process that floods a server with commands. The test program itself is that process.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use testing_support::{Client, Launcher, Program, eventually};

/// The environment variable with the socket, the disk and the number of connections of [`run`].
const VARIABLE: &str = "FLOOD";

/// The file that tells that every connection has had an answer, next to the socket.
fn ready(socket: &Path) -> PathBuf {
    socket.with_extension("flooded")
}

/// Starts processes that flood `socket` with `cdb` and `list` for `disk`, over so many connections each. Waits until each
/// connection has had an answer.
///
/// The test program has a test named `flood` that calls [`run`].
pub(crate) fn start(socket: &Path, disk: &Path, connections: &[usize], cdb: &[u8; 16], list: &[u8]) -> Vec<Program> {
    let start = |count: &usize| {
        let mut launcher = Launcher::new(std::env::current_exe().unwrap());
        let number = |byte: &u8| byte.to_string();
        let bytes: Vec<_> = cdb.iter().chain(list).map(number).collect();
        let (socket, disk) = (socket.to_str().unwrap(), disk.to_str().unwrap());
        launcher.env(VARIABLE, [socket, disk, &count.to_string(), &bytes.join(" ")].join(","));
        launcher.args(["--ignored", "--exact", "flood"]).spawn()
    };
    let mut processes: Vec<_> = connections.iter().map(start).collect();
    eventually("every connection has had an answer", || {
        for process in &mut processes {
            assert_eq!(process.try_wait(), None, "{}", process.stdout());
        }
        processes
            .iter()
            .all(|process| ready(socket).with_added_extension(process.pid().to_string()).exists())
            .then_some(())
    });
    processes
}

/// Is such a process, if the environment says so. It never ends then.
pub(crate) fn run() {
    let Ok(arguments) = std::env::var(VARIABLE) else { return };
    let arguments: Vec<&str> = arguments.split(',').collect();
    let [socket, disk, count, bytes] = arguments[..] else { panic!("{arguments:?}") };
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let bytes: Vec<u8> = bytes.split(' ').map(|byte| byte.parse().unwrap()).collect();
    let (cdb, list) = bytes.split_first_chunk::<16>().unwrap();
    let disk = File::options().read(true).write(true).open(disk).unwrap();
    let connect = |_| Client::open(Path::new(socket)).unwrap();
    let mut clients: Vec<_> = (0..count.parse().unwrap()).map(connect).collect();
    let mut round = || {
        // Every connection has a command that waits for its answer.
        for client in &mut clients {
            client.send_command(cdb, list, &disk).unwrap();
        }
        clients.iter_mut().for_each(|client| drop(client.response().unwrap()));
    };
    round();
    let ready = ready(Path::new(socket)).with_added_extension(std::process::id().to_string());
    File::create(ready).unwrap();
    loop {
        round();
    }
}
