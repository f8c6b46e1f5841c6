//! `enisle token`.

use crate::Failure;
use crate::events::utc;
use crate::quantity::parse_duration;
use crate::table::{print, print_json, render, visible};
use crate::vm::Context;
use clap::{Args, Subcommand};
use enisle_client::api::{CreateToken, CreatedToken, Scope, Token};
use std::time::Duration;

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token and print it, this once.
    #[command(after_help = "\
Standard output gets the token and nothing else; what a client pins goes to standard error. A group's `ro` lists its
VMs and shows their policies, consoles and events; `rw` also makes, changes, enters and removes them;
`admin` may do everything, as the unix socket.

Examples:
  sudo enisle token create --scope group:agents:rw --name ci --expires 90d > token.txt
  sudo enisle token create --scope admin --json | jq -r .pin")]
    Create(CreateArgs),
    /// List the tokens; their secrets are nowhere.
    #[command(visible_alias = "ls")]
    List,
    /// End tokens now, with the streams that were opened with them.
    #[command(after_help = "Example:\n  sudo enisle token revoke 7f3a9c21")]
    Revoke {
        /// Ids, as `enisle token list` shows them.
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
}

/// `enisle token create`.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// What it may do: admin, group:NAME:rw or group:NAME:ro. May be repeated.
    #[arg(long = "scope", required = true, value_name = "SCOPE")]
    scopes: Vec<Scope>,
    /// What it is for.
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// It ends by itself after this time, such as 12h or 90d.
    #[arg(long, value_name = "TIME", value_parser = parse_life)]
    expires: Option<Duration>,
}

pub(crate) async fn run(context: &Context, command: &TokenCommand) -> Result<u8, Failure> {
    match command {
        TokenCommand::Create(args) => create(context, args).await?,
        TokenCommand::List => {
            let tokens = context.client.tokens().await?;
            if context.json { print_json(&tokens)? } else { print(&table(&tokens))? }
        }
        TokenCommand::Revoke { ids } => {
            for id in ids {
                context.client.revoke_token(id).await?;
            }
        }
    }
    Ok(0)
}

/// `90d` too, which other times are too short for.
fn parse_life(text: &str) -> Result<Duration, String> {
    let Some(days) = text.strip_suffix('d') else { return parse_duration(text) };
    match days.parse::<u64>() {
        Ok(days @ 1..=3650) => Ok(Duration::from_secs(days * 86_400)),
        Ok(_) => Err("1 to 3650 days".into()),
        Err(_) => Err("a time is written like 12h or 90d".into()),
    }
}

async fn create(context: &Context, args: &CreateArgs) -> Result<(), Failure> {
    let ask = CreateToken {
        scopes: args.scopes.clone(),
        name: args.name.clone(),
        expires_in_ms: args.expires.map(|life| u64::try_from(life.as_millis()).unwrap_or(u64::MAX)),
    };
    let created = context.client.create_token(&ask).await?;
    if context.json {
        return print_json(&created);
    }
    print(&format!("{}\n", created.secret))?;
    eprint!("{}{}", told(&created), unknown(context, &created.token).await);
    Ok(())
}

/// A word about groups that the daemon does not have, which a slip of the pen looks like.
async fn unknown(context: &Context, token: &Token) -> String {
    // The token is made; that the groups are not told is no reason to say it was not.
    let Ok(groups) = context.client.groups().await else { return String::new() };
    let missing = token.scopes.iter().filter_map(|scope| match scope {
        Scope::Group { name, .. } if groups.iter().all(|group| group.name != *name) => Some(name),
        _ => None,
    });
    missing.map(|name| format!("warning: there is no group named {name} yet\n")).collect()
}

/// What its owner needs beside it.
fn told(created: &CreatedToken) -> String {
    let token = &created.token;
    let end =
        token.expires_ms.map_or_else(|| "until it is revoked".to_owned(), |ms| format!("until {}", utc(ms)));
    let mut text = format!("token {} for {}, good {end}; it is not shown again\n", token.id, scopes(token));
    match (created.listens.as_slice(), &created.pin) {
        ([], _) => {
            text.push_str("the daemon listens on no TCP address yet: `listen` in its file does that\n")
        }
        (addresses, Some(pin)) => {
            text.push_str(&format!("the daemon listens on {}\n", addresses.join(", ")));
            text.push_str(&format!(
                "on the other machine: enisle context add NAME --api https://HOST:PORT --pin {pin} --token-file FILE\n"
            ));
        }
        (addresses, None) => text.push_str(&format!("the daemon listens on {}\n", addresses.join(", "))),
    }
    text
}

fn scopes(token: &Token) -> String {
    token.scopes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn table(tokens: &[Token]) -> String {
    let row = |token: &Token| {
        let time = |ms: Option<u64>| ms.map_or_else(|| "-".to_owned(), utc);
        let end =
            token.revoked_ms.map_or_else(|| time(token.expires_ms), |ms| format!("revoked {}", utc(ms)));
        vec![
            token.id.clone(),
            visible(&token.name),
            scopes(token),
            utc(token.created_ms),
            end,
            time(token.last_used_ms),
        ]
    };
    render(
        &["ID", "NAME", "SCOPES", "CREATED", "ENDS", "LAST USED"],
        &tokens.iter().map(row).collect::<Vec<_>>(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_are_days_too() {
        assert_eq!(parse_life("90d"), Ok(Duration::from_secs(90 * 86_400)));
        assert_eq!(parse_life("12h"), Ok(Duration::from_secs(12 * 3600)));
        for bad in ["0d", "3651d", "d", "1y", "-1d"] {
            assert!(parse_life(bad).is_err(), "{bad}");
        }
    }
}
