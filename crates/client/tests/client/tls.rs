//! Which certificates a client believes, and what it says of the others.

use enisle_client::{Client, Endpoint, Error, Secret, Trust};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// A daemon that answers `/v1/health` and shows a certificate.
struct Shown {
    port: u16,
    pem: PathBuf,
    _dir: tempfile::TempDir,
}

impl Shown {
    async fn new(name: &str, ends: i32) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(ends, 1, 1);
        let certificate = params.self_signed(&key).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let pem = dir.path().join("certificate.pem");
        std::fs::write(&pem, certificate.pem()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let der = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config =
            config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], der).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(serve(listener, TlsAcceptor::from(Arc::new(config))));
        Self { port, pem, _dir: dir }
    }

    fn client(&self, trust: Trust) -> Client {
        let token = Secret::new("enisle_0123abcd_ff").unwrap();
        Client::remote(Endpoint::https("127.0.0.1", self.port), trust, Some(token))
    }

    fn authorities(&self) -> Trust {
        Trust::Authorities(self.pem.clone())
    }
}

/// Says in `status` what the request showed.
async fn serve(listener: TcpListener, acceptor: TlsAcceptor) {
    while let Ok((stream, _)) = listener.accept().await {
        // A client that does not believe the certificate goes away.
        let Ok(mut stream) = acceptor.accept(stream).await else { continue };
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let shown = head.lines().find_map(|line| line.strip_prefix("authorization: ")).unwrap_or("nothing");
        let body = format!("{{\"status\":\"{shown}\"}}");
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream.shutdown().await.ok();
    }
}

async fn refused(client: &Client) -> (String, String) {
    match client.health().await {
        Err(error @ Error::Tls { .. }) => (error.to_string(), error.hint().unwrap_or_default()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_certificate_is_believed_for_its_key_or_its_signer_alone() {
    let good = Shown::new("127.0.0.1", 2100).await;
    assert_eq!(good.client(good.authorities()).health().await.unwrap().status, "bearer enisle_0123abcd_ff");
    let other = Shown::new("127.0.0.1", 2100).await;
    let (why, hint) = refused(&good.client(other.authorities())).await;
    assert!(why.contains("not believed"), "{why}");
    let pin = hint.split_whitespace().find(|word| word.starts_with("sha256//")).unwrap();
    let pinned = Trust::Key(pin.trim_end_matches(':').parse().unwrap());
    assert_eq!(good.client(pinned.clone()).health().await.unwrap().status, "bearer enisle_0123abcd_ff");
    let (why, hint) = refused(&other.client(pinned)).await;
    assert!(why.contains("is not the pinned") && !hint.contains(pin), "{why}; {hint}");
}

#[tokio::test]
async fn an_expired_certificate_and_one_for_another_name_are_told_apart_and_a_pin_minds_neither() {
    for (name, ends, words) in
        [("127.0.0.1", 2001, "it has expired"), ("box.lan", 2100, "another name or address")]
    {
        let shown = Shown::new(name, ends).await;
        let (why, hint) = refused(&shown.client(shown.authorities())).await;
        assert!(why.contains(words), "{why}");
        let pin = hint.split_whitespace().find(|word| word.starts_with("sha256//")).unwrap();
        let pinned = Trust::Key(pin.trim_end_matches(':').parse().unwrap());
        assert!(shown.client(pinned).health().await.is_ok(), "{name}");
    }
}

#[tokio::test]
async fn what_speaks_no_tls_and_what_is_not_there_are_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let plain = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        // Held until the client has read it.
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.ok();
    });
    let client = |port| {
        let pin = "sha256//47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=".parse().unwrap();
        Client::remote(Endpoint::https("127.0.0.1", port), Trust::Key(pin), None)
    };
    let (why, hint) = refused(&client(port)).await;
    assert!(why.contains("does not speak TLS") && hint.contains("--insecure-loopback"), "{why}; {hint}");
    plain.await.unwrap();
    assert!(matches!(client(port).health().await, Err(Error::Unreachable { .. })));
}
