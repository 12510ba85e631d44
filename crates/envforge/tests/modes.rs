//! Modes of resources, with real servers that are no part of the installation.

use envforge_testkit::{
    fixture::Fixture,
    local::Local,
    outside::{Outside, PASSWORD},
};
use serde_json::Value;
use std::{
    fs,
    io::Write,
    path::Path,
    process::{Output, Stdio},
};

fn start(modes: &str) -> (Local, Fixture) {
    let local = Local::start(Path::new(env!("CARGO_BIN_EXE_envforge")));
    let fixture = Fixture::create(local.dir());
    with_modes(&local, &fixture, modes);
    (local, fixture)
}

/// Applies other modes; what applying them said.
fn with_modes(local: &Local, fixture: &Fixture, modes: &str) -> String {
    let text = fs::read_to_string(&fixture.project_file).expect("the project file");
    let (before, _) = text.split_once("resources:").expect("modes");
    fs::write(&fixture.project_file, format!("{before}resources: {{ {modes} }}\n")).expect("written");
    local.ok(&["project", "apply", "-f", &fixture.project_file.to_string_lossy()])
}

fn set(local: &Local, name: &str, value: &str) {
    let mut child = local.command(&["secrets", "set", name]).stdin(Stdio::piped()).spawn().expect("envforge runs");
    child.stdin.take().expect("piped").write_all(value.as_bytes()).expect("written");
    assert!(child.wait().expect("it ends").success());
}

fn resource<'a>(status: &'a Value, kind: &str) -> &'a Value {
    status["resources"].as_array().and_then(|all| all.iter().find(|r| r["kind"] == kind)).unwrap_or(&Value::Null)
}

fn service<'a>(status: &'a Value, name: &str) -> &'a Value {
    status["services"].as_array().and_then(|all| all.iter().find(|s| s["name"] == name)).unwrap_or(&Value::Null)
}

fn wait_resource(local: &Local, kind: &str, state: &str) -> Value {
    let status = local.wait_for("w", &format!("{kind} {state}"), |s| resource(s, kind)["state"] == state);
    resource(&status, kind).clone()
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&[out.stdout.as_slice(), &out.stderr].concat()).into_owned()
}

/// Nothing that is shown says where the servers are or how to get in.
fn assert_shows_nothing(local: &Local, outside: &Outside) {
    for args in [
        "status w",
        "--json status w",
        "resources w",
        "--json resources w",
        "why w web",
        "--json why w web",
        "logs w",
        "--json logs w",
        "env w --service web",
        "--json audit",
        "secrets ls",
    ] {
        let shown = said(&local.run(&args.split(' ').collect::<Vec<_>>()));
        for hidden in [PASSWORD, outside.address()] {
            assert!(!shown.contains(hidden), "{hidden} in {args}: {shown}");
        }
    }
}

#[test]
fn provided_resources_are_looked_at_from_inside_and_their_loss_shows_and_heals_by_itself() {
    let mut outside = Outside::start();
    outside.start_postgres();
    outside.start_redis();
    let (local, _fixture) = start("database: provided, cache: provided");
    local.ok(&["up", "w", "-c", "--no-attach"]);
    let blocked = local.wait_for("w", "blocked", |s| service(s, "web")["state"] == "unhealthy");
    let database = resource(&blocked, "database");
    assert_eq!((&database["mode"], &database["state"]), (&"provided".into(), &"blocked".into()));
    assert_eq!(database["reason"], "it is provided, and the secret resource.database.url is not set");
    let hint = database["hint"].as_str().expect("a hint");
    assert!(hint.starts_with("`envforge secrets set resource.database.url --project fixture`"), "{hint}");
    local.wait_for("w", "served otherwise", |s| service(s, "api")["state"] == "healthy");

    set(&local, "resource.database.url", &outside.postgres_url("postgres"));
    set(&local, "resource.cache.url", &outside.redis_url());
    local.ok(&["restart", "w", "web"]);
    local.wait_healthy("w");
    local.curl("w", "http://localhost:3000/add?text=x");
    local.curl("w", "http://localhost:3000/set?v=outside");
    assert_eq!(outside.sql("postgres", "select count(*) from notes").as_deref(), Some("1"));
    assert_eq!(local.curl_json("w", "http://localhost:3000/")["key"], "outside");
    for server in ["database", "redis"] {
        assert!(
            local.pids_in(&format!("w0/runtime/resources/{server}")).is_empty(),
            "no {server} of the workspace's own"
        );
    }
    let resources = local.ok(&["resources", "w"]);
    assert!(
        resources.contains("provided") && resources.contains("postgres://***@resource.database/app"),
        "{resources}"
    );
    assert_shows_nothing(&local, &outside);

    // Its end shows in it, and in nothing else.
    outside.kill_postgres();
    let lost = wait_resource(&local, "database", "blocked");
    assert_eq!(lost["reason"], "its server refuses connections: nothing listens there");
    assert!(lost["hint"].as_str().is_some_and(|hint| hint.contains("tried again by itself")), "{lost}");
    let status = local.status("w");
    assert_eq!((&status["runtime"]["state"], &service(&status, "api")["state"]), (&"awake".into(), &"healthy".into()));
    assert_eq!(resource(&status, "cache")["state"], "ready");
    assert_shows_nothing(&local, &outside);
    outside.start_postgres();
    wait_resource(&local, "database", "ready");

    // One that nobody can reach.
    outside.cut(true);
    let lost = wait_resource(&local, "database", "blocked");
    assert!(lost["reason"].as_str().is_some_and(|reason| reason.contains("does not answer")), "{lost}");
    outside.cut(false);
    wait_resource(&local, "database", "ready");

    // One that lets nobody in is told at the wake, and gets better without anyone here.
    local.ok(&["sleep", "w", "--wait"]);
    assert!(outside.sql("postgres", "alter role postgres password 'another'").is_some());
    local.ok(&["wake", "w"]);
    let refused = wait_resource(&local, "database", "blocked");
    assert_eq!(refused["reason"], "its server refuses the user or the password");
    let status = local.wait_for("w", "blocked", |s| service(s, "web")["state"] == "unhealthy");
    assert!(service(&status, "web")["reason"].as_str().is_some_and(|r| r.starts_with("its database is blocked")));
    assert!(outside.sql("postgres", &format!("alter role postgres password '{PASSWORD}'")).is_some());
    local.wait_healthy("w");
    assert_shows_nothing(&local, &outside);
}

#[test]
fn a_change_of_mode_shows_its_effect_and_leaves_the_data_of_the_mode_before_where_it_was() {
    let mut outside = Outside::start();
    outside.start_postgres();
    let (local, fixture) = start("database: managed, cache: managed");
    local.ok(&["up", "w", "-c", "--no-attach", "--wait"]);
    local.curl("w", "http://localhost:3000/add?text=managed");
    let yml = fs::read(local.workspace_dir("w").join("files/web/envforge.yml")).expect("there");
    set(&local, "resource.database.url", &outside.postgres_url("postgres"));
    let told = with_modes(&local, &fixture, "database: provided, cache: managed");
    assert!(told.contains("~ resource database: managed → provided: from each workspace's next wake"), "{told}");
    assert!(told.contains("the managed data stays on the host"), "{told}");
    assert_eq!(local.curl_json("w", "http://localhost:3000/")["rows"], 1, "what runs goes on as it was");
    local.ok(&["sleep", "w", "--wait"]);
    local.ok(&["wake", "w", "--wait"]);
    assert_eq!(resource(&local.status("w"), "database")["mode"], "provided");
    assert_eq!(local.curl_json("w", "http://localhost:3000/")["rows"], 0, "set-up ran for the other data");
    let told = with_modes(&local, &fixture, "database: managed, cache: managed");
    assert!(told.contains("the values that were set stay set"), "{told}");
    local.ok(&["sleep", "w", "--wait"]);
    local.ok(&["wake", "w", "--wait"]);
    assert_eq!(local.curl_json("w", "http://localhost:3000/")["rows"], 1, "it is there again");
    assert_eq!(fs::read(local.workspace_dir("w").join("files/web/envforge.yml")).expect("there"), yml);
}
