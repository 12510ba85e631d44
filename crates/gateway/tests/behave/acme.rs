//! Certificates from a real ACME server (Pebble), proved by records that a hook makes in a real name server.

use crate::{
    support::{Gateway, mirror},
    tls::{NAME, first_line, visit},
};
use envforge_gateway::{Security, acme::Settings};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use std::{
    fs,
    io::Write,
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tokio::net::TcpStream as Stream;
use tokio_rustls::client::TlsStream;

/// Ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where the set-up puts it, or on PATH.
fn program(name: &str) -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?.ancestors().nth(3)?.join("tools");
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::iter::once(own).chain(std::env::split_paths(&path)).map(|dir| dir.join(name)).find(|at| at.is_file())
}

fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port()
}

/// An ACME server, the name server that it asks, and a hook that makes records there.
struct Authority {
    dir: tempfile::TempDir,
    settings: Settings,
    management: u16,
    _servers: [Server; 2],
}

impl Authority {
    /// `None` where they are not installed.
    fn start(certificates_last: u32) -> Option<Self> {
        let (Some(pebble), Some(names)) = (program("pebble"), program("pebble-challtestsrv")) else {
            let _ = writeln!(
                std::io::stderr(),
                "skipped: no Pebble here (`scripts/setup --test-deps` gets it where Go is)"
            );
            return None;
        };
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        let [acme, management, dns, records] = [port(), port(), port(), port()];
        let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
        fs::write(at("own.pem"), own.cert.pem()).expect("written");
        fs::write(at("own.key"), own.signing_key.serialize_pem()).expect("written");
        let config = serde_json::json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{acme}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": at("own.pem"), "privateKey": at("own.key"), "httpPort": 1, "tlsPort": 1,
            "retryAfter": { "authz": 1, "order": 1 },
            "profiles": { "default": { "description": "the only one", "validityPeriod": certificates_last } },
        } });
        fs::write(at("config.json"), config.to_string()).expect("written");
        let quiet = |command: &mut Command| {
            let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
            Server(child.expect("it runs"))
        };
        let nothing = ["-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", "", "-defaultIPv6", ""];
        let name_server = quiet(Command::new(names).args(nothing).args([
            "-dns01",
            &format!("127.0.0.1:{dns}"),
            "-management",
            &format!("127.0.0.1:{records}"),
        ]));
        let server = quiet(
            Command::new(pebble)
                .args(["-config", &at("config.json").to_string_lossy(), "-dnsserver", &format!("127.0.0.1:{dns}")])
                .env("PEBBLE_VA_NOSLEEP", "1"),
        );
        for port in [acme, management, dns, records] {
            until("it listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        }
        let hook = format!(
            "#!/bin/sh\nset -e\ncase $1 in\npresent) what=set-txt ;;\ncleanup) what=clear-txt ;;\nesac\n\
             curl -sSf -d \"{{\\\"host\\\":\\\"$2.\\\",\\\"value\\\":\\\"$3\\\"}}\" http://127.0.0.1:{records}/$what\n\
             echo $1 $2 >> {}\n",
            at("calls").display()
        );
        fs::write(at("hook"), hook).expect("written");
        fs::set_permissions(at("hook"), fs::Permissions::from_mode(0o700)).expect("made a program");
        let settings = Settings {
            directory: format!("https://localhost:{acme}/dir"),
            hook: at("hook"),
            dir: at("kept"),
            contact: Some("mailto:ops@example.com".into()),
            root: Some(at("own.pem")),
            pace: envforge_gateway::acme::Pace::default(),
        };
        Some(Self { settings, management, _servers: [name_server, server], dir })
    }

    /// What visitors trust.
    fn root(&self) -> CertificateDer<'static> {
        let url = format!("https://localhost:{}/roots/0", self.management);
        let out =
            Command::new("curl").args(["-sSf", "--cacert"]).arg(self.dir.path().join("own.pem")).arg(url).output();
        CertificateDer::from_pem_slice(&out.expect("curl runs").stdout).expect("a certificate")
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default()
    }

    async fn gateway(&self) -> Gateway {
        Gateway::start_with(mirror().await, Security::Acme(self.settings.clone())).await
    }
}

#[allow(clippy::disallowed_methods)] // A test's own thread; what it waits for has no event.
fn until(what: &str, mut wanted: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !wanted() {
        assert!(begun.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn shown(stream: &TlsStream<Stream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().expect("a certificate")[0].to_vec()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("there").permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wildcard_certificate_is_had_kept_and_used_again_without_a_word() {
    let Some(authority) = Authority::start(7_776_000) else { return };
    let gateway = authority.gateway().await;
    let (present, cleanup) = ("present _acme-challenge.dev.localhost\n", "cleanup _acme-challenge.dev.localhost\n");
    assert_eq!(authority.calls(), [present, present, cleanup, cleanup].concat());
    let root = authority.root();
    let mut stream = visit(&gateway, &root, &["http/1.1"]).await.expect("the dev host's name is covered");
    let token = gateway.signed(&gateway.visit());
    let request = format!("GET / HTTP/1.1\r\nhost: {NAME}\r\ncookie: __Host-envforge={token}\r\n\r\n");
    assert!(first_line(&mut stream, &request).await.starts_with("HTTP/1.1 200"));
    let dir = &authority.settings.dir;
    let modes = [&**dir, &dir.join("certificate.pem"), &dir.join("account.json")].map(mode);
    assert_eq!(modes, [0o700, 0o600, 0o600]);

    let again = authority.gateway().await;
    let second = visit(&again, &root, &[]).await.expect("the same certificate");
    assert_eq!(shown(&second), shown(&stream));
    assert_eq!(authority.calls().lines().count(), 4, "nobody was asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_in_time_and_open_connections_go_on() {
    let Some(authority) = Authority::start(6) else { return };
    let gateway = authority.gateway().await;
    let root = authority.root();
    let mut open = visit(&gateway, &root, &["http/1.1"]).await.expect("agreed");
    let first = shown(&open);
    let renewed = async {
        loop {
            match visit(&gateway, &root, &[]).await {
                Some(stream) if shown(&stream) != first => return,
                Some(_) | None => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), renewed).await.expect("another certificate");
    let token = gateway.signed(&gateway.visit());
    let request = format!("GET / HTTP/1.1\r\nhost: {NAME}\r\ncookie: __Host-envforge={token}\r\n\r\n");
    assert!(first_line(&mut open, &request).await.starts_with("HTTP/1.1 200"));
}
