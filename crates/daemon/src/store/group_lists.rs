//! Lists of groups that were changed while the daemon ran.
//!
//! Owns: that a change outlives a crash, and nothing but a crash. Refuses: what the lists mean.

use super::row::json_of;
use super::{Store, StoreError};
use enisle_net::policy::{PolicySpec, Rule};
use rusqlite::types::Type;
use rusqlite::{Error, OptionalExtension, Row, params};

impl Store {
    /// Remembers the lists of a group that replace those of the file.
    ///
    /// # Errors
    /// The database's.
    pub fn set_group_lists(
        &self,
        group: &str,
        lists: &PolicySpec,
        file: &PolicySpec,
    ) -> Result<(), StoreError> {
        let sql = "INSERT OR REPLACE INTO group_lists VALUES (?1, ?2, ?3, ?4, ?5)";
        let values = params![
            group,
            json_of(&lists.drop),
            json_of(&lists.allow),
            json_of(&file.drop),
            json_of(&file.allow)
        ];
        let done = self.connection().execute(sql, values);
        done.map(|_| ()).map_err(|error| StoreError::sqlite(&self.path, error))
    }

    /// The lists that replace those of the file, if they were written for what the file says now.
    /// Lists for another file are forgotten: the operator has spoken since.
    ///
    /// # Errors
    /// The database's.
    pub fn group_lists(&self, group: &str, file: &PolicySpec) -> Result<Option<PolicySpec>, StoreError> {
        let connection = self.connection();
        let sqlite = |error| StoreError::sqlite(&self.path, error);
        let forget = "DELETE FROM group_lists WHERE name = ?1 AND (file_drop <> ?2 OR file_allow <> ?3)";
        let said = params![group, json_of(&file.drop), json_of(&file.allow)];
        connection.execute(forget, said).map_err(sqlite)?;
        let sql = "SELECT drop_list, allow_list FROM group_lists WHERE name = ?1";
        connection.query_row(sql, [group], lists).optional().map_err(sqlite)
    }

    /// Forgets the change of one group, whose lists the file has changed.
    ///
    /// # Errors
    /// The database's.
    pub fn forget_lists_of(&self, group: &str) -> Result<(), StoreError> {
        let done = self.connection().execute("DELETE FROM group_lists WHERE name = ?1", [group]);
        done.map(|_| ()).map_err(|error| StoreError::sqlite(&self.path, error))
    }

    /// Forgets every change of a group: the file holds again.
    ///
    /// # Errors
    /// The database's.
    pub fn forget_group_lists(&self) -> Result<(), StoreError> {
        let done = self.connection().execute("DELETE FROM group_lists", []);
        done.map(|_| ()).map_err(|error| StoreError::sqlite(&self.path, error))
    }
}

fn lists(row: &Row<'_>) -> rusqlite::Result<PolicySpec> {
    let list = |column: usize| {
        let text: String = row.get(column)?;
        let read: Result<Vec<Rule>, _> = serde_json::from_str(&text);
        read.map_err(|e| Error::FromSqlConversionFailure(column, Type::Text, Box::new(e)))
    };
    Ok(PolicySpec { drop: list(0)?, allow: list(1)? })
}
