//! Forwarding: only what was verified and woken comes here.

use crate::{
    body::{Answer, Asked},
    headers::{Presented, to_service, to_visitor},
    sessions::VerifiedSession,
    sockets::{self, Frames, Saw},
    upstream::{Pool, Upstream},
    wake::Woken,
};
use envforge_api::{
    gateway::{Route, Target},
    link::Family,
    time::Timestamp,
    tunnel::{NotOpened, Pipe},
};
use http::{Method, Request, Response, StatusCode, Uri, Version, header, request::Parts};
use hyper::{
    body::{Body, Incoming},
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;
use std::{net::IpAddr, sync::Arc};

/// Where a request goes, and on whose account.
#[derive(Debug)]
pub(crate) struct To<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) session: &'a VerifiedSession,
    pub(crate) route: &'a Route,
    pub(crate) target: &'a Target,
    pub(crate) port: u16,
    pub(crate) family: Family,
    pub(crate) client: IpAddr,
    pub(crate) socket: bool,
}

/// Why there is no answer of the service.
#[derive(Debug)]
pub(crate) enum Failed {
    /// The runtime went to sleep: nothing was sent.
    Asleep(Box<Request<Incoming>>),
    /// The host cannot be reached: nothing was sent.
    Away(Box<Request<Incoming>>),
    /// The route's permission is not taken any more: nothing was sent.
    Stale(Box<Request<Incoming>>),
    /// The service does not do its part.
    Service(&'static str),
}

const BROKE_OFF: &str = "The service broke the exchange off";

/// Sends a request to its service and brings the answer back.
pub(crate) async fn forward(
    to: &To<'_>,
    woken: &Woken,
    mut request: Request<Incoming>,
) -> Result<Response<Answer>, Failed> {
    let mut upstream = match to.pool.connect(to.route, woken, to.port).await {
        Ok(upstream) => upstream,
        Err(NotOpened::Asleep) => return Err(Failed::Asleep(Box::new(request))),
        Err(NotOpened::Away) => return Err(Failed::Away(Box::new(request))),
        Err(NotOpened::Refused | NotOpened::Unknown) => return Err(Failed::Stale(Box::new(request))),
        Err(NotOpened::NotListening) => return Err(Failed::Service("The service does not listen on its port")),
    };
    let visitor = to.socket.then(|| hyper::upgrade::on(&mut request));
    to.session.held().count_request(to.family, Timestamp::now());
    let user = &to.session.visit().user;
    let presented =
        Presented { mode: to.target.proxy, origin: &to.route.origin, port: to.port, user, client: to.client };
    let (mut parts, body) = request.into_parts();
    // Framed anew: what the visitor said of its own framing is no part of the message.
    if parts.headers.remove(header::TRANSFER_ENCODING).is_some() {
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    to_service(&mut parts.headers, &presented, to.socket);
    parts.uri = origin_form(&parts.uri);
    parts.version = Version::HTTP_11;
    let spare = if upstream.used { repeatable(&parts) } else { None };
    let body = if body.is_end_stream() { Asked::Nothing } else { Asked::Through(body) };
    let mut response = match exchange(to, &mut upstream, parts, body, spare).await {
        Some(response) => response,
        None => return Err(Failed::Service(BROKE_OFF)),
    };
    let opened = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if opened {
        let Some(visitor) = visitor else { return Err(Failed::Service(BROKE_OFF)) };
        let service = hyper::upgrade::on(&mut response);
        carry(to, visitor, service);
    }
    let (mut parts, body) = response.into_parts();
    parts.headers.remove(header::TRANSFER_ENCODING);
    parts.version = Version::HTTP_11;
    to_visitor(&mut parts.headers, &presented, opened);
    if opened {
        return Ok(Response::from_parts(parts, Answer::own("")));
    }
    // Nothing may be sent on a connection before its last answer was read: it is kept when that is done.
    give_back(to, woken, upstream);
    let endless = body.size_hint().exact().is_none();
    let body = if endless {
        Answer::Endless(body, Box::pin(to.session.held().cut.clone().cancelled_owned()))
    } else {
        Answer::Through(body)
    };
    Ok(Response::from_parts(parts, body))
}

/// A request for the same thing without a body, to be sent again should the connection turn out to be closed.
fn repeatable(parts: &Parts) -> Option<Parts> {
    let safe = matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS);
    let bodiless =
        !parts.headers.contains_key(header::CONTENT_LENGTH) && !parts.headers.contains_key(header::TRANSFER_ENCODING);
    (safe && bodiless).then(|| parts.clone())
}

/// One exchange; on a connection that turns out to be closed, a request that had not been sent, or may be sent again, is
/// sent on a fresh one.
async fn exchange(
    to: &To<'_>,
    upstream: &mut Upstream,
    parts: Parts,
    body: Asked,
    spare: Option<Parts>,
) -> Option<Response<Incoming>> {
    let mut failed = match upstream.sender.try_send_request(Request::from_parts(parts, body)).await {
        Ok(response) => return Some(response),
        Err(failed) => failed,
    };
    let again = failed.take_message().or_else(|| spare.map(|parts| Request::from_parts(parts, Asked::Nothing)))?;
    if !upstream.used {
        return None;
    }
    *upstream = to.pool.replace(to.route, to.port).await.ok()?;
    upstream.sender.send_request(again).await.ok()
}

/// The connection is kept as soon as its answer was read.
fn give_back(to: &To<'_>, woken: &Woken, mut upstream: Upstream) {
    if upstream.sender.is_ready() {
        to.pool.keep(&to.route.workspace, woken, to.port, upstream.sender);
        return;
    }
    let (pool, workspace) = (to.pool.clone(), to.route.workspace.clone());
    let (woken, port) = (woken.clone(), to.port);
    // Ends with the answer, or with the connection.
    tokio::spawn(async move {
        if upstream.sender.ready().await.is_ok() {
            pool.keep(&workspace, &woken, port, upstream.sender);
        }
    });
}

/// Path and query alone.
fn origin_form(uri: &Uri) -> Uri {
    match uri.path_and_query() {
        Some(path) if uri.authority().is_some() || uri.scheme().is_some() => Uri::from(path.clone()),
        Some(_) => uri.clone(),
        None => Uri::from_static("/"),
    }
}

/// Carries an open socket until either side, the visit or its account ends.
fn carry(to: &To<'_>, visitor: OnUpgrade, service: OnUpgrade) {
    let held = Arc::clone(to.session.held());
    let left = held.visit.expires_at.duration_since(Timestamp::now());
    let left = std::time::Duration::try_from(left).unwrap_or_default();
    tokio::spawn(async move {
        let (near, far) = tokio::join!(visitor, service);
        let (Ok(near), Ok(far)) = (near, far) else { return };
        let family = Family::Websockets;
        let mut frames = Frames::default();
        let (of_visitor, of_service) = (Arc::clone(&held), Arc::clone(&held));
        let watches = (
            Saw(move |octets: &[u8]| {
                of_visitor.count_octets(family, octets.len() as u64);
                if frames.read(octets) > 0 {
                    of_visitor.count_traffic(family, Timestamp::now());
                }
            }),
            Saw(move |octets: &[u8]| of_service.count_octets(family, octets.len() as u64)),
        );
        let ((near, near_begun), (far, far_begun)) = (crate::serve::bare(near), bare(far));
        let relay = sockets::relay(near, far, [near_begun, far_begun], watches);
        tokio::select! {
            // Whoever broke it off has told the other by that.
            ended = relay => drop(ended),
            () = held.cut.cancelled() => {}
            () = tokio::time::sleep(left) => {}
        }
    });
}

/// A service's connection, where it can be had: what is around it is of no use any more.
pub(crate) fn bare(upgraded: Upgraded) -> (Box<dyn sockets::Side>, Vec<u8>) {
    let upgraded = match upgraded.downcast::<TokioIo<tokio::net::TcpStream>>() {
        Ok(parts) => return (Box::new(parts.io.into_inner()), parts.read_buf.to_vec()),
        Err(upgraded) => upgraded,
    };
    match upgraded.downcast::<TokioIo<Pipe>>() {
        Ok(parts) => (Box::new(parts.io.into_inner()), parts.read_buf.to_vec()),
        Err(upgraded) => (Box::new(TokioIo::new(upgraded)), Vec::new()),
    }
}
