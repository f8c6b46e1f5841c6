//! Kernel modules, in the order the image builder computed.

use super::{Step, StepError};
use rustix::io::Errno;
use std::fs::{self, File};

/// Names the modules to load, one path a line, dependencies first. Written by the image builder.
const LIST: &str = "/lib/modules/order";

/// Loads every module of the list. A kernel with the driver built in needs no list.
pub(super) fn load_all() -> Result<(), StepError> {
    let list = match fs::read_to_string(LIST) {
        Ok(list) => list,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).step(|| format!("read {LIST}")),
    };
    let has_pci = fs::read_dir("/sys/bus/pci/devices").is_ok_and(|mut devices| devices.next().is_some());
    list.lines()
        .filter(|line| !line.is_empty() && (has_pci || !is_for_pci(line)))
        .try_for_each(|path| load(path).step(|| format!("load module {path}")))
}

/// A machine without PCI needs no driver for it, and an emulated one spends long on each.
fn is_for_pci(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|name| name.starts_with("virtio_pci"))
}

fn load(path: &str) -> anyhow::Result<()> {
    let file = File::open(path)?;
    match rustix::system::finit_module(&file, c"", 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(e.into()),
    }
}
