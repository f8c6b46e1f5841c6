//! Idempotency keys: which request made which VM.
//!
//! Owns: the bound in time and number. A key whose VM never was ready goes with that VM, so that a
//! failed creation may be tried again under it. Refuses: comparing requests.

use super::{Store, StoreError};
use rusqlite::{Connection, OptionalExtension, params};

/// A key is remembered for this long, in milliseconds: a day.
pub const KEY_MS: u64 = 24 * 3_600_000;
/// So many are remembered; beyond, the oldest are forgotten.
pub const MAX_KEYS: u32 = 10_000;

/// What a key was used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyUse {
    /// Names the request's content.
    pub request: String,
    /// The VM it made.
    pub vm: String,
    /// When that VM was created.
    pub created_ms: u64,
}

impl Store {
    /// What a key was used for within [`KEY_MS`].
    ///
    /// # Errors
    /// The database's.
    pub fn key_use(&self, key: &str, now_ms: u64) -> Result<Option<KeyUse>, StoreError> {
        let sql = "SELECT request, vm, created_ms FROM idempotency_keys WHERE key = ?1 AND at_ms > ?2";
        let oldest = now_ms.saturating_sub(KEY_MS).cast_signed();
        let read = |row: &rusqlite::Row<'_>| {
            let created: i64 = row.get(2)?;
            Ok(KeyUse { request: row.get(0)?, vm: row.get(1)?, created_ms: created.cast_unsigned() })
        };
        let found = self.connection().query_row(sql, params![key, oldest], read).optional();
        found.map_err(|error| StoreError::sqlite(&self.path, error))
    }

    /// Remembers what a key was used for, and forgets what is too old or too many.
    ///
    /// # Errors
    /// The database's.
    pub fn set_key_use(&self, key: &str, used: &KeyUse, now_ms: u64) -> Result<(), StoreError> {
        let values = params![key, used.request, used.vm, used.created_ms.cast_signed(), now_ms.cast_signed()];
        let mut connection = self.connection();
        let mut write = || -> rusqlite::Result<()> {
            let transaction = connection.transaction()?;
            transaction
                .execute("INSERT OR REPLACE INTO idempotency_keys VALUES (?1, ?2, ?3, ?4, ?5)", values)?;
            let oldest = now_ms.saturating_sub(KEY_MS).cast_signed();
            transaction.execute("DELETE FROM idempotency_keys WHERE at_ms <= ?1", [oldest])?;
            transaction.execute(
                "DELETE FROM idempotency_keys WHERE key IN
                     (SELECT key FROM idempotency_keys ORDER BY at_ms DESC LIMIT -1 OFFSET ?1)",
                [MAX_KEYS],
            )?;
            transaction.commit()
        };
        write().map_err(|error| StoreError::sqlite(&self.path, error))
    }
}

/// Forgets the keys of a VM that is about to be forgotten and never was ready.
pub(super) fn forget_unready(connection: &Connection, vm: &str) -> rusqlite::Result<()> {
    let sql = "DELETE FROM idempotency_keys WHERE vm = ?1 AND EXISTS (SELECT 1 FROM vms
         WHERE name = ?1 AND ready_after_ms IS NULL AND vms.created_ms = idempotency_keys.created_ms)";
    connection.execute(sql, [vm]).map(drop)
}
