//! `cargo xtask`: checks of the tree that neither rustc nor clippy can make.
//!
//! Owns: the tidy checks, the rules of the rooms, and the package. Refuses: anything a user of Enisle runs.

mod bench;
mod dist;
mod licences;
mod promises;
mod rooms;
mod tidy;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Checks of the Enisle tree")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Files, modules, words and links: what the tree may look like; tests that documents name.
    Tidy,
    /// Measures what docs/benchmarks.md promises, as root: [LINE…] [--rounds N] [--json] [--quick].
    #[command(disable_help_flag = true)]
    Bench {
        /// Passed on; `--help` explains them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// The Debian package, in target/dist: build it, or with --no-build package what is built.
    Dist(dist::DistArgs),
    /// Which crate may depend on which, and who may make which system call.
    Rooms,
}

fn main() -> ExitCode {
    match run(&Args::parse().task) {
        Ok(problems) if problems.is_empty() => ExitCode::SUCCESS,
        Ok(problems) => {
            for problem in &problems {
                eprintln!("{problem}");
            }
            eprintln!("{} problem(s)", problems.len());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: &Task) -> Result<Vec<String>> {
    let root = root();
    match task {
        Task::Tidy => {
            let mut problems = tidy::check(&root)?;
            problems.extend(promises::check(&root)?);
            Ok(problems)
        }
        Task::Rooms => rooms::check(&root),
        Task::Dist(args) => dist::run(&root, args),
        Task::Bench { args } => bench::run(&root, args),
    }
}

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}
