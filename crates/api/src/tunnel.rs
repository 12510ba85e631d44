//! The tunnel: one connection that a host dials to a gateway, with many streams that the gateway opens on it.
//!
//! It is HTTP/2 the other way round. The host dials, asks to change the protocol ([`PATH`], [`PROTOCOL`]) with a
//! [`Pass`] as bearer token, and is then the HTTP/2 *server* of that connection; the gateway opens each stream with
//! CONNECT and says in [`OPEN_HEADER`] what it wants. What follows in both directions are plain octets.
//!
//! Rules kept here:
//! * each stream has a window of its own and the connection's is larger than all of them together, so that one whose
//!   reader is slow holds back its own sender and nobody else;
//! * a peer that is gone is noticed by pings, on both sides, within half a minute;
//! * the host decides about every stream by the capability in it: a gateway cannot open what it has no token for.

use crate::{
    ids::{HostId, WorkspaceId},
    secret::Secret,
    sign::Statement,
    states::words,
    time::Timestamp,
};
use http_body_util::Empty;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http2::SendRequest,
    header::HeaderValue,
    service::service_fn,
    upgrade::Upgraded,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use std::{convert::Infallible, time::Duration};
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};

/// Where a gateway takes tunnels, on its base host.
pub const PATH: &str = "/.envforge/tunnel";
/// What the connection is upgraded to.
pub const PROTOCOL: &str = "envforge-tunnel/1";
/// Carries what a stream is for, as JSON.
const OPEN_HEADER: &str = "envforge-open";
/// Carries a [`NotOpened`] word.
const WHY_HEADER: &str = "envforge-why";

/// Octets in flight for a stream whose reader does not read.
const STREAM_WINDOW: u32 = 512 << 10;
/// More than [`MAX_STREAMS`] windows: the connection itself never holds a stream back.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Streams open at once.
const MAX_STREAMS: u32 = 2048;
const PING_EVERY: Duration = Duration::from_secs(15);
const PING_PATIENCE: Duration = Duration::from_secs(10);

/// What lets a host's tunnel in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Pass {
    /// The host that dials.
    pub host: HostId,
    /// Not valid from here on; a tunnel that is open stays open.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
}

impl Statement for Pass {
    const KIND: &'static [u8] = b"envforge tunnel v1";

    fn expires_at(&self) -> Timestamp {
        self.expires_at
    }
}

/// What a stream is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "open")]
pub enum Open {
    /// A connection to a port in a workspace's network.
    Dial {
        /// Which.
        workspace: WorkspaceId,
        /// The port.
        port: u16,
        /// A capability to dial.
        token: Secret,
    },
    /// The host's stream API (attach, exec, logs), which asks for its own capability.
    Streams,
}

words!(
    /// Why a stream was not opened.
    NotOpened, "refusal" {
        /// The runtime sleeps.
        Asleep = "asleep",
        /// Nothing listens there.
        NotListening = "not_listening",
        /// The capability does not allow it.
        Refused = "refused",
        /// The request is none that this host knows.
        Unknown = "unknown",
        /// The tunnel or the host is away.
        Away = "away",
    }
);

/// One stream, as octets.
pub type Pipe = TokioIo<Upgraded>;

/// The gateway's end of a tunnel. Clones share it.
#[derive(Debug, Clone)]
pub struct Tunnel {
    sender: SendRequest<Empty<Bytes>>,
}

impl Tunnel {
    /// Begins on a connection that was upgraded. The returned future drives it and ends with it; a tunnel whose driver
    /// is dropped is closed.
    ///
    /// # Errors
    /// When the host does not speak the protocol.
    pub async fn begin<I>(connection: I) -> Result<(Self, impl Future<Output = ()>), hyper::Error>
    where
        I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let (sender, driver) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_max_send_streams(MAX_STREAMS as usize)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_PATIENCE)
            .keep_alive_while_idle(true)
            .handshake(connection)
            .await?;
        // Its failure is the tunnel's end, which the host mends by dialling again.
        Ok((Self { sender }, async move { drop(driver.await) }))
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// The host's reason, or [`NotOpened::Away`].
    pub async fn open(&self, what: &Open) -> Result<Pipe, NotOpened> {
        let mut sender = self.sender.clone();
        let what = serde_json::to_vec(what).ok().and_then(|json| HeaderValue::from_bytes(&json).ok());
        let request = Request::builder().method(Method::CONNECT).uri("host:1").header(
            OPEN_HEADER,
            what.map(|mut value| {
                value.set_sensitive(true);
                value
            })
            .ok_or(NotOpened::Unknown)?,
        );
        let request = request.body(Empty::new()).map_err(|_| NotOpened::Unknown)?;
        sender.ready().await.map_err(|_| NotOpened::Away)?;
        let answer = sender.send_request(request).await.map_err(|_| NotOpened::Away)?;
        if answer.status() != StatusCode::OK {
            let why = answer.headers().get(WHY_HEADER).and_then(|why| why.to_str().ok()?.parse().ok());
            return Err(why.unwrap_or(NotOpened::Unknown));
        }
        hyper::upgrade::on(answer).await.map(TokioIo::new).map_err(|_| NotOpened::Away)
    }
}

/// The host's end: serves a connection that was upgraded until it ends. `opened` connects what a stream is for.
///
/// # Errors
/// When the connection breaks.
pub async fn serve<I, S, F>(
    connection: I,
    opened: impl Fn(Open) -> F + Clone + Send + 'static,
) -> Result<(), hyper::Error>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = Result<S, NotOpened>> + Send + 'static,
{
    let service = service_fn(move |request| answer(request, opened.clone()));
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_PATIENCE)
        .serve_connection(connection, service)
        .await
}

async fn answer<S, F>(
    request: Request<Incoming>,
    opened: impl Fn(Open) -> F,
) -> Result<Response<Empty<Bytes>>, Infallible>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = Result<S, NotOpened>>,
{
    let what = request.headers().get(OPEN_HEADER).and_then(|json| serde_json::from_slice(json.as_bytes()).ok());
    let outcome = match what {
        Some(what) if request.method() == Method::CONNECT => opened(what).await,
        Some(_) | None => Err(NotOpened::Unknown),
    };
    let mut response = Response::new(Empty::new());
    match outcome {
        Ok(mut inner) => {
            // Ends with either side of the stream, or with the tunnel.
            tokio::spawn(async move {
                if let Ok(outer) = hyper::upgrade::on(request).await {
                    drop(copy_bidirectional(&mut TokioIo::new(outer), &mut inner).await);
                }
            });
        }
        Err(why) => {
            *response.status_mut() = StatusCode::BAD_GATEWAY;
            response.headers_mut().insert(WHY_HEADER, HeaderValue::from_static(why.as_str()));
        }
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split},
        time::timeout,
    };

    /// A tunnel whose host connects every port to an echo, but refuses port 1.
    async fn tunnel() -> Tunnel {
        let (gateway, host) = duplex(64 << 10);
        tokio::spawn(serve(TokioIo::new(host), |open| async move {
            match open {
                Open::Dial { port: 1, .. } => Err(NotOpened::NotListening),
                Open::Dial { .. } => Ok(echo()),
                Open::Streams => Err(NotOpened::Refused),
            }
        }));
        let (tunnel, driver) = Tunnel::begin(TokioIo::new(gateway)).await.expect("a tunnel");
        tokio::spawn(driver);
        tunnel
    }

    fn echo() -> DuplexStream {
        let (near, far) = duplex(16 << 10);
        tokio::spawn(async move {
            let (mut read, mut write) = split(far);
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        });
        near
    }

    fn dial(port: u16) -> Open {
        Open::Dial { workspace: WorkspaceId::generate(), port, token: Secret::new("t".into()) }
    }

    #[tokio::test]
    async fn a_stream_carries_octets_both_ways_and_its_end() {
        let tunnel = tunnel().await;
        let mut pipe = tunnel.open(&dial(80)).await.expect("a stream");
        pipe.write_all(b"hello").await.expect("sent");
        pipe.shutdown().await.expect("ended");
        let mut answer = Vec::new();
        pipe.read_to_end(&mut answer).await.expect("answered");
        assert_eq!(answer, b"hello");
    }

    #[tokio::test]
    async fn a_refusal_says_why() {
        let tunnel = tunnel().await;
        assert_eq!(tunnel.open(&dial(1)).await.err(), Some(NotOpened::NotListening));
        assert_eq!(tunnel.open(&Open::Streams).await.err(), Some(NotOpened::Refused));
    }

    #[tokio::test]
    async fn a_slow_reader_never_slows_another() {
        let tunnel = tunnel().await;
        let mut stuck = Vec::new();
        for _ in 0..50 {
            let (read, mut write) = split(tunnel.open(&dial(80)).await.expect("a stream"));
            // Writes until nothing is taken any more, and never reads.
            let writer = tokio::spawn(async move { while write.write_all(&[7; 32 << 10]).await.is_ok() {} });
            stuck.push((read, writer));
        }
        let mut pipe = tunnel.open(&dial(80)).await.expect("a stream");
        let sent: Vec<u8> = (0..4_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let (mut read, mut write) = tokio::io::split(&mut pipe);
        let mut answer = vec![0; sent.len()];
        let both = async { tokio::try_join!(write.write_all(&sent), read.read_exact(&mut answer)) };
        // Only what separates "held back" from "goes on".
        timeout(Duration::from_secs(60), both).await.expect("it is held back").expect("it goes on");
        assert!(answer == sent);
        assert!(stuck.iter().all(|(_, writer)| !writer.is_finished()), "nothing holds them back");
        for (_, writer) in stuck {
            writer.abort();
        }
    }

    #[tokio::test]
    async fn a_host_that_is_gone_ends_streams_and_refuses_new_ones() {
        let (gateway, host) = duplex(64 << 10);
        let serving = tokio::spawn(serve(TokioIo::new(host), |_| async { Ok(echo()) }));
        let (tunnel, driver) = Tunnel::begin(TokioIo::new(gateway)).await.expect("a tunnel");
        tokio::spawn(driver);
        let mut pipe = tunnel.open(&dial(80)).await.expect("a stream");
        serving.abort();
        let mut rest = Vec::new();
        // A reset or an end, but no hanging.
        drop(pipe.read_to_end(&mut rest).await);
        assert_eq!(tunnel.open(&dial(80)).await.err(), Some(NotOpened::Away));
    }
}
