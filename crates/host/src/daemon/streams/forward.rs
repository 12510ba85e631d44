//! Forwards the public API from inside a workspace to the control plane, in the name of that workspace.
//!
//! The host vouches for the caller with its own token, so nothing of the caller's headers goes along, and nothing of
//! the host protocol can be reached.

use super::routes::{Api, Caller, Refusal};
use axum::{
    body::Body,
    extract::{Request, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use envforge_api::{client::Client, problem::Problem};
use http_body_util::{BodyExt, Limited};
use std::time::Duration;

/// Largest body of a request, in octets.
const MAX_BODY: usize = 1 << 20;
/// Longer than the longest poll of the public API.
const DEADLINE: Duration = Duration::from_secs(60);

/// Whether a path belongs to what is forwarded. Only plain segments are, so that no other reading of the path can
/// lead elsewhere.
fn is_public(path: &str) -> bool {
    let Some(rest) = path.strip_prefix("/v1/") else { return false };
    let plain = |segment: &str| {
        !segment.is_empty()
            && segment != "."
            && segment != ".."
            && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.~:@,=+%".contains(&b))
    };
    let first = rest.split('/').next().unwrap_or_default();
    !first.starts_with("host") && !first.starts_with("gateway") && !first.contains('%') && rest.split('/').all(plain)
}

pub(super) async fn forward(State(api): State<Api>, request: Request) -> Response {
    match forwarded(&api, request).await {
        Ok(answer) => answer,
        Err(problem) => Refusal(problem).into_response(),
    }
}

async fn forwarded(api: &Api, request: Request) -> Result<Response, Problem> {
    let Caller::Workspace(workspace) = &api.caller else { return Err(Problem::not_found("this address")) };
    let (parts, body) = request.into_parts();
    if !is_public(parts.uri.path()) {
        return Err(Problem::not_found("this address"));
    }
    let target = parts.uri.path_and_query().map_or_else(|| parts.uri.path(), |target| target.as_str());
    let too_large = |_| Problem::invalid("the request's body is larger than 1 MiB", "send less at once");
    let body = Limited::new(body, MAX_BODY).collect().await.map_err(too_large)?.to_bytes();
    let client = Client::new(api.hub.server.clone(), Some(api.hub.token.clone()))
        .with_header("x-envforge-workspace", workspace.to_string())
        .with_deadline(DEADLINE);
    let (status, answer) = client.raw(parts.method, target, body).await?;
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    Ok((status, [(CONTENT_TYPE, "application/json")], Body::from(answer)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_public_api_is_forwarded() {
        for public in ["/v1/workspaces", "/v1/workspaces/signed-links/wake", "/v1/me", "/v1/openapi.json"] {
            assert!(is_public(public), "{public}");
        }
        let others = [
            "/v1/host/sync",
            "/v1/host",
            "/v1/gateway/feed",
            "/v1/%68ost/sync",
            "/v1//host/sync",
            "/v1/./host/sync",
            "/v1/x/../host/sync",
            "//v1/host/sync",
            "/V1/host/sync",
            "/v1/",
            "/v1",
            "/host/v1/health",
            "/",
        ];
        for other in others {
            assert!(!is_public(other), "{other}");
        }
    }
}
