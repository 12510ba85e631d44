//! Forks and snapshots: what is recorded, what the host is told, and how it ends.

use crate::support::{
    host::{awake, report, woken},
    installation::Installation,
};
use envforge_api::{
    command::{ActAnswer, LeasedAct},
    copy::{CopyReport, Forked, SnapshotAsked, SnapshotList, SnapshotView},
    generation::Generation,
    host::{DesiredRuntime, DesiredShell, Phase, WorkspaceReport},
    ids::{CommandId, SnapshotId},
    problem::{Problem, ProblemKind},
    public::Deleted,
    states::{CommandState, RuntimeState, ShellState, Stated, Trouble},
    time::Timestamp,
};
use serde_json::{Value, json};

const COST: CopyReport = CopyReport { took_ms: 1400, stall_ms: 140, size_bytes: 1 << 20 };

async fn fork(it: &Installation, body: &Value) -> Result<Forked, Problem> {
    it.owner().post("/v1/workspaces/ws/forks", body).await
}

#[tokio::test]
async fn a_fork_is_told_to_the_sources_host_and_its_record_ends_with_the_copy() {
    let it = Installation::start().await;
    let (mut host, source) = woken(&it).await;
    let body = json!({ "id": CommandId::generate(), "name": "try-2" });
    let forked = fork(&it, &body).await.expect("asked");
    let same = fork(&it, &body).await.expect("asked again");
    assert_eq!((&same.id, same.workspace.as_str()), (&forked.id, "try-2"), "the same fork");
    let intent = host.intent(&forked.id).await.expect("an intent");
    assert_eq!((intent.fork_of.as_ref(), intent.branch.as_str()), (Some(&source.id), "try-2"));
    assert!(matches!(&intent.runtime, DesiredRuntime::Awake { trigger } if trigger == "fork"), "its source is awake");
    assert_eq!(it.state_of(&forked.command).await, CommandState::Queued);
    let ready = WorkspaceReport { copied: Some(COST), ..report(&forked.id, 1, RuntimeState::Waking, Phase::Working) };
    host.report(ready).await;
    let record: envforge_api::command::CommandView =
        it.owner().get(&format!("/v1/commands/{}", forked.command.id)).await.expect("a record");
    assert_eq!((record.state, record.copied), (CommandState::Succeeded, Some(COST)));
    assert_eq!(record.workspace.as_str(), "ws", "whoever is in the source can follow it");
    let again = fork(&it, &json!({ "id": CommandId::generate(), "name": "try-2" })).await.expect_err("taken");
    assert_eq!(again.kind, ProblemKind::Conflict);
    let other = json!({ "id": forked.command.id, "name": "try-3" });
    assert_eq!(fork(&it, &other).await.expect_err("another request").kind, ProblemKind::Conflict);
    it.stop().await;
}

#[tokio::test]
async fn a_fork_of_what_sleeps_is_not_woken_and_a_named_branch_is_its_own() {
    let it = Installation::start().await;
    let mut host = it.host().await;
    let source = it.open("ws", false).await;
    host.report(report(&source.id, 1, RuntimeState::Asleep, Phase::Settled)).await;
    let body = json!({ "id": CommandId::generate(), "name": "try-2", "branch": "feature/two" });
    let forked = fork(&it, &body).await.expect("asked");
    assert!(!forked.wakes);
    let intent = host.intent(&forked.id).await.expect("an intent");
    assert_eq!((intent.branch.as_str(), intent.slug.as_str()), ("feature/two", "try-2"));
    assert!(matches!(intent.runtime, DesiredRuntime::Asleep { .. }));
    for taken in [json!({ "name": "try-3", "branch": "feature/two" }), json!({ "name": "no name" })] {
        let mut body = taken;
        body["id"] = json!(CommandId::generate());
        fork(&it, &body).await.expect_err("refused");
    }
    it.stop().await;
}

#[tokio::test]
async fn a_fork_that_cannot_be_made_fails_with_the_reason_and_is_removed_again() {
    let it = Installation::start().await;
    let (mut host, _) = woken(&it).await;
    let forked = fork(&it, &json!({ "id": CommandId::generate(), "name": "try-2" })).await.expect("asked");
    let trouble = Trouble::new("no space", "free some");
    let mut failed = report(&forked.id, 1, RuntimeState::Failed, Phase::Failed { trouble: trouble.clone() });
    failed.shell.stated = Stated::because(ShellState::Failed, Timestamp::now(), trouble.clone());
    failed.shell.phase = Phase::Failed { trouble };
    host.report(failed).await;
    assert_eq!(it.state_of(&forked.command).await, CommandState::Failed);
    let intent = host.intent(&forked.id).await.expect("an intent");
    assert_eq!((intent.shell, intent.generation), (DesiredShell::Absent, Generation(2)));
    let mut gone = report(&forked.id, 2, RuntimeState::Asleep, Phase::Settled);
    gone.shell.stated.state = ShellState::Absent;
    host.report(gone).await;
    fork(&it, &json!({ "id": CommandId::generate(), "name": "try-2" })).await.expect("its name is free again");
    it.stop().await;
}

#[tokio::test]
async fn a_fork_whose_copy_is_deleted_before_it_is_whole_is_cancelled() {
    let it = Installation::start().await;
    let (mut host, _) = woken(&it).await;
    let forked = fork(&it, &json!({ "id": CommandId::generate(), "name": "try-2" })).await.expect("asked");
    let force = json!({ "force": true });
    let path = "/v1/workspaces/try-2";
    it.owner().call::<_, Deleted>(axum::http::Method::DELETE, path, Some(&force)).await.expect("deleted");
    let mut gone = report(&forked.id, 2, RuntimeState::Asleep, Phase::Settled);
    gone.shell.stated.state = ShellState::Absent;
    host.report(gone).await;
    assert_eq!(it.state_of(&forked.command).await, CommandState::Cancelled);
    it.stop().await;
}

fn kept(id: &SnapshotId) -> SnapshotView {
    SnapshotView {
        id: id.clone(),
        created_at: Timestamp::now(),
        reason: "asked".into(),
        generation: Generation(1),
        cost: COST,
    }
}

#[tokio::test]
async fn a_snapshot_is_leased_once_and_a_restore_sleeps_first_and_wakes_what_was_awake() {
    let it = Installation::start().await;
    let (mut host, source) = woken(&it).await;
    let body = json!({ "id": CommandId::generate() });
    let ask = async |path: &str, body: &Value| {
        it.owner().post::<_, SnapshotAsked>(&format!("/v1/workspaces/ws/snapshots{path}"), body).await
    };
    let made = ask("", &body).await.expect("asked");
    assert_eq!(ask("", &body).await.expect("asked again").snapshot, made.snapshot, "the same snapshot");
    let lease = host.sync(5_000).await.leases.pop().expect("a lease");
    assert!(matches!(&lease.act, LeasedAct::CreateSnapshot { snapshot, .. } if *snapshot == made.snapshot));
    host.answer(&lease, Some(ActAnswer::Copied { cost: COST })).await;
    assert_eq!(it.state_of(&made.command).await, CommandState::Succeeded);

    let unknown = format!("/{}/restore", SnapshotId::generate());
    let again = json!({ "id": CommandId::generate() });
    assert_eq!(ask(&unknown, &again).await.expect_err("unknown").kind, ProblemKind::NotFound);
    host.report(WorkspaceReport { snapshots: vec![kept(&made.snapshot)], ..awake(&source.id, 1) }).await;
    let list: SnapshotList = it.owner().get("/v1/workspaces/ws/snapshots").await.expect("a list");
    assert_eq!(list.snapshots.len(), 1);

    let restored = ask(&format!("/{}/restore", made.snapshot), &again).await.expect("asked");
    let intent = host.intent(&source.id).await.expect("an intent");
    assert!(matches!(&intent.runtime, DesiredRuntime::Asleep { reason } if reason == "restore"));
    let lease = host.sync(5_000).await.leases.pop().expect("a lease");
    let LeasedAct::RestoreSnapshot { snapshot, kept, generation, .. } = &lease.act else { panic!("{lease:?}") };
    assert_eq!((snapshot, kept, *generation), (&made.snapshot, &restored.snapshot, intent.generation));
    host.report(report(&source.id, intent.generation.0, RuntimeState::Asleep, Phase::Settled)).await;
    host.answer(&lease, Some(ActAnswer::Copied { cost: COST })).await;
    assert_eq!(it.state_of(&restored.command).await, CommandState::Succeeded);
    let intent = host.intent(&source.id).await.expect("an intent");
    assert!(matches!(&intent.runtime, DesiredRuntime::Awake { trigger } if trigger == "restore"));
    it.stop().await;
}
