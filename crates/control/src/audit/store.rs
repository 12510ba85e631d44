//! SQL of the audit log.

use crate::db::Time;
use crate::http::errors::{Failure, unreadable};
use envforge_api::{
    ids::{AuditId, OrganizationId},
    public::AuditView,
};
use sqlx::{PgConnection, PgPool, Row as _, types::Json};
use std::collections::BTreeMap;

/// Adds an entry. Details hold no secrets.
pub(crate) async fn add(
    tx: &mut PgConnection,
    organization: &OrganizationId,
    actor: &str,
    action: &str,
    target: &str,
    details: &[(&str, String)],
) -> Result<(), Failure> {
    let details: BTreeMap<&str, &String> = details.iter().map(|(key, value)| (*key, value)).collect();
    sqlx::query(
        "INSERT INTO audit (id, organization_id, actor, action, target, details) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(AuditId::generate().as_str())
    .bind(organization.as_str())
    .bind(actor)
    .bind(action)
    .bind(target)
    .bind(Json(details))
    .execute(tx)
    .await?;
    Ok(())
}

/// The newest entries.
pub(crate) async fn newest(
    pool: &PgPool,
    organization: &OrganizationId,
    limit: u32,
) -> Result<Vec<AuditView>, Failure> {
    let rows = sqlx::query(
        "SELECT id, at, actor, action, target, details FROM audit WHERE organization_id = $1 ORDER BY id DESC LIMIT $2",
    )
    .bind(organization.as_str())
    .bind(i64::from(limit))
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(AuditView {
                id: row.try_get::<String, _>("id")?.parse().map_err(|_| unreadable("audit id"))?,
                at: row.try_get::<Time, _>("at")?.0,
                actor: row.try_get("actor")?,
                action: row.try_get("action")?,
                target: row.try_get("target")?,
                details: row.try_get::<Json<BTreeMap<String, String>>, _>("details")?.0,
            })
        })
        .collect()
}
