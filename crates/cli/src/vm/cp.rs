//! `enisle vm cp`: what is copied where. The bytes are `transfer`'s.

use super::Context;
use crate::Failure;
use crate::table::{print_json, visible};
use crate::transfer::{self, GuestPath};
use crate::tree::{Warning, Warnings};
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use serde::Serialize;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

#[derive(Debug, Args)]
#[command(after_help = "\
A path in a VM is NAME:PATH, relative to /root; a local path with a colon is written ./like:this.
A destination that is a directory takes the copy inside it; else the copy gets its name. Files and
directories keep modes and modification times. Symbolic links are copied as links and never
followed out of the destination. - is standard input or output, for one file.

Examples:
  enisle vm cp ./src agents-1:/root/
  enisle vm cp agents-1:/var/log/syslog .
  enisle vm cp agents-1:data agents-2:/tmp
  tar cz . | enisle vm cp - agents-1:/root/tree.tgz
  enisle vm cp agents-1:/etc/os-release -")]
pub(crate) struct CpArgs {
    /// Local path, NAME:PATH, or - for standard input.
    #[arg(value_name = "SRC", value_parser = place())]
    source: Place,
    /// Local path, NAME:PATH, or - for standard output.
    #[arg(value_name = "DST", value_parser = place())]
    destination: Place,
}

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Stream,
    Local(PathBuf),
    Guest(GuestPath),
}

fn place() -> impl TypedValueParser<Value = Place> {
    OsStringValueParser::new().try_map(parse_place)
}

fn parse_place(text: OsString) -> Result<Place, String> {
    // A VM's name is ASCII, so the part before a colon is one or the whole is a local path.
    let Some((name, path)) = split_guest(text.as_encoded_bytes()) else {
        return match text.to_str() {
            Some("-") => Ok(Place::Stream),
            Some("") => Err("a path is not empty".into()),
            _ => Ok(Place::Local(text.into())),
        };
    };
    match (str::from_utf8(name), str::from_utf8(path)) {
        (Ok(vm), Ok(path)) => {
            let path = if path.is_empty() { "." } else { path };
            Ok(Place::Guest(GuestPath { vm: vm.to_owned(), path: path.to_owned() }))
        }
        _ => {
            Err("a name and a path in a VM are UTF-8; a local path with a colon is written ./like:this"
                .into())
        }
    }
}

fn split_guest(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = text.iter().position(|&byte| byte == b':')?;
    let name = &text[..colon];
    (!name.is_empty() && !name.contains(&b'/')).then(|| (name, &text[colon + 1..]))
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stream => f.write_str("-"),
            Self::Local(path) => path.display().fmt(f),
            Self::Guest(guest) => guest.fmt(f),
        }
    }
}

#[derive(Serialize)]
struct Report {
    source: String,
    destination: String,
    /// Bytes that went over the wire, headers of the archive included.
    bytes: u64,
    seconds: f64,
    /// What did not arrive as it was; at most some hundred.
    warnings: Vec<Warning>,
    warning_count: u64,
}

pub(super) async fn run(context: &Context, args: &CpArgs) -> Result<u8, Failure> {
    let start = Instant::now();
    let (client, quiet) = (&context.client, context.json);
    let copied = match (&args.source, &args.destination) {
        (Place::Local(from), Place::Guest(to)) => transfer::upload(client, from, to, quiet).await?,
        (Place::Guest(from), Place::Local(to)) => transfer::download(client, from, to, quiet).await?,
        (Place::Guest(from), Place::Guest(to)) if from.is_over(to) => {
            return Err(Failure::usage(format!("{from} cannot be copied into itself"))
                .hint("name a destination outside of it"));
        }
        (Place::Guest(from), Place::Guest(to)) => transfer::between(client, from, to, quiet).await?,
        (Place::Stream, Place::Guest(to)) => transfer::from_stdin(client, to, quiet).await?,
        (Place::Guest(from), Place::Stream) => transfer::to_stdout(client, from, quiet).await?,
        (Place::Local(_) | Place::Stream, Place::Local(_) | Place::Stream) => {
            return Err(Failure::usage("neither side is in a VM")
                .hint("a path in a VM is written NAME:PATH; for local copies there is `cp`"));
        }
    };
    warn(&copied.warnings, context.json);
    // On standard output the copy itself is all there may be.
    if context.json && args.destination != Place::Stream {
        print_json(&Report {
            source: args.source.to_string(),
            destination: args.destination.to_string(),
            bytes: copied.bytes,
            seconds: start.elapsed().as_secs_f64(),
            warnings: copied.warnings.named,
            warning_count: copied.warnings.count,
        })?;
    }
    Ok(0)
}

/// Says what was left out, for people; the JSON report has it too.
fn warn(warnings: &Warnings, json: bool) {
    if json {
        return;
    }
    let mut text = String::new();
    for Warning { path, reason } in &warnings.named {
        text.push_str(&format!("warning: {}: {reason}\n", visible(path)));
    }
    let unnamed = warnings.count.saturating_sub(warnings.named.len() as u64);
    if unnamed > 0 {
        text.push_str(&format!("warning: and {unnamed} more\n"));
    }
    // The copy is done; a closed stderr changes nothing about it.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let guest = |vm: &str, path: &str| Place::Guest(GuestPath { vm: vm.into(), path: path.into() });
        for (text, place) in [
            ("agents-1:/etc", guest("agents-1", "/etc")),
            ("a:", guest("a", ".")),
            ("a:b:c", guest("a", "b:c")),
            ("./a:b", Place::Local("./a:b".into())),
            ("/tmp/a:b", Place::Local("/tmp/a:b".into())),
            (":x", Place::Local(":x".into())),
            ("x", Place::Local("x".into())),
            ("./-", Place::Local("./-".into())),
            ("-", Place::Stream),
        ] {
            assert_eq!(parse_place(text.into()), Ok(place), "{text}");
        }
        assert!(parse_place("".into()).is_err());
    }

    #[test]
    fn local_names_need_not_be_utf8_and_those_in_a_vm_must() {
        use std::os::unix::ffi::OsStringExt;
        let odd = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        assert_eq!(parse_place(odd(b"\xff")), Ok(Place::Local(odd(b"\xff").into())));
        assert!(parse_place(odd(b"a:\xff")).is_err());
    }
}
