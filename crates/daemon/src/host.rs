//! What the configuration asks of this machine.
//!
//! Owns: images, files, and which networks are in use. Changes nothing. Refuses the last word
//! about ranges: the engine looks again when it opens; what is seen here can be reported with its
//! place in the file.

use crate::chain::Chain;
use crate::config::{self, InUse};
use crate::store;
use enisle_image::ImageStore;
use enisle_net::survey;
use std::path::Path;

/// This machine.
pub(crate) struct ThisHost;

impl config::Host for ThisHost {
    fn networks(&self, state_dir: &Path) -> Vec<InUse> {
        let holder = store::lock_holder(state_dir);
        // Who may not read whose state it is cannot tell another daemon's lease from its own one's.
        let own = |pid| holder.as_ref().map_or(true, |holder| *holder == Some(pid));
        // What a daemon of this state that died has left is in nobody's way.
        let scope = store::scope_of(state_dir).and_then(|scope| scope.parse().ok());
        match survey::taken(own, scope) {
            Ok(taken) => taken.into_iter().map(|t| InUse { net: t.net, by: t.by }).collect(),
            Err(error) => {
                // The engine still refuses, without the place in the file.
                tracing::warn!("cannot see which networks this host uses: {}", Chain(&error));
                Vec::new()
            }
        }
    }

    fn images(&self, image_dir: &Path) -> Option<Vec<String>> {
        // One that is broken is reported when a VM wants it; here it would hide the others.
        let images = ImageStore::open(image_dir).list().ok()?;
        Some(images.into_iter().map(|image| image.name).collect())
    }

    fn is_file(&self, path: &Path) -> bool {
        std::fs::File::open(path).and_then(|file| file.metadata()).is_ok_and(|found| found.is_file())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    #[test]
    fn another_daemons_range_is_refused_with_its_place_and_the_own_one_is_not() {
        // As the engine of process 1 would hold it: a name in the namespace of sockets, nothing else.
        let name = SocketAddr::from_abstract_name("enisle/range/10.211.212.0/24/1-0").unwrap();
        let _lease = UnixDatagram::bind_addr(&name).unwrap();
        let state = tempfile::tempdir().unwrap();
        let text = format!(
            "config:\n  state_dir: {}\n  image_dir: /nonexistent\n  host_groups:\n  - name: agents\n    \
             network:\n      mode: isolated\n      range: 10.211.212.0/24\n",
            state.path().display()
        );
        let check = || parse("agents.yaml", &text, &ThisHost).map_err(|e| e.render(config::Look::Plain));
        let error = check().unwrap_err();
        for part in [
            "agents.yaml:8",
            "another daemon (process 1)",
            "the next free range of this size is 10.211.213.0/24",
        ] {
            assert!(error.contains(part), "{error}");
        }
        std::fs::write(state.path().join("lock"), "1\n").unwrap();
        let own = check();
        assert!(!own.as_ref().is_err_and(|e| e.contains("range")), "{own:?}");
    }
}
