//! One request from its first header to its answer: verify → session → wake → forward, in that order always.

use crate::{
    asking::{Asking, Deserves},
    body::Answer,
    control::Control,
    forward::{self, Failed},
    headers::{COOKIES, visit_cookies},
    inside::Residents,
    known::Knowledge,
    limits::Waiting,
    own,
    pages::{self, Reader},
    path::Sent,
    routes::{NoRoute, Routes},
    serve::From,
    sessions::{Sessions, Shown, Unverified, VerifiedSession},
    storage::{self, Storage},
    tunnels::Tunnels,
    upstream::Pool,
    wake::{NotWoken, Readiness, Wakes, Woken, readiness, until_ready},
};
use envforge_api::{
    dev_host::{HostLabel, STORAGE},
    gateway::{Route, Standing, Target},
    link::{Family, LINK_HEADER},
    time::Timestamp,
};
use http::{HeaderMap, Method, Request, Response, Version, header};
use hyper::body::Incoming;
use std::{net::IpAddr, sync::Arc, time::Duration};
use tokio::sync::Semaphore;

/// How long calls and sockets are held for a wake.
const HELD: Duration = Duration::from_secs(60);
/// A sleep that the feed has not told of yet is waited for so long.
const UNTOLD: Duration = Duration::from_secs(5);
/// A runtime that goes to sleep under a request is woken so often.
const ATTEMPTS: usize = 3;
/// Codes that are looked up at once: anyone may show one.
const LOOKUPS: usize = 16;

/// What all cores share.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) control: Arc<Control>,
    pub(crate) knowledge: Knowledge,
    pub(crate) sessions: Sessions,
    pub(crate) routes: Arc<Routes>,
    pub(crate) wakes: Arc<Wakes>,
    pub(crate) waiting: Waiting,
    pub(crate) tunnels: Arc<Tunnels>,
    pub(crate) lookups: Semaphore,
    pub(crate) storage: Storage,
    residents: Residents,
}

/// Where a request is addressed to.
enum Addressed {
    /// A dev host.
    DevHost(HostLabel),
    /// The base itself: share pages, and hosts.
    Base,
    /// No host of this gateway.
    Elsewhere,
}

impl Gateway {
    pub(crate) fn new(control: Control) -> Self {
        Self {
            control: Arc::new(control),
            knowledge: Knowledge::new(),
            sessions: Sessions::default(),
            routes: Arc::default(),
            wakes: Arc::default(),
            waiting: Waiting::default(),
            tunnels: Arc::default(),
            lookups: Semaphore::new(LOOKUPS),
            storage: Storage::default(),
            residents: Residents::default(),
        }
    }

    /// Answers one request.
    pub(crate) async fn answer(&self, pool: &Pool, request: Request<Incoming>, from: &From) -> Response<Answer> {
        let Some(host) = host_of(&request) else {
            return pages::bad_request("the request does not say for which host it is");
        };
        let method = request.method();
        if *method == Method::CONNECT || *method == Method::TRACE {
            return pages::bad_request("this method is not carried");
        }
        match self.addressed(host) {
            Addressed::Elsewhere => pages::unverified(),
            Addressed::Base => own::base(self, request).await,
            Addressed::DevHost(label) if label.parts()[0] == STORAGE => {
                let host = host.to_owned();
                storage::answer(self, &label, &host, request).await
            }
            Addressed::DevHost(label) if Sent::new(request.uri().path()).is_reserved() => {
                own::dev_host(self, &label, request, from).await
            }
            Addressed::DevHost(label) => match self.session(&label, request.method(), request.headers(), from).await {
                Ok(session) => self.visit(pool, &session, request, from.address).await,
                Err(Unverified) => pages::unverified(),
            },
        }
    }

    fn addressed(&self, host: &str) -> Addressed {
        let known = self.knowledge.now();
        match HostLabel::of_host(host, &known.base) {
            Ok(label) => Addressed::DevHost(label),
            Err(_) if is_base(host, &known.base) => Addressed::Base,
            Err(_) => Addressed::Elsewhere,
        }
    }

    /// Who asks, verified for this host: by what is shown, else by where it comes from.
    pub(crate) async fn session(
        &self,
        label: &HostLabel,
        method: &Method,
        headers: &HeaderMap,
        from: &From,
    ) -> Result<VerifiedSession, Unverified> {
        match (self.shown(label, method, headers), &from.inside) {
            (Err(Unverified), Some(workspace)) if !headers.contains_key(LINK_HEADER) => {
                self.residents.session(&self.knowledge, &self.sessions, &self.control, workspace, label).await
            }
            (shown, _) => shown,
        }
    }

    fn shown(&self, label: &HostLabel, method: &Method, headers: &HeaderMap) -> Result<VerifiedSession, Unverified> {
        let now = Timestamp::now();
        let mut links = headers.get_all(LINK_HEADER).iter();
        if let Some(link) = links.next() {
            let token = link.to_str().map_err(|_| Unverified)?;
            return match links.next() {
                Some(_) => Err(Unverified),
                None => self.sessions.verify(&self.knowledge, Shown::Link, token.trim(), label, now),
            };
        }
        let asking = Asking { method, headers, socket: asks_for_socket(headers) };
        let (own, cookie) = {
            let known = self.knowledge.now();
            let needed = headers.contains_key(header::ORIGIN) || headers.contains_key(header::REFERER) || asking.socket;
            let own = if needed { format!("{}://{label}.{}", known.scheme, known.base) } else { String::new() };
            (own, if known.is_secure() { COOKIES[0] } else { COOKIES[1] })
        };
        if !asking.counts_cookie(&own) {
            return Err(Unverified);
        }
        // The page of another dev host may have put one of its own beside it: that is valid there and not here.
        let mut shown = visit_cookies(headers, cookie).take(8);
        shown
            .find_map(|token| self.sessions.verify(&self.knowledge, Shown::Visit, token, label, now).ok())
            .ok_or(Unverified)
    }

    async fn visit(
        &self,
        pool: &Pool,
        session: &VerifiedSession,
        mut request: Request<Incoming>,
        client: IpAddr,
    ) -> Response<Answer> {
        let socket = request.method() == Method::GET
            && request.version() == Version::HTTP_11
            && asks_for_socket(request.headers());
        let asking = Asking { method: request.method(), headers: request.headers(), socket };
        let (page, deserves) = (asking.is_navigation(), asking.deserves());
        let reader = if page { Reader::Person } else { Reader::Program };
        if !self.knowledge.is_current() {
            return pages::away(reader);
        }
        let now = Timestamp::now();
        let held = session.held();
        let may_wake = match deserves {
            Deserves::Navigation | Deserves::Program => {
                held.note_deserving(now);
                true
            }
            Deserves::Call => held.is_fresh(now),
            Deserves::Nothing => false,
        };
        for _ in 0..ATTEMPTS {
            let route = match self.routes.find(&self.knowledge, &self.control, session).await {
                Ok(route) => route,
                Err(NoRoute::Missing) => return pages::unverified(),
                Err(NoRoute::Away) => return pages::away(reader),
            };
            let sent = Sent::new(request.uri().path());
            let target = sent.target(&route);
            let family = sent.family(&[&target.families, &route.target.families]);
            let Some(family) = carried(session, family.ok(), socket) else { return pages::not_carried(reader) };
            let woken = match self.woken(pool, session, &route, target, page, may_wake).await {
                Ok(woken) => woken,
                Err(answer) => return answer(reader),
            };
            // What runs now may listen elsewhere than what ran when the route was asked for.
            let Some(port) = target.port.filter(|_| self.is_of_now(&route)) else {
                self.routes.forget(&route.host);
                continue;
            };
            let to = forward::To { pool, session, route: &route, target, port, family, client, socket };
            match forward::forward(&to, &woken, request).await {
                Ok(answer) => return answer,
                Err(Failed::Asleep(again)) => {
                    request = *again;
                    self.untold_sleep(&route, &woken).await;
                }
                Err(Failed::Away(again)) => {
                    request = *again;
                    // A tunnel that broke is dialled again by its host.
                    tokio::select! {
                        () = self.untold_sleep(&route, &woken) => {}
                        () = self.tunnels.arrival(&route.dial.host) => {}
                    }
                }
                Err(Failed::Stale(again)) => {
                    request = *again;
                    self.routes.forget(&route.host);
                }
                Err(Failed::Service(what)) => return pages::bad_gateway(reader, what),
            }
        }
        pages::not_woken(reader, &NotWoken::Late)
    }

    fn is_of_now(&self, route: &Route) -> bool {
        self.knowledge.standing(&route.workspace).is_none_or(|standing| standing.routes == route.version)
    }

    /// A service that can be connected to, or what the visitor gets instead.
    async fn woken(
        &self,
        pool: &Pool,
        session: &VerifiedSession,
        route: &Route,
        target: &Target,
        page: bool,
        may_wake: bool,
    ) -> Result<Woken, Box<dyn FnOnce(Reader) -> Response<Answer> + Send>> {
        let not = |why: NotWoken| -> Box<dyn FnOnce(Reader) -> Response<Answer> + Send> {
            Box::new(move |reader| pages::not_woken(reader, &why))
        };
        let service = &target.service;
        let standing = self.knowledge.standing(&route.workspace).ok_or_else(|| not(NotWoken::Gone))?;
        let generation = match readiness(&standing, service) {
            Readiness::Ready(woken) => return Ok(woken),
            Readiness::Coming | Readiness::Broken(_) if page => return Err(self.waiting_page(route, &standing)),
            Readiness::Broken(how) => return Err(not(NotWoken::Broken(how))),
            Readiness::Coming => standing.generation,
            Readiness::Asleep if !may_wake => return Err(not(NotWoken::Asleep)),
            Readiness::Asleep => match self.wakes.ask(&self.control, session).await {
                Ok(generation) if !page => generation,
                Ok(_) => return Err(self.waiting_page(route, &waking(&standing))),
                Err(why) => return Err(not(why)),
            },
        };
        let visit = session.visit();
        let Some(_place) = self.waiting.enter(&visit.workspace, &visit.organization) else {
            return Err(Box::new(pages::crowded));
        };
        // Whoever says so first: the host knows sooner, the feed knows more about why it does not come.
        let by_host = async {
            match target.port {
                Some(port) => match pool.await_ready(route, port, generation, HELD).await {
                    Ok(woken) => woken,
                    Err(_) => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            woken = by_host => Ok(woken),
            ready = until_ready(&self.knowledge, &visit.workspace, service, generation, HELD) => ready.map_err(not),
            () = session.held().cut.cancelled() => Err(not(NotWoken::Gone)),
        }
    }

    fn waiting_page(&self, route: &Route, standing: &Standing) -> Box<dyn FnOnce(Reader) -> Response<Answer> + Send> {
        let (slug, standing) = (route.slug.clone(), standing.clone());
        Box::new(move |_| pages::waiting(&slug, &pages::state(&standing, false, None)))
    }

    /// The host says that the runtime sleeps: the feed is about to say so too.
    async fn untold_sleep(&self, route: &Route, woken: &Woken) {
        let mut changes = self.knowledge.changes();
        let told = changes.wait_for(|known| {
            let standing = known.standings.get(&route.workspace);
            standing.is_none_or(|standing| {
                standing.instance.as_ref() != Some(woken.instance()) || standing.runtime.state.can_wake()
            })
        });
        // Told or not, the next attempt looks again.
        drop(tokio::time::timeout(UNTOLD, told).await);
    }
}

/// What the feed will say in a moment.
fn waking(standing: &Standing) -> Standing {
    let mut standing = standing.clone();
    if standing.runtime.state.can_wake() {
        let waking = envforge_api::states::RuntimeState::Waking;
        standing.runtime = envforge_api::states::Stated::plain(waking, Timestamp::now());
    }
    standing
}

/// The family in which a request is counted, if the session carries it.
fn carried(session: &VerifiedSession, family: Option<Family>, socket: bool) -> Option<Family> {
    let families = &session.visit().families;
    let everything = families.len() == Family::ALL.len();
    let family = family.or(everything.then_some(Family::Web))?;
    let carries = families.contains(&family) && (!socket || families.contains(&Family::Websockets));
    carries.then_some(if socket { Family::Websockets } else { family })
}

/// The host that a request names, once and in one place.
fn host_of<B>(request: &Request<B>) -> Option<&str> {
    let mut named = request.headers().get_all(header::HOST).iter();
    let (first, second) = (named.next(), named.next());
    if second.is_some() {
        return None;
    }
    match request.uri().authority() {
        // RFC 9112, 3.2.2: what the target says counts, whatever the header says.
        Some(authority) if !authority.as_str().contains('@') => Some(authority.as_str()),
        Some(_) => None,
        None => first?.to_str().ok(),
    }
}

fn is_base(host: &str, base: &str) -> bool {
    let bare = |name: &str| {
        let name = name.rsplit_once(':').map_or(name, |(name, _)| name);
        name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
    };
    !base.is_empty() && bare(host) == bare(base)
}

/// Whether a request asks to become a WebSocket.
pub(crate) fn asks_for_socket(headers: &HeaderMap) -> bool {
    let upgrade = headers.get(header::UPGRADE);
    if !upgrade.is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket")) {
        return false;
    }
    let mut connection = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    connection.any(|value| value.split(',').any(|word| word.trim().eq_ignore_ascii_case("upgrade")))
}
