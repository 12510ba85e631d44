//! The superuser's way to a cluster, and what is said there.

use super::{SOCKET, SUPERUSER, trouble};
use crate::system::{
    files::{self, Beneath},
    sandbox::Sandbox,
};
use envforge_api::{resource::ResourceKind, states::Trouble};
use rustix::fs::{Mode, OFlags};
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

/// The way to the cluster's socket, however long the path of the home is; it holds for as long as this is kept.
///
/// The socket is in a directory of the cluster's user. A link that is put in its place must not lead the superuser to
/// another cluster of the machine: what is connected to is the socket that was opened, and clients, who want a directory
/// and give the name themselves, get one of our own with a link to it.
#[derive(Debug)]
pub(super) struct Door {
    directory: OwnedFd,
    _socket: OwnedFd,
    at: PathBuf,
}

fn name_of_socket() -> String {
    format!(".s.PGSQL.{}", ResourceKind::Database.port())
}

impl Door {
    pub(super) fn open(sandbox: &Sandbox) -> io::Result<Self> {
        let theirs = Beneath::open(&sandbox.dir.join("data")).map_err(|e| e.source)?;
        let socket = theirs.socket(&Path::new(SOCKET).join(name_of_socket())).map_err(|e| e.source)?;
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let at = sandbox.run.join(format!("door-{}-{number}", std::process::id()));
        // One of this name is left of a process that was killed.
        clear(&at);
        files::ensure_dir(&at, 0o700).map_err(|e| e.source)?;
        let made = std::os::unix::fs::symlink(files::way_to(&socket), at.join(name_of_socket()));
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = made.and_then(|()| Ok(rustix::fs::open(&at, flags, Mode::empty())?));
        if opened.is_err() {
            clear(&at);
        }
        Ok(Self { directory: opened?, _socket: socket, at })
    }

    pub(super) async fn connect(&self, password: &str, database: &str) -> Result<PgConnection, sqlx::Error> {
        let directory = files::way_to(&self.directory);
        PgConnection::connect_with(&options(&directory.to_string_lossy(), password, database)).await
    }

    /// As a role of the workspace, to read.
    pub(super) async fn connect_as(
        &self,
        role: &str,
        password: &str,
        database: String,
    ) -> Result<PgConnection, sqlx::Error> {
        let directory = files::way_to(&self.directory);
        let options = PgConnectOptions::new_without_pgpass()
            .socket(directory)
            .port(ResourceKind::Database.port())
            .username(role)
            .password(password)
            .database(&database)
            .ssl_mode(sqlx::postgres::PgSslMode::Disable)
            .application_name("envforge")
            .options([("default_transaction_read_only", "on")]);
        PgConnection::connect_with(&options).await
    }
}

fn clear(at: &Path) {
    // What stays is gone with the workspace.
    let _ = fs::remove_file(at.join(name_of_socket()));
    let _ = fs::remove_dir(at);
}

impl Drop for Door {
    fn drop(&mut self) {
        clear(&self.at);
    }
}

pub(super) fn options(directory: &str, password: &str, database: &str) -> PgConnectOptions {
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

/// DDL takes no parameters. What is put in is of our own alphabets: passwords of a-z and 2-7, names of a-z, 0-9 and _.
pub(super) async fn run(connection: &mut PgConnection, statement: String) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(connection).await.map(drop)
}

/// Drops every database and role that is not the cluster's own. The names are quoted by the server.
pub(super) async fn drop_everything(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
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
pub(super) async fn revoke_passwords(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
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
pub(super) async fn prepare_part(connection: &mut PgConnection, name: &str, password: &str) -> Result<(), sqlx::Error> {
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

pub(super) async fn add_extensions(connection: &mut PgConnection, extensions: &[String]) -> Result<(), Trouble> {
    for extension in extensions {
        let name = extension.replace('"', "");
        run(connection, format!("CREATE EXTENSION IF NOT EXISTS \"{name}\"")).await.map_err(|e| {
            let hint = "remove it from `extensions`, or install its package on the host";
            trouble(&format!("add the extension {name}"), e, hint)
        })?;
    }
    Ok(())
}
