//! `sqlite:PATH`: an SQLite database that several processes of one host use at the same time.
//!
//! The database is in WAL mode with `synchronous=FULL`: a change is one page appended to the log and one fdatasync(2), and
//! a reader sees it only after that. Every [`CHECKPOINT`] pages the log is copied back into the database and begun anew.
//! Locks and the index of the log lie in memory that the processes share, which is why all of them must be on one host: a
//! file system that other hosts may reach is refused.
//!
//! The processes queue for a change by locks on a file of its own (`-queue`), of no other meaning: SQLite's own lock goes to
//! whoever happens to look when it becomes free.
//!
//! SQLite goes on with files that are no longer at their path, and a new log at the path of an old one would be a second
//! truth. So each look and each change makes sure that the database, its log (`-wal`) and the log's index (`-shm`) are still
//! the files that were opened, and opens them anew when they are not; only the database that this process began with is
//! taken again.
//!
//! What SQLite cannot tell: a log that was removed while nobody had the database open, or whose end was damaged, is taken
//! for a log that ends there. The database and its log are to be moved and copied together.

mod connection;
mod database;
mod file;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rusqlite::OptionalExtension;
use scsi_pr_daemon::{FifoMutex, FifoMutexGuard};

use crate::contention::{self, CHANGE_TIMEOUT};
use crate::fifo_file_lock::FifoFileLock;
use crate::file_system::{FileSystem, Reach};
use crate::lock::lock;
use crate::records::Records;
use crate::{StoreError, Swap, UnitId, Version};
use database::Database;

/// After how many pages (of 4 KiB) the log is copied back into the database: 1 MiB, a quarter of SQLite's own default. Until
/// the log has reached that length once, each change makes it longer; after that it is written over, which is less work for
/// the file system. Copying is two or three more fsync(2) for one change in so many.
const CHECKPOINT: u32 = 250;

/// SQLite 3.7.0 to 3.51.2 may corrupt a database in WAL mode that several connections write (the WAL-reset bug).
const OLDEST: i32 = 3_051_003;
const _: () = assert!(rusqlite::ffi::SQLITE_VERSION_NUMBER >= OLDEST);

/// Keeps records in an SQLite database.
pub(crate) struct Sqlite {
    path: PathBuf,
    /// The text that tells the database of this process from others that may come to its place.
    id: String,
    /// By whose locks the processes queue; `None` if it cannot be had.
    change_queue: Option<FifoMutex<File>>,
    /// None after something failed that opening anew may recover.
    database: Mutex<Option<Arc<Database>>>,
}

impl Sqlite {
    /// Opens the database at `path`, and makes it if `create` and nothing is there. `any_file_system`: the administrator
    /// vouches that no other host uses it.
    pub(crate) fn open(path: &Path, create: bool, any_file_system: bool) -> Result<Self, StoreError> {
        let attempted = || format!("open the SQLite store {}", path.display());
        // The library may have been linked from elsewhere than it was compiled against.
        if rusqlite::version_number() < OLDEST {
            return Err(StoreError::refused(attempted())
                .because(format!("SQLite {} may damage it", rusqlite::version()))
                .remedy("use SQLite 3.51.3 or later"));
        }
        let path = file::resolve(path)?;
        let directory = file::directory(&path);
        let file_system =
            FileSystem::of(directory).map_err(|error| StoreError::unavailable(attempted()).because(error))?;
        if !any_file_system && file_system.reach() != Reach::Host {
            return Err(StoreError::refused(attempted())
                .because(format!("other hosts may reach {}, which is on {file_system}", directory.display()))
                .remedy(
                    "SQLite is for one host: use dir:PATH for several hosts, or sqlite+local:PATH if no other host \
                     ever uses this database",
                ));
        }
        if file_system.is_volatile() {
            tracing::warn!("{} is on {file_system}: it is lost when this host restarts", path.display());
        }
        if create {
            file::create_unless_there(&path)?;
        }
        let database = Database::open(&path, None)?;
        database.check_whole()?;
        let id = database.id().to_owned();
        let change_queue = file::open_queue(&path).map(FifoMutex::new).ok();
        Ok(Self { path, id, change_queue, database: Mutex::new(Some(Arc::new(database))) })
    }

    /// The database, opened anew if what is at the path is not what was opened.
    fn database(&self) -> Result<Arc<Database>, StoreError> {
        let mut database = lock(&self.database);
        match &*database {
            Some(open) if open.is_in_place() => Ok(Arc::clone(open)),
            _ => {
                *database = None;
                let opened = Arc::new(Database::open(&self.path, Some(&self.id))?);
                *database = Some(Arc::clone(&opened));
                Ok(opened)
            }
        }
    }

    /// Runs `read` on the database at the path: what it says holds for a database that was there at that time.
    fn read<T>(
        &self,
        unit: &UnitId,
        read: impl Fn(&rusqlite::Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let attempted = || format!("read the reservations of {unit} in {}", self.path.display());
        let database = self.database()?;
        let found = database.reader()?.with(&read).map_err(|error| {
            self.forget(&database);
            connection::read_failed(attempted(), error)
        })?;
        if !database.is_in_place() {
            return Err(replaced(StoreError::unavailable(attempted())));
        }
        Ok(found)
    }

    /// Has the database opened anew next time.
    fn forget(&self, failed: &Arc<Database>) {
        let mut database = lock(&self.database);
        if database.as_ref().is_some_and(|open| Arc::ptr_eq(open, failed)) {
            *database = None;
        }
    }
}

fn replaced(error: StoreError) -> StoreError {
    error
        .because("the database was moved, removed or replaced meanwhile")
        .remedy("keep the database and its -wal and -shm files where they are while they are in use")
}

impl Records for Sqlite {
    fn version(&self, unit: &UnitId) -> Result<Version, StoreError> {
        let found = self.read(unit, |connection| {
            let mut select = connection.prepare_cached("SELECT version FROM unit WHERE name = ?1")?;
            select.query_row([unit.as_str()], |row| row.get(0)).optional()
        })?;
        Ok(Version(found.unwrap_or(0)))
    }

    fn read(&self, unit: &UnitId) -> Result<Option<(Version, Vec<u8>)>, StoreError> {
        self.read(unit, |connection| {
            let mut select = connection.prepare_cached("SELECT version, record FROM unit WHERE name = ?1")?;
            select.query_row([unit.as_str()], |row| Ok((Version(row.get(0)?), row.get(1)?))).optional()
        })
    }

    fn replace(&self, unit: &UnitId, expected: Version, record: &[u8]) -> Result<Swap, StoreError> {
        let attempted = || format!("store the reservations of {unit} in {}", self.path.display());
        let database = self.database()?;
        let mut writer = database.writer(CHANGE_TIMEOUT).ok_or_else(|| contention::too_long(unit))?;
        // It may have been long in the queue.
        if !database.is_in_place() {
            return Err(replaced(StoreError::unavailable(attempted())));
        }
        let changed = writer.with(|connection| {
            if expected == Version(0) {
                const INSERT: &str =
                    "INSERT INTO unit (name, version, record) VALUES (?1, 1, ?2) ON CONFLICT DO NOTHING";
                connection.prepare_cached(INSERT)?.execute((unit.as_str(), record))
            } else {
                const UPDATE: &str =
                    "UPDATE unit SET version = version + 1, record = ?3 WHERE name = ?1 AND version = ?2";
                connection.prepare_cached(UPDATE)?.execute((unit.as_str(), expected.0, record))
            }
        });
        let changed = changed.map_err(|error| {
            self.forget(&database);
            connection::write_failed(attempted(), error)
        })?;
        if !database.is_in_place() {
            return Err(replaced(StoreError::outcome_unknown(attempted())));
        }
        Ok(if changed == 1 { Swap::Done(expected.next()) } else { Swap::Lost })
    }

    type Turn<'a> = Option<FifoFileLock<FifoMutexGuard<'a, File>>>;

    /// Of the whole database, which has one writer at a time. Within this process the file goes from one to the next.
    fn turn(&self, _: &UnitId) -> Self::Turn<'_> {
        self.change_queue.as_ref()?.lock_timeout(CHANGE_TIMEOUT).and_then(FifoFileLock::lock)
    }

    fn is_shared_between_hosts(&self) -> bool {
        false
    }

    fn location(&self, _: &UnitId, _: Version) -> String {
        self.path.display().to_string()
    }
}
