//! What is wrong with a project shows where it is, blocks that alone, and is over when it is mended.

use envforge_testkit::{
    fixture::{API_YML, Fixture, WEB_YML},
    local::Local,
    machine::eventually,
};
use serde_json::Value;
use std::{fs, path::Path};

fn start() -> (Local, Fixture) {
    let local = Local::start(Path::new(env!("CARGO_BIN_EXE_envforge")));
    let fixture = Fixture::create(local.dir());
    fixture.apply(&local);
    (local, fixture)
}

fn service<'a>(status: &'a Value, name: &str) -> &'a Value {
    let all = status["services"].as_array().expect("services");
    all.iter().find(|service| service["name"] == name).unwrap_or(&Value::Null)
}

/// Waits until the newest record of a kind has ended.
fn record(local: &Local, workspace: &str, kind: &str) -> Value {
    eventually(kind, || {
        let all = local.json(&["workspace", "commands", workspace]);
        let newest = all["commands"].as_array().expect("commands").iter().find(|c| c["kind"] == kind)?.clone();
        newest["finished_at"].is_string().then_some(newest)
    })
}

/// Waits until one service shows a failure and another one serves; the failing one.
fn wait_broken(local: &Local, workspace: &str, broken: &str, serving: &str) -> Value {
    let status = local.wait_for(workspace, "broken in part", |status| {
        status["runtime"]["state"] == "awake"
            && service(status, serving)["state"] == "healthy"
            && service(status, broken)["state"] == "unhealthy"
    });
    assert_eq!(status["shell"]["state"], "ready");
    let found = service(&status, broken).clone();
    assert!(found["reason"].is_string() && found["hint"].is_string(), "{found:#}");
    found
}

#[test]
fn an_invalid_manifest_blocks_its_service_alone_and_an_invalid_edit_leaves_what_runs_untouched() {
    let (local, fixture) = start();
    let bad = WEB_YML.replace("ports: { http: 3000 }", "ports: { http: 3000 }\ndepends_on: [api]");
    Fixture::commit(&fixture.web, "w", "envforge.yml", &bad);
    local.ok(&["up", "w"]);
    wait_broken(&local, "w", "web", "api");
    let status = local.status("w");
    let finding = &status["diagnostics"][0];
    assert_eq!(
        (&finding["file"], &finding["line"], &finding["column"]),
        (&"web/envforge.yml".into(), &4.into(), &1.into())
    );
    assert!(local.ok(&["why", "w", "web"]).contains("depends_on"));
    let start = record(&local, "w", "START_RUNTIME");
    assert_eq!(start["state"], "failed");
    assert!(start["reason"].as_str().is_some_and(|reason| reason.contains("web")), "{start:#}");
    // Asked again without a change, it says so again.
    local.ok(&["restart", "w", "web"]);
    assert_eq!(record(&local, "w", "CONTROL_SERVICE")["state"], "failed");

    let file = local.workspace_dir("w").join("files/web/envforge.yml");
    fs::write(&file, WEB_YML).expect("mend");
    local.ok(&["restart", "w", "web"]);
    let done = record(&local, "w", "CONTROL_SERVICE");
    assert_eq!(done["state"], "succeeded", "{done:#}");
    let status = local.wait_healthy("w");
    assert_eq!(status["diagnostics"], Value::Array(Vec::new()));

    let pid = local.curl_json("w", "http://localhost:3000/")["pid"].clone();
    fs::write(&file, &bad).expect("edit");
    let status = local.wait_for("w", "stale", |status| service(status, "web")["stale"] == true);
    assert_eq!(service(&status, "web")["state"], "healthy");
    local.ok(&["restart", "w", "web"]);
    let refused = record(&local, "w", "CONTROL_SERVICE");
    assert_eq!(refused["state"], "failed");
    assert!(refused["reason"].as_str().is_some_and(|reason| reason.contains("web/envforge.yml")), "{refused:#}");
    assert_eq!(local.curl_json("w", "http://localhost:3000/")["pid"], pid);

    fs::write(&file, WEB_YML.replace("BRANCH: { from: workspace.branch }", "BRANCH: edited")).expect("mend");
    local.ok(&["restart", "w", "web"]);
    let done = record(&local, "w", "CONTROL_SERVICE");
    assert_eq!(done["state"], "succeeded", "{done:#}");
    assert_eq!(local.curl_json("w", "http://localhost:3000/")["branch"], "edited");
    local.wait_for("w", "no longer stale", |status| service(status, "web")["stale"] == false);
}

#[test]
fn a_missing_manifest_or_a_port_that_never_opens_is_named_by_the_receipt_and_the_rest_serves() {
    let (local, fixture) = start();
    // By its route, which needs nothing of the other service's own file.
    let text = fs::read_to_string(&fixture.project_file).expect("read").replace("api.internal_url", "route /api");
    fs::write(&fixture.project_file, text).expect("write");
    fixture.apply(&local);
    Fixture::remove(&fixture.api, "missing", "envforge.yml");
    Fixture::commit(&fixture.api, "deaf", "api.js", "setInterval(() => {}, 1000)\n");
    Fixture::commit(&fixture.api, "deaf", "envforge.yml", &API_YML.replace("start_period: 10s", "start_period: 1s"));
    for (branch, reason) in [("missing", "envforge.yml"), ("deaf", "4100")] {
        local.ok(&["up", branch]);
        let api = wait_broken(&local, branch, "api", "web");
        assert!(api["reason"].as_str().is_some_and(|text| text.contains(reason)), "{api:#}");
        let start = record(&local, branch, "START_RUNTIME");
        assert_eq!(start["state"], "failed");
        assert!(start["reason"].as_str().is_some_and(|reason| reason.contains("api")), "{start:#}");
        assert_eq!(local.curl_json(branch, "http://localhost:3000/")["branch"], branch);
        local.ok(&["exec", branch, "--", "true"]);
        local.ok(&["sleep", branch, "--wait"]);
    }
}

#[test]
fn an_input_that_nothing_binds_blocks_its_service_and_a_repository_that_is_away_is_named() {
    let (local, fixture) = start();
    let text = fs::read_to_string(&fixture.project_file).expect("read");
    let unbound: String = text.split_inclusive('\n').filter(|line| !line.contains("web.api_url")).collect();
    fs::write(&fixture.project_file, unbound).expect("write");
    fixture.apply(&local);
    local.ok(&["up", "w", "-c"]);
    let web = wait_broken(&local, "w", "web", "api");
    assert!(web["reason"].as_str().is_some_and(|text| text.contains("api_url")), "{web:#}");
    local.ok(&["sleep", "w", "--wait"]);

    let away = fixture.api.with_extension("away");
    fs::rename(&fixture.api, &away).expect("rename");
    let refused = local.run(&["up", "x", "-c"]);
    assert_ne!(refused.status.code(), Some(0));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("api.git"), "{said}");
    fs::rename(&away, &fixture.api).expect("rename");
    let nowhere = local.run(&["up", "nowhere"]);
    assert_eq!(nowhere.status.code(), Some(2), "a branch that exists nowhere needs -c");
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("-c"));
    local.ok(&["up", "x", "-c"]);
    assert_eq!(local.status("x")["shell"]["state"], "ready");
}

#[test]
fn a_setup_step_that_fails_shows_its_output_and_runs_again_only_when_its_text_or_its_files_change() {
    let (local, fixture) = start();
    let failing = WEB_YML.replace("  migrate: [", "  migrate: ['echo no such table >&2; exit 3', ");
    Fixture::commit(&fixture.web, "w", "envforge.yml", &failing);
    local.ok(&["up", "w"]);
    let web = wait_broken(&local, "w", "web", "api");
    assert!(web["reason"].as_str().is_some_and(|text| text.contains("migrate")), "{web:#}");
    let why = local.ok(&["why", "w", "web"]);
    assert!(why.contains("web.migrate") && why.contains("no such table"), "{why}");

    let files = local.workspace_dir("w").join("files/web");
    let prepared = || fs::read_to_string(files.join("prepared.txt")).expect("read").lines().count();
    let restart = |text: &str| {
        fs::write(files.join("envforge.yml"), text).expect("write");
        local.ok(&["restart", "w", "web"]);
        let record = record(&local, "w", "CONTROL_SERVICE");
        assert_eq!(record["state"], "succeeded", "{record:#}");
        local.wait_healthy("w");
    };
    // Of the failing service, only the step that failed runs again.
    restart(WEB_YML);
    assert_eq!(prepared(), 1);
    local.ok(&["sleep", "w", "--wait"]);
    local.ok(&["up", "w", "--wait"]);
    assert_eq!(prepared(), 1, "what was done is not done again");
    let watching = WEB_YML.replace("layer: shell }\n  migrate", "layer: shell, changes: [lock.txt] }\n  migrate");
    restart(&watching);
    let before = prepared();
    restart(&watching);
    assert_eq!(prepared(), before);
    fs::write(files.join("lock.txt"), "2").expect("write");
    restart(&watching);
    assert_eq!(prepared(), before + 1);
    restart(&watching.replace("echo prepared", "echo  prepared"));
    assert_eq!(prepared(), before + 2);
}

#[test]
fn a_branch_that_is_to_begin_from_what_no_repository_has_is_refused_and_can_be_opened_otherwise() {
    let (local, _fixture) = start();
    let out = local.run(&["up", "w", "-c", "--from", "nope", "--no-attach"]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("no repository has `nope`"), "{said}");
    local.ok(&["delete", "w", "--yes"]);
    local.ok(&["up", "w", "-c", "--from", "main", "--no-attach", "--wait"]);
}
