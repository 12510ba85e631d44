//! Health checks of one process. The supervisor lives in the workspace's network, so `localhost` is the workspace's.

use crate::system::{enter::Entry, spawn::Stream};
use envforge_manifest::{Probe, ResolvedHealth};
use http_body_util::Empty;
use hyper::{Request, body::Bytes};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

/// Shortest pause between checks of a starting process; it grows until the declared interval or [`SLOWEST_START`]. Timers
/// here end with a millisecond of the clock: one of a whole millisecond would take one and a half, and this one takes half.
pub const FIRST_PAUSE: Duration = Duration::from_micros(100);
/// Longest pause between checks of a starting process.
pub const SLOWEST_START: Duration = Duration::from_millis(100);

/// One check: done, or why not.
pub async fn check(health: &ResolvedHealth, entry: &Entry, env: &BTreeMap<String, String>) -> Result<(), String> {
    let limit = Duration::from_millis(health.check.timeout_ms);
    let attempt = async {
        match (&health.check.probe, health.port) {
            (Probe::Http { path, .. }, Some(port)) => either(port, |address| http(address, path.clone())).await,
            (Probe::Tcp { .. }, Some(port)) => either(port, tcp).await,
            (Probe::Command { command }, _) => run(command, entry, env).await,
            (Probe::Http { .. } | Probe::Tcp { .. }, None) => Err("its port is not known".into()),
        }
    };
    match timeout(limit, attempt).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("no answer within {} ms", limit.as_millis())),
    }
}

/// Checks until the process's group is empty: tightly until it is healthy, then at its interval. Only news is told, and
/// every failure: those are counted.
pub async fn keep_checking(
    health: ResolvedHealth,
    entry: Entry,
    environment: BTreeMap<String, String>,
    tell: impl Fn(Result<(), String>),
) {
    let interval = Duration::from_millis(health.check.interval_ms);
    let by_command = matches!(health.check.probe, Probe::Command { .. });
    let begun = Instant::now();
    let (mut healthy, mut said) = (false, None);
    loop {
        // A command is a process of its own: tight checks would compete with the start that they wait for.
        let pause = match (healthy, by_command) {
            (true, _) => interval,
            (false, true) => SLOWEST_START.min(interval),
            (false, false) => next_pause(begun.elapsed(), interval),
        };
        sleep(pause).await;
        if entry.group.is_empty() {
            return;
        }
        let outcome = check(&health, &entry, &environment).await;
        healthy |= outcome.is_ok();
        if outcome.is_err() || said.as_ref() != Some(&outcome) {
            tell(outcome.clone());
        }
        said = Some(outcome);
    }
}

/// A development server may listen on one of the two loopback addresses only.
async fn either<F: Future<Output = Result<(), String>>>(
    port: u16,
    attempt: impl Fn(SocketAddr) -> F,
) -> Result<(), String> {
    let four = attempt(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    let six = attempt(SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), port));
    match tokio::join!(four, six) {
        (Ok(()), _) | (_, Ok(())) => Ok(()),
        // The one that got furthest says why: a refused connection tells less than an answer.
        (Err(four), Err(six)) if four.starts_with("nothing listens") => Err(six),
        (Err(four), Err(_)) => Err(four),
    }
}

async fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    TcpStream::connect(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::ConnectionRefused => format!("nothing listens on port {}", address.port()),
        _ => format!("port {}: {}", address.port(), error.kind()),
    })
}

async fn tcp(address: SocketAddr) -> Result<(), String> {
    connect(address).await.map(drop)
}

async fn http(address: SocketAddr, path: String) -> Result<(), String> {
    let stream = connect(address).await?;
    let broken = |_| format!("port {} does not speak HTTP", address.port());
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.map_err(broken)?;
    let request = Request::get(&path)
        .header("host", format!("localhost:{}", address.port()))
        .header("connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|_| format!("`{path}` is no path"))?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(broken)?;
        match answer.status().as_u16() {
            ..400 => Ok(()),
            status => Err(format!("GET {path} answers with status {status}")),
        }
    };
    // The connection has to be driven while the answer is awaited; when it breaks, the exchange says so.
    let drive = async {
        let _ = connection.await;
        std::future::pending::<std::convert::Infallible>().await
    };
    tokio::select! {
        outcome = exchange => outcome,
        never = drive => match never {},
    }
}

async fn run(command: &str, entry: &Entry, env: &BTreeMap<String, String>) -> Result<(), String> {
    let argv = ["/bin/sh".to_owned(), "-c".to_owned(), command.to_owned()];
    let streams = [Stream::Null, Stream::Null, Stream::Null];
    let mut process = entry.start(&argv, env, streams, true).map_err(|e| e.to_string())?;
    let ended = process.wait().await.map_err(|e| format!("cannot be waited for: {}", e.kind()))?;
    if ended.success() { Ok(()) } else { Err(format!("the health command ended with {ended}")) }
}

/// The pause before the next check of a process that has been starting for so long: no start is noticed more than a
/// fiftieth later than it could be, or [`SLOWEST_START`].
#[must_use]
pub fn next_pause(starting: Duration, interval: Duration) -> Duration {
    (starting / 50).clamp(FIRST_PAUSE, SLOWEST_START).min(interval)
}
