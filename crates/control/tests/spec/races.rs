//! Everything at once: no request fails because of another, and nothing is lost.

use crate::support::{
    host::{awake, report},
    installation::Installation,
};
use envforge_api::{
    command::{ActReport, CommandView, LeasedAct},
    host::{DesiredRuntime, Phase, SyncRequest},
    ids::CommandId,
    problem::{Problem, ProblemKind},
    public::Commanded,
    states::{CommandState, RuntimeState},
};
use serde_json::{Value, json};

const ROUNDS: usize = 30;

#[tokio::test]
async fn requests_runs_and_reports_of_one_workspace_do_not_fail_each_other() {
    let it = Installation::start().await;
    let mut host = it.host().await;
    let opened = it.open("ws", true).await;
    let ask = |verb: &'static str, body: fn() -> Value| {
        let owner = it.owner();
        async move {
            for _ in 0..ROUNDS {
                let asked: Result<Commanded, Problem> = owner.post(&format!("/v1/workspaces/ws/{verb}"), &body()).await;
                asked.unwrap_or_else(|problem| panic!("{verb}: {problem:?}"));
            }
        }
    };
    let follow = async {
        for _ in 0..3 * ROUNDS {
            let answer = host.sync(5).await;
            for intent in answer.intents {
                let said = match intent.runtime {
                    DesiredRuntime::Awake { .. } => awake(&opened.id, intent.generation.0),
                    DesiredRuntime::Asleep { .. } => {
                        report(&opened.id, intent.generation.0, RuntimeState::Asleep, Phase::Settled)
                    }
                };
                host.report(said).await;
            }
            let acts = answer
                .leases
                .into_iter()
                .map(|lease| ActReport {
                    state: match lease.act {
                        LeasedAct::Run { .. }
                        | LeasedAct::CreateSnapshot { .. }
                        | LeasedAct::RestoreSnapshot { .. } => CommandState::Interrupted,
                        LeasedAct::CancelRun { .. }
                        | LeasedAct::FindBranch { .. }
                        | LeasedAct::InspectWork { .. }
                        | LeasedAct::RemoveSnapshot { .. } => CommandState::Succeeded,
                    },
                    id: lease.id,
                    exit_code: None,
                    reason: None,
                    answer: None,
                })
                .collect();
            host.send(&SyncRequest { acts, ..host.request(0) }).await.expect("synced");
        }
        host
    };
    let (mut host, ..) = tokio::join!(
        follow,
        ask("wake", || json!({})),
        ask("sleep", || json!({})),
        ask("services", || json!({ "verb": "restart", "services": ["web"] })),
        ask("runs", || json!({ "id": CommandId::generate(), "target": { "what": "argv", "argv": ["true"] } })),
    );
    // Settled, every record has an end.
    it.ask("ws", "sleep", json!({})).await.expect("asked");
    loop {
        let answer = host.sync(0).await;
        if answer.leases.is_empty() {
            break;
        }
        let end = |id| ActReport { id, state: CommandState::Cancelled, exit_code: None, reason: None, answer: None };
        let acts = answer.leases.into_iter().map(|lease| end(lease.id)).collect();
        host.send(&SyncRequest { acts, ..host.request(0) }).await.expect("synced");
    }
    let generation = host.intent(&opened.id).await.expect("an intent").generation.0;
    host.report(report(&opened.id, generation, RuntimeState::Asleep, Phase::Settled)).await;
    let open: Vec<_> = it.records("ws").await.into_iter().filter(|(_, state)| !is_final(state)).collect();
    assert!(open.iter().all(|(kind, _)| kind == "PREPARE_SHELL"), "{open:?}");
    it.stop().await;
}

fn is_final(state: &str) -> bool {
    state.parse::<CommandState>().expect("a state").is_final()
}

#[tokio::test]
async fn a_new_daemon_is_handed_the_runs_that_an_older_one_took() {
    let it = Installation::start().await;
    let mut old = it.host().await;
    it.open("ws", false).await;
    let body = json!({ "id": CommandId::generate(), "target": { "what": "test" } });
    let run = it.ask("ws", "runs", body).await.expect("asked");
    assert_eq!(old.sync(5_000).await.leases.len(), 1);
    let act =
        ActReport { id: run.id.clone(), state: CommandState::Running, exit_code: None, reason: None, answer: None };
    old.send(&SyncRequest { acts: vec![act.clone()], ..old.request(0) }).await.expect("synced");
    let mut new = it.host().await;
    new.seq = old.seq;
    // Parked, and still at once: the new daemon must say what became of it.
    let answer = tokio::time::timeout(std::time::Duration::from_secs(10), new.sync(20_000)).await;
    let leases = answer.expect("not parked").leases;
    assert_eq!(leases[0].id, run.id);
    let interrupted = ActReport { state: CommandState::Interrupted, reason: Some("the daemon died".into()), ..act };
    new.send(&SyncRequest { acts: vec![interrupted], ..new.request(0) }).await.expect("synced");
    let view: CommandView = it.owner().get(&format!("/v1/commands/{}", run.id)).await.expect("a record");
    assert_eq!(view.state, CommandState::Interrupted);
    assert_eq!(view.reason.as_deref(), Some("the daemon died"));
    it.stop().await;
}

#[tokio::test]
async fn a_host_not_heard_of_for_a_minute_is_called_lost() {
    let it = Installation::start().await;
    let host = it.host().await;
    it.open("ws", false).await;
    assert_eq!(it.view("ws").await.host_lost_since, None);
    sqlx::query("UPDATE hosts SET last_sync_at = now() - interval '61 seconds'")
        .execute(&it.pool)
        .await
        .expect("updated");
    assert!(it.view("ws").await.host_lost_since.is_some());
    host.send(&host.request(0)).await.expect("synced");
    assert_eq!(it.view("ws").await.host_lost_since, None);
    it.stop().await;
}

#[tokio::test]
async fn an_epoch_that_never_was_is_stale() {
    let it = Installation::start().await;
    let mut host = it.host().await;
    host.answer.epoch = host.answer.epoch.next();
    let problem = host.send(&host.request(0)).await.expect_err("stale");
    assert_eq!(problem.kind, ProblemKind::StaleEpoch);
    it.stop().await;
}
