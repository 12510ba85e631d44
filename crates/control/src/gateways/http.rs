//! Routes of the gateway protocol.

use super::{activity, feed as feeds, inside as insides, route, wake as wakes};
use crate::{
    app::App,
    http::{
        auth::Allowed,
        extract::{Answer, Asked, Body},
    },
    links::codes,
};
use axum::{Json, extract::State};
use envforge_api::gateway::{
    ActivityReport, Code, CodeRequest, Feed, InsideRequest, Route, RouteRequest, StorageRequest, StorageRoute,
    VisitGranted, VisitRequest, WakeAnswer, WakeRequest,
};
use serde::Deserialize;

/// Where a gateway stands.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub(crate) struct Since {
    /// The `seq` of the answer before; 0 or left out = everything.
    since: Option<u64>,
    /// How long the answer may be held back when nothing changed, in milliseconds; 25,000 at most.
    wait_ms: Option<u32>,
}

/// Keys, revocations and how workspaces stand.
#[utoipa::path(get, path = "/v1/gateway/feed", params(Since), responses((status = 200, body = Feed)))]
pub(crate) async fn feed(State(app): State<App>, allowed: Allowed, Asked(since): Asked<Since>) -> Answer<Feed> {
    route::heard(&app, &allowed.gateway()?).await?;
    let organization = allowed.caller.organization();
    let feed = feeds::feed(&app, organization, since.since.unwrap_or(0), since.wait_ms.unwrap_or(0)).await?;
    Ok(Json(feed))
}

/// A link becomes a code.
#[utoipa::path(post, path = "/v1/gateway/codes", request_body = CodeRequest,
    responses((status = 200, body = Code)))]
pub(crate) async fn codes(State(app): State<App>, allowed: Allowed, Body(request): Body<CodeRequest>) -> Answer<Code> {
    Ok(Json(codes::from_link(&app, allowed.caller.organization(), &request.link).await?))
}

/// A code becomes a visit, once.
#[utoipa::path(post, path = "/v1/gateway/visits", request_body = VisitRequest,
    responses((status = 200, body = VisitGranted)))]
pub(crate) async fn visits(
    State(app): State<App>,
    allowed: Allowed,
    Body(request): Body<VisitRequest>,
) -> Answer<VisitGranted> {
    Ok(Json(codes::redeem(&app, allowed.caller.organization(), &request.code, &request.host).await?))
}

/// A workspace visits its own dev host.
#[utoipa::path(post, path = "/v1/gateway/inside", request_body = InsideRequest,
    responses((status = 200, body = VisitGranted)))]
pub(crate) async fn inside(
    State(app): State<App>,
    allowed: Allowed,
    Body(request): Body<InsideRequest>,
) -> Answer<VisitGranted> {
    Ok(Json(insides::visit(&app, allowed.caller.organization(), &request).await?))
}

/// Where a dev host leads.
#[utoipa::path(post, path = "/v1/gateway/routes", request_body = RouteRequest,
    responses((status = 200, body = Route)))]
pub(crate) async fn routes(
    State(app): State<App>,
    allowed: Allowed,
    Body(request): Body<RouteRequest>,
) -> Answer<Route> {
    Ok(Json(route::route(&app, allowed.caller.organization(), &request).await?))
}

/// Who can verify presigned requests.
#[utoipa::path(post, path = "/v1/gateway/storage", request_body = StorageRequest,
    responses((status = 200, body = StorageRoute)))]
pub(crate) async fn storage(
    State(app): State<App>,
    allowed: Allowed,
    Body(request): Body<StorageRequest>,
) -> Answer<StorageRoute> {
    Ok(Json(route::storage(&app, allowed.caller.organization(), &request).await?))
}

/// A verified request deserves a wake.
#[utoipa::path(post, path = "/v1/gateway/wakes", request_body = WakeRequest,
    responses((status = 200, body = WakeAnswer)))]
pub(crate) async fn wakes(
    State(app): State<App>,
    allowed: Allowed,
    Body(request): Body<WakeRequest>,
) -> Answer<WakeAnswer> {
    Ok(Json(wakes::wake(&app, allowed.caller.organization(), &request).await?))
}

/// What was carried.
#[utoipa::path(post, path = "/v1/gateway/activity", request_body = ActivityReport,
    responses((status = 200, description = "Stored")))]
pub(crate) async fn activity(
    State(app): State<App>,
    allowed: Allowed,
    Body(request): Body<ActivityReport>,
) -> Answer<()> {
    activity::record(&app, &allowed.gateway()?, allowed.caller.organization(), request.items).await?;
    Ok(Json(()))
}
