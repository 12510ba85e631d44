//! Routes of secrets. No answer to a person holds a value.

use super::Place;
use crate::{
    app::App,
    http::{
        auth::Allowed,
        errors::Failure,
        extract::{Answer, Asked, At, Body},
    },
};
use axum::{Json, body::Bytes, extract::State};
use envforge_api::{
    names::SecretName,
    problem::Problem,
    secrets::{GivenSecrets, SecretList, SecretView, SetSecret, WantedSecrets},
};
use serde::Deserialize;

/// Which project.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub(crate) struct Scope {
    /// The project's slug; left out: the organization's own secrets (in a list, those of every project).
    project: Option<String>,
}

fn named(given: &str) -> Result<SecretName, Failure> {
    given.parse().map_err(|error| Problem::invalid(format!("{error}"), "see `envforge secrets set --help`").into())
}

/// Names, scopes, and who set them when; never values.
#[utoipa::path(get, path = "/v1/secrets", params(Scope), responses((status = 200, body = SecretList)))]
pub(crate) async fn list(State(app): State<App>, allowed: Allowed, Asked(scope): Asked<Scope>) -> Answer<SecretList> {
    let place = Place::find(&app, &allowed, scope.project.as_deref()).await?;
    let secrets = super::store::list(&app.pool, &place.organization, place.id()).await?;
    Ok(Json(SecretList { secrets }))
}

/// Sets a secret. Services get it at their next start.
#[utoipa::path(put, path = "/v1/secrets/{name}", params(("name" = String, Path, description = "Name"), Scope),
    request_body = SetSecret, responses((status = 200, body = SecretView)))]
pub(crate) async fn set(
    State(app): State<App>,
    allowed: Allowed,
    At(name): At<String>,
    Asked(scope): Asked<Scope>,
    body: Bytes,
) -> Answer<SecretView> {
    let name = named(&name)?;
    // What is wrong with a body is said without repeating any of it.
    let SetSecret { value } = serde_json::from_slice(&body)
        .map_err(|_| Problem::invalid("the body is not what this route takes", "send JSON: {\"value\": \"…\"}"))?;
    let place = Place::find(&app, &allowed, scope.project.as_deref()).await?;
    Ok(Json(super::set(&app, allowed.name(), place, name, value).await?))
}

/// Takes a secret away.
#[utoipa::path(delete, path = "/v1/secrets/{name}", params(("name" = String, Path, description = "Name"), Scope),
    responses((status = 200, body = SecretView)))]
pub(crate) async fn remove(
    State(app): State<App>,
    allowed: Allowed,
    At(name): At<String>,
    Asked(scope): Asked<Scope>,
) -> Answer<SecretView> {
    let name = named(&name)?;
    let place = Place::find(&app, &allowed, scope.project.as_deref()).await?;
    Ok(Json(super::remove(&app, allowed.name(), place, name).await?))
}

/// What a workspace of the asking host declares.
#[utoipa::path(post, path = "/v1/host/secrets", request_body = WantedSecrets,
    responses((status = 200, body = GivenSecrets)))]
pub(crate) async fn give(
    State(app): State<App>,
    allowed: Allowed,
    Body(wanted): Body<WantedSecrets>,
) -> Answer<GivenSecrets> {
    let host = allowed.host()?;
    Ok(Json(super::give(&app, &host, &wanted).await?))
}
