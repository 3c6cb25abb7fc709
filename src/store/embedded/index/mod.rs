//! What is asked about, in SQLite: disposable, the log makes it again.

use std::collections::HashMap;
use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

use crate::store::embedded::segment::LogPoint;

pub mod apply;
pub mod queries;
pub mod trim;

const FORMAT: i64 = 1;

const SCHEMA: &str = "
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE name (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
CREATE TABLE webhook (
  id INTEGER PRIMARY KEY, webhook_id BLOB NOT NULL,
  segment INTEGER NOT NULL, start INTEGER NOT NULL, length INTEGER NOT NULL,
  received_at INTEGER NOT NULL, source INTEGER NOT NULL, activity INTEGER,
  resource_type INTEGER, resource_id TEXT, body_bytes INTEGER NOT NULL,
  unrouted INTEGER NOT NULL);
CREATE TABLE delivery (
  webhook INTEGER NOT NULL, number INTEGER NOT NULL, target INTEGER NOT NULL,
  again INTEGER NOT NULL, state INTEGER NOT NULL, cause INTEGER NOT NULL,
  due_at INTEGER NOT NULL, version INTEGER NOT NULL, attempts INTEGER NOT NULL,
  started_at INTEGER NOT NULL, history BLOB,
  segment INTEGER, start INTEGER, length INTEGER,
  PRIMARY KEY (webhook, number)) WITHOUT ROWID;
CREATE INDEX due ON delivery (target, due_at, webhook, number) WHERE state = 0;
CREATE INDEX age ON delivery (target, started_at) WHERE state = 0;
CREATE INDEX dead ON delivery (target, webhook) WHERE state = 2;
CREATE TABLE recent (first INTEGER PRIMARY KEY, keys BLOB NOT NULL);
CREATE TABLE counts (
  target INTEGER NOT NULL, state INTEGER NOT NULL, cause INTEGER NOT NULL, n INTEGER NOT NULL,
  PRIMARY KEY (target, state, cause)) WITHOUT ROWID;
CREATE TABLE segment (
  number INTEGER PRIMARY KEY, live INTEGER NOT NULL, first INTEGER NOT NULL,
  last INTEGER NOT NULL);
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
    /// Answers also whether it is new.
    pub fn open(path: &Path) -> rusqlite::Result<(Self, bool)> {
        match Self::open_existing(path) {
            Ok(Some(index)) => return Ok((index, false)),
            Ok(None) => {}
            Err(error) if is_unsound(&error) => {
                tracing::warn!(%error, "the index is not sound and is made again from the log");
            }
            Err(error) => return Err(error),
        }
        Ok((Self::create(path)?, true))
    }

    fn connect(path: &Path) -> rusqlite::Result<Connection> {
        make_private(path);
        let connection = Connection::open(path)?;
        connection.set_prepared_statement_cache_capacity(48);
        connection.pragma_update(None, "page_size", 8192)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "wal_autocheckpoint", 4000)?;
        connection.pragma_update(None, "cache_size", -2000)?;
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        Ok(connection)
    }

    fn open_existing(path: &Path) -> rusqlite::Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        let connection = Self::connect(path)?;
        let tables: i64 = connection.query_row(
            "SELECT COUNT(*) FROM sqlite_master WHERE name = 'meta'",
            (),
            |row| row.get(0),
        )?;
        if tables == 0 {
            return Ok(None);
        }
        let mut index = Self {
            path: path.into(),
            connection,
            names: HashMap::new(),
            names_by_id: HashMap::new(),
            applied: LogPoint::default(),
        };
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

    fn create(path: &Path) -> rusqlite::Result<Self> {
        remove(path);
        let connection = Self::connect(path)?;
        connection.execute_batch("BEGIN")?;
        connection.execute_batch(SCHEMA)?;
        connection.execute("INSERT INTO meta VALUES ('format', ?1)", [FORMAT])?;
        connection.execute_batch("COMMIT")?;
        Ok(Self {
            path: path.into(),
            connection,
            names: HashMap::new(),
            names_by_id: HashMap::new(),
            applied: LogPoint::default(),
        })
    }

    /// Throws everything away and begins again.
    pub fn make_again(&mut self) -> rusqlite::Result<()> {
        // The file must be closed before it is removed: SQLite would write into what was unlinked.
        self.connection = Connection::open_in_memory()?;
        *self = Self::create(&self.path.clone())?;
        Ok(())
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

    /// Moves what is in the write-ahead log into the file.
    pub fn checkpoint(&self) -> rusqlite::Result<()> {
        self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(()))
    }

    /// The bytes of its files.
    pub fn bytes(&self) -> u64 {
        let size = |suffix: &str| {
            let mut path = self.path.clone().into_os_string();
            path.push(suffix);
            std::fs::metadata(path).map_or(0, |meta| meta.len())
        };
        size("") + size("-wal") + size("-shm")
    }
}

fn remove(path: &Path) {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match std::fs::remove_file(&name) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
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
