//! Routes of workspaces.

use super::{
    act, grant as grants,
    lifecycle::Request,
    open as opening, removal,
    store::{self, Row},
    view,
};
use crate::{
    app::App,
    hosts,
    http::{
        auth::Allowed,
        errors::{Failure, not_found},
        extract::{Answer, Asked, At, Body},
    },
    links, usage,
};
use axum::{Json, extract::State};
use envforge_api::{
    ids::WorkspaceId,
    problem::Problem,
    public::{
        Commanded, ControlServices, DeleteRequest, Deleted, Grant, GrantRequest, Held, HoldRequest, OpenWorkspace,
        Opened, WakeRequest, WorkspaceList, WorkspaceView,
    },
    time::Timestamp,
};
use serde::Deserialize;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Longest long poll, in seconds.
pub(crate) const MAX_WAIT: u64 = 30;

/// The workspace that a path names by slug or id, if the caller's action reaches it.
pub(crate) async fn find(app: &App, allowed: &Allowed, name: &str) -> Result<Row, Failure> {
    let row = match name.parse::<WorkspaceId>() {
        Ok(id) => store::by_id(&app.pool, &id).await?,
        Err(_) => store::by_slug(&app.pool, allowed.caller.organization(), name).await?,
    };
    row.filter(|row| allowed.reaches(row))
        .ok_or_else(|| not_found(format!("workspace `{}`", name.chars().take(80).collect::<String>())))
}

async fn views(app: &App, allowed: &Allowed, rows: &[Row]) -> Result<Vec<WorkspaceView>, Failure> {
    let ids: Vec<&str> = rows.iter().map(|row| row.id.as_str()).collect();
    let sessions = usage::store::open_sessions(&app.pool, &ids).await?;
    let presences = hosts::store::presences(&app.pool, allowed.caller.organization()).await?;
    let mut links = links::store::valid(&app.pool, &ids).await?;
    let now = Timestamp::now();
    Ok(rows
        .iter()
        .map(|row| {
            let links = links.remove(&row.id).unwrap_or_default();
            view::assemble(row, sessions.get(&row.id), presences.get(&row.host), links, &app.base, now)
        })
        .collect())
}

/// Resolves or creates a workspace, grants an attach, asks for a wake.
#[utoipa::path(post, path = "/v1/workspaces/open", request_body = OpenWorkspace,
    responses((status = 200, body = Opened), (status = 428, description = "The branch exists nowhere: confirm")))]
pub(crate) async fn open(
    State(app): State<App>,
    allowed: Allowed,
    Body(request): Body<OpenWorkspace>,
) -> Answer<Opened> {
    Ok(Json(opening::open(&app, &allowed, request).await?))
}

/// Every workspace the caller may see.
#[utoipa::path(get, path = "/v1/workspaces", responses((status = 200, body = WorkspaceList)))]
pub(crate) async fn list(State(app): State<App>, allowed: Allowed) -> Answer<WorkspaceList> {
    let mut rows = store::all(&app.pool, allowed.caller.organization()).await?;
    rows.retain(|row| allowed.reaches(row));
    Ok(Json(WorkspaceList { workspaces: views(&app, &allowed, &rows).await? }))
}

/// A long poll.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub(crate) struct Poll {
    /// Answer once the version is another than this.
    after: Option<u64>,
    /// Or after so many seconds, at most 30.
    wait: Option<u64>,
}

/// One workspace, at once or when it changed.
#[utoipa::path(get, path = "/v1/workspaces/{slug}", params(("slug" = String, Path, description = "Slug or id"), Poll),
    responses((status = 200, body = WorkspaceView)))]
pub(crate) async fn show(
    State(app): State<App>,
    allowed: Allowed,
    At(slug): At<String>,
    Asked(poll): Asked<Poll>,
) -> Answer<WorkspaceView> {
    let mut row = find(&app, &allowed, &slug).await?;
    if let Some(after) = poll.after {
        let id = row.id.clone();
        let mut bell = app.bells.workspace(&id);
        let deadline = Instant::now() + Duration::from_secs(poll.wait.unwrap_or(0).min(MAX_WAIT));
        loop {
            bell.mark_unchanged();
            row = find(&app, &allowed, id.as_str()).await?;
            if row.version != after || Instant::now() >= deadline || app.stopping.is_cancelled() {
                break;
            }
            // Another replica may have made the change: look at least every second.
            let look = (Instant::now() + Duration::from_secs(1)).min(deadline);
            tokio::select! {
                _ = timeout_at(look, bell.changed()) => {}
                () = app.stopping.cancelled() => {}
            }
        }
    }
    let view = views(&app, &allowed, std::slice::from_ref(&row)).await?.pop();
    view.map(Json).ok_or_else(|| not_found("that workspace"))
}

/// A capability for the workspace's host.
#[utoipa::path(post, path = "/v1/workspaces/{slug}/grant", params(("slug" = String, Path, description = "Slug or id")),
    request_body = GrantRequest, responses((status = 200, body = Grant)))]
pub(crate) async fn grant(
    State(app): State<App>,
    allowed: Allowed,
    At(slug): At<String>,
    Body(request): Body<GrantRequest>,
) -> Answer<Grant> {
    let row = find(&app, &allowed, &slug).await?;
    Ok(Json(grants::grant(&app, &allowed, &row, &request.rights, request.service).await?))
}

/// Wakes the runtime.
#[utoipa::path(post, path = "/v1/workspaces/{slug}/wake", params(("slug" = String, Path, description = "Slug or id")),
    request_body = WakeRequest, responses((status = 200, body = Commanded)))]
pub(crate) async fn wake(
    State(app): State<App>,
    allowed: Allowed,
    At(slug): At<String>,
    Body(request): Body<WakeRequest>,
) -> Answer<Commanded> {
    let row = find(&app, &allowed, &slug).await?;
    let trigger = request.trigger.unwrap_or_else(|| "wake".into());
    let word =
        !trigger.is_empty() && trigger.len() <= 32 && trigger.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    if !word {
        return Err(Problem::invalid("the trigger is no word", "`wake`, `up`, `link`, `run` or `schedule`").into());
    }
    let command = act::act(&app, &row.id, Request::Wake { trigger }, allowed.name()).await?;
    Ok(Json(Commanded { command }))
}

/// Puts the runtime to sleep.
#[utoipa::path(post, path = "/v1/workspaces/{slug}/sleep", params(("slug" = String, Path, description = "Slug or id")),
    responses((status = 200, body = Commanded)))]
pub(crate) async fn sleep(State(app): State<App>, allowed: Allowed, At(slug): At<String>) -> Answer<Commanded> {
    let row = find(&app, &allowed, &slug).await?;
    let request = Request::Sleep { reason: "asked".into() };
    let command = act::act(&app, &row.id, request, allowed.name()).await?;
    Ok(Json(Commanded { command }))
}

/// Keeps the runtime awake for a while, whatever is idle.
#[utoipa::path(post, path = "/v1/workspaces/{slug}/hold", params(("slug" = String, Path, description = "Slug or id")),
    request_body = HoldRequest, responses((status = 200, body = Held)))]
pub(crate) async fn hold(
    State(app): State<App>,
    allowed: Allowed,
    At(slug): At<String>,
    Body(request): Body<HoldRequest>,
) -> Answer<Held> {
    let row = find(&app, &allowed, &slug).await?;
    let until = act::hold(&app, &row.id, request, allowed.name()).await?;
    Ok(Json(Held { until }))
}

/// Starts, stops or restarts services.
#[utoipa::path(post, path = "/v1/workspaces/{slug}/services",
    params(("slug" = String, Path, description = "Slug or id")), request_body = ControlServices,
    responses((status = 200, body = Commanded)))]
pub(crate) async fn services(
    State(app): State<App>,
    allowed: Allowed,
    At(slug): At<String>,
    Body(request): Body<ControlServices>,
) -> Answer<Commanded> {
    let row = find(&app, &allowed, &slug).await?;
    if request.services.is_empty() {
        return Err(Problem::invalid("no service is named", "name at least one").into());
    }
    request.services.iter().try_for_each(|wanted| row.spec.has(wanted))?;
    let request = Request::Services { verb: request.verb, names: request.services.into_iter().collect() };
    let command = act::act(&app, &row.id, request, allowed.name()).await?;
    Ok(Json(Commanded { command }))
}

/// Deletes the workspace with all its data, or says what would be lost.
#[utoipa::path(delete, path = "/v1/workspaces/{slug}", params(("slug" = String, Path, description = "Slug or id")),
    request_body = DeleteRequest,
    responses((status = 200, body = Deleted), (status = 428, description = "Work would be lost: confirm")))]
pub(crate) async fn delete(
    State(app): State<App>,
    allowed: Allowed,
    At(slug): At<String>,
    Body(request): Body<DeleteRequest>,
) -> Answer<Deleted> {
    let row = find(&app, &allowed, &slug).await?;
    Ok(Json(removal::delete(&app, &row, request, allowed.name()).await?))
}
