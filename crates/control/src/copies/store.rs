//! SQL of what copies add to command records.

use crate::http::errors::{Failure, unreadable};
use envforge_api::{
    copy::CopyReport,
    ids::{CommandId, WorkspaceId},
};
use sqlx::{PgConnection, Row as _, types::Json};

/// The unfinished fork that makes a workspace, and the workspace that it is of.
pub(crate) async fn fork_into(
    tx: &mut PgConnection,
    workspace: &WorkspaceId,
) -> Result<Option<(CommandId, WorkspaceId)>, Failure> {
    let row = sqlx::query(
        "SELECT id, workspace_id FROM commands
         WHERE kind = 'FORK_WORKSPACE' AND finished_at IS NULL AND body -> 'fork' ->> 'workspace' = $1",
    )
    .bind(workspace.as_str())
    .fetch_optional(tx)
    .await?;
    let word = |row: &sqlx::postgres::PgRow, column: &str| row.try_get::<String, _>(column);
    row.map(|row| {
        let id = word(&row, "id")?.parse().map_err(|_| unreadable("command id"))?;
        Ok((id, word(&row, "workspace_id")?.parse().map_err(|_| unreadable("workspace id"))?))
    })
    .transpose()
}

/// Records what a copy cost.
pub(crate) async fn cost(tx: &mut PgConnection, id: &CommandId, cost: &CopyReport) -> Result<(), Failure> {
    sqlx::query("UPDATE commands SET copied = $2 WHERE id = $1").bind(id.as_str()).bind(Json(cost)).execute(tx).await?;
    Ok(())
}
