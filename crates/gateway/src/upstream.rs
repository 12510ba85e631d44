//! Connections to services: dialled through the host that carries them (by its socket on this machine, else by its
//! tunnel), kept for the next request, and never used for another run of the runtime than the one they were made in.

use crate::{body::Asked, tunnels::Tunnels, wake::Woken};
use envforge_api::{
    dial::{self, Ask, Wait},
    gateway::{Dial, Route},
    generation::Generation,
    ids::{RuntimeInstanceId, WorkspaceId},
    tunnel::{NotOpened, Open},
};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};

/// Kept for one port at most.
const KEPT: usize = 256;
/// An idle connection is not used after this: many servers close theirs after five seconds.
const IDLE: Duration = Duration::from_secs(4);
/// How long a lost tunnel may take to be there again.
const AGAIN: Duration = Duration::from_secs(5);

/// A connection to a service.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) sender: SendRequest<Asked>,
    /// Whether something was sent on it before: it may be closed by now.
    pub(crate) used: bool,
}

#[derive(Debug)]
struct Idle {
    sender: SendRequest<Asked>,
    since: Instant,
}

#[derive(Debug)]
struct Kept {
    instance: RuntimeInstanceId,
    ports: HashMap<u16, Vec<Idle>>,
}

/// The idle connections of one core.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    kept: Arc<Mutex<HashMap<WorkspaceId, Kept>>>,
    tunnels: Arc<Tunnels>,
}

impl Pool {
    pub(crate) fn new(tunnels: &Arc<Tunnels>) -> Self {
        Self { kept: Arc::default(), tunnels: Arc::clone(tunnels) }
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<WorkspaceId, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, workspace: &WorkspaceId, woken: &Woken, port: u16) -> Option<SendRequest<Asked>> {
        let mut kept = self.kept();
        let of = kept.get_mut(workspace).filter(|kept| kept.instance == *woken.instance())?;
        let idle = of.ports.get_mut(&port)?;
        while let Some(one) = idle.pop() {
            if one.since.elapsed() < IDLE && one.sender.is_ready() {
                return Some(one.sender);
            }
        }
        None
    }

    /// Keeps a connection for the next request of the same run.
    pub(crate) fn keep(&self, workspace: &WorkspaceId, woken: &Woken, port: u16, sender: SendRequest<Asked>) {
        let mut kept = self.kept();
        let of = match kept.get_mut(workspace) {
            Some(of) => of,
            None => kept
                .entry(workspace.clone())
                .or_insert(Kept { instance: woken.instance().clone(), ports: HashMap::new() }),
        };
        if of.instance != *woken.instance() {
            *of = Kept { instance: woken.instance().clone(), ports: HashMap::new() };
        }
        let idle = of.ports.entry(port).or_default();
        if idle.len() < KEPT {
            idle.push(Idle { sender, since: Instant::now() });
        }
    }

    /// Closes what is not used any more.
    pub(crate) fn tidy(&self) {
        self.kept().retain(|_, kept| {
            kept.ports.retain(|_, idle| {
                idle.retain(|one| one.since.elapsed() < IDLE && !one.sender.is_closed());
                !idle.is_empty()
            });
            !kept.ports.is_empty()
        });
    }

    /// A connection to `port`: one that is there, or a new one.
    pub(crate) async fn connect(&self, route: &Route, woken: &Woken, port: u16) -> Result<Upstream, NotOpened> {
        if let Some(sender) = self.take(&route.workspace, woken, port) {
            return Ok(Upstream { sender, used: true });
        }
        let (sender, _) = self.dial(route, port, None).await?;
        Ok(Upstream { sender, used: false })
    }

    /// A new connection in place of one that turned out to be closed. A host whose tunnel went with it is waited for.
    pub(crate) async fn replace(&self, route: &Route, port: u16) -> Result<Upstream, NotOpened> {
        let dialled = match self.dial(route, port, None).await {
            Err(NotOpened::Away) => {
                drop(timeout(AGAIN, self.tunnels.arrival(&route.dial.host)).await);
                self.dial(route, port, None).await
            }
            outcome => outcome,
        };
        dialled.map(|(sender, _)| Upstream { sender, used: false })
    }

    /// Waits until the host says that something is ready at `port`, which it knows before the control plane does, and
    /// keeps the connection that it made.
    pub(crate) async fn await_ready(
        &self,
        route: &Route,
        port: u16,
        generation: Generation,
        within: Duration,
    ) -> Result<Woken, NotOpened> {
        let ms = u32::try_from(within.as_millis()).unwrap_or(u32::MAX);
        let (sender, instance) = self.dial(route, port, Some(Wait { generation, ms })).await?;
        let woken = Woken::connected(instance.ok_or(NotOpened::Unknown)?);
        self.keep(&route.workspace, &woken, port, sender);
        Ok(woken)
    }

    async fn dial(&self, route: &Route, port: u16, wait: Option<Wait>) -> Result<Connected, NotOpened> {
        let ask = Ask::port(route.workspace.clone(), port, route.dial.token.clone());
        open(&self.tunnels, &route.dial, Ask { wait, ..ask }).await
    }
}

/// A connection, and the run of the runtime that it leads to.
pub(crate) type Connected = (SendRequest<Asked>, Option<RuntimeInstanceId>);

/// A new connection: from the host's socket where that is on this machine, else through its tunnel.
pub(crate) async fn open(tunnels: &Tunnels, to: &Dial, ask: Ask) -> Result<Connected, NotOpened> {
    let within = ask.within();
    if let Some(socket) = &to.socket {
        match dial::dial(Path::new(socket), &ask, within).await {
            // The socket of a host on another machine.
            Err(NotOpened::Away) => {}
            Err(why) => return Err(why),
            Ok(dialled) => {
                let stream = TcpStream::from_std(dialled.socket).map_err(|_| NotOpened::Away)?;
                return Ok((begin(stream).await?, dialled.instance));
            }
        }
    }
    let (pipe, instance) = tunnels.open(&to.host, &Open::Dial(ask), within).await?;
    Ok((begin(pipe).await?, instance))
}

async fn begin(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Result<SendRequest<Asked>, NotOpened> {
    let handshake = http1::Builder::new().handshake(TokioIo::new(stream)).await;
    let (sender, connection) = handshake.map_err(|_| NotOpened::NotListening)?;
    // Ends with the connection; what goes wrong on it is told to whoever waits for its answer.
    tokio::spawn(async move { drop(connection.with_upgrades().await) });
    Ok(sender)
}
