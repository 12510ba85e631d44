//! Routes of forks and snapshots.

use super::{
    fork as forks,
    snapshots::{self, Asked},
};
use crate::{
    app::App,
    http::{
        auth::Allowed,
        errors::not_found,
        extract::{Answer, At, Body},
    },
    workspaces::http::find,
};
use axum::{Json, extract::State};
use envforge_api::{
    copy::{ForkRequest, Forked, RestoreRequest, SnapshotAsked, SnapshotList, SnapshotRequest},
    ids::{CommandId, SnapshotId},
};

/// Makes a new workspace as a copy of this one, files and data included.
#[utoipa::path(post, path = "/v1/workspaces/{slug}/forks", params(("slug" = String, Path, description = "Slug or id")),
    request_body = ForkRequest, responses((status = 200, body = Forked)))]
pub(crate) async fn fork(
    State(app): State<App>,
    allowed: Allowed,
    At(slug): At<String>,
    Body(request): Body<ForkRequest>,
) -> Answer<Forked> {
    let row = find(&app, &allowed, &slug).await?;
    Ok(Json(forks::fork(&app, &allowed, &row, request).await?))
}

/// The snapshots of a workspace, newest first.
#[utoipa::path(get, path = "/v1/workspaces/{slug}/snapshots", params(("slug" = String, Path, description = "Slug or id")),
    responses((status = 200, body = SnapshotList)))]
pub(crate) async fn list(State(app): State<App>, allowed: Allowed, At(slug): At<String>) -> Answer<SnapshotList> {
    let row = find(&app, &allowed, &slug).await?;
    Ok(Json(snapshots::list(&row)))
}

/// Keeps the state of a workspace.
#[utoipa::path(post, path = "/v1/workspaces/{slug}/snapshots", params(("slug" = String, Path, description = "Slug or id")),
    request_body = SnapshotRequest, responses((status = 200, body = SnapshotAsked)))]
pub(crate) async fn create(
    State(app): State<App>,
    allowed: Allowed,
    At(slug): At<String>,
    Body(request): Body<SnapshotRequest>,
) -> Answer<SnapshotAsked> {
    let row = find(&app, &allowed, &slug).await?;
    Ok(Json(snapshots::ask(&app, &row.id, request.id, Asked::Create, allowed.name()).await?))
}

fn snapshot(given: &str) -> Result<SnapshotId, crate::http::errors::Failure> {
    given.parse().map_err(|_| not_found(format!("snapshot `{}`", given.chars().take(80).collect::<String>())))
}

/// Makes a workspace what it was. Its runtime is put to sleep and its shell's processes are ended.
#[utoipa::path(post, path = "/v1/workspaces/{slug}/snapshots/{snapshot}/restore",
    params(("slug" = String, Path, description = "Slug or id"), ("snapshot" = String, Path, description = "Snapshot id")),
    request_body = RestoreRequest, responses((status = 200, body = SnapshotAsked)))]
pub(crate) async fn restore(
    State(app): State<App>,
    allowed: Allowed,
    At((slug, id)): At<(String, String)>,
    Body(request): Body<RestoreRequest>,
) -> Answer<SnapshotAsked> {
    let row = find(&app, &allowed, &slug).await?;
    Ok(Json(snapshots::ask(&app, &row.id, request.id, Asked::Restore(snapshot(&id)?), allowed.name()).await?))
}

/// Removes a kept state.
#[utoipa::path(delete, path = "/v1/workspaces/{slug}/snapshots/{snapshot}",
    params(("slug" = String, Path, description = "Slug or id"), ("snapshot" = String, Path, description = "Snapshot id")),
    responses((status = 200, body = SnapshotAsked)))]
pub(crate) async fn remove(
    State(app): State<App>,
    allowed: Allowed,
    At((slug, id)): At<(String, String)>,
) -> Answer<SnapshotAsked> {
    let row = find(&app, &allowed, &slug).await?;
    let asked = Asked::Remove(snapshot(&id)?);
    Ok(Json(snapshots::ask(&app, &row.id, CommandId::generate(), asked, allowed.name()).await?))
}
