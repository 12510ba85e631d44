//! `POST /v1/keys/rotate`.

use crate::{
    app::App,
    http::{auth::Allowed, extract::Answer},
};
use axum::{Json, extract::State};
use envforge_api::public::KeyRotated;

/// Makes a new signing key; what the old ones signed stays valid until it expires.
#[utoipa::path(post, path = "/v1/keys/rotate", responses((status = 200, body = KeyRotated)))]
pub(crate) async fn rotate(State(app): State<App>, allowed: Allowed) -> Answer<KeyRotated> {
    Ok(Json(super::rotate(&app, allowed.caller.organization(), allowed.name()).await?))
}
