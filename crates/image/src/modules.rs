//! The drivers that an initramfs carries: the wanted ones and what they depend on, in loading order.

use crate::ImageError;
use crate::error::At;
use crate::kernel::Kernel;
use crate::process::run;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Drivers without which a guest has no disk, network or way to the daemon. A kernel that has
/// one built in needs no module.
const WANTED: [&str; 5] =
    ["virtio_mmio", "virtio_pci", "virtio_blk", "virtio_net", "vmw_vsock_virtio_transport"];

/// A module ready to be loaded: uncompressed.
#[derive(Debug)]
pub(crate) struct Module {
    /// File name, `virtio_blk.ko`.
    pub(crate) file: String,
    /// Its bytes.
    pub(crate) content: Vec<u8>,
}

/// The modules to carry, dependencies first.
///
/// # Errors
/// When the kernel neither has a driver built in nor as a module, or a tool fails.
pub(crate) fn collect(kernel: &Kernel) -> Result<Vec<Module>, ImageError> {
    run("depmod", "kmod", &["-b".as_ref(), kernel.root.as_os_str(), kernel.version.as_ref()])?;
    let read = |name: &str| {
        let path = kernel.modules.join(name);
        fs::read_to_string(&path).at("read", &path)
    };
    let paths = order(&read("modules.dep")?, &read("modules.builtin")?)
        .map_err(|module| ImageError::NoModule { version: kernel.version.clone(), module })?;
    paths.iter().map(|path| load(&kernel.modules.join(path))).collect()
}

fn load(path: &Path) -> Result<Module, ImageError> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    // The agent loads with finit_module(2) and no flags: it must not need a decompressor.
    let (file, content) = if let Some(file) = name.strip_suffix(".xz") {
        (file.to_owned(), run("xz", "xz-utils", &["-dc".as_ref(), path.as_os_str()])?)
    } else if let Some(file) = name.strip_suffix(".zst") {
        (file.to_owned(), run("zstd", "zstd", &["-dcq".as_ref(), path.as_os_str()])?)
    } else {
        (name, fs::read(path).at("read", path)?)
    };
    Ok(Module { file, content })
}

/// Paths of the wanted modules and all they depend on, dependencies first; the name of a wanted
/// module that is missing otherwise.
fn order(dep: &str, builtin: &str) -> Result<Vec<String>, String> {
    let by_name: BTreeMap<String, (&str, &str)> = dep
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, needs)| (module_name(path), (path, needs)))
        .collect();
    let mut paths: Vec<String> = Vec::new();
    for wanted in WANTED {
        match by_name.get(wanted) {
            // depmod(8) lists what must be loaded before, the deepest last.
            Some((path, needs)) => {
                for path in needs.split_ascii_whitespace().rev().chain([*path]) {
                    if !paths.iter().any(|have| have == path) {
                        paths.push(path.to_owned());
                    }
                }
            }
            None if builtin.lines().any(|path| module_name(path) == wanted) => {}
            None => return Err(wanted.to_owned()),
        }
    }
    Ok(paths)
}

/// `kernel/drivers/block/virtio_blk.ko.xz` → `virtio_blk`; the kernel treats `-` and `_` alike.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/drivers/virtio/virtio_ring.ko:
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_mmio.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/block/virtio_blk.ko.xz: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/net/virtio-net.ko: kernel/net/core/failover.ko kernel/drivers/virtio/virtio_ring.ko
kernel/net/core/failover.ko:
kernel/net/vmw_vsock/vmw_vsock_virtio_transport.ko: kernel/net/vmw_vsock/vsock.ko
kernel/net/vmw_vsock/vsock.ko:
";

    #[test]
    fn dependencies_come_first_and_once() {
        let paths = order(DEP, "kernel/drivers/virtio/virtio_pci.ko\n").unwrap();
        let names: Vec<String> = paths.iter().map(|path| module_name(path)).collect();
        assert_eq!(
            names,
            [
                "virtio_ring",
                "virtio",
                "virtio_mmio",
                "virtio_blk",
                "failover",
                "virtio_net",
                "vsock",
                "vmw_vsock_virtio_transport"
            ]
        );
    }

    #[test]
    fn a_missing_driver_is_named() {
        assert_eq!(order(DEP, "").unwrap_err(), "virtio_pci");
    }
}
