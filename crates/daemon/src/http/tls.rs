//! The certificate that the API shows: the operator's, or the daemon's own.
//!
//! The daemon's own is made at its first start with TCP and kept in `STATE_DIR/tls`. Its key stays the same for good,
//! because that is what clients pin. The certificate (ten years, for the addresses it listens on, the
//! host's name and localhost) is made anew at a start when it lacks one of those or ends within 90 days.
//! The operator's is read again within ten seconds when its files change; what cannot be used is logged, and the
//! one before it is shown on.
//!
//! Owns: files, keys, the pin. Refuses: deciding where to listen.

use crate::private_file;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
    PublicKeyData,
};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_rustls::TlsAcceptor;

/// The operator's files are looked at again at most so often.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Years that the daemon's own certificate is good for, about.
const YEARS: i32 = 10;
/// It is made anew when it ends before this.
const RENEW_BEFORE: Duration = Duration::from_secs(90 * 24 * 3600);

/// There is no certificate to show.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// A file.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file holds no such thing.
    #[error("{} holds no usable {what} in PEM; correct it, or remove `tls` to use the daemon's own", path.display())]
    Pem {
        /// Of what.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// Key and certificate do not belong together, or one of them is of an unknown kind.
    #[error("the key {} does not go with its certificate", key.display())]
    Mismatch {
        /// The key's file.
        key: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The daemon's own cannot be made.
    #[error("cannot make a certificate; remove {} to have key and certificate made anew", dir.display())]
    Make {
        /// Where it is kept.
        dir: PathBuf,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// TLS itself.
    #[error("cannot set up TLS")]
    Setup(#[from] rustls::Error),
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TlsError {
    let path = path.to_owned();
    move |source| TlsError::Io { action, path, source }
}

/// Which files a key and its certificates are in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Files {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// What tells that a file is another one than before.
type Stamp = [(u64, i64, i64); 2];

#[derive(Debug)]
struct Shown {
    key: Arc<CertifiedKey>,
    stamp: Option<Stamp>,
    looked: Instant,
}

/// The certificate to show.
#[derive(Debug)]
pub(crate) struct Certificates {
    files: Files,
    /// The operator's change while the daemon runs.
    changes: bool,
    shown: Mutex<Shown>,
    provider: Arc<CryptoProvider>,
}

impl Certificates {
    /// The operator's. Blocks on files.
    pub(crate) fn given(files: Files) -> Result<Self, TlsError> {
        Self::of(files, true)
    }

    /// The daemon's own in `dir`, good for these names and addresses; made where it is not. Blocks on files.
    pub(crate) fn own(dir: &Path, names: &[String]) -> Result<Self, TlsError> {
        let files = Files { certificate: dir.join("certificate.pem"), key: dir.join("key.pem") };
        fs::create_dir_all(dir).map_err(at("make", dir))?;
        let key = own_key(dir, &files.key)?;
        if !is_good(&files.certificate, &key, names) {
            let made =
                certificate(&key, names).map_err(|source| TlsError::Make { dir: dir.to_owned(), source })?;
            write(&files.certificate, made.as_bytes(), 0o644)?;
        }
        Self::of(files, false)
    }

    fn of(files: Files, changes: bool) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let key = Arc::new(load(&files, &provider)?);
        let shown = Mutex::new(Shown { key, stamp: stamp(&files), looked: Instant::now() });
        Ok(Self { files, changes, shown, provider })
    }

    /// What shows it: TLS 1.2 and 1.3, HTTP/1.1.
    pub(crate) fn acceptor(self: &Arc<Self>) -> TlsAcceptor {
        let config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions();
        // The provider is ring's, which has both versions.
        #[expect(clippy::expect_used, reason = "a provider without either version would not build")]
        let config = config.expect("ring has TLS 1.2 and 1.3").with_no_client_auth();
        let mut config = config.with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }

    /// `sha256//BASE64` of the public key, as `curl --pinnedpubkey` takes it.
    pub(crate) fn pin(&self) -> String {
        let key = self.current();
        let first = key.cert.first().and_then(|der| ParsedCertificate::try_from(der).ok());
        let spki = first.map(|parsed| parsed.subject_public_key_info().to_vec()).unwrap_or_default();
        format!("sha256//{}", STANDARD.encode(Sha256::digest(&spki)))
    }

    fn current(&self) -> Arc<CertifiedKey> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if self.changes && shown.looked.elapsed() >= LOOK_AGAIN {
            shown.looked = Instant::now();
            let found = stamp(&self.files);
            if found.is_some() && found != shown.stamp {
                match load(&self.files, &self.provider) {
                    Ok(key) => {
                        tracing::info!(file = %self.files.certificate.display(), "the API's certificate was read again");
                        shown.key = Arc::new(key);
                    }
                    Err(error) => tracing::error!(
                        "the API goes on with its old certificate: {}",
                        crate::chain::Chain(&error)
                    ),
                }
                shown.stamp = found;
            }
        }
        Arc::clone(&shown.key)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

fn stamp(files: &Files) -> Option<Stamp> {
    let of =
        |path: &Path| fs::metadata(path).map(|found| (found.ino(), found.mtime(), found.mtime_nsec())).ok();
    Some([of(&files.certificate)?, of(&files.key)?])
}

fn load(files: &Files, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    let pem = |what, path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::Pem { what, path, source }
    };
    let text = fs::read(&files.certificate).map_err(at("read", &files.certificate))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let chain = chain.map_err(pem("certificate", &files.certificate))?;
    if chain.is_empty() {
        return Err(pem("certificate", &files.certificate)(rustls::pki_types::pem::Error::NoItemsFound));
    }
    let text = fs::read(&files.key).map_err(at("read", &files.key))?;
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(pem("key", &files.key))?;
    CertifiedKey::from_der(chain, key, provider)
        .map_err(|source| TlsError::Mismatch { key: files.key.clone(), source })
}

/// The daemon's key, made where there is none.
fn own_key(dir: &Path, path: &Path) -> Result<KeyPair, TlsError> {
    let make = |source| TlsError::Make { dir: dir.to_owned(), source };
    match fs::read_to_string(path) {
        Ok(text) => KeyPair::from_pem(&text).map_err(make),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = KeyPair::generate().map_err(make)?;
            write(path, key.serialize_pem().as_bytes(), 0o600)?;
            Ok(key)
        }
        Err(error) => Err(at("read", path)(error)),
    }
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), TlsError> {
    private_file::write(path, bytes, mode).map_err(at("write", path))
}

/// Whether the certificate there is of this key, for these names, and for a while yet.
fn is_good(path: &Path, key: &KeyPair, names: &[String]) -> bool {
    let check = || -> Option<bool> {
        let der = CertificateDer::from_pem_slice(&fs::read(path).ok()?).ok()?;
        let parsed = ParsedCertificate::try_from(&der).ok()?;
        if parsed.subject_public_key_info().as_ref() != key.subject_public_key_info() {
            return Some(false);
        }
        let mut roots = RootCertStore::empty();
        roots.add(der.clone()).ok()?;
        let later = UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs()) + RENEW_BEFORE);
        let algorithms = ring::default_provider().signature_verification_algorithms;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &roots,
            &[],
            later,
            algorithms.all,
        )
        .ok()?;
        let fits = |name: &String| {
            let name = ServerName::try_from(name.as_str()).ok()?;
            rustls::client::verify_server_name(&parsed, &name).ok()
        };
        Some(names.iter().all(|name| fits(name).is_some()))
    };
    check().unwrap_or(false)
}

fn certificate(key: &KeyPair, names: &[String]) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::new(names.to_vec())?;
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, "Enisle API");
    params.distinguished_name = name;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let year = year();
    // From a year ago, so that a client whose clock is behind takes it.
    params.not_before = rcgen::date_time_ymd(year - 1, 1, 1);
    params.not_after = rcgen::date_time_ymd(year + YEARS + 1, 1, 1);
    Ok(params.self_signed(key)?.pem())
}

/// The year, in UTC, as far as leap days let it be told from days alone: near New Year it may be the
/// one before.
fn year() -> i32 {
    let days = crate::vm::lifetime::now_ms() / 86_400_000;
    1970 + i32::try_from(days * 10_000 / 3_652_425).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_daemons_own_keeps_its_key_and_follows_its_addresses() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("tls");
        let first = Certificates::own(&dir, &names(&["localhost", "192.168.1.1"])).unwrap();
        let pem = || fs::read(dir.join("certificate.pem")).unwrap();
        let before = pem();
        assert_eq!(fs::metadata(dir.join("key.pem")).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(first.pin().starts_with("sha256//") && first.pin().len() == 8 + 44);
        let again = Certificates::own(&dir, &names(&["192.168.1.1"])).unwrap();
        assert_eq!((again.pin(), pem()), (first.pin(), before.clone()), "nothing is made that is there");
        let moved = Certificates::own(&dir, &names(&["192.168.1.2"])).unwrap();
        assert_eq!(moved.pin(), first.pin());
        assert_ne!(pem(), before);
        fs::write(dir.join("certificate.pem"), "rubbish").unwrap();
        assert_eq!(Certificates::own(&dir, &names(&["a"])).unwrap().pin(), first.pin());
        assert!((2024..2200).contains(&year()), "{}", year());
    }

    #[test]
    fn what_is_given_must_be_a_pair_and_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let (own_a, own_b) =
            (Certificates::own(&a, &names(&["a"])).unwrap(), Certificates::own(&b, &names(&["b"])).unwrap());
        let files = Files { certificate: a.join("certificate.pem"), key: b.join("key.pem") };
        assert!(matches!(Certificates::given(files), Err(TlsError::Mismatch { .. })));
        let files = Files { certificate: a.join("certificate.pem"), key: a.join("key.pem") };
        let given = Certificates::given(files.clone()).unwrap();
        let aged = || given.shown.lock().unwrap().looked = Instant::now().checked_sub(LOOK_AGAIN).unwrap();
        fs::write(&files.certificate, "rubbish").unwrap();
        aged();
        assert_eq!(given.pin(), own_a.pin(), "the old one is shown on");
        for name in ["certificate.pem", "key.pem"] {
            fs::copy(b.join(name), a.join(name)).unwrap();
        }
        aged();
        assert_eq!(given.pin(), own_b.pin());
        let files = Files { certificate: a.join("key.pem"), ..files };
        assert!(matches!(Certificates::given(files), Err(TlsError::Pem { what: "certificate", .. })));
    }
}
