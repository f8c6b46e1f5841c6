//! VMs made under an idempotency key: asked for again, they are given again.
//!
//! Owns: that one key of a caller makes one VM, however often and at whatever moments it is asked. Refuses:
//! keys that are none.

use super::{Registry, Unready};
use crate::access::view;
use crate::store::KeyUse;
use crate::vm::lifetime::now_ms;
use crate::vm::{Handle, VmError};
use enisle_api::CreateVm;
use sha1::{Digest, Sha1};
use std::time::Duration;

/// Longest key.
const MAX_KEY: usize = 255;

/// A VM, and whether it was there already.
pub(crate) struct Once {
    pub(crate) vm: Handle,
    pub(crate) replayed: bool,
}

impl Registry {
    /// As [`Registry::start`] or, with `wait`, [`Registry::start_and_wait`]; but a key that has made a VM
    /// from the same request gives that VM. Who only found it does not take it back when he
    /// hangs up.
    pub(crate) async fn start_once(&self, create: &CreateVm, key: &str) -> Result<Once, VmError> {
        if !(1..=MAX_KEY).contains(&key.len()) || !key.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
            return Err(VmError::BadKey);
        }
        let once = self.find_or_start(create, key).await?;
        match (create.wait, once.replayed) {
            (false, _) => {}
            (true, true) => once.vm.ready(super::patience(create)).await?,
            (true, false) => drop(self.wait_for(Unready::new(once.vm.clone()), create).await?),
        }
        Ok(once)
    }

    async fn find_or_start(&self, create: &CreateVm, key: &str) -> Result<Once, VmError> {
        let request = fingerprint(create);
        let key = &format!("{}{key}", view::key_prefix());
        // One at a time, so that two requests under one key do not both find nothing.
        let _turn = self.keyed.lock().await;
        if let Some(used) = self.workshop.store.key_use(key, now_ms())? {
            if used.request != request {
                return Err(VmError::KeyReused { vm: used.vm });
            }
            let vm = self.get(&used.vm).ok().filter(|vm| vm.plan.row.created_ms == used.created_ms);
            let vm = vm.ok_or(VmError::KeyGone { vm: used.vm })?;
            return Ok(Once { vm, replayed: true });
        }
        let vm = self.start(create)?;
        let row = &vm.plan.row;
        let used = KeyUse { request, vm: row.name.clone(), created_ms: row.created_ms };
        if let Err(error) = self.workshop.store.set_key_use(key, &used, now_ms()) {
            // Asked for again, it would be made again.
            vm.give_up();
            return Err(error.into());
        }
        Ok(Once { vm, replayed: false })
    }
}

/// Names a request by its content: the same however its JSON is written.
fn fingerprint(create: &CreateVm) -> String {
    // Text and numbers only: there is nothing in it that JSON could refuse.
    let json = serde_json::to_vec(create).unwrap_or_default();
    Sha1::digest(&json).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How long a request with `wait` waits.
pub(super) fn patience(create: &CreateVm) -> Duration {
    create.timeout_ms.map_or(super::WAIT_DEFAULT, Duration::from_millis)
}
