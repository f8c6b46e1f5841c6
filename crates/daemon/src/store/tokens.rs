//! Bearer tokens as rows. Owns the table; refuses secrets (there is only their hash) and judging one
//! (`access::tokens`).

use super::{Store, StoreError};
use rusqlite::types::Type;
use rusqlite::{Error, Row, params};

/// A token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    /// Eight hexadecimal digits.
    pub id: String,
    /// What it is for.
    pub name: String,
    /// Scopes, separated by spaces.
    pub scopes: String,
    /// SHA-256 of the secret bits.
    pub hash: [u8; 32],
    /// When it was made, milliseconds since the epoch like all times here.
    pub created_ms: u64,
    /// When it ends by itself.
    pub expires_ms: Option<u64>,
    /// When it was used last.
    pub last_used_ms: Option<u64>,
    /// When it was revoked.
    pub revoked_ms: Option<u64>,
}

impl Store {
    /// Every token, the oldest first.
    ///
    /// # Errors
    /// The database's.
    pub fn tokens(&self) -> Result<Vec<TokenRow>, StoreError> {
        let connection = self.connection();
        let select = || -> rusqlite::Result<Vec<TokenRow>> {
            let sql = "SELECT id, name, scopes, hash, created_ms, expires_ms, last_used_ms, revoked_ms
                 FROM tokens ORDER BY created_ms, id";
            connection.prepare_cached(sql)?.query_map([], token)?.collect()
        };
        select().map_err(|error| StoreError::sqlite(&self.path, error))
    }

    /// Writes a token: a new one, or what changed of it.
    ///
    /// # Errors
    /// The database's.
    pub fn put_token(&self, row: &TokenRow) -> Result<(), StoreError> {
        let sql = "INSERT OR REPLACE INTO tokens VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
        let values = params![
            row.id,
            row.name,
            row.scopes,
            row.hash,
            row.created_ms.cast_signed(),
            row.expires_ms.map(u64::cast_signed),
            row.last_used_ms.map(u64::cast_signed),
            row.revoked_ms.map(u64::cast_signed),
        ];
        let done = self.connection().execute(sql, values);
        done.map(|_| ()).map_err(|error| StoreError::sqlite(&self.path, error))
    }

    /// Forgets tokens that ended before this time.
    ///
    /// # Errors
    /// The database's.
    pub fn forget_tokens(&self, ended_before_ms: u64) -> Result<(), StoreError> {
        let sql = "DELETE FROM tokens WHERE revoked_ms < ?1 OR expires_ms < ?1";
        let done = self.connection().execute(sql, [ended_before_ms.cast_signed()]);
        done.map(|_| ()).map_err(|error| StoreError::sqlite(&self.path, error))
    }
}

fn token(row: &Row<'_>) -> rusqlite::Result<TokenRow> {
    let hash: Vec<u8> = row.get(3)?;
    let time = |column| row.get::<_, Option<i64>>(column).map(|ms| ms.map(i64::cast_unsigned));
    Ok(TokenRow {
        id: row.get(0)?,
        name: row.get(1)?,
        scopes: row.get(2)?,
        hash: hash.try_into().map_err(|_| Error::InvalidColumnType(3, "hash".into(), Type::Blob))?,
        created_ms: row.get::<_, i64>(4)?.cast_unsigned(),
        expires_ms: time(5)?,
        last_used_ms: time(6)?,
        revoked_ms: time(7)?,
    })
}
