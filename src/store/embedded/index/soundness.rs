//! Whether an index is sound in itself: its pages, and its tables held against each other.

use std::collections::BTreeSet;
use std::path::Path;

use rusqlite::{Connection, OpenFlags, Row, config::DbConfig};

use crate::domain::webhook::WebhookId;
use crate::store::embedded::index::{Index, is_unsound, uint};

// Instructions of SQLite between two looks whether it is over.
const INSTRUCTIONS: i32 = 10_000;

/// Looks through the index in a file while others use it, until `is_over`; answers what is wrong with it.
pub fn look_through(
    path: &Path,
    is_over: impl FnMut() -> bool + Send + 'static,
) -> rusqlite::Result<Option<String>> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    // The index may be made again meanwhile: what lies under its name is not this one's to clear away.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.progress_handler(INSTRUCTIONS, Some(is_over))?;
    told(flaw(&connection))
}

impl Index {
    /// What is wrong with it, if anything is. Reads all of it.
    pub fn flaw(&self) -> rusqlite::Result<Option<String>> {
        told(flaw(&self.connection))
    }

    /// The bytes of its pages.
    pub fn page_bytes(&self) -> rusqlite::Result<u64> {
        let number = |name: &str| self.connection.pragma_query_value(None, name, |row| row.get(0));
        Ok(uint(number("page_count")?) * uint(number("page_size")?))
    }
}

/// What can't be read as an index is a flaw as well.
fn told(found: rusqlite::Result<Option<String>>) -> rusqlite::Result<Option<String>> {
    found.or_else(|error| if is_unsound(&error) { Ok(Some(error.to_string())) } else { Err(error) })
}

fn flaw(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let found: String = connection.query_row("PRAGMA integrity_check(1)", (), |row| row.get(0))?;
    if found != "ok" {
        return Ok(Some(found));
    }
    let mut statement = connection.prepare("SELECT id, webhook_id FROM webhook")?;
    let mut rows = statement.query(())?;
    while let Some(row) = rows.next()? {
        if WebhookId::from_bytes(row.get(1)?).key() != uint(row.get(0)?) {
            return Ok(Some("a webhook has another's key".into()));
        }
    }
    // What is counted and what is there: of one moment.
    let of_one_moment = connection.unchecked_transaction()?;
    let is_astray = of_one_moment
        .prepare(
            "SELECT 1 FROM delivery AS d
             WHERE NOT EXISTS (SELECT 1 FROM webhook AS w WHERE w.id = d.webhook)",
        )?
        .exists(())?;
    if is_astray {
        return Ok(Some("a delivery has no webhook".into()));
    }
    let amounts = |sql: &str| -> rusqlite::Result<BTreeSet<[i64; 5]>> {
        of_one_moment.prepare(sql)?.query_map((), amount)?.collect()
    };
    let counted = amounts("SELECT target, state, cause, n, bytes FROM counts WHERE n <> 0")?;
    let there = amounts(
        "SELECT d.target, d.state, d.cause, COUNT(*), SUM(IIF(d.spared, 0, w.length))
         FROM delivery AS d JOIN webhook AS w ON w.id = d.webhook
         WHERE d.state IN (0, 2) GROUP BY 1, 2, 3",
    )?;
    Ok((counted != there).then(|| "it counts other deliveries than it has".into()))
}

fn amount(row: &Row<'_>) -> rusqlite::Result<[i64; 5]> {
    Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?])
}
