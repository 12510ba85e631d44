//! SQL of links and codes.

use crate::{
    db::Time,
    http::errors::{Failure, unreadable},
};
use envforge_api::{
    dev_host::HostLabel,
    gateway::Revoked,
    ids::{LinkId, OrganizationId, WorkspaceId},
    link::{CODE_SECONDS, Family, Holder, Link, Visit},
    public::LinkView,
};
use sqlx::{PgConnection, PgExecutor, Row as _, postgres::PgRow, types::Json};
use std::{
    collections::{BTreeSet, HashMap},
    str::FromStr,
};

fn word<T: FromStr>(row: &PgRow, column: &'static str) -> Result<T, Failure> {
    row.try_get::<String, _>(column)?.parse().map_err(|_| unreadable(column))
}

fn read(row: &PgRow) -> Result<(WorkspaceId, LinkView), Failure> {
    let view = LinkView {
        id: word(row, "id")?,
        service: word(row, "service")?,
        families: row.try_get::<Json<BTreeSet<Family>>, _>("families")?.0,
        issued_by: row.try_get("issued_by")?,
        issued_at: Some(row.try_get::<Time, _>("issued_at")?.0),
        expires_at: row.try_get::<Time, _>("expires_at")?.0,
    };
    Ok((word(row, "workspace_id")?, view))
}

/// Stores a link.
pub(crate) async fn insert(tx: &mut PgConnection, link: &Link, by: &str) -> Result<(), Failure> {
    sqlx::query(
        "INSERT INTO links (id, organization_id, workspace_id, service, label, families, issued_by, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(link.id.as_str())
    .bind(link.organization.as_str())
    .bind(link.workspace.as_str())
    .bind(link.service.as_str())
    .bind(link.host.as_str())
    .bind(Json(&link.families))
    .bind(by)
    .bind(Time(link.expires_at))
    .execute(tx)
    .await?;
    Ok(())
}

/// The valid links of workspaces, newest first.
pub(crate) async fn valid(
    db: impl PgExecutor<'_>,
    workspaces: &[&str],
) -> Result<HashMap<WorkspaceId, Vec<LinkView>>, Failure> {
    let rows = sqlx::query(
        "SELECT id, workspace_id, service, families, issued_by, issued_at, expires_at FROM links
         WHERE workspace_id = ANY ($1) AND expires_at > now() AND revoked_at IS NULL ORDER BY id DESC",
    )
    .bind(workspaces)
    .fetch_all(db)
    .await?;
    let mut all: HashMap<WorkspaceId, Vec<LinkView>> = HashMap::new();
    for row in &rows {
        let (workspace, view) = read(row)?;
        all.entry(workspace).or_default().push(view);
    }
    Ok(all)
}

/// One link, valid or not, and its workspace.
pub(crate) async fn find(db: impl PgExecutor<'_>, id: &LinkId) -> Result<Option<(WorkspaceId, LinkView)>, Failure> {
    let row = sqlx::query(
        "SELECT id, workspace_id, service, families, issued_by, issued_at, expires_at FROM links WHERE id = $1",
    )
    .bind(id.as_str())
    .fetch_optional(db)
    .await?;
    row.as_ref().map(read).transpose()
}

/// Whether it is neither revoked nor expired.
pub(crate) async fn is_valid(db: impl PgExecutor<'_>, id: &LinkId) -> Result<bool, Failure> {
    Ok(sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM links WHERE id = $1 AND revoked_at IS NULL AND expires_at > now())",
    )
    .bind(id.as_str())
    .fetch_one(db)
    .await?)
}

/// Revokes one; false when it was already.
pub(crate) async fn revoke(tx: &mut PgConnection, id: &LinkId) -> Result<bool, Failure> {
    let done = sqlx::query("UPDATE links SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL")
        .bind(id.as_str())
        .execute(tx)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Revokes all of a workspace.
pub(crate) async fn end_all(tx: &mut PgConnection, workspace: &WorkspaceId) -> Result<(), Failure> {
    let ended = sqlx::query(
        "UPDATE links SET revoked_at = now() WHERE workspace_id = $1 AND revoked_at IS NULL AND expires_at > now()",
    )
    .bind(workspace.as_str())
    .execute(&mut *tx)
    .await?;
    if ended.rows_affected() > 0 { crate::hosts::store::announce_feed(tx).await } else { Ok(()) }
}

/// Those revoked since a point of the feed, and not expired yet.
pub(crate) async fn revoked_since(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    since: u64,
) -> Result<Vec<Revoked>, Failure> {
    let rows = sqlx::query(
        "SELECT id, expires_at FROM links WHERE organization_id = $1 AND revoked_at IS NOT NULL
             AND expires_at > now() AND changed >= $2::text::xid8 ORDER BY id",
    )
    .bind(organization.as_str())
    .bind(since.to_string())
    .fetch_all(db)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Revoked { holder: Holder::Link(word(row, "id")?), until: row.try_get::<Time, _>("expires_at")?.0 })
        })
        .collect()
}

/// Stores a code by its digest, with the visit that it becomes; old ones are forgotten.
pub(crate) async fn insert_code(tx: &mut PgConnection, hash: &[u8], visit: &Visit) -> Result<(), Failure> {
    sqlx::query("DELETE FROM visit_codes WHERE expires_at < now() - interval '1 hour'").execute(&mut *tx).await?;
    sqlx::query(
        "INSERT INTO visit_codes (hash, label, visit, expires_at)
         VALUES ($1, $2, $3, now() + $4 * interval '1 second')",
    )
    .bind(hash)
    .bind(visit.host.as_str())
    .bind(Json(visit))
    .bind(CODE_SECONDS)
    .execute(tx)
    .await?;
    Ok(())
}

/// Uses a code up, on its own dev host and in time; what it becomes.
pub(crate) async fn use_code(
    tx: &mut PgConnection,
    hash: &[u8],
    host: &HostLabel,
    organization: &OrganizationId,
) -> Result<Option<Visit>, Failure> {
    let visit: Option<Json<Visit>> = sqlx::query_scalar(
        "UPDATE visit_codes SET used_at = now()
         WHERE hash = $1 AND label = $2 AND visit ->> 'organization' = $3 AND used_at IS NULL AND expires_at > now()
         RETURNING visit",
    )
    .bind(hash)
    .bind(host.as_str())
    .bind(organization.as_str())
    .fetch_optional(tx)
    .await?;
    Ok(visit.map(|json| json.0))
}
