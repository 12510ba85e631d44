//! A full disk: what cannot be done is said at once with what to do, what is awake stays awake, and all of it heals by
//! itself when there is space again.

use envforge_api::usage::CHECKPOINT_MS;
use envforge_testkit::{
    fixture::Fixture,
    local::Local,
    machine::{eventually, lives, readings, sigkill},
};
use serde_json::Value;
use std::{fs, path::Path, process::Output};

/// Room for the prepared database and three workspaces with one of their own.
const MIB: u32 = 420;

/// The host's part of a home.
const HOST: [&str; 4] = ["host", "workspaces", "git", "templates"];

fn start(parts: &[&str]) -> Option<Local> {
    let local = Local::start_on_small_disk(Path::new(env!("CARGO_BIN_EXE_envforge")), MIB, parts)?;
    let fixture = Fixture::create(local.dir());
    // Looked at four times a second; a hold keeps it awake.
    fixture.sleeps_after("awake", "1s");
    fixture.apply(&local);
    Some(local)
}

/// What a command line that failed said, which names the disk.
fn refused(out: &Output) -> String {
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success(), "it cannot have worked: {}", String::from_utf8_lossy(&out.stdout));
    assert!(said.contains("No space left on device") && said.contains("free space on"), "{said}");
    said
}

fn newest(local: &Local, workspace: &str, kind: &str) -> Value {
    let all = local.json(&["workspace", "commands", workspace]);
    all["commands"].as_array().and_then(|all| all.iter().find(|c| c["kind"] == kind)).cloned().unwrap_or_default()
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Every whole file of the host is one; every log line but those that were cut short is one.
fn assert_whole(local: &Local) {
    for dir in ["host/ledger"] {
        for entry in fs::read_dir(local.home().join(dir)).expect("read").flatten() {
            let bytes = fs::read(entry.path()).expect("read");
            serde_json::from_slice::<Value>(&bytes).unwrap_or_else(|e| panic!("{}: {e}", entry.path().display()));
        }
    }
    for part in ["host", "control", "keeper"] {
        let log = fs::read_to_string(local.home().join("logs").join(format!("{part}.log"))).unwrap_or_default();
        assert!(!log.contains("panicked"), "{log}");
    }
}

#[test]
fn on_a_full_host_what_is_awake_stays_awake_what_is_asked_fails_at_once_and_all_of_it_heals() {
    let Some(local) = start(&HOST) else { return };
    local.ok(&["up", "awake", "--no-attach", "--wait"]);
    local.ok(&["hold", "awake", "1h"]);
    local.curl("awake", "http://localhost:3000/add?text=x");
    local.ok(&["up", "asleep", "-c", "--no-attach", "--wait"]);
    local.curl("asleep", "http://localhost:3000/add?text=x");
    local.ok(&["sleep", "asleep", "--wait"]);
    local.wait_asleep("asleep");
    let pid = local.curl_json("awake", "http://localhost:3000/")["pid"].clone();
    let processes = (local.part("host"), local.supervisor(), local.server(0, "database"), local.server(0, "redis"));
    let dir = local.workspace_dir("awake");

    local.disk().fill();
    // A new workspace: refused by the host, with the reason, in the record too.
    let said = refused(&local.run(&["up", "new", "-c", "--no-attach", "--wait"]));
    assert!(said.contains("the shell of new could not be prepared"), "{said}");
    let record = newest(&local, "new", "PREPARE_SHELL");
    assert_eq!(record["state"], "failed", "{record:#}");
    assert!(text_of(&record["reason"]).contains("No space left on device"), "{record:#}");
    let shown = local.status("new");
    assert_eq!(shown["shell"]["state"], "failed", "{shown:#}");
    assert!(text_of(&shown["shell"]["hint"]).contains("the disk of the host is full"), "{shown:#}");
    // A branch that is only looked for; nothing of that needs space.
    assert_eq!(local.run(&["up", "nowhere"]).status.code(), Some(2));
    // A shell of a workspace that is not there says why as well.
    refused(&local.run(&["exec", "new", "--", "true"]));

    // A wake.
    let woken = local.run(&["wake", "asleep", "--wait"]);
    assert_eq!(woken.status.code(), Some(1), "{}", String::from_utf8_lossy(&woken.stderr));
    assert!(String::from_utf8_lossy(&woken.stderr).contains("No space left on device"));
    let shown = local.status("asleep");
    assert_eq!((&shown["runtime"]["state"], &shown["shell"]["state"]), (&"failed".into(), &"ready".into()));
    assert!(text_of(&shown["runtime"]["hint"]).contains("free space on"), "{shown:#}");
    // A run of a command: not begun.
    let run = local.run(&["run", "awake", "--service", "web", "--", "touch", "/tmp/ran"]);
    assert!(!run.status.success());
    let record = newest(&local, "awake", "RUN_COMMAND");
    assert!(text_of(&record["reason"]).contains("free space on"), "{record:#}");
    assert!(!local.inside("awake", "test -e /tmp/ran").status.success());

    // A reading that the disk did not take is kept.
    let last = || readings(&dir).values().filter_map(|all| all.last().map(|reading| reading.at)).max();
    let now = || envforge_api::time::BootMillis(uptime_ms());
    eventually("a reading is refused", || (now().since(last()?) > 3_000).then_some(()));
    assert_eq!(local.curl_json("awake", "http://localhost:3000/")["pid"], pid);
    let still = (local.part("host"), local.supervisor(), local.server(0, "database"), local.server(0, "redis"));
    assert_eq!(still, processes, "nothing ended");
    // A daemon that starts now comes back, and takes over what is awake.
    local.kill("host");
    local.wait_for("awake", "known again", |status| status["runtime"]["state"] == "awake");
    local.ok(&["exec", "awake", "--", "true"]);
    let host = local.part("host");
    assert_eq!(local.curl_json("awake", "http://localhost:3000/")["pid"], pid);
    refused(&local.run(&["up", "new", "--no-attach"]));

    local.disk().free();
    // What was refused is accepted by itself; what is asked again succeeds.
    local.wait_healthy("asleep");
    assert_eq!(local.curl_json("asleep", "http://localhost:3000/")["rows"], 1);
    local.ok(&["up", "new", "--no-attach", "--wait"]);
    local.curl("new", "http://localhost:3000/add?text=x");
    assert_eq!(local.curl_json("awake", "http://localhost:3000/add?text=x")["rows"], 2);
    assert_eq!(local.part("host"), host, "the daemon lived through it");
    assert!(lives(processes.1));

    let resumed = uptime_ms();
    eventually("readings go on", || (last()?.0 > resumed).then_some(()));
    let kept = readings(&dir);
    let (_, all) = kept.first_key_value().expect("one instance");
    for pair in all.windows(2) {
        assert_eq!(pair[1].n, pair[0].n + 1);
        assert!(pair[1].at.since(pair[0].at) <= CHECKPOINT_MS + 2_000, "a gap: {pair:?}");
    }
    local.ok(&["sleep", "awake", "--wait"]);
    local.wait_asleep("awake");
    let usage = local.json(&["workspace", "usage", "awake"]);
    assert_eq!(usage["sessions"].as_array().map(Vec::len), Some(1), "{usage:#}");
    local.ok(&["logs", "awake", "web"]);
    assert_whole(&local);
}

#[test]
fn a_runtime_that_sleeps_on_a_full_disk_is_asleep_and_says_so_when_there_is_space() {
    let Some(local) = start(&HOST) else { return };
    local.ok(&["up", "awake", "--no-attach", "--wait"]);
    local.disk().fill();
    // It goes idle; its last word finds no space.
    eventually("nothing runs", || local.pids_in("w0/runtime").is_empty().then_some(()));
    // Its servers gave a little space back when they ended, which may have been enough.
    let out = local.run(&["sleep", "awake", "--wait"]);
    if !out.status.success() {
        refused(&out);
    }
    local.disk().free();
    local.wait_asleep("awake");
    let usage = local.json(&["workspace", "usage", "awake"]);
    let sessions = usage["sessions"].as_array().cloned().unwrap_or_default();
    assert_eq!((sessions.len(), &sessions[0]["reason"]), (1, &"idle".into()), "{usage:#}");
    local.ok(&["up", "awake", "--no-attach", "--wait"]);
    assert_whole(&local);
}

#[test]
fn with_a_little_space_left_what_needs_more_fails_with_the_reason_and_heals_and_a_lost_supervisor_is_replaced() {
    let Some(local) = start(&HOST) else { return };
    local.ok(&["up", "awake", "--no-attach", "--wait"]);
    local.ok(&["hold", "awake", "1h"]);
    local.curl("awake", "http://localhost:3000/add?text=x");
    local.ok(&["up", "w", "-c", "--no-attach", "--wait"]);
    local.ok(&["sleep", "w", "--wait"]);
    local.wait_asleep("w");
    // Its database has to be made anew.
    fs::remove_dir_all(local.workspace_dir("w").join("data/postgresql")).expect("remove");

    local.disk().fill();
    let servers = (local.server(0, "database"), local.server(0, "redis"));
    let supervisor = local.supervisor();
    sigkill(supervisor);
    let status = local.wait_for("awake", "supervised again", |status| {
        status["runtime"]["reason"].is_string()
            && status["services"].as_array().is_some_and(|all| all.iter().all(|s| s["state"] == "healthy"))
    });
    assert!(text_of(&status["runtime"]["reason"]).contains("supervisor"), "{status:#}");
    assert_eq!((local.server(0, "database"), local.server(0, "redis")), servers, "adopted");
    assert_eq!(local.curl_json("awake", "http://localhost:3000/")["rows"], 1);

    // Enough for the ledger, too little for a checkout.
    local.disk().leave(64);
    refused(&local.run(&["up", "new", "-c", "--no-attach", "--wait"]));
    let record = newest(&local, "new", "PREPARE_SHELL");
    assert_eq!(record["state"], "failed", "{record:#}");
    // Enough for the checkout, too little for a database.
    local.disk().leave(4 << 10);
    let woken = local.run(&["wake", "w", "--wait"]);
    assert_eq!(woken.status.code(), Some(1), "{}", String::from_utf8_lossy(&woken.stderr));
    let shown = local.status("w");
    let resources = shown["resources"].as_array().cloned().unwrap_or_default();
    let database = resources.iter().find(|r| r["kind"] == "database").cloned().unwrap_or_default();
    assert_eq!((&database["state"], &shown["shell"]["state"]), (&"blocked".into(), &"ready".into()), "{shown:#}");
    assert!(text_of(&database["reason"]).contains("No space left on device"), "{database:#}");
    assert!(text_of(&database["hint"]).contains("free space on"), "{database:#}");
    assert!(local.ok(&["why", "w", "web"]).contains("No space left on device"));

    local.disk().free();
    local.wait_healthy("w");
    local.wait_healthy("new");
    assert_eq!(local.curl_json("awake", "http://localhost:3000/add?text=x")["rows"], 2);
    assert_whole(&local);
}

#[test]
fn a_workspace_can_be_deleted_on_a_full_disk_which_gives_others_their_space() {
    let Some(local) = start(&HOST) else { return };
    local.ok(&["up", "old", "-c", "--no-attach", "--wait"]);
    local.inside_ok("old", "head -c 20000000 /dev/zero > /workspace/large");
    local.disk().fill();
    refused(&local.run(&["up", "new", "-c", "--no-attach"]));
    local.ok(&["delete", "old", "--yes", "--force"]);
    // What was refused is done by itself now.
    local.wait_healthy("new");
    local.curl("new", "http://localhost:3000/add?text=x");
    let left = local.json(&["ls"]).to_string();
    assert!(!left.contains("\"old\""), "{left}");
    assert_whole(&local);
}

#[test]
fn with_the_control_plane_on_the_full_disk_too_the_command_line_gives_up_and_all_of_it_serves_afterwards() {
    let Some(local) = start(&[]) else { return };
    local.ok(&["up", "w", "-c", "--no-attach", "--wait"]);
    let page = local.curl_json("w", "http://localhost:3000/add?text=x");
    local.disk().fill();
    let out = local.run(&["up", "new", "-c", "--no-attach", "--wait"]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && said.contains("envforge:"), "{said}");
    let supervisor = local.supervisor();
    // Without its keeper nobody answers for the installation, and a new one has no place for what it must remember.
    local.kill("keeper");
    let out = local.run(&["ls"]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success() || said.contains("No space left on device"), "{said}");
    local.disk().free();
    local.wait_healthy("w");
    assert_eq!(local.supervisor(), supervisor);
    assert_eq!(local.curl_json("w", "http://localhost:3000/")["pid"], page["pid"]);
    local.ok(&["up", "new", "-c", "--no-attach", "--wait"]);
    assert_whole(&local);
}

/// The boot clock that readings are taken by.
fn uptime_ms() -> u64 {
    let text = fs::read_to_string("/proc/uptime").expect("uptime");
    let seconds: f64 = text.split(' ').next().and_then(|word| word.parse().ok()).expect("seconds");
    std::time::Duration::from_secs_f64(seconds).as_millis().try_into().expect("not so long")
}
