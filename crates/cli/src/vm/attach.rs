//! `enisle vm attach`: the output of a background process on the local streams.

use super::Context;
use crate::Failure;
use crate::exit::{self, ExitCode};
use clap::Args;
use enisle_client::Output;
use std::io;
use tokio::io::{AsyncWrite, AsyncWriteExt};

#[derive(Debug, Args)]
#[command(after_help = "\
Shows what is kept of its output, the last 256 KiB, and goes on until it ends; its standard input is
/dev/null. Ctrl-C, and every other way this program ends, leaves the process running. What was
overwritten before it could be shown is counted on standard error.

The exit code is the process's, or 128+N after signal N, 124 after its --timeout; 125 when Enisle
itself failed.

Examples:
  enisle vm attach agents-1 3
  enisle vm attach agents-1 3 --since 4096")]
pub(crate) struct AttachArgs {
    /// Name of the VM.
    name: String,
    /// Number of the process.
    id: u32,
    /// Leave out its first so many bytes, of both its streams together.
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    since: u64,
}

pub(super) async fn run(context: &Context, args: &AttachArgs) -> Result<u8, Failure> {
    let failed = |error| Failure::from(error).exit(ExitCode::ExecFailed);
    let mut attached = context.client.attach(&args.name, args.id, args.since).await.map_err(failed)?;
    let (stdout, stderr) = (attached.stdout.take(), attached.stderr.take());
    let copies = async {
        tokio::try_join!(copy(stdout, tokio::io::stdout()), async {
            // Without a standard error its messages are lost, the output is not.
            let _ = copy(stderr, tokio::io::stderr()).await;
            Ok(())
        })
    };
    copies.await.map_err(|e| {
        let failure = Failure::io("cannot write the output of the process", &e);
        if e.kind() == io::ErrorKind::BrokenPipe { failure } else { failure.exit(ExitCode::ExecFailed) }
    })?;
    // Both streams have ended: nothing more can be lost.
    let dropped = attached.dropped();
    let status = attached.wait().await.map_err(failed)?;
    if dropped > 0 {
        // Its reader may be gone; there is nobody else to tell.
        let note = format!("{dropped} bytes of its output were overwritten before they could be shown\n");
        let _ = io::Write::write_all(&mut io::stderr(), note.as_bytes());
    }
    Ok(exit::of_status(status))
}

/// Copies to the end of the output.
async fn copy(from: Option<Output>, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    let Some(mut from) = from else { return Ok(()) };
    // A broken connection is reported by whoever waits for the process.
    while let Ok(Some(chunk)) = from.chunk().await {
        to.write_all(&chunk).await?;
        to.flush().await?;
    }
    Ok(())
}
