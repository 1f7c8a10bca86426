//! What a power cut leaves: whatever was fsynced, and of the rest any part.
//!
//! [`Recorder`] writes down what the system calls of a process do to the files below a directory. [`Disk`] takes these
//! [`Effect`]s and knows which of them are durable. It promises no more than POSIX does: fsync(2) of a file makes its bytes
//! durable but not its name; fsync(2) of a directory, the names in it but not its own; of what was not fsynced, each name
//! that came or went and each sector that was written may be durable or not, whatever order they came in. Real file
//! systems keep more order than that.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::libc;

use crate::tracer::Call;

/// A file, whatever it is called.
pub type FileId = usize;

/// What disks write at a time: a sector is written or not.
const SECTOR: usize = 512;

/// What a system call did.
#[derive(Clone, PartialEq, Eq)]
pub enum Effect {
    /// A new file, or a further name of a file.
    Name(PathBuf, FileId),
    /// A file has one name in place of another in the same directory.
    Rename(PathBuf, PathBuf, FileId),
    /// A new directory.
    Directory(PathBuf),
    /// A name is gone.
    Remove(PathBuf),
    /// Bytes were written at an offset.
    Write(FileId, usize, Vec<u8>),
    /// A file has this length now.
    Length(FileId, usize),
    /// The bytes of a file are durable.
    Sync(FileId),
    /// The names in a directory are durable.
    SyncDirectory(PathBuf),
    /// The process said something.
    Said(String),
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
            Self::Said(text) => write!(f, "say {text:?}"),
        }
    }
}

/// Files and directories by their paths; `None` is a directory.
pub type Tree = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// Everything below `root`.
pub fn tree(root: &Path) -> Tree {
    let (mut found, mut to_visit) = (Tree::new(), vec![root.to_owned()]);
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
            found.insert(path.strip_prefix(root).expect("it is below").to_owned(), content);
        }
    }
    found
}

/// Makes these files and directories below `root`.
pub fn put(tree: &Tree, root: &Path) {
    for (path, content) in tree {
        match content {
            None => fs::create_dir(root.join(path)).expect("a directory"),
            Some(content) => fs::write(root.join(path), content).expect("a file"),
        }
    }
}

/// Turns system calls into effects. Paths are relative to the root.
#[derive(Debug)]
pub struct Recorder {
    root: PathBuf,
    files: HashMap<(u64, u64), FileId>,
    /// What was there before.
    pub initial: Vec<Effect>,
    /// What was done since.
    pub effects: Vec<Effect>,
    /// Of the call that is being made: whether there was something at the path, the bytes, and where they go.
    before: (bool, Vec<u8>, usize),
}

impl Recorder {
    /// What is done below `root` from now on.
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
        self.known(&fs::metadata(path).expect("it is there"))
    }

    fn known(&mut self, metadata: &fs::Metadata) -> FileId {
        let next = self.files.len();
        *self.files.entry((metadata.dev(), metadata.ino())).or_insert(next)
    }

    /// The path below the root, `None` if it is elsewhere.
    fn below(&self, path: &Path) -> Option<PathBuf> {
        path.strip_prefix(&self.root).ok().map(Path::to_owned)
    }

    /// The path of the file of the call's first argument.
    fn descriptor(&self, call: &Call) -> Option<PathBuf> {
        self.below(&call.descriptor(call.arguments[0] as i32))
    }

    /// Looks at a call that is about to be made.
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
                // The index of SQLite's log is made anew after a restart, whatever is in it.
                let known = self.below(&path).is_none() || path.to_string_lossy().ends_with("-shm");
                assert!(!shared || known, "what is written to {} through memory is not recorded", path.display());
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

    /// Looks at what a call has done.
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
                    let metadata = call.file(i32::try_from(result).expect("a descriptor")).expect("it is open");
                    // The inode of a file that is gone may come again.
                    self.files.remove(&(metadata.dev(), metadata.ino()));
                    Effect::Name(below, self.new_file(&metadata))
                })
            }
            libc::SYS_openat => {
                assert!(third & libc::O_TRUNC as u64 == 0, "files are not cut by opening them");
                None
            }
            libc::SYS_write if first == 1 => Some(Effect::Said(String::from_utf8(bytes).expect("text"))),
            libc::SYS_write | libc::SYS_pwrite64 => self.descriptor(call).map(|_| {
                bytes.truncate(usize::try_from(result).expect("a few bytes"));
                Effect::Write(self.open_file(call), offset, bytes)
            }),
            libc::SYS_ftruncate => self
                .descriptor(call)
                .map(|_| Effect::Length(self.open_file(call), usize::try_from(second).expect("a small file"))),
            libc::SYS_fsync | libc::SYS_fdatasync => self.descriptor(call).map(|path| {
                let metadata = call.file(first as i32).expect("it is open");
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
                assert_eq!(from.parent(), to.parent(), "only names in one directory are changed");
                self.below(&from).zip(named(self, to)).map(|(from, (to, file))| Effect::Rename(from, to, file))
            }
            _ => None,
        };
        self.effects.extend(effect);
    }

    fn new_file(&mut self, metadata: &fs::Metadata) -> FileId {
        // Those that were forgotten keep their numbers.
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
        let metadata = call.file(call.arguments[0] as i32).expect("it is open");
        self.known(&metadata)
    }
}

/// Chance, the same each time for the same seed.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// A seed of its own for each number.
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

/// What becomes of that which was not fsynced.
#[derive(Clone, Debug)]
pub enum Rest {
    /// All of it is lost.
    Lost,
    /// All of it is kept, as when the process is killed.
    Kept,
    /// Bytes are kept, and names are lost.
    Bytes,
    /// Names are kept, and bytes are lost.
    Names,
    /// Each is kept or lost, by chance; some by many eighths.
    Chance(Chance, u64),
}

impl Rest {
    fn keeps_name(&mut self) -> bool {
        match self {
            Self::Kept | Self::Names => true,
            Self::Lost | Self::Bytes => false,
            Self::Chance(chance, eighths) => chance.next() % 8 < *eighths,
        }
    }

    fn keeps_sector(&mut self) -> bool {
        match self {
            Self::Kept | Self::Bytes => true,
            Self::Lost | Self::Names => false,
            Self::Chance(chance, eighths) => chance.next() % 8 < *eighths,
        }
    }
}

/// A disk to which effects happen.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// The names that are durable; `None` is a directory.
    names: BTreeMap<PathBuf, Option<FileId>>,
    /// What became of names since, in order.
    new_names: Vec<Effect>,
    /// The bytes of files that are durable.
    files: HashMap<FileId, Vec<u8>>,
    /// What became of bytes since, in order.
    new_bytes: Vec<Effect>,
}

impl Disk {
    /// Everything that these effects made is durable.
    pub fn with(effects: &[Effect]) -> Self {
        let mut disk = Self::default();
        effects.iter().for_each(|effect| disk.add(effect));
        let names = std::mem::take(&mut disk.new_names);
        names.iter().for_each(|effect| rename(&mut disk.names, effect));
        for effect in std::mem::take(&mut disk.new_bytes) {
            write(&mut disk.files, &effect, &mut Rest::Kept);
        }
        disk
    }

    /// Something happens.
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
                    write(&mut self.files, &effect, &mut Rest::Kept);
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
            Effect::Said(_) => {}
        }
    }

    /// What is there when the power comes back.
    pub fn after_power_cut(&self, mut rest: Rest) -> Tree {
        let (mut names, mut files) = (self.names.clone(), self.files.clone());
        for effect in &self.new_names {
            if rest.keeps_name() {
                rename(&mut names, effect);
            }
        }
        self.new_bytes.iter().for_each(|effect| write(&mut files, effect, &mut rest));
        let mut tree = Tree::new();
        // A directory comes before what is in it, and what is in one that is lost is lost too.
        for (path, file) in names {
            let directory = path.parent().expect("it is below the root");
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

fn write(files: &mut HashMap<FileId, Vec<u8>>, effect: &Effect, rest: &mut Rest) {
    match effect {
        Effect::Write(file, offset, bytes) => {
            let content = files.entry(*file).or_default();
            let mut at = *offset;
            while at < offset + bytes.len() {
                let end = (at / SECTOR + 1).saturating_mul(SECTOR).min(offset + bytes.len());
                if rest.keeps_sector() {
                    if content.len() < end {
                        content.resize(end, 0);
                    }
                    content[at..end].copy_from_slice(&bytes[at - offset..end - offset]);
                }
                at = end;
            }
        }
        Effect::Length(file, length) if rest.keeps_sector() => {
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
    fn what_was_synced_is_kept_and_the_rest_is_not() {
        let mut disk = Disk::default();
        effects().iter().for_each(|effect| disk.add(effect));
        // Its bytes are durable, its name is not.
        assert_eq!(disk.after_power_cut(Rest::Lost), Tree::new());
        assert_eq!(disk.after_power_cut(Rest::Kept), tree_of(&[("a", Some(b"old")), ("d", None)]));
        disk.add(&Effect::SyncDirectory("".into()));
        disk.add(&Effect::Name("d/b".into(), 0));
        disk.add(&Effect::Write(0, 1, b"ew".to_vec()));
        assert_eq!(disk.after_power_cut(Rest::Lost), tree_of(&[("a", Some(b"old")), ("d", None)]));
        let names = tree_of(&[("a", Some(b"old")), ("d", None), ("d/b", Some(b"old"))]);
        assert_eq!(disk.after_power_cut(Rest::Names), names);
        assert_eq!(disk.after_power_cut(Rest::Bytes), tree_of(&[("a", Some(b"oew")), ("d", None)]));
        disk.add(&Effect::Remove("a".into()));
        disk.add(&Effect::Sync(0));
        assert_eq!(disk.after_power_cut(Rest::Lost), tree_of(&[("a", Some(b"oew")), ("d", None)]));
    }

    #[test]
    fn what_is_in_a_directory_that_is_lost_is_lost() {
        let mut disk = Disk::default();
        disk.add(&Effect::Directory("d".into()));
        disk.add(&Effect::Name("d/b".into(), 0));
        disk.add(&Effect::SyncDirectory("d".into()));
        assert_eq!(disk.after_power_cut(Rest::Lost), Tree::new());
        assert_eq!(disk.after_power_cut(Rest::Names), tree_of(&[("d", None), ("d/b", Some(b""))]));
    }

    #[test]
    fn a_long_write_may_be_torn() {
        let mut disk = Disk::with(&[Effect::Name("a".into(), 0), Effect::Write(0, 0, vec![1; 4 * SECTOR])]);
        disk.add(&Effect::Write(0, 0, vec![2; 4 * SECTOR]));
        let torn = |seed| {
            let tree = disk.after_power_cut(Rest::Chance(Chance::new(seed), 4));
            let content = tree.get(Path::new("a")).cloned().flatten().expect("it is there");
            content.chunks(SECTOR).map(|sector| sector[0]).collect::<Vec<_>>()
        };
        assert!((0..20).map(torn).any(|sectors| sectors.contains(&1) && sectors.contains(&2)));
    }
}
