//! SQL of gateways: their feed's position, and what they carried.

use crate::{
    db::{Time, big, small},
    http::errors::{Failure, unreadable},
};
use envforge_api::{
    gateway::Activity,
    host::Traffic,
    ids::{GatewayId, HostId, OrganizationId, WorkspaceId},
    time::Timestamp,
};
use sqlx::{PgConnection, PgExecutor, PgPool, Row as _, types::Json};

/// Where the feed stands, and whether anything changed since a position.
pub(super) async fn look(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    since: u64,
) -> Result<(u64, bool), Failure> {
    // What lies past the present is from before the database was put back from a dump: it is told with everything.
    let row = sqlx::query(
        "WITH point AS (SELECT pg_snapshot_xmin(pg_current_snapshot()) AS low,
                 pg_snapshot_xmax(pg_current_snapshot()) AS high)
         SELECT low::text::bigint AS seq,
             EXISTS (SELECT FROM workspaces WHERE organization_id = $1 AND changed >= $2::text::xid8 AND changed < high)
             OR EXISTS (SELECT FROM links WHERE organization_id = $1 AND revoked_at IS NOT NULL
                 AND changed >= $2::text::xid8 AND changed < high)
             OR EXISTS (SELECT FROM signing_keys WHERE changed >= $2::text::xid8 AND changed < high) AS news
         FROM point",
    )
    .bind(organization.as_str())
    .bind(since.to_string())
    .fetch_one(db)
    .await?;
    Ok((small(row.try_get("seq")?), row.try_get("news")?))
}

/// Notes that a gateway was heard of, every few seconds at most.
pub(super) async fn heard(pool: &PgPool, gateway: &GatewayId) -> Result<(), Failure> {
    sqlx::query(
        "UPDATE gateways SET last_seen_at = now()
         WHERE id = $1 AND coalesce(last_seen_at < now() - interval '5 seconds', true)",
    )
    .bind(gateway.as_str())
    .execute(pool)
    .await?;
    Ok(())
}

/// Stores one span; false when it is stored already or its workspace is not of that organization.
pub(super) async fn insert_activity(
    tx: &mut PgConnection,
    gateway: &GatewayId,
    organization: &OrganizationId,
    item: &Activity,
) -> Result<bool, Failure> {
    let done = sqlx::query(
        "INSERT INTO link_activity (id, gateway_id, workspace_id, holder, family, from_at, to_at, requests,
             socket_octets, awake_seconds, counts_at)
         SELECT $1, $2, w.id, $5, $6, $7, $8, $9, $10, $11, $12 FROM workspaces w
         WHERE w.id = $3 AND w.organization_id = $4 ON CONFLICT (id) DO NOTHING",
    )
    .bind(item.id.as_str())
    .bind(gateway.as_str())
    .bind(item.workspace.as_str())
    .bind(organization.as_str())
    .bind(item.holder.as_ref().map(Json))
    .bind(item.family.map(|family| family.as_str()))
    .bind(Time(item.from))
    .bind(Time(item.to))
    .bind(big(item.requests))
    .bind(big(item.socket_octets))
    .bind(big(item.awake_seconds))
    .bind(item.counts_at.map(Time))
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Adds seconds in which a gateway saw a runtime awake to the month of the span's end.
pub(super) async fn add_awake(tx: &mut PgConnection, item: &Activity) -> Result<(), Failure> {
    sqlx::query(
        "INSERT INTO gateway_awake (workspace_id, month, seconds)
         VALUES ($1, date_trunc('month', $2 AT TIME ZONE 'UTC')::date, $3)
         ON CONFLICT (workspace_id, month) DO UPDATE SET seconds = gateway_awake.seconds + excluded.seconds",
    )
    .bind(item.workspace.as_str())
    .bind(Time(item.to))
    .bind(big(item.awake_seconds))
    .execute(tx)
    .await?;
    Ok(())
}

/// Notes traffic that counts; the host to tell, when that is news.
pub(super) async fn note_traffic(
    tx: &mut PgConnection,
    workspace: &WorkspaceId,
    at: Timestamp,
) -> Result<Option<HostId>, Failure> {
    let host: Option<String> = sqlx::query_scalar(
        "WITH noted AS (
             INSERT INTO link_traffic (workspace_id, last_at) VALUES ($1, least($2, now()))
             ON CONFLICT (workspace_id) DO UPDATE SET last_at = excluded.last_at
             WHERE link_traffic.last_at < excluded.last_at RETURNING workspace_id)
         SELECT w.host_id FROM workspaces w JOIN noted ON noted.workspace_id = w.id WHERE w.deleted_at IS NULL",
    )
    .bind(workspace.as_str())
    .bind(Time(at))
    .fetch_optional(tx)
    .await?;
    host.map(|id| id.parse().map_err(|_| unreadable("host id"))).transpose()
}

/// The traffic of a host's workspaces in the last two hours, noted as told.
pub(super) async fn traffic(pool: &PgPool, host: &HostId) -> Result<Vec<Traffic>, Failure> {
    let rows = sqlx::query(
        "WITH told AS (UPDATE link_traffic t SET told_at = t.last_at FROM workspaces w
             WHERE w.id = t.workspace_id AND w.host_id = $1 AND t.last_at > t.told_at)
         SELECT t.workspace_id, t.last_at FROM link_traffic t JOIN workspaces w ON w.id = t.workspace_id
         WHERE w.host_id = $1 AND w.deleted_at IS NULL AND t.last_at > now() - interval '2 hours'
         ORDER BY t.workspace_id",
    )
    .bind(host.as_str())
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            let id: String = row.try_get("workspace_id")?;
            let workspace = id.parse().map_err(|_| unreadable("workspace id"))?;
            Ok(Traffic { workspace, last_at: row.try_get::<Time, _>("last_at")?.0 })
        })
        .collect()
}
