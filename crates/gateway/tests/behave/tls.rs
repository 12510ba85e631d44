//! Visitors by TLS: HTTP/2 by agreement, the cookie with its prefix, sockets, and a certificate that is renewed.

use crate::support::{Gateway, echo, mirror};
use envforge_gateway::{Security, tls::Files};
use rustls::pki_types::{CertificateDer, ServerName};
use std::{fs, path::Path, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

pub(crate) const NAME: &str = "web--w--local.dev.localhost";

/// A certificate for the dev hosts, written where the gateway looks; what a visitor trusts.
pub(crate) fn certificate(dir: &Path) -> (Files, CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(["dev.localhost", "*.dev.localhost"].map(ToOwned::to_owned))
        .expect("a certificate");
    let files = Files { certificate: dir.join("chain.pem"), key: dir.join("key.pem") };
    // Each is replaced as a whole, as those who renew certificates do.
    for (at, text) in [(&files.key, made.signing_key.serialize_pem()), (&files.certificate, made.cert.pem())] {
        let next = at.with_extension("next");
        fs::write(&next, text).expect("written");
        fs::rename(next, at).expect("in its place");
    }
    (files, made.cert.der().clone())
}

pub(crate) async fn visit(
    gateway: &Gateway,
    trusted: &CertificateDer<'static>,
    protocols: &[&str],
) -> Option<TlsStream<TcpStream>> {
    visit_as(NAME, gateway, trusted, protocols).await
}

/// The same, to a host of another name.
pub(crate) async fn visit_as(
    name: &'static str,
    gateway: &Gateway,
    trusted: &CertificateDer<'static>,
    protocols: &[&str],
) -> Option<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = config.expect("versions").with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(name).expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, gateway.connect().await).await.ok()
}

pub(crate) async fn first_line(stream: &mut TlsStream<TcpStream>, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(stream.read_u8().await.expect("an answer"));
    }
    String::from_utf8_lossy(&line).trim_end().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn visitors_agree_on_http_2_and_only_the_prefixed_cookie_is_a_visit() {
    let dir = tempfile::tempdir().expect("a directory");
    let (files, trusted) = certificate(dir.path());
    let gateway = Gateway::start_with(mirror().await, Security::Files(files)).await;
    let token = gateway.signed(&gateway.visit());
    let request = |cookie: &str| format!("GET / HTTP/1.1\r\nhost: {NAME}\r\ncookie: {cookie}={token}\r\n\r\n");
    for (cookie, status) in [("__Host-envforge", "200"), ("envforge", "404")] {
        let mut stream = visit(&gateway, &trusted, &["http/1.1"]).await.expect("agreed");
        let line = first_line(&mut stream, &request(cookie)).await;
        assert!(line.starts_with(&format!("HTTP/1.1 {status}")), "{cookie}: {line}");
    }
    let stream = visit(&gateway, &trusted, &["h2", "http/1.1"]).await.expect("agreed");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    // Whoever does not speak TLS gets no answer and holds nobody up.
    let mut plain = gateway.connect().await;
    plain.write_all(request("__Host-envforge").as_bytes()).await.expect("sent");
    let mut rest = Vec::new();
    let _ = plain.read_to_end(&mut rest).await;
    assert!(!rest.starts_with(b"HTTP"));
    assert!(visit(&gateway, &trusted, &[]).await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_are_carried_by_tls_too() {
    let dir = tempfile::tempdir().expect("a directory");
    let (files, trusted) = certificate(dir.path());
    let gateway = Gateway::start_with(echo().await, Security::Files(files)).await;
    let mut stream = visit(&gateway, &trusted, &[]).await.expect("agreed");
    let request = format!(
        "GET /ws HTTP/1.1\r\nhost: {NAME}\r\norigin: https://{NAME}\r\ncookie: __Host-envforge={}\r\n\
         connection: upgrade\r\nupgrade: websocket\r\n\r\n",
        gateway.signed(&gateway.visit()),
    );
    assert!(first_line(&mut stream, &request).await.starts_with("HTTP/1.1 101"));
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("the rest of the head"));
    }
    let sent: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let (mut read, mut write) = tokio::io::split(stream);
    let mut heard = vec![0; sent.len()];
    tokio::try_join!(async { write.write_all(&sent).await.and(write.flush().await) }, read.read_exact(&mut heard))
        .expect("said back");
    assert!(heard == sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_taken_without_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let (files, first) = certificate(dir.path());
    let gateway = Gateway::start_with(mirror().await, Security::Files(files)).await;
    assert!(visit(&gateway, &first, &[]).await.is_some());
    let (_, second) = certificate(dir.path());
    let taken = async {
        while visit(&gateway, &second, &[]).await.is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), taken).await.expect("it is taken");
    assert!(visit(&gateway, &first, &[]).await.is_none());
}
