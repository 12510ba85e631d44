//! `GET /v1/workspaces/{slug}/usage`.

use super::store;
use crate::{
    app::App,
    http::{
        auth::Allowed,
        extract::{Answer, At},
    },
    workspaces::http::find,
};
use axum::{Json, extract::State};
use envforge_api::public::UsageReport;

/// The usage sessions of a workspace, newest first.
#[utoipa::path(get, path = "/v1/workspaces/{slug}/usage", params(("slug" = String, Path, description = "Slug or id")),
    responses((status = 200, body = UsageReport)))]
pub(crate) async fn of_workspace(
    State(app): State<App>,
    allowed: Allowed,
    At(slug): At<String>,
) -> Answer<UsageReport> {
    let row = find(&app, &allowed, &slug).await?;
    let sessions = store::sessions(&app.pool, &row.id).await?;
    let total_seconds = sessions.iter().map(|session| session.seconds).sum();
    Ok(Json(UsageReport { workspace: row.slug, sessions, total_seconds }))
}
