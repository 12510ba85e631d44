//! What each command promises, tried against a control plane and a host that a test scripts.

use crate::{fake::Fake, sample};
use serde_json::{Value, json};

const EXIT_0: (u8, &str) = (0, r#"{"type":"exit","code":0}"#);

fn view(version: u64) -> Value {
    let mut view = serde_json::to_value(sample::workspace()).expect("json");
    view["workspace"] = json!("a");
    view["version"] = json!(version);
    view
}

fn healthy(version: u64) -> Value {
    let mut view = view(version);
    for service in view["services"].as_array_mut().expect("services") {
        service["state"] = json!("healthy");
    }
    view
}

fn record(kind: &str, state: &str, code: Option<i32>) -> Value {
    json!({
        "id": "cmd_00000000000000000000000000", "workspace": "a", "kind": kind, "state": state, "generation": 1,
        "attempt": 1, "requested_by": "ada", "trigger": "t", "requested_at": "2026-01-01T00:00:00Z", "exit_code": code,
    })
}

const COMMAND: &str = "GET /v1/commands/cmd_00000000000000000000000000";
const COMMAND_ENDS: &str = "GET /v1/commands/cmd_00000000000000000000000000?wait=2";

#[tokio::test]
async fn up_without_a_terminal_comes_back_when_the_shell_is_ready() {
    let fake = Fake::start();
    let mut preparing = view(1);
    preparing["shell"]["state"] = json!("preparing");
    fake.on("POST /v1/workspaces/open", fake.grant())
        .on("GET /v1/workspaces/a", preparing)
        .on("GET /v1/workspaces/a?after=1&wait=25", view(2));
    let ran = fake.run("up a").await;
    assert_eq!((ran.code, ran.stdout.lines().count()), (0, 1), "{ran:?}");
    let asked = &fake.heard("POST /v1/workspaces/open")[0];
    assert_eq!((&asked["name"], &asked["wake"], &asked["create"]), (&json!("a"), &json!(true), &json!(false)));
}

#[tokio::test]
async fn up_wait_fails_and_names_the_services_that_are_not_healthy() {
    let fake = Fake::start();
    fake.on("POST /v1/workspaces/open", fake.grant())
        .on("GET /v1/workspaces/a", view(1))
        .on(COMMAND, record("START_RUNTIME", "running", None))
        .on(COMMAND_ENDS, record("START_RUNTIME", "failed", None));
    let ran = fake.run("up a --wait").await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("not healthy in a: backend"), "{}", ran.stderr);

    let fake = Fake::start();
    fake.on("POST /v1/workspaces/open", fake.grant())
        .on("GET /v1/workspaces/a", healthy(1))
        .on(COMMAND, record("START_RUNTIME", "succeeded", None));
    assert_eq!(fake.run("up a --wait").await.code, 0);
}

#[tokio::test]
async fn a_branch_that_exists_nowhere_needs_c_where_nobody_can_be_asked() {
    let fake = Fake::start();
    fake.refuse("POST /v1/workspaces/open", 428, "confirm", "no repository has the branch `new`");
    let ran = fake.run("up new").await;
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("`envforge up -c new` creates it"), "{}", ran.stderr);
}

#[tokio::test]
async fn a_control_plane_that_is_away_is_status_5() {
    let mut fake = Fake::start();
    fake.stop().await;
    for line in ["status a", "up a", "wake a", "ls"] {
        assert_eq!(fake.run(line).await.code, 5, "{line}");
    }
    assert_eq!(fake.run("exec a -- true").await.code, 125);
}

#[tokio::test]
async fn a_workspace_left_out_is_status_2_with_the_candidates() {
    let fake = Fake::start();
    fake.on("GET /v1/workspaces", json!({"workspaces": [view(1)]}));
    let ran = fake.run("status").await;
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("one of: a"), "{}", ran.stderr);
    assert_eq!(fake.run("status nosuch").await.code, 3);
}

#[tokio::test]
async fn status_watch_prints_one_json_object_a_line_at_once_and_for_each_change() {
    let fake = Fake::start();
    fake.on("GET /v1/workspaces/a", view(1))
        .on("GET /v1/workspaces/a?after=1&wait=25", view(1))
        .on("GET /v1/workspaces/a?after=1&wait=25", view(2))
        .refuse("GET /v1/workspaces/a?after=2&wait=25", 404, "not_found", "gone");
    let ran = fake.run("status a -w --json").await;
    let versions: Vec<Value> =
        ran.stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("json")["version"].clone()).collect();
    assert_eq!((ran.code, versions), (3, vec![json!(1), json!(2)]));
}

#[tokio::test]
async fn exec_keeps_the_streams_apart_and_returns_the_status_of_the_command() {
    let fake = Fake::start();
    fake.on("POST /v1/workspaces/a/grant", fake.grant()).on("GET /v1/workspaces/a", view(1)).stream(
        "GET /host/v1/workspaces/ws_00000000000000000000000000/exec",
        &[(0, r#"{"type":"started"}"#), (2, "out"), (3, "err"), (0, r#"{"type":"exit","code":7}"#)],
    );
    let ran = fake.run("exec a -- prog --flag").await;
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (7, "out", "err"));
    let heard = fake.heard("GET /host/v1/workspaces/ws_00000000000000000000000000/exec");
    assert_eq!(heard[0]["argv"], json!(["prog", "--flag"]));
    assert_eq!(fake.heard("POST /v1/workspaces/a/grant")[0]["rights"], json!(["exec"]));
}

#[tokio::test]
async fn a_failure_of_envforge_in_exec_is_status_125() {
    let fake = Fake::start();
    let failed = r#"{"type":"failed","problem":{"kind":"failed","message":"no such program","hint":""}}"#;
    fake.on("POST /v1/workspaces/a/grant", fake.grant()["grant"].clone())
        .on("GET /v1/workspaces/a", view(1))
        .stream("GET /host/v1/workspaces/ws_00000000000000000000000000/exec", &[(0, failed)]);
    let ran = fake.run("exec a -- prog").await;
    assert_eq!(ran.code, 125);
    assert!(ran.stderr.contains("no such program"), "{}", ran.stderr);
}

#[tokio::test]
async fn run_streams_the_output_and_prints_a_receipt_to_standard_error() {
    let fake = Fake::start();
    let output = "GET /host/v1/workspaces/ws_00000000000000000000000000/runs/cmd_00000000000000000000000000/output";
    fake.on("POST /v1/workspaces/a/runs", json!({"command": record("RUN_COMMAND", "queued", None)}))
        .on("POST /v1/workspaces/a/grant", fake.grant())
        .on(COMMAND, record("RUN_COMMAND", "queued", None))
        .on(COMMAND, record("RUN_COMMAND", "failed", Some(3)))
        .refuse(output, 404, "not_found", "not taken yet")
        .stream(output, &[(2, "tested"), (0, r#"{"type":"exit","code":3}"#)]);
    let ran = fake.run("run a test unit --service web").await;
    assert_eq!((ran.code, ran.stdout.as_str()), (3, "tested"), "{ran:?}");
    assert!(ran.stderr.contains("RUN_COMMAND failed with status 3"), "{}", ran.stderr);
    let asked = &fake.heard("POST /v1/workspaces/a/runs")[0];
    assert_eq!(asked["target"], json!({"what": "test", "name": "unit"}));
    assert!(asked["id"].as_str().is_some_and(|id| id.starts_with("cmd_")));
}

#[tokio::test]
async fn logs_are_one_line_each_and_json_has_its_four_fields() {
    let fake = Fake::start();
    let line = r#"{"time":"2026-01-01T00:00:00Z","source":"web","level":"info","message":"hello"}"#;
    let logs = "GET /host/v1/workspaces/ws_00000000000000000000000000/logs";
    fake.on("GET /v1/workspaces", json!({"workspaces": [view(1)]}))
        .on("POST /v1/workspaces/a/grant", fake.grant())
        .stream(logs, &[(2, line), EXIT_0]);
    let ran = fake.run("logs a web -n 5 --level warn --json").await;
    assert_eq!(
        serde_json::from_str::<Value>(&ran.stdout).expect("json"),
        serde_json::from_str::<Value>(line).expect("json")
    );
    let query = &fake.heard(logs)[0];
    assert_eq!((&query["sources"], &query["tail"], &query["level"]), (&json!(["web"]), &json!(5), &json!("warn")));
}

#[tokio::test]
async fn delete_asks_what_goes_first_and_refuses_work_that_exists_nowhere_else() {
    let fake = Fake::start();
    let route = "DELETE /v1/workspaces/a";
    fake.on(route, json!({"goes": ["files"], "at_risk": ["web: 2 files not committed"]}));
    let ran = fake.run("delete a --yes").await;
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("2 files not committed") && ran.stderr.contains("--force"), "{}", ran.stderr);
    assert_eq!(fake.heard(route), [json!({"force": false, "dry_run": true})]);

    let fake = Fake::start();
    fake.on(route, json!({"goes": ["files"], "at_risk": []}))
        .on(route, json!({"goes": ["files"], "at_risk": [], "command": record("DELETE_WORKSPACE", "succeeded", None)}));
    let ran = fake.run("delete a --yes").await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(fake.heard(route)[1], json!({"force": false, "dry_run": false}));
    assert_eq!(fake.run("delete a").await.code, 2);

    let fake = Fake::start();
    fake.on(route, json!({"goes": ["files"], "at_risk": [], "command": record("DELETE_WORKSPACE", "succeeded", None)}));
    assert_eq!(fake.run("delete a --yes --force").await.code, 0);
    assert_eq!(fake.heard(route), [json!({"force": true, "dry_run": false})]);
}

#[tokio::test]
async fn wake_wait_follows_the_record_and_fails_with_its_reason() {
    let fake = Fake::start();
    let mut failed = record("START_RUNTIME", "failed", None);
    failed["reason"] = json!("backend was never healthy");
    fake.on("POST /v1/workspaces/a/wake", json!({"command": record("START_RUNTIME", "queued", None)}))
        .on(COMMAND_ENDS, record("START_RUNTIME", "running", None))
        .on(COMMAND_ENDS, failed);
    let ran = fake.run("wake a --wait").await;
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("backend was never healthy"), "{}", ran.stderr);
}

#[tokio::test]
async fn project_apply_shows_the_difference_and_applies_only_without_dry_run() {
    let fake = Fake::start();
    let directory = tempfile::tempdir().expect("directory");
    let file = directory.path().join("p.yml");
    std::fs::write(&file, "project: p\nservices:\n  web: { repo: https://git.example/web.git }\n").expect("written");
    let applied = |applied: bool| {
        let project = json!({"project": "p", "revision": 1, "applied_at": "2026-01-01T00:00:00Z", "text": "",
            "spec": {"project": "p", "services": []}});
        json!({"project": project, "changes": ["+ service web"], "applied": applied})
    };
    fake.on("PUT /v1/projects/p", applied(false)).on("PUT /v1/projects/p", applied(true));
    let dry = fake.run(&format!("project apply -f {} --dry-run", file.display())).await;
    assert_eq!(dry.code, 0, "{dry:?}");
    assert!(dry.stdout.starts_with("+ service web\n") && dry.stdout.contains("nothing was applied"), "{}", dry.stdout);
    let done = fake.run(&format!("project apply -f {}", file.display())).await;
    assert!(done.stdout.contains("applied as revision 1"), "{}", done.stdout);
    let asked: Vec<Value> = fake.heard("PUT /v1/projects/p").iter().map(|body| body["dry_run"].clone()).collect();
    assert_eq!(asked, [json!(true), json!(true), json!(false)]);

    std::fs::write(&file, "project: p\nservices:\n  web: { rep: x }\n").expect("written");
    let refused = fake.run(&format!("project apply -f {}", file.display())).await;
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("p.yml:3:"), "{}", refused.stderr);
}

#[tokio::test]
async fn why_of_a_service_reads_its_last_lines_from_the_logs_where_the_view_has_none() {
    let fake = Fake::start();
    let line = r#"{"time":"2026-01-01T00:00:00Z","source":"backend","level":"error","message":"boom"}"#;
    fake.on("GET /v1/workspaces", json!({"workspaces": [view(1)]}))
        .on("GET /v1/workspaces/a", view(1))
        .on("POST /v1/workspaces/a/grant", fake.grant())
        .stream("GET /host/v1/workspaces/ws_00000000000000000000000000/logs", &[(2, line), EXIT_0]);
    let ran = fake.run("why a backend --json").await;
    let why: Value = serde_json::from_str(&ran.stdout).expect("json");
    assert_eq!((&why["exit_code"], &why["last_lines"]), (&json!(7), &json!(["boom"])));
    assert_eq!(fake.run("why a nosuch").await.code, 3);
}

#[tokio::test]
async fn a_link_is_shared_listed_and_revoked_and_its_url_alone_is_data() {
    let fake = Fake::start();
    let (id, url) = ("lnk_00000000000000000000000000", "http://dev.localhost:8080/share/v4.public.x");
    let shared = json!({
        "id": id, "url": url, "expires_at": "2199-01-01T00:00:00Z", "families": ["web", "api"], "service": "web",
        "workspace": "a",
    });
    fake.on("POST /v1/workspaces/a/links", shared.clone());
    let ran = fake.run("share a --service web.admin --expires 30m --families web,api").await;
    assert_eq!((ran.code, ran.stdout.trim_end()), (0, url), "{ran:?}");
    assert!(ran.stderr.contains(&format!("`envforge revoke {id}` ends it")), "{}", ran.stderr);
    let asked = &fake.heard("POST /v1/workspaces/a/links")[0];
    let expected = json!({"service": "web", "port": "admin", "expires_seconds": 1800, "families": ["web", "api"]});
    assert_eq!(asked, &expected);
    let said: Value = serde_json::from_str(&fake.run("share a --json").await.stdout).expect("json");
    assert_eq!(said, shared);
    let asked = &fake.heard("POST /v1/workspaces/a/links")[1];
    assert_eq!(
        (&asked["service"], &asked["families"], &asked["expires_seconds"]),
        (&json!(null), &json!(null), &json!(7200))
    );
    assert_eq!(fake.run("share a --expires 31d").await.code, 2);

    let link = json!({
        "id": id, "service": "web", "families": ["web"], "issued_by": "ada", "issued_at": "2026-01-01T00:00:00Z",
        "expires_at": "2199-01-01T00:00:00Z",
    });
    fake.on("GET /v1/workspaces/a/links", json!({"links": [link]}));
    assert!(fake.run("links a").await.stdout.contains(id));
    fake.on(&format!("DELETE /v1/links/{id}"), link);
    assert_eq!(fake.run(&format!("revoke {id}")).await.code, 0);
    assert_eq!(fake.run("revoke ../workspaces/a").await.code, 3, "nothing else is ever asked for");

    fake.on("GET /v1/workspaces", json!({"workspaces": [view(1)]}));
    let page = json!({"url": "http://web--a--local.dev.localhost/.envforge/enter?code=c", "origin": "http://web--a--local.dev.localhost"});
    fake.on("POST /v1/workspaces/a/visits", page.clone());
    let ran = fake.run("open a web").await;
    assert_eq!((ran.code, ran.stdout.trim_end()), (0, page["url"].as_str().expect("a URL")));
    assert_eq!(fake.heard("POST /v1/workspaces/a/visits")[0]["service"], json!("web"));
}
