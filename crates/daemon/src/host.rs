//! What the configuration asks of this machine.
//!
//! Owns: images, files, and which networks are in use. Changes nothing.

use crate::config::{self, InUse};
use enisle_image::ImageStore;
use std::path::Path;

/// This machine.
pub(crate) struct ThisHost;

impl config::Host for ThisHost {
    fn networks(&self) -> Vec<InUse> {
        Vec::new()
    }

    fn images(&self, image_dir: &Path) -> Option<Vec<String>> {
        // One that is broken is reported when a VM wants it; here it would hide the others.
        let images = ImageStore::open(image_dir).list().ok()?;
        Some(images.into_iter().map(|image| image.name).collect())
    }

    fn is_file(&self, path: &Path) -> bool {
        std::fs::File::open(path).and_then(|file| file.metadata()).is_ok_and(|found| found.is_file())
    }
}
