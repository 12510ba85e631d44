//! The ratchet: every mounted route has an authorization case for every kind of caller, and is described.

use crate::support::{host::report, installation::Installation};
use axum::http::Method;
use envforge_api::{
    host::Phase,
    ids::{CommandId, SnapshotId},
    link::Shared,
    public::{Opened, WorkspaceList},
    states::{RuntimeState, ShellState},
};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Who asks, in the order of the columns below.
const CALLERS: [&str; 9] = ["owner", "admin", "developer", "viewer", "billing", "workspace", "host", "gateway", "none"];

/// Method, path, body, and who gets through (`y`), not found (`-`), unauthenticated (`0`), one letter a caller.
///
/// The workspace belongs to the owner, so what a developer may do to his own only is `-` here.
const CASES: &[(&str, &str, &str, &str)] = &[
    ("GET", "/healthz", "", "yyyyyyyyy"),
    ("GET", "/v1/openapi.json", "", "yyyyyyyyy"),
    ("GET", "/v1/whoami", "", "yyyyyy--0"),
    ("GET", "/v1/projects", "", "yyyy----0"),
    ("GET", "/v1/projects/{project}", "", "yyyy----0"),
    ("PUT", "/v1/projects/{project}", "", "yy------0"),
    ("POST", "/v1/workspaces/open", r#"{"name":"ws","create":true}"#, "yyy--y--0"),
    ("GET", "/v1/workspaces", "", "yyyy-y--0"),
    ("GET", "/v1/workspaces/{slug}", "", "yyyy-y--0"),
    ("POST", "/v1/workspaces/{slug}/grant", r#"{"rights":["attach"]}"#, "yyy--y--0"),
    ("POST", "/v1/workspaces/{slug}/wake", "{}", "yyy--y--0"),
    ("POST", "/v1/workspaces/{slug}/sleep", "", "yyy--y--0"),
    ("POST", "/v1/workspaces/{slug}/hold", r#"{"seconds":60}"#, "yyy--y--0"),
    ("POST", "/v1/workspaces/{slug}/services", r#"{"verb":"stop","services":["web"]}"#, "yyy--y--0"),
    ("POST", "/v1/workspaces/{slug}/forks", r#"{"id":"{new}","name":"fork-of-ws"}"#, "yyy--y--0"),
    ("GET", "/v1/workspaces/{slug}/snapshots", "", "yyyy-y--0"),
    ("POST", "/v1/workspaces/{slug}/snapshots", r#"{"id":"{new}"}"#, "yyy--y--0"),
    ("POST", "/v1/workspaces/{slug}/snapshots/{snapshot}/restore", r#"{"id":"{new}"}"#, "yyy--y--0"),
    ("DELETE", "/v1/workspaces/{slug}/snapshots/{snapshot}", "", "yyy--y--0"),
    ("POST", "/v1/workspaces/{slug}/runs", r#"{"id":"{new}","target":{"what":"test"}}"#, "yyy--y--0"),
    ("GET", "/v1/workspaces/{slug}/commands", "", "yyyy-y--0"),
    ("GET", "/v1/workspaces/{slug}/usage", "", "yy--yy--0"),
    ("GET", "/v1/commands/{id}", "", "yyyy-y--0"),
    ("POST", "/v1/commands/{id}/cancel", "", "yyy--y--0"),
    ("GET", "/v1/audit", "", "yy------0"),
    ("POST", "/v1/keys/rotate", "", "yy------0"),
    ("GET", "/v1/secrets", "", "yy------0"),
    ("PUT", "/v1/secrets/{name}", r#"{"value":"x"}"#, "yy------0"),
    ("DELETE", "/v1/secrets/{name}", "", "yy------0"),
    ("POST", "/v1/workspaces/{slug}/links", r#"{"service":"web"}"#, "yy---y--0"),
    ("GET", "/v1/workspaces/{slug}/links", "", "yyyy-y--0"),
    ("DELETE", "/v1/links/{link}", "", "yy---y--0"),
    ("POST", "/v1/workspaces/{slug}/visits", r#"{"service":"web"}"#, "yyy--y--0"),
    ("GET", "/v1/gateway/feed", "", "-------y0"),
    ("POST", "/v1/gateway/codes", "", "-------y0"),
    ("POST", "/v1/gateway/visits", "", "-------y0"),
    ("POST", "/v1/gateway/inside", "", "-------y0"),
    ("POST", "/v1/gateway/routes", "", "-------y0"),
    ("POST", "/v1/gateway/storage", "", "-------y0"),
    ("POST", "/v1/gateway/wakes", "", "-------y0"),
    ("POST", "/v1/gateway/activity", "", "-------y0"),
    ("POST", "/v1/host/register", "", "------y-0"),
    ("POST", "/v1/host/sync", "", "------y-0"),
    ("POST", "/v1/host/pass", "", "------y-0"),
    ("POST", "/v1/host/secrets", r#"{"workspace":"{workspace}","names":["set"]}"#, "------y-0"),
    // Last: it takes the workspace away.
    ("DELETE", "/v1/workspaces/{slug}", r#"{"dry_run":true}"#, "yy------0"),
];

#[tokio::test]
async fn every_route_is_described_and_has_a_case_for_every_caller() {
    let it = Installation::start().await;
    let mounted: BTreeSet<(String, String)> =
        it.running.routes().iter().map(|route| (route.method.to_owned(), route.path.clone())).collect();
    assert_eq!(mounted.len(), it.running.routes().len(), "a route is mounted once");
    let cases: BTreeSet<(String, String)> =
        CASES.iter().map(|(method, path, ..)| ((*method).to_owned(), (*path).to_owned())).collect();
    assert_eq!(mounted, cases, "each mounted route has a line in CASES, and each line a route");
    assert!(CASES.iter().all(|(.., expected)| expected.len() == CALLERS.len()));
    let served: Value = it.client(None).get("/v1/openapi.json").await.expect("the description");
    assert_eq!(&served, it.running.description());
    let mut described = BTreeSet::new();
    for (path, item) in served["paths"].as_object().expect("paths") {
        for method in item.as_object().expect("a path").keys() {
            described.insert((method.to_uppercase(), path.clone()));
        }
    }
    assert_eq!(described, mounted);
    it.stop().await;
}

#[tokio::test]
async fn every_caller_gets_through_exactly_where_the_matrix_says() {
    let it = Installation::start().await;
    let opened = it.open("ws", true).await;
    let command = opened.wake.clone().expect("a wake").to_string();
    let snapshot = SnapshotId::generate();
    let mut said = report(&opened.id, 1, RuntimeState::Asleep, Phase::Settled);
    // Its host is asked nothing about what is not there.
    said.shell.stated.state = ShellState::Absent;
    said.snapshots = vec![
        serde_json::from_value(json!({
            "id": snapshot, "created_at": "2026-01-01T00:00:00Z", "reason": "asked", "generation": 1,
            "took_ms": 1, "stall_ms": 0, "size_bytes": 1,
        }))
        .expect("a snapshot"),
    ];
    it.host().await.report(said).await;
    let share = json!({ "service": "web" });
    let link: Shared = it.owner().post("/v1/workspaces/ws/links", &share).await.expect("a link");
    for (column, caller) in CALLERS.iter().enumerate() {
        let client = match *caller {
            "none" => it.client(None),
            "owner" => it.owner(),
            "host" => it.client(Some(&it.token("host.token"))),
            "gateway" => it.client(Some(&it.token("gateway.token"))),
            "workspace" => {
                it.client(Some(&it.token("host.token"))).with_header("x-envforge-workspace", opened.id.to_string())
            }
            role => it.client(Some(&it.person(role).await)),
        };
        for (method, path, body, expected) in CASES {
            let path = path.replace("{slug}", "ws").replace("{project}", "demo").replace("{id}", &command);
            let path = path.replace("{link}", link.id.as_str());
            let path = path.replace("{snapshot}", snapshot.as_str()).replace("{name}", "a_secret");
            let body = body.replace("{new}", CommandId::generate().as_str());
            let body = body.replace("{workspace}", opened.id.as_str());
            let method: Method = method.parse().expect("a method");
            let (status, answer) =
                client.raw(method.clone(), &path, body.into_bytes().into()).await.expect("an answer");
            let got = match status {
                401 => '0',
                404 => '-',
                // Past authorization: done, or refused for what was asked.
                _ => 'y',
            };
            let expected = expected.chars().nth(column).expect("a column");
            assert_eq!(got, expected, "{caller}: {method} {path}: {status} {}", String::from_utf8_lossy(&answer));
            assert!(status < 500 || status == 503, "{caller}: {method} {path}: {status}");
        }
    }
    it.stop().await;
}

#[tokio::test]
async fn a_workspace_acts_on_itself_alone_and_only_its_host_vouches_for_it() {
    let it = Installation::start().await;
    let (mine, other) = (it.open("mine", false).await, it.open("other", false).await);
    let token = it.token("host.token");
    let workspace = it.client(Some(&token)).with_header("x-envforge-workspace", mine.id.to_string());
    let list: WorkspaceList = workspace.get("/v1/workspaces").await.expect("a list");
    assert_eq!(list.workspaces.len(), 1);
    assert_eq!(list.workspaces[0].id, mine.id);
    let whoami: Value = workspace.get("/v1/whoami").await.expect("an answer");
    assert_eq!((whoami["workspace"].as_str(), &whoami["role"]), (Some("mine"), &Value::Null));
    let foreign = workspace.get::<Value>("/v1/workspaces/other").await.expect_err("hidden");
    let unknown = workspace.get::<Value>("/v1/workspaces/nothing").await.expect_err("unknown");
    assert_eq!(foreign.kind, unknown.kind);
    assert_eq!(foreign.message.replace("other", "nothing"), unknown.message, "both look the same");
    for name in ["other", "new-branch"] {
        let body = json!({ "name": name, "create": true });
        workspace.post::<_, Opened>("/v1/workspaces/open", &body).await.expect_err("only itself");
    }
    let pretender = it.owner().with_header("x-envforge-workspace", other.id.to_string());
    pretender.get::<Value>("/v1/whoami").await.expect_err("a person vouches for no workspace");
    it.stop().await;
}

#[tokio::test]
async fn a_name_that_no_name_can_be_is_not_found_and_no_failure_of_the_control_plane() {
    let it = Installation::start().await;
    it.open("ws", false).await;
    for path in ["/v1/workspaces/ws%00", "/v1/workspaces/%00/usage", "/v1/projects/%00", "/v1/commands/cmd_%00"] {
        let (status, _) = it.owner().raw(Method::GET, path, Vec::new().into()).await.expect("an answer");
        assert_eq!(status, 404, "{path}");
    }
    for (path, body) in [
        ("/v1/workspaces/open", json!({ "name": "a\0b", "create": true })),
        ("/v1/workspaces/open", json!({ "name": "new", "from": "a\0b", "create": true })),
        ("/v1/workspaces/ws/links", json!({ "service": "we\0b" })),
    ] {
        let (status, said) =
            it.owner().raw(Method::POST, path, body.to_string().into_bytes().into()).await.expect("an answer");
        assert!((400..500).contains(&status), "{path}: {status} {}", String::from_utf8_lossy(&said));
    }
    let (status, _) = it.owner().raw(Method::GET, "/v1/secrets?project=a%00b", Vec::new().into()).await.expect("one");
    assert!((400..500).contains(&status), "{status}");
    it.stop().await;
}

#[tokio::test]
async fn a_developer_deletes_and_sees_the_usage_of_own_workspaces() {
    let it = Installation::start().await;
    let developer = it.client(Some(&it.person("developer").await));
    let body = json!({ "name": "own", "create": true });
    developer.post::<_, Opened>("/v1/workspaces/open", &body).await.expect("opened");
    it.open("owners", false).await;
    developer.get::<Value>("/v1/workspaces/own/usage").await.expect("own usage");
    developer.get::<Value>("/v1/workspaces/owners/usage").await.expect_err("not others'");
    let preview = json!({ "dry_run": true });
    developer.call::<_, Value>(Method::DELETE, "/v1/workspaces/own", Some(&preview)).await.expect("own");
    developer.call::<_, Value>(Method::DELETE, "/v1/workspaces/owners", Some(&preview)).await.expect_err("not others'");
    it.stop().await;
}
