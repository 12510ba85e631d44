//! `GET /v1/whoami`.

use crate::{
    app::App,
    http::{
        auth::{Allowed, Caller},
        errors::not_found,
        extract::Answer,
    },
    workspaces,
};
use axum::{Json, extract::State};
use envforge_api::public::Whoami;

/// Who the caller is.
#[utoipa::path(get, path = "/v1/whoami", responses((status = 200, body = Whoami)))]
pub(crate) async fn whoami(State(app): State<App>, allowed: Allowed) -> Answer<Whoami> {
    let organization = super::store::slug(&app.pool, allowed.caller.organization()).await?;
    match allowed.caller {
        Caller::Person { id, name, role, .. } => {
            Ok(Json(Whoami { principal: id, name, organization, role: Some(role), workspace: None }))
        }
        Caller::Workspace { id, owner, owner_name, .. } => {
            let row = workspaces::store::by_id(&app.pool, &id).await?.ok_or_else(|| not_found("that"))?;
            Ok(Json(Whoami { principal: owner, name: owner_name, organization, role: None, workspace: Some(row.slug) }))
        }
        Caller::Host { .. } | Caller::Gateway { .. } => Err(not_found("that")),
    }
}
