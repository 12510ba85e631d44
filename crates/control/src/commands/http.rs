//! Routes of command records.

use super::store;
use crate::{
    app::App,
    http::{
        auth::Allowed,
        errors::{Failure, not_found},
        extract::{Answer, Asked, At, Body},
    },
    workspaces::{
        self,
        http::{MAX_WAIT, find},
    },
};
use axum::{Json, extract::State};
use envforge_api::{
    command::CommandView,
    ids::{CommandId, WorkspaceId},
    problem::Problem,
    public::{CommandList, Commanded, RunRequest},
    states::CommandState,
};
use serde::Deserialize;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Which records.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub(crate) struct Filter {
    /// Only those that concern this service.
    service: Option<String>,
    /// Only those in this state.
    status: Option<String>,
    /// At most that many; 50 if left out, 1000 at most.
    limit: Option<u32>,
}

/// Runs a setup step, a test or a command.
#[utoipa::path(post, path = "/v1/workspaces/{slug}/runs", params(("slug" = String, Path, description = "Slug or id")),
    request_body = RunRequest, responses((status = 200, body = Commanded)))]
pub(crate) async fn run(
    State(app): State<App>,
    allowed: Allowed,
    At(slug): At<String>,
    Body(request): Body<RunRequest>,
) -> Answer<Commanded> {
    let row = find(&app, &allowed, &slug).await?;
    let command = super::run::run(&app, &row.id, request, allowed.name()).await?;
    Ok(Json(Commanded { command }))
}

/// Records of a workspace, newest first.
#[utoipa::path(get, path = "/v1/workspaces/{slug}/commands",
    params(("slug" = String, Path, description = "Slug or id"), Filter), responses((status = 200, body = CommandList)))]
pub(crate) async fn list(
    State(app): State<App>,
    allowed: Allowed,
    At(slug): At<String>,
    Asked(filter): Asked<Filter>,
) -> Answer<CommandList> {
    let row = find(&app, &allowed, &slug).await?;
    let state = filter
        .status
        .as_deref()
        .map(|text| text.parse::<CommandState>())
        .transpose()
        .map_err(|error| Problem::invalid(error.to_string(), "choose one of them"))?;
    let limit = filter.limit.unwrap_or(50).min(1000);
    let commands = store::list(&app.pool, &row.id, filter.service.as_deref(), state, limit).await?;
    Ok(Json(CommandList { commands }))
}

/// How long the end of a record is waited for.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub(crate) struct Patience {
    /// Seconds, at most 30: the answer comes when the record has ended, or after so long with what is there.
    wait: Option<u64>,
}

/// One record.
#[utoipa::path(get, path = "/v1/commands/{id}",
    params(("id" = String, Path, description = "Command id"), Patience), responses((status = 200, body = CommandView)))]
pub(crate) async fn show(
    State(app): State<App>,
    allowed: Allowed,
    At(id): At<String>,
    Asked(patience): Asked<Patience>,
) -> Answer<CommandView> {
    let (id, workspace) = reached(&app, &allowed, &id).await?;
    let mut bell = app.bells.workspace(&workspace);
    let deadline = Instant::now() + Duration::from_secs(patience.wait.unwrap_or(0).min(MAX_WAIT));
    loop {
        bell.mark_unchanged();
        let record = store::view(&app.pool, &id).await?;
        if record.state.is_final() || Instant::now() >= deadline || app.stopping.is_cancelled() {
            return Ok(Json(record));
        }
        // Another replica may have made the change: look at least every second.
        let look = (Instant::now() + Duration::from_secs(1)).min(deadline);
        tokio::select! {
            _ = timeout_at(look, bell.changed()) => {}
            () = app.stopping.cancelled() => {}
        }
    }
}

/// Cancels a run.
#[utoipa::path(post, path = "/v1/commands/{id}/cancel", params(("id" = String, Path, description = "Command id")),
    responses((status = 200, body = Commanded)))]
pub(crate) async fn cancel(State(app): State<App>, allowed: Allowed, At(id): At<String>) -> Answer<Commanded> {
    let (id, workspace) = reached(&app, &allowed, &id).await?;
    let command = super::cancel::cancel(&app, &workspace, &id, allowed.name()).await?;
    Ok(Json(Commanded { command }))
}

async fn reached(app: &App, allowed: &Allowed, id: &str) -> Result<(CommandId, WorkspaceId), Failure> {
    let missing = || not_found("that command");
    let id: CommandId = id.parse().map_err(|_| missing())?;
    let (workspace, _, _) = store::belongs(&app.pool, &id).await?.ok_or_else(missing)?;
    // The record of a deleted workspace is still shown, to those whom the action reaches everywhere.
    match workspaces::store::by_id(&app.pool, &workspace).await? {
        Some(row) if allowed.reaches(&row) => Ok((id, workspace)),
        Some(_) => Err(missing()),
        None => match workspaces::store::organization_of(&app.pool, &workspace).await? {
            Some(organization) if allowed.reaches_everything_of(&organization) => Ok((id, workspace)),
            Some(_) | None => Err(missing()),
        },
    }
}
