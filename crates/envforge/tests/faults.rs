//! What failures of the machine and of single processes cost: nothing that was made, and no second that nobody saw.

use envforge_testkit::{
    fixture::Fixture,
    local::Local,
    machine::{eventually, lives, proved_seconds, readings, sigkill, stand_still},
};
use serde_json::Value;
use std::{fs, path::Path};

fn start() -> (Local, Fixture) {
    let local = Local::start(Path::new(env!("CARGO_BIN_EXE_envforge")));
    let fixture = Fixture::create(local.dir());
    fixture.apply(&local);
    (local, fixture)
}

fn sessions(local: &Local, workspace: &str) -> Vec<Value> {
    local.json(&["workspace", "usage", workspace])["sessions"].as_array().cloned().unwrap_or_default()
}

/// Puts something into every place where a workspace keeps things.
fn leave_marks(local: &Local, workspace: &str) {
    local.curl(workspace, "http://localhost:3000/add?text=x");
    local.curl(workspace, "http://localhost:3000/set?v=kept");
    local.ok(&["exec", workspace, "--", "sh", "-c", "echo mine > /workspace/mine.txt"]);
}

fn assert_marks(local: &Local, workspace: &str) {
    let page = local.curl_json(workspace, "http://localhost:3000/");
    assert_eq!((&page["rows"], &page["key"]), (&1.into(), &"kept".into()), "{page}");
    assert_eq!(local.ok(&["exec", workspace, "--", "cat", "/workspace/mine.txt"]), "mine\n");
    let logs = local.ok(&["logs", workspace, "web"]);
    assert!(logs.contains("listening"), "{logs}");
}

#[test]
fn after_a_power_cut_shells_are_prepared_first_and_what_was_awake_is_awake_again_with_all_its_data() {
    let (local, _fixture) = start();
    for workspace in ["awake", "asleep"] {
        local.ok(&["up", workspace, "-c", "--no-attach", "--wait"]);
    }
    leave_marks(&local, "awake");
    leave_marks(&local, "asleep");
    // A terminal, of which a reboot leaves nothing.
    local.ok(&["up", "awake", "--no-attach", "--", "sleep", "1000"]);
    local.ok(&["sleep", "asleep", "--wait"]);
    local.wait_asleep("asleep");
    let slept = sessions(&local, "asleep");
    let dir = local.workspace_dir("awake");

    let before = jiff::Timestamp::now();
    local.cut_power();
    let cut = readings(&dir);
    let (_, cut) = cut.first_key_value().expect("readings of the runtime that was cut");
    assert!(cut.iter().all(|reading| reading.ended.is_none()), "nobody had time to write an end");

    // Any command brings the installation back; it answers as soon as the control plane does.
    local.ok(&["ls"]);
    let back = local.wait_for("awake", "awake again", |status| {
        let awake = status["runtime"]["state"] == "awake";
        assert!(!awake || status["shell"]["state"] == "ready", "the shell comes first: {status:#}");
        awake && status["services"].as_array().is_some_and(|all| all.iter().all(|s| s["state"] == "healthy"))
    });
    let since =
        |layer: &str| back[layer]["since"].as_str().expect("a time").parse::<jiff::Timestamp>().expect("a time");
    assert!(before < since("shell") && since("shell") <= since("runtime"), "{back:#}");
    assert_marks(&local, "awake");

    let all = sessions(&local, "awake");
    assert_eq!(all.len(), 2, "{all:#?}");
    let (new, old) = (&all[0], &all[1]);
    assert!(new["ended_at"].is_null(), "{new:#}");
    assert!(["reboot", "lost"].contains(&old["reason"].as_str().unwrap_or_default()), "{old:#}");
    assert_eq!(old["seconds"].as_u64(), Some(proved_seconds(cut)), "nothing after the last reading is billed");

    let asleep = local.status("asleep");
    assert_eq!((&asleep["runtime"]["state"], &asleep["shell"]["state"]), (&"asleep".into(), &"ready".into()));
    assert_eq!(sessions(&local, "asleep"), slept);
    local.ok(&["up", "asleep", "--no-attach", "--wait"]);
    assert_marks(&local, "asleep");
}

#[test]
fn a_killed_host_daemon_touches_no_process_and_the_meter_has_neither_gap_nor_overlap() {
    let (local, _fixture) = start();
    local.ok(&["up", "w", "-c", "--no-attach", "--wait"]);
    local.ok(&["up", "w", "--no-attach", "--", "sleep", "1000"]);
    leave_marks(&local, "w");
    let dir = local.workspace_dir("w");
    let running = || {
        let services = local.pids_in("w0/runtime/services");
        (local.pids_in("w0/shell"), services[..2].to_vec(), local.server(0, "database"), local.server(0, "redis"))
    };
    let before_kill = running();
    let ticks = || local.ok(&["logs", "w", "api.ticker"]).lines().count();
    let before = ticks();

    let killed = local.kill("host");
    assert!(!lives(killed));
    local.wait_healthy("w");
    assert_eq!(running(), before_kill, "no process was touched");
    assert_eq!(local.curl_json("w", "http://localhost:3000/")["rows"], 1);
    eventually("logs go on", || (ticks() > before).then_some(()));

    let all = readings(&dir);
    let (_, all) = all.first_key_value().expect("one instance");
    for pair in all.windows(2) {
        assert_eq!(pair[1].n, pair[0].n + 1);
        assert!(pair[1].at.since(pair[0].at) <= envforge_api::usage::CHECKPOINT_MS + 2_000, "a gap: {pair:?}");
    }
    local.ok(&["sleep", "w", "--wait"]);
    local.wait_asleep("w");
    let sessions = sessions(&local, "w");
    assert_eq!(sessions.len(), 1, "{sessions:#?}");
    assert!(sessions[0]["seconds"].as_u64() >= Some(proved_seconds(all)));
}

#[test]
fn a_killed_keeper_costs_nothing_and_the_next_command_takes_over_what_it_kept() {
    let (local, _fixture) = start();
    local.ok(&["up", "w", "-c", "--no-attach", "--wait"]);
    let page = local.curl_json("w", "http://localhost:3000/add?text=x");
    let parts = ["postgres", "control", "host"].map(|part| local.part(part));
    let keeper = local.kill("keeper");

    assert!(parts.iter().all(|pid| lives(*pid)));
    let status = local.wait_healthy("w");
    assert_eq!(status["billing"]["state"], "metering");
    assert_ne!(local.part("keeper"), keeper);
    assert_eq!(parts, ["postgres", "control", "host"].map(|part| local.part(part)), "adopted, not started again");
    assert_eq!(local.curl_json("w", "http://localhost:3000/")["pid"], page["pid"]);
    // It keeps what it adopted: a part that dies now comes back.
    local.kill("control");
    local.wait_healthy("w");
}

#[test]
fn a_killed_supervisor_is_replaced_adopts_the_database_and_never_runs_a_command_again() {
    let (local, _fixture) = start();
    local.ok(&["up", "w", "-c", "--no-attach", "--wait"]);
    leave_marks(&local, "w");
    let service = local.curl_json("w", "http://localhost:3000/")["pid"].clone();
    let (database, cache) = (local.server(0, "database"), local.server(0, "redis"));
    let script = "echo x >> /workspace/runs.txt; sleep 1000";
    let run = local.json(&["run", "w", "--service", "web", "--detach", "--", "sh", "-c", script]);
    let counted = || fs::read_to_string(local.workspace_dir("w").join("files/runs.txt")).unwrap_or_default();
    eventually("the run is under way", || (counted() == "x\n").then_some(()));

    sigkill(local.supervisor());
    let status = local.wait_for("w", "served again", |status| {
        status["runtime"]["reason"].is_string()
            && status["services"].as_array().is_some_and(|all| all.iter().all(|s| s["state"] == "healthy"))
    });
    assert!(status["runtime"]["reason"].as_str().is_some_and(|text| text.contains("supervisor")), "{status:#}");
    assert_eq!((local.server(0, "database"), local.server(0, "redis")), (database, cache), "adopted");
    assert_ne!(local.curl_json("w", "http://localhost:3000/")["pid"], service);
    assert_marks(&local, "w");
    let system = local.ok(&["logs", "w", "system"]);
    assert!(system.contains("supervisor ended unexpectedly"), "{system}");

    let id = run["id"].as_str().expect("an id");
    let record = eventually("the run has an end", || {
        let record = local.json(&["workspace", "command", id]);
        record["finished_at"].is_string().then_some(record)
    });
    assert_eq!(record["state"], "interrupted", "{record:#}");
    assert_eq!(counted(), "x\n", "never silently run again");
    assert_eq!(sessions(&local, "w").len(), 1);
    local.ok(&["sleep", "w", "--wait"]);
    local.wait_asleep("w");
    assert_eq!(sessions(&local, "w").len(), 1);
}

#[test]
fn a_killed_database_or_cache_is_started_again_and_its_consumers_recover() {
    let (local, _fixture) = start();
    local.ok(&["up", "w", "-c", "--no-attach", "--wait"]);
    leave_marks(&local, "w");
    for name in ["database", "redis"] {
        let pid = local.server(0, name);
        sigkill(pid);
        local.wait_for("w", "served again", |status| {
            let resources = status["resources"].as_array().expect("resources");
            resources.iter().all(|resource| resource["state"] == "ready")
                && local.ok(&["logs", "w", "system"]).contains(&format!("{name} ended unexpectedly"))
        });
        assert_ne!(local.server(0, name), pid);
        eventually("the page answers", || {
            let out = local.run(&["exec", "w", "--", "curl", "-sf", "-m", "5", "http://localhost:3000/"]);
            out.status.success().then_some(())
        });
        assert_eq!(local.curl_json("w", "http://localhost:3000/")["rows"], 1, "what was acknowledged stays");
    }
    assert_eq!(sessions(&local, "w").len(), 1);
}

#[test]
fn a_supervisor_that_is_slow_is_waited_for_and_one_that_hangs_is_replaced() {
    let (local, _fixture) = start();
    local.ok(&["up", "w", "-c", "--no-attach", "--wait"]);
    leave_marks(&local, "w");
    let pid = || local.curl_json("w", "http://localhost:3000/")["pid"].clone();
    let (service, supervisor) = (pid(), local.supervisor());
    stand_still(supervisor, true);
    local.kill("host");
    // It has found the supervisor when it answers for the shell.
    local.ok(&["exec", "w", "--", "true"]);
    stand_still(supervisor, false);
    local.wait_healthy("w");
    assert_eq!((pid(), local.supervisor()), (service, supervisor), "adopted as it is");

    stand_still(supervisor, true);
    local.kill("host");
    local.wait_for("w", "served by another", |status| {
        let told = status["runtime"]["reason"].as_str().is_some_and(|text| text.contains("supervisor"));
        told && status["services"].as_array().is_some_and(|all| all.iter().all(|s| s["state"] == "healthy"))
    });
    assert!(!lives(supervisor));
    assert_marks(&local, "w");
}
