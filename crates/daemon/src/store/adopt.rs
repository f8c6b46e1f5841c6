//! What a daemon must find in its memory to take a VM over.

use super::{DATABASE, Store, StoreError};
use rusqlite::{OptionalExtension, params};
use std::path::Path;

impl Store {
    /// Whether some daemon has ever opened a store in `state_dir`.
    #[must_use]
    pub fn exists(state_dir: &Path) -> bool {
        state_dir.join(DATABASE).exists()
    }

    /// The VM belongs to this run from now on.
    ///
    /// # Errors
    /// [`StoreError::NoSuchVm`], or the database's.
    pub fn adopt(&self, name: &str) -> Result<(), StoreError> {
        self.update(name, "UPDATE vms SET run = ?2 WHERE name = ?1", params![name, self.run])
    }

    /// Remembers the first-boot script until [`Store::set_userdata`] says how it ended.
    ///
    /// # Errors
    /// [`StoreError::NoSuchVm`], or the database's.
    pub fn set_script(&self, name: &str, script: &str) -> Result<(), StoreError> {
        self.update(name, "UPDATE vms SET userdata = ?2 WHERE name = ?1", params![name, script])
    }

    /// The first-boot script whose end is not known yet.
    ///
    /// # Errors
    /// The database's.
    pub fn script(&self, name: &str) -> Result<Option<String>, StoreError> {
        let sql = "SELECT userdata FROM vms WHERE name = ?1";
        let found = self.connection().query_row(sql, [name], |row| row.get(0)).optional();
        found.map(Option::flatten).map_err(|error| StoreError::sqlite(&self.path, error))
    }
}
