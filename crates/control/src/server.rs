//! Starting and stopping: what `main` does between its options and its exit status, in a form that tests can call.

use crate::{
    Options,
    app::{App, Shared},
    config, db,
    dev_hosts::{self, base::Base},
    hosts::{self, bells::Bells},
    http::router::{self, RouteEntry},
    identity,
    keys::Keys,
    secrets::{self, sealing::Ring},
};
use envforge_api::problem::Problem;
use std::{future::IntoFuture, net::SocketAddr, time::Duration};
use tokio::{net::TcpListener, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

/// How long requests under way may take once the server stops.
const DRAIN: Duration = Duration::from_secs(5);

/// A control plane that serves.
#[derive(Debug)]
pub struct Running {
    address: SocketAddr,
    routes: Vec<RouteEntry>,
    description: serde_json::Value,
    app: App,
    server: JoinHandle<()>,
    listener: JoinHandle<()>,
    stopping: CancellationToken,
}

impl Running {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Every mounted route with the action it demands.
    #[must_use]
    pub fn routes(&self) -> &[RouteEntry] {
        &self.routes
    }

    /// The description that `GET /v1/openapi.json` gives.
    #[must_use]
    pub fn description(&self) -> &serde_json::Value {
        &self.description
    }

    /// Answers parked requests, waits up to 5 seconds for the others, closes the pool.
    pub async fn stop(mut self) {
        self.stopping.cancel();
        if timeout(DRAIN, &mut self.server).await.is_err() {
            tracing::warn!("requests were still under way after 5 seconds and are cut off");
            self.server.abort();
        }
        self.listener.abort();
        // Connections that a cut-off transaction still holds must not keep the process.
        if timeout(Duration::from_secs(1), self.app.pool.close()).await.is_err() {
            tracing::warn!("database connections were still in use and are dropped");
        }
    }
}

/// Migrates, makes what a local installation has, listens, writes the address, serves.
///
/// # Errors
/// `invalid` for options that cannot be used, `unavailable` without a database or when the address is taken.
pub async fn start(options: Options) -> Result<Running, Problem> {
    let base = Base::parse(&options.base)?;
    let own = config::open(&options.state)?;
    let ring = Ring::open(&options.state)?;
    let pool = db::connect(db::options(&options.database_url)?).await?;
    let owner = std::env::var("USER").ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "owner".into());
    identity::store::ensure_local(&pool, &own, owner).await.map_err(|failure| *failure.0)?;
    dev_hosts::fill(&pool).await.map_err(|failure| *failure.0)?;
    let keys = Keys::open(&pool, own.sealing, own.signing).await.map_err(|failure| *failure.0)?;
    secrets::renew(&pool, &ring).await.map_err(|failure| *failure.0)?;
    let stopping = CancellationToken::new();
    let app = App::new(Shared {
        pool,
        keys,
        secrets: ring,
        base,
        bells: Bells::default(),
        started: tokio::time::Instant::now(),
        stopping: stopping.clone(),
    });
    let socket = TcpListener::bind(options.listen).await.map_err(|error| {
        Problem::unavailable(
            format!("cannot listen on {}: {error}", options.listen),
            "choose another port with --listen, or 0 for any free one",
        )
    })?;
    let address = socket.local_addr().map_err(|error| Problem::internal(format!("no local address: {error}")))?;
    let (router, description, routes) = router::build(&app);
    let description = serde_json::to_value(description)
        .map_err(|error| Problem::internal(format!("the API's description could not be written: {error}")))?;
    // Ends when `stopping` is cancelled, since nothing else ends it; parked requests would otherwise come late.
    let listener = tokio::spawn(hosts::listen::run(app.clone()));
    let until = stopping.clone().cancelled_owned();
    let serving = axum::serve(socket, router).with_graceful_shutdown(until).into_future();
    // Ends with `stopping`, or is aborted by `stop` after the drain.
    let server = tokio::spawn(async move {
        if let Err(error) = serving.await {
            tracing::error!(%error, "serving ended");
        }
    });
    config::publish_address(&options.state, address)?;
    tracing::info!(%address, "the control plane serves");
    Ok(Running { address, routes, description, app, server, listener, stopping })
}

/// Returns at SIGTERM or SIGINT.
pub(crate) async fn asked_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(term), Ok(int)) => (term, int),
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "signals cannot be waited for");
            return;
        }
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
