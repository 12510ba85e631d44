//! Opening: names, branches, slugs, grants.

use crate::support::{
    host::{awake, report},
    installation::{Installation, opening},
};
use envforge_api::{
    capability::{self, Right},
    command::{ActAnswer, LeasedAct},
    host::{DesiredRuntime, Phase},
    problem::{Problem, ProblemKind},
    public::{OpenWorkspace, Opened, WorkspaceView},
    states::{BillingState, RuntimeState, ShellState},
    time::Timestamp,
};
use std::time::Duration;

#[tokio::test]
async fn a_new_branch_becomes_a_workspace_whose_intent_wakes_the_parked_host() {
    let it = Installation::start().await;
    let mut host = it.host().await;
    let parked = tokio::spawn(async move {
        let answer = host.sync(25_000).await;
        (host, answer)
    });
    let opened = it.open("Feature/Signed_Links", true).await;
    assert_eq!(opened.workspace.as_str(), "feature-signed-links");
    assert!(opened.created && opened.wake.is_some());
    assert_eq!(opened.grant.local_socket.as_deref(), Some("/run/test.sock"));
    assert_eq!(opened.grant.gateway.as_deref(), Some("http://dev.localhost"), "for who is elsewhere");
    let (mut host, answer) =
        tokio::time::timeout(Duration::from_secs(10), parked).await.expect("in time").expect("ran");
    let intent = &answer.intents[0];
    assert_eq!(intent.workspace, opened.id);
    assert_eq!(intent.branch.as_str(), "Feature/Signed_Links");
    assert!(matches!(&intent.runtime, DesiredRuntime::Awake { trigger } if trigger == "up"));
    assert_eq!(intent.urls["web"], "http://web--feature-signed-links--local.dev.localhost");

    let view = it.view("feature-signed-links").await;
    assert_eq!((view.shell.state, view.runtime.stated.state), (ShellState::Preparing, RuntimeState::Waking));
    host.report(report(&opened.id, 1, RuntimeState::Waking, Phase::Working)).await;
    let records = it.records("feature-signed-links").await;
    assert_eq!(records, [("START_RUNTIME".into(), "running".into()), ("PREPARE_SHELL".into(), "succeeded".into())]);
    host.report(awake(&opened.id, 1)).await;
    let view = it.view(opened.id.as_str()).await;
    assert_eq!(view.runtime.stated.state, RuntimeState::Awake);
    assert_eq!(view.billing.state, BillingState::Off, "nothing was read from the meter");
    assert_eq!(view.services[0].url.as_deref(), Some("http://web--feature-signed-links--local.dev.localhost"));
    assert_eq!(it.records("feature-signed-links").await[0].1, "succeeded");
    it.stop().await;
}

#[tokio::test]
async fn opening_twice_by_slug_or_branch_is_the_same_workspace() {
    let it = Installation::start().await;
    let first = it.open("Feature/X", false).await;
    let by_slug = it.open("feature-x", false).await;
    let by_branch = it.open("Feature/X", true).await;
    assert!(first.created && !by_slug.created && !by_branch.created);
    assert_eq!((&first.id, &first.id), (&by_slug.id, &by_branch.id));
    assert_eq!(by_slug.wake, None);
    assert!(by_branch.wake.is_some());
    it.stop().await;
}

#[tokio::test]
async fn opened_by_many_at_once_a_branch_becomes_one_workspace() {
    let it = Installation::start().await;
    let all = futures_util::future::join_all((0..8).map(|_| it.open("race", true))).await;
    assert_eq!(all.iter().filter(|opened| opened.created).count(), 1);
    assert!(all.iter().all(|opened| opened.id == all[0].id));
    let wakes: std::collections::BTreeSet<_> = all.iter().map(|opened| opened.wake.clone()).collect();
    assert_eq!(wakes.len(), 1, "every one of them joined one wake");
    it.stop().await;
}

#[tokio::test]
async fn a_taken_slug_gets_the_projects_name_added() {
    let it = Installation::start().await;
    let first = it.open("a/b", false).await;
    let second = it.open("a_b", false).await;
    let third = it.open("a+b", false).await;
    assert_eq!(first.workspace.as_str(), "a-b");
    assert_eq!(second.workspace.as_str(), "a-b-demo");
    assert!(third.workspace.as_str().starts_with("a-b-") && third.workspace != second.workspace);
    it.stop().await;
}

#[tokio::test]
async fn a_name_that_is_no_workspace_is_looked_for_in_the_repositories() {
    let it = Installation::start().await;
    let mut host = it.host().await;
    for (found, expected) in [(vec![false, true], None), (vec![false, false], Some(ProblemKind::Confirm))] {
        let owner = it.owner();
        let name = if expected.is_none() { "there" } else { "nowhere" };
        let asked = tokio::spawn(async move {
            let request = OpenWorkspace { create: false, ..opening(name) };
            owner.post::<_, Opened>("/v1/workspaces/open", &request).await
        });
        let lease = loop {
            if let Some(lease) = host.sync(5_000).await.leases.pop() {
                break lease;
            }
        };
        let LeasedAct::FindBranch { repos, branch } = &lease.act else { panic!("{lease:?}") };
        assert_eq!((repos.len(), branch.as_str()), (2, name));
        host.answer(&lease, Some(ActAnswer::Branches { found })).await;
        match (asked.await.expect("ran"), expected) {
            (Ok(opened), None) => assert!(opened.created),
            (Err(problem), Some(kind)) => {
                assert_eq!(problem.kind, kind);
                assert!(problem.hint.contains("-c"), "{problem:?}");
            }
            (other, _) => panic!("{other:?}"),
        }
    }
    assert!(it.records("there").await.iter().all(|(kind, _)| kind == "PREPARE_SHELL"), "a question is no record");
    it.stop().await;
}

#[tokio::test]
async fn without_a_host_a_question_is_unavailable_but_creating_works() {
    let it = Installation::start().await;
    let request = OpenWorkspace { create: false, ..opening("x") };
    let problem: Problem = it.owner().post::<_, Opened>("/v1/workspaces/open", &request).await.expect_err("refused");
    assert_eq!(problem.kind, ProblemKind::Unavailable);
    assert!(it.open("x", false).await.created);
    it.stop().await;
}

#[tokio::test]
async fn the_project_must_be_clear() {
    let it = Installation::start().await;
    it.project("other").await;
    let problem = it.owner().post::<_, Opened>("/v1/workspaces/open", &opening("x")).await.expect_err("refused");
    assert_eq!((problem.kind, problem.candidates), (ProblemKind::Invalid, vec!["demo".into(), "other".into()]));
    let request = OpenWorkspace { project: Some("other".parse().expect("a slug")), ..opening("x") };
    let opened: Opened = it.owner().post("/v1/workspaces/open", &request).await.expect("opened");
    assert_eq!(it.view(opened.workspace.as_str()).await.project.as_str(), "other");
    sqlx::query("TRUNCATE projects CASCADE").execute(&it.pool).await.expect("truncated");
    let problem = it.owner().post::<_, Opened>("/v1/workspaces/open", &opening("y")).await.expect_err("refused");
    assert!(problem.hint.contains("envforge project apply -f FILE"), "{problem:?}");
    it.stop().await;
}

#[tokio::test]
async fn a_grant_is_a_capability_for_this_host_and_workspace_and_reveal_is_audited() {
    let it = Installation::start().await;
    let host = it.host().await;
    let opened = it.open("g", false).await;
    let read = capability::verify(&host.answer.keys, opened.grant.token.expose(), Timestamp::now()).expect("valid");
    assert_eq!(read.allows(&host.answer.host, &opened.id, Right::Attach), Ok(()));
    assert!(read.allows(&host.answer.host, &opened.id, Right::Reveal).is_err());
    let body = serde_json::json!({ "rights": ["reveal"], "service": "web" });
    let grant: envforge_api::public::Grant = it.owner().post("/v1/workspaces/g/grant", &body).await.expect("granted");
    let read = capability::verify(&host.answer.keys, grant.token.expose(), Timestamp::now()).expect("valid");
    assert_eq!(read.service.as_ref().map(|s| s.as_str()), Some("web"));
    let audit: envforge_api::public::AuditList = it.owner().get("/v1/audit").await.expect("audit");
    assert_eq!(audit.entries[0].action, "workspace.reveal");
    it.stop().await;
}

#[tokio::test]
async fn a_long_poll_answers_when_something_shown_changed_and_not_before() {
    let it = Installation::start().await;
    let mut host = it.host().await;
    let opened = it.open("poll", false).await;
    host.report(report(&opened.id, 1, RuntimeState::Asleep, Phase::Settled)).await;
    let before = it.view("poll").await;
    let owner = it.owner();
    let path = format!("/v1/workspaces/poll?after={}&wait=20", before.version);
    let waiting = tokio::spawn(async move { owner.get::<WorkspaceView>(&path).await });
    // The same state again is nothing new.
    let mut same = report(&opened.id, 1, RuntimeState::Asleep, Phase::Settled);
    same.shell.stated = before.shell.clone();
    same.runtime.stated = before.runtime.stated.clone();
    host.report(same).await;
    assert_eq!(it.view("poll").await.version, before.version);
    it.ask("poll", "wake", serde_json::json!({})).await.expect("asked");
    let after = waiting.await.expect("ran").expect("a view");
    assert!(after.version > before.version);
    assert_eq!(after.runtime.stated.state, RuntimeState::Waking);
    it.stop().await;
}
