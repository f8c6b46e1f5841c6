//! Owns the control groups of microVMs: `enisle-<scope>/<vm>` in version 1 hierarchies, in the
//! version 2 hierarchy, or in a mix of both, whichever holds the controllers.
//! Refuses to touch any group outside its scope, and to signal a process for its number or
//! name alone.

mod group;
mod hierarchy;
mod sweep;

pub(crate) use group::Cgroup;
pub use sweep::{Leftover, kill_group, kill_leftovers, kill_leftovers_except, leftovers};

/// The directory of a scope in every hierarchy.
fn scope_dir(scope: &str) -> String {
    format!("enisle-{scope}")
}
