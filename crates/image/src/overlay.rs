//! Writable layers: a qcow2 that holds what a VM changed, over an image that nobody writes.
//! Costs one small file, whatever the size of the image.

use crate::error::At;
use crate::{ImageError, RootImage};
use std::fs;
use std::path::Path;

/// Makes the writable layer of one VM at `path`, `size` bytes large for the guest. Blocks some
/// tens of milliseconds (one `qemu-img`).
///
/// # Errors
/// When `size` is smaller than the image, `path` exists already, or `qemu-img` fails; nothing is
/// left at `path` then.
pub fn create_overlay(base: &RootImage, path: &Path, size: u64) -> Result<(), ImageError> {
    if size < base.virtual_size {
        return Err(ImageError::TooSmall {
            asked: size,
            image: base.name.clone(),
            needed: base.virtual_size,
        });
    }
    let base_path = fs::canonicalize(&base.path).at("look at the image", &base.path)?;
    // Claims the name: an existing file is somebody's disk.
    fs::OpenOptions::new().write(true).create_new(true).open(path).at("make the disk", path)?;
    // "json:" or "nbd:" in front would be a protocol to qemu-img; an absolute path is neither.
    let arguments: [&std::ffi::OsStr; 9] = [
        "create".as_ref(),
        "-q".as_ref(),
        "-f".as_ref(),
        "qcow2".as_ref(),
        "-F".as_ref(),
        "raw".as_ref(),
        "-b".as_ref(),
        base_path.as_os_str(),
        path.as_os_str(),
    ];
    let size = size.to_string();
    let arguments: Vec<&std::ffi::OsStr> = arguments.into_iter().chain([size.as_ref()]).collect();
    let made = crate::process::run("qemu-img", "qemu-utils", &arguments);
    if made.is_err() {
        // The error that matters is the first one.
        let _ = fs::remove_file(path);
    }
    made.map(drop)
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
