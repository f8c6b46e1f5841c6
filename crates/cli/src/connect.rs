//! Which daemon a command is for, and what to show it.
//!
//! ```text
//! --api or --context ─▶ ENISLE_API ─▶ ENISLE_CONTEXT ─▶ the context in use ─▶ unix:/run/enisle/api.sock
//! ENISLE_TOKEN_FILE, ENISLE_PIN, ENISLE_CA_FILE ─▶ those of the context, if it was one
//! ```
//!
//! Owns: that order. A token comes from a file or a pipe only: what stands in an argument or in the environment can
//! be read by others (`/proc/PID/cmdline`, `environ`) and is handed on to every child. Refuses:
//! keeping contexts (`context`).

use crate::context::store::{Context, Contexts, read_token};
use crate::{ExitCode, Failure};
use enisle_client::{Client, Endpoint, Trust};
use std::env;
use std::path::{Path, PathBuf};

/// The file that holds the token.
const TOKEN_FILE: &str = "ENISLE_TOKEN_FILE";
/// The daemon's key.
const PIN: &str = "ENISLE_PIN";
/// A file of authorities.
const CA_FILE: &str = "ENISLE_CA_FILE";

/// The client for a command: the daemon at `api`, else the one of the context of this name, else the one of the
/// context in use.
pub(crate) fn client(api: Option<Endpoint>, context: Option<&str>) -> Result<Client, Failure> {
    let chosen = match (api, context) {
        (Some(endpoint), _) => Context { endpoint, pin: None, ca: None, token: None },
        (None, Some(name)) => Contexts::load()?.get(name)?,
        (None, None) => Contexts::load()?.current()?.unwrap_or_default(),
    };
    if !chosen.endpoint.is_tls() {
        return Ok(Client::new(chosen.endpoint));
    }
    let pin = match set(PIN) {
        Some(text) => {
            let text = text.to_string_lossy().into_owned();
            Some(text.parse().map_err(|e| Failure::usage(format!("{PIN}: {e}")))?)
        }
        None => chosen.pin,
    };
    let trust = match (pin, set(CA_FILE).map(PathBuf::from).or(chosen.ca)) {
        (Some(pin), _) => Trust::Key(pin),
        (None, Some(file)) => Trust::Authorities(file),
        (None, None) => Trust::System,
    };
    let file = set(TOKEN_FILE).map(PathBuf::from).or(chosen.token);
    let Some(file) = file else {
        let detail = format!("no token for {}", chosen.endpoint);
        return Err(Failure::new("unauthorized", ExitCode::NoDaemon, detail).hint(format!(
            "`enisle context add NAME --api … --token-file FILE`, or {TOKEN_FILE}=FILE; \
             `enisle token create` on the daemon's host makes one"
        )));
    };
    Ok(Client::remote(chosen.endpoint, trust, Some(read_token(Path::new(&file))?)))
}

/// A variable that is set to something.
fn set(name: &str) -> Option<std::ffi::OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}
