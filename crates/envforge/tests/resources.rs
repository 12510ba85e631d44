//! Data services as people use them: seen, opened with their clients, read while asleep, whole after a killed server.

use envforge_testkit::{
    fixture::{API_YML, Fixture, WEB_YML},
    local::{Local, program},
    machine::eventually,
};
use serde_json::Value;
use std::{fs, path::Path};

const SEND: &str = r#"
import os, smtplib, sys
from email.message import EmailMessage
from urllib.parse import urlsplit
to = urlsplit(os.environ["SMTP_URL"])
mail = EmailMessage()
mail["From"], mail["To"], mail["Subject"] = "Ada <ada@example.com>", "bob@example.com", sys.argv[1]
mail.set_content("Hello Bob,\nit works.\n")
mail.add_attachment(b"a,b\n1,2\n", maintype="text", subtype="csv", filename="numbers.csv")
with smtplib.SMTP(sys.argv[2] if len(sys.argv) > 2 else to.hostname, to.port) as smtp:
    smtp.login("anyone", "any password")
    smtp.send_message(mail)
"#;

fn start() -> (Local, Fixture) {
    let local = Local::start(Path::new(env!("CARGO_BIN_EXE_envforge")));
    let fixture = Fixture::create(local.dir());
    let uses = "resources: { mail: { required: true } }\nenvironment:\n  SMTP_URL: { from: resource.mail.smtp_url }";
    Fixture::commit(&fixture.api, "main", "envforge.yml", &API_YML.replace("environment:", uses));
    Fixture::commit(&fixture.api, "main", "send.py", SEND);
    let project = fs::read_to_string(&fixture.project_file).expect("read");
    let with_mail = project.replace("cache: managed }", "cache: managed, mail: managed }");
    fs::write(&fixture.project_file, with_mail).expect("write");
    fixture.apply(&local);
    (local, fixture)
}

fn subjects(local: &Local, workspace: &str) -> Vec<String> {
    let inbox = local.json(&["mail", workspace]);
    let messages = inbox["messages"].as_array().expect("messages").iter();
    messages.map(|message| message["subject"].as_str().expect("a subject").to_owned()).collect()
}

fn resource<'a>(view: &'a Value, kind: &str) -> &'a Value {
    view["resources"].as_array().and_then(|all| all.iter().find(|r| r["kind"] == kind)).expect("the resource")
}

#[test]
fn mail_is_kept_and_read_awake_asleep_and_after_its_server_was_killed_and_by_nobody_else() {
    if program("mailpit", "managed mail").is_none() {
        return;
    }
    let (local, _fixture) = start();
    local.ok(&["up", "w", "-c", "--no-attach", "--wait"]);
    assert_eq!(subjects(&local, "w"), [""; 0]);
    let send = |subject: &str| local.ok(&["run", "w", "--service", "api", "--", "python3", "send.py", subject]);
    send("first");
    let inbox = local.json(&["mail", "w"]);
    assert_eq!((&inbox["total"], &inbox["messages"][0]["attachments"]), (&Value::from(1), &Value::from(1)));
    assert_eq!(inbox["messages"][0]["from"]["address"], "ada@example.com");

    // The server is killed: it comes back by itself, and what it took is there.
    let pid = fs::read_to_string(pids_of(&local, "mail")).expect("a group").trim().parse::<i32>().expect("one process");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).expect("killed");
    eventually("another mail server", || {
        let now = fs::read_to_string(pids_of(&local, "mail")).unwrap_or_default();
        (!now.trim().is_empty() && now.trim() != pid.to_string()).then_some(())
    });
    local.wait_for("w", "mail that is ready", |view| resource(view, "mail")["state"] == "ready");
    // Some clients take the one address of `localhost`, some the other.
    local.ok(&["run", "w", "--service", "api", "--", "python3", "send.py", "second", "::1"]);
    assert_eq!(subjects(&local, "w"), ["second", "first"]);
    let whole = local.ok(&["mail", "w", "--show", "latest"]);
    assert!(whole.contains("To:      bob@example.com") && whole.ends_with("it works.\n"), "{whole}");
    assert!(whole.contains("File:    numbers.csv (text/csv, 8 octets)"), "{whole}");

    // A copy has what was there when it was made.
    local.ok(&["fork", "w", "copy"]);
    local.wait_healthy("copy");
    send("third");
    assert_eq!(subjects(&local, "copy"), ["second", "first"]);
    let deleted = local.ok(&["delete", "copy", "--yes", "--force"]);
    assert_eq!(subjects(&local, "w"), ["third", "second", "first"], "{deleted}");

    // Neither its own user nor another workspace gets to the inbox itself.
    let own = local.inside("w", "ls /run/envforge-data/mailpit; curl -s localhost:8025");
    assert!(!own.status.success() && own.stdout.is_empty(), "{own:?}");
    local.ok(&["up", "other", "-c", "--no-attach", "--wait"]);
    assert_eq!(subjects(&local, "other"), [""; 0]);

    // Asleep it is read without waking anything, and nothing stays.
    local.ok(&["sleep", "w", "--wait"]);
    assert_eq!(subjects(&local, "w"), ["third", "second", "first"]);
    let id = local.json(&["mail", "w"])["messages"][2]["id"].as_str().expect("an id").to_owned();
    let first = local.json(&["mail", "w", "--show", &id]);
    assert_eq!((&first["subject"], &first["attachments"][0]["name"]), (&"first".into(), &"numbers.csv".into()));
    assert_eq!(local.status("w")["runtime"]["state"], "asleep");
    assert!(local.inside_ok("w", "envforge mail").contains("second"));
    let none = local.run(&["mail", "w", "--show", "Nothing"]);
    assert_eq!(none.status.code(), Some(3), "{none:?}");
    let dir = local.workspace_dir("w").join("data/mailpit");
    eventually("no reader is left", || {
        let names = fs::read_dir(&dir).expect("its directory").flatten().map(|entry| entry.file_name());
        names.into_iter().all(|name| !name.to_string_lossy().ends_with(".sock")).then_some(())
    });
}

/// The list of a server's processes.
fn pids_of(local: &Local, server: &str) -> std::path::PathBuf {
    let spec = fs::read_to_string(local.workspace_dir("w").join("state/runtime.json")).expect("a runtime");
    let spec: Value = serde_json::from_str(&spec).expect("its description");
    let group = spec["sandbox"]["cgroups"]["runtime"]["v2"].as_str().expect("a group").to_owned();
    Path::new(&group).join("resources").join(server).join("cgroup.procs")
}

#[test]
fn a_client_opens_what_it_is_for_waking_the_runtime_and_a_resource_is_shown_without_secrets() {
    let (local, _fixture) = start();
    local.ok(&["up", "w", "-c", "--no-attach", "--wait"]);
    local.ok(&["sleep", "w", "--wait"]);
    assert_eq!(local.ok(&["psql", "w", "--", "-XAtc", "select current_user || 1"]).trim(), "app1");
    assert_ne!(local.status("w")["runtime"]["state"], "asleep");
    local.ok(&["redis", "w", "--", "set", "k", "v"]);
    assert_eq!(local.inside_ok("w", "envforge redis -- get k"), "v");
    let failed = local.run(&["psql", "w", "--", "-XAtc", "select nonsense"]);
    assert_eq!(failed.status.code(), Some(1), "the client's own status: {failed:?}");
    let none = local.run(&["redis", "w", "--queue", "--", "ping"]);
    let said = String::from_utf8_lossy(&none.stderr).into_owned();
    assert!(none.status.code() == Some(3) && said.contains("no such queue") && said.contains("envforge.yml"), "{said}");

    let view = local.json(&["resources", "w"]);
    let database = resource(&view, "database");
    assert_eq!(database["url"], "postgres://***@resource.database/app");
    assert_eq!((&database["mode"], &database["consumers"]), (&"managed".into(), &serde_json::json!(["web"])));
    let env = local.json(&["env", "w", "--service", "web", "--reveal"]);
    let url = env["variables"]["DATABASE_URL"].as_str().expect("the url");
    let password = url.split([':', '@']).nth(2).expect("a password");
    for shown in [&["resources", "w"][..], &["resources", "w", "--json"], &["status", "w", "--json"]] {
        assert!(!local.ok(shown).contains(password), "{shown:?}");
    }
    let table = local.ok(&["resources", "w"]);
    assert!(
        table.contains("database") && table.contains("ready") && table.contains("redis://resource.cache"),
        "{table}"
    );
}

const SEED: &str = "create table seeded(n int);\ninsert into seeded values (1), (2), (3);\ncreate table ran(n int);\n";

fn rows(local: &Local, sql: &str) -> String {
    local.ok(&["psql", "w", "--", "-XAtc", sql]).trim().to_owned()
}

/// The web service with a seed, and a step that notes how many rows it found.
fn seeded(local: &Local) -> Fixture {
    let fixture = Fixture::create(local.dir());
    let seeded = WEB_YML.replace("database: { required: true }", "database: { required: true, seed: db/seed.sql }");
    let noted = "setup:\n  note: ['psql $DATABASE_URL -c ''insert into ran select count(*) from seeded''']";
    Fixture::commit(&fixture.web, "main", "envforge.yml", &seeded.replace("setup:", noted));
    Fixture::commit(&fixture.web, "main", "db/seed.sql", SEED);
    fixture.apply(local);
    fixture
}

#[test]
fn a_new_database_is_filled_before_anyone_uses_it_and_a_reset_fills_it_anew_restarting_its_consumers_alone() {
    let local = Local::start(Path::new(env!("CARGO_BIN_EXE_envforge")));
    let _fixture = seeded(&local);
    local.ok(&["up", "w", "-c", "--no-attach", "--wait"]);
    let found = "select count(*) || ':' || (select string_agg(n::text, ',') from ran) from seeded";
    assert_eq!(rows(&local, found), "3:3");

    // Neither at the next wake nor when the file changes: only what is new is filled.
    local.ok(&["sleep", "w", "--wait"]);
    let file = local.workspace_dir("w").join("files/web/db/seed.sql");
    fs::write(&file, SEED.replace("(3)", "(3), (4)")).expect("write");
    local.ok(&["wake", "w", "--wait"]);
    assert_eq!(rows(&local, found), "3:3");

    // Whatever its owner made goes too, one from which others are copied as well.
    for sql in
        ["create database further", "alter database further is_template true", "insert into notes(text) values ('x')"]
    {
        rows(&local, sql);
    }
    local.ok(&["redis", "w", "--", "set", "k", "kept"]);
    let since = |name: &str| {
        let view = local.json(&["status", "w"]);
        let services = view["services"].as_array().expect("services").iter();
        services.filter(|s| s["name"] == name).map(|s| s["since"].to_string()).collect::<String>()
    };
    let (web, api) = (since("web"), since("api"));
    let refused = local.run(&["reset", "w", "database"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && said.contains("restarts web") && said.contains("--yes"), "{said}");
    let done = local.run(&["reset", "w", "database", "--yes"]);
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success() && said.contains("wiping database"), "{said}");
    local.wait_healthy("w");
    assert_eq!(rows(&local, found), "4:4");
    let left = "select (select count(*) from notes) + (select count(*) from pg_database where datname = 'further')";
    assert_eq!(rows(&local, left), "0");
    assert_eq!(local.ok(&["redis", "w", "--", "get", "k"]).trim(), "kept");
    assert!(since("web") != web && since("api") == api);
    assert_eq!(local.json(&["workspace", "commands", "w", "--limit", "1"])["commands"][0]["state"], "succeeded");
    for (words, hint) in [
        (["reset", "w", "storage", "--yes"], "it has: cache, database"),
        (["reset", "w", "disk", "--yes"], "name one or more of"),
    ] {
        let refused = local.run(&words);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains(hint), "{said}");
    }
}

#[test]
fn a_seed_that_fails_blocks_its_database_with_the_reason_until_it_is_mended() {
    let local = Local::start(Path::new(env!("CARGO_BIN_EXE_envforge")));
    let fixture = seeded(&local);
    Fixture::commit(&fixture.web, "main", "db/seed.sql", "create table half(n int);\nselect nonsense;\n");
    let up = local.run(&["up", "w", "-c", "--no-attach", "--wait"]);
    assert_eq!(up.status.code(), Some(1), "{up:?}");
    let view = local.status("w");
    let database = resource(&view, "database");
    assert_eq!((&database["state"], &view["runtime"]["state"]), (&"blocked".into(), &"awake".into()), "{view}");
    assert_eq!(database["reason"], "the seed web/db/seed.sql failed with status 3");
    assert!(local.ok(&["logs", "w", "setup"]).contains("nonsense"));
    fs::write(local.workspace_dir("w").join("files/web/db/seed.sql"), SEED).expect("write");
    local.ok(&["redis", "w", "--", "set", "k", "v"]);
    local.ok(&["reset", "w", "cache", "--yes"]);
    local.ok(&["restart", "w", "web"]);
    local.wait_healthy("w");
    assert_eq!(rows(&local, "select count(*) from pg_tables where tablename in ('half', 'seeded')"), "1");
    assert_eq!(local.ok(&["redis", "w", "--", "exists", "k"]).trim(), "0");
}

#[test]
fn a_queue_is_written_before_it_answers_and_evicts_nothing_and_servers_are_as_large_as_their_runtime() {
    let local = Local::start(Path::new(env!("CARGO_BIN_EXE_envforge")));
    let fixture = Fixture::create(local.dir());
    fixture.apply(&local);
    local.ok(&["up", "w", "-c", "--no-attach", "--wait"]);
    let setting = |name: &str| {
        let said = local.ok(&["redis", "w", "--", "config", "get", name]);
        said.lines().nth(1).expect("a value").to_owned()
    };
    assert_eq!(["appendfsync", "maxmemory-policy"].map(setting), ["everysec", "allkeys-lru"]);
    assert_eq!(setting("maxmemory"), (512_u64 << 20).to_string(), "a quarter of a small runtime");
    assert_eq!(local.ok(&["psql", "w", "--", "-XAtc", "show shared_buffers"]).trim(), "16MB");
    // Another service asks for a queue while it serves.
    let api = local.workspace_dir("w").join("files/api/envforge.yml");
    let uses = "resources: { queue: { required: true } }\nenvironment:";
    fs::write(&api, API_YML.replace("environment:", uses)).expect("write");
    local.ok(&["restart", "w", "api"]);
    local.wait_for("w", "a queue", |view| {
        view["resources"]
            .as_array()
            .is_some_and(|all| all.iter().any(|r| r["kind"] == "queue" && r["state"] == "ready"))
    });
    assert_eq!(["appendfsync", "maxmemory-policy", "maxmemory"].map(setting), ["always", "noeviction", "0"]);
    local.ok(&["sleep", "w", "--wait"]);
    local.ok(&["wake", "w", "--wait"]);
    assert_eq!(["appendfsync", "maxmemory-policy", "maxmemory"].map(setting), ["always", "noeviction", "0"]);
}
