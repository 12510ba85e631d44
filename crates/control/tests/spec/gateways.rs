//! The gateway protocol: feed, routes, wakes, activity.

use crate::support::{
    host::{Host, awake, face, report},
    installation::Installation,
};
use axum::http::Method;
use envforge_api::{
    capability::{self, Right},
    client::Client,
    command::CommandKind,
    gateway::{
        Activity, ActivityReport, Feed, Route, RouteRequest, StorageRequest, StorageRoute, WakeAnswer, WakeRequest,
    },
    host::{DesiredRuntime, Phase},
    ids::{ActivityId, LinkId, RuntimeInstanceId, WorkspaceId},
    link::{Family, Holder, Shared},
    problem::{Problem, ProblemKind},
    public::{CommandList, LinkView},
    states::RuntimeState,
    time::Timestamp,
};
use serde_json::json;
use std::time::Duration;

async fn feed(gateway: &Client, since: u64, wait_ms: u32) -> Feed {
    gateway.get(&format!("/v1/gateway/feed?since={since}&wait_ms={wait_ms}")).await.expect("the feed")
}

/// A feed that is parked until something happens.
fn parked(gateway: &Client, since: u64) -> tokio::task::JoinHandle<Feed> {
    let gateway = gateway.clone();
    tokio::spawn(async move { feed(&gateway, since, 25_000).await })
}

async fn answered(feed: tokio::task::JoinHandle<Feed>) -> Feed {
    tokio::time::timeout(Duration::from_secs(15), feed).await.expect("in time").expect("ran")
}

async fn route(gateway: &Client, host: &str, workspace: &WorkspaceId) -> Result<Route, Problem> {
    let request = RouteRequest { host: host.parse().expect("a label"), workspace: workspace.clone() };
    gateway.post("/v1/gateway/routes", &request).await
}

/// A position from which nothing is told again: what was open at the readings before it is told by then.
async fn settled(gateway: &Client) -> u64 {
    let mut seq = feed(gateway, 0, 0).await.seq;
    loop {
        let next = feed(gateway, seq, 0).await;
        if next.workspaces.is_empty() && next.revoked.is_empty() {
            return next.seq;
        }
        seq = next.seq;
    }
}

async fn with_faces(host: &mut Host, workspace: &WorkspaceId) {
    let mut said = report(workspace, 1, RuntimeState::Asleep, Phase::Settled);
    said.faces = vec![
        face("web", &[("http", 3000), ("admin", 3100)], Some("http")),
        face("api", &[("http", 4000)], Some("http")),
    ];
    host.report(said).await;
}

#[tokio::test]
async fn the_feed_tells_everything_once_and_then_what_changed() {
    let it = Installation::start().await;
    let (mut host, gateway) = (it.host().await, it.gateway());
    let (ws, other) = (it.open("ws", false).await, it.open("other", false).await);
    let whole = feed(&gateway, 0, 25_000).await;
    assert!(whole.whole);
    assert_eq!((whole.base.as_str(), whole.scheme.as_str()), ("dev.localhost", "http"));
    assert_eq!(whole.workspaces.len(), 2);

    let seq = settled(&gateway).await;
    let waiting = parked(&gateway, seq);
    it.ask("ws", "wake", json!({})).await.expect("asked");
    let news = answered(waiting).await;
    assert!(!news.whole);
    assert_eq!(news.workspaces.len(), 1, "{news:?}");
    assert_eq!((&news.workspaces[0].workspace, news.workspaces[0].runtime.state), (&ws.id, RuntimeState::Waking));

    let seq = settled(&gateway).await;
    let waiting = parked(&gateway, seq);
    let mut said = awake(&ws.id, 2);
    said.instance = Some(RuntimeInstanceId::generate());
    host.report(said.clone()).await;
    let news = answered(waiting).await;
    assert_eq!((news.workspaces[0].instance.as_ref(), news.workspaces[0].services.len()), (said.instance.as_ref(), 2));

    let seq = settled(&gateway).await;
    let waiting = parked(&gateway, seq);
    let body = json!({ "force": true });
    it.owner().call::<_, serde_json::Value>(Method::DELETE, "/v1/workspaces/other", Some(&body)).await.expect("asked");
    answered(waiting).await;
    let mut gone = report(&other.id, 2, RuntimeState::Asleep, Phase::Settled);
    gone.shell.stated.state = envforge_api::states::ShellState::Absent;
    let seq = settled(&gateway).await;
    let waiting = parked(&gateway, seq);
    host.report(gone).await;
    let news = answered(waiting).await;
    assert!(news.workspaces.iter().any(|standing| standing.workspace == other.id && !standing.present), "{news:?}");
    assert_eq!(feed(&gateway, 0, 0).await.workspaces.len(), 1);
    // A position that lies ahead is one of a database that was put back since.
    assert!(feed(&gateway, u64::from(u32::MAX) * 1000, 25_000).await.whole);
    it.stop().await;
}

#[tokio::test]
async fn the_reserved_host_leads_to_storage_and_to_no_service_and_its_workspace_is_told_of_it() {
    let it = Installation::start().await;
    let (host, gateway) = (it.host().await, it.gateway());
    let ws = it.open("ws", false).await;
    let intent = host.intent(&ws.id).await.expect("an intent");
    let origin = intent.storage_url.expect("an address");
    assert!(origin.starts_with("http://storage--ws--") && origin.ends_with(".dev.localhost"), "{origin}");
    let label = origin.trim_start_matches("http://").split('.').next().expect("a label").to_owned();
    let storage = async |host: &str| {
        let request = StorageRequest { host: host.parse().expect("a label") };
        gateway.post::<_, StorageRoute>("/v1/gateway/storage", &request).await
    };
    let found = storage(&label).await.expect("found");
    assert_eq!((&found.workspace, found.dial.socket.as_deref()), (&ws.id, Some("/run/dial.sock")));
    // Neither is the other, and nobody visits storage.
    let web = label.replace("storage--", "web--");
    for none in [&web, &label.replace("--ws--", "--nowhere--")] {
        assert_eq!(storage(none).await.expect_err("no storage").kind, ProblemKind::NotFound, "{none}");
    }
    assert_eq!(route(&gateway, &label, &ws.id).await.expect_err("no service").kind, ProblemKind::NotFound);
    assert!(route(&gateway, &web, &ws.id).await.is_ok());
    it.stop().await;
}

#[tokio::test]
async fn a_revocation_reaches_a_parked_feed_of_every_replica() {
    let it = Installation::start().await;
    let replica = Installation::on(it.url.clone(), it.state.clone()).await;
    it.open("ws", false).await;
    let shared = it.share("ws", json!({ "service": "web" })).await.expect("a link");
    let (here, there) = (it.gateway(), replica.gateway());
    let seq = settled(&here).await;
    let waiting = [parked(&here, seq), parked(&there, seq)];
    let path = format!("/v1/links/{}", shared.id);
    it.owner().call::<(), LinkView>(Method::DELETE, &path, None).await.expect("revoked");
    for feed in waiting {
        let news = answered(feed).await;
        assert_eq!(news.revoked.len(), 1, "{news:?}");
        assert_eq!(
            (&news.revoked[0].holder, news.revoked[0].until),
            (&Holder::Link(shared.id.clone()), shared.expires_at)
        );
    }
    assert_eq!(feed(&here, 0, 0).await.revoked.len(), 1, "told to one that begins, until it has expired");
    replica.running.stop().await;
    it.stop().await;
}

#[tokio::test]
async fn a_long_transaction_hides_no_change_and_makes_no_feed_spin() {
    let it = Installation::start().await;
    let gateway = it.gateway();
    it.open("ws", false).await;
    let mut open = it.pool.begin().await.expect("a transaction");
    sqlx::query("UPDATE workspaces SET version = version + 1").execute(&mut *open).await.expect("changed");
    let begun = feed(&gateway, 0, 0).await;
    it.open("second", false).await;
    let mut seq = begun.seq;
    let asked = std::time::Instant::now();
    let mut answers = 0_u32;
    while asked.elapsed() < Duration::from_millis(500) {
        let news = feed(&gateway, seq, 1_000).await;
        assert!(news.workspaces.iter().any(|standing| standing.present));
        seq = news.seq;
        answers += 1;
    }
    assert!(answers <= 12, "{answers} answers in half a second");
    open.commit().await.expect("committed");
    let news = feed(&gateway, seq, 1_000).await;
    assert_eq!(news.workspaces.len(), 2, "what was open at the reading before is told now");
    it.stop().await;
}

#[tokio::test]
async fn a_route_leads_to_the_port_that_runs_with_bindings_and_a_right_to_dial() {
    let it = Installation::start().await;
    let (mut host, gateway) = (it.host().await, it.gateway());
    sqlx::query("UPDATE project_revisions SET spec = spec || $1")
        .bind(json!({ "routes": { "web": { "/api": "api", "/api/admin": "web" } } }))
        .execute(&it.pool)
        .await
        .expect("bound");
    let (ws, other) = (it.open("ws", false).await, it.open("other", false).await);
    let before = route(&gateway, "web--ws--local", &ws.id).await.expect("a route");
    assert_eq!(before.target.port, None, "no envforge.yml was read yet");
    with_faces(&mut host, &ws.id).await;
    let found = route(&gateway, "web--ws--local", &ws.id).await.expect("a route");
    assert_ne!(found.version, before.version);
    assert_eq!((found.origin.as_str(), found.slug.as_str()), ("http://web--ws--local.dev.localhost", "ws"));
    assert_eq!(
        (found.target.port, found.target.families.clone()),
        (Some(3000), vec![("/ws".into(), Family::Websockets)])
    );
    let bound: Vec<_> =
        found.bindings.iter().map(|b| (b.path.as_str(), b.target.service.as_str(), b.target.port)).collect();
    assert_eq!(bound, [("/api/admin", "web", Some(3000)), ("/api", "api", Some(4000))]);
    let further = route(&gateway, "web-admin--ws--local", &ws.id).await.expect("a route");
    assert_eq!((further.target.port, further.bindings.len()), (Some(3100), 0));

    assert_eq!(found.dial.socket.as_deref(), Some("/run/dial.sock"));
    let right = capability::verify(&host.answer.keys, found.dial.token.expose(), Timestamp::now()).expect("signed");
    assert_eq!(right.allows(&host.answer.host, &ws.id, Right::Dial), Ok(()));
    assert!(right.allows(&host.answer.host, &other.id, Right::Dial).is_err());
    assert!(right.allows(&host.answer.host, &ws.id, Right::Attach).is_err());
    let body = json!({ "rights": ["dial"] });
    it.owner().post::<_, serde_json::Value>("/v1/workspaces/ws/grant", &body).await.expect_err("for gateways alone");

    // While it runs, the port is the one it runs with.
    let mut said = awake(&ws.id, 1);
    said.instance = Some(RuntimeInstanceId::generate());
    said.faces = vec![face("web", &[("http", 3999)], Some("http"))];
    host.report(said).await;
    let running = route(&gateway, "web--ws--local", &ws.id).await.expect("a route");
    assert_eq!(running.target.port, Some(3000));

    let foreign = route(&gateway, "web--ws--local", &other.id).await.expect_err("another workspace's");
    let unknown = route(&gateway, "web--nothing--local", &ws.id).await.expect_err("unknown");
    assert_eq!(foreign, unknown, "both look the same");
    route(&gateway, "storage--ws--local", &ws.id).await.expect_err("reserved");
    it.stop().await;
}

async fn wake(gateway: &Client, workspace: &WorkspaceId, holder: Holder) -> Result<WakeAnswer, Problem> {
    gateway.post("/v1/gateway/wakes", &WakeRequest { workspace: workspace.clone(), holder }).await
}

#[tokio::test]
async fn a_wake_by_a_link_is_one_record_that_names_it() {
    let it = Installation::start().await;
    let (host, gateway) = (it.host().await, it.gateway());
    let (ws, other) = (it.open("ws", false).await, it.open("other", false).await);
    let shared: Shared = it.share("ws", json!({ "service": "web" })).await.expect("a link");
    let holder = Holder::Link(shared.id.clone());
    let all = futures_util::future::join_all((0..6).map(|_| wake(&gateway, &ws.id, holder.clone()))).await;
    for answer in all {
        let WakeAnswer::Asked { generation } = answer.expect("asked") else { panic!("refused") };
        assert_eq!(generation.0, 2);
    }
    let list: CommandList = it.owner().get("/v1/workspaces/ws/commands").await.expect("records");
    let wakes: Vec<_> = list.commands.iter().filter(|c| c.kind == CommandKind::StartRuntime).collect();
    assert_eq!(wakes.len(), 1, "equal requests join");
    assert_eq!((wakes[0].trigger.as_str(), wakes[0].requested_by.clone()), ("link", format!("link:{}", shared.id)));
    let intent = host.intent(&ws.id).await.expect("an intent");
    assert!(matches!(&intent.runtime, DesiredRuntime::Awake { trigger } if trigger == "link"));

    wake(&gateway, &other.id, holder.clone()).await.expect_err("a link of another workspace");
    wake(&gateway, &ws.id, Holder::Link(LinkId::generate())).await.expect_err("no link");
    let path = format!("/v1/links/{}", shared.id);
    it.owner().call::<(), LinkView>(Method::DELETE, &path, None).await.expect("revoked");
    wake(&gateway, &ws.id, holder).await.expect_err("revoked");
    assert!(it.records("other").await.iter().all(|(kind, _)| kind == "PREPARE_SHELL"), "nothing else woke");

    let fresh: Shared = it.share("ws", json!({ "service": "web" })).await.expect("a link");
    let body = json!({ "force": true });
    it.owner().call::<_, serde_json::Value>(Method::DELETE, "/v1/workspaces/ws", Some(&body)).await.expect("asked");
    wake(&gateway, &ws.id, Holder::Link(fresh.id)).await.expect_err("its links ended");
    it.stop().await;
}

fn span(workspace: &WorkspaceId, counts_at: Option<Timestamp>) -> Activity {
    let to = "2026-01-15T12:00:10Z".parse().expect("a time");
    Activity {
        id: ActivityId::generate(),
        workspace: workspace.clone(),
        holder: Some(Holder::Link(LinkId::generate())),
        family: Some(Family::Web),
        from: "2026-01-15T12:00:00Z".parse().expect("a time"),
        to,
        requests: 3,
        socket_octets: 0,
        awake_seconds: 10,
        counts_at,
    }
}

#[tokio::test]
async fn activity_is_stored_once_and_told_to_the_host_at_once() {
    let it = Installation::start().await;
    let (mut host, gateway) = (it.host().await, it.gateway());
    let ws = it.open("ws", false).await;
    host.sync(0).await;
    let mut waiting = host.clone();
    let waiting = tokio::spawn(async move { waiting.sync(25_000).await });
    let now = Timestamp::now();
    let counts = span(&ws.id, Some(now));
    let report = ActivityReport { items: vec![counts.clone(), span(&WorkspaceId::generate(), Some(now))] };
    for _ in 0..2 {
        gateway.post::<_, ()>("/v1/gateway/activity", &report).await.expect("stored");
    }
    let told = tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("in time").expect("ran");
    assert_eq!(told.traffic.len(), 1);
    assert_eq!(told.traffic[0].workspace, ws.id);
    assert_eq!(told.traffic[0].last_at.as_microsecond(), now.as_microsecond());

    // Earlier moments and moments in the future move nothing that should not move.
    let hour = jiff::SignedDuration::from_hours(1);
    let report = ActivityReport { items: vec![span(&ws.id, Some(now - hour)), span(&ws.id, Some(now + hour))] };
    gateway.post::<_, ()>("/v1/gateway/activity", &report).await.expect("stored");
    let answer = host.sync(0).await;
    assert!(answer.traffic[0].last_at <= Timestamp::now() && answer.traffic[0].last_at >= now - hour);

    let (month, seconds): (String, i64) =
        sqlx::query_as("SELECT month::text, seconds FROM gateway_awake").fetch_one(&it.pool).await.expect("kept");
    assert_eq!((month.as_str(), seconds), ("2026-01-01", 30), "three spans, each once");
    it.stop().await;
}
