//! The endpoints: each asks for its permission first and upgrades second.

use super::{
    channel::{self, Kind},
    env, forward,
    guard::Guard,
    ports, ready,
};
use crate::{
    daemon::hub::{Hub, Workspace},
    resources::mail::inbox,
    system::sandbox,
};
use axum::{
    Json, Router,
    extract::{
        Path, Query, State,
        rejection::QueryRejection,
        ws::{WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    http::{HeaderMap, StatusCode, header::AUTHORIZATION},
    response::{IntoResponse, Response},
    routing::get,
};
use envforge_api::{
    capability::Right,
    forward::Forwarded,
    ids::{CommandId, WorkspaceId},
    mail::{Inbox, Mail},
    names::ServiceName,
    problem::{ErrorBody, Problem, ProblemKind},
    stream::ServiceEnv,
};
use serde::Deserialize;
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// Largest message of a client, in octets.
const MAX_MESSAGE: usize = 1 << 20;

/// Who is at the other end of a socket.
#[derive(Debug, Clone)]
pub(super) enum Caller {
    /// Anyone on this machine: a capability says who, and for what.
    Machine,
    /// A process of this workspace: only its user can open the socket.
    Workspace(WorkspaceId),
}

/// What every endpoint works with.
#[derive(Debug, Clone)]
pub(super) struct Api {
    pub(super) hub: Arc<Hub>,
    pub(super) caller: Caller,
    pub(super) stop: CancellationToken,
}

/// A [`Problem`] as an answer.
#[derive(Debug)]
pub(super) struct Refusal(pub(super) Problem);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(ErrorBody { error: self.0 })).into_response()
    }
}

/// The endpoints of the machine's socket.
pub(super) fn machine(api: Api) -> Router {
    streams().fallback(nothing_here).with_state(api)
}

/// The endpoints of a workspace's socket.
pub(super) fn workspace(api: Api) -> Router {
    streams().fallback(forward::forward).with_state(api)
}

fn streams() -> Router<Api> {
    Router::new()
        .route("/host/v1/health", get(health))
        .route("/host/v1/workspaces/{id}/attach", get(open_attach))
        .route("/host/v1/workspaces/{id}/exec", get(open_exec))
        .route("/host/v1/workspaces/{id}/logs", get(open_logs))
        .route("/host/v1/workspaces/{id}/runs/{command}/output", get(open_output))
        .route("/host/v1/workspaces/{id}/storage", get(open_storage))
        .route("/host/v1/workspaces/{id}/ports/{target}", get(show_port))
        .route("/host/v1/workspaces/{id}/ports/{target}/connect", get(open_port))
        .route("/host/v1/workspaces/{id}/env", get(show_env))
        .route("/host/v1/workspaces/{id}/mail", get(show_inbox))
        .route("/host/v1/workspaces/{id}/mail/{message}", get(show_mail))
}

/// How long a permitted caller waits for the host to hear of a workspace.
const ARRIVAL: Duration = Duration::from_secs(10);

async fn nothing_here() -> Refusal {
    Refusal(Problem::not_found("this address of the host"))
}

async fn health() -> Json<serde_json::Value> {
    Json(serde_json::json!({ "status": "ok", "version": env!("CARGO_PKG_VERSION") }))
}

impl Api {
    /// The workspace and the permission for one of `rights`, the first that the caller has.
    async fn open(&self, headers: &HeaderMap, id: &str, rights: &[Right]) -> Result<(Arc<Workspace>, Guard), Problem> {
        // A name that is none is answered like one that is not known, but after the token was looked at.
        let unknown = || Problem::not_found(format!("workspace {id}"));
        let named = id.parse::<WorkspaceId>().ok();
        let asked = named.clone().unwrap_or_else(WorkspaceId::generate);
        let token = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("Bearer "));
        let mut refused = unknown();
        for right in rights {
            match self.admit(token, &asked, *right) {
                Ok(guard) => {
                    // The capability of a workspace that was made a moment ago may be here before its intent is.
                    let workspace = self.hub.arrival(&asked, ARRIVAL).await.ok_or_else(|| self.absent(&asked))?;
                    return Ok((workspace, guard));
                }
                Err(problem) => refused = problem,
            }
        }
        Err(if named.is_none() && refused.kind == unknown().kind { unknown() } else { refused })
    }

    /// A workspace that is not here, of which someone may know.
    fn absent(&self, id: &WorkspaceId) -> Problem {
        match self.hub.unkept(id) {
            Some(unkept) => Problem::new(ProblemKind::Failed, unkept.trouble.reason, unkept.trouble.hint),
            None => Problem::not_found(format!("workspace {id}")),
        }
    }

    /// Asks for the permission, upgrades and runs a stream.
    async fn stream(self, headers: &HeaderMap, id: &str, right: Right, upgrade: Upgrade, kind: Kind) -> Answer {
        let (workspace, guard) = self.open(headers, id, &[right]).await?;
        let upgrade = upgrade.map_err(|_| Problem::invalid("this is a WebSocket", "open it as one"))?;
        // Each stream is a task of its own; it ends with its client, its permission or `stop`.
        Ok(upgrade
            .max_message_size(MAX_MESSAGE)
            .on_upgrade(async move |socket| channel::session(socket, &self, &workspace, &guard, kind).await))
    }
}

type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;
type Answer = Result<Response, Refusal>;

async fn open_attach(State(api): State<Api>, Path(id): Path<String>, headers: HeaderMap, upgrade: Upgrade) -> Answer {
    api.stream(&headers, &id, Right::Attach, upgrade, Kind::Attach).await
}

async fn open_exec(State(api): State<Api>, Path(id): Path<String>, headers: HeaderMap, upgrade: Upgrade) -> Answer {
    api.stream(&headers, &id, Right::Exec, upgrade, Kind::Exec).await
}

async fn open_logs(State(api): State<Api>, Path(id): Path<String>, headers: HeaderMap, upgrade: Upgrade) -> Answer {
    api.stream(&headers, &id, Right::Logs, upgrade, Kind::Logs).await
}

async fn open_storage(State(api): State<Api>, Path(id): Path<String>, headers: HeaderMap, upgrade: Upgrade) -> Answer {
    api.stream(&headers, &id, Right::Storage, upgrade, Kind::Storage).await
}

async fn open_output(
    State(api): State<Api>,
    Path((id, command)): Path<(String, String)>,
    headers: HeaderMap,
    upgrade: Upgrade,
) -> Answer {
    // A name that is none belongs to no run; an id that was just made does not either.
    let kind = Kind::Output(command.parse().unwrap_or_else(|_| CommandId::generate()));
    api.stream(&headers, &id, Right::Run, upgrade, kind).await
}

/// Whose data service is wanted, where each service has its own.
#[derive(Debug, Deserialize)]
struct Owner {
    #[serde(default)]
    service: Option<String>,
}

/// What a target and its owner mean.
fn wanted(target: &str, owner: Owner) -> Result<ports::Wanted, Problem> {
    let target = Some(target.parse()?);
    let unknown = |name: &String| Problem::not_found(format!("service `{name}`"));
    let service = owner.service.map(|name| name.parse().map_err(|_| unknown(&name))).transpose()?;
    Ok(ports::Wanted { target, service })
}

async fn show_port(
    State(api): State<Api>,
    Path((id, target)): Path<(String, String)>,
    headers: HeaderMap,
    Query(owner): Query<Owner>,
) -> Result<Json<Forwarded>, Refusal> {
    let (workspace, _guard) = api.open(&headers, &id, &[Right::Forward]).await?;
    workspace.settled().await;
    let dir = api.hub.installation.workspace_dir(&workspace.id);
    Ok(Json(ports::find(&workspace, &dir, &wanted(&target, owner)?)?))
}

async fn open_port(
    State(api): State<Api>,
    Path((id, target)): Path<(String, String)>,
    headers: HeaderMap,
    Query(owner): Query<Owner>,
    upgrade: Upgrade,
) -> Answer {
    // Who may not is told that alone, whatever was asked for.
    let named = wanted(&target, owner);
    let kind = Kind::Port(named.unwrap_or(ports::Wanted { target: None, service: None }));
    api.stream(&headers, &id, Right::Forward, upgrade, kind).await
}

/// What of an environment is wanted.
#[derive(Debug, Deserialize)]
struct EnvQuery {
    service: String,
    #[serde(default)]
    reveal: bool,
}

async fn show_env(
    State(api): State<Api>,
    Path(id): Path<String>,
    headers: HeaderMap,
    query: Result<Query<EnvQuery>, QueryRejection>,
) -> Result<Json<ServiceEnv>, Refusal> {
    let query = query.map(|Query(query)| query);
    let reveal = query.as_ref().is_ok_and(|query| query.reveal);
    let rights: &[Right] = if reveal { &[Right::Reveal] } else { &[Right::Env, Right::Reveal] };
    let (workspace, guard) = api.open(&headers, &id, rights).await?;
    let query = query.map_err(|_| Problem::invalid("no service is named", "add `?service=NAME`"))?;
    let unknown = || Problem::not_found(format!("service `{}`", query.service));
    let service: ServiceName = query.service.parse().map_err(|_| unknown())?;
    if reveal && !guard.covers(&service) {
        return Err(unknown().into());
    }
    workspace.intent.borrow().spec.has(&service)?;
    if reveal {
        tracing::info!(workspace = %workspace.id, %service, holder = guard.holder(), "an environment was revealed");
    }
    let dir = api.hub.installation.workspace_dir(&workspace.id);
    Ok(Json(env::read(&dir, service, reveal).await?))
}

impl Api {
    /// The inbox of a workspace for whoever may read it; `None` where no mail was ever taken.
    async fn inbox(&self, headers: &HeaderMap, id: &str) -> Result<Option<inbox::Reading>, Refusal> {
        let (workspace, _guard) = self.open(headers, id, &[Right::Mail]).await?;
        let slug = workspace.intent.borrow().slug.clone();
        // Namespaces that nothing used were let go.
        let made = sandbox::ensure(&self.hub.installation, &workspace.id, workspace.index, &slug).await;
        Ok(inbox::open(&made.map_err(|e| ready::refused(&e))?).await?)
    }
}

async fn show_inbox(
    State(api): State<Api>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Inbox>, Refusal> {
    match api.inbox(&headers, &id).await? {
        Some(reading) => Ok(Json(reading.list().await?)),
        None => Ok(Json(Inbox { total: 0, messages: Vec::new() })),
    }
}

async fn show_mail(
    State(api): State<Api>,
    Path((id, message)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Json<Mail>, Refusal> {
    let mail = match api.inbox(&headers, &id).await? {
        Some(reading) => reading.message(&message).await?,
        None => None,
    };
    Ok(Json(mail.ok_or_else(|| Problem::not_found(format!("message `{message}`")))?))
}
