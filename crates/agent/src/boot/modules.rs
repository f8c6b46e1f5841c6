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
    list.lines()
        .filter(|line| !line.is_empty())
        .try_for_each(|path| load(path).step(|| format!("load module {path}")))
}

fn load(path: &str) -> anyhow::Result<()> {
    let file = File::open(path)?;
    match rustix::system::finit_module(&file, c"", 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(e.into()),
    }
}
