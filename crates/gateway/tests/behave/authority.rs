//! A real ACME server (Pebble), the name server that it asks, and a hook that makes records there.

use envforge_gateway::acme::{Pace, Settings};
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

/// Ends with the test.
struct Server(Child);

impl Server {
    fn start(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Self(child.expect("it runs"))
    }
}

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

/// How the server is to be.
pub(crate) struct Character {
    /// Seconds that its certificates last.
    pub(crate) lasting: u32,
    /// How many of a hundred good nonces it refuses.
    pub(crate) refusing: u8,
}

/// All of it.
pub(crate) struct Authority {
    pub(crate) settings: Settings,
    character: Character,
    pebble: PathBuf,
    /// Of server, its management, and the name server.
    ports: [u16; 3],
    server: Option<Server>,
    _name_server: Server,
    dir: tempfile::TempDir,
}

impl Authority {
    /// `None` where the programs are not installed.
    pub(crate) fn start(character: Character) -> Option<Self> {
        let (Some(pebble), Some(names)) = (program("pebble"), program("pebble-challtestsrv")) else {
            let _ = writeln!(
                std::io::stderr(),
                "skipped: no Pebble here (`scripts/setup --test-deps` gets it where Go is)"
            );
            return None;
        };
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        let own = ["localhost", "127.0.0.1"].map(ToOwned::to_owned).to_vec();
        let own = rcgen::generate_simple_self_signed(own).expect("a certificate");
        fs::write(at("own.pem"), own.cert.pem()).expect("written");
        fs::write(at("own.key"), own.signing_key.serialize_pem()).expect("written");
        let [acme, management, dns, records] = [port(), port(), port(), port()];
        // Its name differs between versions.
        let help = Command::new(&names).arg("-help").output().expect("it runs").stderr;
        let to_answer = if String::from_utf8_lossy(&help).contains("-dnsserver") { "-dnsserver" } else { "-dns01" };
        let nothing = ["-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", "", "-defaultIPv6", ""];
        let name_server = Server::start(Command::new(names).args(nothing).args([
            to_answer,
            &format!("127.0.0.1:{dns}"),
            "-management",
            &format!("127.0.0.1:{records}"),
        ]));
        let hook = format!(
            "#!/bin/sh\nset -e\ncd '{}'\necho $1 $2 >> calls\ncase $1 in\npresent)\n    what=set-txt\n    \
             if [ -e closed ]; then echo 'the zone is closed' >&2; exit 1; fi\n    \
             if [ -e slow ]; then sleep 1000 & echo $! > new; mv new waits; wait; fi ;;\ncleanup) what=clear-txt ;;\nesac\n\
             curl -sSf -d \"{{\\\"host\\\":\\\"$2.\\\",\\\"value\\\":\\\"$3\\\"}}\" http://127.0.0.1:{records}/$what\n",
            dir.path().display()
        );
        fs::write(at("hook"), hook).expect("written");
        fs::set_permissions(at("hook"), fs::Permissions::from_mode(0o700)).expect("made a program");
        let settings = Settings {
            directory: format!("https://localhost:{acme}/dir"),
            hook: at("hook"),
            dir: at("kept"),
            contact: Some("mailto:ops@example.com".into()),
            root: Some(at("own.pem")),
            pace: Pace { first: Duration::from_millis(50), longest: Duration::from_millis(500) },
        };
        for port in [dns, records] {
            until("it listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        }
        let ports = [acme, management, dns];
        let mut authority = Self { settings, character, pebble, ports, server: None, _name_server: name_server, dir };
        authority.begin();
        Some(authority)
    }

    /// Starts the server, which then knows nothing of what was before.
    pub(crate) fn begin(&mut self) {
        let [acme, management, dns] = self.ports;
        let config = serde_json::json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{acme}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": self.at("own.pem"), "privateKey": self.at("own.key"), "httpPort": 1, "tlsPort": 1,
            "retryAfter": { "authz": 1, "order": 1 },
            "profiles": { "default": { "description": "the only one", "validityPeriod": self.character.lasting } },
        } });
        fs::write(self.at("config.json"), config.to_string()).expect("written");
        let mut command = Command::new(&self.pebble);
        command.arg("-config").arg(self.at("config.json")).args(["-dnsserver", &format!("127.0.0.1:{dns}")]);
        // Every order is to be proved, and at once.
        command.env("PEBBLE_VA_NOSLEEP", "1").env("PEBBLE_AUTHZREUSE", "0");
        command.env("PEBBLE_WFE_NONCEREJECT", self.character.refusing.to_string());
        self.server = Some(Server::start(&mut command));
        for port in [acme, management] {
            until("it listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        }
    }

    /// Ends the server.
    pub(crate) fn end(&mut self) {
        self.server = None;
    }

    /// The same server by another name.
    pub(crate) fn by_another_name(&self) -> Settings {
        let directory = self.settings.directory.replace("localhost", "127.0.0.1");
        Settings { directory, ..self.settings.clone() }
    }

    /// What visitors trust.
    pub(crate) fn root(&self) -> CertificateDer<'static> {
        let url = format!("https://localhost:{}/roots/0", self.ports[1]);
        let out = Command::new("curl").args(["-sSf", "--cacert"]).arg(self.at("own.pem")).arg(url).output();
        CertificateDer::from_pem_slice(&out.expect("curl runs").stdout).expect("a certificate")
    }

    /// A file: `closed` and `slow` tell the hook how to be, `waits` is where it says what it waits for.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// What the hook was told, a line each.
    pub(crate) fn calls(&self) -> String {
        fs::read_to_string(self.at("calls")).unwrap_or_default()
    }
}

#[allow(clippy::disallowed_methods)] // A test's own thread; what it waits for has no event.
pub(crate) fn until(what: &str, mut wanted: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !wanted() {
        assert!(begun.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
