//! The medium on real files.

mod locks;

use std::fs;
use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// A directory on the file system of the build, which is not in memory.
fn directory() -> TempDir {
    let program = std::env::current_exe().expect("the path of the test program");
    tempfile::tempdir_in(program.parent().expect("its directory")).expect("a directory")
}

fn file(directory: &TempDir, size: u64) -> MediumOptions {
    let path = directory.path().join("disk");
    File::create(&path).and_then(|file| file.set_len(size)).expect("a file");
    MediumOptions::new(path)
}

/// Opens the medium. A process that another test starts has copies of all descriptors until it runs its program, and so
/// keeps the lock of a medium that was just closed.
fn open(options: &MediumOptions) -> FileMedium {
    let options = MediumOptions { lock_timeout: Duration::from_secs(60), ..options.clone() };
    FileMedium::open(&options).expect("the medium opens")
}

fn refusal(options: &MediumOptions) -> String {
    FileMedium::open(options).expect_err("the medium is refused").to_string()
}

#[derive(Clone, Debug)]
enum Step {
    Read,
    Write(u8, Durability),
    Zero(Allocation, Durability),
    Flush,
    Extent,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let durability = || prop_oneof![Just(Durability::Cached), Just(Durability::Durable)];
    let allocation = prop_oneof![Just(Allocation::Keep), Just(Allocation::Deallocate)];
    prop_oneof![
        4 => Just(Step::Read),
        4 => (1..=255_u8, durability()).prop_map(|(byte, durability)| Step::Write(byte, durability)),
        2 => (allocation, durability()).prop_map(|(allocation, durability)| Step::Zero(allocation, durability)),
        1 => Just(Step::Flush),
        2 => Just(Step::Extent),
        1 => Just(Step::Reopen),
    ]
}

const BLOCK: usize = 4096;
const BLOCKS: usize = 700;

/// Runs the steps, each on a range of blocks, with a buffer that is `shift` bytes off a page boundary.
fn check_against_model(cache: CacheMode, steps: Vec<(Step, usize, usize, usize)>) {
    let directory = directory();
    let mut options = file(&directory, (BLOCKS * BLOCK) as u64);
    options.cache = cache;
    options.block_size = BLOCK as u32;
    let mut medium = Some(open(&options));
    let mut model = vec![0_u8; BLOCKS * BLOCK];
    for (step, start, blocks, shift) in steps {
        let used = medium.as_ref().expect("it is open between steps");
        let blocks = blocks.min(BLOCKS - start);
        let (offset, length) = (start * BLOCK, blocks * BLOCK);
        let mut bytes = vec![0xa5; length + 2 * BLOCK];
        let aligned = bytes.as_ptr().align_offset(BLOCK);
        let buffer = &mut bytes[aligned + shift..][..length];
        match step {
            Step::Read => {
                used.read(offset as u64, buffer).unwrap();
                assert!(buffer == &model[offset..][..length]);
            }
            Step::Write(byte, durability) => {
                buffer.iter_mut().enumerate().for_each(|(index, target)| *target = byte.wrapping_add(index as u8));
                used.write(offset as u64, buffer, durability).unwrap();
                model[offset..][..length].copy_from_slice(buffer);
            }
            Step::Zero(allocation, durability) => {
                used.zero(offset as u64, length as u64, allocation, durability).unwrap();
                model[offset..][..length].fill(0);
            }
            Step::Flush => used.flush().unwrap(),
            Step::Extent => {
                let extent = used.extent(offset as u64, length as u64).unwrap();
                assert!((1..=length as u64).contains(&extent.length));
                if !extent.is_mapped {
                    assert!(model[offset..][..extent.length as usize].iter().all(|byte| *byte == 0));
                }
            }
            Step::Reopen => {
                drop(medium.take());
                medium = Some(open(&options));
            }
        }
    }
    drop(medium);
    assert!(fs::read(&options.path).unwrap() == model);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 64, ..ProptestConfig::default() })]

    #[test]
    fn random_calls_do_to_the_page_cache_what_they_do_to_memory(
        steps in prop::collection::vec((step(), 0..BLOCKS, 1..400_usize, 0..64_usize), 1..40),
    ) {
        check_against_model(CacheMode::Writeback, steps);
    }

    #[test]
    fn random_calls_do_to_direct_io_what_they_do_to_memory(
        steps in prop::collection::vec((step(), 0..BLOCKS, 1..400_usize, 0..64_usize), 1..40),
    ) {
        check_against_model(CacheMode::None, steps);
    }
}

#[test]
fn direct_io_does_not_fill_the_page_cache() {
    let directory = directory();
    let mut options = file(&directory, 8 << 20);
    options.cache = CacheMode::None;
    options.block_size = 4096;
    let medium = open(&options);
    medium.write(0, &vec![7; 8 << 20], Durability::Durable).unwrap();
    let flags = rustix::fs::fcntl_getfl(&medium.file).unwrap();
    assert!(flags.contains(rustix::fs::OFlags::DIRECT));
}

#[test]
fn unmap_gives_storage_back_and_a_hole_is_reported() {
    let directory = directory();
    let options = file(&directory, 4 << 20);
    let medium = open(&options);
    medium.write(0, &vec![7; 4 << 20], Durability::Durable).unwrap();
    let blocks = fs::metadata(&options.path).unwrap().blocks();
    assert!(blocks * 512 >= 4 << 20);

    medium.zero(1 << 20, 2 << 20, Allocation::Deallocate, Durability::Durable).unwrap();
    let freed = (blocks - fs::metadata(&options.path).unwrap().blocks()) * 512;
    // A file in many pieces has blocks that list them.
    assert!(freed.abs_diff(2 << 20) <= 8192, "{freed} bytes were freed");
    assert_eq!(medium.extent(0, 4 << 20).unwrap(), Extent { is_mapped: true, length: 1 << 20 });
    assert_eq!(medium.extent(1 << 20, 3 << 20).unwrap(), Extent { is_mapped: false, length: 2 << 20 });
    assert_eq!(medium.extent(3 << 20, 1 << 20).unwrap(), Extent { is_mapped: true, length: 1 << 20 });
}

#[test]
fn zeros_that_keep_their_storage_are_not_written() {
    let directory = directory();
    let options = file(&directory, 64 << 20);
    let medium = open(&options);
    medium.zero(0, 64 << 20, Allocation::Keep, Durability::Durable).unwrap();
    assert!(fs::metadata(&options.path).unwrap().blocks() * 512 >= 64 << 20);
}

#[test]
fn shrunk_file_is_never_read_as_zeros_nor_made_larger() {
    for cache in [CacheMode::Writeback, CacheMode::None] {
        let directory = directory();
        let mut options = file(&directory, 64 << 10);
        options.cache = cache;
        options.block_size = 4096;
        let medium = open(&options);
        let length = 12 << 10;
        File::options().write(true).open(&options.path).unwrap().set_len(length).unwrap();
        assert_eq!(medium.size(), length);
        let mut buffer = vec![1; 8192];
        for offset in [8 << 10, 12 << 10, 32 << 10] {
            assert_eq!(medium.read(offset, &mut buffer), Err(MediumError::BeyondEnd));
            assert_eq!(medium.write(offset, &buffer, Durability::Cached), Err(MediumError::BeyondEnd));
            for allocation in [Allocation::Keep, Allocation::Deallocate] {
                assert_eq!(medium.zero(offset, 8192, allocation, Durability::Cached), Err(MediumError::BeyondEnd));
            }
        }
        assert_eq!(medium.extent(16 << 10, 4096), Err(MediumError::BeyondEnd));
        assert_eq!(fs::metadata(&options.path).unwrap().len(), length);
        medium.read(4096, &mut buffer).unwrap();
    }
}

#[test]
fn read_only_medium_refuses_writes() {
    let directory = directory();
    let mut options = file(&directory, 64 << 10);
    options.access = Access::ReadOnly;
    let medium = open(&options);
    assert!(medium.is_read_only());
    assert_eq!(medium.write(0, &[0; 512], Durability::Cached), Err(MediumError::ReadOnly));
    let zeroed = medium.zero(0, 512, Allocation::Deallocate, Durability::Cached);
    assert_eq!(zeroed, Err(MediumError::ReadOnly));
    assert_eq!(medium.flush(), Ok(()));
}

#[test]
fn medium_of_another_kind_is_refused() {
    let directory = directory();
    assert!(refusal(&MediumOptions::new(directory.path())).contains("neither a regular file nor a block device"));
    let pipe = directory.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
    assert!(refusal(&MediumOptions::new(pipe)).contains("neither a regular file nor a block device"));
    assert!(refusal(&MediumOptions::new("/dev/null")).contains("neither a regular file nor a block device"));
    assert!(refusal(&MediumOptions::new(directory.path().join("none"))).contains("cannot be opened"));
}

#[test]
fn write_over_the_file_size_limit_fails_and_ends_no_process() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let directory = directory();
    // The other tests of this process have smaller files.
    let medium = open(&file(&directory, 2 << 30));
    let before = getrlimit(Resource::Fsize);
    setrlimit(Resource::Fsize, Rlimit { current: Some(1 << 30), ..before }).unwrap();
    let result = medium.write(3 << 29, &[7; 512], Durability::Cached);
    setrlimit(Resource::Fsize, before).unwrap();
    assert_eq!(result, Err(MediumError::NoSpace));
}

#[test]
fn bytes_are_cached_only_while_the_page_cache_has_all_of_them() {
    let directory = directory();
    let mut options = file(&directory, 1 << 20);
    let medium = open(&options);
    medium.write(0, &vec![7; 1 << 20], Durability::Durable).unwrap();
    assert!(medium.is_cached(4096, 16 << 10));
    rustix::fs::fadvise(&medium.file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    assert!(!medium.is_cached(4096, 16 << 10));
    medium.read(4096, &mut [0; 4096]).unwrap();
    assert!(medium.is_cached(4096, 4096));
    assert!(!medium.is_cached(1 << 20, 512), "beyond the end");
    drop(medium);
    options.cache = CacheMode::None;
    assert!(!open(&options).is_cached(4096, 4096));
}
