//! Certificates from a real ACME server, proved by records that a hook makes in a real name server.

use crate::{
    authority::{Authority, Character},
    support::{Gateway, mirror},
    tls::{NAME, first_line, visit, visit_as},
};
use envforge_gateway::{Security, acme::Settings};
use rustls::pki_types::CertificateDer;
use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Mutex, Once, PoisonError},
    time::Duration,
};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

const PRESENT: &str = "present _acme-challenge.dev.localhost\n";
const CLEANUP: &str = "cleanup _acme-challenge.dev.localhost\n";
/// Of a certificate, where its end is not what is tried.
const SECONDS_OF_A_QUARTER: u32 = 7_776_000;

async fn gateway(settings: &Settings) -> Gateway {
    Gateway::start_with(mirror().await, Security::Acme(settings.clone())).await
}

fn shown(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().expect("a certificate")[0].to_vec()
}

/// Whether a visitor is let in.
async fn is_served(gateway: &Gateway, stream: &mut TlsStream<TcpStream>) -> bool {
    let token = gateway.signed(&gateway.visit());
    let request = format!("GET / HTTP/1.1\r\nhost: {NAME}\r\ncookie: __Host-envforge={token}\r\n\r\n");
    first_line(stream, &request).await.starts_with("HTTP/1.1 200")
}

/// Visits until another certificate is shown.
async fn another(gateway: &Gateway, root: &CertificateDer<'static>, than: &[u8]) {
    let renewed = async {
        loop {
            match visit(gateway, root, &[]).await {
                Some(stream) if shown(&stream) != than => return,
                Some(_) | None => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), renewed).await.expect("another certificate");
}

/// Everything that was logged by this program.
static LOGGED: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Log;

impl io::Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        LOGGED.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn listen_to_the_log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing_subscriber::fmt().with_ansi(false).with_writer(|| Log).init());
}

/// Lines that name something of this test's own.
fn logged(of: &Path) -> Vec<String> {
    let logged = LOGGED.lock().unwrap_or_else(PoisonError::into_inner);
    let of = of.to_string_lossy();
    String::from_utf8_lossy(&logged).lines().filter(|line| line.contains(&*of)).map(ToOwned::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wildcard_certificate_is_had_kept_and_used_again_without_a_word() {
    let Some(mut authority) = Authority::start(Character { lasting: SECONDS_OF_A_QUARTER, refusing: 0 }) else {
        return;
    };
    let first = gateway(&authority.settings).await;
    assert_eq!(authority.calls(), [PRESENT, PRESENT, CLEANUP, CLEANUP].concat());
    let root = authority.root();
    let mut stream = visit(&first, &root, &["http/1.1"]).await.expect("the dev host's name is covered");
    assert!(is_served(&first, &mut stream).await);
    assert!(visit_as("dev.localhost", &first, &root, &[]).await.is_some(), "so is the share page's");
    assert!(visit_as("localhost", &first, &root, &[]).await.is_none());
    let dir = &authority.settings.dir;
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    let modes = [&**dir, &dir.join("certificate.pem"), &dir.join("account.json")].map(mode);
    assert_eq!(modes, [0o700, 0o600, 0o600]);

    authority.end();
    let again = gateway(&authority.settings).await;
    let second = visit(&again, &root, &[]).await.expect("the same certificate");
    assert_eq!(shown(&second), shown(&stream), "without a server to ask");
    assert_eq!(authority.calls().lines().count(), 4, "without the hook");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_in_time_and_open_connections_go_on() {
    let Some(authority) = Authority::start(Character { lasting: 6, refusing: 0 }) else { return };
    let gateway = gateway(&authority.settings).await;
    let root = authority.root();
    let mut open = visit(&gateway, &root, &["http/1.1"]).await.expect("agreed");
    another(&gateway, &root, &shown(&open)).await;
    assert!(is_served(&gateway, &mut open).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_fails_takes_nothing_away_and_the_log_says_why() {
    let Some(authority) = Authority::start(Character { lasting: SECONDS_OF_A_QUARTER, refusing: 0 }) else { return };
    let root = authority.root();
    let before = gateway(&authority.settings).await;
    let before = shown(&visit(&before, &root, &[]).await.expect("agreed"));
    listen_to_the_log();
    fs::write(authority.at("closed"), "").expect("closed");
    fs::remove_file(authority.at("calls")).expect("begun anew");
    // The certificate is good but of another server, so another one is wanted at once.
    let gateway = gateway(&authority.by_another_name()).await;
    let told = async {
        loop {
            let told = logged(authority.path());
            match told.iter().find(|line| line.contains("no certificate; it is tried again")) {
                Some(line) => return line.clone(),
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let told = tokio::time::timeout(Duration::from_secs(60), told).await.expect("it is told");
    assert!(told.contains("the zone is closed") && told.contains("_acme-challenge.dev.localhost"), "{told}");
    assert!(authority.calls().starts_with(&[PRESENT, CLEANUP].concat()), "what may have been made is taken away");
    let mut open = visit(&gateway, &root, &["http/1.1"]).await.expect("agreed");
    assert_eq!(shown(&open), before);
    fs::remove_file(authority.at("closed")).expect("opened");
    another(&gateway, &root, &before).await;
    assert!(is_served(&gateway, &mut open).await);
    let told = logged(authority.path()).concat();
    assert!(!told.contains("BEGIN") && !told.contains("key_pkcs8"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nonces_that_are_refused_and_an_account_that_is_forgotten_do_no_harm() {
    let Some(mut authority) = Authority::start(Character { lasting: SECONDS_OF_A_QUARTER, refusing: 30 }) else {
        return;
    };
    let first = gateway(&authority.settings).await;
    assert!(visit(&first, &authority.root(), &[]).await.is_some());
    let dir = authority.settings.dir.clone();
    let account = || fs::read_to_string(dir.join("account.json")).expect("an account");
    let before = account();
    fs::remove_file(dir.join("certificate.pem")).expect("gone");
    authority.end();
    authority.begin();
    let second = gateway(&authority.settings).await;
    assert!(visit(&second, &authority.root(), &[]).await.is_some());
    assert_ne!(account(), before);
}
