//! Probes and listeners inside real guests, by `enisle vm exec`.
//!
//! Owns: the scripts and how they are run. Both need nothing in the guest but python3.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, bail};
use enisle_testkit::probe::{Outcome, TOKEN, Target};
use serde_json::Value;

const PROBE: &str = include_str!("guest_probe.py");
const LISTENER: &str = include_str!("guest_listener.py");
/// Seconds a guest waits for an answer. More than the second a refusal may take, so that late and
/// never can be told apart.
const LIMIT: u32 = 3;
/// Port of the listener in the sibling.
pub(crate) const PORT: u16 = 7778;

/// How to reach guests.
pub(crate) struct Enisle {
    /// The binary.
    pub(crate) path: PathBuf,
}

impl Enisle {
    /// The address of a microVM.
    pub(crate) fn address(&self, vm: &str) -> anyhow::Result<Ipv4Addr> {
        let output = Command::new(&self.path)
            .args(["vm", "list", "--json"])
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("cannot run {}", self.path.display()))?;
        let list: Vec<Value> = serde_json::from_slice(&output.stdout)
            .context("`enisle vm list --json` printed no list; does the daemon run?")?;
        let found = list.iter().find(|v| v["name"] == vm).and_then(|v| v["address"].as_str());
        let Some(address) = found else { bail!("there is no microVM `{vm}`; see `enisle vm list`") };
        address.parse().with_context(|| format!("the address of {vm} is no address: {address}"))
    }

    /// Asks every target from inside a guest; one outcome for each.
    pub(crate) fn probe(&self, vm: &str, targets: &[Target]) -> anyhow::Result<Vec<Outcome>> {
        let token = String::from_utf8_lossy(TOKEN).replace('\n', "\\n");
        // JSON's lists, strings and numbers are Python's.
        let list = serde_json::to_string(targets)?;
        let script = format!("TARGETS = {list}\nLIMIT = {LIMIT}\nTOKEN = b\"{token}\"\n{PROBE}");
        let mut child = self.exec(vm, &["python3", "-"])?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(script.as_bytes()).context("cannot send the probe to the guest")?;
        }
        let output = child.wait_with_output().context("cannot read the guest's answers")?;
        let lines = output.stdout.lines().map_while(Result::ok);
        let outcomes: Vec<Outcome> = lines.map(|l| serde_json::from_str(&l)).collect::<Result<_, _>>()?;
        if outcomes.len() != targets.len() {
            bail!("the probe in {vm} ended early ({}); its complaint is above", output.status);
        }
        Ok(outcomes)
    }

    /// Starts the echo listener in a guest and waits until it listens.
    pub(crate) fn listen(&self, vm: &str) -> anyhow::Result<Listener> {
        let port = PORT.to_string();
        let mut child = Listener(self.exec(vm, &["python3", "-c", LISTENER, &port])?);
        let mut line = String::new();
        if let Some(stdout) = child.0.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).context("cannot hear the listener")?;
        }
        if line.trim_end() != "listening" {
            bail!("the listener in {vm} did not start; its complaint is above");
        }
        Ok(child)
    }

    fn exec(&self, vm: &str, command: &[&str]) -> anyhow::Result<Child> {
        Command::new(&self.path)
            .args(["vm", "exec", vm, "--"])
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", self.path.display()))
    }
}

/// A listener in a guest; ends when dropped.
pub(crate) struct Listener(Child);

impl Drop for Listener {
    fn drop(&mut self) {
        // Ends by itself once stdin is closed; killed in case the way there is broken.
        drop(self.0.stdin.take());
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
