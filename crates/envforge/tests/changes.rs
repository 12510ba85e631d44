//! What changes about a project or its files while a workspace is there: each change reaches what it is about, and
//! nothing else.

use envforge_testkit::{
    fixture::{API_YML, Fixture},
    local::Local,
    machine::eventually,
};
use serde_json::Value;
use std::{fs, path::Path, process::Output};

fn start(prepare: impl Fn(&Fixture)) -> (Local, Fixture) {
    let local = Local::start(Path::new(env!("CARGO_BIN_EXE_envforge")));
    let fixture = Fixture::create(local.dir());
    prepare(&fixture);
    fixture.apply(&local);
    (local, fixture)
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).expect("read");
    assert!(text.contains(from), "{from} in {text}");
    fs::write(path, text.replace(from, to)).expect("write");
}

/// A command in a service's environment.
fn with(local: &Local, service: &str, script: &str) -> Output {
    local.run(&["run", "w", "--service", service, "--", "sh", "-c", script])
}

fn says(local: &Local, service: &str, script: &str) -> String {
    let out = with(local, service, script);
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

fn newest(local: &Local, kind: &str) -> Value {
    let all = local.json(&["workspace", "commands", "w"])["commands"].clone();
    all.as_array().and_then(|all| all.iter().find(|c| c["kind"] == kind).cloned()).unwrap_or_default()
}

#[test]
fn what_each_service_has_for_itself_is_no_other_s_and_is_there_as_soon_as_it_is_asked_for() {
    let (local, _fixture) = start(|fixture| {
        let own =
            "resources: { database: { mode: managed, scope: service }, cache: { mode: managed, scope: service } }";
        edit(&fixture.project_file, "resources: { database: managed, cache: managed }", own);
    });
    local.ok(&["up", "w", "-c", "--no-attach", "--wait"]);
    says(&local, "web", "redis-cli -u $CACHE_URL set k of-web");
    // While the database serves, another service begins to use one.
    let api = local.workspace_dir("w").join("files/api/envforge.yml");
    let uses = "resources: { database: { required: true }, cache: { required: true } }\nenvironment:\n  \
                DATABASE_URL: { from: resource.database.url }\n  CACHE_URL: { from: resource.cache.url }";
    fs::write(&api, API_YML.replace("environment:", uses)).expect("write");
    local.ok(&["restart", "w", "api"]);
    local.wait_healthy("w");
    eventually("the restart is done", || (newest(&local, "CONTROL_SERVICE")["state"] == "succeeded").then_some(()));
    let own = "psql $DATABASE_URL -XAtc 'select current_database() || current_user'";
    assert_eq!([says(&local, "web", own), says(&local, "api", own)], ["app_webapp_web", "app_apiapp_api"]);
    let rows = "psql $DATABASE_URL -XAtc 'select count(*) from notes'";
    assert_eq!(says(&local, "web", rows), "0");
    assert!(!with(&local, "api", rows).status.success(), "it is another database");
    let other = "psql $(echo $DATABASE_URL | sed 's,/app_api$,/app_web,') -XAtc 'select 1'";
    let refused = String::from_utf8_lossy(&with(&local, "api", other).stderr).into_owned();
    assert!(refused.contains("permission denied for database"), "{refused}");
    // Killed in the middle, the preparation was not finished: as if nobody had been kept out of it yet.
    says(&local, "web", "psql $DATABASE_URL -Xc 'grant connect on database app_web to public'");
    assert!(with(&local, "api", other).status.success());
    fs::remove_file(local.workspace_dir("w").join("state/postgresql.prepared")).expect("prepared before");
    local.ok(&["sleep", "w", "--wait"]);
    local.ok(&["wake", "w", "--wait"]);
    assert!(!with(&local, "api", other).status.success(), "it is done again from the beginning");
    says(&local, "web", "redis-cli -u $CACHE_URL set k of-web");
    let key = "redis-cli -u $CACHE_URL get k";
    assert_eq!([says(&local, "web", key), says(&local, "api", key)], ["of-web", ""]);
    says(&local, "api", "redis-cli -u $CACHE_URL set k of-api");
    let mut shown: Vec<String> = local.status("w")["resources"]
        .as_array()
        .expect("resources")
        .iter()
        .map(|resource| format!("{} {} {}", resource["kind"], resource["service"], resource["state"]).replace('"', ""))
        .collect();
    shown.sort();
    assert_eq!(shown, ["cache api ready", "cache web ready", "database api ready", "database web ready"]);

    local.ok(&["sleep", "w", "--wait"]);
    local.ok(&["wake", "w", "--wait"]);
    assert_eq!([says(&local, "web", key), says(&local, "api", key)], ["of-web", "of-api"]);
    assert_eq!(says(&local, "api", own), "app_apiapp_api");
}

#[test]
fn a_service_that_joins_the_project_is_checked_out_and_served_at_the_next_wake() {
    let (local, fixture) = start(|fixture| {
        let whole = fs::read_to_string(&fixture.project_file).expect("read");
        fs::write(fixture.project_file.with_extension("whole"), whole).expect("write");
        let alone = format!("project: fixture\nservices:\n  api: {{ repo: {} }}\n", fixture.api.display());
        fs::write(&fixture.project_file, alone).expect("write");
    });
    local.ok(&["up", "w", "-c", "--no-attach", "--wait"]);
    assert!(!local.workspace_dir("w").join("files/web").exists());
    fs::rename(fixture.project_file.with_extension("whole"), &fixture.project_file).expect("rename");
    fixture.apply(&local);
    local.ok(&["sleep", "w", "--wait"]);
    local.ok(&["wake", "w", "--wait"]);
    assert_eq!(local.curl_json("w", "http://localhost:3000/")["branch"], "w");
    assert_eq!(local.inside_ok("w", "git -C /workspace/web rev-parse --abbrev-ref HEAD"), "w");

    // What came by a clone and what came by a fetch lies in packs: the next clone copies few files.
    Fixture::commit(&fixture.api, "later", "LATER.md", "later");
    local.ok(&["up", "later", "--no-attach"]);
    let caches = fs::read_dir(local.home().join("git")).expect("the cache").flatten();
    let objects = caches.map(|cache| cache.path().join("objects")).filter(|objects| objects.is_dir());
    for at in objects {
        let names = fs::read_dir(&at).expect("objects").flatten().map(|entry| entry.file_name());
        let single: Vec<_> = names.filter(|name| name.len() == 2).collect();
        assert!(single.is_empty() && at.join("pack").read_dir().expect("packs").count() >= 2, "{single:?}");
    }
}

#[test]
fn a_restart_of_one_service_leaves_the_environment_of_another_as_it_runs_and_an_unknown_service_is_named() {
    let (local, _fixture) = start(|_| ());
    local.ok(&["up", "w", "-c", "--no-attach", "--wait"]);
    let web = local.workspace_dir("w").join("files/web/envforge.yml");
    edit(&web, "BRANCH: { from: workspace.branch }", "BRANCH: edited");
    let branch = || {
        let told = local.json(&["env", "w", "--service", "web"])["variables"]["BRANCH"].clone();
        let file = local.inside_ok("w", "grep ^BRANCH= /workspace/.envforge/env/web.env");
        (told.as_str().unwrap_or_default().to_owned(), file)
    };
    for (service, wanted) in [("api", "w"), ("web", "edited")] {
        local.ok(&["restart", "w", service]);
        eventually("the restart is done", || (newest(&local, "CONTROL_SERVICE")["state"] == "succeeded").then_some(()));
        assert_eq!(branch(), (wanted.to_owned(), format!("BRANCH={wanted}")), "after the restart of {service}");
    }
    let out = local.run(&["env", "w", "--service", "nope"]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(2), "{said}");
    assert!(said.contains("project `fixture` has no service `nope`") && said.contains("api"), "{said}");
}

#[test]
fn a_worker_that_cannot_start_does_not_let_the_wake_succeed() {
    let (local, _fixture) = start(|fixture| {
        let broken = API_YML.replace("while :; do echo tick; sleep 5; done", "exit 7");
        Fixture::commit(&fixture.api, "w", "envforge.yml", &broken);
    });
    local.ok(&["up", "w", "--no-attach"]);
    let status = local.wait_for("w", "awake, with a worker that was tried again", |status| {
        let services = status["services"].as_array().cloned().unwrap_or_default();
        let tried =
            |s: &Value| s["name"] == "api.ticker" && s["state"] == "crashed" && s["restarts"].as_i64() > Some(1);
        let well = |s: &Value| s["name"] == "api.ticker" || s["state"] == "healthy";
        status["runtime"]["state"] == "awake" && services.iter().any(tried) && services.iter().all(well)
    });
    assert_eq!(newest(&local, "START_RUNTIME")["state"], "running", "{status:#}");
    let why = local.ok(&["why", "w", "api.ticker"]);
    assert!(why.contains("status 7"), "{why}");
}
