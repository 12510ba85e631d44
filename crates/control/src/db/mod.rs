//! The database: connecting, migrating, writing, and how its failures look from outside.
//!
//! Only `store.rs` files hold SQL. Every write goes through [`write`]: sqlx leaks a transaction whose `begin` is
//! cancelled, so the transaction lives in a task of its own that a caller who leaves does not cancel.

mod time;

pub(crate) use time::Time;

use crate::http::errors::Failure;
use envforge_api::{problem::Problem, secret::Secret};
use sqlx::{
    Connection, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use std::{pin::Pin, str::FromStr, time::Duration};

/// The migrations, in the binary.
static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");

/// A future that borrows the connection of a transaction.
pub(crate) type InTransaction<'t, T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send + 't>>;

/// Reads the URL; the same options serve the pool and the listener.
///
/// # Errors
/// `invalid` when the URL is none. The URL itself is not repeated: it may hold a password.
pub(crate) fn options(url: &Secret) -> Result<PgConnectOptions, Problem> {
    PgConnectOptions::from_str(url.expose()).map(|options| options.application_name("envforge-control")).map_err(|_| {
        Problem::invalid(
            "the database URL is not one of PostgreSQL",
            "write it as postgres://USER@HOST/DATABASE or postgres:///DATABASE?host=/DIRECTORY&user=USER",
        )
    })
}

/// Connects, waiting for a server that is still starting (at most 20 seconds), and migrates.
///
/// # Errors
/// `unavailable` when there is no server; `internal` when a migration fails.
pub(crate) async fn connect(options: PgConnectOptions) -> Result<PgPool, Problem> {
    let pool = PgPoolOptions::new()
        .max_connections(16)
        .acquire_timeout(Duration::from_secs(10))
        .after_connect(|connection, _| {
            // Planning a look at one workspace takes ten times as long as the look. Each statement here goes by keys, so
            // that one plan is right for all values: it is made once for a connection and not, as by default, six times.
            let generic = sqlx::query("SET plan_cache_mode = force_generic_plan");
            Box::pin(async move { generic.execute(connection).await.map(drop) })
        })
        .connect_lazy_with(options.clone());
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    let mut pause = Duration::from_millis(20);
    loop {
        match PgConnection::connect_with(&options).await {
            Ok(connection) => {
                drop(connection.close().await);
                break;
            }
            Err(error) if tokio::time::Instant::now() + pause < deadline => {
                tracing::debug!(%error, "the database does not accept connections yet");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(500));
            }
            Err(error) => {
                tracing::error!(%error, "the database does not accept connections");
                return Err(Problem::unavailable(
                    "the database does not accept connections",
                    "start PostgreSQL, or correct --database-url",
                ));
            }
        }
    }
    MIGRATIONS.run(&pool).await.map_err(|error| {
        tracing::error!(%error, "migrating the database failed");
        Problem::internal(format!("migrating the database failed: {error}"))
    })?;
    Ok(pool)
}

/// Runs `work` in a transaction and commits it, in a task of its own. A failure rolls back.
///
/// # Errors
/// What `work` gives, or the database's failure. A conflict between transactions is tried again by the caller's caller.
pub(crate) async fn write<T, F>(pool: &PgPool, work: F) -> Result<T, Failure>
where
    T: Send + 'static,
    F: for<'t> FnOnce(&'t mut PgConnection) -> InTransaction<'t, T> + Send + 'static,
{
    write_as(pool, "BEGIN", work).await
}

/// The same without waiting for the disk. It is there for good once anything that commits later by [`write`] is: the
/// database's log is one. Nothing may be acknowledged before that.
///
/// # Errors
/// As [`write`].
pub(crate) async fn write_with_next<T, F>(pool: &PgPool, work: F) -> Result<T, Failure>
where
    T: Send + 'static,
    F: for<'t> FnOnce(&'t mut PgConnection) -> InTransaction<'t, T> + Send + 'static,
{
    write_as(pool, "BEGIN; SET LOCAL synchronous_commit = off", work).await
}

async fn write_as<T, F>(pool: &PgPool, begin: &'static str, work: F) -> Result<T, Failure>
where
    T: Send + 'static,
    F: for<'t> FnOnce(&'t mut PgConnection) -> InTransaction<'t, T> + Send + 'static,
{
    let pool = pool.clone();
    let task = tokio::spawn(async move {
        let mut transaction = pool.begin_with(begin).await?;
        let done = work(&mut transaction).await;
        match done {
            Ok(value) => {
                transaction.commit().await?;
                Ok(value)
            }
            Err(failure) => {
                transaction.rollback().await?;
                Err(failure)
            }
        }
    });
    match task.await {
        Ok(done) => done,
        Err(error) => Err(Problem::internal(format!("a transaction's task ended early: {error}")).into()),
    }
}

/// Counters are `u64` in the words of the product and `bigint` in the database.
pub(crate) fn big(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The way back of [`big`]; the columns never go below 0.
pub(crate) fn small(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
