//! Bodies, paths and queries whose refusals are problems like any other.

use super::errors::Failure;
use axum::{
    Json,
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::request::Parts,
};
use envforge_api::problem::Problem;
use serde::de::DeserializeOwned;

/// A JSON body; an empty one reads as `{}`, so that requests without fields need none.
#[derive(Debug)]
pub(crate) struct Body<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let bytes = axum::body::Bytes::from_request(request, state).await.map_err(|rejection| {
            Problem::invalid(format!("the body could not be read: {}", rejection.body_text()), "send a smaller body")
        })?;
        let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(bytes).map(Self).map_err(|error| {
            Problem::invalid(
                format!("the body is not what this route takes: {error}"),
                "GET /v1/openapi.json describes it",
            )
            .into()
        })
    }
}

/// A part of the path.
#[derive(Debug)]
pub(crate) struct At<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for At<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        // Nothing is called so, and the database takes no such text.
        let has_nul = parts.uri.path().contains("%00");
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(value)) if !has_nul => Ok(Self(value)),
            Ok(_) | Err(_) => Err(Problem::not_found("that").into()),
        }
    }
}

/// The query.
#[derive(Debug)]
pub(crate) struct Asked<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Asked<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => {
                Err(Problem::invalid(rejection.body_text(), "GET /v1/openapi.json describes the query").into())
            }
        }
    }
}

/// An answer in JSON, or a problem.
pub(crate) type Answer<T> = Result<Json<T>, Failure>;
