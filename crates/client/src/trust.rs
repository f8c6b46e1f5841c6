//! Which daemon is the right one: whom a client believes about a certificate.
//!
//! Owns: the pin's text form, the judge of certificates, and saying what was wrong with one. Refuses:
//! to be talked out of it: there is no way to skip the check.

use crate::Error;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
};
use sha2::{Digest, Sha256};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

/// Where distributions keep the certificates of public authorities.
pub const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The SHA-256 of a certificate's public key, written `sha256//BASE64` as for `curl --pinnedpubkey`. It outlives
/// the certificate: the daemon's own keeps its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin([u8; 32]);

/// A text is no pin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no pin; it is written sha256//BASE64, as `enisle token create` prints it")]
pub struct ParsePinError(String);

impl FromStr for Pin {
    type Err = ParsePinError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = text.strip_prefix("sha256//").and_then(|encoded| STANDARD.decode(encoded).ok());
        bytes.and_then(|bytes| bytes.try_into().ok()).map(Self).ok_or_else(|| ParsePinError(text.to_owned()))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256//{}", STANDARD.encode(self.0))
    }
}

impl Pin {
    fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let parsed = ParsedCertificate::try_from(certificate).ok()?;
        Some(Self(Sha256::digest(parsed.subject_public_key_info()).into()))
    }
}

/// Whom to believe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Trust {
    /// The public authorities that this machine knows ([`SYSTEM_ROOTS`]).
    #[default]
    System,
    /// The authorities in this file (PEM), or the daemon's own certificate.
    Authorities(PathBuf),
    /// Whoever has this key, whatever the certificate's name and dates.
    Key(Pin),
}

/// Why a certificate is not the right one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Refusal {
    why: String,
    found: Option<Pin>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for Refusal {}

#[derive(Debug)]
enum By {
    Key(Pin),
    Authorities(Arc<WebPkiServerVerifier>),
}

#[derive(Debug)]
struct Judge {
    by: By,
    provider: Arc<CryptoProvider>,
}

impl Trust {
    /// What TLS is spoken with. Reads the file of authorities.
    pub(crate) fn config(&self, at: &str) -> Result<ClientConfig, Error> {
        let provider = Arc::new(ring::default_provider());
        let by = match self {
            Self::Key(pin) => By::Key(*pin),
            Self::System => By::Authorities(authorities(SYSTEM_ROOTS.into(), &provider, at)?),
            Self::Authorities(path) => By::Authorities(authorities(path.clone(), &provider, at)?),
        };
        let judge = Arc::new(Judge { by, provider: Arc::clone(&provider) });
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| failed(at, e.to_string()))?;
        let mut config = builder.dangerous().with_custom_certificate_verifier(judge).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn failed(at: &str, why: impl Into<String>) -> Error {
    Error::Tls { at: at.to_owned(), why: why.into(), hint: None }
}

fn authorities(
    path: PathBuf,
    provider: &Arc<CryptoProvider>,
    at: &str,
) -> Result<Arc<WebPkiServerVerifier>, Error> {
    let unusable = |why: String| Error::Tls {
        at: at.to_owned(),
        why: format!("the file of authorities {} cannot be used: {why}", path.display()),
        hint: Some(
            "name another, or pin the daemon's key (ENISLE_PIN, `enisle context add --pin`)".to_owned(),
        ),
    };
    let text = std::fs::read(&path).map_err(|e| unusable(e.to_string()))?;
    let mut roots = RootCertStore::empty();
    // Of hundreds some may be of a kind that is not understood.
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&text).flatten());
    if roots.is_empty() {
        return Err(unusable("it holds no certificate in PEM".to_owned()));
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .map_err(|e| unusable(e.to_string()))
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = Pin::of(end_entity);
        let refuse = |why: String| {
            let refusal = Refusal { why, found };
            Err(CertificateError::Other(OtherError(Arc::new(refusal))).into())
        };
        match &self.by {
            By::Key(pin) if found == Some(*pin) => Ok(ServerCertVerified::assertion()),
            By::Key(pin) => refuse(format!("its key is not the pinned {pin}")),
            By::Authorities(inner) => {
                match inner.verify_server_cert(end_entity, intermediates, name, ocsp, now) {
                    Err(rustls::Error::InvalidCertificate(error)) => refuse(words(&error)),
                    verdict => verdict,
                }
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn words(error: &CertificateError) -> String {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired".to_owned(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not good yet; is this machine's clock right?".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "it is for another name or address".to_owned()
        }
        CertificateError::UnknownIssuer => "nobody whom this client believes signed it".to_owned(),
        other => other.to_string(),
    }
}

/// What went wrong in a handshake, for people.
pub(crate) fn handshake_failed(at: &str, error: &std::io::Error) -> Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(other)))) => {
            let found = other.downcast_ref::<Refusal>().and_then(|refusal| refusal.found);
            let hint = found.map(|pin| {
                format!(
                    "it shows the key {pin}: compare it with what `enisle token create` or the daemon's log says on its host, \
                     and pin it if it is the same"
                )
            });
            Error::Tls { at: at.to_owned(), why: format!("its certificate is not believed: {other}"), hint }
        }
        // The last is an echo of what was sent.
        Some(
            rustls::Error::InvalidMessage(_)
            | rustls::Error::InappropriateMessage { .. }
            | rustls::Error::InappropriateHandshakeMessage { .. },
        ) => Error::Tls {
            at: at.to_owned(),
            why: "it does not speak TLS".to_owned(),
            hint: Some("is it the daemon's port? One of --insecure-loopback is written http://".to_owned()),
        },
        Some(other) => failed(at, other.to_string()),
        None => failed(at, format!("the handshake broke: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_written_as_curl_takes_them() {
        let text = "sha256//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        assert_eq!(text.parse::<Pin>().unwrap().to_string(), text);
        for bad in ["", "sha256//", "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=", "sha256//AAAA"] {
            assert!(bad.parse::<Pin>().unwrap_err().to_string().contains("sha256//BASE64"), "{bad}");
        }
    }

    #[test]
    fn a_file_without_certificates_is_named() {
        let error = Trust::Authorities("/nonexistent".into()).config("https://a:1").unwrap_err();
        assert!(error.to_string().contains("/nonexistent"), "{error}");
    }
}
