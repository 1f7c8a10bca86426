//! What the helper may do once it runs: SG_IO, and nothing else.

use std::io;

use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::{self, CapabilitySet, CapabilitySets};

use crate::identity::Id;

/// What SG_IO asks for in the calling thread, for commands that are not on the kernel's list for everybody; the two for
/// reservations are not.
pub(crate) const SG_IO: CapabilitySet = CapabilitySet::SYS_RAWIO;

/// Gives up everything but `guard`, and becomes `user` and `group` where they are given.
///
/// What stays is permitted and effective; of the bounding set there stays `bounding`, which is what a program that user 0
/// executes has at most. The inheritable and ambient sets are emptied, there are no supplementary groups, and nothing that
/// is executed gains a privilege. All this belongs to the calling thread in
/// Linux, so it has to be done before there is another.
///
/// # Errors
///
/// `EPERM` where this process does not have what it is to keep, or may not become who it should be. It must end then:
/// part of it may have been done.
pub(crate) fn drop_to(guard: CapabilitySet, bounding: CapabilitySet, user: Id, group: Id) -> io::Result<()> {
    let held = thread::capabilities(None)?.effective;
    if held.contains(CapabilitySet::SETPCAP) {
        narrow_bounding_set(bounding)?;
    }
    // Who may not change them has only what it was started with.
    if held.contains(CapabilitySet::SETGID) {
        thread::set_thread_groups(&[])?;
    }
    if let Some(group) = group.map(Gid::from_raw) {
        thread::set_thread_res_gid(group, group, group)?;
    }
    if let Some(user) = user.map(Uid::from_raw) {
        // Leaving user 0 would take the capabilities along.
        thread::set_keep_capabilities(true)?;
        thread::set_thread_res_uid(user, user, user)?;
        thread::set_keep_capabilities(false)?;
    }
    // An ambient capability is always inheritable too, so this empties both sets.
    let sets = CapabilitySets { effective: guard, permitted: guard, inheritable: CapabilitySet::empty() };
    thread::set_capabilities(None, sets)?;
    thread::set_no_new_privs(true)?;
    Ok(())
}

/// By number, as the running kernel may have capabilities that were not known when this was built.
fn narrow_bounding_set(guard: CapabilitySet) -> io::Result<()> {
    for capability in (0..u64::BITS).map(|number| CapabilitySet::from_bits_retain(1 << number)) {
        if guard.contains(capability) {
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
