//! The gateway: the one door for dev traffic. It verifies, then wakes, then forwards, in that order always; the types
//! enforce it: only a [`sessions::VerifiedSession`] can ask for a wake, only a [`wake::Woken`] service is forwarded to.
//!
//! It holds public keys and a token of its own, no private key and no database. What it knows comes from the control
//! plane's feed; what it carries goes through sockets that a host on its machine hands over, or through the tunnels of
//! hosts elsewhere.

pub mod acme;
mod activity;
mod asking;
mod body;
mod control;
mod forward;
mod gateway;
mod headers;
mod inside;
mod known;
mod limits;
mod own;
mod pages;
mod path;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod properties;
mod routes;
mod serve;
mod sessions;
mod single;
mod sockets;
mod storage;
mod streams;
pub mod tls;
mod tunnels;
mod upstream;
mod wake;

use control::Control;
use envforge_api::{client::Endpoint, dial, problem::Problem, secret::Secret};
use gateway::Gateway;
use std::{net::TcpListener, path::PathBuf, process::ExitCode, sync::Arc};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How a gateway is started.
#[derive(Debug)]
pub struct Options {
    /// The control plane.
    pub server: Endpoint,
    /// The gateway's own token.
    pub token: Secret,
    /// Where visitors come.
    pub listener: TcpListener,
    /// How they are served.
    pub security: Security,
    /// Where the host daemon of this machine hands over connections from inside workspaces.
    pub inside: Option<PathBuf>,
}

/// What lies between visitors and the gateway.
#[derive(Debug)]
pub enum Security {
    /// Plain HTTP: for the loopback, or behind something that ends TLS.
    Plain,
    /// TLS with a certificate that someone else puts there.
    Files(tls::Files),
    /// TLS with a certificate that the gateway gets.
    Acme(acme::Settings),
}

/// `envforge gateway`: runs until SIGTERM, then finishes what was begun. Says `ready` through `say` once it knows what
/// it serves.
pub async fn main(options: Options, say: impl Fn(&str)) -> ExitCode {
    match run(options, say).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            tracing::error!(reason = %problem.message, hint = %problem.hint, "the gateway cannot run");
            ExitCode::FAILURE
        }
    }
}

/// Descriptors wanted: two for each open socket.
const DESCRIPTORS: u64 = 200_000;

/// As many descriptors as may be had.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let hard = now.maximum.map_or(DESCRIPTORS, |hard| hard.max(DESCRIPTORS));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(hard), maximum: Some(hard) });
    if raised.is_err() {
        // Only the administrator may go above the hard limit; up to it everyone may.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum });
    }
}

async fn run(options: Options, say: impl Fn(&str)) -> Result<(), Problem> {
    raise_descriptors();
    let broken = |what: &str, error: &std::io::Error| {
        Problem::unavailable(format!("cannot {what}: {error}"), "is something listening on that address already?")
    };
    let listener = options.listener;
    let (given, keeper) = match options.security {
        Security::Plain => (None, None),
        Security::Files(files) => (Some(tls::Tls::open(files)?), None),
        Security::Acme(settings) => (None, Some(Arc::new(acme::Keeper::open(settings)?))),
    };
    listener.set_nonblocking(true).map_err(|e| broken("listen for visitors", &e))?;
    let (mut term, mut int) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(term), Ok(int)) => (term, int),
        (Err(error), _) | (_, Err(error)) => return Err(broken("listen for signals", &error)),
    };
    let gateway = Arc::new(Gateway::new(Control::new(options.server, options.token)));
    // Visitors first, what they need last.
    let (closing, stop) = (CancellationToken::new(), CancellationToken::new());
    let (heard, known) = tokio::sync::oneshot::channel();
    {
        let (gateway, stop) = (Arc::clone(&gateway), stop.clone());
        tokio::spawn(async move {
            let told = |_: &known::Known| {
                // Nobody waits for it only when the gateway is being stopped.
                let _ = heard.send(());
            };
            gateway.knowledge.follow(&gateway.control, &gateway.sessions, &stop, told).await;
        });
    }
    // Ends what it has begun when the gateway is closing: records that it made are taken away again.
    let keeping = TaskTracker::new();
    let begun = async {
        // Before that nobody can be verified.
        let _ = known.await;
        let tls = match keeper {
            Some(keeper) => {
                let files = keeper.files();
                let (there, certified) = tokio::sync::oneshot::channel();
                let (gateway, closing) = (Arc::clone(&gateway), closing.clone());
                keeping.spawn(async move {
                    let there = || {
                        // Nobody waits for it only when the gateway is being stopped.
                        let _ = there.send(());
                    };
                    keeper.keep(&gateway.knowledge, &closing, there).await;
                });
                let _ = certified.await;
                Some(tls::Tls::open(files)?)
            }
            None => given,
        };
        let tls = tls.map(Arc::new);
        let serving = serve_all(&gateway, &listener, tls.as_ref(), &closing);
        Ok::<_, Problem>((serving.map_err(|e| broken("start its threads", &e))?, tls))
    };
    let telling = {
        let (gateway, stop) = (Arc::clone(&gateway), stop.clone());
        tokio::spawn(async move {
            activity::tell(&gateway.control, &gateway.knowledge, &gateway.sessions, &stop).await;
        })
    };
    let begun = tokio::select! {
        begun = begun => Some(begun?),
        _ = term.recv() => None,
        _ = int.recv() => None,
    };
    keeping.close();
    let Some((serving, tls)) = begun else {
        closing.cancel();
        keeping.wait().await;
        return Ok(());
    };
    say("ready");
    if let Some(path) = options.inside {
        let listener = dial::listen(&path).map_err(|e| broken("listen for the host", &e))?;
        let (gateway, closing) = (Arc::clone(&gateway), closing.clone());
        // Ends with the gateway: its visitors are programs of the workspaces themselves.
        tokio::spawn(async move { serve::inside(&gateway, &listener, &closing).await });
    }
    let renewed = async {
        match &tls {
            Some(tls) => tls.follow(&closing).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        () = renewed => {}
    }
    closing.cancel();
    // Each drains within its own deadline.
    let joined = tokio::task::spawn_blocking(move || serving.into_iter().for_each(|core| drop(core.join())));
    drop(joined.await);
    keeping.wait().await;
    stop.cancel();
    drop(telling.await);
    Ok(())
}

/// A thread for each core, all on one socket.
fn serve_all(
    gateway: &Arc<Gateway>,
    listener: &TcpListener,
    tls: Option<&Arc<tls::Tls>>,
    closing: &CancellationToken,
) -> std::io::Result<Vec<std::thread::JoinHandle<()>>> {
    let open = TaskTracker::new();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (0..cores)
        .map(|_| {
            let (gateway, listener, closing) = (Arc::clone(gateway), listener.try_clone()?, closing.clone());
            let (tls, open) = (tls.cloned(), open.clone());
            std::thread::Builder::new().name("visitors".into()).spawn(move || {
                if let Err(error) = serve::core(&gateway, listener, tls.as_ref(), &closing, &open) {
                    tracing::error!(%error, "a thread for visitors ended");
                }
            })
        })
        .collect()
}
