//! One small HTTP client for the public API, the host protocol and the host's streams.
//!
//! It speaks HTTP/1.1 over a unix socket, TCP or TLS. Every call has a deadline, and every failure is a [`Problem`]
//! that may be shown to a person.

use crate::{
    problem::{ErrorBody, Problem, ProblemKind},
    secret::Secret,
    stream::GATEWAY_PREFIX,
    trust::Trust,
};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, body::Bytes};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fmt, io,
    path::PathBuf,
    pin::Pin,
    task,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::client::TlsStream;

/// Largest answer that is read, in octets.
const MAX_ANSWER: usize = 64 << 20;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A unix socket.
    Unix(PathBuf),
    /// Plain HTTP on a host and port.
    Http {
        /// Host name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// HTTP by TLS.
    Https {
        /// Host name or address, which the server's certificate is for.
        host: String,
        /// Port.
        port: u16,
    },
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Http { host, port } => write!(f, "http://{host}:{port}"),
            Self::Https { host, port } => write!(f, "https://{host}:{port}"),
        }
    }
}

impl std::str::FromStr for Endpoint {
    type Err = Problem;

    fn from_str(given: &str) -> Result<Self, Problem> {
        let bad = |why: &str| {
            Problem::invalid(
                format!("`{given}` is not the address of a server: {why}"),
                "write it as http://HOST:PORT, https://HOST:PORT or unix:/PATH",
            )
        };
        if let Some(path) = given.strip_prefix("unix:") {
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        let (tls, rest) = match (given.strip_prefix("http://"), given.strip_prefix("https://")) {
            (Some(rest), _) => (false, rest),
            (None, Some(rest)) => (true, rest),
            (None, None) => return Err(bad("it begins neither with http:// or https:// nor with unix:")),
        };
        let rest = rest.trim_end_matches('/');
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().map_err(|_| bad("the port is no number"))?)
            }
            Some(_) | None => (rest, if tls { 443 } else { 80 }),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || host.contains('/') {
            return Err(bad("the host is missing, or there is a path"));
        }
        let host = host.to_owned();
        Ok(if tls { Self::Https { host, port } } else { Self::Http { host, port } })
    }
}

impl Endpoint {
    /// Connects, by TLS with the authorities that are given or else the machine's.
    ///
    /// # Errors
    /// When nothing listens, or TLS is not agreed on (`InvalidData`, `UnexpectedEof`).
    pub async fn connect(&self, trust: Option<&Trust>) -> io::Result<Stream> {
        match self {
            Self::Unix(path) => UnixStream::connect(path).await.map(Stream::Unix),
            Self::Http { host, port } => tcp(host, *port).await.map(Stream::Tcp),
            Self::Https { host, port } => {
                let trust = match trust {
                    Some(trust) => trust.clone(),
                    None => Trust::of_machine()
                        .map_err(|problem| io::Error::new(io::ErrorKind::InvalidData, problem.message))?,
                };
                let stream = tcp(host, *port).await?;
                trust.agree(host, stream).await.map(|stream| Stream::Tls(Box::new(stream)))
            }
        }
    }
}

/// Names below `localhost` are this machine (RFC 6761, 6.3), which not every resolver knows.
async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let host = if host.ends_with(".localhost") { "localhost" } else { host };
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A connection of either kind.
#[derive(Debug)]
pub enum Stream {
    /// Unix.
    Unix(UnixStream),
    /// TCP.
    Tcp(TcpStream),
    /// TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> task::Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut task::Context<'_>, buf: &[u8]) -> task::Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> task::Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> task::Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A WebSocket to a host.
pub type WebSocket = tokio_tungstenite::WebSocketStream<Stream>;

/// A client of one server.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: Endpoint,
    token: Option<Secret>,
    headers: Vec<(&'static str, String)>,
    /// What it calls the server.
    authority: String,
    /// Stands before every path.
    prefix: &'static str,
    deadline: Duration,
    patience: Duration,
}

impl Client {
    /// A client with the default deadline of 30 seconds.
    #[must_use]
    pub fn new(endpoint: Endpoint, token: Option<Secret>) -> Self {
        Self {
            endpoint,
            token,
            headers: Vec::new(),
            authority: "envforge".to_owned(),
            prefix: "",
            deadline: Duration::from_secs(30),
            patience: Duration::ZERO,
        }
    }

    /// A client of whichever host a capability names, by way of the gateway at `base`, such as `https://dev.example.com`.
    ///
    /// # Errors
    /// `invalid` when that is no address.
    pub fn by_gateway(base: &str, capability: Secret) -> Result<Self, Problem> {
        let authority = base.rsplit('/').next().unwrap_or_default().to_owned();
        Ok(Self { authority, prefix: GATEWAY_PREFIX, ..Self::new(base.parse()?, Some(capability)) })
    }

    /// The same client with another deadline for each call.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The same client that goes on trying for so long while nothing listens: a part of a local installation that was
    /// killed is back in a moment. Nothing was sent by then, so that trying again is safe for every request.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The same client that sends a further header with each call.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Where it sends to.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    async fn connect(&self) -> Result<Stream, Problem> {
        let mut pause = Duration::from_millis(10);
        let begun = Instant::now();
        let attempt = async {
            loop {
                match self.endpoint.connect(None).await {
                    Err(error) if nobody_listens(&error) && begun.elapsed() < self.patience => {
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(Duration::from_millis(200));
                    }
                    outcome => return outcome,
                }
            }
        };
        match timeout(self.patience + Duration::from_secs(5).min(self.deadline), attempt).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => Err(Problem::unavailable(
                "the server does not speak TLS, or its certificate is not for that name by an authority trusted here",
                "SSL_CERT_FILE names a file of further authorities",
            )),
            Ok(Err(error)) => Err(Problem::unavailable(
                format!("cannot reach the server ({})", error.kind()),
                "`envforge local status` shows what runs; `envforge doctor` says what is missing",
            )),
            Err(_) => Err(Problem::unavailable(
                "the server does not accept connections within 5 seconds",
                "`envforge local status` shows what runs; `envforge doctor` says what is missing",
            )),
        }
    }

    /// `GET path`.
    ///
    /// # Errors
    /// The server's [`Problem`], or one of kind `unavailable`, `timeout` or `internal`.
    pub async fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A, Problem> {
        let begun = Instant::now();
        loop {
            match self.call(Method::GET, path, None::<&()>).await {
                // Looking changes nothing, so it may be done again while a part is being restarted.
                Err(problem) if problem.kind == ProblemKind::Unavailable && begun.elapsed() < self.patience => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// `POST path` with a JSON body.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post<Q: Serialize, A: DeserializeOwned>(&self, path: &str, body: &Q) -> Result<A, Problem> {
        self.call(Method::POST, path, Some(body)).await
    }

    /// Any method, with or without a JSON body.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Q>,
    ) -> Result<A, Problem> {
        let bytes = match body {
            Some(body) => Bytes::from(serde_json::to_vec(body).map_err(|e| Problem::internal(e.to_string()))?),
            None => Bytes::new(),
        };
        let (status, answer) = self.raw(method, path, bytes).await?;
        if (200..300).contains(&status) {
            let answer: &[u8] = if answer.is_empty() { b"null" } else { &answer };
            return serde_json::from_slice(answer).map_err(|error| {
                Problem::internal(format!("the server's answer to {path} could not be read: {error}"))
            });
        }
        Err(read_problem(status, &answer))
    }

    /// Sends a request and returns status and body as they came.
    ///
    /// # Errors
    /// A problem of kind `unavailable` or `timeout` when no whole answer came.
    pub async fn raw(&self, method: Method, path: &str, body: Bytes) -> Result<(u16, Bytes), Problem> {
        let stream = self.connect().await?;
        let exchange = async {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await?;
            // Ends with the exchange: the connection future finishes once the sender is dropped or the peer closes.
            let connection = tokio::spawn(connection);
            let mut request = Request::builder()
                .method(method)
                .uri(format!("{}{path}", self.prefix))
                .header("host", &self.authority)
                .header("content-type", "application/json");
            if let Some(token) = &self.token {
                request = request.header("authorization", format!("Bearer {}", token.expose()));
            }
            for (name, value) in &self.headers {
                request = request.header(*name, value);
            }
            let request = request.body(Full::new(body)).map_err(|_| Failure::Request)?;
            let answer = sender.send_request(request).await?;
            let status = answer.status().as_u16();
            let bytes =
                Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|_| Failure::Body)?.to_bytes();
            drop(sender);
            connection.abort();
            Ok::<_, Failure>((status, bytes))
        };
        match timeout(self.deadline, exchange).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(Failure::Request)) => Err(Problem::internal("a request could not be built")),
            Ok(Err(Failure::Http | Failure::Body)) => Err(Problem::unavailable(
                "the connection to the server broke before its answer was complete",
                "try again; `envforge local status` shows whether the server runs",
            )),
            Err(_) => Err(Problem::new(
                ProblemKind::Timeout,
                format!("the server did not answer within {} seconds", self.deadline.as_secs()),
                "try again; `envforge local status` shows whether the server runs",
            )),
        }
    }

    /// Opens a WebSocket at `path`.
    ///
    /// # Errors
    /// The server's [`Problem`], or one of kind `unavailable` or `timeout`.
    pub async fn websocket(&self, path: &str) -> Result<WebSocket, Problem> {
        use tokio_tungstenite::tungstenite::{Error, client::IntoClientRequest};
        let stream = self.connect().await?;
        let mut request = format!("ws://{}{}{path}", self.authority, self.prefix)
            .into_client_request()
            .map_err(|_| Problem::internal("a WebSocket request could not be built"))?;
        let headers = request.headers_mut();
        if let Some(token) = &self.token {
            let value = format!("Bearer {}", token.expose());
            let value = value.parse().map_err(|_| Problem::internal("the token has characters no header can carry"))?;
            headers.insert("authorization", value);
        }
        for (name, value) in &self.headers {
            let value = value.parse().map_err(|_| Problem::internal("a header value is not valid"))?;
            headers.insert(*name, value);
        }
        match timeout(self.deadline, tokio_tungstenite::client_async(request, stream)).await {
            Ok(Ok((socket, _))) => Ok(socket),
            Ok(Err(Error::Http(answer))) => {
                let status = answer.status().as_u16();
                Err(read_problem(status, answer.body().as_deref().unwrap_or_default()))
            }
            Ok(Err(_)) => Err(Problem::unavailable("the host closed the connection", "try again")),
            Err(_) => Err(Problem::new(ProblemKind::Timeout, "the host did not answer in time", "try again")),
        }
    }
}

fn nobody_listens(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}

enum Failure {
    Request,
    Http,
    Body,
}

impl From<hyper::Error> for Failure {
    fn from(_: hyper::Error) -> Self {
        Self::Http
    }
}

fn read_problem(status: u16, body: &[u8]) -> Problem {
    if let Ok(body) = serde_json::from_slice::<ErrorBody>(body) {
        return body.error;
    }
    let kind = match status {
        401 => ProblemKind::Unauthenticated,
        404 => ProblemKind::NotFound,
        400..=499 => ProblemKind::Invalid,
        502..=504 => ProblemKind::Unavailable,
        _ => ProblemKind::Internal,
    };
    Problem::new(kind, format!("the server answered with status {status}"), "is this an EnvForge server?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_or_refused_with_the_reason() {
        assert_eq!("http://a:80".parse(), Ok(Endpoint::Http { host: "a".into(), port: 80 }));
        assert_eq!("http://[::1]:81/".parse(), Ok(Endpoint::Http { host: "::1".into(), port: 81 }));
        assert_eq!("https://a".parse(), Ok(Endpoint::Https { host: "a".into(), port: 443 }));
        assert_eq!("unix:/x".parse(), Ok(Endpoint::Unix("/x".into())));
        for bad in ["ftp://a", "http://", "http://a/b", "http://a:x", "a:80"] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }
}
