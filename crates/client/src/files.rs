//! Files of a guest: described, listed, made, removed. Owns one method a route; refuses contents, which are
//! [`Client::archive_in`] and [`Client::archive_out`].

use crate::Error;
use crate::client::{Client, bounded, read_json};
use crate::connection::{self, Ask};
use enisle_api::{FileInfo, FileList, routes};
use http::Method;
use std::time::Duration;

/// The daemon's own bound, a VM that boots, its turn, and the answer.
const LIMIT: Duration = Duration::from_secs(600);

impl Client {
    /// Describes what is at `path` in a VM; a symbolic link itself. At most ten minutes, as all of these.
    ///
    /// # Errors
    /// `not_found` when there is no such VM or file; else see [`Error`].
    pub async fn stat(&self, vm: &str, path: &str) -> Result<FileInfo, Error> {
        let path = routes::vm_stat(vm, path);
        let ask = Ask { method: &Method::GET, path: &path };
        bounded(ask, LIMIT, async {
            read_json(ask, connection::request(&self.endpoint, ask, None).await?).await
        })
        .await
    }

    /// Lists the directory at `path` in a VM by name, at most 10,000 entries.
    ///
    /// # Errors
    /// As [`Client::stat`].
    pub async fn list_dir(&self, vm: &str, path: &str) -> Result<FileList, Error> {
        let path = routes::vm_list(vm, path);
        let ask = Ask { method: &Method::GET, path: &path };
        bounded(ask, LIMIT, async {
            read_json(ask, connection::request(&self.endpoint, ask, None).await?).await
        })
        .await
    }

    /// Makes a directory in a VM; with `parents` the missing ones above it too, and one that is there is fine.
    ///
    /// # Errors
    /// As [`Client::stat`]; `invalid_request` when it is there.
    pub async fn make_dir(&self, vm: &str, path: &str, parents: bool) -> Result<(), Error> {
        let path = routes::vm_make_dir(vm, path, parents);
        let ask = Ask { method: &Method::POST, path: &path };
        bounded(ask, LIMIT, connection::request(&self.endpoint, ask, None)).await.map(drop)
    }

    /// Removes what is at `path` in a VM; with `recursive` a directory with everything in it.
    ///
    /// # Errors
    /// As [`Client::stat`]; `invalid_request` when it is a directory that is not empty.
    pub async fn remove_path(&self, vm: &str, path: &str, recursive: bool) -> Result<(), Error> {
        let path = routes::vm_remove(vm, path, recursive);
        let ask = Ask { method: &Method::DELETE, path: &path };
        bounded(ask, LIMIT, connection::request(&self.endpoint, ask, None)).await.map(drop)
    }
}
