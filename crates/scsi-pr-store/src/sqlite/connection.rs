//! A connection to an existing database: its settings, and the meaning of SQLite's errors.

use std::path::Path;
use std::thread;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, Error, ErrorCode, OpenFlags, ffi};

use super::CHECKPOINT;
use crate::StoreError;
use crate::contention::pause;

/// The statements that create the tables. `sqlite_schema` keeps their text unchanged.
pub(super) const SCHEMA: [&str; 2] = [
    "CREATE TABLE store (id TEXT NOT NULL) STRICT",
    // The record comes last, so that the version is found without reading it.
    "CREATE TABLE unit (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, version INTEGER NOT NULL, \
     record BLOB NOT NULL) STRICT",
];

/// The number of attempts to get a lock of another process. With the pauses between, they take some 10 s.
const ATTEMPTS: i32 = 10_000;

/// Opens the database at `path`, which must exist.
pub(super) fn open(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW
        | OpenFlags::SQLITE_OPEN_EXRESCODE;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_handler(Some(|attempt: i32| {
        // SQLite's own pauses grow to a tenth of a second, so that the longest waiter would wait longest again.
        thread::sleep(pause(attempt.unsigned_abs() + 1) + Duration::from_micros(10));
        attempt < ATTEMPTS
    }))?;
    // No schema of a damaged or foreign database is to run anything, and no statement may write past SQLite.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.pragma_update(None, "mmap_size", 0)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    // 256 KiB: what is read and written is a few pages.
    connection.pragma_update(None, "cache_size", -256)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT)?;
    Ok(connection)
}

/// A read that failed: nothing was changed.
pub(super) fn read_failed(attempted: String, error: Error) -> StoreError {
    let store_error = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::refused(attempted),
        // A value of another type than the tables have.
        None => StoreError::refused(attempted),
        Some(code) if is_busy(code) => StoreError::contended(attempted),
        Some(_) => StoreError::unavailable(attempted),
    };
    explain(store_error, error)
}

/// A change that failed. Only an error before the last byte of a change is in the log is certain to have changed
/// nothing. After a later error, as of fdatasync(2), a reader of the log may find the change after a crash.
pub(super) fn write_failed(attempted: String, error: Error) -> StoreError {
    let store_error = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::refused(attempted),
        Some(code) if is_busy(code) => StoreError::contended(attempted),
        Some(
            ErrorCode::DiskFull
            | ErrorCode::ReadOnly
            | ErrorCode::CannotOpen
            | ErrorCode::PermissionDenied
            | ErrorCode::TooBig
            | ErrorCode::ConstraintViolation,
        ) => StoreError::unavailable(attempted),
        // Such a change is not whole in the log.
        Some(ErrorCode::SystemIoFailure) if is_read_or_write(&error) => StoreError::unavailable(attempted),
        _ => StoreError::outcome_unknown(attempted),
    };
    explain(store_error, error)
}

/// Whether locks of other processes kept SQLite from beginning.
fn is_busy(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed)
}

fn is_read_or_write(error: &Error) -> bool {
    const CODES: [i32; 3] = [ffi::SQLITE_IOERR_READ, ffi::SQLITE_IOERR_SHORT_READ, ffi::SQLITE_IOERR_WRITE];
    error.sqlite_error().is_some_and(|error| CODES.contains(&error.extended_code))
}

fn explain(store_error: StoreError, error: Error) -> StoreError {
    let remedy = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) | None => "put back a copy of it from before",
        Some(code) if is_busy(code) => "look for a process that stands still while it uses the database",
        Some(ErrorCode::DiskFull) => "make room on its file system",
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            "let this process write the database and the directory that it is in"
        }
        Some(ErrorCode::CannotOpen) => "see whether the database is there and its file system is mounted",
        Some(_) => "see what the kernel's log says of its disk",
    };
    store_error.because(error).remedy(remedy)
}
