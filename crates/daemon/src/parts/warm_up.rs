//! Keeps slots ready for the VMs that come next: on a thread of its own that gives way to everything.
//!
//! Owns: how many of each group, and on which blocks: the lowest free ones, which are what the store
//! gives out. Refuses: the slots (`network::warm`).

use super::network::{Network, Wanted};
use crate::chain::Chain;
use crate::store::Store;
use crate::vm::groups::Groups;
use crate::vm::plan::{GroupPlan, slot_of};
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// How much less than others the thread gets of a busy machine, in steps of nice(2).
const MODESTY: i32 = 10;
/// After slots could not be made.
const AGAIN: Duration = Duration::from_secs(5);

/// Keeps the groups' warm slots until the network is closed.
///
/// # Errors
/// When there can be no thread.
pub(crate) fn keep(network: Arc<Network>, store: Arc<Store>, groups: Arc<Groups>) -> io::Result<()> {
    thread::Builder::new().name("warm".to_owned()).spawn(move || run(&network, &store, &groups)).map(drop)
}

fn run(network: &Network, store: &Store, groups: &Groups) {
    // Of this thread alone (setpriority(2), "C library/kernel differences"). Without it, it is only less modest.
    let _ = rustix::process::setpriority_process(None, MODESTY);
    network.nudge();
    let mut told = false;
    while network.due() {
        let Err(error) = fill(network, store, &groups.all()) else {
            told = false;
            continue;
        };
        if !told {
            tracing::warn!("no slots are made ahead of time until this is over: {error}");
        }
        told = true;
        thread::sleep(AGAIN);
        network.nudge();
    }
}

fn fill(network: &Network, store: &Store, groups: &[Arc<GroupPlan>]) -> Result<(), String> {
    let mut wanted = Wanted::default();
    for group in groups {
        let config = &group.config.network;
        let count = config.warm_slots as usize;
        // As many again may stay when VMs go, so that one that comes and goes costs no slot each time.
        let free = store.free_blocks(config.range, 2 * count);
        let mut specs = free.map_err(|error| Chain(&error).to_string())?.into_iter();
        wanted.next.extend(specs.by_ref().take(count).map(|block| slot_of(group, block)));
        wanted.later.extend(specs.map(|block| slot_of(group, block)));
    }
    network.fill(&wanted).map_err(|error| Chain(&error).to_string())
}
