//! SQL of readings and usage sessions.

use crate::{
    db::{Time, big, small},
    http::errors::{Failure, unreadable},
};
use envforge_api::{
    ids::{HostId, RuntimeInstanceId, UsageSessionId, WorkspaceId},
    time::Timestamp,
    usage::{Reading, UsageSessionView},
};
use sqlx::{PgConnection, PgPool, Row as _, types::Json};
use std::collections::HashMap;

/// A session without end.
#[derive(Debug, Clone)]
pub(crate) struct OpenSession {
    pub(crate) started_at: Timestamp,
    pub(crate) observed_ms: u64,
}

/// The open sessions of these workspaces.
pub(crate) async fn open_sessions(
    pool: &PgPool,
    workspaces: &[&str],
) -> Result<HashMap<WorkspaceId, OpenSession>, Failure> {
    let rows = sqlx::query(
        "SELECT workspace_id, started_at, observed_ms FROM usage_sessions
         WHERE ended_at IS NULL AND workspace_id = ANY ($1)",
    )
    .bind(workspaces)
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            let id = row.try_get::<String, _>("workspace_id")?.parse().map_err(|_| unreadable("workspace id"))?;
            let session = OpenSession {
                started_at: row.try_get::<Time, _>("started_at")?.0,
                observed_ms: small(row.try_get("observed_ms")?),
            };
            Ok((id, session))
        })
        .collect()
}

/// The sessions of a workspace, newest first.
pub(crate) async fn sessions(pool: &PgPool, workspace: &WorkspaceId) -> Result<Vec<UsageSessionView>, Failure> {
    let rows = sqlx::query(
        "SELECT id, size, trigger, started_at, ended_at, observed_ms, reason FROM usage_sessions
         WHERE workspace_id = $1 ORDER BY started_at DESC, id DESC",
    )
    .bind(workspace.as_str())
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(UsageSessionView {
                id: row.try_get::<String, _>("id")?.parse().map_err(|_| unreadable("usage session id"))?,
                size: row.try_get::<String, _>("size")?.parse().map_err(|_| unreadable("size"))?,
                trigger: row.try_get("trigger")?,
                started_at: row.try_get::<Time, _>("started_at")?.0,
                ended_at: row.try_get::<Option<Time>, _>("ended_at")?.map(|time| time.0),
                seconds: small(row.try_get("observed_ms")?) / 1000,
                reason: row.try_get("reason")?,
            })
        })
        .collect()
}

/// Stores a reading; false when it is there already.
pub(crate) async fn insert_reading(tx: &mut PgConnection, host: &HostId, reading: &Reading) -> Result<bool, Failure> {
    let done = sqlx::query(
        "INSERT INTO readings (instance, boot, n, workspace_id, host_id, reading) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT DO NOTHING",
    )
    .bind(reading.instance.as_str())
    .bind(&reading.boot.0)
    .bind(big(reading.n))
    .bind(reading.workspace.as_str())
    .bind(host.as_str())
    .bind(Json(reading))
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The reading at a position of the same instance and boot.
pub(crate) async fn neighbour(tx: &mut PgConnection, of: &Reading, n: u64) -> Result<Option<Reading>, Failure> {
    let found: Option<Json<Reading>> =
        sqlx::query_scalar("SELECT reading FROM readings WHERE instance = $1 AND boot = $2 AND n = $3")
            .bind(of.instance.as_str())
            .bind(&of.boot.0)
            .bind(big(n))
            .fetch_optional(tx)
            .await?;
    Ok(found.map(|json| json.0))
}

/// A session as it is stored.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) id: UsageSessionId,
    pub(crate) last_at: Timestamp,
    pub(crate) ended_at: Option<Timestamp>,
}

/// The session of an instance.
pub(crate) async fn of_instance(
    tx: &mut PgConnection,
    instance: &RuntimeInstanceId,
) -> Result<Option<Session>, Failure> {
    let row = sqlx::query("SELECT id, last_at, ended_at FROM usage_sessions WHERE instance = $1")
        .bind(instance.as_str())
        .fetch_optional(tx)
        .await?;
    row.map(|row| {
        Ok(Session {
            id: row.try_get::<String, _>("id")?.parse().map_err(|_| unreadable("usage session id"))?,
            last_at: row.try_get::<Time, _>("last_at")?.0,
            ended_at: row.try_get::<Option<Time>, _>("ended_at")?.map(|time| time.0),
        })
    })
    .transpose()
}

/// Ends the open sessions of a workspace's other instances where they were last seen. Instances are ordered by the
/// time they were made, so a late reading of an old one ends nothing.
pub(crate) async fn end_lost(
    tx: &mut PgConnection,
    workspace: &WorkspaceId,
    newer: &RuntimeInstanceId,
) -> Result<(), Failure> {
    sqlx::query(
        "UPDATE usage_sessions SET ended_at = last_at, reason = 'lost'
         WHERE workspace_id = $1 AND instance < $2 COLLATE \"C\" AND ended_at IS NULL",
    )
    .bind(workspace.as_str())
    .bind(newer.as_str())
    .execute(tx)
    .await?;
    Ok(())
}

/// Opens a session at its first reading.
pub(crate) async fn begin(tx: &mut PgConnection, reading: &Reading, at: Timestamp) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO usage_sessions (id, workspace_id, instance, size, trigger, started_at, last_at)
         VALUES ($1, $2, $3, $4, $5, $6, $6)",
    )
    .bind(UsageSessionId::generate().as_str())
    .bind(reading.workspace.as_str())
    .bind(reading.instance.as_str())
    .bind(reading.size.as_str())
    .bind(&reading.trigger)
    .bind(Time(at))
    .execute(tx)
    .await?;
    Ok(())
}

/// Adds what was observed. The bounds widen to the reading's time; `end` closes the session.
pub(crate) async fn extend(
    tx: &mut PgConnection,
    session: &UsageSessionId,
    at: Timestamp,
    observed_ms: u64,
    end: Option<(Timestamp, &str)>,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE usage_sessions SET started_at = least(started_at, $2), last_at = greatest(last_at, $2),
             observed_ms = observed_ms + $3, ended_at = coalesce($4, ended_at), reason = coalesce($5, reason)
         WHERE id = $1",
    )
    .bind(session.as_str())
    .bind(Time(at))
    .bind(big(observed_ms))
    .bind(end.map(|(at, _)| Time(at)))
    .bind(end.map(|(_, reason)| reason))
    .execute(tx)
    .await?;
    Ok(())
}

/// Sets a reading aside that contradicts what is stored.
pub(crate) async fn quarantine(tx: &mut PgConnection, reading: &Reading, reason: &str) -> Result<(), Failure> {
    sqlx::query(
        "INSERT INTO usage_quarantine (instance, boot, n, workspace_id, reading, reason) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT DO NOTHING",
    )
    .bind(reading.instance.as_str())
    .bind(&reading.boot.0)
    .bind(big(reading.n))
    .bind(reading.workspace.as_str())
    .bind(Json(reading))
    .bind(reason)
    .execute(tx)
    .await?;
    Ok(())
}
