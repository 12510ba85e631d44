//! Listening: one thread with a runtime of its own for each core, all on one socket; and the end of it, which loses no
//! request that was begun.

use crate::{gateway::Gateway, sockets::Side, tls::Tls, upstream::Pool};
use envforge_api::ids::WorkspaceId;
use hyper::{service::service_fn, upgrade::Upgraded};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use std::{
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr, TcpListener},
    pin::pin,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixListener},
    sync::watch,
};
use tokio_rustls::server::TlsStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long a visitor may take for the headers of a request, and a connection may be idle.
const HEADERS: Duration = Duration::from_secs(75);
/// Octets of headers at most.
const MAX_HEADERS: usize = 64 << 10;
/// How long requests under way may take once the gateway stops.
const DRAIN: Duration = Duration::from_secs(10);
/// How long one that was just made may take for its first request then.
const FIRST_REQUEST: Duration = Duration::from_secs(1);
/// How often idle connections to services are looked through.
const TIDY: Duration = Duration::from_secs(5);

/// How long a visitor may take to agree on TLS.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Serves on one thread until `stop`, then finishes what was begun. `open` are the connections of all threads.
pub(crate) fn core(
    gateway: &Arc<Gateway>,
    listener: TcpListener,
    tls: Option<&Arc<Tls>>,
    stop: &CancellationToken,
    open: &TaskTracker,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        accept(gateway, &listener, tls, stop, open).await;
        Ok(())
    })
}

async fn accept(
    gateway: &Arc<Gateway>,
    listener: &tokio::net::TcpListener,
    tls: Option<&Arc<Tls>>,
    stop: &CancellationToken,
    open: &TaskTracker,
) {
    let pool = Pool::new(&gateway.tunnels);
    let accepting = open.token();
    let mut tidy = tokio::time::interval(TIDY);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = tidy.tick() => {
                pool.tidy();
                continue;
            }
            () = stop.cancelled() => break,
        };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors: those in use end some time.
                tracing::warn!(kind = %error.kind(), "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Only a matter of speed.
        drop(stream.set_nodelay(true));
        let from = From { address: client.ip(), inside: None };
        let visitor = Visitor { gateway: Arc::clone(gateway), pool: pool.clone(), from, stop: stop.clone() };
        let acceptor = tls.map(|tls| tls.acceptor());
        // Ends with the connection; what goes wrong on it is its own affair.
        open.spawn(async move {
            match acceptor {
                None => visitor.serve(stream).await,
                Some(acceptor) => {
                    if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                        visitor.serve(stream).await;
                    }
                }
            }
        });
    }
    drop(accepting);
    // Of all cores: the tunnels that this one carries end with it, and another's visitors may be on their way through.
    open.close();
    drop(tokio::time::timeout(DRAIN, open.wait()).await);
}

/// Whoever is at the other end of a connection.
struct Visitor {
    gateway: Arc<Gateway>,
    pool: Pool,
    from: From,
    stop: CancellationToken,
}

/// Where a connection comes from.
#[derive(Debug, Clone)]
pub(crate) struct From {
    pub(crate) address: IpAddr,
    /// From inside this workspace, by the word of its host.
    pub(crate) inside: Option<WorkspaceId>,
}

/// Serves connections from inside workspaces, until `stop`.
pub(crate) async fn inside(gateway: &Arc<Gateway>, listener: &UnixListener, stop: &CancellationToken) {
    let pool = Pool::new(&gateway.tunnels);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let Ok((mut stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (gateway, pool, stop) = (Arc::clone(gateway), pool.clone(), stop.clone());
        tokio::spawn(async move {
            let Ok(workspace) = crate::inside::greet(&mut stream).await else { return };
            let from = From { address: Ipv4Addr::LOCALHOST.into(), inside: Some(workspace) };
            Visitor { gateway, pool, from, stop }.serve(stream).await;
        });
    }
}

impl Visitor {
    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let Self { gateway, pool, from, stop } = self;
        let (begin, begun) = watch::channel(false);
        let service = service_fn(move |request| {
            begin.send_if_modified(|begun| !std::mem::replace(begun, true));
            let (gateway, pool, from) = (Arc::clone(&gateway), pool.clone(), from.clone());
            async move { Ok::<_, Infallible>(gateway.answer(&pool, request, &from).await) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS).max_buf_size(MAX_HEADERS);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(256)
            .max_header_list_size(64 << 10)
            .keep_alive_interval(HEADERS)
            .keep_alive_timeout(Duration::from_secs(20));
        let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
        tokio::select! {
            _ = connection.as_mut() => return,
            () = closing(stop, begun) => connection.as_mut().graceful_shutdown(),
        }
        drop(connection.await);
    }
}

/// Resolves when a connection is to end with the request that is under way on it. One that has just been made is about to
/// send its first.
async fn closing(stop: CancellationToken, mut begun: watch::Receiver<bool>) {
    stop.cancelled().await;
    drop(tokio::time::timeout(FIRST_REQUEST, begun.wait_for(|begun| *begun)).await);
}

/// A visitor's connection without what served it, and what was read of it already.
pub(crate) fn bare(upgraded: Upgraded) -> (Box<dyn Side>, Vec<u8>) {
    let upgraded = match auto::upgrade::downcast::<TokioIo<TcpStream>>(upgraded) {
        Ok(parts) => return (Box::new(parts.io.into_inner()), parts.read_buf.to_vec()),
        Err(upgraded) => upgraded,
    };
    match auto::upgrade::downcast::<TokioIo<TlsStream<TcpStream>>>(upgraded) {
        Ok(parts) => (Box::new(parts.io.into_inner()), parts.read_buf.to_vec()),
        Err(upgraded) => (Box::new(TokioIo::new(upgraded)), Vec::new()),
    }
}
