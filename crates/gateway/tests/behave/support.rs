//! The stand-ins.

use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use envforge_api::{
    client::Endpoint,
    dev_host::{HostLabel, ProxyMode},
    dial::{self, Ask, Dialled},
    gateway::{Dial, Feed, Revoked, Route, RouteRequest, ServiceStanding, Standing, Target, WakeAnswer, WakeRequest},
    generation::Generation,
    ids::{HostId, LinkId, OrganizationId, RuntimeInstanceId, VisitId, WorkspaceId},
    link::{Family, Holder, Visit},
    secret::Secret,
    sign::SigningKey,
    states::{RuntimeState, ServiceKind, ServiceState, Stated},
    time::Timestamp,
    tunnel::NotOpened,
};
use envforge_gateway::Security;
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener},
    sync::watch,
};

/// The port that a workspace's service is said to listen on; the stand-in of the host leads elsewhere.
pub(crate) const PORT: u16 = 3000;

/// What the stand-in of the control plane says.
#[derive(Clone)]
pub(crate) struct Says {
    pub(crate) state: RuntimeState,
    pub(crate) revoked: Vec<Revoked>,
    seq: u64,
}

/// Everything around one gateway.
pub(crate) struct Around {
    pub(crate) key: SigningKey,
    pub(crate) workspace: WorkspaceId,
    pub(crate) organization: OrganizationId,
    pub(crate) instance: RuntimeInstanceId,
    pub(crate) host: HostId,
    pub(crate) label: HostLabel,
    pub(crate) says: watch::Sender<Says>,
    /// Calls of the control plane beside the feed.
    pub(crate) routes: AtomicUsize,
    pub(crate) wakes: AtomicUsize,
    scheme: &'static str,
    dial: String,
    dir: tempfile::TempDir,
}

/// One gateway with what is around it.
pub(crate) struct Gateway {
    pub(crate) around: Arc<Around>,
    pub(crate) address: SocketAddr,
}

impl Gateway {
    /// One that leads to `service`.
    pub(crate) async fn start(service: SocketAddr) -> Self {
        Self::start_with(service, Security::Plain).await
    }

    /// The same with something else between it and its visitors.
    pub(crate) async fn start_with(service: SocketAddr, security: Security) -> Self {
        Self::start_on(Some(service), security).await
    }

    /// One whose host is on another machine.
    pub(crate) async fn far_from_its_host(security: Security) -> Self {
        Self::start_on(None, security).await
    }

    async fn start_on(service: Option<SocketAddr>, security: Security) -> Self {
        let scheme = if matches!(security, Security::Plain) { "http" } else { "https" };
        let dir = tempfile::tempdir().expect("a directory");
        let dial = dir.path().join("dial.sock");
        if let Some(service) = service {
            let host = UnixListener::bind(&dial).expect("a socket");
            tokio::spawn(async move {
                while let Ok((stream, _)) = host.accept().await {
                    tokio::spawn(async move {
                        let Ok(ask) = dial::asked::<Ask>(&stream).await else { return };
                        let outcome = if ask.port == PORT { connect(service).await } else { Err(NotOpened::Refused) };
                        drop(dial::answer(&stream, outcome).await);
                    });
                }
            });
        }
        let around = Arc::new(Around {
            key: SigningKey::generate().expect("a key"),
            workspace: WorkspaceId::generate(),
            organization: OrganizationId::generate(),
            instance: RuntimeInstanceId::generate(),
            host: HostId::generate(),
            label: "web--w--local".parse().expect("a label"),
            says: watch::Sender::new(Says { state: RuntimeState::Awake, revoked: vec![], seq: 1 }),
            routes: AtomicUsize::new(0),
            wakes: AtomicUsize::new(0),
            scheme,
            dial: dial.to_string_lossy().into_owned(),
            dir,
        });
        let control = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let server = Endpoint::Http { host: "127.0.0.1".into(), port: control.local_addr().expect("bound").port() };
        let app = Router::new()
            .route("/v1/gateway/feed", get(feed))
            .route("/v1/gateway/routes", post(route))
            .route("/v1/gateway/wakes", post(wake))
            .route("/v1/gateway/activity", post(|| async { Json(()) }))
            .with_state(Arc::clone(&around));
        tokio::spawn(async move { axum::serve(control, app).await });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let options =
            envforge_gateway::Options { server, token: Secret::new("token".into()), listener, security, inside: None };
        let (say, mut said) = watch::channel(false);
        tokio::spawn(envforge_gateway::main(options, move |_| {
            say.send_replace(true);
        }));
        said.wait_for(|ready| *ready).await.expect("it becomes ready");
        Self { around, address }
    }

    /// `web--w--local.dev.localhost`, whatever the port.
    pub(crate) fn host(&self) -> String {
        format!("{}.dev.localhost", self.around.label)
    }

    /// A visit as the control plane would sign it.
    pub(crate) fn visit(&self) -> Visit {
        Visit {
            id: VisitId::generate(),
            holder: Holder::Link(LinkId::generate()),
            user: "link:x".into(),
            organization: self.around.organization.clone(),
            workspace: self.around.workspace.clone(),
            service: "web".parse().expect("a service"),
            host: self.around.label.clone(),
            families: Family::ALL.iter().copied().collect(),
            expires_at: Timestamp::now() + jiff::SignedDuration::from_secs(3600),
        }
    }

    /// Its token.
    pub(crate) fn signed(&self, visit: &Visit) -> String {
        self.around.key.sign(visit).expect("signed")
    }

    /// The header of a visitor who is let in.
    pub(crate) fn cookie(&self) -> String {
        format!("envforge={}", self.signed(&self.visit()))
    }

    /// The head of a request of such a visitor, with more headers.
    pub(crate) fn head(&self, line: &str, more: &str) -> String {
        format!("{line} HTTP/1.1\r\nhost: {}\r\ncookie: {}\r\n{more}\r\n", self.host(), self.cookie())
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("connected")
    }

    /// Sends octets and reads until the other side ends it.
    pub(crate) async fn exchange(&self, octets: &[u8]) -> String {
        let mut stream = self.connect().await;
        stream.write_all(octets).await.expect("sent");
        read_to_end(&mut stream).await
    }

    pub(crate) fn tell(&self, change: impl FnOnce(&mut Says)) {
        self.around.says.send_modify(|says| {
            says.seq += 1;
            change(says);
        });
    }
}

impl Drop for Around {
    fn drop(&mut self) {
        // The directory goes with it; named so that it is seen to be kept until then.
        let _ = self.dir.path();
    }
}

/// Everything until the end or a reset, within what separates slow from never.
pub(crate) async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut octets = Vec::new();
    let read = async {
        let mut chunk = [0; 16 << 10];
        while let Ok(read @ 1..) = stream.read(&mut chunk).await {
            octets.extend_from_slice(&chunk[..read]);
        }
    };
    tokio::time::timeout(Duration::from_secs(60), read).await.expect("it ends");
    String::from_utf8_lossy(&octets).into_owned()
}

async fn connect(service: SocketAddr) -> Result<Dialled, NotOpened> {
    let stream = TcpStream::connect(service).await.map_err(|_| NotOpened::NotListening)?;
    Ok(Dialled { socket: stream.into_std().map_err(|_| NotOpened::NotListening)?, instance: None })
}

/// A service whose connections `behave` is given, each with its number.
pub(crate) async fn service<F>(behave: impl Fn(usize, TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        for number in 0.. {
            let Ok((stream, _)) = listener.accept().await else { return };
            tokio::spawn(behave(number, stream));
        }
    });
    address
}

/// Reads the head of a request; `None` when the connection ends before.
pub(crate) async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

/// A service that agrees to a socket and says back what it is sent.
pub(crate) async fn echo() -> SocketAddr {
    service(|_, mut stream| async move {
        read_head(&mut stream).await.expect("a request");
        let agreed = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        stream.write_all(agreed).await.expect("sent");
        let (mut read, mut write) = stream.split();
        drop(tokio::io::copy(&mut read, &mut write).await);
    })
    .await
}

/// A service that answers every request with what it was sent.
pub(crate) async fn mirror() -> SocketAddr {
    service(|_, mut stream| async move {
        while let Some(head) = read_head(&mut stream).await {
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}", head.len());
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await
}

async fn feed(State(around): State<Arc<Around>>, Query(query): Query<HashMap<String, String>>) -> Json<Feed> {
    let since: u64 = query.get("since").and_then(|since| since.parse().ok()).unwrap_or(0);
    let mut says = around.says.subscribe();
    let parked = says.wait_for(|says| says.seq > since);
    drop(tokio::time::timeout(Duration::from_secs(5), parked).await);
    let says = around.says.borrow().clone();
    let now = Timestamp::now();
    let awake = says.state == RuntimeState::Awake;
    let service = if awake { ServiceState::Healthy } else { ServiceState::Stopped };
    Json(Feed {
        seq: says.seq,
        whole: since == 0,
        base: "dev.localhost".into(),
        scheme: around.scheme.into(),
        keys: vec![around.key.verify_key()],
        revoked: says.revoked,
        workspaces: vec![Standing {
            workspace: around.workspace.clone(),
            present: true,
            generation: Generation(1),
            runtime: Stated::plain(says.state, now),
            instance: awake.then(|| around.instance.clone()),
            services: vec![ServiceStanding {
                name: "web".into(),
                kind: ServiceKind::Service,
                stated: Stated::plain(service, now),
            }],
            routes: 7,
        }],
    })
}

async fn route(State(around): State<Arc<Around>>, Json(request): Json<RouteRequest>) -> Response {
    around.routes.fetch_add(1, Ordering::SeqCst);
    if request.workspace != around.workspace {
        return StatusCode::NOT_FOUND.into_response();
    }
    Json(Route {
        origin: format!("http://{}.dev.localhost", request.host),
        host: request.host,
        workspace: request.workspace,
        slug: "w".parse().expect("a slug"),
        organization: around.organization.clone(),
        version: 7,
        target: Target {
            service: "web".parse().expect("a service"),
            port: Some(PORT),
            proxy: ProxyMode::Localhost,
            families: vec![],
        },
        bindings: vec![],
        dial: Dial {
            host: around.host.clone(),
            socket: Some(around.dial.clone()),
            token: Secret::new("a capability".into()),
            expires_at: Timestamp::now() + jiff::SignedDuration::from_secs(3600),
        },
    })
    .into_response()
}

async fn wake(State(around): State<Arc<Around>>, Json(_): Json<WakeRequest>) -> Json<WakeAnswer> {
    around.wakes.fetch_add(1, Ordering::SeqCst);
    Json(WakeAnswer::Asked { generation: Generation(1) })
}
