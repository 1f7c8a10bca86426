//! libmpathpersist, opened at run time: three of its functions, and the one structure that they take (multipath-tools,
//! `mpath_persist.h`).
//!
//! The layouts are those of 0.9.4 to 0.15. Older libraries are refused: 0.8.5 wants symbols of its caller, and later ones
//! are not tested.

use std::ffi::{c_int, c_uint};
use std::mem::{self, ManuallyDrop, offset_of};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use libloading::os::unix::{Library as Handle, RTLD_LOCAL, RTLD_NOW};

use super::translate::{LibraryTransportId, Request};
use super::version::{self, OLDEST_INTERFACE};

/// The library's name on every distribution.
const NAME: &str = "libmpathpersist.so.0";

/// `libmpathpersist_init`, `libmpathpersist_exit`: 0 is success.
type Bracket = unsafe extern "C" fn() -> c_int;

/// `mpath_persistent_reserve_out`: descriptor of the map, service action, scope, type, parameter list, noisy, verbosity.
type ReserveOut = unsafe extern "C" fn(c_int, c_int, c_int, c_uint, *mut ParameterList, c_int, c_int) -> c_int;

/// `struct prout_param_descriptor`, with room for as many TransportIDs as there may be.
#[repr(C)]
struct ParameterList {
    key: [u8; 8],
    service_action_key: [u8; 8],
    obsolete: u32,
    flags: u8,
    reserved: u8,
    obsolete_after: u16,
    /// Where the library lays out the TransportIDs. The fields before it are the parameter list to the byte, and are
    /// sent from here.
    private_buffer: [u8; 8192],
    transport_ids_length: u32,
    transport_ids: [*mut LibraryTransportId; Request::MOST_TRANSPORT_IDS],
}

const _: () = {
    let wide = size_of::<*const u8>() == 8;
    assert!(offset_of!(ParameterList, flags) == 20);
    assert!(offset_of!(ParameterList, private_buffer) == 24);
    assert!(offset_of!(ParameterList, transport_ids_length) == 8216);
    assert!(offset_of!(ParameterList, transport_ids) == if wide { 8224 } else { 8220 });
};

/// libmpathpersist, initialised.
///
/// Once in the life of a process: the library cannot be initialised again after its end. It is never unloaded, because
/// threads that it has started may still be running its code.
pub(super) struct Library {
    reserve_out: ReserveOut,
    exit: Bracket,
}

/// Why there is no [`Library`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unavailable {
    /// It cannot be opened; the loader's reason.
    #[error(
        "{NAME} cannot be opened ({0}): install multipath-tools {OLDEST_VERSION} or later (package multipath-tools of Debian \
         and Ubuntu, device-mapper-multipath-libs of Fedora and RHEL, libmpathpersist0 of SUSE)"
    )]
    NotInstalled(String),
    /// It lacks a symbol of 0.9.4, or needs one of its caller; the loader's reason.
    #[error(
        "{NAME} is of an old multipath-tools, as 0.8.5 ({0}), and {OLDEST_VERSION} is needed: install multipath-tools \
         {OLDEST_VERSION} or later"
    )]
    MissingSymbol(String),
    /// It uses this interface of libmultipath, which is older than that of 0.9.4.
    #[error(
        "{NAME} is of an old multipath-tools, as 0.8.7 (it uses LIBMULTIPATH_{0}), and {OLDEST_VERSION} \
         (LIBMULTIPATH_{OLDEST_INTERFACE}) is needed: install multipath-tools {OLDEST_VERSION} or later"
    )]
    OldInterface(u32),
    /// Its own start failed, with this return value: it cannot read its configuration, or was started before.
    #[error("{NAME} does not start (libmpathpersist_init returned {0}): check /etc/multipath.conf with `multipath -t`")]
    NotStarted(c_int),
}

/// The oldest multipath-tools whose library is used.
const OLDEST_VERSION: &str = "0.9.4";

impl Unavailable {
    /// From the loader's reason.
    fn not_opened(why: String) -> Self {
        // The library of 0.8.5 is not linked to libmultipath, and has its caller define some symbols.
        if why.contains("undefined symbol") { Self::MissingSymbol(why) } else { Self::NotInstalled(why) }
    }
}

impl Library {
    /// Opens and starts the library, which reads multipath.conf.
    ///
    /// # Errors
    ///
    /// Why it cannot be used. The library itself may end the process instead: libmultipath calls `exit(1)` when
    /// `/dev/mapper/control` cannot be opened or device mapper is too old.
    pub(super) fn open() -> Result<Self, Unavailable> {
        let (init, library) = Self::load()?;
        // SAFETY: it takes nothing, and is called before any other function of the library. A second call fails.
        match unsafe { init() } {
            0 => Ok(library),
            code => {
                // A library that was not started must not be ended.
                mem::forget(library);
                Err(Unavailable::NotStarted(code))
            }
        }
    }

    /// Opens the library without starting it, and returns the interface of libmultipath that it uses.
    ///
    /// # Errors
    ///
    /// Why it cannot be used.
    pub(super) fn interface() -> Result<Option<u32>, Unavailable> {
        let (_, library) = Self::load()?;
        // A library that was not started must not be ended.
        mem::forget(library);
        Ok(version::interface_of_loaded(NAME))
    }

    /// Opens the library without starting it; its start function, and the rest.
    fn load() -> Result<(Bracket, Self), Unavailable> {
        // SAFETY: opening a library runs its initialisers, and those of the libraries that it needs: code that the
        // administrator installed for root to run. All symbols are bound now (RTLD_NOW), so that one that is missing is
        // an error here and not the end of the process later.
        let handle = unsafe { Handle::open(Some(NAME), RTLD_NOW | RTLD_LOCAL) }
            .map_err(|error| Unavailable::not_opened(error.to_string()))?;
        // Never closed: threads that the library has started may still be running its code.
        let handle = ManuallyDrop::new(handle);
        if let Some(interface) = version::interface_of_loaded(NAME).filter(|found| *found < OLDEST_INTERFACE) {
            return Err(Unavailable::OldInterface(interface));
        }
        let missing = |error: libloading::Error| Unavailable::MissingSymbol(error.to_string());
        // SAFETY: a library that has the first function has all three, of these types, as `mpath_persist.h` of its version
        // declares them; they stay valid because the library stays open.
        let (init, exit, reserve_out) = unsafe {
            (
                *handle.get::<Bracket>(b"libmpathpersist_init\0").map_err(missing)?,
                *handle.get::<Bracket>(b"libmpathpersist_exit\0").map_err(missing)?,
                *handle.get::<ReserveOut>(b"mpath_persistent_reserve_out\0").map_err(missing)?,
            )
        };
        Ok((init, Self { reserve_out, exit }))
    }

    /// Runs `request` on all paths of the map behind `device`, or on one, as its service action wants it. Returns what
    /// the library does: 0 is success.
    pub(super) fn reserve_out(&self, device: BorrowedFd<'_>, request: &Request) -> c_int {
        let mut transport_ids = request.transport_ids.clone();
        let mut list = Box::new(ParameterList {
            key: request.key.0.to_be_bytes(),
            service_action_key: request.service_action_key.0.to_be_bytes(),
            obsolete: 0,
            flags: request.flags,
            reserved: 0,
            obsolete_after: 0,
            private_buffer: [0; 8192],
            transport_ids_length: 0,
            transport_ids: [ptr::null_mut(); Request::MOST_TRANSPORT_IDS],
        });
        for (pointer, id) in list.transport_ids.iter_mut().zip(&mut transport_ids) {
            *pointer = ptr::from_mut(id);
            list.transport_ids_length += 1;
        }
        let scope_type = request.scope_type.0;
        // SAFETY: the function is the library's, which was started. It reads and writes the structure, whose layout is
        // checked above, follows as many of its pointers as it says there are (each is to a TransportID that lives until
        // the end of this function), and writes at most 8192 bytes of `private_buffer`: what it lays out there came in a
        // parameter list of at most 8192 bytes. It keeps no pointer: the threads that use them are joined before it
        // returns. It may be called by several threads at once: what it knows of maps is made anew for each call.
        unsafe {
            (self.reserve_out)(
                device.as_raw_fd(),
                c_int::from(request.action.code()),
                c_int::from(scope_type >> 4),
                c_uint::from(scope_type & 0xf),
                &raw mut *list,
                0,
                0,
            )
        }
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: it takes nothing, and no other function of the library is called any more: they need `self`.
        unsafe { (self.exit)() };
    }
}

#[cfg(test)]
mod tests {
    use super::super::translate::tests::reserve_outs;
    use super::super::translate::{self, SPEC_I_PT};
    use super::*;
    use proptest::prelude::*;
    use scsi_pr::{Cdb, CommandBuf, ReserveOut as Out};
    use std::cell::{Cell, RefCell};
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::slice;

    thread_local! {
        /// The command that the last call would have sent: CDB and parameter list.
        static SENT: RefCell<Option<(Cdb, Vec<u8>)>> = const { RefCell::new(None) };
        static RETURNS: Cell<c_int> = const { Cell::new(0) };
        static ENDED: Cell<bool> = const { Cell::new(false) };
    }

    /// Reads the C structure by its offsets alone, and lays the command out as the library does.
    unsafe extern "C" fn lay_out(
        _: c_int,
        action: c_int,
        scope: c_int,
        reservation_type: c_uint,
        list: *mut ParameterList,
        noisy: c_int,
        verbose: c_int,
    ) -> c_int {
        let base = list.cast::<u8>();
        // SAFETY: the caller passes a whole structure.
        let bytes = unsafe { slice::from_raw_parts(base, 8220) };
        let mut sent = bytes[..24].to_vec();
        let count = u32::from_ne_bytes(bytes[8216..8220].try_into().unwrap());
        if bytes[20] & SPEC_I_PT != 0 {
            let mut ids = Vec::new();
            for index in 0..count as usize {
                // SAFETY: there are as many pointers as the structure says, each to 258 bytes.
                let id = unsafe {
                    let id = base.add(8224).cast::<*const u8>().add(index).read_unaligned();
                    slice::from_raw_parts(id, 258)
                };
                let (format, protocol, name) = (id[0], id[1], &id[2..]);
                ids.push(format | protocol);
                match protocol {
                    0 => ids.extend([&[0; 7], &name[..8], &[0; 8]].concat()),
                    5 => ids.extend([&[0], &name[..usize::from(name[1]) + 2]].concat()),
                    other => panic!("protocol {other}"),
                }
            }
            sent.extend(u32::try_from(ids.len()).unwrap().to_be_bytes());
            sent.extend(ids);
        } else {
            assert_eq!(count, 0);
        }
        assert_eq!((noisy, verbose), (0, 0));
        let mut cdb = [0; 16];
        cdb[0] = 0x5f;
        cdb[1] = u8::try_from(action).unwrap();
        cdb[2] = u8::try_from(scope << 4 | c_int::try_from(reservation_type).unwrap()).unwrap();
        cdb[7..9].copy_from_slice(&u16::try_from(sent.len()).unwrap().to_be_bytes());
        SENT.set(Some((Cdb::new(cdb).unwrap(), sent)));
        RETURNS.get()
    }

    unsafe extern "C" fn end() -> c_int {
        ENDED.set(true);
        0
    }

    fn library() -> Library {
        Library { reserve_out: lay_out, exit: end }
    }

    #[test]
    fn what_is_returned_is_passed_on() {
        let request = Request::new(&Out::Clear { key: scsi_pr::Key(1) }).unwrap();
        let null = File::open("/dev/null").unwrap();
        for code in [0, 1, 11, -1, c_int::MAX] {
            RETURNS.set(code);
            assert_eq!(library().reserve_out(null.as_fd(), &request), code);
        }
        assert!(ENDED.get(), "the library's end was not called");
    }

    /// Loading changes nothing outside this process.
    #[test]
    fn the_library_of_this_machine_is_loaded_or_refused_with_a_reason() {
        match Library::load() {
            // Its end must not be called, as it was not started.
            Ok((_, library)) => mem::forget(library),
            Err(why) => assert!(why.to_string().contains("0.9.4"), "{why}"),
        }
    }

    #[test]
    fn a_library_that_cannot_be_used_is_reported_with_the_version_that_can() {
        let missing = Unavailable::NotInstalled("no such file".to_owned()).to_string();
        assert!(missing.contains("no such file") && missing.contains("multipath-tools"), "{missing}");
        // As Debian 11's library of 0.8.5 is refused by the loader.
        let old = Unavailable::not_opened("libmpathpersist.so.0: undefined symbol: logsink".to_owned()).to_string();
        assert!(old.contains("logsink") && old.contains("as 0.8.5") && old.contains("0.9.4 is needed"), "{old}");
        let old = Unavailable::OldInterface(9).to_string();
        assert!(old.contains("LIBMULTIPATH_9)") && old.contains("0.9.4 (LIBMULTIPATH_17) is needed"), "{old}");
        let broken = Unavailable::NotStarted(1).to_string();
        assert!(broken.contains("returned 1") && broken.contains("multipath -t"), "{broken}");
    }

    proptest! {
        #[test]
        fn what_a_guest_asks_for_reaches_the_library_whole(out in reserve_outs()) {
            let Ok(request) = Request::new(&out) else { return Ok(()) };
            RETURNS.set(translate::SUCCESS);
            let null = File::open("/dev/null").unwrap();
            prop_assert_eq!(library().reserve_out(null.as_fd(), &request), translate::SUCCESS);
            let (cdb, list) = SENT.take().unwrap();
            let sent = CommandBuf::new(cdb, list).unwrap();
            prop_assert_eq!(Out::parse(sent.command()), Ok(out.clone()));
            prop_assert_eq!(sent, out.encode().unwrap());
        }
    }
}
