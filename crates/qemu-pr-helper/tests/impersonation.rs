//! A node of a FUSE file system that claims the number of another device, and does not answer.
//!
//! The test needs root, to mount a file system and to start the helper, and `/dev/fuse`.
#![forbid(unsafe_code)]

mod common;

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use common::{Helper, directory, eventually, helper_at, require_root, skip};
use fuser::{
    BackgroundSession, Config, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, ReplyAttr, ReplyEntry,
    Request,
};
use rustix::fs::{Mode, OFlags, makedev};
use testing_support::command::{action_in, reserve_in};
use testing_support::{Client, Response, null};

/// More than one process needs to fill the queue of a device.
const REQUESTS: usize = 80;

/// The inode of the node.
const NODE: INodeNo = INodeNo(2);

/// Answers to stat(2) on the node that the file system holds back; `None` once it answers.
type Held = Arc<Mutex<Option<Vec<ReplyAttr>>>>;

fn lock(held: &Held) -> MutexGuard<'_, Option<Vec<ReplyAttr>>> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A directory with one character device in it, which has the number of `/dev/null`.
struct FileSystem(Held);

fn attributes(inode: INodeNo) -> FileAttr {
    let kind = if inode == INodeNo::ROOT { FileType::Directory } else { FileType::CharDevice };
    FileAttr {
        ino: inode,
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: 0o777,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: u32::try_from(makedev(1, 3)).unwrap(),
        blksize: 512,
        flags: 0,
    }
}

impl Filesystem for FileSystem {
    fn lookup(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        // The kernel asks for the attributes each time.
        reply.entry(&Duration::ZERO, &attributes(NODE), Generation(0));
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match &mut *lock(&self.0) {
            Some(held) if inode == NODE => held.push(reply),
            _ => reply.attr(&Duration::ZERO, &attributes(inode)),
        }
    }
}

/// Answers every stat(2) when it is dropped, so that no process hangs longer than the test.
struct Release(Held);

impl Drop for Release {
    fn drop(&mut self) {
        let held = lock(&self.0).take();
        held.into_iter().flatten().for_each(|reply| reply.attr(&Duration::ZERO, &attributes(NODE)));
    }
}

fn mount(directory: &Path, held: &Held) -> std::io::Result<BackgroundSession> {
    fuser::spawn_mount(FileSystem(Arc::clone(held)), directory, &Config::default())
}

fn node(directory: &Path) -> OwnedFd {
    rustix::fs::open(directory.join("null"), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

#[test]
fn node_that_claims_the_number_of_a_device_does_not_hold_up_the_device() {
    require_root!();
    let (place, mount_point, held) = (directory(), directory(), Held::new(Mutex::new(Some(Vec::new()))));
    let _session = match mount(mount_point.path(), &held) {
        Ok(session) => session,
        Err(error) => skip!("cannot mount a FUSE file system: {error}"),
    };
    let socket = place.path().join("s");
    let helper = Helper::start(&mut helper_at(&socket), &socket);
    let release = Release(Arc::clone(&held));
    let read_keys = reserve_in(action_in::READ_KEYS, 8192);
    let mut clients: Vec<Client> = (0..REQUESTS).map(|_| Client::open(&socket).unwrap()).collect();
    for client in &mut clients {
        client.send(&read_keys, &[node(mount_point.path()).as_fd()]).unwrap();
    }
    eventually("every request hangs", || lock(&held).as_ref().is_some_and(|held| held.len() == REQUESTS).then_some(()));

    let mut other = Client::open(&socket).unwrap();
    for _ in 0..REQUESTS {
        assert_eq!(other.run(&read_keys, &[], null()).unwrap(), Response::check_condition(0x0b, 0x00, 0x06));
    }
    assert!(clients.iter().all(Client::is_silent));

    drop(release);
    for client in &mut clients {
        assert_eq!(client.response().unwrap(), Response::check_condition(0x0b, 0x00, 0x06));
    }
    drop(helper);
}
