//! `enisle image`: from the command line's data to the image builder's, and back to people.

use enisle_cli::{BuildArgs, ExitCode, Failure, ImageCommand, ListArgs, ListedImage, print_images};
use enisle_image::{BuildOptions, ImageError, ImageStore};
use std::path::PathBuf;

/// Name of the guest agent beside this program.
const AGENT: &str = "enisle-agent";
/// Where the package has it.
const PACKAGED: &str = "/usr/lib/enisle";

/// Carries the command out and returns the exit code. A build blocks for minutes.
pub(crate) fn run(command: &ImageCommand, json: bool) -> u8 {
    let result = match command {
        ImageCommand::Build(args) => build(args, json),
        ImageCommand::List(args) => list(args, json),
    };
    result.map_or_else(|failure| failure.report(json), |()| ExitCode::Success as u8)
}

fn build(args: &BuildArgs, json: bool) -> Result<(), Failure> {
    let agent = match &args.agent {
        Some(path) => path.clone(),
        None => beside_this_program()?,
    };
    let options =
        BuildOptions { dir: args.image_dir.clone(), name: args.name.clone(), agent, force: args.force };
    let built = enisle_image::build(&options, &mut |step| {
        if !json {
            eprintln!("{step}");
        }
    })
    .map_err(|error| failure(&error))?;
    if json {
        return enisle_cli::print_json(&serde_json::json!({ "boot": built.boot, "image": built.image }));
    }
    let done = |new| if new { "built" } else { "up to date" };
    enisle_cli::print(&format!(
        "kernel and initramfs: {}\nimage {}: {}\n",
        done(built.boot),
        args.name,
        done(built.image)
    ))
}

fn beside_this_program() -> Result<PathBuf, Failure> {
    let program = std::env::current_exe().map_err(|e| Failure::io("cannot find this program's file", &e))?;
    let beside = program.with_file_name(AGENT);
    let packaged = std::path::Path::new(PACKAGED).join(AGENT);
    // Where there is neither, the message names the first.
    Ok(if !beside.exists() && packaged.exists() { packaged } else { beside })
}

fn list(args: &ListArgs, json: bool) -> Result<(), Failure> {
    let images = ImageStore::open(&args.image_dir).list().map_err(|error| failure(&error))?;
    let listed: Vec<ListedImage> = images
        .into_iter()
        .map(|image| ListedImage {
            name: image.name,
            path: image.path,
            virtual_size: image.virtual_size,
            description: image.description,
        })
        .collect();
    print_images(&listed, json)
}

fn failure(error: &ImageError) -> Failure {
    let exit = match error {
        ImageError::NoSuchImage { .. } => ExitCode::NotFound,
        ImageError::NoRecipe { .. } => ExitCode::Usage,
        ImageError::Busy { .. } => ExitCode::Conflict,
        _ => ExitCode::Failed,
    };
    let mut detail = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        detail.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    Failure::new("image", exit, detail)
}
