//! One PostgreSQL cluster for each test process, a database for each test.
//!
//! The cluster is stopped and removed by a small watcher that waits for this process's end, so that neither a
//! failed nor a killed test run leaves one behind.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

/// Superuser of the cluster.
const USER: &str = "envforge";

/// A running cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    dir: PathBuf,
    bin: PathBuf,
    databases: AtomicU32,
    // Held: its standard input closes when this process ends, whatever ends it.
    _watcher: Child,
}

fn binaries() -> PathBuf {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    found.sort();
    let on_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).find(|dir| dir.join("initdb").exists())
    };
    found.pop().or_else(on_path).expect("PostgreSQL's initdb, in /usr/lib/postgresql or on PATH")
}

/// PostgreSQL refuses to run as root: as root, its programs run as the user `postgres`.
fn unprivileged(program: &Path) -> Command {
    if root() {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    }
}

fn root() -> bool {
    let status = fs::read_to_string("/proc/self/status").expect("/proc/self/status");
    status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"))
}

fn succeed(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().expect("the program starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Cluster {
    /// The cluster of this process, made on first use.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    fn start() -> Self {
        let bin = binaries();
        // Short: a unix socket's path has at most 107 octets.
        let dir = PathBuf::from(format!("/tmp/efpg-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        if root() {
            succeed(Command::new("chown").arg("postgres").arg(&dir));
        }
        let data = dir.join("data");
        succeed(
            unprivileged(&bin.join("initdb"))
                .args(["--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C", "--username", USER, "--pgdata"])
                .arg(&data)
                .current_dir("/"),
        );
        let stop = format!(
            "trap '' INT TERM HUP; read _; {} {}/pg_ctl --pgdata={} --mode=immediate --wait stop; rm -rf {}",
            if root() { "runuser -u postgres --" } else { "" },
            bin.display(),
            data.display(),
            dir.display(),
        );
        let watcher = Command::new("sh")
            .args(["-c", &stop])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the watcher starts");
        let options = format!("-k {} -c listen_addresses='' -c fsync=off -c max_connections=400", dir.display());
        let status = unprivileged(&bin.join("pg_ctl"))
            .arg("--wait")
            .arg("--log")
            .arg(dir.join("log"))
            .args(["--options", &options, "--pgdata"])
            .arg(&data)
            .arg("start")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("pg_ctl starts");
        assert!(status.success(), "{}", fs::read_to_string(dir.join("log")).unwrap_or_default());
        Self { dir, bin, databases: AtomicU32::new(0), _watcher: watcher }
    }

    /// The URL of a new, empty database.
    pub(crate) fn database(&self) -> String {
        let name = format!("t{}", self.databases.fetch_add(1, Ordering::Relaxed));
        succeed(Command::new(self.bin.join("createdb")).arg("--host").arg(&self.dir).args(["--username", USER, &name]));
        format!("postgres:///{name}?host={}&user={USER}", self.dir.display())
    }
}
