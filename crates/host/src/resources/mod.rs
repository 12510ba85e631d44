//! Data services of a workspace behind one trait.
//!
//! A driver knows one server program: how its data is made, how it is started, when it answers, how it is stopped and
//! what counts as work. Processes are the supervisor's: it starts, adopts, restarts and stops them.

pub mod mail;
pub mod outside;
pub mod postgres;
pub mod redis;
pub mod rest;
pub mod storage;

use crate::{
    supervise::protocol::SeedStep,
    system::{enter, sandbox::Sandbox},
};
use envforge_api::{
    names::ServiceName, project::RuntimeSize, receipt::Holds, resource::ResourceKind, secret::Secret, states::Trouble,
};
use futures_util::future::LocalBoxFuture;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rest::Look;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    time::Instant,
};
use tokio::sync::watch;

/// Whether a server of the workspace may have the port, asked from inside its network before it is started. A server that
/// got only one of the two loopback addresses would be taken for whoever has the other.
///
/// # Errors
/// When a program of the workspace has it.
pub fn is_free(port: u16) -> Result<(), Trouble> {
    let taken = |address: IpAddr| {
        let bound = std::net::TcpListener::bind((address, port));
        bound.is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
    };
    if taken(Ipv4Addr::LOCALHOST.into()) || taken(Ipv6Addr::LOCALHOST.into()) {
        let hint = format!("end it (`ss -ltnp 'sport = :{port}'` in the workspace's shell names it), then wake again");
        return Err(Trouble::new(format!("another program of the workspace listens on port {port}"), hint));
    }
    Ok(())
}

/// What a driver is told about the workspace it serves.
#[derive(Debug, Clone)]
pub struct Context {
    /// Where.
    pub sandbox: Sandbox,
    /// Prepared data of the installation (`<home>/templates`).
    pub templates: PathBuf,
    /// How large the runtime is.
    pub size: RuntimeSize,
    /// What of it the workspace's services share or have for themselves.
    pub shares: Vec<Share>,
}

impl Context {
    /// `ENVFORGE_HOME` of the installation.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.templates.parent().unwrap_or(&self.templates)
    }
}

/// A part of a server: a database or a bucket of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// What it is for.
    pub kind: ResourceKind,
    /// Values of the resource's fields; see [`fields`].
    pub fields: BTreeMap<String, Secret>,
    /// PostgreSQL extensions asked for.
    pub extensions: Vec<String>,
    /// What fills it while it is new.
    pub seeds: Vec<SeedStep>,
    /// How often it was asked to be wiped.
    pub reset: u32,
}

/// One kind of server.
pub trait Driver: std::fmt::Debug {
    /// Name of the server: its control group, its log source and its directory below `data`.
    fn name(&self) -> &'static str;

    /// The program on this host, or how to get it. `home` is the installation's.
    ///
    /// # Errors
    /// When it is not installed.
    fn program(&self, home: &Path) -> Result<PathBuf, Trouble>;

    /// Where the server is kept, if it is the host's: the supervisor then starts and stops nothing, and carries
    /// connections there.
    fn relayed(&self, _context: &Context) -> Option<storage::Place> {
        None
    }

    /// Makes the data directory if it is missing. Cut short anywhere, it starts over.
    fn ensure<'a>(&'a self, context: &'a Context) -> LocalBoxFuture<'a, Result<(), Trouble>>;

    /// Arguments to start it with, as the workspace's resource user; no secret is in them.
    fn arguments(&self, context: &Context) -> Vec<String>;

    /// One attempt: whether it answers. Called tightly at first, then with growing pauses.
    fn answers<'a>(&'a self, context: &'a Context) -> LocalBoxFuture<'a, bool>;

    /// After the first answer: users, passwords, extensions.
    fn prepare<'a>(&'a self, context: &'a Context) -> LocalBoxFuture<'a, Result<(), Trouble>>;

    /// Removes all data of the kind, while the server serves and nothing of the workspace uses it. Cut short anywhere, it is
    /// called again; [`Driver::prepare`] follows.
    fn wipe<'a>(&'a self, context: &'a Context, kind: ResourceKind) -> LocalBoxFuture<'a, Result<(), Trouble>>;

    /// Asks its main process to end in the way that keeps everything acknowledged; the caller waits for the end.
    fn stop<'a>(&'a self, context: &'a Context, pid: Pid) -> LocalBoxFuture<'a, ()>;

    /// What it holds, counted once it is quiet and while it serves. What is not counted in time is said to be not counted;
    /// `None` when the server does not say anything.
    fn count<'a>(&'a self, context: &'a Context, quiet: Quiet<'a>) -> LocalBoxFuture<'a, Option<Holds>>;

    /// What lies on disk of it while no server runs on it. Waits for the disk.
    fn at_rest(&self, context: &Context, until: Instant) -> Look;

    /// What the server needs done while it serves, and cannot do by itself. Does not end by itself; may be dropped at any
    /// moment.
    fn tend(&self, _contexts: watch::Receiver<Context>) -> LocalBoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }

    /// Who can say what its sessions do; `None` for a server whose sessions are no work.
    fn watch(&self, context: &Context) -> Option<Box<dyn Watch>>;
}

/// Resolves when no service uses a server any more, with the moment until which it may be counted at most. What leads to
/// the server may be got ready before.
pub type Quiet<'a> = LocalBoxFuture<'a, Instant>;

/// Asks a server again and again, at next to no cost to the runtime that is judged by what it uses.
pub trait Watch: std::fmt::Debug {
    /// What sessions do that should keep the runtime awake, in words for people. May be dropped and called again.
    fn work(&mut self) -> LocalBoxFuture<'_, Option<String>>;
}

/// The driver of a managed resource.
#[must_use]
pub fn driver(kind: ResourceKind) -> Box<dyn Driver> {
    match kind {
        ResourceKind::Database => Box::new(postgres::Postgres),
        ResourceKind::Cache | ResourceKind::Queue => Box::new(redis::Redis),
        ResourceKind::Storage => Box::new(storage::Storage),
        ResourceKind::Mail => Box::new(mail::Mailpit),
    }
}

/// What names a part of a server.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// The service that has it for itself; absent: the whole workspace.
    pub service: Option<&'a ServiceName>,
    /// The password, where the server has passwords.
    pub password: &'a Secret,
    /// The number, where the server's databases have numbers; see [`SHARED_NUMBERS`].
    pub number: u16,
}

/// Redis numbers its databases. The first two are the workspace's: a cache that is flushed leaves the queue alone.
pub const SHARED_NUMBERS: u16 = 2;

/// The fields of a managed resource.
#[must_use]
pub fn fields(kind: ResourceKind, part: Part<'_>) -> BTreeMap<String, Secret> {
    let port = kind.port();
    let pairs = match kind {
        ResourceKind::Database => {
            let (name, password) = (postgres::name_of(part.service), part.password.expose());
            vec![
                ("url", format!("postgres://{name}:{password}@localhost:{port}/{name}")),
                ("host", "localhost".into()),
                ("port", port.to_string()),
                ("name", name.clone()),
                ("user", name),
                ("password", password.to_owned()),
            ]
        }
        ResourceKind::Cache | ResourceKind::Queue => vec![
            ("url", format!("redis://localhost:{port}/{}", part.number)),
            ("host", "localhost".into()),
            ("port", port.to_string()),
        ],
        ResourceKind::Mail => vec![
            ("smtp_url", format!("smtp://localhost:{port}")),
            ("host", "localhost".into()),
            ("port", port.to_string()),
        ],
        // Those of a bucket are made by its own keys: see `storage::Bucket`.
        ResourceKind::Storage => vec![],
    };
    pairs.into_iter().map(|(name, value)| (name.to_owned(), Secret::new(value))).collect()
}

/// Signals a server; one that has ended needs none.
fn signal(pid: Pid, signal: Signal) {
    let _ = kill(pid, signal);
}

/// A program in one of the extra directories, newest first, on PATH, or beside this binary, where set-up puts what Debian does
/// not have: an ordinary user's `~/.local/bin` is not on PATH before the next login.
fn find_program(name: &str, extra: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let standard = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let beside = enter::own_binary().ok().and_then(|own| own.parent().map(Path::to_owned));
    let dirs = extra.iter().cloned().chain(std::env::split_paths(&path)).chain(beside).chain(standard);
    dirs.map(|dir| dir.join(name)).find(|at| is_program(at))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_beside_this_binary_is_found_without_path_and_what_is_nowhere_is_not() {
        let own = enter::own_binary().expect("this binary");
        let dir = own.parent().expect("its directory");
        let beside = tempfile::Builder::new().prefix("beside").tempfile_in(dir).expect("a file").into_temp_path();
        let name = beside.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
        assert_eq!(find_program(&name, &[]), None, "what nobody may run is no program");
        std::fs::set_permissions(&beside, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
        assert_eq!(find_program(&name, &[]).as_deref(), Some(&*beside));
        assert_eq!(find_program("no-such-program", &[]), None);
    }
}
