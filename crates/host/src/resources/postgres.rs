//! PostgreSQL: one small cluster per workspace, copied from a template that the host prepared once.
//!
//! The template holds the role and database `app` and a superuser whose password only the host knows. At its first
//! start a workspace's copy gets passwords of its own, before any service is told the cluster is there.

pub mod backup;

use super::{Context, Driver, Watch, find_program};
use crate::system::{
    accounts::{self, Account},
    disk, files,
    installation::Installation,
    sandbox::DATA,
};
use envforge_api::{
    names::{ServiceName, short_hash},
    project::RuntimeSize,
    resource::ResourceKind,
    secret::Secret,
    states::Trouble,
};
use futures_util::future::LocalBoxFuture;
use nix::{sys::signal::Signal, unistd::Pid};
use rustix::fs::{Mode, OFlags};
use sqlx::{Connection, PgConnection, Row, postgres::PgConnectOptions};
use std::{
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{PermissionsExt, chown},
    },
    path::{Path, PathBuf},
    process::Stdio,
};
use tokio::{io::AsyncWriteExt, process::Command};

/// The driver.
#[derive(Debug)]
pub struct Postgres;

const SUPERUSER: &str = "envforge";

/// Name of a database and of the role that owns it: the workspace's, or one service's own. PostgreSQL cuts names after 63
/// octets.
#[must_use]
pub(super) fn name_of(service: Option<&ServiceName>) -> String {
    let Some(service) = service else { return "app".to_owned() };
    // Names of services have no underscore: no two become the same.
    let name = format!("app_{}", service.as_str().replace('-', "_"));
    match name.len() {
        0..=63 => name,
        _ => format!("{}_{}", &name[..56], short_hash(service.as_str())),
    }
}

/// Directories with server programs, newest version first.
fn versions() -> Vec<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    found.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    found.into_iter().map(|(_, path)| path).collect()
}

fn program(name: &str) -> Result<PathBuf, Trouble> {
    find_program(name, &versions()).ok_or_else(|| {
        Trouble::new("this host has no PostgreSQL server", "apt-get install postgresql, then wake again")
    })
}

fn trouble(doing: &str, error: impl std::fmt::Display, hint: &str) -> Trouble {
    Trouble::new(format!("cannot {doing}: {error}"), hint)
}

/// The template of this host's PostgreSQL version below `templates`, and the file with its superuser's password.
fn template_paths(templates: &Path, version: &str) -> (PathBuf, PathBuf) {
    let name = format!("postgresql-{version}");
    (templates.join(&name), templates.join(format!("{name}.password")))
}

/// Major version. Debian's directories tell it; asking a program would cost every wake a process.
async fn server_version() -> Result<String, Trouble> {
    let named =
        program("postgres")?.parent().and_then(Path::parent).and_then(Path::file_name).map(|n| n.to_os_string());
    if let Some(version) = named.and_then(|n| n.into_string().ok()).filter(|n| n.bytes().all(|b| b.is_ascii_digit())) {
        return Ok(version);
    }
    let out = Command::new(program("postgres")?).arg("--version").output().await;
    let out = out.map_err(|e| trouble("ask PostgreSQL for its version", e, "reinstall the package postgresql"))?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let version = text.split_ascii_whitespace().nth(2).unwrap_or("unknown");
    Ok(version.split('.').next().unwrap_or(version).to_owned())
}

/// Makes the template once per host and server version. Idempotent; cut short, it starts over.
///
/// # Errors
/// When PostgreSQL is missing or its `initdb` fails.
pub async fn ensure_template(installation: &Installation, templates: &Path) -> Result<(), Trouble> {
    let (template, password_file) = template_paths(templates, &server_version().await?);
    if template.is_dir() {
        return Ok(());
    }
    let made = make_template(installation, templates, &template, &password_file).await;
    if made.is_err() {
        // The half of it takes no space from what runs.
        let _ = fs::remove_dir_all(templates.join("making"));
        let _ = fs::remove_file(templates.join("making.password"));
    }
    made
}

async fn make_template(
    installation: &Installation,
    templates: &Path,
    template: &Path,
    password_file: &Path,
) -> Result<(), Trouble> {
    let system = |e: crate::system::SystemError| Trouble::new(e.to_string(), e.hint);
    files::ensure_dir(templates, 0o711).map_err(system)?;
    let account = accounts::ensure_database_account(installation).map_err(system)?;
    let half = templates.join("making");
    let _ = fs::remove_dir_all(&half);
    files::ensure_dir_for(&half, 0o700, &account).map_err(system)?;
    let password = Secret::random(20);
    let given = templates.join("making.password");
    files::write_durably(&given, password.expose().as_bytes(), 0o600).map_err(system)?;
    let _ = chown(&given, Some(account.uid), Some(account.gid));
    let cluster = half.join("cluster");
    let args = [
        "--pgdata".as_ref(),
        cluster.as_os_str(),
        "--pwfile".as_ref(),
        given.as_os_str(),
        "--username".as_ref(),
        SUPERUSER.as_ref(),
        "--auth=scram-sha-256".as_ref(),
        "--encoding=UTF8".as_ref(),
        "--locale=C.UTF-8".as_ref(),
        "--no-instructions".as_ref(),
        "--no-sync".as_ref(),
    ];
    run_as(&account, &half, "initdb", &args, "").await?;
    // In single-user mode no server listens while the password is still everybody's.
    let sql = "CREATE ROLE app LOGIN CREATEDB;\nCREATE DATABASE app OWNER app;\n";
    let single = ["--single".as_ref(), "-j".as_ref(), "-D".as_ref(), cluster.as_os_str(), "postgres".as_ref()];
    for statement in sql.lines() {
        run_as(&account, &half, "postgres", &single, &format!("{statement}\n\n")).await?;
    }
    let _ = fs::remove_file(&given);
    let placed = files::write_durably(password_file, password.expose().as_bytes(), 0o600).map_err(system);
    placed?;
    fs::rename(&cluster, template).map_err(|e| trouble("keep the database template", e, "look at the disk"))?;
    let _ = fs::remove_dir_all(&half);
    Ok(())
}

async fn run_as(
    account: &Account,
    dir: &Path,
    name: &str,
    args: &[&std::ffi::OsStr],
    input: &str,
) -> Result<(), Trouble> {
    let hint = "the message is PostgreSQL's own; is the disk full, or a parent of ENVFORGE_HOME closed to other users?";
    let mut command = Command::new(program(name)?);
    command.args(args).current_dir(dir).env_clear().env("PATH", "/usr/bin:/bin").env("LANG", "C.UTF-8");
    if rustix::process::geteuid().is_root() {
        command.uid(account.uid).gid(account.gid);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|e| trouble(&format!("run {name}"), e, hint))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends early says why on standard error.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let ended = child.wait_with_output().await.map_err(|e| trouble(&format!("run {name}"), e, hint))?;
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    let mut lines = said.lines().rev().filter(|line| !line.trim().is_empty());
    let last = lines.clone().next().unwrap_or("no message");
    let said = lines.find(|line| disk::says_full(line)).unwrap_or(last);
    Err(Trouble::new(format!("{name} failed: {said}"), disk::hint_or(said, dir, hint)))
}

/// Copies a tree of plain files and directories, giving it to `owner`.
fn copy_tree(from: &Path, to: &Path, owner: &Account) -> io::Result<()> {
    let root = rustix::process::geteuid().is_root();
    fs::create_dir(to)?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target, owner)?;
        } else {
            fs::copy(entry.path(), &target)?;
            if root {
                chown(&target, Some(owner.uid), Some(owner.gid))?;
            }
        }
    }
    if root { chown(to, Some(owner.uid), Some(owner.gid)) } else { Ok(()) }
}

fn data_dir(context: &Context) -> PathBuf {
    context.sandbox.dir.join("data").join("postgresql")
}

/// The superuser's password of this workspace's cluster; readable by root alone.
fn password_path(context: &Context) -> PathBuf {
    context.sandbox.dir.join("state").join(PASSWORD)
}

/// The password of the cluster that a copied one was made from, until the copy has its own.
fn password_before_path(context: &Context) -> PathBuf {
    context.sandbox.dir.join("state").join(PASSWORD_BEFORE)
}

/// Its file in the state of a copy.
pub const PASSWORD_BEFORE: &str = "postgresql.password.before";
/// The file of the superuser's password in a workspace's state.
pub const PASSWORD: &str = "postgresql.password";
/// The file that says for what a cluster was prepared.
pub const PREPARED: &str = "postgresql.prepared";

fn password_of(dir: &Path) -> io::Result<String> {
    fs::read_to_string(dir.join("state").join(PASSWORD))
}

/// Written last by what prepares the cluster: for which passwords and extensions.
fn mark_path(context: &Context) -> PathBuf {
    context.sandbox.dir.join("state").join(PREPARED)
}

/// Directory of the cluster's own socket, below the data. Whoever runs in the workspace may listen on ports before the
/// cluster does, and would be told the superuser's password: in here nobody but the cluster's user can.
const SOCKET: &str = "postgresql-socket";

/// The way to the cluster's socket, however long the path of the home is; it holds for as long as this is kept.
struct Door(OwnedFd);

impl Door {
    fn open(context: &Context) -> io::Result<Self> {
        Self::at(&context.sandbox.dir)
    }

    /// That of the workspace at `dir`.
    fn at(dir: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let path = dir.join("data").join(SOCKET);
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    async fn connect(&self, password: &str, database: &str) -> Result<PgConnection, sqlx::Error> {
        let directory = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        PgConnection::connect_with(&options(&directory, password, database)).await
    }
}

fn options(directory: &str, password: &str, database: &str) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .socket(directory)
        .port(ResourceKind::Database.port())
        .username(SUPERUSER)
        .password(password)
        .database(database)
        .ssl_mode(sqlx::postgres::PgSslMode::Disable)
        .application_name("envforge")
        // A statement that fails is not repeated in the log: it may hold a password.
        .options([("log_min_error_statement", "panic")])
}

/// What a cluster keeps in memory of its own. Little: the rest of a runtime's memory is the kernel's cache of its files, and
/// starting takes longer with more.
const fn buffers_mib(size: RuntimeSize) -> u64 {
    match size {
        RuntimeSize::Small => 16,
        RuntimeSize::Medium => 32,
        RuntimeSize::Large => 64,
    }
}

impl Driver for Postgres {
    fn name(&self) -> &'static str {
        "database"
    }

    fn program(&self, _home: &Path) -> Result<PathBuf, Trouble> {
        program("postgres")
    }

    fn ensure<'a>(&'a self, context: &'a Context) -> LocalBoxFuture<'a, Result<(), Trouble>> {
        Box::pin(async {
            super::is_free(ResourceKind::Database.port())?;
            let data = data_dir(context);
            let owner = &context.sandbox.accounts.resource;
            files::ensure_dir_in_theirs(&context.sandbox.dir.join("data").join(SOCKET), 0o700, owner)
                .map_err(|e| Trouble::new(e.to_string(), e.hint))?;
            if data.is_dir() {
                if context.sandbox.numbers_processes_itself() {
                    // It may name another process by now, and PostgreSQL would take that for itself. Nothing of an
                    // earlier server is left when this is called.
                    let _ = fs::remove_file(data.join("postmaster.pid"));
                }
                return Ok(());
            }
            let (template, _) = template_paths(&context.templates, &server_version().await?);
            // Made where nobody else can reach it, and put in its place as a whole.
            let half = context.sandbox.dir.join("state").join("postgresql.making");
            let (owner, failed_half) = (context.sandbox.accounts.resource.clone(), half.clone());
            let copied = tokio::task::spawn_blocking(move || {
                match fs::remove_dir_all(&half) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    Ok(()) | Err(_) => {}
                }
                copy_tree(&template, &half, &owner)?;
                rustix::fs::syncfs(fs::File::open(&half)?)?;
                fs::rename(&half, &data)
            })
            .await;
            let hint = "look at the free space of the file system (`df`), then wake again; nothing was lost";
            match copied {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => {
                    // The half of it takes no space from what runs.
                    let _ = fs::remove_dir_all(failed_half);
                    let hint = disk::hint_or(&error.to_string(), &context.sandbox.dir, hint);
                    Err(trouble("make the database's files", error, &hint))
                }
                Err(_) => Err(trouble("make the database's files", "cut short", hint)),
            }
        })
    }

    fn arguments(&self, context: &Context) -> Vec<String> {
        let data = format!("{DATA}/postgresql");
        let port = ResourceKind::Database.port().to_string();
        let settings = [
            "listen_addresses=localhost".to_owned(),
            format!("port={port}"),
            format!("unix_socket_directories={DATA}/{SOCKET}"),
            "unix_socket_permissions=0700".to_owned(),
            format!("shared_buffers={}MB", buffers_mib(context.size)),
            format!("effective_cache_size={}MB", context.size.memory_bytes() >> 21),
            "max_connections=100".to_owned(),
            "wal_level=replica".to_owned(),
            "max_wal_size=256MB".to_owned(),
            "logging_collector=off".to_owned(),
            "log_line_prefix=".to_owned(),
            "password_encryption=scram-sha-256".to_owned(),
        ];
        let mut all = vec!["-D".to_owned(), data];
        for setting in settings {
            all.push("-c".to_owned());
            all.push(setting);
        }
        all
    }

    fn answers<'a>(&'a self, context: &'a Context) -> LocalBoxFuture<'a, bool> {
        Box::pin(async {
            // The eighth line of postmaster.pid is what `pg_ctl --wait` reads; the first names the process it is about,
            // so that the file of an earlier run is not believed.
            let text = fs::read_to_string(data_dir(context).join("postmaster.pid")).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let alive = lines.first().and_then(|l| l.trim().parse().ok()).is_some_and(|pid| context.sandbox.lives(pid));
            alive && lines.get(7).is_some_and(|line| line.trim() == "ready")
        })
    }

    fn prepare<'a>(&'a self, context: &'a Context) -> LocalBoxFuture<'a, Result<(), Trouble>> {
        Box::pin(async {
            let hint = "`envforge logs WS database` has what PostgreSQL said";
            let doing = "prepare the database";
            // Written last, it says that everything before it was done, and for which passwords and extensions.
            let parts = context.shares.iter().map(|share| {
                let field = |name| share.fields.get(name).map(Secret::expose).unwrap_or_default();
                serde_json::json!({ "name": field("name"), "password": field("password"), "extensions": share.extensions })
            });
            let mark = serde_json::Value::from_iter(parts).to_string();
            let mark_path = mark_path(context);
            if fs::read_to_string(&mark_path).is_ok_and(|known| known == mark) {
                return Ok(());
            }
            let (_, template_password) = template_paths(&context.templates, &server_version().await?);
            let own = match fs::read_to_string(password_path(context)) {
                Ok(own) => own,
                Err(_) => {
                    let own = Secret::random(20).expose().to_owned();
                    files::write_durably(&password_path(context), own.as_bytes(), 0o600)
                        .map_err(|e| Trouble::new(e.to_string(), e.hint))?;
                    own
                }
            };
            let failed = |e: sqlx::Error| trouble(doing, e, hint);
            let door = Door::open(context).map_err(|e| trouble(doing, e, hint))?;
            let mut connection = match door.connect(&own, "postgres").await {
                Ok(connection) => connection,
                Err(_) => {
                    // That of the cluster it was copied from, else that of the template.
                    let first = fs::read_to_string(password_before_path(context));
                    let first = first
                        .or_else(|_| fs::read_to_string(template_password))
                        .map_err(|e| trouble(doing, e, hint))?;
                    door.connect(&first, "postgres").await.map_err(failed)?
                }
            };
            if password_before_path(context).exists() {
                revoke_passwords(&mut connection).await.map_err(failed)?;
            }
            let statement = format!("ALTER ROLE {SUPERUSER} PASSWORD '{own}'");
            run(&mut connection, statement).await.map_err(failed)?;
            let _ = fs::remove_file(password_before_path(context));
            for share in &context.shares {
                let field = |name| share.fields.get(name).map(Secret::expose).unwrap_or_default();
                let name = field("name");
                prepare_part(&mut connection, name, field("password")).await.map_err(failed)?;
                if !share.extensions.is_empty() {
                    let mut connection = door.connect(&own, name).await.map_err(failed)?;
                    add_extensions(&mut connection, &share.extensions).await?;
                    let _ = connection.close().await;
                }
            }
            let _ = connection.close().await;
            files::write_durably(&mark_path, mark.as_bytes(), 0o600).map_err(|e| Trouble::new(e.to_string(), e.hint))
        })
    }

    fn wipe<'a>(&'a self, context: &'a Context, _kind: ResourceKind) -> LocalBoxFuture<'a, Result<(), Trouble>> {
        Box::pin(async {
            let (doing, hint) = ("wipe the database", "`envforge logs WS database` has what PostgreSQL said");
            // What it says is about to be true no more.
            match fs::remove_file(mark_path(context)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(trouble(doing, error, hint)),
                Ok(()) | Err(_) => {}
            }
            let Ok(own) = fs::read_to_string(password_path(context)) else { return Ok(()) };
            let door = Door::open(context).map_err(|e| trouble(doing, e, hint))?;
            let wiped = async {
                let mut connection = door.connect(&own, "postgres").await?;
                drop_everything(&mut connection).await?;
                connection.close().await
            };
            wiped.await.map_err(|e| trouble(doing, e, hint))
        })
    }

    fn stop<'a>(&'a self, _context: &'a Context, pid: Pid) -> LocalBoxFuture<'a, ()> {
        // Fast shutdown: sessions are ended, a checkpoint is written. SIGTERM would wait for every client.
        super::signal(pid, Signal::SIGINT);
        Box::pin(std::future::ready(()))
    }

    fn watch(&self, context: &Context) -> Option<Box<dyn Watch>> {
        Some(Box::new(Sessions { context: context.clone(), connection: None }))
    }
}

/// DDL takes no parameters. What is put in is of our own alphabets: passwords of a-z and 2-7, names of a-z, 0-9 and _.
async fn run(connection: &mut PgConnection, statement: String) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(connection).await.map(drop)
}

/// Drops every database and role that is not the cluster's own. The names are quoted by the server.
async fn drop_everything(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let databases =
        "SELECT quote_ident(datname) FROM pg_database WHERE datname NOT IN ('postgres', 'template0', 'template1')";
    for name in sqlx::query_scalar::<_, String>(databases).fetch_all(&mut *connection).await? {
        // Its owner may have made it one from which others are copied, which cannot be dropped.
        run(connection, format!("ALTER DATABASE {name} IS_TEMPLATE false")).await?;
        run(connection, format!("DROP DATABASE {name} WITH (FORCE)")).await?;
    }
    let roles = "SELECT quote_ident(rolname) FROM pg_roles WHERE rolname <> current_user AND rolname !~ '^pg_'";
    for name in sqlx::query_scalar::<_, String>(roles).fetch_all(&mut *connection).await? {
        run(connection, format!("DROP OWNED BY {name} CASCADE")).await?;
        run(connection, format!("DROP ROLE {name}")).await?;
    }
    Ok(())
}

/// In a copy no role can be entered with the password that it had: those that are used get another one.
async fn revoke_passwords(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let others = sqlx::query_scalar(
        "SELECT quote_ident(rolname) FROM pg_authid WHERE rolpassword IS NOT NULL AND rolname <> $1",
    );
    let others: Vec<String> = others.bind(SUPERUSER).fetch_all(&mut *connection).await?;
    for role in others {
        run(connection, format!("ALTER ROLE {role} PASSWORD NULL")).await?;
    }
    Ok(())
}

/// A database with the role that owns it, made where it is missing.
async fn prepare_part(connection: &mut PgConnection, name: &str, password: &str) -> Result<(), sqlx::Error> {
    let there = |sql: &'static str| sqlx::query(sql).bind(name);
    if there("SELECT FROM pg_roles WHERE rolname = $1").fetch_optional(&mut *connection).await?.is_none() {
        run(connection, format!("CREATE ROLE {name} LOGIN CREATEDB")).await?;
    }
    run(connection, format!("ALTER ROLE {name} LOGIN PASSWORD '{password}'")).await?;
    if there("SELECT FROM pg_database WHERE datname = $1").fetch_optional(&mut *connection).await?.is_none() {
        run(connection, format!("CREATE DATABASE {name} OWNER {name}")).await?;
    }
    // It is no other role's; said each time, since whoever made it may have been killed before.
    run(connection, format!("REVOKE ALL ON DATABASE {name} FROM PUBLIC")).await
}

async fn add_extensions(connection: &mut PgConnection, extensions: &[String]) -> Result<(), Trouble> {
    for extension in extensions {
        let name = extension.replace('"', "");
        run(connection, format!("CREATE EXTENSION IF NOT EXISTS \"{name}\"")).await.map_err(|e| {
            let hint = "remove it from `extensions`, or install its package on the host";
            trouble(&format!("add the extension {name}"), e, hint)
        })?;
    }
    Ok(())
}

/// Asks over one connection that stays open: a new one each time would cost more than all that an idle runtime does.
#[derive(Debug)]
struct Sessions {
    context: Context,
    connection: Option<PgConnection>,
}

impl Watch for Sessions {
    fn work(&mut self) -> LocalBoxFuture<'_, Option<String>> {
        Box::pin(async {
            // Whoever gives up in the middle of an answer, or finds the server gone, gets a new connection next time.
            let mut connection = match self.connection.take() {
                Some(connection) => connection,
                None => {
                    let own = fs::read_to_string(password_path(&self.context)).ok()?;
                    Door::open(&self.context).ok()?.connect(&own, "postgres").await.ok()?
                }
            };
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' \
                       AND pid <> pg_backend_pid() AND state NOT IN ('idle', 'disabled') \
                       AND wait_event IS DISTINCT FROM 'ClientRead'";
            let count: i64 = sqlx::query(sql).fetch_one(&mut connection).await.ok()?.try_get(0).ok()?;
            self.connection = Some(connection);
            match count {
                0 => None,
                1 => Some("a database session at work".into()),
                n => Some(format!("{n} database sessions at work")),
            }
        })
    }
}
