//! The tunnel: one connection that a host dials to a gateway, with many streams that the gateway opens on it.
//!
//! It is HTTP/2 the other way round. The host dials, asks to change the protocol ([`PATH`], [`PROTOCOL`]) with a
//! [`Pass`] as bearer token, and is then the HTTP/2 *server* of that connection; the gateway opens each stream with
//! CONNECT and says in [`OPEN_HEADER`] what it wants. What follows in both directions are plain octets.
//!
//! Rules kept here:
//! * each stream has a window of its own and the connection's is larger than all of them together, so that one whose
//!   reader is slow holds back its own sender and nobody else;
//! * a stream that either side gives up is over at once on both, however much of it is held back;
//! * a peer that is gone is noticed on both sides within half a minute, from the first octet on;
//! * when the tunnel ends, nothing of it stays;
//! * the host decides about every stream by the capability in it: a gateway cannot open what it has no token for.

mod alive;
mod gateway;
mod host;
mod pipe;

use crate::{
    dial::Ask,
    ids::{HostId, RuntimeInstanceId},
    secret::Secret,
    sign::Statement,
    states::words,
    time::Timestamp,
};
use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use std::time::Duration;

pub use gateway::Tunnel;
pub use host::{ask, serve};
pub use pipe::Pipe;

/// Where a gateway takes tunnels, on its base host.
pub const PATH: &str = "/.envforge/tunnel";
/// What the connection is upgraded to.
pub const PROTOCOL: &str = "envforge-tunnel/1";
/// Carries what a stream is for, as JSON.
const OPEN_HEADER: &str = "envforge-open";
/// Carries a [`NotOpened`] word.
const WHY_HEADER: &str = "envforge-why";
/// Carries the run of the runtime that a dialled stream leads to.
const INSTANCE_HEADER: &str = "envforge-instance";

/// Octets in flight for a stream whose reader does not read.
const STREAM_WINDOW: u32 = 512 << 10;
/// More than [`MAX_STREAMS`] windows: the connection itself never holds a stream back.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Streams open at once.
const MAX_STREAMS: u32 = 2048;
/// Octets of a stream that wait to be sent.
const SEND_BUFFER: usize = 128 << 10;
/// Longest headers of a stream, in octets.
const HEADERS: u32 = 16 << 10;
/// A side that hears nothing for so long asks whether the other one is there. Twice this and the patience are half a
/// minute.
const QUIET: Duration = Duration::from_secs(10);
/// How long the other side may take to say something.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a tunnel did not begin, or broke.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The other side does not keep to the protocol, or the connection broke.
    #[error("the other side does not speak the tunnel's protocol, or broke off: {0}")]
    Protocol(#[from] h2::Error),
    /// Nothing was heard for half a minute.
    #[error("the other side does not answer")]
    Silent,
}

/// Why a gateway was not reached, or did not take the tunnel.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// Whoever answers is no gateway, or the connection broke.
    #[error("the exchange with the gateway broke off: {0}")]
    Http(#[from] hyper::Error),
    /// It answered with this status.
    #[error("it answered with status {0}")]
    Refused(StatusCode),
    /// What is to be sent cannot be.
    #[error("the request cannot be written")]
    Unwritable,
}

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

/// Lifetime of a [`Pass`], in seconds.
pub const PASS_SECONDS: i64 = 60;

/// Answer to `POST /v1/host/pass`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PassGranted {
    /// The signed [`Pass`].
    #[schema(value_type = String)]
    pub token: Secret,
    /// When it ends.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
    /// The base host, which the host names to gateways by whatever address it dials them: `dev.example.com`.
    pub base: String,
}

/// What a stream is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "open")]
pub enum Open {
    /// A connection into a workspace, as the host's dial socket is asked for one.
    Dial(Ask),
    /// The host's stream API (attach, exec, logs), which asks for its own capability.
    Streams,
}

/// What a stream leads to, and the run of the runtime that it is of where that was told.
pub type Connected<S> = (S, Option<RuntimeInstanceId>);

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{dial::Wait, ids::WorkspaceId};
    use hyper_util::rt::TokioIo;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split},
        time::timeout,
    };

    /// A tunnel whose host connects every port to an echo, but refuses port 1.
    async fn tunnel() -> Tunnel {
        let (gateway, host) = duplex(64 << 10);
        tokio::spawn(serve(TokioIo::new(host), |open| async move {
            match open {
                Open::Dial(Ask { port: 1, .. }) => Err(NotOpened::NotListening),
                Open::Dial(_) => Ok((echo(), None)),
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
        Open::Dial(Ask::port(WorkspaceId::generate(), port, Secret::new("t".into())))
    }

    #[tokio::test]
    async fn a_stream_carries_octets_both_ways_and_its_end() {
        let tunnel = tunnel().await;
        let (mut pipe, _) = tunnel.open(&dial(80)).await.expect("a stream");
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
    async fn the_host_is_told_what_to_wait_for_and_tells_which_run_it_leads_to() {
        let instance = RuntimeInstanceId::generate();
        let (gateway, host) = duplex(64 << 10);
        let (runs, (told, mut asked)) = (instance.clone(), tokio::sync::mpsc::unbounded_channel());
        tokio::spawn(serve(TokioIo::new(host), move |open| {
            told.send(open).expect("taken");
            let instance = runs.clone();
            async move { Ok((echo(), Some(instance))) }
        }));
        let (tunnel, driver) = Tunnel::begin(TokioIo::new(gateway)).await.expect("a tunnel");
        tokio::spawn(driver);
        let ask = Ask::port(WorkspaceId::generate(), 80, Secret::new("t".into()));
        let wait = Some(Wait { generation: crate::generation::Generation(7), ms: 60_000 });
        let waits = Open::Dial(Ask { wait, ..ask });
        let (_pipe, told) = tunnel.open(&waits).await.expect("a stream");
        assert_eq!(told, Some(instance));
        assert_eq!(asked.recv().await, Some(waits));
    }

    #[tokio::test]
    async fn a_slow_reader_never_slows_another() {
        let tunnel = tunnel().await;
        let mut stuck = Vec::new();
        for _ in 0..50 {
            let (read, mut write) = split(tunnel.open(&dial(80)).await.expect("a stream").0);
            // Writes until nothing is taken any more, and never reads.
            let writer = tokio::spawn(async move { while write.write_all(&[7; 32 << 10]).await.is_ok() {} });
            stuck.push((read, writer));
        }
        let (mut pipe, _) = tunnel.open(&dial(80)).await.expect("a stream");
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
        let serving = tokio::spawn(serve(TokioIo::new(host), |_| async { Ok((echo(), None)) }));
        let (tunnel, driver) = Tunnel::begin(TokioIo::new(gateway)).await.expect("a tunnel");
        tokio::spawn(driver);
        let (mut pipe, _) = tunnel.open(&dial(80)).await.expect("a stream");
        serving.abort();
        // What is cut off does not look like an end.
        assert!(pipe.read_to_end(&mut Vec::new()).await.is_err());
        assert_eq!(tunnel.open(&dial(80)).await.err(), Some(NotOpened::Away));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_is_given_up_is_over_on_both_sides_although_its_service_reads_nothing() {
        let (gateway, host) = duplex(64 << 10);
        let (told, mut services) = tokio::sync::mpsc::unbounded_channel();
        let serving = tokio::spawn(serve(TokioIo::new(host), move |_| {
            let (near, far) = duplex(1 << 10);
            told.send(far).expect("taken");
            async { Ok((near, None)) }
        }));
        let (tunnel, driver) = Tunnel::begin(TokioIo::new(gateway)).await.expect("a tunnel");
        tokio::spawn(driver);
        let (mut pipe, _) = tunnel.open(&dial(80)).await.expect("a stream");
        let mut service = services.recv().await.expect("connected");
        let full = async { while pipe.write_all(&[7; 32 << 10]).await.is_ok() {} };
        assert!(timeout(Duration::from_secs(1), full).await.is_err(), "nothing holds it back");
        drop(pipe);
        // Nothing was read, and its connection ends nevertheless.
        let closed = async { while service.write_all(&[0]).await.is_ok() {} };
        timeout(Duration::from_secs(1), closed).await.expect("its end is noticed");
        drop(tunnel);
        let ended = timeout(Duration::from_secs(1), serving).await.expect("the tunnel ends with its last stream");
        assert!(ended.expect("no panic").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_says_anything_is_noticed_within_half_a_minute() {
        for listens in [true, false] {
            // What nobody reads does not fit: not even a ping can be sent.
            let wire = if listens { 64 << 10 } else { 64 };
            let (near, mut far) = duplex(wire);
            let serving = serve(TokioIo::new(near), |_| async { Ok((echo(), None)) });
            let ended = timeout(Duration::from_secs(30), serving).await.expect("the host notices");
            assert!(matches!(ended, Err(Broken::Silent)), "{ended:?}");
            drop(far.shutdown().await);

            let (near, far) = duplex(wire);
            let begun = async {
                if let Ok((tunnel, driver)) = Tunnel::begin(TokioIo::new(near)).await {
                    driver.await;
                    assert!(tunnel.is_closed());
                }
            };
            timeout(Duration::from_secs(30), begun).await.expect("the gateway notices");
            drop(far);
        }
    }

    #[tokio::test]
    async fn a_tunnel_whose_driver_is_dropped_is_closed_with_its_streams() {
        let (gateway, host) = duplex(64 << 10);
        let serving = tokio::spawn(serve(TokioIo::new(host), |_| async { Ok((echo(), None)) }));
        let (tunnel, driver) = Tunnel::begin(TokioIo::new(gateway)).await.expect("a tunnel");
        let driving = tokio::spawn(driver);
        let (mut pipe, _) = tunnel.open(&dial(80)).await.expect("a stream");
        driving.abort();
        assert!(pipe.read(&mut [0]).await.is_err());
        drop(serving.await.expect("no panic"));
        assert!(tunnel.is_closed());
    }
}
