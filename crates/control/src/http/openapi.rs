//! The description of the API, and the two routes that need no caller.

use axum::{Extension, Json};
use std::sync::Arc;
use utoipa::{OpenApi as _, openapi::OpenApi};
use utoipa_axum::router::OpenApiRouter;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "EnvForge",
        description = "The control plane's HTTP API. Errors are {\"error\":{\"kind\",\"message\",\"hint\"}}."
    ),
    components(schemas(envforge_api::problem::ErrorBody))
)]
struct Document;

/// The router that routes are added to.
pub(crate) fn base() -> OpenApiRouter<crate::app::App> {
    OpenApiRouter::with_openapi(Document::openapi())
}

/// Whether the control plane answers.
#[utoipa::path(get, path = "/healthz", responses((status = 200, description = "It answers", body = String)))]
pub(crate) async fn healthz() -> &'static str {
    "ok"
}

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, description = "OpenAPI 3.1")))]
pub(crate) async fn document(Extension(document): Extension<Arc<OpenApi>>) -> Json<OpenApi> {
    Json(document.as_ref().clone())
}
