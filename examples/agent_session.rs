//! An agent's session: make a sandbox, copy a repository in, run its tests, fetch the result, delete.
//!
//! ```text
//! cargo run --release --example agent_session -- REPOSITORY COMMAND RESULT
//! ```
//!
//! REPOSITORY is a directory; COMMAND is run by `sh` in the copy of it; RESULT is a file that COMMAND makes there,
//! and comes back into the current directory. The daemon is at ENISLE_API, or unix:/run/enisle/api.sock;
//! where it has several groups, ENISLE_GROUP names one.

use enisle_client::api::CreateVm;
use enisle_client::api::stream::Exec;
use enisle_client::{Client, Endpoint, ExitStatus};
use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use tokio::fs::File;
use tokio::io::{AsyncWriteExt, copy, stderr, stdout};

/// Where the repository lies in the sandbox.
const PLACE: &str = "/root/repository";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let usage = "usage: agent_session REPOSITORY COMMAND RESULT";
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let [repository, command, result] = arguments.as_slice() else { return Err(usage.into()) };
    // A directory of this machine may have any name; what goes to the sandbox is text.
    let (Some(command), Some(result)) = (command.to_str(), result.to_str()) else { return Err(usage.into()) };
    let endpoint = match std::env::var("ENISLE_API") {
        Ok(written) => written.parse()?,
        Err(_) => Endpoint::default(),
    };
    let client = Client::new(endpoint);

    let wanted = CreateVm {
        group: std::env::var("ENISLE_GROUP").ok(),
        wait: true,
        labels: BTreeMap::from([("example".to_owned(), "agent-session".to_owned())]),
        // Whatever becomes of this program, the sandbox is gone in an hour.
        ttl_ms: Some(3_600_000),
        timeout_ms: Some(240_000),
        ..CreateVm::default()
    };
    let vm = client.create_vm(&wanted).await?;
    eprintln!("sandbox {} at {}", vm.name, vm.address);

    let session = session(&client, &vm.name, repository, command, result);
    // Ctrl-C drops the session: its streams close, and what they started in the sandbox ends.
    let outcome = tokio::select! {
        outcome = session => outcome,
        _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
    };
    let deleted = client.delete_vm(&vm.name).await;
    let status = outcome?;
    deleted?;
    std::process::exit(status.code);
}

async fn session(
    client: &Client,
    vm: &str,
    repository: &OsStr,
    command: &str,
    result: &str,
) -> Result<ExitStatus, Box<dyn Error>> {
    copy_in(client, vm, Path::new(repository)).await?;
    let status = run(client, vm, command).await?;
    eprintln!("the command ended with {}", status.code);
    let name = Path::new(result).file_name().ok_or("RESULT names no file")?;
    match copy_out(client, vm, &format!("{PLACE}/{result}"), Path::new(name)).await {
        // A command that failed may have made no result; how it ended is what counts then.
        Err(error) if status.code != 0 => eprintln!("no result: {error}"),
        done => done?,
    }
    Ok(status)
}

/// As a tar stream, which keeps modes and links.
async fn copy_in(client: &Client, vm: &str, repository: &Path) -> Result<(), Box<dyn Error>> {
    let directory: PathBuf = repository.canonicalize()?;
    let packed = tokio::task::spawn_blocking(move || {
        let mut archive = tar::Builder::new(Vec::new());
        archive.follow_symlinks(false);
        archive.append_dir_all("repository", directory)?;
        archive.into_inner()
    })
    .await??;
    let mut into = client.archive_in(vm, PLACE, false).await?;
    // If this fails, the guest has said why, and `finish` tells it.
    let _ = into.write_all(&packed).await;
    Ok(into.finish().await?)
}

/// Shows what the command prints as it comes.
async fn run(client: &Client, vm: &str, command: &str) -> Result<ExitStatus, Box<dyn Error>> {
    let exec = Exec {
        argv: vec!["sh".to_owned(), "-c".to_owned(), command.to_owned()],
        cwd: Some(PLACE.to_owned()),
        timeout_ms: Some(600_000),
        ..Exec::default()
    };
    let mut process = client.exec(vm, exec).await?;
    let (mut out, mut err) = (process.stdout.take(), process.stderr.take());
    let shown = async {
        let out = async {
            if let Some(from) = &mut out { copy(from, &mut stdout()).await.map(drop) } else { Ok(()) }
        };
        let err = async {
            if let Some(from) = &mut err { copy(from, &mut stderr()).await.map(drop) } else { Ok(()) }
        };
        tokio::try_join!(out, err)
    };
    let (status, shown) = tokio::join!(process.wait(), shown);
    shown?;
    Ok(status?)
}

async fn copy_out(client: &Client, vm: &str, from: &str, to: &Path) -> Result<(), Box<dyn Error>> {
    // Before the file is made: where there is no result, there shall be no empty one.
    let mut data = client.archive_out(vm, from, true).await?;
    let mut file = File::create(to).await?;
    copy(&mut data, &mut file).await?;
    file.flush().await?;
    // Whether that was all of it.
    Ok(data.finish().await?)
}
