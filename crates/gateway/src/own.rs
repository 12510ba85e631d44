//! The gateway's own addresses: `<base>/share/<token>`, where hosts dial in and where their streams are; and on each dev host `/.envforge/enter`, `/.envforge/state` and
//! `/.envforge/wake`. None of them wakes anything but the last, which is for that.

use crate::{
    body::Answer,
    gateway::Gateway,
    headers::COOKIES,
    pages::{self, Reader},
    routes::NoRoute,
    serve::From,
    sessions::{Shown, VerifiedSession},
    streams, tunnels,
    wake::{NotWoken, Readiness, readiness},
};
use envforge_api::{
    dev_host::HostLabel, gateway::Code, link::Link, problem::ProblemKind, sign, time::Timestamp, tunnel,
};
use http::{HeaderValue, Method, Request, Response, header};
use hyper::body::Incoming;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, timeout_at};

/// How long a question for the state is held while nothing changes.
const PARKED: Duration = Duration::from_secs(20);
/// The length of a code.
const CODE: usize = 52;

/// What the base itself serves.
pub(crate) async fn base(gateway: &Gateway, request: Request<Incoming>) -> Response<Answer> {
    if request.uri().path() == tunnel::PATH {
        return tunnels::take(gateway, request);
    }
    if streams::is_theirs(request.uri().path()) {
        return streams::lead(gateway, request).await;
    }
    let token = request.uri().path().strip_prefix("/share/");
    match (request.method(), token) {
        (&Method::GET | &Method::HEAD, Some(token)) => share(gateway, request.method(), token).await,
        (_, _) => pages::unverified(),
    }
}

/// A link leads to its dev host, each time by a code of its own.
async fn share(gateway: &Gateway, method: &Method, token: &str) -> Response<Answer> {
    let now = Timestamp::now();
    let (keys, scheme, base) = {
        let known = gateway.knowledge.now();
        (Arc::clone(&known.keys), known.scheme.clone(), known.base.clone())
    };
    let Ok(link) = sign::verify::<Link>(&keys, token, now) else { return pages::unverified() };
    let verified = gateway.sessions.verify(&gateway.knowledge, Shown::Link, token, &link.host, now);
    if verified.is_err() {
        return pages::unverified();
    }
    if !gateway.knowledge.is_current() {
        return pages::away(Reader::Person);
    }
    if *method == Method::HEAD {
        return pages::done();
    }
    match gateway.control.code(token).await {
        Ok(Code { code, host }) => {
            pages::redirect(&format!("{scheme}://{host}.{base}/.envforge/enter?code={}", code.expose()))
        }
        Err(problem) => refusal(problem.kind),
    }
}

fn refusal(kind: ProblemKind) -> Response<Answer> {
    match kind {
        ProblemKind::NotFound | ProblemKind::Invalid => pages::unverified(),
        _ => pages::away(Reader::Person),
    }
}

/// What a dev host serves of the gateway.
pub(crate) async fn dev_host(
    gateway: &Gateway,
    label: &HostLabel,
    request: Request<Incoming>,
    from: &From,
) -> Response<Answer> {
    let query = |name: &str| {
        let pairs = request.uri().query().unwrap_or_default().split('&');
        pairs.filter_map(|pair| pair.split_once('=')).find(|(given, _)| *given == name).map(|(_, value)| value)
    };
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/.envforge/enter") => enter(gateway, label, &request, query("code"), from).await,
        (method @ &Method::GET, "/.envforge/state") => {
            match gateway.session(label, method, request.headers(), from).await {
                Ok(session) => state(gateway, &session, query("seen").unwrap_or_default()).await,
                Err(_) => pages::unverified(),
            }
        }
        (method @ &Method::POST, "/.envforge/wake") => {
            match gateway.session(label, method, request.headers(), from).await {
                Ok(session) => poke(gateway, &session).await,
                Err(_) => pages::unverified(),
            }
        }
        (_, _) => pages::unverified(),
    }
}

/// A code becomes a visit, once; whoever has one already is simply let in.
async fn enter(
    gateway: &Gateway,
    label: &HostLabel,
    request: &Request<Incoming>,
    code: Option<&str>,
    from: &From,
) -> Response<Answer> {
    let sound = |code: &&str| code.len() == CODE && code.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let granted = match code.filter(sound) {
        Some(code) => {
            let Ok(_place) = gateway.lookups.acquire().await else { return pages::away(Reader::Person) };
            gateway.control.visit(code, label).await.map_err(|problem| problem.kind)
        }
        None => Err(ProblemKind::NotFound),
    };
    match granted {
        Ok(granted) => {
            let secure = gateway.knowledge.now().is_secure();
            let (name, more) = if secure { (COOKIES[0], "; Secure") } else { (COOKIES[1], "") };
            let seconds = granted.expires_at.duration_since(Timestamp::now()).as_secs().max(1);
            let token = granted.token.expose();
            let cookie = format!("{name}={token}; Path=/; HttpOnly; SameSite=Lax; Max-Age={seconds}{more}");
            let mut response = pages::redirect("/");
            if let Ok(mut cookie) = HeaderValue::from_str(&cookie) {
                cookie.set_sensitive(true);
                response.headers_mut().insert(header::SET_COOKIE, cookie);
            }
            response
        }
        // The way back in a browser's history leads here again.
        Err(kind @ ProblemKind::NotFound) => {
            match gateway.session(label, &Method::GET, request.headers(), from).await {
                Ok(_) => pages::redirect("/"),
                Err(_) => refusal(kind),
            }
        }
        Err(kind) => refusal(kind),
    }
}

/// How it stands, as soon as that is not what the page shows already.
async fn state(gateway: &Gateway, session: &VerifiedSession, seen: &str) -> Response<Answer> {
    let visit = session.visit();
    let deadline = Instant::now() + PARKED;
    let mut changes = gateway.knowledge.changes();
    loop {
        if !gateway.knowledge.is_current() {
            return pages::away(Reader::Program);
        }
        let standing = changes.borrow_and_update().standings.get(&visit.workspace).cloned();
        let Some(standing) = standing else { return pages::unverified() };
        let ready = matches!(readiness(&standing, &visit.service), Readiness::Ready(_));
        let state = pages::state(&standing, ready, None);
        if ready || !state.is_seen(seen) || Instant::now() >= deadline {
            return pages::state_answer(&state);
        }
        tokio::select! {
            _ = timeout_at(deadline, changes.changed()) => {}
            () = session.held().cut.cancelled() => return pages::unverified(),
        }
    }
}

/// A person asks for a wake.
async fn poke(gateway: &Gateway, session: &VerifiedSession) -> Response<Answer> {
    session.held().note_deserving(Timestamp::now());
    let reader = Reader::Program;
    if !gateway.knowledge.is_current() {
        return pages::away(reader);
    }
    match gateway.routes.find(&gateway.knowledge, &gateway.control, session).await {
        Ok(_) => {}
        Err(NoRoute::Missing) => return pages::unverified(),
        Err(NoRoute::Away) => return pages::away(reader),
    }
    match gateway.wakes.ask(&gateway.control, session).await {
        Ok(_) => pages::done(),
        Err(NotWoken::Gone) => pages::unverified(),
        Err(why) => pages::not_woken(reader, &why),
    }
}
