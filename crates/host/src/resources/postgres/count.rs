//! What a cluster holds: its tables with their rows while it serves, and where its log ended when it is at rest.
//!
//! Counting is done as the role that owns the tables, never as the superuser: whoever has a session in the workspace's shell
//! may put a view with a function of theirs in the place of a table at any moment.

use super::{data_dir, sql::Door};
use crate::resources::{
    Context, Quiet,
    rest::{self, Look, Rest},
};
use envforge_api::{
    receipt::{Holds, MOST_TABLES, TableRows},
    secret::Secret,
};
use sqlx::{AssertSqlSafe, PgConnection};
use std::{io::Read, path::Path, time::Instant};

/// Who waits for a lock longer than this leaves the table uncounted.
const LOCKED: &str = "100ms";

/// Databases of the role that asks.
const DATABASES: &str = "SELECT datname::text FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba \
                         WHERE datallowconn AND NOT datistemplate AND rolname = current_user ORDER BY 1";

/// Tables that hold rows, the smallest first: name for people, name for statements, number of all of them.
const TABLES: &str = "SELECT n.nspname || '.' || c.relname, quote_ident(n.nspname) || '.' || quote_ident(c.relname), \
                          count(*) OVER () \
                      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                      WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't' \
                          AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') \
                      ORDER BY c.relpages, 1 LIMIT $1";

/// Counts every table of the workspace once it is quiet. `None` when the cluster does not answer.
pub(super) async fn tables(context: &Context, quiet: Quiet<'_>) -> Option<Holds> {
    let (mut tables, mut more) = (Vec::new(), 0);
    let (mut first, until) = early(context, quiet).await;
    for share in &context.shares {
        let field = |name: &str| share.fields.get(name).map(Secret::expose).unwrap_or_default();
        let door = Door::open(&context.sandbox).ok()?;
        let connect = |database: String| door.connect_as(field("user"), field("password"), database);
        let mut connection = match first.take() {
            Some(connection) => connection,
            None => in_time(until, connect(field("name").to_owned())).await?,
        };
        let databases: Vec<String> = in_time(until, sqlx::query_scalar(DATABASES).fetch_all(&mut connection)).await?;
        for database in databases {
            if database != field("name") {
                connection = in_time(until, connect(database.clone())).await?;
            }
            more += of_database(&mut connection, &database, until, &mut tables).await?;
        }
    }
    Some(Holds::Tables { wal: None, tables, more })
}

/// The first connection, made while services end, since that takes longer than counting a few tables. Where they had all
/// that the cluster gives, it is tried again without them.
async fn early(context: &Context, mut quiet: Quiet<'_>) -> (Option<PgConnection>, Instant) {
    let connecting = async {
        let share = context.shares.first()?;
        let field = |name: &str| share.fields.get(name).map(Secret::expose).unwrap_or_default();
        let door = Door::open(&context.sandbox).ok()?;
        door.connect_as(field("user"), field("password"), field("name").to_owned()).await.ok()
    };
    tokio::pin!(connecting);
    tokio::select! {
        connection = &mut connecting => (connection, quiet.await),
        until = &mut quiet => (tokio::time::timeout_at(until.into(), connecting).await.ok().flatten(), until),
    }
}

/// Adds what a database holds; returns how many tables are not named.
async fn of_database(
    connection: &mut PgConnection,
    database: &str,
    until: Instant,
    into: &mut Vec<TableRows>,
) -> Option<u64> {
    let room = i64::try_from(MOST_TABLES.saturating_sub(into.len())).unwrap_or(0);
    let rows: Vec<(String, String, i64)> =
        in_time(until, sqlx::query_as(TABLES).bind(room.max(1)).fetch_all(&mut *connection)).await?;
    let all = rows.first().map_or(0, |(_, _, all)| *all);
    let named = rows.iter().take(usize::try_from(room).unwrap_or(0));
    let mut known = 0;
    for (name, quoted, _) in named {
        known += 1;
        // The server gives up a little before this does, so that the connection stays of use.
        let left = until.saturating_duration_since(Instant::now()).as_millis();
        let rows = if left > 5 {
            let bound = format!("SET statement_timeout = {}; SET lock_timeout = '{LOCKED}'", left - 4);
            let counted = async {
                sqlx::raw_sql(AssertSqlSafe(bound)).execute(&mut *connection).await?;
                let sql = format!("SELECT pg_catalog.count(*) FROM ONLY {quoted}");
                sqlx::query_scalar::<_, i64>(AssertSqlSafe(sql)).fetch_one(&mut *connection).await
            };
            tokio::time::timeout_at(until.into(), counted).await.ok().and_then(Result::ok)
        } else {
            None
        };
        into.push(TableRows {
            table: format!("{database}.{name}"),
            rows: rows.and_then(|rows| u64::try_from(rows).ok()),
        });
    }
    Some(u64::try_from(all - known).unwrap_or(0))
}

async fn in_time<T>(until: Instant, asked: impl Future<Output = Result<T, sqlx::Error>>) -> Option<T> {
    tokio::time::timeout_at(until.into(), asked).await.ok()?.ok()
}

/// What a look at a cluster's files leaves out: what is about its process, and the databases that every cluster is born with
/// and nobody uses, which are most of its files (PostgreSQL 15 numbers them like this; older ones are looked at whole).
fn is_left_out(path: &Path) -> bool {
    const UNUSED: [&str; 5] = ["postmaster.pid", "postmaster.opts", "base/1", "base/4", "base/5"];
    path.to_str().is_some_and(|name| UNUSED.contains(&name))
}

/// The cluster's files, and what its control file says.
pub(super) fn at_rest(context: &Context, until: Instant) -> Look {
    let data = data_dir(context);
    match rest::look(&data, is_left_out, until) {
        Look::Found(rest) => {
            let control = control(&data);
            let identity = control.map(|control| format!("{:x}", control.system));
            Look::Found(Rest { identity, position: control.and_then(Control::position), ..rest })
        }
        nothing => nothing,
    }
}

/// What its control file says of a cluster. Its beginning is the same in every version since 9.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Control {
    system: u64,
    state: u32,
    checkpoint: u64,
}

impl Control {
    /// The state of a cluster that was shut down.
    const SHUT_DOWN: u32 = 1;

    fn read(bytes: &[u8]) -> Option<Self> {
        let long = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let state = u32::from_ne_bytes(bytes.get(16..20)?.try_into().ok()?);
        Some(Self { system: long(0)?, state, checkpoint: long(32)? })
    }

    /// Where the last word of its log is, if it was closed.
    fn position(self) -> Option<String> {
        let Self { state, checkpoint, .. } = self;
        (state == Self::SHUT_DOWN).then(|| format!("{:X}/{:X}", checkpoint >> 32, checkpoint & 0xffff_ffff))
    }
}

fn control(data: &Path) -> Option<Control> {
    let mut bytes = Vec::new();
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let fd = rustix::fs::open(data.join("global/pg_control"), flags, rustix::fs::Mode::empty()).ok()?;
    std::fs::File::from(fd).take(64).read_to_end(&mut bytes).ok()?;
    Control::read(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_file_tells_whose_cluster_it_is_and_where_its_log_ended() {
        let mut bytes = vec![0_u8; 64];
        bytes[..8].copy_from_slice(&7_u64.to_ne_bytes());
        bytes[16..20].copy_from_slice(&1_u32.to_ne_bytes());
        bytes[32..40].copy_from_slice(&0x1_016B_3748_u64.to_ne_bytes());
        let control = Control::read(&bytes).expect("read");
        assert_eq!((control.system, control.position().as_deref()), (7, Some("1/16B3748")));
        bytes[16..20].copy_from_slice(&6_u32.to_ne_bytes());
        assert_eq!(Control::read(&bytes).expect("read").position(), None, "in production: it was not closed");
        assert_eq!(Control::read(&bytes[..30]), None);
    }
}
