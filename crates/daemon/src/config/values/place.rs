//! Paths on the host. All are absolute: the daemon's working directory belongs to its user.

use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use crate::config::read::{Mistake, Text, clip};

/// Bytes of a unix socket's path (`sun_path` of unix(7), less its NUL).
const MAX_SOCKET_PATH: usize = 107;
/// Leaves room for `/run/` and the sockets of a microVM below it.
const MAX_STATE_DIRECTORY: usize = 64;
/// `PATH_MAX` of the kernel, less its NUL.
const MAX_PATH: usize = 4095;

fn absolute(text: &str, longest: usize) -> Result<PathBuf, Mistake> {
    if text.contains('\0') {
        return Err(Mistake::new("a path cannot hold a NUL byte", "use text only"));
    }
    if !Path::new(text).is_absolute() {
        return Err(Mistake::new(
            format!("`{}` is not an absolute path", clip(text)),
            "start it with `/`; neither `~` nor the working directory is known here",
        ));
    }
    if text.len() > longest {
        return Err(Mistake::new(
            format!("the path is {} bytes long", text.len()),
            format!("use at most {longest}: the kernel limits the paths of unix sockets"),
        ));
    }
    Ok(PathBuf::from(text))
}

/// The path of the API's unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::config) struct ApiSocket(pub(in crate::config) PathBuf);

impl Text for ApiSocket {
    const WHAT: &'static str = "the path of a unix socket, such as \"unix:/run/enisle/api.sock\"";

    fn parse(text: &str) -> Result<ApiSocket, Mistake> {
        let path = text.strip_prefix("unix:").unwrap_or(text);
        let host_and_port = path.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        if !path.starts_with('/') && (host_and_port || path.contains("://") || path.starts_with("tcp:")) {
            return Err(Mistake::new(
                "`api` is the path of a unix socket",
                "use api: \"unix:/run/enisle/api.sock\"; TCP addresses go into `listen`",
            ));
        }
        absolute(path, MAX_SOCKET_PATH).map(ApiSocket)
    }

    fn words() -> Json {
        json!({ "pattern": "^(unix:)?/", "examples": ["unix:/run/enisle/api.sock"] })
    }
}

/// The daemon's own directory; it need not exist yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::config) struct StateDirectory(pub(in crate::config) PathBuf);

impl Text for StateDirectory {
    const WHAT: &'static str = "the absolute path of a directory";

    fn parse(text: &str) -> Result<StateDirectory, Mistake> {
        absolute(text, MAX_STATE_DIRECTORY).map(StateDirectory)
    }

    fn words() -> Json {
        json!({ "pattern": "^/", "maxLength": MAX_STATE_DIRECTORY, "examples": ["/var/lib/enisle"] })
    }
}

/// A directory of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::config) struct Directory(pub(in crate::config) PathBuf);

impl Text for Directory {
    const WHAT: &'static str = "the absolute path of a directory";
    const MAX_BYTES: usize = MAX_PATH;

    fn parse(text: &str) -> Result<Directory, Mistake> {
        absolute(text, MAX_PATH).map(Directory)
    }

    fn words() -> Json {
        json!({ "pattern": "^/", "examples": ["/var/lib/enisle/images"] })
    }
}

/// A file that must be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::config) struct FilePath(pub(in crate::config) PathBuf);

impl Text for FilePath {
    const WHAT: &'static str = "the absolute path of a file";
    const MAX_BYTES: usize = MAX_PATH;

    fn parse(text: &str) -> Result<FilePath, Mistake> {
        absolute(text, MAX_PATH).map(FilePath)
    }

    fn words() -> Json {
        json!({ "pattern": "^/", "examples": ["/boot/vmlinuz"] })
    }
}
