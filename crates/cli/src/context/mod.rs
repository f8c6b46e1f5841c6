//! `enisle context`: several daemons on several machines.
//!
//! Owns: the verbs. Refuses: the files, which are `store`'s.

pub(crate) mod store;

use crate::Failure;
use crate::table::{print, print_json, render, visible};
use clap::{Args, Subcommand};
use enisle_client::{Endpoint, Pin};
use serde_json::json;
use std::path::PathBuf;
use store::{Context, Contexts, read_token};

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    /// Remember a daemon under a name.
    #[command(after_help = "\
The token is copied into a file of its own that only you can read; --token-file - reads it from standard
input. Without --pin and --ca the daemon's certificate must be signed by an authority that this machine
knows. The first context that is added is in use at once.

Examples:
  enisle context add lab --api https://lab.lan --pin sha256//… --token-file token.txt
  ssh lab sudo enisle token create --scope admin | enisle context add lab --api https://lab.lan --pin sha256//… --token-file -
  enisle context add here --api unix:/run/enisle/api.sock")]
    Add(AddArgs),
    /// List the contexts; the one in use has a star.
    #[command(visible_alias = "ls")]
    List,
    /// Use a context from now on.
    #[command(after_help = "Example:\n  enisle context use lab")]
    Use {
        /// The context.
        name: String,
    },
    /// Show a context, without its token.
    #[command(after_help = "Example:\n  enisle context show lab --json")]
    Show {
        /// The context; the one in use without it.
        name: Option<String>,
    },
    /// Forget a context and its token. The token itself stays good: `enisle token revoke` ends it.
    #[command(visible_alias = "rm", after_help = "Example:\n  enisle context remove lab")]
    Remove {
        /// The context.
        name: String,
    },
}

/// `enisle context add`.
#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    /// 1 to 64 of A-Z, a-z, 0-9, `.`, `_` and `-`, a letter or digit first.
    name: String,
    /// The daemon's key, as `enisle token create` prints it on the daemon's host.
    #[arg(long, value_name = "sha256//BASE64", conflicts_with = "ca")]
    pin: Option<Pin>,
    /// A file of authorities (PEM), or the daemon's own certificate.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// A file that holds the token; - is standard input.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Use it from now on.
    #[arg(long = "use")]
    use_now: bool,
    /// Replace a context of that name.
    #[arg(long)]
    replace: bool,
}

pub(crate) fn run(json: bool, api: Option<&Endpoint>, command: &ContextCommand) -> Result<u8, Failure> {
    match command {
        ContextCommand::Add(args) => add(api, args)?,
        ContextCommand::List => list(json)?,
        ContextCommand::Use { name } => Contexts::load_to_change()?.select(name)?,
        ContextCommand::Show { name } => show(json, name.as_deref())?,
        ContextCommand::Remove { name } => Contexts::load_to_change()?.remove(name)?,
    }
    Ok(0)
}

fn add(api: Option<&Endpoint>, args: &AddArgs) -> Result<(), Failure> {
    let endpoint = api.cloned().ok_or_else(|| {
        Failure::usage("where does the daemon listen?")
            .hint("add --api https://HOST:PORT, or --api unix:PATH")
    })?;
    let wants = args.pin.is_some() || args.ca.is_some() || args.token_file.is_some();
    if wants && !endpoint.is_tls() {
        return Err(Failure::usage(format!("{endpoint} takes no token, and shows no certificate"))
            .hint("leave out --pin, --ca and --token-file"));
    }
    let ca = match &args.ca {
        // The command may be run from anywhere later.
        Some(file) => Some(
            file.canonicalize().map_err(|e| Failure::io(&format!("cannot find {}", file.display()), &e))?,
        ),
        None => None,
    };
    // First what is wrong at once; a token on standard input may take its time, and is not waited for with a lock.
    Contexts::load()?.may_add(&args.name, args.replace)?;
    let token = args.token_file.as_deref().map(read_token).transpose()?;
    let mut contexts = Contexts::load_to_change()?;
    contexts.may_add(&args.name, args.replace)?;
    contexts.add(
        &args.name,
        Context { endpoint, pin: args.pin, ca, token: None },
        token.as_ref(),
        args.use_now,
    )
}

fn list(as_json: bool) -> Result<(), Failure> {
    let contexts = Contexts::load()?;
    let all: Vec<_> = contexts.all().collect();
    if as_json {
        let one = |(name, context): &(&str, &Context)| shown(name, context, contexts.in_use() == Some(*name));
        return print_json(&all.iter().map(one).collect::<Vec<_>>());
    }
    let row = |(name, context): &(&str, &Context)| {
        let star = if contexts.in_use() == Some(*name) { "*" } else { "" };
        [star, name, &context.endpoint.to_string(), trust(context)].map(str::to_owned).to_vec()
    };
    print(&render(&["", "NAME", "ADDRESS", "TRUST"], &all.iter().map(row).collect::<Vec<_>>()))
}

/// How the daemon is known to be the right one.
fn trust(context: &Context) -> &'static str {
    match (context.endpoint.is_tls(), &context.pin, &context.ca) {
        (false, ..) => "local",
        (true, Some(_), _) => "pin",
        (true, None, Some(_)) => "ca",
        (true, None, None) => "system",
    }
}

fn shown(name: &str, context: &Context, in_use: bool) -> serde_json::Value {
    json!({
        "name": name,
        "api": context.endpoint.to_string(),
        "pin": context.pin.map(|pin| pin.to_string()),
        "ca": context.ca,
        "token_file": context.token,
        "in_use": in_use,
    })
}

fn show(as_json: bool, name: Option<&str>) -> Result<(), Failure> {
    let contexts = Contexts::load()?;
    let in_use = contexts.in_use().map(str::to_owned);
    let name = name.map(str::to_owned).or_else(|| in_use.clone()).ok_or_else(|| {
        Failure::usage("no context is in use").hint("`enisle context list` shows those there are")
    })?;
    let context = contexts.get(&name)?;
    if as_json {
        return print_json(&shown(&name, &context, in_use.as_deref() == Some(name.as_str())));
    }
    let mut lines = vec![("name", name), ("address", context.endpoint.to_string())];
    lines.extend(context.pin.map(|pin| ("pin", pin.to_string())));
    lines.extend(context.ca.as_ref().map(|file| ("ca", file.display().to_string())));
    lines.extend(context.token.as_ref().map(|file| ("token in", file.display().to_string())));
    let text: String = lines.iter().map(|(key, value)| format!("{key:<10}{}\n", visible(value))).collect();
    print(&text)
}
