//! The reserved dev host `storage--<workspace>--<organization>`: presigned addresses of objects, and nothing else.
//!
//! Nobody visits it: what counts is the signature in the address. The gateway reads what was signed and when that ends;
//! the host, which has the secret, says whether the signature is right and only then hands out a connection. Whatever is
//! not right (signature, date, host, form) gets one and the same answer. Nothing here wakes a workspace, no cookie goes
//! through, and pages of the same workspace alone may read answers across origins.

mod cors;
mod presigned;

use crate::{
    body::{Answer, Asked},
    gateway::Gateway,
    headers, pages,
    pages::Reader,
    upstream,
};
use envforge_api::{
    dev_host::HostLabel, dial::Ask, gateway::StorageRoute, problem::ProblemKind, sigv4::Presigned, time::Timestamp,
    tunnel::NotOpened,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use hyper::{
    body::{Body as _, Incoming},
    client::conn::http1::SendRequest,
};
use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;

/// Requests that are verified at once: anyone may show one.
const VERIFIED_AT_ONCE: usize = 64;
/// A route is asked for again when its permission to dial lasts no longer than so.
const MARGIN_SECONDS: i64 = 120;
/// What does not exist is asked for again after this.
const REFUSED_FOR: Duration = Duration::from_secs(5);
/// Remembered at once.
const KEPT: usize = 10_000;
/// A host daemon that is being replaced is asked again so often, after this.
const AGAIN: (usize, Duration) = (5, Duration::from_millis(400));

#[derive(Debug, Clone)]
enum Remembered {
    Found(Arc<StorageRoute>),
    Missing(Instant),
}

/// What all cores share of it.
#[derive(Debug)]
pub(crate) struct Storage {
    routes: RwLock<HashMap<HostLabel, Remembered>>,
    verified: Semaphore,
}

impl Default for Storage {
    fn default() -> Self {
        Self { routes: RwLock::default(), verified: Semaphore::new(VERIFIED_AT_ONCE) }
    }
}

/// Why nothing is forwarded.
enum Not {
    /// It is not right, or there is no such workspace.
    Allowed,
    /// It is right, and the workspace sleeps.
    Awake,
    /// Nobody can say at the moment, whatever is asked for.
    Known,
}

/// Answers a request that is addressed to such a host.
pub(crate) async fn answer(
    gateway: &Gateway,
    label: &HostLabel,
    host: &str,
    request: Request<Incoming>,
) -> Response<Answer> {
    let origin = {
        let known = gateway.knowledge.now();
        cors::allowed(request.headers(), label, &known.scheme, &known.base)
    };
    let mut response = if request.method() == Method::OPTIONS {
        match origin.is_some() {
            true => cors::preflight(request.headers()).unwrap_or_else(refused),
            false => refused(),
        }
    } else {
        match carried(gateway, label, host, request).await {
            Ok(response) => response,
            Err(Not::Allowed) => refused(),
            Err(Not::Awake) => asleep(),
            Err(Not::Known) => pages::away(Reader::Program),
        }
    };
    cors::add(response.headers_mut(), origin);
    response
}

async fn carried(
    gateway: &Gateway,
    label: &HostLabel,
    host: &str,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Not> {
    if !gateway.knowledge.is_current() {
        return Err(Not::Known);
    }
    let now = Timestamp::now();
    let presigned =
        presigned::read(request.method(), request.uri(), request.headers(), host, now).map_err(|_| Not::Allowed)?;
    let server = connect(gateway, label, presigned).await?;
    exchange(server, host, request).await.ok_or(Not::Awake)
}

/// The connection that the host has for whoever shows the right signature.
async fn connect(gateway: &Gateway, label: &HostLabel, presigned: Presigned) -> Result<SendRequest<Asked>, Not> {
    let Ok(_place) = gateway.storage.verified.acquire().await else { return Err(Not::Known) };
    let (times, pause) = AGAIN;
    for _ in 0..times {
        let route = route(gateway, label).await?;
        let ask = Ask::port(route.workspace.clone(), 0, route.dial.token.clone());
        let ask = Ask { presigned: Some(presigned.clone()), ..ask };
        match upstream::open(&gateway.tunnels, &route.dial, ask).await {
            Ok((sender, _)) => return Ok(sender),
            Err(NotOpened::Asleep | NotOpened::NotListening) => return Err(Not::Awake),
            Err(NotOpened::Refused | NotOpened::Unknown) => return Err(Not::Allowed),
            // Nothing is known of the signature: it is not said that there is such a host at all.
            Err(NotOpened::Away) => {
                gateway.storage.routes.write().unwrap_or_else(PoisonError::into_inner).remove(label);
                tokio::time::sleep(pause).await;
            }
        }
    }
    Err(Not::Allowed)
}

async fn route(gateway: &Gateway, label: &HostLabel) -> Result<Arc<StorageRoute>, Not> {
    let there = |route: &StorageRoute| gateway.knowledge.standing(&route.workspace).is_some();
    let kept = gateway.storage.routes.read().unwrap_or_else(PoisonError::into_inner).get(label).cloned();
    match kept {
        Some(Remembered::Found(route)) if is_lasting(&route) && there(&route) => return Ok(route),
        Some(Remembered::Missing(at)) if at.elapsed() < REFUSED_FOR => return Err(Not::Allowed),
        Some(Remembered::Found(_) | Remembered::Missing(_)) | None => {}
    }
    let found = match gateway.control.storage(label).await {
        Ok(route) => Ok(Arc::new(route)),
        Err(problem) if problem.kind == ProblemKind::NotFound => Err(Not::Allowed),
        Err(problem) => {
            tracing::warn!(kind = %problem.kind, "a storage route could not be asked for");
            return Err(Not::Known);
        }
    };
    let remembered = match &found {
        Ok(route) => Remembered::Found(Arc::clone(route)),
        Err(_) => Remembered::Missing(Instant::now()),
    };
    let mut routes = gateway.storage.routes.write().unwrap_or_else(PoisonError::into_inner);
    if routes.len() >= KEPT {
        routes.clear();
    }
    routes.insert(label.clone(), remembered);
    found
}

fn is_lasting(route: &StorageRoute) -> bool {
    route.dial.expires_at.duration_since(Timestamp::now()).as_secs() > MARGIN_SECONDS
}

/// One request on a connection of its own: each was verified by itself.
async fn exchange(mut server: SendRequest<Asked>, host: &str, request: Request<Incoming>) -> Option<Response<Answer>> {
    let (mut parts, body) = request.into_parts();
    if parts.headers.remove(header::TRANSFER_ENCODING).is_some() {
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    to_server(&mut parts.headers);
    // Signed: it stays as it was, wherever the request had it.
    parts.headers.insert(header::HOST, HeaderValue::from_str(host).ok()?);
    parts.uri = parts.uri.path_and_query()?.clone().into();
    parts.version = Version::HTTP_11;
    let body = if body.is_end_stream() { Asked::Nothing } else { Asked::Through(body) };
    let response = server.send_request(Request::from_parts(parts, body)).await.ok()?;
    let (mut parts, body) = response.into_parts();
    parts.headers.remove(header::TRANSFER_ENCODING);
    parts.version = Version::HTTP_11;
    to_reader(&mut parts.headers);
    Some(Response::from_parts(parts, Answer::Through(body)))
}

fn to_server(headers: &mut HeaderMap) {
    headers::strip_for_server(headers);
    headers.remove(header::COOKIE);
    // Who may read answers is decided here.
    headers.remove(header::ORIGIN);
    headers.remove(header::REFERER);
}

fn to_reader(headers: &mut HeaderMap) {
    headers::strip_hops(headers);
    let inner = |name: &str| name.starts_with("access-control-") || name.starts_with("seaweed-") || name == "vary";
    let inner: Vec<_> = headers.keys().filter(|name| inner(name.as_str())).cloned().collect();
    for name in inner {
        headers.remove(name);
    }
    for name in [header::SET_COOKIE, header::ALT_SVC, header::SERVER] {
        headers.remove(name);
    }
}

/// One and the same answer, whatever is not right.
fn refused() -> Response<Answer> {
    told(StatusCode::FORBIDDEN, "AccessDenied", "This address is not signed, not any more, or not for this.")
}

fn asleep() -> Response<Answer> {
    let mut response =
        told(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", "The workspace of this address is not awake.");
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    response
}

/// In the form that S3's clients read.
fn told(status: StatusCode, code: &str, message: &str) -> Response<Answer> {
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>\n"
    );
    let mut response = Response::new(Answer::own(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
