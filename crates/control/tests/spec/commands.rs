//! Wake, sleep, services, runs, deletion: desired state and records.

use crate::support::{
    host::{awake, report, service, woken},
    installation::{Installation, opening},
};
use envforge_api::{
    command::{ActAnswer, ActReport, LeasedAct},
    generation::Generation,
    host::{DesiredRuntime, DesiredShell, Phase, SyncRequest},
    ids::CommandId,
    problem::ProblemKind,
    public::{Commanded, Deleted, Held, Opened},
    states::{CommandState, RuntimeState, ServiceState, ShellState},
};
use serde_json::json;

#[tokio::test]
async fn waking_what_is_awake_is_recorded_as_succeeded_without_a_new_generation() {
    let it = Installation::start().await;
    let (_, _) = woken(&it).await;
    let command = it.ask("ws", "wake", json!({})).await.expect("asked");
    assert_eq!((command.state, command.generation), (CommandState::Succeeded, Generation(1)));
    it.stop().await;
}

#[tokio::test]
async fn an_unfinished_wake_is_joined_and_a_failed_one_is_tried_again() {
    let it = Installation::start().await;
    let mut host = it.host().await;
    let opened = it.open("ws", true).await;
    let joined = it.ask("ws", "wake", json!({})).await.expect("asked");
    assert_eq!(Some(&joined.id), opened.wake.as_ref());
    let trouble = envforge_api::states::Trouble::new("no memory", "free some");
    host.report(report(&opened.id, 1, RuntimeState::Failed, Phase::Failed { trouble })).await;
    assert_eq!(it.state_of(&joined).await, CommandState::Failed);
    let again = it.ask("ws", "wake", json!({})).await.expect("asked");
    assert_eq!((again.state, again.generation), (CommandState::Queued, Generation(2)));
    assert_eq!(it.view("ws").await.runtime.stated.state, RuntimeState::Waking);
    it.stop().await;
}

#[tokio::test]
async fn a_wake_with_services_that_never_were_healthy_fails_and_names_them() {
    let it = Installation::start().await;
    let mut host = it.host().await;
    let opened = it.open("ws", true).await;
    let mut failed = awake(&opened.id, 1);
    failed.start = Some(envforge_api::host::StartVerdict::Failed { services: vec!["api".into()] });
    host.report(failed).await;
    let list: envforge_api::public::CommandList =
        it.owner().get("/v1/workspaces/ws/commands?status=failed").await.expect("records");
    assert_eq!(list.commands.len(), 1);
    assert!(list.commands[0].reason.as_deref().is_some_and(|reason| reason.contains("api")));
    assert_eq!(it.view("ws").await.runtime.stated.state, RuntimeState::Awake, "the rest serves");
    it.stop().await;
}

#[tokio::test]
async fn sleep_supersedes_a_wake_under_way_and_ends_when_the_host_says_asleep() {
    let it = Installation::start().await;
    let mut host = it.host().await;
    let opened = it.open("ws", true).await;
    host.report(report(&opened.id, 1, RuntimeState::Waking, Phase::Working)).await;
    let sleep = it.ask("ws", "sleep", json!({})).await.expect("asked");
    assert_eq!(sleep.generation, Generation(2));
    assert_eq!(it.view("ws").await.runtime.stated.state, RuntimeState::Sleeping, "shown at once");
    assert_eq!(it.records("ws").await[1], ("START_RUNTIME".into(), "superseded".into()));
    // What the host says about the older generation ends nothing.
    host.report(report(&opened.id, 1, RuntimeState::Asleep, Phase::Settled)).await;
    assert_ne!(it.state_of(&sleep).await, CommandState::Succeeded);
    host.report(report(&opened.id, 2, RuntimeState::Asleep, Phase::Settled)).await;
    assert_eq!(it.state_of(&sleep).await, CommandState::Succeeded);
    let again = it.ask("ws", "sleep", json!({})).await.expect("asked");
    assert_eq!((again.state, again.generation), (CommandState::Succeeded, Generation(2)));
    it.stop().await;
}

#[tokio::test]
async fn an_idle_slept_runtime_needs_a_new_generation_to_wake() {
    let it = Installation::start().await;
    let (mut host, opened) = woken(&it).await;
    host.report(report(&opened.id, 1, RuntimeState::Asleep, Phase::Settled)).await;
    assert_eq!(it.view("ws").await.runtime.stated.state, RuntimeState::Asleep);
    let wake = it.ask("ws", "wake", json!({ "trigger": "link" })).await.expect("asked");
    assert_eq!((wake.generation, wake.trigger.as_str()), (Generation(2), "link"));
    it.stop().await;
}

#[tokio::test]
async fn a_hold_reaches_the_host_without_waking_what_slept() {
    let it = Installation::start().await;
    let (mut host, opened) = woken(&it).await;
    let held: Held = it.owner().post("/v1/workspaces/ws/hold", &json!({ "seconds": 7200 })).await.expect("held");
    let intent = host.intent(&opened.id).await.expect("an intent");
    assert!(held.until.is_some());
    assert_eq!(intent.generation, Generation(2));
    assert!(matches!(intent.runtime, DesiredRuntime::Awake { .. }));
    assert_eq!(intent.hold_until.map(|t| t.as_second()), held.until.map(|t| t.as_second()));
    host.report(report(&opened.id, 2, RuntimeState::Asleep, Phase::Settled)).await;
    let held: Held = it.owner().post("/v1/workspaces/ws/hold", &json!({ "seconds": 0 })).await.expect("held");
    assert_eq!(held.until, None);
    let intent = host.intent(&opened.id).await.expect("an intent");
    assert!(matches!(&intent.runtime, DesiredRuntime::Asleep { reason } if reason == "idle"), "{intent:?}");
    let too_long = it.owner().post::<_, Held>("/v1/workspaces/ws/hold", &json!({ "seconds": 604_801 })).await;
    assert_eq!(too_long.expect_err("refused").kind, ProblemKind::Invalid);
    it.stop().await;
}

#[tokio::test]
async fn services_are_stopped_restarted_and_started_by_the_intent() {
    let it = Installation::start().await;
    let (mut host, opened) = woken(&it).await;
    let stop = json!({ "verb": "stop", "services": ["api"] });
    let command = it.ask("ws", "services", stop.clone()).await.expect("asked");
    assert_eq!(it.ask("ws", "services", stop).await.expect("asked").id, command.id, "an equal one is joined");
    let intent = host.intent(&opened.id).await.expect("an intent");
    assert!(intent.stopped.contains("api"));
    let mut stopped = awake(&opened.id, 2);
    stopped.services[1] = service("api", ServiceState::Stopped);
    host.report(stopped).await;
    assert_eq!(it.state_of(&command).await, CommandState::Succeeded);
    let restart = it.ask("ws", "services", json!({ "verb": "restart", "services": ["web"] })).await.expect("asked");
    let intent = host.intent(&opened.id).await.expect("an intent");
    assert_eq!(intent.restarts["web"], 1);
    host.report(awake(&opened.id, 3)).await;
    assert_eq!(it.state_of(&restart).await, CommandState::Succeeded);
    let unknown = it.ask("ws", "services", json!({ "verb": "stop", "services": ["nope"] })).await;
    assert_eq!(unknown.expect_err("refused").candidates, ["web", "api"]);
    it.stop().await;
}

#[tokio::test]
async fn starting_a_service_of_a_sleeping_workspace_wakes_it() {
    let it = Installation::start().await;
    let mut host = it.host().await;
    let opened = it.open("ws", false).await;
    host.report(report(&opened.id, 1, RuntimeState::Asleep, Phase::Settled)).await;
    it.ask("ws", "services", json!({ "verb": "start", "services": ["web"] })).await.expect("asked");
    let intent = host.intent(&opened.id).await.expect("an intent");
    assert!(matches!(&intent.runtime, DesiredRuntime::Awake { trigger } if trigger == "service"));
    let kinds: Vec<_> = it.records("ws").await.into_iter().map(|(kind, _)| kind).collect();
    assert!(kinds.contains(&"CONTROL_SERVICE".into()) && kinds.contains(&"START_RUNTIME".into()), "{kinds:?}");
    host.report(awake(&opened.id, 2)).await;
    assert!(it.records("ws").await.iter().all(|(_, state)| state == "succeeded"));
    it.stop().await;
}

#[tokio::test]
async fn a_run_is_leased_until_its_end_and_the_same_id_is_the_same_run() {
    let it = Installation::start().await;
    let (mut host, _) = woken(&it).await;
    let body = json!({ "id": CommandId::generate(), "service": "web", "target": { "what": "argv", "argv": ["true"] } });
    let run = it.ask("ws", "runs", body.clone()).await.expect("asked");
    assert_eq!(it.ask("ws", "runs", body.clone()).await.expect("asked").id, run.id);
    let mut other = body;
    other["target"]["argv"] = json!(["false"]);
    assert_eq!(it.ask("ws", "runs", other).await.expect_err("refused").kind, ProblemKind::Conflict);
    let lease = host.sync(5_000).await.leases.pop().expect("a lease");
    assert_eq!(lease.id, run.id);
    let again = host.sync(0).await.leases;
    assert_eq!(again, std::slice::from_ref(&lease), "repeated until its end");
    let act = |state, exit_code| ActReport { id: run.id.clone(), state, exit_code, reason: None, answer: None };
    let running = SyncRequest { acts: vec![act(CommandState::Running, None)], ..host.request(0) };
    host.send(&running).await.expect("synced");
    assert_eq!(it.state_of(&run).await, CommandState::Running);
    let ended = SyncRequest { acts: vec![act(CommandState::Failed, Some(3))], ..host.request(0) };
    let answer = host.send(&ended).await.expect("synced");
    assert!(answer.leases.is_empty());
    // Told twice, it is recorded once and acknowledged twice.
    assert_eq!(host.send(&ended).await.expect("synced").recorded_acts, std::slice::from_ref(&run.id));
    let view: envforge_api::command::CommandView =
        it.owner().get(&format!("/v1/commands/{}", run.id)).await.expect("a record");
    assert_eq!((view.state, view.exit_code), (CommandState::Failed, Some(3)));
    it.stop().await;
}

#[tokio::test]
async fn an_asked_sleep_cancels_runs_at_once_or_through_the_host() {
    let it = Installation::start().await;
    let (mut host, _) = woken(&it).await;
    let body = |argv: &str| json!({ "id": CommandId::generate(), "target": { "what": "argv", "argv": [argv] } });
    let offered = it.ask("ws", "runs", body("a")).await.expect("asked");
    assert_eq!(host.sync(5_000).await.leases.len(), 1);
    let unoffered = it.ask("ws", "runs", body("b")).await.expect("asked");
    it.ask("ws", "sleep", json!({})).await.expect("asked");
    assert_eq!(it.state_of(&unoffered).await, CommandState::Cancelled);
    let leases = host.sync(5_000).await.leases;
    let cancel =
        leases.iter().find(|lease| matches!(&lease.act, LeasedAct::CancelRun { run, .. } if *run == offered.id));
    host.answer(cancel.expect("a cancellation"), None).await;
    it.stop().await;
}

#[tokio::test]
async fn a_run_wakes_nothing_until_its_host_asks_in_the_workspaces_name() {
    let it = Installation::start().await;
    let mut host = it.host().await;
    let opened = it.open("ws", false).await;
    host.report(report(&opened.id, 1, RuntimeState::Asleep, Phase::Settled)).await;
    for target in [json!({ "what": "test", "name": "lint" }), json!({ "what": "argv", "argv": ["true"] })] {
        it.ask("ws", "runs", json!({ "id": CommandId::generate(), "target": target })).await.expect("asked");
    }
    assert_eq!(host.sync(5_000).await.leases.len(), 2);
    assert_eq!(host.intent(&opened.id).await.expect("an intent").generation, Generation(1));
    let workspace = host.client.clone().with_header("x-envforge-workspace", opened.id.to_string());
    for _ in 0..2 {
        let path = format!("/v1/workspaces/{}/wake", opened.id);
        let woken: Commanded = workspace.post(&path, &json!({ "trigger": "run" })).await.expect("woken");
        assert_eq!(
            (woken.command.generation, woken.command.requested_by.as_str()),
            (Generation(2), owner_name().as_str())
        );
    }
    let intent = host.intent(&opened.id).await.expect("an intent");
    assert!(matches!(&intent.runtime, DesiredRuntime::Awake { trigger } if trigger == "run"));
    it.stop().await;
}

/// The local owner is named after who started the control plane.
fn owner_name() -> String {
    std::env::var("USER").ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "owner".into())
}

#[tokio::test]
async fn deleting_names_what_goes_refuses_unsaved_work_and_frees_the_name() {
    let it = Installation::start().await;
    let (mut host, opened) = woken(&it).await;
    let delete = |body: serde_json::Value| {
        let owner = it.owner();
        tokio::spawn(async move { owner.call::<_, Deleted>(http_delete(), "/v1/workspaces/ws", Some(&body)).await })
    };
    let refused = delete(json!({}));
    let lease = host.sync(5_000).await.leases.pop().expect("a question");
    assert!(matches!(lease.act, LeasedAct::InspectWork { .. }));
    host.answer(&lease, Some(ActAnswer::Work { at_risk: vec!["web: 2 files not committed".into()] })).await;
    let problem = refused.await.expect("ran").expect_err("refused");
    assert_eq!(problem.kind, ProblemKind::Confirm);
    assert!(problem.message.contains("2 files") && problem.hint.contains("--force"), "{problem:?}");

    let deleted = delete(json!({ "force": true })).await.expect("ran").expect("deleted");
    assert!(deleted.goes.iter().any(|line| line.contains("web")), "{deleted:?}");
    let command = deleted.command.expect("a record");
    let intent = host.intent(&opened.id).await.expect("an intent");
    assert_eq!(intent.shell, DesiredShell::Absent);
    assert_eq!(it.ask("ws", "wake", json!({})).await.expect_err("refused").kind, ProblemKind::Conflict);
    let mut gone = report(&opened.id, intent.generation.0, RuntimeState::Asleep, Phase::Settled);
    gone.shell.stated.state = ShellState::Absent;
    host.report(gone).await;
    assert_eq!(it.state_of(&command).await, CommandState::Succeeded);
    let missing = it.owner().get::<serde_json::Value>("/v1/workspaces/ws").await.expect_err("gone");
    assert_eq!(missing.kind, ProblemKind::NotFound);
    let again: Opened = it.owner().post("/v1/workspaces/open", &opening("ws")).await.expect("opened");
    assert!(again.created && again.id != opened.id && again.workspace == opened.workspace);
    it.stop().await;
}

#[tokio::test]
async fn only_runs_are_cancelled() {
    let it = Installation::start().await;
    let opened = it.open("ws", true).await;
    let path = format!("/v1/commands/{}/cancel", opened.wake.expect("a wake"));
    let problem = it.owner().post::<_, Commanded>(&path, &json!({})).await.expect_err("refused");
    assert_eq!(problem.kind, ProblemKind::Conflict);
    it.stop().await;
}

fn http_delete() -> axum::http::Method {
    axum::http::Method::DELETE
}
