//! Writable layers: a qcow2 that holds what a VM changed, over an image that nobody writes.
//! Costs one small file, whatever the size of the image, and no process.

use crate::error::At;
use crate::{ImageError, RootImage};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes of a cluster, qcow2's unit of everything.
const CLUSTER: u64 = 1 << CLUSTER_BITS;
const CLUSTER_BITS: u32 = 16;
/// A second-level table is one cluster of 8-byte entries: what one entry of the first stands for.
const BYTES_PER_L1_ENTRY: u64 = CLUSTER * (CLUSTER / 8);
/// Of qcow2 version 3 (qemu's docs/interop/qcow2.txt), without the fields that came later.
const HEADER_LENGTH: u32 = 104;
/// Header extensions: the base's format, and the end of the list.
const BACKING_FORMAT: u32 = 0xE279_2ACA;
const BASE_FORMAT: &[u8; 3] = b"raw";
const NO_MORE_EXTENSIONS: u64 = 0;
/// Where a base's path may end: the header with its extensions is in the first kilobyte.
const MAX_BASE_PATH: usize = 1023;
/// Clusters of the header, of the reference counts' table, and of its one block; the first-level
/// table comes after them.
const BEFORE_L1: u64 = 3;
/// Reference counts of 16 bits in one block: room for the first-level table of 500 TiB.
const MAX_CLUSTERS: u64 = CLUSTER / 2;

/// Makes the writable layer of one VM at `path`, `size` bytes large for the guest, rounded up to
/// whole sectors. Blocks for a few writes to one small file.
///
/// # Errors
/// When `size` is smaller than the image or too large for a disk, `path` exists already, or it
/// cannot be written; nothing is left at `path` then.
pub fn create_overlay(base: &RootImage, path: &Path, size: u64) -> Result<(), ImageError> {
    if size < base.virtual_size {
        return Err(ImageError::TooSmall {
            asked: size,
            image: base.name.clone(),
            needed: base.virtual_size,
        });
    }
    // Absolute, so that nothing in front of a colon is taken for a protocol.
    let base_path = fs::canonicalize(&base.path).at("look at the image", &base.path)?;
    let empty = Empty::over(&base_path, size).at("make the disk", path)?;
    // Claims the name: an existing file is somebody's disk.
    let file = fs::OpenOptions::new().write(true).create_new(true).open(path).at("make the disk", path)?;
    empty.write(&file).at("write the disk", path).inspect_err(|_| {
        // The error that matters is the first one.
        let _ = fs::remove_file(path);
    })
}

/// A qcow2 in which nothing is written yet: every read goes to the base.
struct Empty {
    header: Vec<u8>,
    clusters: u64,
}

impl Empty {
    fn over(base: &Path, size: u64) -> io::Result<Self> {
        let base = base.as_os_str().as_bytes();
        let size = size.next_multiple_of(512);
        let l1_entries = size.div_ceil(BYTES_PER_L1_ENTRY);
        let clusters = BEFORE_L1 + (l1_entries * 8).div_ceil(CLUSTER);
        let l1_entries = u32::try_from(l1_entries).ok().filter(|_| clusters <= MAX_CLUSTERS);
        let l1_entries = l1_entries.ok_or(io::ErrorKind::FileTooLarge)?;
        let base_length = u32::try_from(base.len()).ok().filter(|_| base.len() <= MAX_BASE_PATH);
        let base_length = base_length.ok_or(io::ErrorKind::InvalidFilename)?;
        // After the header: one extension of 8 + 3 bytes, padded to 16, and the end of 8.
        let base_offset = u64::from(HEADER_LENGTH) + 16 + 8;

        let mut header = b"QFI\xfb".to_vec();
        header.extend(3_u32.to_be_bytes());
        header.extend(base_offset.to_be_bytes());
        header.extend(base_length.to_be_bytes());
        header.extend(CLUSTER_BITS.to_be_bytes());
        header.extend(size.to_be_bytes());
        // No encryption.
        header.extend(0_u32.to_be_bytes());
        header.extend(l1_entries.to_be_bytes());
        header.extend((BEFORE_L1 * CLUSTER).to_be_bytes());
        // One cluster of the table of reference counts, the second of the file.
        header.extend(CLUSTER.to_be_bytes());
        header.extend(1_u32.to_be_bytes());
        // No snapshots (12 bytes), no features of any of three kinds (24).
        header.extend([0; 36]);
        // Reference counts of 2^4 bits.
        header.extend(4_u32.to_be_bytes());
        header.extend(HEADER_LENGTH.to_be_bytes());
        header.extend(BACKING_FORMAT.to_be_bytes());
        header.extend((BASE_FORMAT.len() as u32).to_be_bytes());
        header.extend(BASE_FORMAT);
        header.resize(header.len().next_multiple_of(8), 0);
        header.extend(NO_MORE_EXTENSIONS.to_be_bytes());
        header.extend(base);
        Ok(Self { header, clusters })
    }

    fn write(&self, file: &fs::File) -> io::Result<()> {
        // What is not written reads as zeroes: tables without entries.
        file.set_len(self.clusters * CLUSTER)?;
        file.write_all_at(&self.header, 0)?;
        file.write_all_at(&(2 * CLUSTER).to_be_bytes(), CLUSTER)?;
        let counts: Vec<u8> = (0..self.clusters).flat_map(|_| 1_u16.to_be_bytes()).collect();
        file.write_all_at(&counts, 2 * CLUSTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(dir: &Path) -> RootImage {
        let path = dir.join("base.raw");
        fs::File::create(&path).unwrap().set_len(8 << 20).unwrap();
        RootImage { name: "base".into(), path, virtual_size: 8 << 20, description: String::new() }
    }

    #[test]
    fn an_overlay_has_the_size_asked_for_and_costs_little() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.qcow2");
        create_overlay(&base(dir.path()), &path, 1 << 30).unwrap();
        let info =
            crate::process::text("qemu-img", "qemu-utils", &["info".as_ref(), path.as_os_str()]).unwrap();
        assert!(info.contains("1 GiB") && info.contains("base.raw"), "{info}");
        assert!(fs::metadata(&path).unwrap().len() < 1 << 20);
    }

    #[test]
    fn qemu_finds_no_fault_in_any_size_and_reads_the_base_through_it() {
        let dir = tempfile::tempdir().unwrap();
        let base = base(dir.path());
        let file = fs::OpenOptions::new().write(true).open(&base.path).unwrap();
        file.write_all_at(b"of the image", 5 << 20).unwrap();
        // One entry of the first-level table; one more than a full entry; a cluster of entries and
        // one more; the largest disk of a configuration.
        for size in [8 << 20, BYTES_PER_L1_ENTRY + 1, 8192 * BYTES_PER_L1_ENTRY + 512, 64 << 40] {
            let path = dir.path().join("disk.qcow2");
            create_overlay(&base, &path, size).unwrap();
            let image = path.as_os_str();
            let checked = crate::process::text("qemu-img", "qemu-utils", &["check".as_ref(), image]).unwrap();
            assert!(checked.contains("No errors were found"), "{size}: {checked}");
            let info = ["info".as_ref(), "--output=json".as_ref(), image];
            let info = crate::process::text("qemu-img", "qemu-utils", &info).unwrap();
            let rounded = size.next_multiple_of(512);
            assert!(info.contains(&format!("\"virtual-size\": {rounded},")), "{size}: {info}");
            assert!(info.contains("\"backing-filename-format\": \"raw\""), "{size}: {info}");
            if size == 8 << 20 {
                // Reads the whole chain, and says where the two differ.
                let same = ["compare".as_ref(), "-q".as_ref(), image, base.path.as_os_str()];
                crate::process::text("qemu-img", "qemu-utils", &same).unwrap();
            }
            fs::remove_file(&path).unwrap();
        }
        assert!(create_overlay(&base, &dir.path().join("x"), 1 << 60).is_err(), "larger than any disk");
        assert!(!dir.path().join("x").exists());
    }

    #[test]
    fn a_disk_smaller_than_its_image_and_a_taken_name_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.qcow2");
        let small = create_overlay(&base(dir.path()), &path, 1 << 20).unwrap_err();
        assert!(matches!(small, ImageError::TooSmall { .. }) && !path.exists());
        fs::write(&path, "somebody's").unwrap();
        assert!(matches!(create_overlay(&base(dir.path()), &path, 1 << 30), Err(ImageError::Io { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "somebody's");
    }
}
