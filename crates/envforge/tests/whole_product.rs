//! The product from a user's chair: one installation in a temporary home, real repositories, real servers.

use envforge_testkit::{fixture::Fixture, local::Local};
use serde_json::Value;
use std::path::Path;

fn start() -> (Local, Fixture) {
    let local = Local::start(Path::new(env!("CARGO_BIN_EXE_envforge")));
    let fixture = Fixture::create(local.dir());
    fixture.apply(&local);
    (local, fixture)
}

fn service<'a>(status: &'a Value, name: &str) -> &'a Value {
    status["services"]
        .as_array()
        .and_then(|all| all.iter().find(|service| service["name"] == name))
        .unwrap_or_else(|| panic!("no service {name} in {status:#}"))
}

fn sessions(local: &Local, workspace: &str) -> Vec<Value> {
    local.json(&["workspace", "usage", workspace])["sessions"].as_array().cloned().unwrap_or_default()
}

#[test]
fn up_wake_work_sleep_and_wake_again_lose_nothing_and_meter_only_awake_time() {
    let (local, _fixture) = start();

    // Up without a terminal returns when the shell is ready; the branch exists nowhere, so it needs -c.
    let refused = local.run(&["up", "signed-links"]);
    assert_eq!(refused.status.code(), Some(2), "{}", String::from_utf8_lossy(&refused.stderr));
    local.ok(&["up", "signed-links", "-c"]);
    let status = local.status("signed-links");
    assert_eq!(status["shell"]["state"], "ready", "{status:#}");
    assert_eq!(status["branch"], "signed-links");

    // Everything becomes healthy by itself, and the page inside answers from this branch.
    let status = local.wait_healthy("signed-links");
    assert_eq!(status["billing"]["state"], "metering");
    assert_eq!(service(&status, "api.ticker")["kind"], "worker");
    let page = local.curl_json("signed-links", "http://localhost:3000/add?text=one");
    assert_eq!((&page["branch"], &page["rows"]), (&"signed-links".into(), &1.into()));
    local.curl("signed-links", "http://localhost:3000/set?v=kept");
    local.ok(&["exec", "signed-links", "--", "sh", "-c", "echo mine > /workspace/mine.txt"]);

    // The secret that the service printed is nowhere to be seen.
    let logs = local.ok(&["logs", "signed-links", "web"]);
    assert!(logs.contains("listening, secret is"), "{logs}");
    assert!(!logs.contains("postgres://app:") || logs.contains("***"), "{logs}");

    // Sleep: nothing runs, the meter is off, the session is closed.
    local.ok(&["sleep", "signed-links", "--wait"]);
    let asleep = local.wait_asleep("signed-links");
    assert_eq!(asleep["shell"]["state"], "ready");
    let first = sessions(&local, "signed-links");
    assert_eq!(first.len(), 1, "{first:?}");
    assert!(first[0]["ended_at"].is_string(), "{first:?}");

    // The shell layer works asleep and opens no session.
    assert_eq!(local.ok(&["exec", "signed-links", "--", "cat", "/workspace/mine.txt"]), "mine\n");
    local.ok(&["up", "signed-links", "--no-attach", "--wait"]);
    let page = local.curl_json("signed-links", "http://localhost:3000/");
    assert_eq!((&page["rows"], &page["key"]), (&1.into(), &"kept".into()));
    let second = sessions(&local, "signed-links");
    assert_eq!(second.len(), 2, "{second:?}");
    assert_eq!(second[1], first[0], "a closed session never changes");

    // Receipts are metadata only.
    let commands = local.json(&["workspace", "commands", "signed-links"]);
    let kinds: Vec<_> = commands["commands"].as_array().expect("a list").iter().map(|c| c["kind"].clone()).collect();
    for kind in ["PREPARE_SHELL", "START_RUNTIME", "SLEEP_RUNTIME"] {
        assert!(kinds.contains(&kind.into()), "{kinds:?}");
    }

    // A run in the service's environment, its status passed through.
    let run = local.run(&["run", "signed-links", "--service", "web", "--", "sh", "-c", "echo $BRANCH; exit 3"]);
    assert_eq!(run.status.code(), Some(3), "{}", String::from_utf8_lossy(&run.stderr));
    assert!(String::from_utf8_lossy(&run.stdout).contains("signed-links"));

    // Delete asks, refuses unpushed work, then removes.
    let refused = local.run(&["delete", "signed-links", "--yes"]);
    assert_ne!(refused.status.code(), Some(0));
    local.ok(&["delete", "signed-links", "--yes", "--force"]);
    assert_eq!(local.run(&["status", "signed-links"]).status.code(), Some(3));
}

#[test]
fn two_branches_are_awake_at_once_on_the_same_port_and_see_nothing_of_each_other() {
    let (local, _fixture) = start();
    for branch in ["one", "two"] {
        local.ok(&["up", branch, "-c", "--no-attach"]);
    }
    for branch in ["one", "two"] {
        local.wait_healthy(branch);
    }
    local.curl("one", "http://localhost:3000/add?text=x");
    let one = local.curl_json("one", "http://localhost:3000/");
    let two = local.curl_json("two", "http://localhost:3000/");
    assert_eq!((&one["branch"], &one["rows"]), (&"one".into(), &1.into()));
    assert_eq!((&two["branch"], &two["rows"]), (&"two".into(), &0.into()));

    local.ok(&["exec", "one", "--", "sh", "-c", "echo secret > /tmp/only-one; chmod 644 /tmp/only-one"]);
    assert_ne!(local.run(&["exec", "two", "--", "cat", "/tmp/only-one"]).status.code(), Some(0));
    let processes = local.ok(&["exec", "two", "--", "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"]);
    assert!(processes.contains("web.js"), "{processes}");
    let uids = local.ok(&["exec", "two", "--", "sh", "-c", "stat -c %u /proc/[0-9]* | sort -u | wc -l"]);
    assert_eq!(uids.trim(), "1", "only its own processes are visible");
    let address = local.ok(&["exec", "one", "--", "hostname", "-I"]);
    let reach = format!("exec 3<>/dev/tcp/{}/3000", address.trim());
    assert_ne!(local.run(&["exec", "two", "--", "timeout", "2", "bash", "-c", &reach]).status.code(), Some(0));
}

#[test]
fn a_service_that_exits_shows_as_its_own_failure_and_leaves_shell_and_runtime_alone() {
    let (local, fixture) = start();
    Fixture::commit(&fixture.api, "broken", "api.js", "console.error('no config'); process.exit(1)\n");
    local.ok(&["up", "broken"]);
    let status = local.wait_for("broken", "crashed", |status| {
        status["services"].as_array().is_some_and(|all| {
            all.iter().any(|s| s["name"] == "api" && s["state"] == "crashed" && s["exit_code"] == 1)
                && all.iter().any(|s| s["name"] == "web" && s["state"] == "healthy")
        })
    });
    assert_eq!(status["shell"]["state"], "ready");
    assert_eq!(status["runtime"]["state"], "awake");
    let api = service(&status, "api");
    assert!(api["reason"].is_string() && api["hint"].is_string(), "{api:#}");
    let why = local.ok(&["why", "broken", "api"]);
    assert!(why.contains("no config"), "{why}");
    // The shell opens all the same, and the failure ends the receipt, not the runtime.
    local.ok(&["exec", "broken", "--", "true"]);
}

#[test]
fn a_killed_daemon_control_plane_or_supervisor_costs_no_data_and_comes_back() {
    let (local, _fixture) = start();
    local.ok(&["up", "w", "-c", "--no-attach", "--wait"]);
    let before = local.curl_json("w", "http://localhost:3000/add?text=x");

    for part in ["host", "control", "postgres"] {
        kill_part(&local, part);
        local.wait_healthy("w");
        let after = local.curl_json("w", "http://localhost:3000/");
        assert_eq!(before["pid"], after["pid"], "killing {part} must not touch the service");
    }
    assert_eq!(sessions(&local, "w").len(), 1, "one unbroken window");

    kill_part(&local, "supervisor");
    let after = local.wait_for("w", "back", |status| {
        status["runtime"]["state"] == "awake"
            && status["services"].as_array().is_some_and(|all| all.iter().all(|s| s["state"] == "healthy"))
            && local.run(&["exec", "w", "--", "curl", "-sf", "-m", "5", "http://localhost:3000/"]).status.success()
            && local.curl_json("w", "http://localhost:3000/")["pid"] != before["pid"]
    });
    assert_eq!(after["shell"]["state"], "ready");
    assert_eq!(local.curl_json("w", "http://localhost:3000/")["rows"], 1);
    assert_eq!(sessions(&local, "w").len(), 1);
    local.ok(&["sleep", "w", "--wait"]);
    local.wait_asleep("w");
}

/// SIGKILLs one process of the installation, found by `local status --json`.
fn kill_part(local: &Local, part: &str) {
    let status = local.json(&["local", "status"]);
    let pid = if part == "supervisor" {
        find_supervisor(local)
    } else {
        let found = status["parts"].as_array().and_then(|parts| parts.iter().find(|p| p["name"] == part));
        i32::try_from(found.and_then(|p| p["pid"].as_i64()).unwrap_or_else(|| panic!("no {part} in {status:#}")))
            .expect("a pid")
    };
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).expect("kill");
}

fn find_supervisor(local: &Local) -> i32 {
    let home = local.home().to_string_lossy().into_owned();
    for entry in std::fs::read_dir("/proc").expect("proc").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|b| *b == 0).map(String::from_utf8_lossy).collect();
        if words.get(1).is_some_and(|w| w == "supervise") && words.get(2).is_some_and(|w| w.starts_with(&home)) {
            return pid;
        }
    }
    panic!("no supervisor of {home}");
}
