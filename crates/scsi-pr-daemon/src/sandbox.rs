//! The confinement of a process that reads a client's bytes: Landlock (landlock(7)) and a seccomp filter (seccomp(2)).
//!
//! Both belong to the calling thread and to those that it starts. Descriptors that are open, or that clients pass, stay
//! usable.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus,
    path_beneath_rules,
};
use nix::libc;
use seccompiler::SeccompCmpArgLen::{Dword, Qword};
use seccompiler::SeccompCmpOp::{self, Eq, MaskedEq};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// A part of the sandbox that is missing. The process works without it, but is less confined.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// The kernel has no Landlock, or it is switched off.
    #[error(
        "the kernel does not offer Landlock (Linux 5.13, and `landlock` in the kernel parameter lsm=), so files are \
         protected by their permissions alone"
    )]
    NoLandlock,
    /// Landlock refuses the rules.
    #[error("cannot restrict access to files by Landlock: {0}")]
    Landlock(#[from] landlock::RulesetError),
    /// The filter cannot be made or installed.
    #[error("cannot restrict system calls by seccomp: {0}")]
    Seccomp(String),
}

/// The sandbox of a server process: it opens no file for writing, executes no program, opens no network socket, and makes
/// only the system calls that serving clients takes. Any other system call fails with EPERM.
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub struct Sandbox<'a> {
    removing: &'a [BorrowedFd<'a>],
    media: &'a [PathBuf],
    directories: &'a [PathBuf],
}

impl<'a> Sandbox<'a> {
    /// Without an exception.
    pub const fn new() -> Self {
        Self { removing: &[], media: &[], directories: &[] }
    }

    /// Permits to remove files from these directories.
    pub const fn permit_removing_from(mut self, directories: &'a [BorrowedFd<'a>]) -> Self {
        self.removing = directories;
        self
    }

    /// Permits to write the files at these paths, and the files that are directly or indirectly in them.
    pub const fn permit_writing(mut self, paths: &'a [PathBuf]) -> Self {
        self.media = paths;
        self
    }

    /// Permits to make, write and remove everything in these directories.
    pub const fn permit_changing(mut self, directories: &'a [PathBuf]) -> Self {
        self.directories = directories;
        self
    }

    const fn may_write(self) -> bool {
        !(self.media.is_empty() && self.directories.is_empty())
    }

    /// Confines the calling thread and those that it starts. Gives the parts that are missing.
    pub fn enter(self) -> Vec<SandboxError> {
        let landlock = self.restrict_files();
        let seccomp = self.restrict_system_calls().map_err(|error| SandboxError::Seccomp(error.to_string()));
        [landlock, seccomp].into_iter().filter_map(Result::err).collect()
    }

    /// Rights that this kernel does not know are left out.
    fn restrict_files(self) -> Result<(), SandboxError> {
        // IoctlDev of ABI 5 is not handled: reading a map's reservations takes an ioctl on the device file of a path.
        let mut ruleset = Ruleset::default()
            .handle_access(AccessFs::from_write(ABI::V3) | AccessFs::Execute)?
            .handle_access(AccessNet::from_all(ABI::V4))?
            .create()?;
        for directory in self.removing {
            ruleset = ruleset.add_rule(PathBeneath::new(directory, AccessFs::RemoveFile))?;
        }
        // A path that is not there is left out: nothing could be written.
        ruleset = ruleset
            .add_rules(path_beneath_rules(self.media, AccessFs::WriteFile | AccessFs::Truncate))?
            .add_rules(path_beneath_rules(self.directories, AccessFs::from_write(ABI::V3)))?;
        match ruleset.restrict_self()?.ruleset {
            RulesetStatus::NotEnforced => Err(SandboxError::NoLandlock),
            RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Ok(()),
        }
    }

    fn restrict_system_calls(self) -> Result<(), Box<dyn std::error::Error>> {
        let architecture: TargetArch = std::env::consts::ARCH.try_into()?;
        let install = |rules, otherwise, matching| -> Result<(), Box<dyn std::error::Error>> {
            let program: BpfProgram = SeccompFilter::new(rules, otherwise, matching, architecture)?.try_into()?;
            Ok(seccompiler::apply_filter(&program)?)
        };
        // A filter cannot see the flags of clone3(2). The C library uses clone(2) where it does not exist.
        let missing = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
        install(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), SeccompAction::Allow, missing)?;
        let forbidden = SeccompAction::Errno(libc::EPERM.cast_unsigned());
        install(rules(self)?, forbidden, SeccompAction::Allow)
    }
}

/// The system calls that are permitted whatever their arguments.
const PERMITTED: &[i64] = &[
    // Descriptors, sockets and devices.
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_connect,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_ioctl,
    libc::SYS_lseek,
    libc::SYS_pidfd_open,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_write,
    libc::SYS_writev,
    // Reading sysfs and /proc.
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_newfstatat,
    libc::SYS_readlinkat,
    libc::SYS_statfs,
    libc::SYS_statx,
    // Memory, threads, time, and the end.
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_gettimeofday,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    // The process itself, and the end of the monitor.
    libc::SYS_capget,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrusage,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // Calls that other architectures do not have.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_getrlimit,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_pipe,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
];

/// The system calls of a process that stores data in files.
const WRITING: &[i64] = &[
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_linkat,
    libc::SYS_mkdirat,
    libc::SYS_openat,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_sync_file_range,
    libc::SYS_unlinkat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_link,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
];

/// The rules by system call: a call without a rule is forbidden, one with an empty list is permitted.
fn rules(sandbox: Sandbox<'_>) -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    /// PR_SET_VMA of prctl(2), by which glibc names memory.
    const PR_SET_VMA: u64 = 0x5356_4d41;
    const fn bits(flags: i32) -> u64 {
        flags.cast_unsigned() as u64
    }
    let writing = bits(libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC);
    let thread = bits(libc::CLONE_VM | libc::CLONE_THREAD);
    let executable = bits(libc::PROT_EXEC);
    let reads_only = |argument| one(argument, Dword, MaskedEq(writing), bits(libc::O_RDONLY));
    let unix = || one(0, Dword, Eq, bits(libc::AF_UNIX));
    let not_executable = || one(2, Dword, MaskedEq(executable), 0);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = PERMITTED.iter().map(|number| (*number, Vec::new())).collect();
    rules.extend([
        (libc::SYS_openat, vec![reads_only(2)?]),
        (libc::SYS_socket, vec![unix()?]),
        (libc::SYS_socketpair, vec![unix()?]),
        (libc::SYS_clone, vec![one(0, Qword, MaskedEq(thread), thread)?]),
        (libc::SYS_mmap, vec![not_executable()?]),
        (libc::SYS_mprotect, vec![not_executable()?]),
        (libc::SYS_prctl, vec![one(0, Dword, Eq, bits(libc::PR_SET_NAME))?, one(0, Dword, Eq, PR_SET_VMA)?]),
        // To read a limit, not to set it.
        (libc::SYS_prlimit64, vec![one(2, Qword, Eq, 0)?]),
        // For abort(3).
        (libc::SYS_tgkill, vec![one(0, Dword, Eq, std::process::id().into())?]),
    ]);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_open, vec![reads_only(1)?]);
    if !sandbox.removing.is_empty() {
        rules.insert(libc::SYS_unlinkat, Vec::new());
    }
    if sandbox.may_write() {
        rules.extend(WRITING.iter().map(|number| (*number, Vec::new())));
    }
    Ok(rules)
}

/// A rule about one argument.
fn one(
    argument: u8,
    length: SeccompCmpArgLen,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, length, operator, value)?])
}
