//! The root disk: mounted, and grown to the size the VM was given. Growing waits until the guest is
//! ready: the kernel adds room group by group, much faster than anybody could fill it.

use crate::console::say;
use anyhow::Context;
use rustix::mount::MountFlags;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;

/// The root disk as virtio-blk names the first one.
pub(super) const DEVICE: &str = "/dev/vda";
/// Where it is mounted before it becomes `/`.
pub(super) const MOUNT_POINT: &str = "/root";

/// ext4's superblock lies here, whatever the block size (Documentation/filesystems/ext4).
const SUPERBLOCK: u64 = 1024;
/// Growth that is worth a resize: less than this is rounding of the image builder.
const WORTH_GROWING: u64 = 16 << 20;

pub(super) fn mount() -> anyhow::Result<()> {
    fs::create_dir_all(MOUNT_POINT)?;
    Ok(rustix::mount::mount(DEVICE, MOUNT_POINT, "ext4", MountFlags::NOATIME, None)?)
}

/// Grows the root file system to the size of its device, on a thread of its own.
pub(crate) fn grow_in_background() {
    // A disk that could not be grown is a small disk, not a dead guest.
    let task = || {
        if let Err(e) = grow() {
            say(format_args!("grow the root file system: {e:#}"));
        }
    };
    if let Err(e) = std::thread::Builder::new().name("grow".to_owned()).spawn(task) {
        say(format_args!("grow the root file system: {e}"));
    }
}

/// Nothing to do is no error.
fn grow() -> anyhow::Result<()> {
    let mut device = File::open(DEVICE).with_context(|| format!("open {DEVICE}"))?;
    let device_bytes = device.seek(SeekFrom::End(0))?;
    let geometry = Geometry::read(&device)?;
    if device_bytes < geometry.bytes().saturating_add(WORTH_GROWING) {
        return Ok(());
    }
    let root = File::open("/")?;
    rustix::fs::ext4_ioc_resize_fs(&root, device_bytes / geometry.block_bytes)
        .with_context(|| format!("resize {DEVICE} from {} to {device_bytes} bytes", geometry.bytes()))
}

/// The size ext4 believes in.
#[derive(Debug, PartialEq, Eq)]
struct Geometry {
    blocks: u64,
    block_bytes: u64,
}

impl Geometry {
    fn read(device: &File) -> anyhow::Result<Self> {
        let mut superblock = [0; 1024];
        device
            .read_exact_at(&mut superblock, SUPERBLOCK)
            .with_context(|| format!("read the superblock of {DEVICE}"))?;
        Self::parse(&superblock).context("not an ext4 superblock")
    }

    fn parse(superblock: &[u8; 1024]) -> Option<Self> {
        let word = |at: usize| {
            superblock
                .get(at..at + 4)
                .and_then(|bytes| bytes.try_into().ok())
                .map(u32::from_le_bytes)
                .map(u64::from)
        };
        if superblock.get(0x38..0x3a) != Some(&[0x53, 0xef]) {
            return None;
        }
        let is_64bit = word(0x60)? & 0x80 != 0;
        let high = if is_64bit { word(0x150)? } else { 0 };
        let block_bytes =
            1024_u64.checked_shl(u32::try_from(word(0x18)?).ok()?).filter(|bytes| *bytes <= 65_536)?;
        Some(Self { blocks: high << 32 | word(0x4)?, block_bytes })
    }

    fn bytes(&self) -> u64 {
        self.blocks.saturating_mul(self.block_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_real_file_system_and_of_garbage() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(40 << 20).unwrap();
        let made = std::process::Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-b", "1024"])
            .arg(image.path())
            .status();
        assert!(made.unwrap().success());
        let geometry = Geometry::read(image.as_file()).unwrap();
        assert_eq!(geometry, Geometry { blocks: 40 << 10, block_bytes: 1024 });
        assert_eq!(Geometry::parse(&[0; 1024]), None);
        let mut absurd = [0xff; 1024];
        absurd[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
        assert_eq!(Geometry::parse(&absurd), None);
    }
}
