//! Resources in the mode `cloud`: the provisioner that ships, on a real PostgreSQL server that is no part of the
//! installation, and programs that do everything wrong.

use envforge_testkit::{
    fixture::Fixture,
    local::Local,
    machine::eventually,
    outside::{Outside, PASSWORD},
};
use serde_json::Value;
use std::{
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

fn start(outside: &Outside) -> (Local, Fixture) {
    let local = Local::start(Path::new(env!("CARGO_BIN_EXE_envforge")));
    let fixture = Fixture::create(local.dir());
    with_modes(&local, &fixture, "database: cloud, cache: managed");
    set(&local, "provisioner.database.url", &outside.postgres_url("postgres"));
    (local, fixture)
}

fn with_modes(local: &Local, fixture: &Fixture, modes: &str) {
    let text = fs::read_to_string(&fixture.project_file).expect("the project file");
    let (before, _) = text.split_once("resources:").expect("modes");
    fs::write(&fixture.project_file, format!("{before}resources: {{ {modes} }}\n")).expect("written");
    fixture.apply(local);
}

fn set(local: &Local, name: &str, value: &str) {
    let mut child = local.command(&["secrets", "set", name]).stdin(Stdio::piped()).spawn().expect("envforge runs");
    child.stdin.take().expect("piped").write_all(value.as_bytes()).expect("written");
    assert!(child.wait().expect("it ends").success());
}

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/provisioners/postgres")
}

/// What an operator does.
fn put(local: &Local, text: &str) {
    let dir = local.home().join("provisioners");
    fs::create_dir_all(&dir).expect("made");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("chmod");
    let beside = dir.join("new");
    fs::write(&beside, text).expect("written");
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o755)).expect("chmod");
    fs::rename(beside, dir.join("database")).expect("put");
}

fn put_shipped(local: &Local) {
    put(local, &fs::read_to_string(shipped()).expect("the example"));
}

fn resource<'a>(status: &'a Value, kind: &str) -> &'a Value {
    status["resources"].as_array().and_then(|all| all.iter().find(|r| r["kind"] == kind)).unwrap_or(&Value::Null)
}

fn service<'a>(status: &'a Value, name: &str) -> &'a Value {
    status["services"].as_array().and_then(|all| all.iter().find(|s| s["name"] == name)).unwrap_or(&Value::Null)
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&[out.stdout.as_slice(), &out.stderr].concat()).into_owned()
}

/// Databases that provisioners made, by name.
fn databases(outside: &Outside) -> Vec<String> {
    let text = outside.sql("postgres", "select datname from pg_database where datname like 'envforge%' order by 1");
    text.expect("it answers").lines().map(str::to_owned).collect()
}

fn url_of(local: &Local, workspace: &str) -> String {
    let env = local.json(&["env", workspace, "--service", "web", "--reveal"]);
    env["variables"]["DATABASE_URL"].as_str().expect("a URL").to_owned()
}

#[test]
fn each_workspace_has_a_database_of_its_own_on_the_server_and_it_goes_with_the_workspace() {
    let mut outside = Outside::start();
    outside.start_postgres();
    let (local, fixture) = start(&outside);
    local.ok(&["up", "w", "-c", "--no-attach"]);
    let blocked = local.wait_for("w", "blocked", |s| resource(s, "database")["state"] == "blocked");
    assert_eq!(resource(&blocked, "database")["reason"], "this host has no provisioner of database");
    local.wait_for("w", "served otherwise", |s| service(s, "api")["state"] == "healthy");
    put_shipped(&local);
    // By itself, without anyone here.
    local.wait_healthy("w");
    assert_eq!(resource(&local.status("w"), "database")["mode"], "cloud");
    local.curl("w", "http://localhost:3000/add?text=x");
    let made = databases(&outside);
    assert_eq!(made.len(), 1, "{made:?}");
    assert_eq!(outside.sql(&made[0], "select count(*) from notes").as_deref(), Some("1"));
    assert!(local.pids_in("w0/runtime/resources/database").is_empty());

    // The same after a sleep, and found where it was after another mode.
    local.ok(&["sleep", "w", "--wait"]);
    local.ok(&["wake", "w", "--wait"]);
    assert_eq!(local.curl_json("w", "http://localhost:3000/")["rows"], 1);
    let url = url_of(&local, "w");
    with_modes(&local, &fixture, "database: managed, cache: managed");
    local.ok(&["sleep", "w", "--wait"]);
    local.ok(&["wake", "w", "--wait"]);
    assert_eq!(local.curl_json("w", "http://localhost:3000/")["rows"], 0);
    with_modes(&local, &fixture, "database: cloud, cache: managed");
    local.ok(&["sleep", "w", "--wait"]);
    local.ok(&["wake", "w", "--wait"]);
    assert_eq!(
        (local.curl_json("w", "http://localhost:3000/")["rows"].as_i64(), &databases(&outside)),
        (Some(1), &made)
    );

    // A fork's is another one, set up and empty, and neither opens the other's.
    local.ok(&["fork", "w", "f"]);
    local.wait_healthy("f");
    assert_eq!(local.curl_json("f", "http://localhost:3000/")["rows"], 0);
    assert_eq!(databases(&outside).len(), 2);
    let foreign = url_of(&local, "f").replace(&name_in(&url_of(&local, "f")), &name_in(&url));
    let own_user =
        url_of(&local, "f").split_once("://").and_then(|(_, rest)| rest.split_once('@')).expect("a user").0.to_owned();
    let elsewhere = format!("postgres://{own_user}@{}:5432/{}", outside.address(), name_in(&url));
    assert_ne!(foreign, elsewhere);
    let script = format!("psql '{elsewhere}' -XAtc 'select 1' 2>&1");
    let tried = local.run(&["run", "f", "--service", "web", "--", "sh", "-c", &script]);
    assert!(!tried.status.success() && said(&tried).contains("permission denied for database"), "{}", said(&tried));

    // What opens it is shown nowhere, the administrator's least of all.
    let password = url.split(['@']).next().and_then(|user| user.rsplit(':').next()).expect("a password").to_owned();
    for args in
        ["status w", "--json status w", "resources w", "logs w", "why w web", "env w --service web", "--json audit"]
    {
        let shown = said(&local.run(&args.split(' ').collect::<Vec<_>>()));
        for hidden in [PASSWORD, outside.address(), &password] {
            assert!(!shown.contains(hidden), "{hidden} in {args}: {shown}");
        }
    }
    let dir = local.workspace_dir("w");
    for at in ["state/runtime.json", "state/secrets.json", "files/.envforge/env/web.env", "state/cloud.json"] {
        let text = fs::read_to_string(dir.join(at)).unwrap_or_default();
        assert!(!text.contains(PASSWORD), "the administrator's password is in {at}");
    }
    assert_eq!(fs::metadata(dir.join("state/cloud.json")).expect("there").mode() & 0o777, 0o600);

    // Deleting waits until it is gone, says what is left, and asks again by itself.
    local.ok(&["delete", "f", "--yes", "--force"]);
    assert_eq!(databases(&outside), made);
    outside.kill_postgres();
    let refused = local.run(&["delete", "w", "--yes", "--force"]);
    assert!(!refused.status.success(), "{}", said(&refused));
    assert!(said(&refused).contains("database of the workspace is not removed yet"), "{}", said(&refused));
    assert!(dir.join("state/cloud.json").exists());
    outside.start_postgres();
    eventually("its database is gone", || databases(&outside).is_empty().then_some(()));
    eventually("it is gone", || (!dir.exists()).then_some(()));
    assert_eq!(
        outside.sql("postgres", "select count(*) from pg_roles where rolname like 'envforge%'").as_deref(),
        Some("0")
    );
}

fn name_in(url: &str) -> String {
    url.rsplit('/').next().expect("a name").split('?').next().expect("a name").to_owned()
}

#[test]
fn a_program_that_does_everything_wrong_blocks_its_resource_alone_and_shows_nothing_it_was_told() {
    let outside = Outside::start();
    let (local, _fixture) = start(&outside);
    let secret = outside.postgres_url("postgres");
    put(&local, "#!/bin/sh\ncat >&2\nexit 1\n");
    local.ok(&["up", "w", "-c", "--no-attach"]);
    let reason = |what: &str, reason: &str| {
        let status = local
            .wait_for("w", what, |s| resource(s, "database")["reason"].as_str().is_some_and(|r| r.contains(reason)));
        assert_eq!(resource(&status, "database")["state"], "blocked");
        local.wait_for("w", "served otherwise", |s| service(s, "api")["state"] == "healthy");
    };
    reason("one that fails", "ended with status 1");
    eventually("its words are in the host's log", || {
        let log: String = fs::read_dir(local.home().join("logs"))
            .expect("logs")
            .flatten()
            .map(|entry| fs::read_to_string(entry.path()).unwrap_or_default())
            .collect();
        for hidden in [PASSWORD, outside.address(), secret.as_str()] {
            assert!(!log.contains(hidden), "{hidden} is in a log");
        }
        log.contains("a provisioner said").then_some(())
    });
    put(&local, "#!/bin/sh\nhead -c 100 /dev/urandom\n");
    reason("one that prints garbage", "answered something else than the contract says");
    put(
        &local,
        "#!/bin/sh\nread -r all\nprintf '{\"version\":1,\"error\":{\"reason\":\"no: %s\",\"hint\":\"ask ada\"}}' \"$(echo \"$all\" | grep -o 'postgres:[^\\\"]*')\"\nexit 1\n",
    );
    reason("one that says why", "says: no: ***");
    put(&local, "#!/bin/sh\nprintf '{\"version\":1,\"state\":\"ready\",\"fields\":{\"url\":\"mysql://x\"}}'\n");
    reason("one that makes something else", "a url that is not of the form postgres://");
    put(
        &local,
        "#!/bin/sh\nid -u > /tmp/provisioner-$$ 2>/dev/null\nprintf '{\"version\":1,\"error\":{\"reason\":\"as %s with %s\"}}' \"$(id -u)\" \"$(env | cut -d= -f1 | sort | tr '\\n' ' ')\"\nrm -f /tmp/provisioner-$$\nexit 1\n",
    );
    let status = local.wait_for("w", "told as whom", |s| {
        resource(s, "database")["reason"].as_str().is_some_and(|r| r.contains("says: as "))
    });
    let words = resource(&status, "database")["reason"].as_str().expect("words");
    assert!(!words.contains("as 0 ") && words.contains("with HOME LANG PATH PWD TMPDIR"), "{words}");
    for args in ["status w", "--json status w", "logs w", "why w web"] {
        let shown = said(&local.run(&args.split(' ').collect::<Vec<_>>()));
        assert!(!shown.contains(PASSWORD) && !shown.contains(outside.address()), "{args}: {shown}");
    }
}

#[test]
fn a_daemon_that_is_killed_while_a_program_works_asks_again_and_leaves_one_database() {
    let mut outside = Outside::start();
    outside.start_postgres();
    let (local, _fixture) = start(&outside);
    // It makes the database, and then hangs before it says so, until someone lets it go.
    let gate = local.dir().join("gate");
    fs::write(&gate, "").expect("written");
    let program = local.dir().join("postgres-provisioner");
    fs::copy(shipped(), &program).expect("copied");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("chmod");
    put(
        &local,
        &format!(
            "#!/bin/sh\nanswer=$({})\nwhile [ -e {} ]; do sleep 0.1; done\nprintf %s \"$answer\"\n",
            program.display(),
            gate.display()
        ),
    );
    local.ok(&["up", "w", "-c", "--no-attach"]);
    eventually("it is made", || (databases(&outside).len() == 1).then_some(()));
    let waking = local.wait_for("w", "waiting", |s| service(s, "api")["state"] == "healthy");
    assert_eq!(resource(&waking, "database")["state"], "waking");
    let before = local.pids_in("provisioners");
    assert!(!before.is_empty());
    local.kill("host");
    eventually("another daemon asks", || {
        let now = local.pids_in("provisioners");
        (!now.is_empty() && now.iter().all(|pid| !before.contains(pid))).then_some(())
    });
    fs::remove_file(&gate).expect("removed");
    local.wait_healthy("w");
    local.curl("w", "http://localhost:3000/add?text=x");
    assert_eq!(databases(&outside).len(), 1);
    eventually("no program is left", || local.pids_in("provisioners").is_empty().then_some(()));
    local.ok(&["delete", "w", "--yes", "--force"]);
    assert!(databases(&outside).is_empty());
}

#[test]
fn what_someone_removed_outside_is_made_anew_and_set_up_again() {
    let mut outside = Outside::start();
    outside.start_postgres();
    let (local, _fixture) = start(&outside);
    put_shipped(&local);
    local.ok(&["up", "w", "-c", "--no-attach", "--wait"]);
    local.curl("w", "http://localhost:3000/add?text=x");
    local.ok(&["sleep", "w", "--wait"]);
    let made = databases(&outside);
    assert!(outside.sql("postgres", &format!("drop database {} with (force)", made[0])).is_some());
    local.ok(&["wake", "w"]);
    local.wait_healthy("w");
    assert_eq!(local.curl_json("w", "http://localhost:3000/")["rows"], 0, "its table is there again");
    assert_eq!(databases(&outside), made);
    local.ok(&["delete", "w", "--yes", "--force"]);
    assert!(databases(&outside).is_empty());
}

#[test]
fn a_program_that_hangs_is_ended_with_all_it_started_and_holds_nobody_else_up() {
    let outside = Outside::start();
    let (local, _fixture) = start(&outside);
    put(&local, "#!/bin/sh\ntrap '' TERM\nsetsid sleep 1000 &\nsleep 1000\n");
    local.ok(&["up", "w", "-c", "--no-attach"]);
    let waking = local.wait_for("w", "served otherwise", |s| service(s, "api")["state"] == "healthy");
    assert_eq!(resource(&waking, "database")["state"], "waking");
    let hung = eventually("it hangs", || {
        let pids = local.pids_in("provisioners");
        (pids.len() >= 3).then_some(pids)
    });
    let status = local.wait_for("w", "blocked", |s| resource(s, "database")["state"] == "blocked");
    let reason = resource(&status, "database")["reason"].as_str().expect("a reason");
    assert_eq!(reason, "the provisioner of database did not answer within 30 s");
    let left = local.pids_in("provisioners");
    assert!(hung.iter().all(|pid| !left.contains(pid)), "nothing of it is left: {hung:?} {left:?}");
    // A sleep takes the question with it.
    eventually("it is asked again", || (!local.pids_in("provisioners").is_empty()).then_some(()));
    local.ok(&["sleep", "w", "--wait"]);
    eventually("nobody asks", || local.pids_in("provisioners").is_empty().then_some(()));
}
