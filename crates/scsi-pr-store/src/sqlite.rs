//! `sqlite:PATH`: an SQLite database that several processes of one host use at the same time.
//!
//! The database is in WAL mode with `synchronous=FULL`. A change is one or two pages appended to the log and one fdatasync(2),
//! and a reader sees it only after that. (`.cargo/config.toml` builds SQLite so. Without that flag it calls fsync(2), which is as
//! safe.) After every [`CHECKPOINT`] pages, SQLite copies the log back into the database and begins it anew. Locks and the index
//! of the log are in memory that the processes share. So all of them must be on one host, and a file system that other hosts may
//! reach is refused.
//!
//! The processes take turns to change the database by locks on a file of its own (`-queue`), which has no other meaning. SQLite's
//! own lock goes to any process that looks when it becomes free.
//!
//! SQLite goes on with files that are no longer at their path, and a new log at the path of an old one would be a second truth. So
//! each read and each change checks that the database, its log (`-wal`) and the log's index (`-shm`) are still the files that were
//! opened. If not, it opens them anew, and takes only the database that this process began with.
//!
//! SQLite cannot detect a log that was removed while no process had the database open, or whose end was damaged: it takes the log
//! to end there. Move and copy the database and its log together.

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

/// The number of pages (of 4 KiB) after which SQLite copies the log back into the database: 1 MiB, a quarter of its default. Until
/// the log has had that length once, each change makes it longer; then changes overwrite it, which is less work for the file
/// system. A copy takes two or three more calls of fdatasync(2).
const CHECKPOINT: u32 = 250;

/// SQLite 3.7.0 to 3.51.2 may corrupt a database in WAL mode that several connections write (the WAL-reset bug).
const OLDEST: i32 = 3_051_003;
const _: () = assert!(rusqlite::ffi::SQLITE_VERSION_NUMBER >= OLDEST);

/// Keeps records in an SQLite database.
pub(crate) struct Sqlite {
    path: PathBuf,
    /// The text that distinguishes this database from others that may replace it.
    id: String,
    /// The file with the locks by which processes take turns; `None` if it cannot be opened.
    change_queue: Option<FifoMutex<File>>,
    /// `None` after an error from which opening the database anew may recover.
    database: Mutex<Option<Arc<Database>>>,
}

impl Sqlite {
    /// Opens the database at `path`, or creates it if `create`. `any_file_system`: the administrator states that no other host
    /// uses it.
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

    /// The database. It is opened anew if its files were replaced.
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

    /// Runs `read`, on a database that was at the path both before and after.
    fn read<T>(
        &self,
        what: &dyn std::fmt::Display,
        read: impl Fn(&rusqlite::Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let attempted = || format!("read the reservations of {what} in {}", self.path.display());
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

    /// Makes the next command open the database anew.
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
        // The wait may have been long.
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

    fn units(&self) -> Result<Vec<String>, StoreError> {
        self.read(&"all units", |connection| {
            let mut select = connection.prepare("SELECT name FROM unit")?;
            select.query_map([], |row| row.get(0))?.collect()
        })
    }

    type Turn<'a> = Option<FifoFileLock<FifoMutexGuard<'a, File>>>;

    /// A turn is of the whole database, which has one writer at a time. The threads of this process share the file.
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
