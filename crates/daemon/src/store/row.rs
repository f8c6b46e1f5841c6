//! A VM as it is remembered, and its translation to and from SQL.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use enisle_net::plan::{Block, Range};
use enisle_net::policy::{PolicySpec, Rule};
use rusqlite::types::Type;
use rusqlite::{Error, Row};

/// The columns that [`VmRow::from_sql`] reads, in its order.
pub(super) const COLUMNS: &str = "name, vm_group, block, vcpu, ram_mib, image, disk_bytes, \
     created_ms, intent, vmm_pid, vmm_start, ready_after_ms, userdata_exit, own_drop, own_allow, \
     labels, ttl_ms, idle_timeout_ms";

/// A VM to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVm {
    /// Its name; `None` for `GROUP-N` with the lowest free N.
    pub name: Option<String>,
    /// Its group.
    pub group: String,
    /// The group's range, of which it gets the lowest free block.
    pub range: Range,
    /// Virtual CPUs.
    pub vcpu: u8,
    /// Memory in MiB.
    pub ram_mib: u32,
    /// Name of the image.
    pub image: String,
    /// Size of the disk in bytes.
    pub disk_bytes: u64,
    /// Now, in milliseconds since the epoch.
    pub created_ms: u64,
    /// Its own policy, which narrows the group's.
    pub lists: PolicySpec,
    /// Marks to find it by.
    pub labels: BTreeMap<String, String>,
    /// When it goes by itself.
    pub lifetime: Lifetime,
}

/// When a VM goes by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lifetime {
    /// Milliseconds after its creation.
    pub ttl_ms: Option<u64>,
    /// Milliseconds without an open stream.
    pub idle_timeout_ms: Option<u64>,
}

/// A VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmRow {
    /// Unique name.
    pub name: String,
    /// Group.
    pub group: String,
    /// Unique block. Addresses, interfaces, MACs and the VMM's uid derive from it.
    pub block: Block,
    /// Virtual CPUs.
    pub vcpu: u8,
    /// Memory in MiB.
    pub ram_mib: u32,
    /// Name of the image.
    pub image: String,
    /// Size of the disk in bytes.
    pub disk_bytes: u64,
    /// Milliseconds since the epoch.
    pub created_ms: u64,
    /// What is to become of it.
    pub intent: Intent,
    /// The process, from its start until it is gone or the host is booted again.
    pub vmm: Option<VmmProcess>,
    /// Milliseconds from the request to readiness, once it was ready.
    pub ready_after_ms: Option<u64>,
    /// Exit status of the first-boot script, once it ended.
    pub userdata_exit: Option<i32>,
    /// Its own policy, which narrows the group's.
    pub lists: PolicySpec,
    /// Marks to find it by.
    pub labels: BTreeMap<String, String>,
    /// When it goes by itself.
    pub lifetime: Lifetime,
}

/// What is to become of a VM. It is written before the deed, so that the next daemon knows what
/// the last one was about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// It is being made: some of it may exist.
    Create,
    /// It runs.
    Run,
    /// It is being removed: some of it may be gone.
    Delete,
}

impl Intent {
    const ALL: [Intent; 3] = [Intent::Create, Intent::Run, Intent::Delete];

    /// As in the database.
    pub(super) fn word(self) -> &'static str {
        match self {
            Intent::Create => "create",
            Intent::Run => "run",
            Intent::Delete => "delete",
        }
    }
}

impl fmt::Display for Intent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// One process of this boot. A process id alone may be somebody else's by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmmProcess {
    /// Process id.
    pub pid: u32,
    /// Start in clock ticks since boot: field 22 of `/proc/PID/stat` (proc(5)).
    pub start_ticks: u64,
}

impl VmRow {
    /// Reads [`COLUMNS`].
    pub(super) fn from_sql(row: &Row<'_>) -> rusqlite::Result<VmRow> {
        let vmm = match (row.get("vmm_pid")?, row.get::<_, Option<i64>>("vmm_start")?) {
            (Some(pid), Some(start)) => Some(VmmProcess { pid, start_ticks: start.cast_unsigned() }),
            _ => None,
        };
        let intent: String = row.get("intent")?;
        let intent = Intent::ALL.into_iter().find(|known| known.word() == intent);
        let ready: Option<i64> = row.get("ready_after_ms")?;
        Ok(VmRow {
            name: row.get("name")?,
            group: row.get("vm_group")?,
            block: block_of(row.get("block")?),
            vcpu: row.get("vcpu")?,
            ram_mib: row.get("ram_mib")?,
            image: row.get("image")?,
            disk_bytes: row.get::<_, i64>("disk_bytes")?.cast_unsigned(),
            created_ms: row.get::<_, i64>("created_ms")?.cast_unsigned(),
            intent: intent.ok_or_else(|| Error::InvalidColumnType(8, "intent".to_owned(), Type::Text))?,
            vmm,
            ready_after_ms: ready.map(i64::cast_unsigned),
            userdata_exit: row.get("userdata_exit")?,
            lists: PolicySpec { drop: rules(row, "own_drop")?, allow: rules(row, "own_allow")? },
            labels: labels(row)?,
            lifetime: Lifetime {
                ttl_ms: row.get::<_, Option<i64>>("ttl_ms")?.map(i64::cast_unsigned),
                idle_timeout_ms: row.get::<_, Option<i64>>("idle_timeout_ms")?.map(i64::cast_unsigned),
            },
        })
    }
}

fn rules(row: &Row<'_>, column: &str) -> rusqlite::Result<Vec<Rule>> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|e| Error::FromSqlConversionFailure(0, Type::Text, Box::new(e)))
}

fn labels(row: &Row<'_>) -> rusqlite::Result<BTreeMap<String, String>> {
    let text: String = row.get("labels")?;
    serde_json::from_str(&text).map_err(|e| Error::FromSqlConversionFailure(0, Type::Text, Box::new(e)))
}

/// Labels as they are in the database. Strings, which JSON always takes.
pub(super) fn json_of_labels(labels: &BTreeMap<String, String>) -> String {
    serde_json::Value::from_iter(labels.iter().map(|(key, value)| (key.clone(), value.clone()))).to_string()
}

/// A list as it is in the database. Rules are written as strings, which JSON always takes.
pub(super) fn json_of(rules: &[Rule]) -> String {
    serde_json::Value::from_iter(rules.iter().map(ToString::to_string)).to_string()
}

/// The number of a block in the database.
pub(super) fn number_of(block: Block) -> u32 {
    u32::from(block.network()) >> 2
}

fn block_of(number: u32) -> Block {
    Block::from_guest(Ipv4Addr::from(number << 2))
}

/// Whether `name` may be the name of a VM: a DNS label (RFC 1035 §2.3.1) in lower case, digits
/// first allowed.
#[must_use]
pub fn is_vm_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !name.starts_with('-')
        && !name.ends_with('-')
}
