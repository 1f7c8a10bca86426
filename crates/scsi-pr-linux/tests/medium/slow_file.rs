//! A file whose writes wait and whose syncs fail when a test says so: a file system in user space (FUSE).

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyWrite, Request, WriteFlags,
};
use tempfile::TempDir;

const LENGTH: usize = 64 << 10;
const FILE: INodeNo = INodeNo(2);
const VALID: Duration = Duration::from_secs(3600);

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    holds_writes: bool,
    held: Vec<(u64, Vec<u8>, ReplyWrite)>,
    failing_syncs: u32,
}

impl State {
    fn write(&mut self, offset: u64, data: &[u8]) {
        self.bytes[offset as usize..][..data.len()].copy_from_slice(data);
    }
}

struct FileSystem(Arc<Mutex<State>>);

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn attributes(inode: INodeNo) -> FileAttr {
    let is_root = inode == INodeNo::ROOT;
    FileAttr {
        ino: inode,
        size: if is_root { 0 } else { LENGTH as u64 },
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if is_root { FileType::Directory } else { FileType::RegularFile },
        perm: 0o700,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for FileSystem {
    fn lookup(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.entry(&VALID, &attributes(FILE), Generation(0));
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&VALID, &attributes(inode));
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = lock(&self.0);
        let rest = state.bytes.get(offset as usize..).unwrap_or_default();
        reply.data(&rest[..rest.len().min(size as usize)]);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = lock(&self.0);
        if state.holds_writes {
            state.held.push((offset, data.to_vec(), reply));
        } else {
            state.write(offset, data);
            reply.written(data.len() as u32);
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut state = lock(&self.0);
        if state.failing_syncs > 0 {
            state.failing_syncs -= 1;
            reply.error(Errno::EIO);
        } else {
            reply.ok();
        }
    }
}

/// The file, until this is dropped.
pub(crate) struct SlowFile {
    state: Arc<Mutex<State>>,
    session: Option<BackgroundSession>,
    directory: TempDir,
}

impl SlowFile {
    /// Needs root and /dev/fuse.
    pub(crate) fn new() -> std::io::Result<Self> {
        let state = Arc::new(Mutex::new(State { bytes: vec![0; LENGTH], ..State::default() }));
        let directory = tempfile::tempdir()?;
        let mut config = Config::default();
        config.mount_options.push(fuser::MountOption::FSName("scsi-pr-test".into()));
        let session = fuser::spawn_mount(FileSystem(Arc::clone(&state)), directory.path(), &config)?;
        Ok(Self { state, session: Some(session), directory })
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("disk")
    }

    /// From now on writes wait.
    pub(crate) fn hold_writes(&self) {
        lock(&self.state).holds_writes = true;
    }

    /// The number of writes that wait.
    pub(crate) fn held_writes(&self) -> usize {
        lock(&self.state).held.len()
    }

    /// Carries out the writes that wait.
    pub(crate) fn release_writes(&self) {
        let mut state = lock(&self.state);
        state.holds_writes = false;
        for (offset, data, reply) in std::mem::take(&mut state.held) {
            state.write(offset, &data);
            reply.written(data.len() as u32);
        }
    }

    /// The next syncs fail, and those after them succeed.
    pub(crate) fn fail_syncs(&self, number: u32) {
        lock(&self.state).failing_syncs = number;
    }
}

impl Drop for SlowFile {
    fn drop(&mut self) {
        // A process that waits for a write could not be killed.
        self.release_writes();
        drop(self.session.take());
    }
}
