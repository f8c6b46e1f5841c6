//! Kernel and initramfs: what every guest starts with, whatever its image.

use crate::build::{Staged, fingerprint};
use crate::cpio::Writer;
use crate::error::At;
use crate::kernel::KernelPackage;
use crate::modules::{self, Module};
use crate::store::{BOOT, BOOT_MANIFEST, BootManifest, INITRAMFS, KERNEL, read_manifest};
use crate::{ImageError, build::BuildOptions};
use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Changes when this file writes something else from the same input.
const RECIPE: &str = "boot 1";
/// Where the agent finds the order to load modules in.
const ORDER: &str = "lib/modules/order";

/// Builds the boot files where they are missing or old. True when it built.
///
/// # Errors
/// See [`ImageError`]; the old files stay in place then.
pub(crate) fn build(options: &BuildOptions, progress: &mut dyn FnMut(&str)) -> Result<bool, ImageError> {
    let agent = read_agent(&options.agent)?;
    let package = KernelPackage::find()?;
    let fingerprint = fingerprint(&[RECIPE.as_bytes(), package.revision.as_bytes(), &agent]);
    let manifest = BootManifest { version: package.version.clone(), fingerprint };
    let there: Option<BootManifest> =
        read_manifest(&options.dir.join(BOOT).join(BOOT_MANIFEST)).unwrap_or_default();
    if there.as_ref() == Some(&manifest) && !options.force {
        return Ok(false);
    }
    let staged = Staged::new(&options.dir, BOOT)?;
    progress(&format!("unpacking the kernel {}", package.version));
    let work = staged.path().join("work");
    fs::create_dir(&work).at("make", &work)?;
    let kernel = package.unpack(&work)?;
    progress("making the initramfs");
    let modules = modules::collect(&kernel)?;
    let initramfs = staged.path().join(INITRAMFS);
    write_initramfs(&initramfs, &agent, &modules).at("write", &initramfs)?;
    let target = staged.path().join(KERNEL);
    fs::rename(&kernel.image, &target).at("move", &kernel.image)?;
    // The VMM runs as nobody in particular and opens both by itself.
    for path in [&target, &initramfs] {
        fs::set_permissions(path, Permissions::from_mode(0o644)).at("set the mode of", path)?;
    }
    fs::remove_dir_all(&work).at("remove", &work)?;
    staged.publish(BOOT_MANIFEST, &manifest)?;
    Ok(true)
}

/// The agent's bytes; a program that is not static would not start in an empty root.
fn read_agent(path: &Path) -> Result<Vec<u8>, ImageError> {
    let bytes = match fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(ImageError::NoAgent { path: path.to_path_buf() });
        }
        other => other.at("read the guest agent", path)?,
    };
    if !is_static_elf(&bytes) {
        return Err(ImageError::AgentNotStatic { path: path.to_path_buf() });
    }
    Ok(bytes)
}

/// A 64-bit x86 ELF file without `PT_INTERP` (elf(5)).
fn is_static_elf(bytes: &[u8]) -> bool {
    let number = |at: usize, len: usize| -> Option<u64> {
        let raw = bytes.get(at..at.checked_add(len)?)?;
        Some(raw.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    };
    const EM_X86_64: u64 = 62;
    const PT_INTERP: u64 = 3;
    if !bytes.starts_with(b"\x7fELF\x02\x01") || number(18, 2) != Some(EM_X86_64) {
        return false;
    }
    let (Some(table), Some(size), Some(count)) = (number(32, 8), number(54, 2), number(56, 2)) else {
        return false;
    };
    (0..count).all(|index| {
        let at = index.checked_mul(size).and_then(|offset| offset.checked_add(table));
        let kind = at.and_then(|at| usize::try_from(at).ok()).and_then(|at| number(at, 4));
        kind.is_some_and(|kind| kind != PT_INTERP)
    })
}

fn write_initramfs(path: &Path, agent: &[u8], modules: &[Module]) -> io::Result<()> {
    let mut cpio = Writer::new(BufWriter::new(File::create_new(path)?));
    for directory in ["dev", "lib", "lib/modules", "proc", "root", "sys"] {
        cpio.directory(directory)?;
    }
    // The kernel opens it for init before anything is mounted.
    cpio.character_device("dev/console", 0o600, (5, 1))?;
    let mut order = String::new();
    for module in modules {
        let name = format!("lib/modules/{}", module.file);
        cpio.file(&name, 0o644, &module.content)?;
        order.push_str(&format!("/{name}\n"));
    }
    cpio.file(ORDER, 0o644, order.as_bytes())?;
    cpio.file("init", 0o755, agent)?;
    cpio.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_and_garbage_are_no_agent() {
        let own = fs::read("/proc/self/exe").unwrap();
        assert!(!is_static_elf(&own), "this test is linked dynamically");
        assert!(!is_static_elf(b"#!/bin/sh\n"));
        assert!(!is_static_elf(b""));
        let mut lying = own[..64].to_vec();
        lying[32..40].fill(0xff);
        assert!(!is_static_elf(&lying));
    }

    #[test]
    fn a_missing_agent_says_where_it_was_looked_for() {
        let said = read_agent(Path::new("/no/such/agent")).unwrap_err().to_string();
        assert!(said.contains("/no/such/agent") && said.contains("ENISLE_AGENT"), "{said}");
    }
}
