//! `GET /v1/audit`.

use crate::{
    app::App,
    http::{
        auth::Allowed,
        extract::{Answer, Asked},
    },
};
use axum::{Json, extract::State};
use envforge_api::public::AuditList;
use serde::Deserialize;

/// How many.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub(crate) struct Limit {
    /// At most that many, newest first; 100 if left out, 1000 at most.
    limit: Option<u32>,
}

/// The newest entries of the audit log.
#[utoipa::path(get, path = "/v1/audit", params(Limit), responses((status = 200, body = AuditList)))]
pub(crate) async fn list(State(app): State<App>, allowed: Allowed, Asked(limit): Asked<Limit>) -> Answer<AuditList> {
    let limit = limit.limit.unwrap_or(100).min(1000);
    let entries = super::store::newest(&app.pool, allowed.caller.organization(), limit).await?;
    Ok(Json(AuditList { entries }))
}
