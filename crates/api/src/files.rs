//! Files of a guest as they are described.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most entries of one list.
pub const MAX_ENTRIES: usize = 10_000;

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileInfo {
    /// Last component of its path.
    pub name: String,
    /// True when the name is no UTF-8: what is not was replaced by U+FFFD.
    #[serde(default)]
    pub lossy: bool,
    /// What it is.
    pub kind: FileKind,
    /// Bytes.
    pub size: u64,
    /// Permission bits as a number, with set-user-ID (2048), set-group-ID (1024) and sticky (512).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of its content, milliseconds since the epoch.
    pub modified_ms: i64,
    /// Where a symbolic link points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, fifo or socket.
    Other,
}

/// What is in a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileList {
    /// At most 10,000, and as many as 8 MiB of names holds, by name.
    pub entries: Vec<FileInfo>,
    /// True when there are more.
    pub truncated: bool,
}
