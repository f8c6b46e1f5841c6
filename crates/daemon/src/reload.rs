//! The file, read anew while the daemon runs: on SIGHUP.
//!
//! ```text
//! SIGHUP ─▶ RELOADING=1 ─▶ read and check the whole file ─▶ keys that cannot change? ─▶ groups ─▶ READY=1
//!                             └──────────── any mistake: a log line, an event, nothing else ─────▲
//! ```
//!
//! Owns: when it is read, which keys need a restart, and what is told of it. Refuses: groups
//! (`vm::registry`), and doing it twice at once: wishes that come meanwhile become one.

use crate::chain::Chain;
use crate::config::{self, Config, ConfigErrors, Look};
use crate::host::ThisHost;
use crate::shutdown;
use crate::ssh::Keys;
use crate::vm::registry::{Changes, Registry, RegroupError};
use enisle_api::EventKind;
use sd_notify::NotifyState;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Why nothing has changed.
#[derive(Debug, thiserror::Error)]
enum ReloadError {
    /// Mistakes in it, or no file.
    #[error("{}", .0.render(Look::Plain).trim_end())]
    File(ConfigErrors),
    /// Keys that are read at the start only.
    #[error("{}", .0.join("\n"))]
    Fixed(Vec<String>),
    /// The groups cannot become these.
    #[error(transparent)]
    Groups(#[from] RegroupError),
}

/// What is read, and whom it is for.
pub(crate) struct Target {
    pub(crate) file: PathBuf,
    pub(crate) registry: Arc<Registry>,
    pub(crate) keys: Arc<Keys>,
}

/// Follows the wishes to read the file anew until the daemon stops. `present` is what it said before.
pub(crate) async fn follow(target: Target, present: Config, asked: Arc<Notify>, stop: CancellationToken) {
    let Target { file, registry, keys } = target;
    let mut present = Arc::new(present);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = asked.notified() => {}
        }
        let mut state = vec![NotifyState::Reloading];
        // systemd holds it against its own clock (`Type=notify-reload`).
        state.extend(NotifyState::monotonic_usec_now().ok());
        shutdown::notify(&state);
        let (path, before, groups) = (file.clone(), Arc::clone(&present), Arc::clone(&registry));
        let read = tokio::task::spawn_blocking(move || reload(&path, &before, &groups)).await;
        match read {
            Ok(Ok((config, changes))) => {
                keys.renew(&config);
                present = Arc::new(config);
                tell_done(&file, &registry, changes);
            }
            // It goes down: nobody waits for an answer.
            Ok(Err(ReloadError::Groups(RegroupError::Stopping))) => return,
            Ok(Err(error)) => tell_failed(&file, &registry, &Chain(&error).to_string()),
            Err(_) => tell_failed(&file, &registry, "a defect: reading it panicked"),
        }
        shutdown::notify(&[NotifyState::Ready]);
    }
}

fn reload(file: &Path, present: &Config, registry: &Registry) -> Result<(Config, Changes), ReloadError> {
    let config = config::load(file, &ThisHost).map_err(ReloadError::File)?;
    let fixed = fixed(present, &config);
    if !fixed.is_empty() {
        return Err(ReloadError::Fixed(fixed));
    }
    let changes = registry.regroup(&config.groups)?;
    Ok((config, changes))
}

fn tell_done(file: &Path, registry: &Registry, changes: Changes) {
    let file = file.display();
    if changes.is_empty() {
        tracing::info!("read {file} again: nothing has changed");
    } else {
        tracing::info!(
            added = changes.added.join(" "),
            removed = changes.removed.join(" "),
            changed = changes.changed.join(" "),
            policies = changes.policies.join(" "),
            "read {file} again"
        );
    }
    for note in &changes.notes {
        tracing::info!("{note}");
    }
    let Changes { added, removed, changed, policies, notes } = changes;
    registry.events().tell(EventKind::Reloaded { added, removed, changed, policies, notes });
}

fn tell_failed(file: &Path, registry: &Registry, reason: &str) {
    tracing::error!("{} is not taken, and nothing has changed:\n{reason}", file.display());
    registry.events().tell(EventKind::ReloadFailed { reason: reason.to_owned() });
}

/// What is said about each key that has another value but is read at the start only. Named one by one,
/// so that a new key of the file has to be thought of here.
fn fixed(old: &Config, new: &Config) -> Vec<String> {
    let Config {
        file: _,
        api,
        hypervisor,
        listen,
        tls,
        ssh,
        // It is in the groups.
        image: _,
        // They are in the groups, and renewed for consoles.
        ssh_keys: _,
        kernel,
        initramfs,
        image_dir,
        state_dir,
        start_at_once,
        groups: _,
    } = new;
    [
        stays("api", &old.api, api),
        stays("listen", &old.listen, listen),
        stays("tls", &old.tls, tls),
        stays("ssh", &old.ssh, ssh),
        stays("hypervisor", &old.hypervisor, hypervisor),
        stays("kernel", &old.kernel, kernel),
        stays("initramfs", &old.initramfs, initramfs),
        stays("image_dir", &old.image_dir, image_dir),
        stays("state_dir", &old.state_dir, state_dir),
        stays("start_at_once", &old.start_at_once, start_at_once),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn stays<T: PartialEq + Debug>(key: &str, old: &T, new: &T) -> Option<String> {
    (old != new).then(|| {
        format!(
            "`config.{key}` cannot change while the daemon runs (it is {old:?}, the file says {new:?}): put the \
             old value back, or restart the daemon (`systemctl restart enisle`)"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AnyHost, MINIMAL};

    #[test]
    fn keys_that_need_a_restart_are_named_and_others_are_not() {
        let read = |text: &str| config::parse("test.yaml", text, &AnyHost).unwrap();
        let old = read(MINIMAL);
        assert_eq!(fixed(&old, &read(MINIMAL)), [] as [String; 0]);
        let other = MINIMAL.replacen(
            "config:",
            "config:\n  api: /run/other.sock\n  state_dir: /var/lib/other\n  image: other\n  start_at_once: 3",
            1,
        );
        let said = fixed(&old, &read(&other));
        assert_eq!(said.len(), 3, "{said:?}");
        for (key, said) in ["api", "state_dir", "start_at_once"].iter().zip(&said) {
            assert!(said.contains(&format!("`config.{key}`")) && said.contains("restart"), "{said}");
        }
    }
}
