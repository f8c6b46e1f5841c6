//! Owns the QEMU back end: a found and checked QEMU, and the launching of microVMs with it.

mod adopt;
mod command;
mod files;
mod launch;
mod qmp;
mod sockets;
mod tsc;
mod version;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Cause, Step, VmmError};
use crate::machine::Machine;
use crate::program::{Lookup, beside_us};
use crate::spec::{AdoptSpec, MachineSpec};
use crate::{Accelerator, BoxFuture, Vmm};

/// The translation cache of QEMU's TCG, in MiB. Its own default is an eighth of the host's
/// memory, up to 1 GiB a VM.
const TCG_CACHE_MB: u64 = 128;
/// QEMU, its device models and threads, the vsock device, and the page cache of both.
const BASE_OVERHEAD: u64 = 160 << 20;

/// QEMU with the `microvm` machine. Clones share what was found.
#[derive(Debug, Clone)]
pub struct Qemu {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    binary: PathBuf,
    vsock_device: PathBuf,
    version: String,
    accelerator: Accelerator,
    /// The single group that may open `/dev/kvm`, where not everybody may.
    device_group: Option<u32>,
    /// Under TCG the guest's time stamp counter is the host's, and on `microvm` the guest
    /// has nothing to measure it with (see [`tsc`]).
    tsc_khz: Option<u32>,
}

impl Qemu {
    /// Finds QEMU and the vsock device's program, and checks QEMU's version.
    ///
    /// `binary` and `vsock_device` are the operator's choices; without them `PATH` and the
    /// places of an installation are looked at. Takes some 0.1 s.
    ///
    /// # Errors
    /// [`VmmError::Unusable`] when a program is missing or too old, or when KVM is asked for
    /// and `/dev/kvm` cannot be opened by an unprivileged process.
    pub async fn find(
        binary: Option<&Path>,
        vsock_device: Option<&Path>,
        accelerator: Accelerator,
    ) -> Result<Self, VmmError> {
        Self::look(binary, vsock_device, accelerator).await.map_err(VmmError::Unusable)
    }

    async fn look(
        binary: Option<&Path>,
        vsock_device: Option<&Path>,
        accelerator: Accelerator,
    ) -> Result<Self, Cause> {
        let binary = Lookup {
            name: "qemu-system-x86_64",
            given: binary,
            variable: None,
            first: Vec::new(),
            last: &["/usr/bin", "/usr/local/bin"],
        }
        .find()?;
        let vsock_device = Lookup {
            name: "vhost-device-vsock",
            given: vsock_device,
            variable: Some("ENISLE_VHOST_DEVICE_VSOCK"),
            first: beside_us().into_iter().collect(),
            last: &["/usr/lib/enisle", "/usr/libexec"],
        }
        .find()?;
        let (device_group, tsc_khz) = match accelerator {
            Accelerator::Kvm => (kvm_group(Path::new("/dev/kvm"))?, None),
            Accelerator::Tcg => (None, tsc::host_khz().await),
        };
        Ok(Self {
            shared: Arc::new(Shared {
                version: version::check(&binary).await?,
                binary,
                vsock_device,
                accelerator,
                device_group,
                tsc_khz,
            }),
        })
    }
}

/// The group through which an unprivileged process may open `/dev/kvm`; `None` when it needs
/// none.
fn kvm_group(device: &Path) -> Result<Option<u32>, Cause> {
    use std::os::unix::fs::MetadataExt;
    let found = std::fs::metadata(device).map_err(|error| Cause::io("look at", device, error))?;
    if found.mode() & 0o006 == 0o006 {
        return Ok(None);
    }
    if found.mode() & 0o060 == 0o060 && found.gid() != 0 {
        return Ok(Some(found.gid()));
    }
    Err(Cause::Unsuitable {
        path: device.to_owned(),
        problem: "can be opened by root only, and a VMM never runs as root; give it to a group: \
                  `groupadd -r kvm; chgrp kvm /dev/kvm; chmod 660 /dev/kvm`"
            .into(),
    })
}

impl Vmm for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn version(&self) -> &str {
        &self.shared.version
    }

    fn accelerator(&self) -> Accelerator {
        self.shared.accelerator
    }

    fn memory_overhead(&self) -> u64 {
        match self.shared.accelerator {
            Accelerator::Kvm => BASE_OVERHEAD,
            Accelerator::Tcg => BASE_OVERHEAD + (TCG_CACHE_MB << 20),
        }
    }

    fn launch(&self, spec: MachineSpec) -> BoxFuture<'static, Result<Machine, VmmError>> {
        let qemu = self.clone();
        Box::pin(async move {
            let vm = spec.name.clone();
            // A task of its own: it is finished or undone even if the caller goes away.
            let launched = tokio::spawn(launch::launch(qemu, spec)).await;
            launched.unwrap_or_else(|lost| {
                Err(VmmError::Launch {
                    vm,
                    step: Step::Validate,
                    said: Default::default(),
                    source: Cause::Unsupported(format!("the launching task was lost: {lost}")),
                })
            })
        })
    }

    fn adopt(&self, spec: AdoptSpec) -> BoxFuture<'static, Result<Machine, VmmError>> {
        Box::pin(adopt::adopt(self.shared.accelerator, spec))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn kvm_is_opened_by_everybody_by_one_group_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("kvm");
        std::fs::write(&device, "").unwrap();
        let with = |mode: u32, gid: u32| {
            std::os::unix::fs::chown(&device, None, Some(gid)).unwrap();
            std::fs::set_permissions(&device, PermissionsExt::from_mode(mode)).unwrap();
            kvm_group(&device)
        };
        assert_eq!(with(0o666, 0).unwrap(), None);
        assert_eq!(with(0o660, 108).unwrap(), Some(108));
        assert!(with(0o660, 0).is_err());
        assert!(with(0o600, 108).is_err());
    }
}
