//! Listening: one thread with a runtime of its own for each core, all on one socket; and the end of it, which loses no
//! request that was begun.

use crate::{gateway::Gateway, upstream::Pool};
use hyper::{service::service_fn, upgrade::Upgraded};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use std::{convert::Infallible, io, net::TcpListener, sync::Arc, time::Duration};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// How long a visitor may take for the headers of a request, and a connection may be idle.
const HEADERS: Duration = Duration::from_secs(75);
/// Octets of headers at most.
const MAX_HEADERS: usize = 64 << 10;
/// How long requests under way may take once the gateway stops.
const DRAIN: Duration = Duration::from_secs(10);
/// How often idle connections to services are looked through.
const TIDY: Duration = Duration::from_secs(5);

/// A visitor's connection.
type Visitor = TokioIo<TcpStream>;

/// Serves on one thread until `stop`, then finishes what was begun.
pub(crate) fn core(gateway: &Arc<Gateway>, listener: TcpListener, stop: &CancellationToken) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        accept(gateway, &listener, stop).await;
        Ok(())
    })
}

async fn accept(gateway: &Arc<Gateway>, listener: &tokio::net::TcpListener, stop: &CancellationToken) {
    let pool = Pool::default();
    let graceful = GracefulShutdown::new();
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
        let (gateway, pool) = (Arc::clone(gateway), pool.clone());
        let service = service_fn(move |request| {
            let (gateway, pool) = (Arc::clone(&gateway), pool.clone());
            async move { Ok::<_, Infallible>(gateway.answer(&pool, request, client.ip()).await) }
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
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
        let connection = graceful.watch(connection);
        // Ends with the connection; what goes wrong on it is its own affair.
        tokio::spawn(async move { drop(connection.await) });
    }
    drop(tokio::time::timeout(DRAIN, graceful.shutdown()).await);
}

/// A visitor's connection without what served it, and what was read of it already.
///
/// # Errors
/// The same when it is of another kind.
pub(crate) fn bare(upgraded: Upgraded) -> Result<(TcpStream, Vec<u8>), Upgraded> {
    let parts = auto::upgrade::downcast::<Visitor>(upgraded)?;
    Ok((parts.io.into_inner(), parts.read_buf.to_vec()))
}
