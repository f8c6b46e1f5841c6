//! `enisle image` as data, and how images are shown. The binary has them built and listed.

use crate::failure::Failure;
use crate::quantity::render_ram;
use crate::table::{print, print_json, render};
use clap::{Args, Subcommand};
use serde::Serialize;
use std::path::PathBuf;

const DEFAULT_DIR: &str = "/var/lib/enisle/images";

/// `enisle image …`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Build an image, and the kernel and initramfs that VMs boot with.
    Build(BuildArgs),
    /// List the images that are there.
    List(ListArgs),
}

/// `enisle image build`.
#[derive(Debug, Args)]
#[command(after_help = "\
Needs root, the distribution's package manager and some minutes. What is there and up to date is not
built again. Running VMs keep the image that they started with.

Example:
  sudo enisle image build")]
pub struct BuildArgs {
    /// Name of the image.
    #[arg(default_value = "default")]
    pub name: String,
    /// Where images are kept.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIR)]
    pub image_dir: PathBuf,
    /// The static guest agent. Default: `enisle-agent` beside this program, or in /usr/lib/enisle.
    #[arg(long, value_name = "FILE", env = "ENISLE_AGENT", hide_env_values = true)]
    pub agent: Option<PathBuf>,
    /// Build again even if it is up to date.
    #[arg(long)]
    pub force: bool,
}

/// `enisle image list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Where images are kept.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIR)]
    pub image_dir: PathBuf,
}

/// One line of `enisle image list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedImage {
    /// Its name.
    pub name: String,
    /// The root file system.
    pub path: PathBuf,
    /// Size in bytes as a guest sees it.
    pub virtual_size: u64,
    /// What it is, for people.
    pub description: String,
}

/// Prints images as a table, or as JSON.
///
/// # Errors
/// Standard output takes no more.
pub fn print_images(images: &[ListedImage], json: bool) -> Result<(), Failure> {
    if json {
        return print_json(&images);
    }
    let rows: Vec<Vec<String>> = images
        .iter()
        .map(|image| {
            let mb = u32::try_from(image.virtual_size >> 20).unwrap_or(u32::MAX);
            vec![image.name.clone(), render_ram(mb), image.description.clone()]
        })
        .collect();
    print(&render(&["NAME", "SIZE", "DESCRIPTION"], &rows))
}
