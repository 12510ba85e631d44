//! Sleep receipts: what data services held when a runtime fell asleep is kept and verified when it wakes, and data that was
//! changed meanwhile is told loudly, by kind; what was never put to sleep raises no alarm.

use envforge_host::resources::storage::{Place, Root, objects};
use envforge_testkit::{
    fixture::{API_YML, Fixture},
    local::{Local, program},
    machine::{eventually, sigkill},
    storage::{self, Stored},
};
use serde_json::Value;
use std::{
    fs,
    io::Write,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Milliseconds that counting may take, as docs/operating.md says.
const BOUND_MS: u64 = 500;

const SEND: &str = r#"
import smtplib
with smtplib.SMTP("localhost", 1025) as smtp:
    smtp.sendmail("ada@example.com", ["bob@example.com"], "Subject: one\n\nHello")
"#;

fn start() -> Local {
    let local = Local::start(Path::new(env!("CARGO_BIN_EXE_envforge")));
    let fixture = Fixture::create(local.dir());
    if program("mailpit", "receipts of mail").is_some() {
        let uses =
            "resources: { mail: { required: true } }\nenvironment:\n  SMTP_URL: { from: resource.mail.smtp_url }";
        Fixture::commit(&fixture.api, "main", "envforge.yml", &API_YML.replace("environment:", uses));
        Fixture::commit(&fixture.api, "main", "send.py", SEND);
        let project = fs::read_to_string(&fixture.project_file).expect("read");
        let with_mail = project.replace("cache: managed }", "cache: managed, mail: managed }");
        fs::write(&fixture.project_file, with_mail).expect("write");
    }
    fixture.apply(&local);
    local.ok(&["up", "w", "-c", "--no-attach", "--wait"]);
    local
}

fn sql(local: &Local, text: &str) -> String {
    local.ok(&["psql", "w", "--", "-XAtqc", text]).trim().to_owned()
}

/// The newest record of a kind, whole.
fn record(local: &Local, kind: &str) -> Value {
    let list = local.json(&["workspace", "commands", "w"]);
    let newest = list["commands"].as_array().expect("records").iter().find(|c| c["kind"] == kind).expect("a record");
    local.json(&["workspace", "command", newest["id"].as_str().expect("an id")])
}

fn of<'a>(all: &'a Value, kind: &str) -> &'a Value {
    all.as_array().and_then(|all| all.iter().find(|r| r["kind"] == kind)).unwrap_or(&Value::Null)
}

fn verdict(local: &Local, kind: &str) -> Value {
    of(&local.status("w")["resources"], kind)["receipt"]["check"]["verdict"].clone()
}

fn rows(manifest: &Value, table: &str) -> Value {
    let tables = manifest["tables"].as_array().unwrap_or_else(|| panic!("no tables in {manifest:#}"));
    tables.iter().find(|t| t["table"] == table).unwrap_or_else(|| panic!("no {table} in {manifest:#}"))["rows"].clone()
}

fn sleep(local: &Local) -> Value {
    local.ok(&["sleep", "w", "--wait"]);
    record(local, "SLEEP_RUNTIME")["receipt"].clone()
}

fn data(local: &Local, of: &str) -> PathBuf {
    local.workspace_dir("w").join("data").join(of)
}

/// Changes the rows of a cluster at rest with a server of its own.
fn change_rows(local: &Local, statement: &str) {
    let cluster = data(local, "postgresql");
    let owner = fs::metadata(&cluster).expect("a cluster");
    let elsewhere = tempfile::Builder::new().prefix("ef").tempdir().expect("temp dir");
    let copy = elsewhere.path().join("cluster");
    let run = |command: &mut Command| {
        let out = command.output().expect("it runs");
        assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    };
    // Its user has no way to where it lies.
    fs::set_permissions(elsewhere.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    run(Command::new("cp").arg("-a").args([&cluster, &copy]));
    let programs = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL").flatten().map(|entry| entry.path());
    let postgres = programs.map(|path| path.join("bin/postgres")).max().expect("a version");
    let mut single = Command::new(postgres);
    single.args(["--single", "-j", "-D"]).arg(&copy).arg("app").uid(owner.uid()).gid(owner.gid());
    single.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut server = single.spawn().expect("a server");
    server.stdin.take().expect("piped").write_all(format!("{statement}\n\n").as_bytes()).expect("told");
    assert!(server.wait().expect("it ends").success());
    fs::remove_dir_all(&cluster).expect("removed");
    run(Command::new("cp").arg("-a").args([&copy, &cluster]));
}

#[test]
fn what_was_held_is_verified_at_the_wake_and_what_changed_at_rest_is_told_loudly_by_kind() {
    let local = start();
    let has_mail = !of(&local.status("w")["resources"], "mail").is_null();
    sql(
        &local,
        "create table orders(n int); insert into orders select generate_series(1, 5); create table empty(n int)",
    );
    local.ok(&["redis", "w", "--", "mset", "a", "1", "b", "2", "c", "3"]);
    if has_mail {
        local.ok(&["run", "w", "--service", "api", "--", "python3", "send.py"]);
    }

    let receipt = sleep(&local);
    let database = &of(&receipt, "database")["manifest"];
    assert_eq!((rows(database, "app.public.orders"), rows(database, "app.public.empty")), (5.into(), 0.into()));
    assert!(database["wal"].as_str().is_some_and(|wal| wal.contains('/')), "{database:#}");
    assert!(database["took_ms"].as_u64() <= Some(BOUND_MS), "{database:#}");
    let cache = &of(&receipt, "cache")["manifest"];
    assert!(cache["keys"] == 3 && cache["digest"].as_str().is_some_and(|digest| digest.len() == 64), "{cache:#}");
    if has_mail {
        assert_eq!(of(&receipt, "mail")["manifest"]["messages"], 1);
    }
    let shown = local.ok(&["resources", "w"]);
    assert!(shown.contains("fell asleep ") && shown.contains("5 rows, 3 tables, log at"), "{shown}");

    let woken = local.run(&["wake", "w", "--wait"]);
    assert!(woken.status.success() && !String::from_utf8_lossy(&woken.stderr).contains("WARNING"), "{woken:?}");
    let kinds: &[&str] = if has_mail { &["database", "cache", "mail"] } else { &["database", "cache"] };
    for kind in kinds {
        assert_eq!(verdict(&local, kind), "verified", "{kind}");
        assert_eq!(of(&record(&local, "START_RUNTIME")["receipt"], kind)["check"]["verdict"], "verified");
    }
    // Reading the inbox of a workspace that sleeps is no reason for an alarm.
    sleep(&local);
    if has_mail {
        assert_eq!(local.json(&["mail", "w"])["total"], 1);
    }
    local.ok(&["wake", "w", "--wait"]);
    kinds.iter().for_each(|kind| assert_eq!(verdict(&local, kind), "verified", "{kind}"));

    sleep(&local);
    change_rows(&local, "delete from orders where n > 2");
    let log = fs::read_dir(data(&local, "redis/appendonlydir")).expect("files").flatten().map(|entry| entry.path());
    let log = log.filter(|path| path.to_string_lossy().ends_with(".incr.aof")).max().expect("a log");
    let length = fs::metadata(&log).expect("it is there").len();
    fs::File::options().write(true).open(&log).expect("opened").set_len(length - 4).expect("cut");
    if has_mail {
        let script = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); \
                      names = [n for (n,) in db.execute(\"select name from sqlite_master where type='table' and name like '%mailbox'\")]; \
                      db.execute('delete from ' + names[0]); db.commit(); db.close()";
        let done = Command::new("python3").args(["-c", script]).arg(data(&local, "mailpit/mailpit.db")).status();
        assert!(done.expect("python runs").success());
    }
    let woken = local.run(&["wake", "w", "--wait"]);
    let said = String::from_utf8_lossy(&woken.stderr).into_owned();
    assert!(woken.status.success(), "every service is healthy: {said}");
    let status = local.status("w");
    let why = local.ok(&["why", "w"]);
    let log = local.ok(&["logs", "w", "system", "-n", "50"]);
    let mut found = vec![("database", "app.public.orders: 2 rows, had 5"), ("cache", "octets")];
    if has_mail {
        found.push(("mail", "0 messages, had 1"));
    }
    for (kind, found) in found {
        let resource = of(&status["resources"], kind);
        assert_eq!(
            (&resource["state"], &resource["receipt"]["check"]["verdict"]),
            (&"ready".into(), &"differs".into())
        );
        assert!(resource["reason"].as_str().is_some_and(|reason| reason.contains(found)), "{resource:#}");
        assert!(resource["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{resource:#}");
        assert!(said.contains(&format!("WARNING: the {kind} of w did NOT wake as it was")), "{said}");
        let record = record(&local, "START_RUNTIME");
        let check = &of(&record["receipt"], kind)["check"];
        assert!(check["verdict"] == "differs" && check["findings"].to_string().contains(found), "{check:#}");
        assert!(why.contains(found) && log.contains(found), "{why}\n{log}");
    }
    assert_eq!(sql(&local, "select count(*) from orders"), "2", "it serves what is there");

    // The next sleep is of what is there now.
    sleep(&local);
    local.ok(&["wake", "w", "--wait"]);
    kinds.iter().for_each(|kind| assert_eq!(verdict(&local, kind), "verified", "{kind}"));
    assert!(of(&local.status("w")["resources"], "database")["reason"].is_null());

    // Data that was exchanged on purpose is compared with nothing.
    local.ok(&["snapshot", "create", "w"]);
    let snapshot = local.json(&["snapshot", "ls", "w"])["snapshots"][0]["id"].as_str().expect("an id").to_owned();
    sql(&local, "drop table orders");
    local.ok(&["snapshot", "restore", "w", &snapshot, "--yes"]);
    local.wait_healthy("w");
    assert!(verdict(&local, "database").is_null(), "{:#}", local.status("w"));
    assert_eq!(sql(&local, "select count(*) from orders"), "2");
    sleep(&local);
    local.ok(&["fork", "w", "other"]);
    local.ok(&["wake", "other", "--wait"]);
    let of_fork = local.status("other");
    assert!(of(&of_fork["resources"], "database")["receipt"].is_null(), "{of_fork:#}");
    local.ok(&["wake", "w", "--wait"]);
    assert_eq!(verdict(&local, "database"), "verified");
    local.ok(&["reset", "w", "database", "--yes"]);
    assert_eq!(verdict(&local, "database"), "unknown");
}

#[test]
fn what_was_not_put_to_sleep_raises_no_alarm_and_what_cannot_be_counted_in_time_is_said() {
    let local = start();
    sql(&local, "create table large as select generate_series(1, 1000000) as n");
    for name in ["a", "b", "c", "d", "e", "f"] {
        sql(&local, &format!("create table {name}(n int)"));
    }
    let receipt = sleep(&local);
    let database = &of(&receipt, "database")["manifest"];
    assert!(database["took_ms"].as_u64() <= Some(BOUND_MS), "{database:#}");
    let large = rows(database, "app.public.large");
    assert!(large == 1_000_000 || large.is_null(), "counted, or said that it is not: {database:#}");
    assert_eq!(rows(database, "app.public.a"), 0, "what is small comes first");
    local.ok(&["wake", "w", "--wait"]);
    assert_eq!(verdict(&local, "database"), "verified");

    // Someone in the shell holds tables for themselves: they are waited for as long as the bound, no longer.
    let held = |tables: &str| {
        let hold = format!(
            "echo 'begin; lock table {tables}; select pg_sleep(300);' > hold.sql; \
             nohup envforge psql -- -Xqf hold.sql >/dev/null 2>&1 </dev/null & sleep 0"
        );
        local.inside_ok("w", &hold);
        let locks = "select count(*) from pg_locks where mode = 'AccessExclusiveLock' and granted";
        let wanted = tables.split(',').count().to_string();
        eventually("the lock", || (sql(&local, locks) == wanted).then_some(()));
    };
    held("a, b");
    let receipt = sleep(&local);
    let database = &of(&receipt, "database")["manifest"];
    assert_eq!((rows(database, "app.public.a"), rows(database, "app.public.notes")), (Value::Null, 0.into()));
    assert!(database["took_ms"].as_u64() <= Some(BOUND_MS), "{database:#}");
    assert!(local.ok(&["resources", "w"]).contains(" not counted)"));
    local.ok(&["wake", "w", "--wait"]);
    assert_eq!(verdict(&local, "database"), "verified", "its files say so");

    // A supervisor that is killed in the middle of counting is replaced, and the next one counts.
    held("a, b, c, d, e, f");
    let supervisor = local.supervisor();
    std::thread::scope(|scope| {
        let sleeps = scope.spawn(|| local.run(&["sleep", "w", "--wait"]));
        eventually("it counts", || {
            let log = fs::read_to_string(local.workspace_dir("w").join("logs/system.jsonl")).unwrap_or_default();
            let begun = log.lines().rev().find(|line| line.contains("going to sleep") || line.contains("awake"));
            let services = local.pids_in("w0/runtime/services");
            (begun.is_some_and(|line| line.contains("going to sleep")) && services.is_empty()).then_some(())
        });
        sigkill(supervisor);
        assert!(sleeps.join().expect("joined").status.success());
    });
    local.wait_asleep("w");
    let slept = record(&local, "SLEEP_RUNTIME");
    assert!(of(&slept["receipt"], "database")["manifest"]["wal"].is_string(), "{slept:#}");
    local.ok(&["wake", "w", "--wait"]);
    assert_eq!(verdict(&local, "database"), "verified");

    // The power fails while it is awake.
    sql(&local, "insert into large values (0)");
    local.cut_power();
    local.ok(&["wake", "w", "--wait"]);
    for kind in ["database", "cache"] {
        assert_eq!(verdict(&local, kind), "unclean", "{kind}: {:#}", local.status("w"));
        assert!(of(&local.status("w")["resources"], kind)["reason"].is_null());
    }
    sleep(&local);
    local.ok(&["wake", "w", "--wait"]);
    assert_eq!(verdict(&local, "database"), "verified");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_removed_while_its_workspace_sleeps_is_told_at_the_wake() {
    for server in [storage::seaweedfs(), storage::minio()] {
        let Some(stored) = Stored::start(Path::new(env!("CARGO_BIN_EXE_envforge")), server, &[]) else { continue };
        let local = &stored.local;
        // The other one keeps the server awake.
        for name in ["w", "other"] {
            local.ok(&["up", name, "-c", "--no-attach", "--wait"]);
        }
        stored.python("w", "[s3.put_object(Bucket=bucket, Key=key, Body=b'x') for key in 'abc']; tell(1)");
        let bucket = stored.environment("w")["S3_BUCKET"].clone();
        let receipt = sleep(local);
        let manifest = &of(&receipt, "storage")["manifest"];
        assert_eq!((&manifest["objects"], &manifest["octets"]), (&3.into(), &3.into()), "{manifest:#}");
        local.ok(&["wake", "w", "--wait"]);
        assert_eq!(verdict(local, "storage"), "verified");

        sleep(local);
        let run = PathBuf::from("/run/envforge").join(local.installation());
        let root = Root::reach(&Place::new(&local.home(), &run)).await.expect("reached");
        objects::remove(&root.client, &bucket, "b").await.expect("removed");
        drop(root);
        let woken = local.run(&["wake", "w", "--wait"]);
        let said = String::from_utf8_lossy(&woken.stderr).into_owned();
        assert!(woken.status.success() && said.contains("WARNING: the storage of w did NOT wake as it was"), "{said}");
        let status = local.status("w");
        let shown = of(&status["resources"], "storage");
        assert!(shown["reason"].as_str().is_some_and(|reason| reason.contains("2 objects, had 3")), "{shown:#}");
    }
}
