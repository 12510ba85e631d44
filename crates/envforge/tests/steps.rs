//! Set-up steps and runs of the shell layer: never twice at once, ended as a whole, recorded as they ended.

use envforge_testkit::{
    fixture::{Fixture, WEB_YML},
    local::Local,
    machine::eventually,
};
use std::path::Path;

fn start(web: &str) -> (Local, Fixture) {
    let local = Local::start(Path::new(env!("CARGO_BIN_EXE_envforge")));
    let fixture = Fixture::create(local.dir());
    Fixture::commit(&fixture.web, "w", "envforge.yml", web);
    fixture.apply(&local);
    (local, fixture)
}

fn text(local: &Local, file: &str) -> String {
    String::from_utf8_lossy(&local.inside("w", &format!("cat /workspace/{file} 2>/dev/null")).stdout).into_owned()
}

#[test]
fn a_step_that_a_killed_daemon_left_is_ended_before_it_is_run_again() {
    // It ends only when it is told to, so that the first one is surely under way when its daemon is killed.
    let step = "echo begins >> /workspace/steps.txt; while [ ! -e /workspace/go ]; do sleep 0.1; done; \
                echo ends >> /workspace/steps.txt";
    let (local, _fixture) = start(&WEB_YML.replace("echo prepared >> prepared.txt", step));
    local.ok(&["up", "w", "--no-attach"]);
    eventually("the step runs", || (text(&local, "steps.txt") == "begins\n").then_some(()));
    local.kill("host");
    eventually("it runs again", || (text(&local, "steps.txt") == "begins\nbegins\n").then_some(()));
    local.inside_ok("w", "touch /workspace/go");
    local.wait_healthy("w");
    assert_eq!(text(&local, "steps.txt"), "begins\nbegins\nends\n", "the one of before ended without a word");
}

#[test]
fn a_run_of_the_shell_layer_is_recorded_as_it_ended_and_a_cancelled_one_leaves_nothing() {
    let stubborn = "trap \"\" TERM; echo $$ > /workspace/pid; while :; do sleep 1; done";
    let tests =
        format!("light: {{ run: ['exit 3'], layer: shell }}\n  stubborn: {{ run: ['{stubborn}'], layer: shell }}");
    let (local, _fixture) = start(&WEB_YML.replace("light: { run: ['echo light test ran'], layer: shell }", &tests));
    let up = local.run(&["up", "w", "--no-attach", "--wait"]);
    assert!(up.status.success(), "{}", local.ok(&["why", "w", "web"]));
    assert_eq!(local.run(&["run", "w", "--service", "web", "test", "light"]).status.code(), Some(3));
    let newest = |state: &str| {
        let all = local.json(&["workspace", "commands", "w"])["commands"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|command| command["kind"] == "RUN_COMMAND" && command["state"] == state)
    };
    assert!(newest("failed").is_some() && newest("cancelled").is_none());
    local.ok(&["run", "w", "--service", "web", "--detach", "test", "stubborn"]);
    eventually("it runs", || (!text(&local, "pid").is_empty()).then_some(()));
    let pid = text(&local, "pid").trim().to_owned();
    let id = newest("running").expect("a run")["id"].as_str().expect("an id").to_owned();
    local.ok(&["workspace", "command", &id, "--cancel"]);
    eventually("it is cancelled", || newest("cancelled"));
    let lives = local.inside("w", &format!("kill -0 {pid}")).status.success();
    assert!(!lives, "it is still there");
}

#[test]
fn set_up_that_runs_is_not_begun_a_second_time() {
    let step = "migrate: ['echo begun >> /workspace/begun.txt; while [ ! -e /workspace/go ]; do sleep 0.1; done; echo migrated >> /workspace/migrations.txt']";
    let begin = WEB_YML.find("migrate: ").expect("a step");
    let end = begin + WEB_YML[begin..].find('\n').expect("its end");
    let (local, _fixture) = start(&format!("{}{step}{}", &WEB_YML[..begin], &WEB_YML[end..]));
    local.ok(&["up", "w", "--no-attach"]);
    local.inside_ok("w", "touch /workspace/go");
    local.wait_healthy("w");
    let setup = |more: &[&str]| {
        let out = local.run(&[&["run", "w", "--service", "web"], more, &["setup", "migrate"]].concat());
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    local.inside_ok("w", "rm /workspace/go");
    assert_eq!(setup(&["--detach"]).0, Some(0));
    eventually("it runs", || (text(&local, "begun.txt") == "begun\nbegun\n").then_some(()));
    let version = || local.status("w")["version"].as_i64().expect("a number");
    let before = version();
    let (code, said) = setup(&[]);
    assert_eq!(code, Some(125), "{said}");
    assert!(said.contains("set-up steps are running already"), "{said}");
    let told = version() - before;
    assert!(told < 25, "what runs is told once, not again and again: {told}");
    local.inside_ok("w", "touch /workspace/go");
    let migrated = |times: usize| (text(&local, "migrations.txt") == "migrated\n".repeat(times)).then_some(());
    eventually("the first one ends", || migrated(2));
    assert_eq!(setup(&[]).0, Some(0));
    assert!(migrated(3).is_some());
}
