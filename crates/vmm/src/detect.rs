//! Owns the choice of a back end: KVM only where a guest really booted with it, else TCG.
//! Remembers the probe's verdict for as long as nothing it depends on has changed.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Cause, OnPath, VmmError};
use crate::probe::{ProbeSpec, probe};
use crate::spec::Ids;
use crate::{Accelerator, Qemu, Vmm};

/// With KVM a guest boots in a second; a host where it takes this long is no KVM host.
const PROBE_LIMIT: Duration = Duration::from_secs(20);

/// Which accelerator to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AcceleratorChoice {
    /// KVM where it works, else TCG with a warning.
    #[default]
    Auto,
    /// KVM, or nothing.
    Kvm,
    /// TCG, without a probe.
    Tcg,
}

/// What to look for, and with what to probe.
#[derive(Debug, Clone)]
pub struct DetectOptions {
    /// The operator's QEMU; otherwise it is looked for.
    pub qemu: Option<PathBuf>,
    /// The operator's `vhost-device-vsock`; otherwise it is looked for in the environment
    /// variable `ENISLE_VHOST_DEVICE_VSOCK`, beside our binary, in `PATH` and in
    /// `/usr/lib/enisle`.
    pub vsock_device: Option<PathBuf>,
    /// The accelerator wished for.
    pub accelerator: AcceleratorChoice,
    /// The guest kernel probes boot.
    pub kernel: PathBuf,
    /// The initramfs probes boot.
    pub initramfs: PathBuf,
    /// A directory of root's for the probe's sockets; short, as a run directory.
    pub probe_dir: PathBuf,
    /// The file in which the verdict is remembered.
    pub cache: PathBuf,
    /// Whom a probe runs as.
    pub user: Ids,
    /// The daemon's scope.
    pub scope: String,
}

/// A back end that works here.
pub struct Detected {
    /// The back end.
    pub vmm: Arc<dyn Vmm>,
    /// What the operator should know: why it is slower than it could be.
    pub warning: Option<String>,
}

impl std::fmt::Debug for Detected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Detected")
            .field("vmm", &self.vmm.name())
            .field("accelerator", &self.vmm.accelerator())
            .field("warning", &self.warning)
            .finish()
    }
}

/// Finds the best back end of this machine. At most some 20 s, and then only the first time
/// after a boot.
///
/// # Errors
/// [`VmmError::Unusable`] when there is no QEMU or no vsock device, or when KVM was asked for
/// and does not work.
pub async fn detect(options: &DetectOptions) -> Result<Detected, VmmError> {
    let find =
        |accelerator| Qemu::find(options.qemu.as_deref(), options.vsock_device.as_deref(), accelerator);
    if options.accelerator == AcceleratorChoice::Tcg {
        return Ok(Detected { vmm: Arc::new(find(Accelerator::Tcg).await?), warning: None });
    }
    // First, so that a missing program is said as that and not as a lack of KVM.
    let fallback = find(Accelerator::Tcg).await?;
    let tried = match find(Accelerator::Kvm).await {
        Ok(kvm) => verdict(&kvm, options).await.map(|()| kvm),
        Err(error) => Err(reason(&error)),
    };
    match tried {
        Ok(kvm) => Ok(Detected { vmm: Arc::new(kvm), warning: None }),
        Err(why) if options.accelerator == AcceleratorChoice::Kvm => Err(VmmError::Unusable(
            Cause::Unsupported(format!("KVM was asked for and cannot be used: {why}")),
        )),
        Err(why) => Ok(Detected {
            vmm: Arc::new(fallback),
            warning: Some(format!(
                "guests run without hardware acceleration, several times slower, because KVM \
                 cannot be used: {why}"
            )),
        }),
    }
}

/// The probe's verdict, remembered or fresh. An error is the reason for people.
async fn verdict(kvm: &Qemu, options: &DetectOptions) -> Result<(), String> {
    let key = key(kvm, options).map_err(|cause| cause.to_string())?;
    if let Some(known) = remembered(&options.cache, &key) {
        return known
            .map_err(|why| format!("{why} (remembered; remove {} to try again)", options.cache.display()));
    }
    let spec = ProbeSpec {
        kernel: options.kernel.clone(),
        initramfs: options.initramfs.clone(),
        dir: options.probe_dir.clone(),
        user: options.user,
        scope: options.scope.clone(),
        limit: PROBE_LIMIT,
    };
    let fresh = probe(kvm, &spec).await.map_err(|error| reason(&error));
    if let Err(error) = remember(&options.cache, &key, &fresh) {
        let path = options.cache.display();
        tracing::warn!(%path, %error, "the KVM probe's verdict is not remembered");
    }
    fresh
}

/// An error and all below it in one line.
fn reason(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {source}");
        next = source.source();
    }
    text.replace('\n', " ")
}

/// Everything the verdict depends on, in one line.
fn key(kvm: &Qemu, options: &DetectOptions) -> Result<String, Cause> {
    let read = |path: &str| {
        let text = std::fs::read_to_string(path).on("read", path)?;
        Ok::<_, Cause>(text.trim().to_owned())
    };
    Ok(format!(
        "kernel={} boot={} qemu={} guest={:016x}",
        read("/proc/sys/kernel/osrelease")?,
        read("/proc/sys/kernel/random/boot_id")?,
        kvm.version(),
        fingerprint(&[&options.kernel, &options.initramfs])?,
    ))
}

/// Tells files apart; it does not defend against somebody who could write here anyway.
fn fingerprint(files: &[&Path]) -> Result<u64, Cause> {
    let mut hasher = DefaultHasher::new();
    for path in files {
        let content = std::fs::read(path).on("read", path)?;
        hasher.write_usize(content.len());
        hasher.write(&content);
    }
    Ok(hasher.finish())
}

/// Two lines: the key, then `ok` or the reason.
fn remembered(cache: &Path, key: &str) -> Option<Result<(), String>> {
    let text = std::fs::read_to_string(cache).ok()?;
    let (known_key, verdict) = text.trim_end().split_once('\n')?;
    if known_key != key {
        return None;
    }
    Some(match verdict {
        "ok" => Ok(()),
        why => Err(why.to_owned()),
    })
}

/// Whole or not at all: a half-written verdict would be a wrong reason at best.
fn remember(cache: &Path, key: &str, verdict: &Result<(), String>) -> std::io::Result<()> {
    let word = match verdict {
        Ok(()) => "ok",
        Err(why) => why,
    };
    let fresh = cache.with_extension("new");
    std::fs::write(&fresh, format!("{key}\n{word}\n"))?;
    std::fs::rename(&fresh, cache)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_remembered_for_its_key_only() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("kvm");
        assert_eq!(remembered(&cache, "a"), None);
        remember(&cache, "a", &Err("no luck".into())).unwrap();
        assert_eq!(remembered(&cache, "a"), Some(Err("no luck".into())));
        assert_eq!(remembered(&cache, "b"), None);
        remember(&cache, "b", &Ok(())).unwrap();
        assert_eq!(remembered(&cache, "b"), Some(Ok(())));
        assert_eq!(remembered(&cache, "a"), None);
        std::fs::write(&cache, "torn").unwrap();
        assert_eq!(remembered(&cache, "torn"), None);
    }

    #[test]
    fn a_fingerprint_sees_content_and_where_one_file_ends() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("1"), dir.path().join("2"));
        let with = |first: &str, second: &str| {
            std::fs::write(&one, first).unwrap();
            std::fs::write(&two, second).unwrap();
            fingerprint(&[&one, &two]).unwrap()
        };
        assert_ne!(with("ab", "c"), with("a", "bc"));
        assert_eq!(with("ab", "c"), with("ab", "c"));
    }
}
