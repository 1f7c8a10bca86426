//! Files whose ioctl does not return until the benchmark releases it: they stand for disks that hang.
//!
//! A file system in user space (FUSE) in this process. Once its files are open it is detached from the file tree, so
//! nothing stays mounted however this process ends: with its last thread the kernel takes the connection for aborted
//! and every ioctl that hangs returns.

use std::ffi::OsStr;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context, Result};
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, IoctlFlags,
    ReplyAttr, ReplyEntry, ReplyIoctl, Request,
};
use rustix::mount::{UnmountFlags, unmount};

/// The validity of a file's attributes in the kernel: practically for ever.
const KEEP: Duration = Duration::from_secs(u32::MAX as u64);

/// The ioctls that hang.
#[derive(Default)]
struct Held {
    /// Whether ioctls are to hang, or to be refused at once.
    holding: bool,
    ioctls: Vec<ReplyIoctl>,
}

/// One directory in which every name made of digits is a file.
struct FileSystem(Arc<Mutex<Held>>);

fn lock(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

fn attributes(inode: INodeNo) -> FileAttr {
    let (kind, perm) =
        if inode == INodeNo::ROOT { (FileType::Directory, 0o700) } else { (FileType::RegularFile, 0o600) };
    FileAttr {
        ino: inode,
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 512,
        flags: 0,
    }
}

impl Filesystem for FileSystem {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name.to_str().and_then(|name| name.parse::<u32>().ok()) {
            // The root is inode 1.
            Some(number) => reply.entry(&KEEP, &attributes(INodeNo(u64::from(number) + 2)), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&KEEP, &attributes(inode));
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        let mut held = lock(&self.0);
        if held.holding { held.ioctls.push(reply) } else { reply.error(Errno::ENOTTY) }
    }
}

/// The files, and what hangs in them.
pub(crate) struct BlockingFiles {
    files: Vec<File>,
    held: Arc<Mutex<Held>>,
    _session: BackgroundSession,
}

impl BlockingFiles {
    /// Opens `count` files. Needs root and /dev/fuse.
    pub(crate) fn open(count: usize) -> Result<Self> {
        let held = Arc::new(Mutex::new(Held::default()));
        let directory = tempfile::tempdir()?;
        let mut config = Config::default();
        config.mount_options.push(fuser::MountOption::FSName("scsi-pr-bench".into()));
        let session = fuser::spawn_mount(FileSystem(Arc::clone(&held)), directory.path(), &config)
            .context("mount a FUSE file system (needs root and /dev/fuse)")?;
        let files = (0..count)
            .map(|number| File::options().read(true).write(true).open(directory.path().join(number.to_string())))
            .collect::<Result<_, _>>()
            .context("open the files of the FUSE file system");
        unmount(directory.path(), UnmountFlags::DETACH).context("detach the FUSE file system")?;
        Ok(Self { files: files?, held, _session: session })
    }

    pub(crate) fn files(&self) -> &[File] {
        &self.files
    }

    /// Lets ioctls hang until what it returns is dropped. A process with an ioctl that hangs cannot even be killed, so
    /// it must not be waited for before.
    pub(crate) fn hold(&self) -> Holding<'_> {
        lock(&self.held).holding = true;
        Holding(&self.held)
    }
}

/// While it lives ioctls hang; then all are refused with `ENOTTY`.
pub(crate) struct Holding<'a>(&'a Mutex<Held>);

impl Holding<'_> {
    /// Waits until `count` ioctls hang, or until `timeout`. Returns the number of ioctls that hang.
    pub(crate) fn wait_for(&self, count: usize, timeout: Duration) -> usize {
        let deadline = Instant::now() + timeout;
        loop {
            let hanging = lock(self.0).ioctls.len();
            if hanging >= count || Instant::now() >= deadline {
                return hanging;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        let ioctls = {
            let mut held = lock(self.0);
            held.holding = false;
            std::mem::take(&mut held.ioctls)
        };
        for ioctl in ioctls {
            ioctl.error(Errno::ENOTTY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn an_ioctl_hangs_until_it_is_let_go() {
        let files = match BlockingFiles::open(2) {
            Ok(files) => files,
            // Only root may mount, and not in every container.
            Err(error) => return eprintln!("skipped: {error:#}"),
        };
        let ioctl = |file: &File| rustix::termios::tcgetwinsize(file).err();
        let refused = Some(rustix::io::Errno::NOTTY);
        assert_eq!(ioctl(&files.files()[0]), refused);
        thread::scope(|scope| {
            let held = files.hold();
            let threads: Vec<_> = files.files().iter().map(|file| scope.spawn(move || ioctl(file))).collect();
            assert_eq!(held.wait_for(2, Duration::from_secs(60)), 2);
            assert!(threads.iter().all(|thread| !thread.is_finished()));
            drop(held);
            for thread in threads {
                assert_eq!(thread.join().unwrap(), refused);
            }
        });
        assert_eq!(ioctl(&files.files()[1]), refused);
    }
}
