//! Lines 13, 14, 16 and 17: what needs guests and the daemon.
//!
//! Owns: which of them run. The daemon and the command line are the release binaries beside this
//! program, the images those in [`site::image_dir`]. Refuses: figures of a guest whose own init is
//! still at work.

mod channel;
mod crowd;
mod exec;
pub(crate) mod inside;
mod launch;
mod rss;
mod site;

use anyhow::Result;

use crate::Effort;
use crate::report::Row;

/// Measures lines 13 (the daemon's part that grows), 14, 16 and 17.
///
/// # Errors
/// If a guest does not start, or is not what it says it is.
pub(crate) fn measure(effort: Effort, wanted: &dyn Fn(u8) -> bool) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    if wanted(13) {
        rows.push(rss::measure(effort)?);
    }
    if wanted(14) {
        rows.push(launch::measure(effort)?);
    }
    if wanted(16) || wanted(17) {
        let site = site::Site::up("default")?;
        let vm = site.settled_vm()?;
        if wanted(16) {
            rows.push(exec::measure(effort, &site, &vm)?);
            rows.extend(channel::measure(effort, &site, &vm)?);
        }
        if wanted(17) {
            rows.extend(crowd::measure(effort, &site, &vm)?);
        }
    }
    Ok(rows)
}
