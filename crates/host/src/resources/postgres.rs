//! PostgreSQL: one small cluster per workspace, copied from a template that the host prepared once.
//!
//! The template holds the role and database `app` and a superuser whose password only the host knows. At its first
//! start a workspace's copy gets passwords of its own, before any service is told the cluster is there.

pub mod backup;
mod count;
mod sql;
pub mod template;

use super::{Context, Driver, Quiet, Watch, find_program, rest::Look};
use crate::system::{disk, files, sandbox::DATA, share};
use envforge_api::{
    names::{ServiceName, short_hash},
    project::RuntimeSize,
    receipt::Holds,
    resource::ResourceKind,
    secret::Secret,
    states::Trouble,
};
use futures_util::future::LocalBoxFuture;
use nix::{sys::signal::Signal, unistd::Pid};
use rustix::{
    fs::{AtFlags, Mode, OFlags},
    io::Errno,
};
use sql::Door;
use sqlx::{Connection, PgConnection, Row};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Instant,
};

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

/// What a cluster keeps in memory of its own. Little: the rest of a runtime's memory is the kernel's cache of its files, and
/// starting takes longer with more.
const fn buffers_mib(size: RuntimeSize) -> u64 {
    match size {
        RuntimeSize::Small => 16,
        RuntimeSize::Medium => 32,
        RuntimeSize::Large => 64,
    }
}

/// Removes what a server that was killed has left in the place of a lock. Nothing of an earlier one runs when this is
/// called, and PostgreSQL, which cannot know that, would never start: one that was killed while it wrote such a file left
/// an empty one, and the process that is named may be another one by now.
fn forget_earlier(context: &Context) -> io::Result<()> {
    let lock_of_socket = format!(".s.PGSQL.{}.lock", ResourceKind::Database.port());
    let socket = context.sandbox.dir.join("data").join(SOCKET);
    for (dir, lock) in [(data_dir(context), "postmaster.pid"), (socket, &lock_of_socket)] {
        // Theirs: no link in it is followed.
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::open(dir, flags, Mode::empty())?;
        match rustix::fs::unlinkat(dir, lock, AtFlags::empty()) {
            Err(Errno::NOENT) | Ok(()) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
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
                return forget_earlier(context).map_err(|e| trouble("start the database", e, "look at the disk"));
            }
            let (template, _) = template::paths(&context.templates, &template::server_version().await?);
            // Made where nobody else can reach it, and put in its place as a whole.
            let half = context.sandbox.dir.join("state").join("postgresql.making");
            let (accounts, failed_half) = (context.sandbox.accounts.clone(), half.clone());
            let copied = tokio::task::spawn_blocking(move || {
                match fs::remove_dir_all(&half) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    Ok(()) | Err(_) => {}
                }
                let into = data.parent().unwrap_or(&data);
                share::ensure_movable(&half, into, accounts.user.uid).map_err(|error| error.source)?;
                template::copy_tree(&template, &half, &accounts.resource)?;
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
            let theirs = files::Beneath::open(&context.sandbox.dir.join("data"));
            let read = theirs.and_then(|data| data.read(Path::new("postgresql/postmaster.pid"), 4096));
            let text = String::from_utf8(read.unwrap_or_default()).unwrap_or_default();
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
            let (_, template_password) = template::paths(&context.templates, &template::server_version().await?);
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
            let door = Door::open(&context.sandbox).map_err(|e| trouble(doing, e, hint))?;
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
                sql::revoke_passwords(&mut connection).await.map_err(failed)?;
            }
            let statement = format!("ALTER ROLE {SUPERUSER} PASSWORD '{own}'");
            sql::run(&mut connection, statement).await.map_err(failed)?;
            let _ = fs::remove_file(password_before_path(context));
            for share in &context.shares {
                let field = |name| share.fields.get(name).map(Secret::expose).unwrap_or_default();
                let name = field("name");
                sql::prepare_part(&mut connection, name, field("password")).await.map_err(failed)?;
                if !share.extensions.is_empty() {
                    let mut connection = door.connect(&own, name).await.map_err(failed)?;
                    sql::add_extensions(&mut connection, &share.extensions).await?;
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
            let door = Door::open(&context.sandbox).map_err(|e| trouble(doing, e, hint))?;
            let wiped = async {
                let mut connection = door.connect(&own, "postgres").await?;
                sql::drop_everything(&mut connection).await?;
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

    fn count<'a>(&'a self, context: &'a Context, quiet: Quiet<'a>) -> LocalBoxFuture<'a, Option<Holds>> {
        Box::pin(count::tables(context, quiet))
    }

    fn at_rest(&self, context: &Context, until: Instant) -> Look {
        count::at_rest(context, until)
    }

    fn watch(&self, context: &Context) -> Option<Box<dyn Watch>> {
        Some(Box::new(Sessions { context: context.clone(), connection: None }))
    }
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
                    Door::open(&self.context.sandbox).ok()?.connect(&own, "postgres").await.ok()?
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
