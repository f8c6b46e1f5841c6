//! The daemon's memory: one SQLite file in the state directory, readable with `sqlite3`.
//!
//! Owns: which VMs there are, who has which name and block, what was about to happen to each, and
//! that one daemon at a time works here. Refuses: processes, files and networks of VMs; it
//! remembers what the daemon tells it.
//!
//! Calls block for a fraction of a millisecond and may be made from an async task; opening reads
//! the whole file and belongs on a blocking thread.

mod adopt;
mod error;
mod group_lists;
mod keys;
mod lock;
mod row;
mod schema;
#[cfg(test)]
mod tests;
mod tokens;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use enisle_net::plan::{Block, Range};
use enisle_net::policy::PolicySpec;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params};

pub(crate) use lock::lock_holder;

use lock::StateLock;
use row::{COLUMNS, json_of, json_of_labels, number_of};

pub use error::StoreError;
pub use keys::{KEY_MS, KeyUse, MAX_KEYS};
pub use row::{Intent, Lifetime, NewVm, VmRow, VmmProcess, is_vm_name};
pub use tokens::TokenRow;

const DATABASE: &str = "state.db";
const SCOPE: &str = "SELECT value FROM meta WHERE key = 'scope'";

/// The scope of a state directory, whoever holds it; `None` where there is none yet, or nobody may read it. Changes
/// nothing.
pub(crate) fn scope_of(state_dir: &Path) -> Option<String> {
    let path = state_dir.join(DATABASE);
    // Without a log beside it the file is whole, and read as one that never changes, or SQLite would make a log.
    let whole = if path.with_extension("db-wal").exists() { "" } else { "&immutable=1" };
    let escaped = path.to_str()?.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(format!("file:{escaped}?mode=ro{whole}"), flags).ok()?;
    connection.query_row(SCOPE, [], |row| row.get(0)).ok()
}

/// The open database, and the lock on its directory.
#[derive(Debug)]
pub struct Store {
    connection: Mutex<Connection>,
    path: PathBuf,
    scope: String,
    run: i64,
    /// Dropped last: the file is closed by then.
    _lock: StateLock,
}

impl Store {
    /// Opens the state in `state_dir`, which is made where it is missing, and begins a new run:
    /// every VM that is there now is an earlier run's, until it is adopted. Blocks for milliseconds.
    ///
    /// # Errors
    /// [`StoreError::Locked`], [`StoreError::TooNew`], [`StoreError::Corrupt`],
    /// [`StoreError::Full`], [`StoreError::ReadOnly`] and what else a file system can say.
    pub fn open(state_dir: &Path) -> Result<Store, StoreError> {
        let lock = StateLock::take(state_dir)?;
        let path = state_dir.join(DATABASE);
        let mut connection = schema::open(&path)?;
        let boot_id = boot_id()?;
        let scope = random_scope()?;
        let begun = begin_run(&mut connection, &scope, &boot_id);
        let (scope, run) = begun.map_err(|error| StoreError::sqlite(&path, error))?;
        Ok(Store { connection: Mutex::new(connection), path, scope, run, _lock: lock })
    }

    /// Marks everything this daemon makes on the host: 8 hex digits, chosen once for the state
    /// directory.
    #[must_use]
    pub fn scope(&self) -> &str {
        &self.scope
    }

    /// The number of this run of the daemon on its state directory, from 1.
    #[must_use]
    pub fn run(&self) -> u64 {
        self.run.cast_unsigned()
    }

    /// Takes a name and a block for a VM, with [`Intent::Create`]. One transaction: two callers
    /// never get the same.
    ///
    /// # Errors
    /// [`StoreError::NameTaken`], [`StoreError::BadName`], [`StoreError::RangeFull`], or the
    /// database's.
    pub fn reserve(&self, vm: &NewVm) -> Result<VmRow, StoreError> {
        let mut connection = self.connection();
        let sqlite = |error| StoreError::sqlite(&self.path, error);
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sqlite)?;
        let name = match &vm.name {
            Some(name) => name.clone(),
            None => free_name(&transaction, &vm.group).map_err(sqlite)?,
        };
        if !is_vm_name(&name) {
            return Err(StoreError::BadName { name });
        }
        if find(&transaction, &name).map_err(sqlite)?.is_some() {
            return Err(StoreError::NameTaken { name });
        }
        let free = free_blocks(&transaction, vm.range, 1).map_err(sqlite)?;
        let Some(&block) = free.first() else {
            return Err(StoreError::RangeFull { group: vm.group.clone(), range: vm.range });
        };
        let row = VmRow {
            name,
            group: vm.group.clone(),
            block,
            vcpu: vm.vcpu,
            ram_mib: vm.ram_mib,
            image: vm.image.clone(),
            disk_bytes: vm.disk_bytes,
            created_ms: vm.created_ms,
            intent: Intent::Create,
            vmm: None,
            ready_after_ms: None,
            userdata_exit: None,
            lists: vm.lists.clone(),
            labels: vm.labels.clone(),
            lifetime: vm.lifetime,
        };
        insert(&transaction, &row, self.run).map_err(sqlite)?;
        transaction.commit().map_err(sqlite)?;
        Ok(row)
    }

    /// Remembers the VMM's process, as soon as it was started.
    ///
    /// # Errors
    /// [`StoreError::NoSuchVm`], or the database's.
    pub fn set_vmm(&self, name: &str, vmm: VmmProcess) -> Result<(), StoreError> {
        let sql = "UPDATE vms SET vmm_pid = ?2, vmm_start = ?3 WHERE name = ?1";
        self.update(name, sql, params![name, vmm.pid, vmm.start_ticks.cast_signed()])
    }

    /// The VM is ready: [`Intent::Run`]. A VM that is to be deleted stays so.
    ///
    /// # Errors
    /// [`StoreError::NoSuchVm`], or the database's.
    pub fn set_running(&self, name: &str, ready_after_ms: u64) -> Result<(), StoreError> {
        let sql = "UPDATE vms SET ready_after_ms = ?2,
             intent = CASE intent WHEN 'create' THEN 'run' ELSE intent END WHERE name = ?1";
        self.update(name, sql, params![name, ready_after_ms.cast_signed()])
    }

    /// The first-boot script ended with this status.
    ///
    /// # Errors
    /// [`StoreError::NoSuchVm`], or the database's.
    pub fn set_userdata(&self, name: &str, exit: i32) -> Result<(), StoreError> {
        let sql = "UPDATE vms SET userdata_exit = ?2, userdata = NULL WHERE name = ?1";
        self.update(name, sql, params![name, exit])
    }

    /// Replaces the VM's own policy.
    ///
    /// # Errors
    /// [`StoreError::NoSuchVm`], or the database's.
    pub fn set_lists(&self, name: &str, lists: &PolicySpec) -> Result<(), StoreError> {
        let sql = "UPDATE vms SET own_drop = ?2, own_allow = ?3 WHERE name = ?1";
        self.update(name, sql, params![name, json_of(&lists.drop), json_of(&lists.allow)])
    }

    /// The blocks that the next VMs of this range get, lowest first, at most `most`.
    ///
    /// # Errors
    /// The database's.
    pub fn free_blocks(&self, range: Range, most: usize) -> Result<Vec<Block>, StoreError> {
        let free = free_blocks(&self.connection(), range, most);
        free.map_err(|error| StoreError::sqlite(&self.path, error))
    }

    /// The VM is to go: [`Intent::Delete`]. Its name and block stay taken until
    /// [`Store::remove`].
    ///
    /// # Errors
    /// [`StoreError::NoSuchVm`], or the database's.
    pub fn mark_delete(&self, name: &str) -> Result<VmRow, StoreError> {
        let sql = "UPDATE vms SET intent = 'delete' WHERE name = ?1";
        self.update(name, sql, params![name])?;
        self.get(name)?.ok_or_else(|| no_such_vm(name))
    }

    /// Forgets a VM of which nothing is left; its name and block are free again. Forgetting what
    /// is not known is no error.
    ///
    /// # Errors
    /// The database's.
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        let mut connection = self.connection();
        let mut delete = || -> rusqlite::Result<()> {
            let transaction = connection.transaction()?;
            keys::forget_unready(&transaction, name)?;
            transaction.execute("DELETE FROM vms WHERE name = ?1", [name])?;
            transaction.commit()
        };
        delete().map_err(|error| StoreError::sqlite(&self.path, error))
    }

    /// One VM.
    ///
    /// # Errors
    /// The database's.
    pub fn get(&self, name: &str) -> Result<Option<VmRow>, StoreError> {
        find(&self.connection(), name).map_err(|error| StoreError::sqlite(&self.path, error))
    }

    /// All VMs: by group, then by length and letters of the name, so that 10 comes after 9.
    ///
    /// # Errors
    /// The database's.
    pub fn list(&self) -> Result<Vec<VmRow>, StoreError> {
        self.of_runs_before(i64::MAX)
    }

    /// VMs that an earlier run of the daemon left behind, in the order of [`Store::list`].
    ///
    /// # Errors
    /// The database's.
    pub fn leftovers(&self) -> Result<Vec<VmRow>, StoreError> {
        self.of_runs_before(self.run)
    }

    fn of_runs_before(&self, run: i64) -> Result<Vec<VmRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM vms WHERE run < ?1 ORDER BY vm_group, length(name), name");
        let connection = self.connection();
        let select = || -> rusqlite::Result<Vec<VmRow>> {
            let mut statement = connection.prepare_cached(&sql)?;
            statement.query_map([run], VmRow::from_sql)?.collect()
        };
        select().map_err(|error| StoreError::sqlite(&self.path, error))
    }

    fn update(&self, name: &str, sql: &str, values: &[&dyn rusqlite::ToSql]) -> Result<(), StoreError> {
        match self.connection().execute(sql, values) {
            Ok(0) => Err(no_such_vm(name)),
            Ok(_) => Ok(()),
            Err(error) => Err(StoreError::sqlite(&self.path, error)),
        }
    }

    /// A panic elsewhere leaves no half transaction: its guard rolled it back.
    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_such_vm(name: &str) -> StoreError {
    StoreError::NoSuchVm { name: name.to_owned() }
}

/// Numbers this run. Chooses the scope on the first one, and forgets processes of an earlier boot.
fn begin_run(connection: &mut Connection, scope: &str, boot_id: &str) -> rusqlite::Result<(String, i64)> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute("INSERT OR IGNORE INTO meta VALUES ('scope', ?1)", [scope])?;
    transaction.execute("INSERT OR IGNORE INTO meta VALUES ('run', '0')", [])?;
    let booted = transaction.execute(
        "INSERT INTO meta VALUES ('boot_id', ?1)
         ON CONFLICT DO UPDATE SET value = excluded.value WHERE value <> excluded.value",
        [boot_id],
    )?;
    if booted > 0 {
        transaction.execute("UPDATE vms SET vmm_pid = NULL, vmm_start = NULL", [])?;
    }
    let run = transaction.query_row(
        "UPDATE meta SET value = CAST(value + 1 AS TEXT) WHERE key = 'run'
         RETURNING CAST(value AS INTEGER)",
        [],
        |row| row.get(0),
    )?;
    let scope = transaction.query_row(SCOPE, [], |row| row.get(0))?;
    transaction.commit()?;
    Ok((scope, run))
}

fn find(connection: &Connection, name: &str) -> rusqlite::Result<Option<VmRow>> {
    let sql = format!("SELECT {COLUMNS} FROM vms WHERE name = ?1");
    connection.prepare_cached(&sql)?.query_row([name], VmRow::from_sql).optional()
}

/// `GROUP-N` with the lowest N from 1 that no VM of any group has.
fn free_name(transaction: &Transaction<'_>, group: &str) -> rusqlite::Result<String> {
    // `.` is the character after `-`: every name that begins with `GROUP-`, by the index.
    let sql = "SELECT name FROM vms WHERE name >= ?1 || '-' AND name < ?1 || '.'";
    let mut statement = transaction.prepare_cached(sql)?;
    let names = statement.query_map([group], |row| row.get::<_, String>(0))?;
    let mut taken = BTreeSet::new();
    for name in names {
        let name = name?;
        let number = name.get(group.len() + 1..).and_then(|n| n.parse::<u32>().ok());
        taken.extend(number.filter(|n| name == format!("{group}-{n}")));
    }
    let free = (1..=u32::MAX).find(|n| !taken.contains(n)).unwrap_or(u32::MAX);
    Ok(format!("{group}-{free}"))
}

/// The lowest blocks of the range that no VM has, at most `most`.
fn free_blocks(connection: &Connection, range: Range, most: usize) -> rusqlite::Result<Vec<Block>> {
    let Some(first) = range.block(0).map(number_of) else {
        return Ok(Vec::new());
    };
    let sql = "SELECT block FROM vms WHERE block >= ?1 AND block < ?2 ORDER BY block";
    let mut statement = connection.prepare_cached(sql)?;
    let after = u64::from(first) + u64::from(range.capacity());
    let mut taken = statement.query_map(params![first, after.cast_signed()], |row| row.get::<_, u32>(0))?;
    let mut free = Vec::new();
    let mut next = taken.next().transpose()?;
    for at in 0..range.capacity() {
        if free.len() == most {
            break;
        }
        if next == Some(first + at) {
            next = taken.next().transpose()?;
        } else {
            free.extend(range.block(at));
        }
    }
    Ok(free)
}

fn insert(transaction: &Transaction<'_>, vm: &VmRow, run: i64) -> rusqlite::Result<()> {
    let sql = "INSERT INTO vms (name, vm_group, block, vcpu, ram_mib, image, disk_bytes,
         created_ms, intent, run, own_drop, own_allow, labels, ttl_ms, idle_timeout_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)";
    let values = params![
        vm.name,
        vm.group,
        number_of(vm.block),
        vm.vcpu,
        vm.ram_mib,
        vm.image,
        vm.disk_bytes.cast_signed(),
        vm.created_ms.cast_signed(),
        vm.intent.word(),
        run,
        json_of(&vm.lists.drop),
        json_of(&vm.lists.allow),
        json_of_labels(&vm.labels),
        vm.lifetime.ttl_ms.map(u64::cast_signed),
        vm.lifetime.idle_timeout_ms.map(u64::cast_signed),
    ];
    transaction.execute(sql, values).map(|_| ())
}

/// Names this boot of the host (random(4)).
fn boot_id() -> Result<String, StoreError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = fs::read_to_string(path).map_err(|error| StoreError::io("read", path, error))?;
    Ok(text.trim().to_owned())
}

/// 32 random bits in hex.
fn random_scope() -> Result<String, StoreError> {
    let path = Path::new("/dev/urandom");
    let read = || -> io::Result<[u8; 4]> {
        let mut bytes = [0; 4];
        fs::File::open(path)?.read_exact(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|error| StoreError::io("read", path, error))?;
    Ok(format!("{:08x}", u32::from_be_bytes(bytes)))
}
