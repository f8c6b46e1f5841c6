//! The database's schema and its history.
//!
//! Owns: opening, checking and migrating the file. Refuses: rows.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior};

use super::StoreError;

/// Step N brings schema N to N + 1 (`user_version` of the database). A released step is never
/// edited: a change is a new step.
const STEPS: [&str; 7] = [
    include_str!("schema/1.sql"),
    include_str!("schema/2.sql"),
    include_str!("schema/3.sql"),
    include_str!("schema/4.sql"),
    include_str!("schema/5.sql"),
    include_str!("schema/6.sql"),
    include_str!("schema/7.sql"),
];
const NEWEST: u32 = STEPS.len() as u32;

/// Opens the database, makes it where it is missing, and brings it to the newest schema.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    // Made here so that it is nobody else's to read; SQLite gives its own files the same mode.
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| StoreError::io("open", path, error))?;
    let mut connection = Connection::open(path).map_err(|e| StoreError::sqlite(path, e))?;
    prepare(&mut connection, path)?;
    Ok(connection)
}

fn prepare(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let sqlite = |error| StoreError::sqlite(path, error);
    // Somebody may look with `sqlite3` meanwhile; a reader blocks a writer only at checkpoints.
    connection.busy_timeout(Duration::from_secs(5)).map_err(sqlite)?;
    connection.pragma_update(None, "journal_mode", "wal").map_err(sqlite)?;
    // A commit survives the daemon's death. After a power cut the last ones may be missing, and
    // so is every VM they were about.
    connection.pragma_update(None, "synchronous", "normal").map_err(sqlite)?;
    connection.pragma_update(None, "foreign_keys", true).map_err(sqlite)?;
    let verdict: String =
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(sqlite)?;
    if verdict != "ok" {
        return Err(StoreError::Corrupt { path: path.to_owned(), detail: verdict });
    }
    migrate(connection, path)
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let sqlite = |error| StoreError::sqlite(path, error);
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sqlite)?;
    let found: u32 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(sqlite)?;
    let Some(missing) = STEPS.get(found as usize..) else {
        return Err(StoreError::TooNew { path: path.to_owned(), found, known: NEWEST });
    };
    for step in missing {
        transaction.execute_batch(step).map_err(sqlite)?;
    }
    transaction.pragma_update(None, "user_version", NEWEST).map_err(sqlite)?;
    transaction.commit().map_err(sqlite)
}
