//! Routes of the host protocol.

use crate::{
    app::App,
    http::{
        auth::Allowed,
        extract::{Answer, Body},
    },
};
use axum::{Json, extract::State};
use envforge_api::{
    host::{RegisterAnswer, RegisterRequest, SyncAnswer, SyncRequest},
    tunnel::PassGranted,
};

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

/// What lets the host's tunnel in at a gateway, for a minute.
#[utoipa::path(post, path = "/v1/host/pass", responses((status = 200, body = PassGranted)))]
pub(crate) async fn pass(State(app): State<App>, allowed: Allowed) -> Answer<PassGranted> {
    Ok(Json(super::pass::grant(&app, allowed.host()?)?))
}
