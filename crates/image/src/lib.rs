//! Kernels, initramfs and root file systems.
//!
//! Owns: the image directory (what lies where, what is usable), building from the distribution's
//! packages, writable overlays. Refuses: running VMs, the network beyond the package manager, and
//! writing anywhere but below the image directory.
//!
//! ```text
//! <image_dir>/boot/{kernel, initramfs.cpio, boot.json}
//! <image_dir>/<name>/{rootfs.ext4, image.json}
//! ```
//!
//! Everything here blocks: look-ups for microseconds, an overlay for tens of milliseconds, a
//! build for minutes.

mod boot;
mod build;
mod cpio;
mod error;
mod kernel;
mod modules;
mod overlay;
mod process;
mod rootfs;
mod store;

pub use build::{BuildOptions, Built, build};
pub use error::ImageError;
pub use overlay::create_overlay;
pub use store::{BootFiles, ImageStore, RootImage};

/// Name of the image that a group gets when its file names none.
pub const DEFAULT: &str = "default";
/// Names that [`build`] knows recipes for.
pub const RECIPES: [&str; 2] = [DEFAULT, rootfs::MINIMAL];
