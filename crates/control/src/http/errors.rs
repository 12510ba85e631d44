//! Every failure on its way out: a [`Problem`] with its status, and the database's errors, logged once, as one.

use axum::{
    Json,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use envforge_api::problem::{ErrorBody, Problem, ProblemKind};

/// What handlers and stores fail with. `?` turns a database error into a problem that shows nothing of it.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) Box<Problem>);

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self(Box::new(problem))
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        let away = matches!(
            error,
            sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed
        );
        let ended = error.as_database_error().and_then(|e| e.code()).is_some_and(|code| {
            // Shutting down, starting up, or a transaction that lost to another one.
            matches!(code.as_ref(), "57P01" | "57P02" | "57P03" | "40001" | "40P01")
        });
        if away || ended {
            tracing::warn!(%error, "the database did not answer");
            return Problem::unavailable("the control plane's database does not answer now", "try again").into();
        }
        if error.as_database_error().and_then(|e| e.code()).is_some_and(|code| code == "53100") {
            tracing::error!(%error, "the disk of the database is full");
            return Problem::unavailable(
                "the disk of the control plane's database is full",
                "free space on it, then try again; nothing was lost",
            )
            .into();
        }
        if error.as_database_error().and_then(|e| e.code()).is_some_and(|code| code == "22021") {
            return Problem::invalid("a text has a character of code 0 in it", "leave it out").into();
        }
        tracing::error!(%error, "a query failed");
        Problem::internal("a query of the control plane failed").into()
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        tracing::error!(%error, "a stored value could not be read or written");
        Problem::internal("a stored value of the control plane could not be read").into()
    }
}

/// A stored word, id or name that does not read as what it was written as.
pub(crate) fn unreadable(what: &str) -> Failure {
    tracing::error!(what, "a stored value is not what it was written as");
    Problem::internal(format!("a stored {what} could not be read")).into()
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(ErrorBody { error: *self.0 })).into_response();
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// No token, or one that is not known.
pub(crate) fn unauthenticated() -> Failure {
    Problem::new(
        ProblemKind::Unauthenticated,
        "the request has no token, or one that is not valid",
        "on the server's machine the command line reads it from the installation; elsewhere set ENVFORGE_TOKEN",
    )
    .into()
}

/// Unknown and forbidden look the same.
pub(crate) fn not_found(what: impl std::fmt::Display) -> Failure {
    Problem::not_found(what).into()
}
