//! Giving up privileges for good.

use std::io;

use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::{self, CapabilitySet, CapabilitySets};

/// A capability (capabilities(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Capability {
    /// CAP_DAC_OVERRIDE
    DacOverride,
    /// CAP_FOWNER
    Fowner,
    /// CAP_SETGID
    SetGid,
    /// CAP_SETUID
    SetUid,
    /// CAP_SYS_ADMIN
    SysAdmin,
    /// CAP_SYS_RAWIO
    SysRawIo,
}

impl Capability {
    const fn set(self) -> CapabilitySet {
        match self {
            Self::DacOverride => CapabilitySet::DAC_OVERRIDE,
            Self::Fowner => CapabilitySet::FOWNER,
            Self::SetGid => CapabilitySet::SETGID,
            Self::SetUid => CapabilitySet::SETUID,
            Self::SysAdmin => CapabilitySet::SYS_ADMIN,
            Self::SysRawIo => CapabilitySet::SYS_RAWIO,
        }
    }

    /// Whether the calling thread is permitted to use it.
    ///
    /// # Errors
    ///
    /// Those of capget(2).
    pub fn is_permitted(self) -> io::Result<bool> {
        Ok(thread::capabilities(None)?.permitted.contains(self.set()))
    }
}

/// The privileges that a process keeps when it gives up all others.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Privileges {
    capabilities: CapabilitySet,
    bounding: CapabilitySet,
    user: Option<u32>,
    group: Option<u32>,
}

impl Privileges {
    /// No capability, and the user and the group that the process has.
    pub const fn none() -> Self {
        let none = CapabilitySet::empty();
        Self { capabilities: none, bounding: none, user: None, group: None }
    }

    /// These capabilities, for this process alone.
    pub fn with(self, capabilities: impl IntoIterator<Item = Capability>) -> Self {
        let sets = capabilities.into_iter().map(Capability::set);
        Self { capabilities: sets.fold(self.capabilities, CapabilitySet::union), ..self }
    }

    /// The programs that this process executes as root have its capabilities too.
    pub const fn for_executed_programs(self) -> Self {
        Self { bounding: self.capabilities, ..self }
    }

    /// Another user id, if given.
    pub const fn user(self, user: Option<u32>) -> Self {
        Self { user, ..self }
    }

    /// Another group id, if given.
    pub const fn group(self, group: Option<u32>) -> Self {
        Self { group, ..self }
    }

    /// Gives up all other privileges of the calling thread and of those that it starts: call it before there is another
    /// thread.
    ///
    /// The capabilities are permitted and effective from then on. The inheritable and ambient sets are empty, there are no
    /// supplementary groups, and no_new_privs is set.
    ///
    /// # Errors
    ///
    /// `EPERM` when the process does not have a capability that it is to keep, or may not become that user. Some privileges
    /// may be gone then, so the process has to end.
    pub fn keep_only_these(self) -> io::Result<()> {
        let held = thread::capabilities(None)?;
        if held.effective.contains(CapabilitySet::SETPCAP) {
            narrow_bounding_set(self.bounding)?;
        }
        // A process that may not change its groups has only those that it was started with.
        if held.effective.contains(CapabilitySet::SETGID) {
            thread::set_thread_groups(&[])?;
        }
        if let Some(group) = self.group.map(Gid::from_raw) {
            thread::set_thread_res_gid(group, group, group)?;
        }
        if let Some(user) = self.user.map(Uid::from_raw) {
            // A change from root would clear the capabilities.
            thread::set_keep_capabilities(true)?;
            thread::set_thread_res_uid(user, user, user)?;
            thread::set_keep_capabilities(false)?;
        }
        // An ambient capability is always inheritable, so this clears both sets.
        let inheritable = CapabilitySet::empty();
        let sets = CapabilitySets { effective: self.capabilities, permitted: self.capabilities, inheritable };
        // The sandbox of a service manager may forbid the call even when it changes nothing.
        if held != sets || self.user.is_some() {
            thread::set_capabilities(None, sets)?;
        }
        thread::set_no_new_privs(true)?;
        Ok(())
    }
}

/// Goes by number, as the kernel may have capabilities that rustix does not know.
fn narrow_bounding_set(kept: CapabilitySet) -> io::Result<()> {
    for capability in (0..u64::BITS).map(|number| CapabilitySet::from_bits_retain(1 << number)) {
        if kept.contains(capability) {
            continue;
        }
        match thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
