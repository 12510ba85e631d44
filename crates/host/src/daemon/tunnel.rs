//! Tunnels to gateways on other machines. This host dials each of them, shows a pass that the control plane signed a moment
//! ago, and connects the streams that the gateway opens, as the sockets of this machine would: to a port of a workspace,
//! or to the stream API. Both ask for their own capability.
//!
//! A tunnel that is lost is dialled again, for as long as the daemon runs: at once when the gateway ended it in good order,
//! else after a pause that grows and differs between hosts, so that a gateway that comes back is not run over. One that
//! is open needs no control plane.

use super::{dial, hub::Hub, streams};
use envforge_api::{
    client::{Client, Endpoint, Stream},
    problem::Problem,
    trust::Trust,
    tunnel::{self, Broken, Connected, NotOpened, NotTaken, Open, PassGranted},
};
use std::{io, sync::Arc, time::Duration};
use tokio::{
    net::{TcpStream, UnixStream},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

/// The gateways that a host dials.
#[derive(Debug, Clone, Default)]
pub struct Gateways {
    /// Where each listens.
    pub endpoints: Vec<Endpoint>,
    /// Whose certificates are taken from them; `None` = the machine's authorities.
    pub trust: Option<Trust>,
}

/// How long a gateway may take to take a tunnel in, and the control plane for the pass.
const PATIENCE: Duration = Duration::from_secs(10);
/// The first pause, and the longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(10)];
/// A tunnel that lasted so long was sound.
const SOUND: Duration = Duration::from_secs(5);

/// Keeps a tunnel to each gateway until `stop`.
pub(super) fn begin(hub: &Arc<Hub>, gateways: Gateways, stop: &CancellationToken) {
    for (number, endpoint) in (1_usize..).zip(gateways.endpoints) {
        let (hub, stop, trust) = (Arc::clone(hub), stop.clone(), gateways.trust.clone());
        tokio::spawn(async move {
            let gateway = Gateway { number, endpoint, trust };
            tokio::select! {
                () = stop.cancelled() => {}
                never = keep(&hub, &gateway) => match never {},
            }
        });
    }
}

struct Gateway {
    /// Its place in the order given: what logs say instead of its address.
    number: usize,
    endpoint: Endpoint,
    trust: Option<Trust>,
}

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("no pass: {}", .0.message)]
    NoPass(Problem),
    #[error("no connection ({})", .0.kind())]
    NotReached(io::Error),
    #[error("the gateway does not take it: {0}")]
    NotTaken(#[from] NotTaken),
    #[error("it does not answer")]
    Silent,
}

/// How an attempt went.
enum Went {
    /// There was no tunnel.
    Not,
    /// It was open for so long, and the gateway ended it in good order.
    Ended(Duration),
    /// It was open for so long, and broke.
    Broke(Duration),
}

async fn keep(hub: &Arc<Hub>, gateway: &Gateway) -> std::convert::Infallible {
    let client = Client::new(hub.server.clone(), Some(hub.token.clone())).with_deadline(PATIENCE);
    let (mut next, mut said) = (PAUSES[0], String::new());
    loop {
        let went = match taken(&client, gateway).await {
            Ok(connection) => {
                said.clear();
                tracing::info!(gateway = gateway.number, "the tunnel is open");
                let (begun, ends) = (Instant::now(), Arc::clone(hub));
                let ended = tunnel::serve(connection, move |what| connect(Arc::clone(&ends), what)).await;
                let lasted = begun.elapsed();
                match &ended {
                    Ok(()) => tracing::info!(gateway = gateway.number, "the tunnel has ended"),
                    Err(error) => tracing::warn!(gateway = gateway.number, %error, "the tunnel broke"),
                }
                ended.map_or_else(|_: Broken| Went::Broke(lasted), |()| Went::Ended(lasted))
            }
            Err(error) => {
                // The same once, however often it is tried.
                let why = error.to_string();
                if why != said {
                    tracing::warn!(gateway = gateway.number, reason = %why, "there is no tunnel");
                    said = why;
                }
                Went::Not
            }
        };
        let pause;
        (pause, next) = pauses(&went, next);
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..=1.0))).await;
    }
}

/// The longest pause now, and the one after it. Pure.
fn pauses(went: &Went, next: Duration) -> (Duration, Duration) {
    match went {
        Went::Ended(lasted) if *lasted >= SOUND => (Duration::ZERO, PAUSES[0]),
        Went::Broke(lasted) if *lasted >= SOUND => (PAUSES[0], PAUSES[0] * 2),
        Went::Not | Went::Ended(_) | Went::Broke(_) => (next, (next * 2).min(PAUSES[1])),
    }
}

async fn taken(client: &Client, gateway: &Gateway) -> Result<hyper::upgrade::Upgraded, Failed> {
    let pass: PassGranted = client.post("/v1/host/pass", &()).await.map_err(Failed::NoPass)?;
    let asked = async {
        let connection = gateway.endpoint.connect(gateway.trust.as_ref()).await.map_err(Failed::NotReached)?;
        Ok(tunnel::ask(connection, &pass).await?)
    };
    timeout(PATIENCE, asked).await.unwrap_or(Err(Failed::Silent))
}

/// What a stream leads to. Whoever opens it shows a capability there.
async fn connect(hub: Arc<Hub>, what: Open) -> Result<Connected<Stream>, NotOpened> {
    match what {
        Open::Dial(ask) => {
            let dialled = dial::connect(&hub, &ask).await?;
            let stream = TcpStream::from_std(dialled.socket).map_err(|_| NotOpened::NotListening)?;
            Ok((Stream::Tcp(stream), dialled.instance))
        }
        Open::Streams => {
            let stream = UnixStream::connect(streams::path(&hub)).await.map_err(|_| NotOpened::Away)?;
            Ok((Stream::Unix(stream), None))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::streams::tests::host::{Host, host};
    use envforge_api::{dial::Ask, ids::WorkspaceId, secret::Secret};
    use http_body_util::{BodyExt, Empty};
    use hyper::{Request, body::Bytes, client::conn::http1};
    use hyper_util::rt::TokioIo;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    /// A gateway, and a daemon that keeps a tunnel to it.
    async fn gateway() -> (Host, TcpListener) {
        let host = host().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let endpoints = vec![Endpoint::Http { host: "127.0.0.1".into(), port }];
        begin(&host.hub, Gateways { endpoints, trust: None }, &host.stop);
        (host, listener)
    }

    /// The next attempt: its head, and what follows it.
    async fn next(listener: &TcpListener) -> (String, TcpStream) {
        let (mut stream, _) = listener.accept().await.expect("dialled");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("a request"));
        }
        (String::from_utf8(head).expect("text"), stream)
    }

    async fn open(mut stream: TcpStream) -> tunnel::Tunnel {
        let agreed = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: envforge-tunnel/1\r\n\r\n";
        stream.write_all(agreed.as_bytes()).await.expect("sent");
        let (tunnel, driver) = tunnel::Tunnel::begin(TokioIo::new(stream)).await.expect("a tunnel");
        tokio::spawn(driver);
        tunnel
    }

    #[tokio::test]
    async fn a_gateway_that_refuses_or_is_lost_is_dialled_again_with_a_new_pass() {
        let (_host, listener) = gateway().await;
        let (first, mut stream) = next(&listener).await;
        stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await.expect("refused");
        let (second, stream) = next(&listener).await;
        drop(open(stream).await);
        let (third, stream) = next(&listener).await;
        open(stream).await.open(&Open::Streams).await.expect("it is served");
        for (number, head) in [first, second, third].iter().enumerate() {
            assert!(head.starts_with("GET /.envforge/tunnel HTTP/1.1\r\n"), "{head}");
            assert!(head.contains("host: dev.example.com\r\n"), "the gateway's own name: {head}");
            assert!(head.contains(&format!("authorization: Bearer pass-{}\r\n", number + 1)), "{head}");
        }
    }

    #[tokio::test]
    async fn streams_lead_where_the_sockets_of_the_machine_lead_and_ask_for_the_same() {
        let (host, listener) = gateway().await;
        let tunnel = open(next(&listener).await.1).await;
        let ask = |token: &str| Open::Dial(Ask::port(host.workspace.id.clone(), 3000, Secret::new(token.into())));
        assert_eq!(tunnel.open(&ask("none")).await.err(), Some(NotOpened::Refused));
        let capability = host.capability(&[envforge_api::capability::Right::Dial]);
        let token = host.key.sign(&capability).expect("signed");
        assert_eq!(tunnel.open(&ask(&token)).await.err(), Some(NotOpened::Asleep));
        let other = Open::Dial(Ask::port(WorkspaceId::generate(), 3000, Secret::new(token)));
        assert_eq!(tunnel.open(&other).await.err(), Some(NotOpened::Refused));

        for (path, status) in [("/host/v1/health".to_owned(), 200), (host.path("env?service=web"), 401)] {
            let (pipe, _) = tunnel.open(&Open::Streams).await.expect("a stream");
            let (mut sender, connection) = http1::handshake(TokioIo::new(pipe)).await.expect("HTTP");
            tokio::spawn(connection);
            let request = Request::get(path).header("host", "envforge").body(Empty::<Bytes>::new()).expect("a request");
            let response = sender.send_request(request).await.expect("an answer");
            assert_eq!(response.status(), status);
            response.into_body().collect().await.expect("whole");
        }
    }

    #[test]
    fn pauses_grow_while_nothing_lasts_and_none_is_made_after_a_good_end() {
        let mut next = PAUSES[0];
        let mut all = Vec::new();
        for _ in 0..10 {
            let pause;
            (pause, next) = pauses(&Went::Ended(Duration::ZERO), next);
            all.push(pause);
        }
        assert!(all.is_sorted() && all[0] == PAUSES[0] && all[9] == PAUSES[1], "{all:?}");
        assert_eq!(pauses(&Went::Not, PAUSES[1]), (PAUSES[1], PAUSES[1]));
        assert_eq!(pauses(&Went::Ended(SOUND), PAUSES[1]), (Duration::ZERO, PAUSES[0]));
        assert_eq!(pauses(&Went::Broke(SOUND), PAUSES[1]).0, PAUSES[0]);
    }
}
