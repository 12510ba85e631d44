//! A host to test with, and what its callers say and hear.

use crate::{
    daemon::{
        hub::{Hub, Workspace},
        ledger::Ledger,
        streams::{serve, serve_workspace},
    },
    supervise::{logs, redact::Redactor},
    system::{
        accounts,
        installation::{Installation, Isolation},
    },
};
use axum::{
    Json,
    extract::Request,
    http::HeaderMap,
    routing::{any, post},
};
use envforge_api::{
    capability::{Capability, Right, SigningKey},
    client::{Client, Endpoint, WebSocket},
    host::WorkspaceIntent,
    ids::{AttachId, HostId, PrincipalId, WorkspaceId},
    problem::Problem,
    secret::Secret,
    stream::{Control, LogLevel, LogQuery, channel},
    time::Timestamp,
    tunnel::PassGranted,
};
use futures_util::{SinkExt, StreamExt};
use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

/// A host with one workspace, both sockets and a control plane that tells what it was asked.
pub(in crate::daemon) struct Host {
    pub(in crate::daemon) hub: Arc<Hub>,
    pub(in crate::daemon) workspace: Arc<Workspace>,
    pub(in crate::daemon) key: SigningKey,
    pub(in crate::daemon) stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub(in crate::daemon) fn intent() -> WorkspaceIntent {
    let intent = serde_json::json!({
        "workspace": WorkspaceId::generate(), "generation": 1, "slug": "links", "project": "shop",
        "organization": "acme", "owner": "ada", "branch": "main", "shell": "ready",
        "runtime": { "state": "asleep", "reason": "new" }, "revision": 1,
        "spec": { "project": "shop", "services": [{ "name": "web", "repo": "/srv/web.git" }] }, "urls": {},
    });
    serde_json::from_value(intent).expect("an intent")
}

pub(in crate::daemon) async fn host() -> Host {
    let dir = tempfile::tempdir().expect("directory");
    let home = dir.path().to_owned();
    fs::create_dir_all(home.join("host")).expect("mkdir");
    fs::create_dir_all(home.join("run/w3/in")).expect("mkdir");
    let installation = Installation {
        id: "00000000".into(),
        run: home.join("run"),
        isolation: Isolation::UserNamespaces,
        first_uid: 0,
        capacity: 10,
        subnet: std::net::Ipv4Addr::UNSPECIFIED,
        home,
    };
    let control = installation.home.join("control.sock");
    let listener = tokio::net::UnixListener::bind(&control).expect("bind");
    let told = async |headers: HeaderMap, request: Request| {
        let header = |name: &str| headers.get(name).map(|v| v.to_str().expect("text").to_owned()).unwrap_or_default();
        let (token, workspace) = (header("authorization"), header("x-envforge-workspace"));
        format!("{} {} {token} {workspace} {}", request.method(), request.uri(), header("x-other"))
    };
    let passes = Arc::new(AtomicUsize::new(0));
    let pass = async move || {
        let token = Secret::new(format!("pass-{}", passes.fetch_add(1, Ordering::SeqCst) + 1));
        Json(PassGranted { token, expires_at: Timestamp::now(), base: "dev.example.com".into() })
    };
    let router = axum::Router::new().route("/v1/host/pass", post(pass)).fallback(any(told));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let (ledger, _) = Ledger::open(&installation.home).expect("ledger");
    let token = Secret::new("host-token".into());
    let hub = Arc::new(Hub::new(installation, accounts::own(), ledger, Endpoint::Unix(control), token));
    let workspace = Arc::new(Workspace::new(3, intent()));
    hub.insert(Arc::clone(&workspace));
    let key = SigningKey::generate().expect("key");
    hub.host.send_replace(Some(HostId::generate()));
    hub.keys.send_replace(vec![key.verify_key()]);
    let stop = CancellationToken::new();
    tokio::spawn(serve(Arc::clone(&hub), stop.clone()));
    tokio::spawn(serve_workspace(Arc::clone(&hub), Arc::clone(&workspace), stop.clone()));
    let host = Host { hub, workspace, key, stop, _dir: dir };
    for client in [host.outside(None), host.inside()] {
        while client.get::<serde_json::Value>("/host/v1/health").await.is_err() {
            tokio::task::yield_now().await;
        }
    }
    host
}

impl Host {
    pub(in crate::daemon) fn capability(&self, rights: &[Right]) -> Capability {
        Capability {
            host: self.hub.host.borrow().clone().expect("registered"),
            workspace: self.workspace.id.clone(),
            principal: PrincipalId::generate(),
            principal_name: "ada".into(),
            session: AttachId::generate(),
            rights: rights.iter().copied().collect(),
            service: None,
            expires_at: Timestamp::now() + Duration::from_secs(3600),
        }
    }

    pub(in crate::daemon) fn revoke(&self, capability: &Capability) {
        self.hub.revoked.send_modify(|revoked| revoked.extend([capability.session.clone()]));
    }

    pub(in crate::daemon) fn outside(&self, capability: Option<&Capability>) -> Client {
        let token = capability.map(|capability| Secret::new(self.key.sign(capability).expect("signed")));
        Client::new(Endpoint::Unix(self.hub.installation.run.join("host.sock")), token)
    }

    pub(in crate::daemon) fn inside(&self) -> Client {
        Client::new(Endpoint::Unix(self.hub.installation.run.join("w3/in/host.sock")), None)
    }

    pub(in crate::daemon) fn path(&self, rest: &str) -> String {
        format!("/host/v1/workspaces/{}/{rest}", self.workspace.id)
    }

    pub(in crate::daemon) async fn logs(&self, client: &Client, query: LogQuery) -> WebSocket {
        let mut socket = client.websocket(&self.path("logs")).await.expect("admitted");
        say(&mut socket, &Control::Logs(query)).await;
        socket
    }

    pub(in crate::daemon) fn write_log(&self, message: &str) {
        let dir = self.hub.installation.workspace_dir(&self.workspace.id).join("logs");
        fs::create_dir_all(&dir).expect("mkdir");
        logs::Logs::new(dir, Redactor::default()).write("web", LogLevel::Info, message);
    }
}

pub(in crate::daemon) async fn say(socket: &mut WebSocket, control: &Control) {
    let mut message = vec![channel::CONTROL];
    message.extend(serde_json::to_vec(control).expect("json"));
    socket.send(Message::binary(message)).await.expect("sent");
}

/// The next message: its channel and text.
pub(in crate::daemon) async fn hear(socket: &mut WebSocket) -> (u8, String) {
    loop {
        let message = tokio::time::timeout(Duration::from_secs(20), socket.next()).await.expect("in time");
        match message.expect("a message").expect("readable") {
            Message::Binary(bytes) => return (bytes[0], String::from_utf8(bytes[1..].to_vec()).expect("text")),
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

pub(in crate::daemon) async fn control(socket: &mut WebSocket) -> Control {
    let (of, text) = hear(socket).await;
    assert_eq!(of, channel::CONTROL, "{text}");
    serde_json::from_str(&text).expect("a control message")
}

pub(in crate::daemon) async fn failed(socket: &mut WebSocket) -> Problem {
    match control(socket).await {
        Control::Failed { problem } => problem,
        other => panic!("{other:?}"),
    }
}
