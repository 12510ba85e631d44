//! The four parts of an installation: how each is started, when it is ready, how it is stopped.

use super::{
    door::{Door, Gateway},
    log,
    paths::{Paths, Programs},
    postgres::Postgres,
    process::Process,
    state::{Board, Named},
};
use envforge_api::problem::Problem;
use rustix::process::Signal;
use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    sync::watch,
    time::timeout,
};

/// Base of the public host names on one machine.
pub(super) const BASE: &str = "dev.localhost";

/// One part. The set is closed: what an installation consists of is decided here.
#[derive(Debug)]
pub(super) enum Program {
    /// The private PostgreSQL cluster.
    Postgres(Postgres),
    /// The control plane.
    Control(Control),
    /// The host daemon.
    Host(Host),
    /// The gateway.
    Gateway(Gateway),
}

/// The control plane.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) paths: Paths,
    pub(super) programs: Programs,
    pub(super) board: Board,
    pub(super) database_url: String,
    pub(super) door: Door,
    /// Tells where it listens now.
    pub(super) address: watch::Sender<Option<SocketAddr>>,
}

/// The host daemon.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) paths: Paths,
    pub(super) programs: Programs,
}

impl Program {
    /// Name in status, logs and `keeper.json`.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "postgres",
            Self::Control(_) => "control",
            Self::Host(_) => "host",
            Self::Gateway(_) => "gateway",
        }
    }

    /// How a person calls it.
    pub(super) fn title(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "the PostgreSQL server",
            Self::Control(_) => "the control plane",
            Self::Host(_) => "the host daemon",
            Self::Gateway(_) => "the gateway",
        }
    }

    /// Removes what an earlier process of it left, prepares what it needs, and starts it.
    ///
    /// # Errors
    /// What a person must know or mend.
    pub(super) async fn start(&mut self) -> Result<Process, Problem> {
        match self {
            Self::Postgres(postgres) => postgres.start().await,
            Self::Control(control) => control.start(),
            Self::Host(host) => host.start(),
            Self::Gateway(gateway) => gateway.start(),
        }
    }

    /// Whether the process is ready now. `log_from`: length of its log when it was started.
    pub(super) async fn is_ready(&self, process: Named, log_from: u64) -> bool {
        match self {
            Self::Postgres(postgres) => postgres.is_ready(process),
            Self::Control(control) => control.is_ready().await,
            Self::Host(Host { paths, .. }) | Self::Gateway(Gateway { paths, .. }) => {
                log::since(&paths.log(self.name()), log_from).lines().any(|line| line.trim() == "ready")
            }
        }
    }

    /// How long a process may take to become ready before it is killed.
    pub(super) fn ready_within(&self) -> Duration {
        match self {
            // After a crash it replays its log first, and killing it would make it begin again.
            Self::Postgres(_) => Duration::from_secs(600),
            Self::Control(_) | Self::Host(_) | Self::Gateway(_) => Duration::from_secs(60),
        }
    }

    /// Whether a process that was running under an earlier keeper still does its work.
    pub(super) async fn is_sound(&self, process: Named) -> bool {
        match self {
            Self::Host(_) | Self::Gateway(_) => true,
            Self::Postgres(_) | Self::Control(_) => self.is_ready(process, 0).await,
        }
    }

    /// The signal that asks it to end, and how long it may take.
    pub(super) fn farewell(&self) -> (Signal, Duration) {
        match self {
            // The fast shutdown: SIGTERM would wait for every client.
            Self::Postgres(_) => (Signal::INT, Duration::from_secs(30)),
            Self::Control(_) | Self::Host(_) => (Signal::TERM, Duration::from_secs(10)),
            // It finishes requests under way first.
            Self::Gateway(_) => (Signal::TERM, Duration::from_secs(15)),
        }
    }

    /// Ends what its process left behind when it ended.
    ///
    /// # Errors
    /// When something cannot be ended.
    pub(super) async fn sweep(&self) -> Result<(), Problem> {
        match self {
            Self::Postgres(postgres) => postgres.sweep().await,
            Self::Control(_) | Self::Host(_) | Self::Gateway(_) => Ok(()),
        }
    }
}

impl Control {
    fn start(&self) -> Result<Process, Problem> {
        // The file is how its readiness is told, so an old one must not be there.
        match fs::remove_file(self.paths.address()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(broken("remove the control plane's old address", &error));
            }
            Ok(()) | Err(_) => {}
        }
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, self.board.port().filter(is_free).unwrap_or(0)));
        let mut command = command(&self.programs, &self.paths, "control")?;
        command.arg("server").args(["--database-url", &self.database_url]).args(["--listen", &listen.to_string()]);
        command.arg("--state").arg(self.paths.control()).args(["--base", &self.door.base()]);
        Process::start(&mut command).map_err(|error| broken("start the control plane", &error))
    }

    async fn is_ready(&self) -> bool {
        let Some(address) = read_address(&self.paths) else { return false };
        if !answers(address).await {
            return false;
        }
        self.board.change(|record| record.port = Some(address.port()));
        self.address.send_if_modified(|known| known.replace(address) != Some(address));
        true
    }
}

impl Host {
    fn start(&self) -> Result<Process, Problem> {
        let address = read_address(&self.paths).ok_or_else(|| {
            Problem::unavailable("the control plane does not run, so no host can register", "it is being restarted")
        })?;
        let mut command = command(&self.programs, &self.paths, "host")?;
        command.arg("host").arg("--home").arg(self.paths.home());
        command.args(["--server", &format!("http://{address}")]).arg("--token-file").arg(self.paths.host_token());
        Process::start(&mut command).map_err(|error| broken("start the host daemon", &error))
    }
}

/// The `envforge` program with nothing to read, both outputs in the part's log, and no terminal to lose.
///
/// # Errors
/// When the log cannot be opened.
pub(super) fn command(programs: &Programs, paths: &Paths, part: &str) -> Result<Command, Problem> {
    let log = log::open(&paths.log(part)).map_err(|error| broken("open a log", &error))?;
    let second = log.try_clone().map_err(|error| broken("open a log", &error))?;
    let mut command = Command::new(&programs.exe);
    command.env("ENVFORGE_HOME", paths.home()).current_dir("/").process_group(0);
    command.stdin(Stdio::null()).stdout(log).stderr(second);
    Ok(command)
}

/// A problem with something of the operating system.
pub(super) fn broken(what: &str, error: &io::Error) -> Problem {
    let hint = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some disk space, then try again",
        io::ErrorKind::PermissionDenied => "the home must belong to the user who runs the installation",
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound => {
            "something else is there, or nothing can be: choose another ENVFORGE_HOME"
        }
        _ => "`envforge doctor` says what the machine lacks",
    };
    Problem::unavailable(format!("cannot {what}: {error}"), hint)
}

/// Where the control plane says it listens.
pub(super) fn read_address(paths: &Paths) -> Option<SocketAddr> {
    let text = fs::read_to_string(paths.address()).ok()?;
    let text = text.trim();
    text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/').parse().ok()
}

/// Whether a control plane there says it is well.
async fn answers(address: SocketAddr) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
        let mut head = [0_u8; 12];
        stream.read_exact(&mut head).await?;
        Ok::<_, io::Error>(head.ends_with(b" 200") || head.ends_with(b" 204"))
    };
    timeout(Duration::from_secs(3), ask).await.is_ok_and(|answer| answer.unwrap_or(false))
}

fn is_free(port: &u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()
}
