//! What is asked about, in SQLite: disposable, the log makes it again.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

use crate::store::embedded::directory;
use crate::store::embedded::segment::LogPoint;

pub mod apply;
pub mod compare;
pub mod queries;
pub mod soundness;
pub mod stories;
mod sums;
pub mod trim;

const FORMAT: i64 = 4;
// An index in memory, where the disk takes none: beyond this it falls behind.
const MEMORY_BYTES_MAX: i64 = 64 << 20;
const PAGE_BYTES: i64 = 8192;
// Others may read it: that is waited for.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

const SCHEMA: &str = "
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE name (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
CREATE TABLE webhook (
  id INTEGER PRIMARY KEY, webhook_id BLOB NOT NULL,
  segment INTEGER NOT NULL, start INTEGER NOT NULL, length INTEGER NOT NULL,
  received_at INTEGER NOT NULL, source INTEGER NOT NULL, activity INTEGER,
  resource_type INTEGER, resource_id TEXT, body_bytes INTEGER NOT NULL,
  unrouted INTEGER NOT NULL, bare INTEGER NOT NULL);
CREATE INDEX unrouted ON webhook (id) WHERE unrouted = 1;
CREATE TABLE delivery (
  webhook INTEGER NOT NULL, number INTEGER NOT NULL, target INTEGER NOT NULL,
  again INTEGER NOT NULL, state INTEGER NOT NULL, cause INTEGER NOT NULL,
  due_at INTEGER NOT NULL, version INTEGER NOT NULL, attempts INTEGER NOT NULL,
  started_at INTEGER NOT NULL, history BLOB,
  segment INTEGER, start INTEGER, length INTEGER, spared INTEGER NOT NULL,
  PRIMARY KEY (webhook, number)) WITHOUT ROWID;
CREATE INDEX due ON delivery (target, due_at, webhook, number) WHERE state = 0;
CREATE INDEX age ON delivery (target, started_at) WHERE state = 0;
CREATE INDEX dead ON delivery (target, webhook) WHERE state = 2;
CREATE INDEX pinning ON delivery (target, webhook) WHERE state = 2 AND spared = 0;
CREATE TABLE recent (first INTEGER PRIMARY KEY, keys BLOB NOT NULL);
CREATE TABLE counts (
  target INTEGER NOT NULL, state INTEGER NOT NULL, cause INTEGER NOT NULL, n INTEGER NOT NULL,
  bytes INTEGER NOT NULL, PRIMARY KEY (target, state, cause)) WITHOUT ROWID;
CREATE TABLE segment (
  number INTEGER PRIMARY KEY, live INTEGER NOT NULL, first INTEGER NOT NULL,
  last INTEGER NOT NULL);
CREATE TABLE unread (
  segment INTEGER NOT NULL, start INTEGER NOT NULL, length INTEGER NOT NULL,
  PRIMARY KEY (segment, start)) WITHOUT ROWID;
CREATE TABLE newest (source INTEGER PRIMARY KEY, at INTEGER NOT NULL);
";

/// Where the index is open.
#[derive(Debug)]
pub struct Index {
    path: PathBuf,
    connection: Connection,
    names: HashMap<Arc<str>, i64>,
    names_by_id: HashMap<i64, Arc<str>>,
    applied: LogPoint,
    place: Place,
}

/// Where an index is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    File,
    Memory,
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sharing {
    /// Others may read it at the same time.
    Shared,
    /// Nobody else: that needs no file for what readers share.
    Exclusive,
}

/// Whether an error means that the file is not a sound index, so that it must be made again.
pub fn is_unsound(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) => matches!(
            failure.code,
            ErrorCode::DatabaseCorrupt
                | ErrorCode::NotADatabase
                | ErrorCode::SchemaChanged
                | ErrorCode::ConstraintViolation
                | ErrorCode::TypeMismatch
                | ErrorCode::Unknown
        ),
        // No row or column where there must be one, or of another type.
        _ => true,
    }
}

/// The integer of a number: what the store counts stays far below 2^63.
fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The number of an integer that was never negative.
fn uint(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

impl Index {
    /// Opens the index in a file, or makes a new one there if that is none or of another format.
    /// Where the disk takes none it is in memory.
    pub fn open(path: &Path) -> rusqlite::Result<Self> {
        let mut result = Self::open_file(path);
        // What can't be read is no index, and the log has all of it.
        if result.is_err() && !is_readable(path) {
            put_aside(path);
            result = Self::open_file(path);
        }
        result.or_else(|error| {
            tracing::error!(%error, "the disk takes no index: it is in memory for now");
            Self::in_memory(path)
        })
    }

    /// Opens or makes the index in a file, and only there.
    pub fn open_file(path: &Path) -> rusqlite::Result<Self> {
        Self::open_as(path, Sharing::Shared).or_else(|error| {
            tracing::warn!(%error, "the index can't be shared with other readers");
            Self::open_as(path, Sharing::Exclusive)
        })
    }

    fn open_as(path: &Path, sharing: Sharing) -> rusqlite::Result<Self> {
        match Self::open_existing(path, sharing) {
            Ok(Some(index)) => return Ok(index),
            Ok(None) => {}
            Err(error) if is_unsound(&error) => {
                tracing::warn!(%error, "the index is not sound and is made again from the log");
            }
            Err(error) => return Err(error),
        }
        put_aside(path);
        let connection = Self::connect(path, sharing)?;
        Self::create(path, connection, Place::File)
    }

    /// Opens the index in a file if it is one, all of it; makes nothing.
    pub fn open_whole(path: &Path) -> rusqlite::Result<Option<Self>> {
        let Some(index) = Self::open_existing(path, Sharing::Shared)? else { return Ok(None) };
        Ok(index.flaw()?.is_none().then_some(index))
    }

    fn connect(path: &Path, sharing: Sharing) -> rusqlite::Result<Connection> {
        make_private(path);
        let connection = Connection::open(path)?;
        if sharing == Sharing::Exclusive {
            connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        }
        connection.pragma_update(None, "page_size", PAGE_BYTES)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "wal_autocheckpoint", 4000)?;
        connection.pragma_update(None, "cache_size", -2000)?;
        prepare(&connection)?;
        Ok(connection)
    }

    fn open_existing(path: &Path, sharing: Sharing) -> rusqlite::Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        let connection = Self::connect(path, sharing)?;
        let tables: i64 = connection.query_row(
            "SELECT COUNT(*) FROM sqlite_master WHERE name = 'meta'",
            (),
            |row| row.get(0),
        )?;
        if tables == 0 {
            return Ok(None);
        }
        let mut index = Self::new(path, connection, Place::File);
        if index.meta("format")? != Some(FORMAT) {
            tracing::warn!("the index has another format and is made again from the log");
            return Ok(None);
        }
        index.applied = LogPoint {
            segment: uint(index.meta("applied_segment")?.unwrap_or(0)),
            offset: uint(index.meta("applied_offset")?.unwrap_or(0)),
        };
        index.load_names()?;
        Ok(Some(index))
    }

    fn new(path: &Path, connection: Connection, place: Place) -> Self {
        Self {
            path: path.into(),
            connection,
            names: HashMap::new(),
            names_by_id: HashMap::new(),
            applied: LogPoint::default(),
            place,
        }
    }

    fn create(path: &Path, connection: Connection, place: Place) -> rusqlite::Result<Self> {
        connection.execute_batch("BEGIN")?;
        connection.execute_batch(SCHEMA)?;
        connection.execute("INSERT INTO meta VALUES ('format', ?1)", [FORMAT])?;
        connection.execute_batch("COMMIT")?;
        Ok(Self::new(path, connection, place))
    }

    fn in_memory(path: &Path) -> rusqlite::Result<Self> {
        let connection = Connection::open_in_memory()?;
        connection.pragma_update(None, "page_size", PAGE_BYTES)?;
        connection.pragma_update(None, "max_page_count", MEMORY_BYTES_MAX / PAGE_BYTES)?;
        prepare(&connection)?;
        Self::create(path, connection, Place::Memory)
    }

    /// Throws everything away and begins again, in memory if the disk does not take it.
    pub fn make_again(&mut self) -> rusqlite::Result<()> {
        // The file must be closed before it is removed: SQLite would write into what was unlinked.
        self.connection = Connection::open_in_memory()?;
        if self.place == Place::File {
            put_aside(&self.path);
        }
        *self = match self.place {
            Place::File => Self::open(&self.path)?,
            Place::Memory => Self::in_memory(&self.path)?,
        };
        Ok(())
    }

    /// Leaves the file as it is and begins again in memory.
    pub fn move_to_memory(&mut self) -> rusqlite::Result<()> {
        *self = Self::in_memory(&self.path)?;
        Ok(())
    }

    /// Begins again in a new file, if it is in memory and the disk takes one. The one that lies there
    /// may know of settlements that a crash took from the log, and the lanes do not.
    pub fn move_to_file(&mut self) -> rusqlite::Result<()> {
        *self = Self::open_file(&self.path)?;
        self.make_again()
    }

    /// Whether it is in memory, because the disk did not take it.
    pub fn is_in_memory(&self) -> bool {
        self.place == Place::Memory
    }

    /// Up to where the log is in it.
    pub fn applied(&self) -> LogPoint {
        self.applied
    }

    fn meta(&self, name: &str) -> rusqlite::Result<Option<i64>> {
        self.connection
            .prepare_cached("SELECT value FROM meta WHERE name = ?1")?
            .query_row([name], |row| row.get(0))
            .optional()
    }

    fn load_names(&mut self) -> rusqlite::Result<()> {
        self.names.clear();
        self.names_by_id.clear();
        let mut statement = self.connection.prepare("SELECT id, text FROM name")?;
        let mut rows = statement.query(())?;
        while let Some(row) = rows.next()? {
            let name: Arc<str> = row.get::<_, String>(1)?.into();
            self.names.insert(Arc::clone(&name), row.get(0)?);
            self.names_by_id.insert(row.get(0)?, name);
        }
        Ok(())
    }

    fn name_id(&mut self, name: &str) -> rusqlite::Result<i64> {
        if let Some(id) = self.names.get(name) {
            return Ok(*id);
        }
        self.connection
            .prepare_cached("INSERT INTO name (text) VALUES (?1)")?
            .execute(params![name])?;
        let id = self.connection.last_insert_rowid();
        let name: Arc<str> = name.into();
        self.names.insert(Arc::clone(&name), id);
        self.names_by_id.insert(id, name);
        Ok(id)
    }

    fn name_of(&self, id: i64) -> Option<Arc<str>> {
        self.names_by_id.get(&id).cloned()
    }

    /// Runs `work` in a transaction.
    pub fn transaction<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        self.connection.execute_batch("BEGIN IMMEDIATE")?;
        let applied = self.applied;
        let result = work(self).and_then(|value| {
            self.connection.execute_batch("COMMIT")?;
            Ok(value)
        });
        if result.is_err() {
            self.applied = applied;
            if let Err(error) = self.connection.execute_batch("ROLLBACK") {
                tracing::warn!(%error, "the index could not roll back");
            }
            // Names that were new in it are gone.
            self.load_names()?;
        }
        result
    }

    /// A segment is to be unlinked. Answers whether no index can be opened any more that would look
    /// for webhooks in it: neither one that a power cut sets back, nor the one that lay in the file
    /// when this one began in memory.
    pub fn before_unlink(&self) -> rusqlite::Result<bool> {
        match self.place {
            Place::File => {
                // Somebody may read it for seconds, and nobody is to wait for that.
                self.connection.busy_timeout(Duration::ZERO)?;
                let is_done = self.checkpoint();
                self.connection.busy_timeout(BUSY_TIMEOUT)?;
                is_done
            }
            Place::Memory => Ok(forget_file(&self.path)),
        }
    }

    /// Moves what is in the write-ahead log into the file; answers whether that was all of it.
    pub fn checkpoint(&self) -> rusqlite::Result<bool> {
        let is_busy: bool =
            self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |row| row.get(0))?;
        Ok(!is_busy)
    }
}

/// Takes the file of an index away for good; answers whether it is.
fn forget_file(path: &Path) -> bool {
    let removed = match std::fs::remove_file(path) {
        // A directory is none of ours, and no index.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::IsADirectory) => {
            Ok(())
        }
        removed => removed,
    };
    let done = removed.and_then(|()| File::open(directory::parent(path))?.sync_all());
    if let Err(error) = &done {
        tracing::warn!(%error, "the index that was left behind can't be removed");
    }
    done.is_ok()
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(48);
    connection.pragma_update(None, "temp_store", "MEMORY")
}

/// Whether what is there can be read, or nothing is there.
fn is_readable(path: &Path) -> bool {
    match File::open(path) {
        Ok(mut file) => file.read(&mut [0; 100]).is_ok(),
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

/// Takes the files of an index away. What is no file gets another name: it is none of ours.
fn put_aside(path: &Path) {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        let done = match std::fs::remove_file(&name) {
            Err(error) if error.kind() == ErrorKind::IsADirectory => {
                let mut aside = name.clone();
                aside.push(".unreadable");
                std::fs::rename(&name, aside)
            }
            done => done,
        };
        match done {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, "an unsound index could not be removed"),
        }
    }
}

/// SQLite gives the files beside the database the permissions that the database has.
fn make_private(path: &Path) {
    let made = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    let set = made.and_then(|file| file.set_permissions(Permissions::from_mode(0o600)));
    // If nothing can be done here, opening it says so.
    if let Err(error) = set {
        tracing::warn!(%error, "the index can't be made private");
    }
}
