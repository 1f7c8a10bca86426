//! A database that is open: one connection that writes, a few that read, and the files that they have open.

use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension};
use scsi_pr_daemon::{FifoMutex, FifoMutexGuard};

use super::connection::{self, SCHEMA, read_failed};
use super::file::{self, Files, Paths};
use crate::StoreError;
use crate::lock::lock;

/// The number of connections that read. A read takes microseconds, so more connections would not make it faster.
const READERS: usize = 8;

pub(super) struct Database {
    paths: Paths,
    files: Files,
    id: String,
    /// SQLite has one writer at a time; those of this process queue here, in order.
    writer: FifoMutex<Connection>,
    readers: Mutex<Readers>,
    reader_is_free: Condvar,
}

#[derive(Default)]
struct Readers {
    idle: Vec<Connection>,
    /// The number of connections, with those in use.
    open: usize,
}

impl Database {
    /// Opens the database at `path`. It must be a database of this program, and have the identifier `id` if that is
    /// given.
    pub(super) fn open(path: &Path, id: Option<&str>) -> Result<Self, StoreError> {
        let attempted = || format!("open the SQLite store {}", path.display());
        let paths = Paths::of(path);
        let unavailable = |error| StoreError::unavailable(attempted()).because(error);
        let examined = file::examine(path)?;
        // Its creator may have died before the name was durable. This comes before the log: a log without a database
        // would look like the rest of a removed one.
        file::sync_directory(path).map_err(unavailable)?;
        let writer = connection::open(path).map_err(|error| read_failed(attempted(), error))?;
        if writer.is_readonly("main").map_err(|error| read_failed(attempted(), error))? {
            return Err(StoreError::unavailable(attempted())
                .because("it is read-only")
                .remedy("let this process write the database and the directory that it is in"));
        }
        let found = identify(&writer).map_err(|error| read_failed(attempted(), error))?.ok_or_else(|| {
            StoreError::refused(attempted())
                .because("its tables are not those that it was made with")
                .remedy("put back a copy of it from before they were changed")
        })?;
        if id.is_some_and(|id| id != found) {
            return Err(StoreError::refused(attempted())
                .because("another database came to its place")
                .remedy("put back the one that was there, or restart to go on with the other one"));
        }
        // SQLite has opened the log by now. Its name becomes durable too, whichever process made it.
        file::sync_directory(path).map_err(unavailable)?;
        let files = Files::at(&paths).map_err(unavailable)?;
        if files.main != examined {
            return Err(StoreError::unavailable(attempted())
                .because("another file came to its place")
                .remedy("try again"));
        }
        let (writer, readers) = (FifoMutex::new(writer), Mutex::default());
        Ok(Self { paths, files, id: found, writer, readers, reader_is_free: Condvar::new() })
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Whether the open files are those at the path.
    pub(super) fn is_in_place(&self) -> bool {
        Files::at(&self.paths).is_ok_and(|files| files == self.files)
    }

    /// Reads the whole database, and reports damage.
    pub(super) fn check_whole(&self) -> Result<(), StoreError> {
        let attempted = || format!("check the SQLite store {}", self.paths.main.display());
        // The quick check would not compare the names of units with their index.
        let found = self
            .reader()?
            .with(|connection| connection.query_row("PRAGMA integrity_check(1)", (), |row| row.get::<_, String>(0)));
        match found.map_err(|error| read_failed(attempted(), error))?.as_str() {
            "ok" => Ok(()),
            damage => Err(StoreError::refused(attempted())
                .because(format!("it is damaged: {}", damage.replace('\n', ", ")))
                .remedy("put back a copy of it from before")),
        }
    }

    /// The connection that writes, `None` if it is not this thread's turn within `timeout`.
    pub(super) fn writer(&self, timeout: Duration) -> Option<Writer<'_>> {
        self.writer.lock_timeout(timeout).map(Writer)
    }

    /// A connection that reads.
    pub(super) fn reader(&self) -> Result<Reader<'_>, StoreError> {
        let mut readers = lock(&self.readers);
        loop {
            if let Some(connection) = readers.idle.pop() {
                return Ok(Reader { database: self, connection: Some(connection) });
            }
            if readers.open < READERS {
                readers.open += 1;
                drop(readers);
                return self.open_reader().inspect_err(|_| {
                    lock(&self.readers).open -= 1;
                    self.reader_is_free.notify_one();
                });
            }
            readers = self.reader_is_free.wait(readers).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn open_reader(&self) -> Result<Reader<'_>, StoreError> {
        let path = &self.paths.main;
        let attempted = || format!("open the SQLite store {}", path.display());
        let failed = |error| read_failed(attempted(), error);
        let connection = connection::open(path).map_err(failed)?;
        if identify(&connection).map_err(failed)?.as_ref() != Some(&self.id) {
            return Err(StoreError::unavailable(attempted())
                .because("another file came to its place")
                .remedy("try again"));
        }
        Ok(Reader { database: self, connection: Some(connection) })
    }
}

/// The identifier of a database with our tables, `None` if it has others.
fn identify(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let mut tables = connection.prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name")?;
    let tables = tables.query_map((), |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()?;
    if tables != SCHEMA {
        return Ok(None);
    }
    connection.query_row("SELECT id FROM store", (), |row| row.get(0)).optional()
}

/// The connection that writes, for one turn.
pub(super) struct Writer<'a>(FifoMutexGuard<'a, Connection>);

impl Writer<'_> {
    pub(super) fn with<T>(&mut self, act: impl FnOnce(&Connection) -> T) -> T {
        act(&self.0)
    }
}

/// One of the connections that read.
pub(super) struct Reader<'a> {
    database: &'a Database,
    /// None once this is being dropped.
    connection: Option<Connection>,
}

impl Reader<'_> {
    pub(super) fn with<T>(&self, act: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        self.connection.as_ref().map_or(Err(rusqlite::Error::InvalidQuery), act)
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        lock(&self.database.readers).idle.extend(self.connection.take());
        self.database.reader_is_free.notify_one();
    }
}
