//! The way to a host's streams (terminal, commands, logs) for who is on another machine: `<base>/.envforge/host/v1/…`
//! becomes the host's own `/host/v1/…` at the end of its tunnel.
//!
//! The capability is verified here too, so that nobody without one reaches a host; which workspace it opens and what its
//! holder may do there is the host's question alone. No page in a browser gets through: the base is one site with
//! all dev hosts.

use crate::{
    asking,
    body::{Answer, Asked},
    forward,
    gateway::{Gateway, asks_for_socket},
    pages::{self, Reader},
    serve,
    sockets::{self, Saw},
};
use envforge_api::{
    capability::{self, Capability},
    stream::GATEWAY_PREFIX,
    time::Timestamp,
    tunnel::{Open, Pipe},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use hyper::{body::Incoming, client::conn::http1, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// How long a host may take to answer: it waits for a workspace that is about to arrive there.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a tunnel is waited for.
const ARRIVAL: Duration = Duration::from_secs(2);

/// What of a request's headers is the host's.
const PASSED: [HeaderName; 6] = [
    header::AUTHORIZATION,
    header::ACCEPT,
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_VERSION,
    header::SEC_WEBSOCKET_PROTOCOL,
    header::SEC_WEBSOCKET_EXTENSIONS,
];

/// Whether an address on the base is of a host's streams.
pub(crate) fn is_theirs(path: &str) -> bool {
    path.strip_prefix(GATEWAY_PREFIX).is_some_and(|rest| rest.starts_with("/host/v1/workspaces/"))
}

/// Leads a request to the host that its capability names.
pub(crate) async fn lead(gateway: &Gateway, mut request: Request<Incoming>) -> Response<Answer> {
    if request.method() != Method::GET || asking::is_of_a_page(request.headers()) {
        return pages::unverified();
    }
    if !gateway.knowledge.is_current() {
        return pages::away(Reader::Program);
    }
    let keys = Arc::clone(&gateway.knowledge.now().keys);
    let token = asking::bearer(request.headers());
    let given = token.and_then(|token| capability::verify(&keys, token, Timestamp::now()).ok());
    let Some(Capability { host, .. }) = given else { return pages::no_capability() };
    let socket = request.version() == Version::HTTP_11 && asks_for_socket(request.headers());
    // A tunnel that has just broken is dialled again by its host.
    let _ = timeout(ARRIVAL, gateway.tunnels.arrival(&host)).await;
    let Ok((pipe, _)) = gateway.tunnels.open(&host, &Open::Streams, Duration::ZERO).await else {
        return pages::host_away();
    };
    let Some(to_host) = to_host(&request, socket) else { return pages::unverified() };
    let caller = socket.then(|| hyper::upgrade::on(&mut request));
    let Some(mut response) = exchange(pipe, to_host).await else { return pages::host_away() };
    let opened = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if opened {
        let Some(caller) = caller else { return pages::host_away() };
        // Ends with either side; the host ends it when the permission does.
        tokio::spawn(relay(caller, hyper::upgrade::on(&mut response)));
    }
    let (mut parts, body) = response.into_parts();
    parts.version = Version::HTTP_11;
    if opened {
        return Response::from_parts(parts, Answer::own(""));
    }
    for hop in [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE] {
        parts.headers.remove(hop);
    }
    Response::from_parts(parts, Answer::Through(body))
}

/// The request as the host gets it.
fn to_host(request: &Request<Incoming>, socket: bool) -> Option<Request<Asked>> {
    let path: Uri = request.uri().path_and_query()?.as_str().strip_prefix(GATEWAY_PREFIX)?.parse().ok()?;
    let mut headers = HeaderMap::new();
    for name in PASSED {
        for value in request.headers().get_all(&name) {
            headers.append(name.clone(), value.clone());
        }
    }
    headers.insert(header::HOST, HeaderValue::from_static("envforge"));
    if socket {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
    let mut to_host = Request::new(Asked::Nothing);
    (*to_host.uri_mut(), *to_host.headers_mut()) = (path, headers);
    Some(to_host)
}

async fn exchange(pipe: Pipe, request: Request<Asked>) -> Option<Response<Incoming>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(pipe)).await.ok()?;
    // Ends with the exchange, or hands the connection over.
    tokio::spawn(async move { drop(connection.with_upgrades().await) });
    timeout(PATIENCE, sender.send_request(request)).await.ok()?.ok()
}

async fn relay(caller: OnUpgrade, host: OnUpgrade) {
    let (Ok(near), Ok(far)) = tokio::join!(caller, host) else { return };
    let ((near, near_begun), (far, far_begun)) = (serve::bare(near), forward::bare(far));
    let nobody = || Saw(|_: &[u8]| {});
    // Whoever broke it off has told the other by that.
    drop(sockets::relay(near, far, [near_begun, far_begun], (nobody(), nobody())).await);
}
