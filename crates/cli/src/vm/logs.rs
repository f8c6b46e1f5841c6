//! `enisle vm logs`.

use super::Context;
use crate::Failure;
use crate::console::Sanitizer;
use crate::terminal;
use clap::Args;
use serde::Serialize;
use std::io::{self, Write};

#[derive(Debug, Args)]
#[command(after_help = "\
The console is written by the guest. On a terminal, escape sequences other than colours are left
out, because they can rename windows, type text or hide it; --raw passes every byte. Files and
pipes always get every byte. With --json each line is one object {\"line\": …}.

Examples:
  enisle vm logs agents-1
  enisle vm logs agents-1 -f
  enisle vm logs agents-1 > console.log
  enisle vm logs agents-1 --vmm")]
pub(crate) struct LogsArgs {
    /// Name of the VM.
    name: String,
    /// Go on until the VM is gone.
    #[arg(long, short)]
    follow: bool,
    /// Show what the VMM itself said last, instead of the console.
    #[arg(long, conflicts_with = "follow")]
    vmm: bool,
    /// Pass every byte to the terminal.
    #[arg(long, conflicts_with = "json")]
    raw: bool,
}

pub(super) async fn run(context: &Context, args: &LogsArgs) -> Result<u8, Failure> {
    let mut log = match args.vmm {
        true => context.client.vmm_log(&args.name).await?,
        false => context.client.logs(&args.name, args.follow).await?,
    };
    let mut writer = if context.json {
        Writer::Json(Vec::new())
    } else if args.raw || !terminal::stdout_is_terminal() {
        Writer::Raw
    } else {
        Writer::Safe(Box::default())
    };
    let mut out = io::stdout();
    while let Some(chunk) = log.chunk().await? {
        writer.write(&chunk, &mut out).map_err(written)?;
    }
    writer.finish(&mut out).map_err(written)?;
    Ok(0)
}

fn written(error: io::Error) -> Failure {
    Failure::io("cannot write the log", &error)
}

#[derive(Serialize)]
struct Line<'a> {
    line: &'a str,
}

/// How the console is shown.
enum Writer {
    Raw,
    Safe(Box<Sanitizer>),
    /// Holds the line that has not ended yet.
    Json(Vec<u8>),
}

/// A guest that never ends a line gets it ended here, in bytes.
const MAX_LINE: usize = 64 * 1024;

impl Writer {
    fn write(&mut self, chunk: &[u8], out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Raw => out.write_all(chunk)?,
            Self::Safe(sanitizer) => out.write_all(sanitizer.feed(chunk).as_bytes())?,
            Self::Json(line) => {
                for &byte in chunk {
                    if byte == b'\n' || line.len() >= MAX_LINE {
                        write_line(line, out)?;
                        line.clear();
                    }
                    if byte != b'\n' {
                        line.push(byte);
                    }
                }
            }
        }
        out.flush()
    }

    fn finish(&mut self, out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Json(line) if !line.is_empty() => write_line(line, out),
            _ => Ok(()),
        }
    }
}

fn write_line(line: &[u8], out: &mut impl Write) -> io::Result<()> {
    let text = String::from_utf8_lossy(line);
    let json = serde_json::to_string(&Line { line: text.trim_end_matches('\r') })?;
    writeln!(out, "{json}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_lines_survive_any_chunks_and_an_endless_line() {
        let mut text = b"one\r\ntwo \x1b[1m\nthree".to_vec();
        for step in [1, 4, 100] {
            let (mut writer, mut out) = (Writer::Json(Vec::new()), Vec::new());
            text.chunks(step).for_each(|chunk| writer.write(chunk, &mut out).unwrap());
            writer.finish(&mut out).unwrap();
            let out = String::from_utf8(out).unwrap();
            assert_eq!(out, "{\"line\":\"one\"}\n{\"line\":\"two \\u001b[1m\"}\n{\"line\":\"three\"}\n");
        }
        text = vec![b'x'; MAX_LINE * 2];
        let (mut writer, mut out) = (Writer::Json(Vec::new()), Vec::new());
        writer.write(&text, &mut out).unwrap();
        assert_eq!(out.iter().filter(|&&byte| byte == b'\n').count(), 1);
    }
}
