//! Routes of the host protocol.

use crate::{
    app::App,
    http::{
        auth::Allowed,
        extract::{Answer, Body},
    },
};
use axum::{Json, extract::State};
use envforge_api::host::{RegisterAnswer, RegisterRequest, SyncAnswer, SyncRequest};

/// First request of a daemon after it started.
#[utoipa::path(post, path = "/v1/host/register", request_body = RegisterRequest,
    responses((status = 200, body = RegisterAnswer)))]
pub(crate) async fn register(
    State(app): State<App>,
    allowed: Allowed,
    Body(request): Body<RegisterRequest>,
) -> Answer<RegisterAnswer> {
    let host = allowed.host()?;
    Ok(Json(super::register::register(&app, &host, request).await?))
}

/// Everything else between host and control plane.
#[utoipa::path(post, path = "/v1/host/sync", request_body = SyncRequest,
    responses((status = 200, body = SyncAnswer), (status = 410, description = "The epoch is stale")))]
pub(crate) async fn sync(
    State(app): State<App>,
    allowed: Allowed,
    Body(request): Body<SyncRequest>,
) -> Answer<SyncAnswer> {
    let host = allowed.host()?;
    Ok(Json(super::sync::sync(&app, &host, request).await?))
}
