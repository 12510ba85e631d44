//! A host on another machine: nothing of it is here but its tunnel.

use crate::{
    support::{Gateway, PORT, echo, mirror, read_head, read_to_end, service},
    tls::{certificate, first_line, visit},
};
use envforge_api::{
    capability::{Capability, Right},
    client::{Client, Endpoint, Stream},
    dial::Ask,
    gateway::Revoked,
    ids::{AttachId, HostId, PrincipalId, RuntimeInstanceId},
    problem::ProblemKind,
    secret::Secret,
    sign::{SigningKey, Statement},
    states::RuntimeState,
    time::Timestamp,
    trust::Trust,
    tunnel::{self, Connected, NotOpened, NotTaken, Open, Pass, PassGranted},
};
use envforge_gateway::Security;
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, watch},
    task::JoinHandle,
};

fn in_a_minute() -> Timestamp {
    Timestamp::now() + jiff::SignedDuration::from_secs(60)
}

fn granted(key: &SigningKey, statement: &impl Statement) -> PassGranted {
    let token = Secret::new(key.sign(statement).expect("signed"));
    PassGranted { token, expires_at: statement.expires_at(), base: "dev.localhost".into() }
}

/// A host, as far as a gateway sees it.
struct Elsewhere {
    host: HostId,
    trust: Option<Trust>,
    secure: bool,
}

impl Elsewhere {
    /// The host that the gateway's one workspace is on.
    fn of(gateway: &Gateway) -> Self {
        Self { host: gateway.around.host.clone(), trust: None, secure: false }
    }

    fn pass(&self, gateway: &Gateway) -> PassGranted {
        granted(&gateway.around.key, &Pass { host: self.host.clone(), expires_at: in_a_minute() })
    }

    /// Dials and serves every stream with `opened`, until it is aborted.
    async fn dials<F>(&self, gateway: &Gateway, opened: impl Fn(Open) -> F + Send + 'static) -> JoinHandle<()>
    where
        F: Future<Output = Result<Connected<Stream>, NotOpened>> + Send + 'static,
    {
        let (host, port) = ("dev.localhost".to_owned(), gateway.address.port());
        let endpoint = if self.secure { Endpoint::Https { host, port } } else { Endpoint::Http { host, port } };
        let connection = endpoint.connect(self.trust.as_ref()).await.expect("connected");
        let taken = tunnel::ask(connection, &self.pass(gateway)).await.expect("taken");
        tokio::spawn(async move { drop(tunnel::serve(taken, opened).await) })
    }

    /// The same with one service behind it.
    async fn leads_to(&self, gateway: &Gateway, service: SocketAddr) -> JoinHandle<()> {
        self.dials(gateway, move |what| to_service(what, service, None)).await
    }
}

async fn to_service(
    what: Open,
    service: SocketAddr,
    instance: Option<RuntimeInstanceId>,
) -> Result<Connected<Stream>, NotOpened> {
    let Open::Dial(Ask { port: PORT, .. }) = what else { return Err(NotOpened::Refused) };
    let stream = TcpStream::connect(service).await.map_err(|_| NotOpened::NotListening)?;
    Ok((Stream::Tcp(stream), instance))
}

/// A service that says its name.
async fn named(name: &'static str) -> SocketAddr {
    service(move |_, mut stream| async move {
        while read_head(&mut stream).await.is_some() {
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
            stream.write_all(answer.as_bytes()).await.expect("sent");
        }
    })
    .await
}

async fn ask(gateway: &Gateway) -> String {
    gateway.exchange(gateway.head("GET /", "connection: close\r\n").as_bytes()).await
}

/// A socket that is open, with what says who opened it.
async fn socket(gateway: &Gateway) -> (TcpStream, envforge_api::link::Visit) {
    let visit = gateway.visit();
    let request = format!(
        "GET /ws HTTP/1.1\r\nhost: {0}\r\norigin: http://{0}\r\ncookie: envforge={1}\r\nconnection: upgrade\r\n\
         upgrade: websocket\r\n\r\n",
        gateway.host(),
        gateway.signed(&visit)
    );
    let mut stream = gateway.connect().await;
    stream.write_all(request.as_bytes()).await.expect("sent");
    let head = read_head(&mut stream).await.expect("an answer");
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    (stream, visit)
}

async fn says_back(stream: &mut TcpStream, word: &[u8]) {
    stream.write_all(word).await.expect("sent");
    let mut heard = vec![0; word.len()];
    stream.read_exact(&mut heard).await.expect("said back");
    assert_eq!(heard, word);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_go_through_the_tunnel_of_a_host_elsewhere_and_show_it_the_capability() {
    let gateway = Gateway::far_from_its_host(Security::Plain).await;
    let (told, mut asked) = mpsc::unbounded_channel();
    let mirror = mirror().await;
    let host = Elsewhere::of(&gateway);
    let _serving = host
        .dials(&gateway, move |what| {
            told.send(what.clone()).expect("taken");
            to_service(what, mirror, None)
        })
        .await;
    // Another host's tunnel is none of its business.
    let other = Elsewhere { host: HostId::generate(), ..Elsewhere::of(&gateway) };
    let _other = other.dials(&gateway, |_| async { panic!("of another host") }).await;
    for _ in 0..3 {
        let answer = ask(&gateway).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("host: localhost:3000"), "{answer}");
    }
    let token = Secret::new("a capability".into());
    assert_eq!(asked.recv().await, Some(Open::Dial(Ask::port(gateway.around.workspace.clone(), PORT, token))));
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_go_through_it_and_a_revocation_cuts_them() {
    let gateway = Gateway::far_from_its_host(Security::Plain).await;
    let _serving = Elsewhere::of(&gateway).leads_to(&gateway, echo().await).await;
    let ((mut one, visit), (mut two, _)) = (socket(&gateway).await, socket(&gateway).await);
    let much: Vec<u8> = (0..100_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    says_back(&mut one, &much).await;
    says_back(&mut two, b"two").await;
    gateway.tell(|says| says.revoked.push(Revoked { holder: visit.holder, until: in_a_minute() }));
    assert_eq!(read_to_end(&mut one).await, "");
    says_back(&mut two, b"nobody else's").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_held_for_a_wake_until_the_host_says_that_it_is_ready() {
    let gateway = Gateway::far_from_its_host(Security::Plain).await;
    gateway.tell(|says| says.state = RuntimeState::Waking);
    let (told, mut asked) = mpsc::unbounded_channel();
    let (ready, is_ready) = watch::channel(false);
    let (mirror, instance) = (mirror().await, gateway.around.instance.clone());
    let serving = Elsewhere::of(&gateway)
        .dials(&gateway, move |what| {
            let (told, instance, mut is_ready) = (told.clone(), instance.clone(), is_ready.clone());
            async move {
                let Open::Dial(Ask { wait, .. }) = &what else { return Err(NotOpened::Refused) };
                told.send(*wait).expect("taken");
                drop(is_ready.wait_for(|ready| *ready).await);
                to_service(what, mirror, Some(instance)).await
            }
        })
        .await;
    let (answer, ()) = tokio::join!(ask(&gateway), async {
        let wait = asked.recv().await.expect("dialled").expect("it waits");
        assert_eq!(wait.generation.0, 1);
        // The feed never says so.
        ready.send_replace(true);
    });
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_waits_for_a_tunnel_that_was_lost_and_is_dialled_again() {
    let gateway = Gateway::far_from_its_host(Security::Plain).await;
    let host = Elsewhere::of(&gateway);
    let serving = host.leads_to(&gateway, named("before").await).await;
    assert!(ask(&gateway).await.ends_with("before"));
    serving.abort();
    drop(serving.await);
    let after = named("after").await;
    let mut answer = std::pin::pin!(ask(&gateway));
    let early = tokio::time::timeout(Duration::from_millis(200), &mut answer).await;
    assert!(early.is_err(), "it was answered without a host: {early:?}");
    let _serving = host.leads_to(&gateway, after).await;
    let answer = answer.await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("after"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_tunnels_of_one_host_the_newest_is_used_and_the_others_go_on() {
    let gateway = Gateway::far_from_its_host(Security::Plain).await;
    let host = Elsewhere::of(&gateway);
    let first = host.leads_to(&gateway, echo().await).await;
    let (mut open, _) = socket(&gateway).await;
    let second = host.leads_to(&gateway, named("second").await).await;
    assert!(ask(&gateway).await.ends_with("second"));
    says_back(&mut open, b"goes on").await;
    second.abort();
    drop(second.await);
    // What is left of the first is used again.
    let again = async {
        loop {
            let mut stream = gateway.connect().await;
            let request = gateway.head("GET /ws", "");
            stream.write_all(request.as_bytes()).await.expect("sent");
            let head = read_head(&mut stream).await.expect("an answer");
            if !head.starts_with("HTTP/1.1 200") {
                return head;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), again).await.expect("the second is gone");
    says_back(&mut open, b"still").await;
    first.abort();
    drop(first.await);
    assert_eq!(read_to_end(&mut open).await, "", "what is open ends with its tunnel");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_host_with_a_pass_that_is_valid_now_is_taken_in() {
    let gateway = Gateway::far_from_its_host(Security::Plain).await;
    let (key, host) = (&gateway.around.key, gateway.around.host.clone());
    let other = SigningKey::generate().expect("a key");
    let valid = Pass { host: host.clone(), expires_at: in_a_minute() };
    let expired = Pass { host, expires_at: Timestamp::now() - jiff::SignedDuration::from_secs(1) };
    let wrong = [granted(&other, &valid), granted(key, &expired), granted(key, &gateway.visit())];
    for pass in wrong {
        let refused = tunnel::ask(gateway.connect().await, &pass).await.expect_err("refused");
        assert!(matches!(refused, NotTaken::Refused(status) if status == 404), "{refused}");
    }
    let on_a_dev_host = PassGranted { base: gateway.host(), ..granted(key, &valid) };
    tunnel::ask(gateway.connect().await, &on_a_dev_host).await.expect_err("not there");

    let token = granted(key, &valid).token;
    let head = |more: &str| {
        let token = token.expose();
        format!("GET /.envforge/tunnel HTTP/1.1\r\nhost: dev.localhost\r\nauthorization: Bearer {token}\r\n{more}\r\n")
    };
    let upgrade = "connection: upgrade\r\nupgrade: envforge-tunnel/1\r\n";
    for more in [
        "connection: close\r\n".to_owned(),
        "connection: upgrade, close\r\nupgrade: websocket\r\n".to_owned(),
        format!("{upgrade}origin: http://web--w--local.dev.localhost\r\n"),
        format!("{upgrade}sec-fetch-site: same-site\r\n"),
    ] {
        let mut stream = gateway.connect().await;
        stream.write_all(head(&more).as_bytes()).await.expect("sent");
        let answer = read_head(&mut stream).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 404"), "{more}: {answer}");
    }
    let mut stream = gateway.connect().await;
    stream.write_all(head(upgrade).as_bytes()).await.expect("sent");
    let answer = read_head(&mut stream).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 101"), "the same without any of that: {answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_goes_by_tls_where_the_gateway_speaks_it_and_its_authority_is_trusted() {
    let dir = tempfile::tempdir().expect("a directory");
    let (files, trusted) = certificate(dir.path());
    let root = files.certificate.clone();
    let gateway = Gateway::far_from_its_host(Security::Files(files)).await;
    let port = gateway.address.port();
    let endpoint = Endpoint::Https { host: "dev.localhost".into(), port };
    let other = tempfile::tempdir().expect("a directory");
    let (stranger, _) = certificate(other.path());
    let stranger = Trust::with_root(&stranger.certificate).expect("a root");
    assert!(endpoint.connect(Some(&stranger)).await.is_err(), "by an authority that is not trusted");
    let trust = Some(Trust::with_root(&root).expect("a root"));
    let host = Elsewhere { trust, secure: true, ..Elsewhere::of(&gateway) };
    let _serving = host.leads_to(&gateway, mirror().await).await;
    let mut visitor = visit(&gateway, &trusted, &["http/1.1"]).await.expect("agreed");
    let cookie = gateway.signed(&gateway.visit());
    let request = format!("GET / HTTP/1.1\r\nhost: {}\r\ncookie: __Host-envforge={cookie}\r\n\r\n", gateway.host());
    assert_eq!(first_line(&mut visitor, &request).await, "HTTP/1.1 200 OK");
}

/// The host's streams: each is said back, or the head of what was asked for.
async fn streams() -> SocketAddr {
    service(|_, mut stream| async move {
        let head = read_head(&mut stream).await.expect("a request");
        if head.contains("upgrade: websocket") {
            let agreed = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
            stream.write_all(agreed.as_bytes()).await.expect("sent");
            let (mut read, mut write) = stream.split();
            drop(tokio::io::copy(&mut read, &mut write).await);
        } else {
            let head = serde_json::to_string(&head).expect("JSON");
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}", head.len());
            stream.write_all(answer.as_bytes()).await.expect("sent");
        }
    })
    .await
}

async fn has_streams(gateway: &Gateway) -> JoinHandle<()> {
    let service = streams().await;
    let host = Elsewhere::of(gateway);
    host.dials(gateway, move |what| async move {
        assert_eq!(what, Open::Streams);
        Ok((Stream::Tcp(TcpStream::connect(service).await.expect("connected")), None))
    })
    .await
}

fn capability(gateway: &Gateway) -> Capability {
    Capability {
        host: gateway.around.host.clone(),
        workspace: gateway.around.workspace.clone(),
        principal: PrincipalId::generate(),
        principal_name: "ada".into(),
        session: AttachId::generate(),
        rights: [Right::Attach].into(),
        service: None,
        expires_at: in_a_minute(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hosts_streams_are_reached_with_a_capability_by_who_is_elsewhere() {
    let gateway = Gateway::far_from_its_host(Security::Plain).await;
    let token = gateway.around.key.sign(&capability(&gateway)).expect("signed");
    let base = format!("http://dev.localhost:{}", gateway.address.port());
    let client = Client::by_gateway(&base, Secret::new(token.clone())).expect("an address");
    let away = client.get::<String>("/host/v1/workspaces/w/env").await.expect_err("it has not dialled yet");
    assert_eq!(away.kind, ProblemKind::Unavailable);
    let _serving = has_streams(&gateway).await;
    let seen: String = client.get("/host/v1/workspaces/w/env?service=web").await.expect("an answer");
    assert!(seen.starts_with("GET /host/v1/workspaces/w/env?service=web HTTP/1.1\r\n"), "{seen}");
    assert!(seen.contains(&format!("authorization: Bearer {token}\r\n")), "{seen}");

    let head = format!(
        "GET /.envforge/host/v1/workspaces/w/attach HTTP/1.1\r\nhost: dev.localhost\r\nauthorization: Bearer {token}\r\n\
         connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\r\n"
    );
    let mut stream = gateway.connect().await;
    stream.write_all(head.as_bytes()).await.expect("sent");
    let answer = read_head(&mut stream).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    says_back(&mut stream, b"octets of a terminal").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_capability_or_from_a_page_no_host_is_reached() {
    let gateway = Gateway::far_from_its_host(Security::Plain).await;
    let host = Elsewhere::of(&gateway);
    let _serving = host.dials(&gateway, |_| async { panic!("it was reached") }).await;
    let key = &gateway.around.key;
    let valid = key.sign(&capability(&gateway)).expect("signed");
    let gone = Capability { expires_at: Timestamp::now() - jiff::SignedDuration::from_secs(1), ..capability(&gateway) };
    let expired = key.sign(&gone).expect("signed");
    let foreign = SigningKey::generate().expect("a key").sign(&capability(&gateway)).expect("signed");
    let visit = gateway.signed(&gateway.visit());
    let (get, attach, base) = ("GET", "/.envforge/host/v1/workspaces/w/attach", "dev.localhost");
    let dev_host = gateway.host();
    let cases = [
        (get, attach, base, "", "", 401),
        (get, attach, base, &*expired, "", 401),
        (get, attach, base, &*foreign, "", 401),
        (get, attach, base, &*visit, "", 401),
        (get, attach, base, &*valid, "origin: http://web--w--local.dev.localhost\r\n", 404),
        (get, attach, base, &*valid, "sec-fetch-mode: navigate\r\n", 404),
        (get, attach, &*dev_host, &*valid, "", 404),
        ("POST", attach, base, &*valid, "content-length: 0\r\n", 404),
        (get, "/.envforge/host/v1/health", base, &*valid, "", 404),
        (get, "/host/v1/workspaces/w/attach", base, &*valid, "", 404),
        (get, "/.envforge//host/v1/workspaces/w/attach", base, &*valid, "", 404),
    ];
    for (method, path, host, token, more, status) in cases {
        let bearer = if token.is_empty() { String::new() } else { format!("authorization: Bearer {token}\r\n") };
        let request = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n{bearer}{more}connection: close\r\n\r\n");
        let answer = gateway.exchange(request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{method} {path} {host} {more}: {answer}");
    }
}
