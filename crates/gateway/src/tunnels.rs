//! Tunnels of hosts on other machines. A host dials in on the base and shows a pass; streams to it are then opened here.
//!
//! A host may have several at once: one whose loss nobody has noticed yet, or two addresses that lead here. Streams are
//! opened on the newest, which is the one that is most likely alive; what is open on an older one goes on. Everything
//! of a tunnel ends with it.

use crate::{asking, body::Answer, gateway::Gateway, pages};
use envforge_api::{
    ids::HostId,
    sign,
    time::Timestamp,
    tunnel::{Connected, NotOpened, Open, PROTOCOL, Pass, Pipe, Tunnel},
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use hyper::{body::Incoming, upgrade::Upgraded};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

/// Of one host at most; beyond it the oldest ends.
const MOST: usize = 4;
/// How long a host may take for a stream.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the end of a tunnel may take to be noticed by all of its parts.
const SETTLES: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Entry {
    number: u64,
    tunnel: Tunnel,
    /// Ends it.
    end: CancellationToken,
}

/// Those that are open, of each host the newest last.
#[derive(Debug, Default)]
pub(crate) struct Tunnels {
    open: Mutex<HashMap<HostId, Vec<Entry>>>,
    /// How many ever came.
    came: watch::Sender<u64>,
}

impl Tunnels {
    fn open_now(&self) -> MutexGuard<'_, HashMap<HostId, Vec<Entry>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn newest(&self, host: &HostId) -> Option<Tunnel> {
        let open = self.open_now();
        open.get(host)?.iter().rev().map(|entry| &entry.tunnel).find(|tunnel| !tunnel.is_closed()).cloned()
    }

    /// Opens a stream; the host may take `within` beyond the usual.
    ///
    /// # Errors
    /// The host's reason; [`NotOpened::Away`] when it has no tunnel here, or does not answer.
    pub(crate) async fn open(
        &self,
        host: &HostId,
        what: &Open,
        within: Duration,
    ) -> Result<Connected<Pipe>, NotOpened> {
        let tunnel = self.newest(host).ok_or(NotOpened::Away)?;
        let opened = timeout(PATIENCE + within, tunnel.open(what)).await.unwrap_or(Err(NotOpened::Away));
        if matches!(opened, Err(NotOpened::Away)) {
            // One that has just broken is not to be taken for one that is there.
            drop(timeout(SETTLES, tunnel.closed()).await);
        }
        opened
    }

    /// Ends once the host has a tunnel.
    pub(crate) async fn arrival(&self, host: &HostId) {
        let mut came = self.came.subscribe();
        while self.newest(host).is_none() {
            // The sender lives as long as this.
            drop(came.changed().await);
        }
    }

    /// Carries a tunnel until it ends.
    async fn carry(&self, host: &HostId, connection: Upgraded) {
        let (tunnel, driver) = match Tunnel::begin(connection).await {
            Ok(begun) => begun,
            Err(error) => {
                tracing::warn!(%host, %error, "a tunnel did not begin");
                return;
            }
        };
        let end = CancellationToken::new();
        let number = self.enter(host, tunnel, &end);
        tracing::info!(%host, "a tunnel is open");
        tokio::select! {
            () = driver => {}
            () = end.cancelled() => {}
        }
        self.leave(host, number);
        tracing::info!(%host, "a tunnel has ended");
    }

    fn enter(&self, host: &HostId, tunnel: Tunnel, end: &CancellationToken) -> u64 {
        let mut number = 0;
        self.came.send_modify(|came| {
            *came += 1;
            number = *came;
            let mut open = self.open_now();
            let of_host = open.entry(host.clone()).or_default();
            if of_host.len() >= MOST {
                of_host.remove(0).end.cancel();
            }
            of_host.push(Entry { number, tunnel, end: end.clone() });
        });
        number
    }

    fn leave(&self, host: &HostId, number: u64) {
        let mut open = self.open_now();
        if let Some(of_host) = open.get_mut(host) {
            of_host.retain(|entry| entry.number != number);
            if of_host.is_empty() {
                open.remove(host);
            }
        }
    }
}

/// Takes a host's tunnel in, if it shows a pass. Whatever is not right gets the answer of everything that is not verified.
pub(crate) fn take(gateway: &Gateway, mut request: Request<Incoming>) -> Response<Answer> {
    if request.method() != Method::GET
        || request.version() != Version::HTTP_11
        || !asks_for_tunnel(request.headers())
        || asking::is_of_a_page(request.headers())
    {
        return pages::unverified();
    }
    if !gateway.knowledge.is_current() {
        return pages::away(pages::Reader::Program);
    }
    let keys = Arc::clone(&gateway.knowledge.now().keys);
    let pass = asking::bearer(request.headers());
    let pass = pass.and_then(|token| sign::verify::<Pass>(&keys, token, Timestamp::now()).ok());
    let Some(Pass { host, .. }) = pass else { return pages::unverified() };
    let (tunnels, upgrade) = (Arc::clone(&gateway.tunnels), hyper::upgrade::on(&mut request));
    // Ends with the tunnel, or with this core's last visitor when the gateway stops.
    tokio::spawn(async move {
        if let Ok(connection) = upgrade.await {
            tunnels.carry(&host, connection).await;
        }
    });
    let mut response = Response::new(Answer::own(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(PROTOCOL));
    response
}

fn asks_for_tunnel(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|to| to.as_bytes() == PROTOCOL.as_bytes())
}
