//! `enisle vm port-forward`.

use super::Context;
use crate::Failure;
use crate::exit::ExitCode;
use crate::forward_spec::{ForwardSpec, Target};
use crate::listener::{self, Listener, Local};
use crate::signals::Endings;
use crate::table::{print, print_json_line};
use clap::Args;
use enisle_client::api::{Code, VmState};
use enisle_client::{Client, Connection, Error};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

/// Most connections at once, where the limit of open files allows it.
const MAX_CONNECTIONS: u64 = 4096;
/// Bytes moved at once, each way.
const CHUNK: usize = 64 << 10;
/// Files that are no connection: standard streams, listeners, the runtime's own.
const OTHER_FILES: u64 = 64;
/// How long a guest may take to read the last bytes of a connection that both sides have ended.
const FLUSH_LIMIT: Duration = Duration::from_secs(30);
/// What a daemon needs to take in that a VM has ended whose console is at its end.
const STATE_DELAY: Duration = Duration::from_secs(2);
/// Pause after an accept that failed for lack of files or memory.
const BACK_OFF: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
#[command(after_help = "\
SPEC is one of
  PORT                       localhost:PORT to the same port in the VM
  LPORT:[HOST:]PORT          localhost:LPORT to HOST:PORT as the VM sees it
  LADDR:LPORT:[HOST:]PORT    the same, listening on LADDR
  LPORT:/guest.sock          to a unix socket in the VM
  /local.sock:/guest.sock    from a unix socket, made for this user alone
  /local.sock:[HOST:]PORT
LPORT 0 takes any free port. HOST is the VM itself (127.0.0.1) when left out. IPv6 addresses stand
in brackets. Without LADDR it listens on 127.0.0.1 and ::1, never on an outside address.

It prints where it listens once it does, and ends with Ctrl-C. A connection that the VM refuses is
reported and closed; the forward goes on.

Examples:
  enisle vm port-forward agents-1 2222:22        # then: ssh -p 2222 ubuntu@localhost
  enisle vm port-forward agents-1 8080 0:127.0.0.1:5432
  enisle vm port-forward agents-1 0.0.0.0:8080:127.0.0.1:80
  enisle vm port-forward agents-1 /tmp/docker.sock:/var/run/docker.sock")]
pub(crate) struct PortForwardArgs {
    /// Name of the VM.
    name: String,
    /// What to forward.
    #[arg(required = true, value_name = "SPEC")]
    specs: Vec<ForwardSpec>,
}

#[derive(Serialize)]
struct Announcement<'a> {
    vm: &'a str,
    listen: &'a str,
    target: &'a Target,
}

pub(super) async fn run(context: &Context, args: &PortForwardArgs) -> Result<u8, Failure> {
    let mut endings = Endings::catch()?;
    let mut listeners = tokio::select! {
        started = start(context, args) => started?,
        signal = endings.next() => return Err(Failure::interrupted(signal)),
    };
    let result = tokio::select! {
        Some(ended) = listeners.join_next() => Err(ended.unwrap_or_else(|e| {
            Failure::new("internal", ExitCode::Failed, format!("a listener broke off: {e}"))
        })),
        // This is how a forward is meant to end.
        _ = endings.next() => Ok(ExitCode::Success as u8),
    };
    // Waited for, because the files of unix sockets go away with their listeners.
    listeners.shutdown().await;
    result
}

/// Binds everything, says so, and serves. Nothing listens when one of them cannot.
async fn start(context: &Context, args: &PortForwardArgs) -> Result<JoinSet<Failure>, Failure> {
    check_alive(&context.client, &args.name).await?;
    let mut bound = Vec::new();
    for spec in &args.specs {
        for listener in listener::bind(&spec.listen).await? {
            bound.push((listener, spec.target.clone()));
        }
    }
    for (listener, target) in &bound {
        announce(context.json, &args.name, &listener.address, target)?;
    }
    let connections = Arc::new(Semaphore::new(connection_limit()));
    let mut listeners = JoinSet::new();
    for (listener, target) in bound {
        let forward = Forward {
            client: context.client.clone(),
            json: context.json,
            vm: args.name.clone(),
            target,
            connections: connections.clone(),
        };
        listeners.spawn(forward.run(listener));
    }
    listeners.spawn(end_of(context.client.clone(), args.name.clone()));
    Ok(listeners)
}

/// Resolves when the VM is no longer there, also while nobody connects: its console ends with it.
async fn end_of(client: Client, name: String) -> Failure {
    if let Ok(mut console) = client.logs(&name, true).await {
        while let Ok(Some(_)) = console.chunk().await {}
    }
    // The console breaks first; the VM's new state follows within this time.
    tokio::time::sleep(STATE_DELAY).await;
    if client.vm(&name).await.is_ok_and(|vm| vm.state == VmState::Stopping) {
        return Failure::new("not_found", ExitCode::NotFound, format!("VM `{name}` is being removed"));
    }
    match check_alive(&client, &name).await {
        // A daemon that does not show the console: the next connection finds out.
        Ok(()) => std::future::pending().await,
        Err(failure) => failure,
    }
}

/// A VM that still boots is fine: the daemon lets its first connection wait.
async fn check_alive(client: &Client, name: &str) -> Result<(), Failure> {
    let vm = client.vm(name).await?;
    match vm.state {
        VmState::Creating | VmState::Booting | VmState::Running | VmState::Paused => Ok(()),
        VmState::Stopping | VmState::Failed => {
            let detail = format!("VM `{name}` is {}, not running", vm.state);
            let hint = format!("see `enisle vm list` and `enisle vm logs {name}`");
            Err(Failure::new("wrong_state", ExitCode::Conflict, detail).hint(hint))
        }
    }
}

fn announce(json: bool, vm: &str, listen: &str, target: &Target) -> Result<(), Failure> {
    if json {
        return print_json_line(&Announcement { vm, listen, target });
    }
    print(&format!("{listen} -> {vm} {target}\n"))
}

/// Raises the limit of open files as far as it goes and divides it: two for a connection.
fn connection_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // The old limit stays where raising it is not allowed.
    let files = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let most = files.map_or(MAX_CONNECTIONS, |files| files.saturating_sub(OTHER_FILES) / 2);
    usize::try_from(most.clamp(1, MAX_CONNECTIONS)).unwrap_or(1)
}

/// One listener's work.
struct Forward {
    client: Client,
    json: bool,
    vm: String,
    target: Target,
    connections: Arc<Semaphore>,
}

impl Forward {
    /// Accepts until the VM is gone. Dropping the future ends every connection.
    async fn run(self, listener: Listener) -> Failure {
        let this = Arc::new(self);
        let mut open = JoinSet::new();
        loop {
            tokio::select! {
                accepted = this.accept(&listener) => match accepted {
                    Ok((local, permit)) => { open.spawn(this.clone().serve(local, permit)); }
                    Err(error) => this.accept_failed(&listener, &error).await,
                },
                Some(Ok(Err(failure))) = open.join_next() => return failure,
            }
        }
    }

    async fn accept(&self, listener: &Listener) -> io::Result<(Local, OwnedSemaphorePermit)> {
        // Further clients wait in the kernel's queue. The semaphore is never closed.
        let permit = self.connections.clone().acquire_owned().await.map_err(io::Error::other)?;
        Ok((listener.accept().await?, permit))
    }

    async fn accept_failed(&self, listener: &Listener, error: &io::Error) {
        // The client gave up before its turn (accept(2)).
        if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) {
            return;
        }
        Failure::io(&format!("cannot accept a connection on {}", listener.address), error).report(self.json);
        // No event tells when files or memory are free again; without a pause this would spin.
        tokio::time::sleep(BACK_OFF).await;
    }

    /// Carries one connection. An error ends the whole forward.
    async fn serve(self: Arc<Self>, local: Local, _permit: OwnedSemaphorePermit) -> Result<(), Failure> {
        let guest = match self.connect().await {
            Ok(guest) => guest,
            Err(error) => {
                local.reset();
                return self.refused(&error);
            }
        };
        match local {
            Local::Tcp(stream) => {
                // Small answers must not wait for more to send; failing costs only speed.
                let _ = stream.set_nodelay(true);
                if let Some(stream) = carry(stream, guest).await {
                    Local::Tcp(stream).reset();
                }
            }
            Local::Unix(stream) => drop(carry(stream, guest).await),
        }
        Ok(())
    }

    async fn connect(&self) -> Result<Connection, Error> {
        match &self.target {
            Target::Tcp { host, port } => self.client.connect_tcp(&self.vm, host, *port).await,
            Target::Unix(path) => self.client.connect_unix(&self.vm, path).await,
        }
    }

    fn refused(&self, error: &Error) -> Result<(), Failure> {
        let failure = Failure::from(error);
        if matches!(error, Error::Problem(problem) if problem.code == Code::NotFound) {
            return Err(failure);
        }
        failure.report(self.json);
        Ok(())
    }
}

/// Both directions to their ends, each half closed on its own. Gives the local side back when
/// the connection broke instead of ending.
async fn carry<S: AsyncRead + AsyncWrite + Unpin>(mut local: S, mut guest: Connection) -> Option<S> {
    if copy_bidirectional_with_sizes(&mut local, &mut guest, CHUNK, CHUNK).await.is_err() {
        return Some(local);
    }
    // The last bytes may still be on their way, and dropping the connection would cut them off.
    match tokio::time::timeout(FLUSH_LIMIT, guest.finish()).await {
        Ok(Ok(())) => None,
        _ => Some(local),
    }
}

impl Local {
    /// Closes with a reset where there is such a thing, so that the client sees a refusal and
    /// not an empty answer.
    fn reset(self) {
        if let Self::Tcp(stream) = self {
            // Without it the close is an orderly one.
            let _ = stream.set_zero_linger();
        }
    }
}
