//! Idleness: what keeps a runtime awake, what does not, and that nothing is metered while it sleeps.

use envforge_testkit::{
    fixture::Fixture,
    local::Local,
    machine::{eventually, proved_seconds, readings},
};
use serde_json::Value;
use std::{fs, path::Path, process::Stdio};

fn start(after: &str) -> (Local, Fixture) {
    let local = Local::start(Path::new(env!("CARGO_BIN_EXE_envforge")));
    let fixture = Fixture::create(local.dir());
    fixture.sleeps_after("w", after);
    fixture.apply(&local);
    (local, fixture)
}

fn sessions(local: &Local) -> Vec<Value> {
    local.json(&["workspace", "usage", "w"])["sessions"].as_array().cloned().unwrap_or_default()
}

fn holders(status: &Value) -> String {
    status["activity"]["holders"].to_string()
}

/// Shell words that know the database as the service does.
fn sql(script: &str) -> Vec<String> {
    let line = format!(". /workspace/.envforge/env/web.env; {script}");
    ["exec", "w", "--", "sh", "-c", &line].map(String::from).to_vec()
}

#[test]
fn an_idle_runtime_sleeps_by_itself_under_an_open_terminal_and_nothing_is_metered_from_then_on() {
    let (local, _fixture) = start("2s");
    let mut terminal = local.terminal(&["up", "w"]);
    terminal.type_in("echo at-$((40 + 2))\n");
    terminal.wait_for("at-42");
    let asleep = local.wait_for("w", "asleep by itself", |status| {
        status["runtime"]["state"] == "asleep"
            && status["runtime"]["reason"] == "idle"
            && status["billing"]["state"] == "off"
    });
    assert_eq!(asleep["shell"]["state"], "ready");
    assert!(local.ok(&["why", "w"]).contains("idle"));
    let slept = sessions(&local);
    assert_eq!((slept.len(), &slept[0]["reason"]), (1, &"idle".into()), "{slept:#?}");

    // The terminal works on; neither it nor another one opens a session.
    assert!(terminal.is_open());
    terminal.type_in("echo still-$((40 + 2)) > /workspace/typed.txt; cat /workspace/typed.txt\n");
    terminal.wait_for("still-42");
    local.ok(&["exec", "w", "--", "cat", "/workspace/typed.txt"]);
    assert_eq!(local.pids_in("w0/runtime"), [0; 0]);
    assert_eq!(sessions(&local), slept);
    assert_eq!(local.status("w")["billing"]["state"], "off");
    assert!(readings(&local.workspace_dir("w")).is_empty(), "all readings are stored and none is made");
    assert_eq!(terminal.detach(), Some(0));
}

#[test]
fn a_command_a_hold_or_a_working_database_session_holds_a_runtime_and_an_idle_connection_does_not() {
    let (local, _fixture) = start("2s");
    local.ok(&["up", "w", "--no-attach", "--wait"]);
    local.ok(&["hold", "w", "1h"]);
    let dir = local.workspace_dir("w");
    let seconds = || readings(&dir).values().map(|of_one| proved_seconds(of_one)).sum::<u64>();
    local.wait_for("w", "held", |status| holders(status).contains("a hold"));
    eventually("held for longer than it would stay awake", || (seconds() > 6).then_some(()));
    assert_eq!(local.status("w")["runtime"]["state"], "awake");

    // A run outlives the hold.
    let run = local.command(&["run", "w", "--service", "web", "--", "sleep", "8"]).stderr(Stdio::null()).spawn();
    let mut run = run.expect("run");
    local.wait_for("w", "held by the run", |status| holders(status).contains("sleep"));
    local.ok(&["hold", "w", "off"]);
    assert!(run.wait().expect("wait").success(), "a sleep would have ended it");

    // So does a query of nobody's command.
    let words = sql("psql \"$DATABASE_URL\" -c 'select pg_sleep(6)'");
    local.ok(&words.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(sessions(&local).len(), 1);

    // A connection that waits for its client does not.
    let words =
        sql("mkfifo /tmp/in; (echo 'select 40 + 2;'; cat) < /tmp/in | psql \"$DATABASE_URL\" -At > /workspace/out.txt");
    let mut idle = local.command(&words.iter().map(String::as_str).collect::<Vec<_>>());
    let mut idle = idle.stderr(Stdio::null()).spawn().expect("exec");
    let words = sql("exec 3> /tmp/in; sleep 1000");
    let mut open = local.command(&words.iter().map(String::as_str).collect::<Vec<_>>());
    let mut open = open.stderr(Stdio::null()).spawn().expect("exec");
    eventually("connected", || {
        fs::read_to_string(dir.join("files/out.txt")).is_ok_and(|text| text == "42\n").then_some(())
    });
    let asleep = local.wait_asleep("w");
    assert_eq!(asleep["runtime"]["reason"], "idle");
    let all = sessions(&local);
    assert_eq!(all.len(), 1, "{all:#?}");
    assert!(all[0]["seconds"].as_u64() > Some(6 + 8), "{all:#?}");
    for child in [&mut idle, &mut open] {
        let _ = child.kill();
        let _ = child.wait();
    }
}

#[test]
fn a_runtime_sleeps_idle_without_control_plane_or_its_database_and_what_was_measured_arrives_once() {
    let (local, _fixture) = start("2s");
    for (round, part) in ["control", "postgres"].into_iter().enumerate() {
        local.ok(&["up", "w", "-c", "--no-attach", "--wait"]);
        let dir = local.workspace_dir("w");
        let _ = fs::remove_file(dir.join("state/ended.json"));
        // Nobody brings back what is killed now.
        local.kill("keeper");
        local.kill(part);
        eventually("asleep by itself", || dir.join("state/ended.json").exists().then_some(()));
        assert_eq!(local.pids_in("w0/runtime"), [0; 0]);
        let kept = readings(&dir);
        let (instance, kept) = kept.last_key_value().expect("readings that nobody took");
        let file = dir.join("meter").join(format!("{instance}.jsonl"));
        let raw = fs::read(&file).expect("read");
        assert_eq!(kept.last().and_then(|reading| reading.ended.as_deref()), Some("idle"));

        local.ok(&["ls"]);
        local.wait_asleep("w");
        let all = sessions(&local);
        assert_eq!(all.len(), round + 1, "{all:#?}");
        assert_eq!((&all[0]["reason"], all[0]["seconds"].as_u64()), (&"idle".into(), Some(proved_seconds(kept))));
        eventually("the files of what is stored are gone", || readings(&dir).is_empty().then_some(()));
        // Told again by a daemon that forgot what it told, it is not counted again.
        local.kill("host");
        fs::write(&file, raw).expect("write");
        eventually("told again", || readings(&dir).is_empty().then_some(()));
        assert_eq!(sessions(&local), all);
    }
}
