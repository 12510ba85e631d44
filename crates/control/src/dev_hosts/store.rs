//! SQL of dev hosts.

use crate::http::errors::{Failure, unreadable};
use envforge_api::{dev_host::HostLabel, ids::WorkspaceId, names::ServiceName};
use sqlx::{PgConnection, PgExecutor, Row as _, postgres::PgRow};
use std::str::FromStr;

/// One dev host of a workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DevHost {
    pub(crate) label: HostLabel,
    pub(crate) service: ServiceName,
    /// A further named port; absent = the main one.
    pub(crate) port: Option<ServiceName>,
}

fn word<T: FromStr>(row: &PgRow, column: &'static str) -> Result<T, Failure> {
    row.try_get::<String, _>(column)?.parse().map_err(|_| unreadable(column))
}

fn read(row: &PgRow) -> Result<DevHost, Failure> {
    let port: String = row.try_get("port")?;
    let port = if port.is_empty() { None } else { Some(port.parse().map_err(|_| unreadable("port"))?) };
    Ok(DevHost { label: word(row, "label")?, service: word(row, "service")?, port })
}

/// Those of a workspace.
pub(crate) async fn of(db: impl PgExecutor<'_>, workspace: &WorkspaceId) -> Result<Vec<DevHost>, Failure> {
    let rows = sqlx::query(
        "SELECT label, service, port FROM dev_hosts WHERE workspace_id = $1 AND service <> '' ORDER BY label",
    )
    .bind(workspace.as_str())
    .fetch_all(db)
    .await?;
    rows.iter().map(read).collect()
}

/// Where a label leads, if anywhere.
pub(crate) async fn find(
    db: impl PgExecutor<'_>,
    label: &HostLabel,
) -> Result<Option<(WorkspaceId, DevHost)>, Failure> {
    let row =
        sqlx::query("SELECT label, workspace_id, service, port FROM dev_hosts WHERE label = $1 AND service <> ''")
            .bind(label.as_str())
            .fetch_optional(db)
            .await?;
    row.map(|row| Ok((word(&row, "workspace_id")?, read(&row)?))).transpose()
}

/// Stores one; the indexes refuse a second of a name or of a label.
pub(crate) async fn insert(tx: &mut PgConnection, workspace: &WorkspaceId, host: &DevHost) -> Result<(), Failure> {
    sqlx::query("INSERT INTO dev_hosts (label, workspace_id, service, port) VALUES ($1, $2, $3, $4)")
        .bind(host.label.as_str())
        .bind(workspace.as_str())
        .bind(host.service.as_str())
        .bind(host.port.as_ref().map_or("", ServiceName::as_str))
        .execute(tx)
        .await?;
    Ok(())
}

/// Whose presigned storage addresses a label has: a row without a service.
pub(crate) async fn find_storage(db: impl PgExecutor<'_>, label: &HostLabel) -> Result<Option<WorkspaceId>, Failure> {
    let row = sqlx::query("SELECT workspace_id FROM dev_hosts WHERE label = $1 AND service = ''")
        .bind(label.as_str())
        .fetch_optional(db)
        .await?;
    row.map(|row| word(&row, "workspace_id")).transpose()
}

/// Stores that label; a workspace has one.
pub(crate) async fn insert_storage(
    tx: &mut PgConnection,
    workspace: &WorkspaceId,
    label: &HostLabel,
) -> Result<(), Failure> {
    sqlx::query(
        "INSERT INTO dev_hosts (label, workspace_id, service, port) VALUES ($1, $2, '', '')
         ON CONFLICT (workspace_id, service, port) DO NOTHING",
    )
    .bind(label.as_str())
    .bind(workspace.as_str())
    .execute(tx)
    .await?;
    Ok(())
}

/// Frees the labels of a workspace that is gone.
pub(crate) async fn remove(tx: &mut PgConnection, workspace: &WorkspaceId) -> Result<(), Failure> {
    sqlx::query("DELETE FROM dev_hosts WHERE workspace_id = $1").bind(workspace.as_str()).execute(tx).await?;
    Ok(())
}

/// Workspaces that have none, or not the one for storage.
pub(crate) async fn without(db: impl PgExecutor<'_>) -> Result<Vec<WorkspaceId>, Failure> {
    let ids: Vec<String> = sqlx::query_scalar(
        "SELECT id FROM workspaces w WHERE deleted_at IS NULL
             AND NOT EXISTS (SELECT FROM dev_hosts d WHERE d.workspace_id = w.id AND d.service = '')",
    )
    .fetch_all(db)
    .await?;
    ids.into_iter().map(|id| id.parse().map_err(|_| unreadable("workspace id"))).collect()
}
