//! Cancelling a run: at once while no host has it, else by asking the host, whose word then ends the record.

use super::store;
use crate::{
    app::App,
    audit, db, hosts,
    http::errors::{Failure, not_found},
    workspaces::{self, store::Row},
};
use envforge_api::{
    command::{CommandKind, CommandView, LeasedAct},
    ids::{CommandId, WorkspaceId},
    problem::{Problem, ProblemKind},
    states::CommandState,
};
use sqlx::PgConnection;

/// Cancels in the caller's transaction, which holds the workspace's lock.
pub(crate) async fn within(tx: &mut PgConnection, row: &Row, run: &CommandId) -> Result<(), Failure> {
    if hosts::store::withdraw(&mut *tx, run).await? {
        store::set(tx, run, CommandState::Cancelled, None, Some("cancelled before it began")).await?;
    } else {
        let act = LeasedAct::CancelRun { workspace: row.id.clone(), run: run.clone() };
        hosts::store::lease(tx, &row.host, &CommandId::generate(), &act).await?;
    }
    Ok(())
}

/// Cancels a record on request.
///
/// # Errors
/// `conflict` for records that are no runs: they end by asking for the opposite.
pub(crate) async fn cancel(
    app: &App,
    workspace: &WorkspaceId,
    id: &CommandId,
    by: String,
) -> Result<CommandView, Failure> {
    let (key, run) = (workspace.clone(), id.clone());
    let host = db::write(&app.pool, move |tx| {
        Box::pin(async move {
            let row = workspaces::store::lock(&mut *tx, &key).await?.ok_or_else(|| not_found("that command"))?;
            let open = store::open(&mut *tx, &key).await?;
            match open.iter().find(|command| command.id == run) {
                None => Ok(None),
                Some(command) if command.kind == CommandKind::RunCommand => {
                    within(&mut *tx, &row, &run).await?;
                    let details = [("workspace", row.slug.to_string())];
                    audit::store::add(tx, &row.organization, &by, "command.cancel", run.as_str(), &details).await?;
                    Ok(Some(row.host))
                }
                Some(command) => Err(Problem::new(
                    ProblemKind::Conflict,
                    format!("a {} is not cancelled: it ends when something else is asked for", command.kind),
                    "`envforge sleep` takes back a wake, `envforge wake` a sleep",
                )
                .into()),
            }
        })
    })
    .await?;
    if let Some(host) = host {
        app.bells.ring_host(&host);
        app.bells.ring_workspace(workspace);
    }
    store::view(&app.pool, id).await
}
