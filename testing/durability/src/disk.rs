//! The contents of a disk after a power cut: all synced data, and any part of the rest.
//!
//! [`Recorder`] records the [`Effect`]s of system calls on the files below a directory. [`Disk`] applies the effects, and
//! knows which of them are durable. It promises no more than POSIX does. fsync(2) of a file makes its bytes durable but not
//! its name. fsync(2) of a directory makes the names in it durable but not its own name. Without fsync(2), each change of a
//! name and each written sector may be durable or not, in any order. Real file systems keep more order.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::libc;

use crate::tracer::Call;

/// A file, under any name.
pub type FileId = usize;

/// The unit of writing, in bytes: a disk writes a sector completely or not at all.
const SECTOR: usize = 512;

/// The effect of a system call.
#[derive(Clone, PartialEq, Eq)]
pub enum Effect {
    /// A new file, or a further name of a file.
    Name(PathBuf, FileId),
    /// A file has a new name in the same directory.
    Rename(PathBuf, PathBuf, FileId),
    /// A new directory.
    Directory(PathBuf),
    /// A name was removed.
    Remove(PathBuf),
    /// Bytes were written at an offset.
    Write(FileId, usize, Vec<u8>),
    /// A file has a new length.
    Length(FileId, usize),
    /// The bytes of a file are durable.
    Sync(FileId),
    /// The names in a directory are durable.
    SyncDirectory(PathBuf),
    /// The process wrote to its standard output.
    Output(String),
}

impl fmt::Debug for Effect {
    /// Without the bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(path, file) => write!(f, "{} names file {file}", path.display()),
            Self::Rename(from, to, file) => write!(f, "{} is {}, file {file}", from.display(), to.display()),
            Self::Directory(path) => write!(f, "new directory {}", path.display()),
            Self::Remove(path) => write!(f, "remove {}", path.display()),
            Self::Write(file, offset, bytes) => write!(f, "write {} bytes at {offset} of file {file}", bytes.len()),
            Self::Length(file, length) => write!(f, "file {file} has {length} bytes"),
            Self::Sync(file) => write!(f, "sync file {file}"),
            Self::SyncDirectory(path) => write!(f, "sync directory {:?}", path.display()),
            Self::Output(text) => write!(f, "output {text:?}"),
        }
    }
}

/// Files and directories by their paths. `None` is a directory.
pub type Tree = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// Everything below `root`.
pub fn tree(root: &Path) -> Tree {
    let (mut tree, mut to_visit) = (Tree::new(), vec![root.to_owned()]);
    while let Some(directory) = to_visit.pop() {
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            let content = match path.is_dir() {
                true => None,
                false => Some(fs::read(&path).expect("a file")),
            };
            if content.is_none() {
                to_visit.push(path.clone());
            }
            tree.insert(path.strip_prefix(root).expect("the path is below the root").to_owned(), content);
        }
    }
    tree
}

/// Creates these files and directories below `root`.
pub fn create(tree: &Tree, root: &Path) {
    for (path, content) in tree {
        match content {
            None => fs::create_dir(root.join(path)).expect("a directory"),
            Some(content) => fs::write(root.join(path), content).expect("a file"),
        }
    }
}

/// Records system calls as effects. Paths are relative to the root.
#[derive(Debug)]
pub struct Recorder {
    root: PathBuf,
    files: HashMap<(u64, u64), FileId>,
    /// The effects that create the initial contents.
    pub initial: Vec<Effect>,
    /// The effects since then.
    pub effects: Vec<Effect>,
    /// State before the current call: whether the path existed, the bytes to write, and their offset.
    before: (bool, Vec<u8>, usize),
}

impl Recorder {
    /// Starts to record the effects below `root`.
    pub fn new(root: &Path) -> Self {
        let before = (false, Vec::new(), 0);
        let mut recorder =
            Self { root: root.to_owned(), files: HashMap::new(), initial: Vec::new(), effects: Vec::new(), before };
        for (path, content) in tree(root) {
            let effect = match content {
                None => vec![Effect::Directory(path)],
                Some(content) => {
                    let file = recorder.identify(&root.join(&path));
                    vec![Effect::Name(path, file), Effect::Write(file, 0, content)]
                }
            };
            recorder.initial.extend(effect);
        }
        recorder
    }

    fn identify(&mut self, path: &Path) -> FileId {
        self.known(&fs::metadata(path).expect("the file exists"))
    }

    fn known(&mut self, metadata: &fs::Metadata) -> FileId {
        let next = self.files.len();
        *self.files.entry((metadata.dev(), metadata.ino())).or_insert(next)
    }

    /// The path relative to the root. `None` if it is elsewhere.
    fn below(&self, path: &Path) -> Option<PathBuf> {
        path.strip_prefix(&self.root).ok().map(Path::to_owned)
    }

    /// The path of the file of the call's first argument.
    fn descriptor(&self, call: &Call) -> Option<PathBuf> {
        self.below(&call.descriptor(call.arguments[0] as i32))
    }

    /// Records the state before a call.
    pub fn before(&mut self, call: &Call) {
        let [first, address, length, offset, ..] = call.arguments;
        self.before = match call.number {
            libc::SYS_openat => (call.path(Some(0), 1).symlink_metadata().is_ok(), Vec::new(), 0),
            libc::SYS_open | libc::SYS_creat => panic!("open(2) and creat(2) are not recorded"),
            libc::SYS_write | libc::SYS_pwrite64 if first == 1 || self.descriptor(call).is_some() => {
                let offset = match call.number {
                    libc::SYS_pwrite64 => usize::try_from(offset).expect("a small file"),
                    _ => call.position(first as i32),
                };
                (true, call.memory(address, usize::try_from(length).expect("a few bytes")), offset)
            }
            libc::SYS_mmap => {
                let [_, _, protection, flags, descriptor, _] = call.arguments;
                let shared = flags & libc::MAP_SHARED as u64 != 0 && protection & libc::PROT_WRITE as u64 != 0;
                let path = call.descriptor(descriptor as i32);
                // SQLite rebuilds the index of its log after a restart, whatever its contents.
                let known = self.below(&path).is_none() || path.to_string_lossy().ends_with("-shm");
                assert!(!shared || known, "writes to {} through memory are not recorded", path.display());
                (true, Vec::new(), 0)
            }
            libc::SYS_writev
            | libc::SYS_pwritev
            | libc::SYS_pwritev2
            | libc::SYS_fallocate
            | libc::SYS_truncate
            | libc::SYS_rmdir
            | libc::SYS_symlink
            | libc::SYS_symlinkat
            | libc::SYS_copy_file_range
            | libc::SYS_sendfile
            | libc::SYS_sync_file_range
            | libc::SYS_io_uring_setup => {
                panic!("system call {} is not recorded", call.number)
            }
            _ => (true, Vec::new(), 0),
        };
    }

    /// Records the effect of a call.
    pub fn after(&mut self, call: &Call, result: i64) {
        if result < 0 {
            return;
        }
        let (was_there, mut bytes, offset) = std::mem::take(&mut self.before);
        let [first, second, third, ..] = call.arguments;
        let named =
            |recorder: &mut Self, path: PathBuf| recorder.below(&path).map(|below| (below, recorder.identify(&path)));
        let effect = match call.number {
            libc::SYS_openat if !was_there => {
                let path = call.path(Some(0), 1);
                self.below(&path).map(|below| {
                    let metadata =
                        call.metadata(i32::try_from(result).expect("a descriptor")).expect("the descriptor is open");
                    // The number of a removed file's inode may be used again.
                    self.files.remove(&(metadata.dev(), metadata.ino()));
                    Effect::Name(below, self.new_file(&metadata))
                })
            }
            libc::SYS_openat => {
                assert!(third & libc::O_TRUNC as u64 == 0, "O_TRUNC is not recorded");
                None
            }
            libc::SYS_write if first == 1 => Some(Effect::Output(String::from_utf8(bytes).expect("text"))),
            libc::SYS_write | libc::SYS_pwrite64 => self.descriptor(call).map(|_| {
                bytes.truncate(usize::try_from(result).expect("a few bytes"));
                Effect::Write(self.open_file(call), offset, bytes)
            }),
            libc::SYS_ftruncate => self
                .descriptor(call)
                .map(|_| Effect::Length(self.open_file(call), usize::try_from(second).expect("a small file"))),
            libc::SYS_fsync | libc::SYS_fdatasync => self.descriptor(call).map(|path| {
                let metadata = call.metadata(first as i32).expect("the descriptor is open");
                if metadata.is_dir() { Effect::SyncDirectory(path) } else { Effect::Sync(self.known(&metadata)) }
            }),
            libc::SYS_mkdir => self.below(&call.path(None, 0)).map(Effect::Directory),
            libc::SYS_mkdirat => self.below(&call.path(Some(0), 1)).map(Effect::Directory),
            libc::SYS_unlink => self.below(&call.path(None, 0)).map(Effect::Remove),
            libc::SYS_unlinkat => self.below(&call.path(Some(0), 1)).map(Effect::Remove),
            libc::SYS_link => named(self, call.path(None, 1)).map(|(to, file)| Effect::Name(to, file)),
            libc::SYS_linkat => named(self, call.path(Some(2), 3)).map(|(to, file)| Effect::Name(to, file)),
            libc::SYS_rename | libc::SYS_renameat | libc::SYS_renameat2 => {
                let (from, to) = match call.number {
                    libc::SYS_rename => (call.path(None, 0), call.path(None, 1)),
                    _ => (call.path(Some(0), 1), call.path(Some(2), 3)),
                };
                assert_eq!(from.parent(), to.parent(), "renames between directories are not recorded");
                self.below(&from).zip(named(self, to)).map(|(from, (to, file))| Effect::Rename(from, to, file))
            }
            _ => None,
        };
        self.effects.extend(effect);
    }

    fn new_file(&mut self, metadata: &fs::Metadata) -> FileId {
        // The numbers of forgotten files are not used again.
        let next = self.files.values().max().map_or(0, |last| last + 1).max(self.count());
        self.files.insert((metadata.dev(), metadata.ino()), next);
        next
    }

    fn count(&self) -> usize {
        let names = self.initial.iter().chain(&self.effects);
        names
            .filter_map(|effect| if let Effect::Name(_, file) = effect { Some(file + 1) } else { None })
            .max()
            .unwrap_or(0)
    }

    fn open_file(&mut self, call: &Call) -> FileId {
        let metadata = call.metadata(call.arguments[0] as i32).expect("the descriptor is open");
        self.known(&metadata)
    }
}

/// A generator of random numbers with a fixed seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator with a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Xorshift.
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// The fate of data without fsync(2).
#[derive(Clone, Debug)]
pub enum Unsynced {
    /// All of it is lost.
    Lost,
    /// All of it is durable, as after a kill of the process.
    Durable,
    /// Bytes are durable, and names are lost.
    BytesDurable,
    /// Names are durable, and bytes are lost.
    NamesDurable,
    /// Each name and sector is durable with a probability of so many eighths.
    Random(Random, u64),
}

impl Unsynced {
    fn keeps_name(&mut self) -> bool {
        match self {
            Self::Durable | Self::NamesDurable => true,
            Self::Lost | Self::BytesDurable => false,
            Self::Random(random, eighths) => random.next() % 8 < *eighths,
        }
    }

    fn keeps_sector(&mut self) -> bool {
        match self {
            Self::Durable | Self::BytesDurable => true,
            Self::Lost | Self::NamesDurable => false,
            Self::Random(random, eighths) => random.next() % 8 < *eighths,
        }
    }
}

/// A disk that effects are applied to.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// The durable names. `None` is a directory.
    names: BTreeMap<PathBuf, Option<FileId>>,
    /// The later effects on names, in order.
    new_names: Vec<Effect>,
    /// The durable bytes of files.
    files: HashMap<FileId, Vec<u8>>,
    /// The later effects on bytes, in order.
    new_bytes: Vec<Effect>,
}

impl Disk {
    /// A disk on which all of these effects are durable.
    pub fn with(effects: &[Effect]) -> Self {
        let mut disk = Self::default();
        effects.iter().for_each(|effect| disk.add(effect));
        let names = std::mem::take(&mut disk.new_names);
        names.iter().for_each(|effect| rename(&mut disk.names, effect));
        for effect in std::mem::take(&mut disk.new_bytes) {
            write(&mut disk.files, &effect, &mut Unsynced::Durable);
        }
        disk
    }

    /// Applies an effect.
    pub fn add(&mut self, effect: &Effect) {
        match effect {
            Effect::Name(..) | Effect::Rename(..) | Effect::Directory(_) | Effect::Remove(_) => {
                self.new_names.push(effect.clone());
            }
            Effect::Write(..) | Effect::Length(..) => self.new_bytes.push(effect.clone()),
            Effect::Sync(file) => {
                let (synced, left) = std::mem::take(&mut self.new_bytes).into_iter().partition(|effect| {
                    matches!(effect, Effect::Write(written, ..) | Effect::Length(written, _) if written == file)
                });
                self.new_bytes = left;
                for effect in Vec::<Effect>::from_iter::<Vec<_>>(synced) {
                    write(&mut self.files, &effect, &mut Unsynced::Durable);
                }
            }
            Effect::SyncDirectory(directory) => {
                let (synced, left) = std::mem::take(&mut self.new_names).into_iter().partition(|effect| {
                    let (Effect::Name(path, _)
                    | Effect::Rename(path, ..)
                    | Effect::Directory(path)
                    | Effect::Remove(path)) = effect
                    else {
                        return false;
                    };
                    path.parent() == Some(directory)
                });
                self.new_names = left;
                Vec::<Effect>::from_iter::<Vec<_>>(synced).iter().for_each(|effect| rename(&mut self.names, effect));
            }
            Effect::Output(_) => {}
        }
    }

    /// The contents when the power comes back.
    pub fn after_power_cut(&self, mut unsynced: Unsynced) -> Tree {
        let (mut names, mut files) = (self.names.clone(), self.files.clone());
        for effect in &self.new_names {
            if unsynced.keeps_name() {
                rename(&mut names, effect);
            }
        }
        self.new_bytes.iter().for_each(|effect| write(&mut files, effect, &mut unsynced));
        let mut tree = Tree::new();
        // A directory precedes its contents in this order. The contents of a lost directory are lost too.
        for (path, file) in names {
            let directory = path.parent().expect("the path is below the root");
            if directory == Path::new("") || matches!(tree.get(directory), Some(None)) {
                let content = file.map(|file| files.get(&file).cloned().unwrap_or_default());
                tree.insert(path, content);
            }
        }
        tree
    }
}

fn rename(names: &mut BTreeMap<PathBuf, Option<FileId>>, effect: &Effect) {
    match effect {
        Effect::Name(path, file) => _ = names.insert(path.clone(), Some(*file)),
        Effect::Directory(path) => _ = names.insert(path.clone(), None),
        Effect::Remove(path) => _ = names.remove(path),
        Effect::Rename(from, to, file) => {
            names.remove(from);
            names.insert(to.clone(), Some(*file));
        }
        _ => {}
    }
}

fn write(files: &mut HashMap<FileId, Vec<u8>>, effect: &Effect, unsynced: &mut Unsynced) {
    match effect {
        Effect::Write(file, offset, bytes) => {
            let content = files.entry(*file).or_default();
            let mut at = *offset;
            while at < offset + bytes.len() {
                let end = (at / SECTOR + 1).saturating_mul(SECTOR).min(offset + bytes.len());
                if unsynced.keeps_sector() {
                    if content.len() < end {
                        content.resize(end, 0);
                    }
                    content[at..end].copy_from_slice(&bytes[at - offset..end - offset]);
                }
                at = end;
            }
        }
        Effect::Length(file, length) if unsynced.keeps_sector() => {
            files.entry(*file).or_default().resize(*length, 0);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effects() -> Vec<Effect> {
        vec![
            Effect::Name("a".into(), 0),
            Effect::Write(0, 0, b"old".to_vec()),
            Effect::Sync(0),
            Effect::Directory("d".into()),
        ]
    }

    fn tree_of(entries: &[(&str, Option<&[u8]>)]) -> Tree {
        entries.iter().map(|(path, content)| (PathBuf::from(path), content.map(<[u8]>::to_vec))).collect()
    }

    #[test]
    fn synced_bytes_and_names_survive_and_others_do_not() {
        let mut disk = Disk::default();
        effects().iter().for_each(|effect| disk.add(effect));
        // The bytes are durable, and the name is not.
        assert_eq!(disk.after_power_cut(Unsynced::Lost), Tree::new());
        assert_eq!(disk.after_power_cut(Unsynced::Durable), tree_of(&[("a", Some(b"old")), ("d", None)]));
        disk.add(&Effect::SyncDirectory("".into()));
        disk.add(&Effect::Name("d/b".into(), 0));
        disk.add(&Effect::Write(0, 1, b"ew".to_vec()));
        assert_eq!(disk.after_power_cut(Unsynced::Lost), tree_of(&[("a", Some(b"old")), ("d", None)]));
        let names = tree_of(&[("a", Some(b"old")), ("d", None), ("d/b", Some(b"old"))]);
        assert_eq!(disk.after_power_cut(Unsynced::NamesDurable), names);
        assert_eq!(disk.after_power_cut(Unsynced::BytesDurable), tree_of(&[("a", Some(b"oew")), ("d", None)]));
        disk.add(&Effect::Remove("a".into()));
        disk.add(&Effect::Sync(0));
        assert_eq!(disk.after_power_cut(Unsynced::Lost), tree_of(&[("a", Some(b"oew")), ("d", None)]));
    }

    #[test]
    fn contents_of_lost_directory_are_lost() {
        let mut disk = Disk::default();
        disk.add(&Effect::Directory("d".into()));
        disk.add(&Effect::Name("d/b".into(), 0));
        disk.add(&Effect::SyncDirectory("d".into()));
        assert_eq!(disk.after_power_cut(Unsynced::Lost), Tree::new());
        assert_eq!(disk.after_power_cut(Unsynced::NamesDurable), tree_of(&[("d", None), ("d/b", Some(b""))]));
    }

    #[test]
    fn long_write_may_be_torn() {
        let mut disk = Disk::with(&[Effect::Name("a".into(), 0), Effect::Write(0, 0, vec![1; 4 * SECTOR])]);
        disk.add(&Effect::Write(0, 0, vec![2; 4 * SECTOR]));
        let torn = |seed| {
            let tree = disk.after_power_cut(Unsynced::Random(Random::new(seed), 4));
            let content = tree.get(Path::new("a")).cloned().flatten().expect("the file exists");
            content.chunks(SECTOR).map(|sector| sector[0]).collect::<Vec<_>>()
        };
        assert!((0..20).map(torn).any(|sectors| sectors.contains(&1) && sectors.contains(&2)));
    }
}
