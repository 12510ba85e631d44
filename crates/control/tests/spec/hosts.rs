//! The host protocol: epochs, parking, catching up, restarts of the control plane.

use crate::support::{
    host::{Host, awake, registration, report},
    installation::{Installation, opening},
};
use envforge_api::{
    capability,
    gateway::Feed,
    generation::{Generation, IntentSeq},
    host::{Phase, RegisterRequest, SyncRequest},
    problem::ProblemKind,
    sign::{self, Refused},
    states::RuntimeState,
    time::{BootId, Timestamp},
    tunnel::{PASS_SECONDS, Pass, PassGranted},
};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::{Instant, timeout};

#[tokio::test]
async fn a_replaced_daemon_hears_that_its_epoch_is_stale_even_while_parked() {
    let it = Installation::start().await;
    let old = it.host().await;
    let opened = it.open("ws", true).await;
    let mut parked = old.clone();
    parked.sync(0).await;
    let waiting = tokio::spawn(async move { parked.send(&parked.request(25_000)).await });
    let new = it.host().await;
    assert!(new.answer.epoch > old.answer.epoch);
    let problem = timeout(Duration::from_secs(10), waiting).await.expect("in time").expect("ran").expect_err("stale");
    assert_eq!(problem.kind, ProblemKind::StaleEpoch);
    let late = SyncRequest { reports: vec![awake(&opened.id, 1)], ..old.request(0) };
    assert_eq!(old.send(&late).await.expect_err("stale").kind, ProblemKind::StaleEpoch);
    assert_eq!(it.view("ws").await.runtime.stated.state, RuntimeState::Waking, "a stale daemon changes nothing");
    it.stop().await;
}

#[tokio::test]
async fn an_answer_holds_what_changed_since_and_zero_asks_for_everything() {
    let it = Installation::start().await;
    let mut host = it.host().await;
    it.open("a", false).await;
    it.open("b", false).await;
    assert_eq!(host.sync(0).await.intents.len(), 2);
    assert_eq!(host.sync(0).await.intents.len(), 0);
    it.ask("b", "wake", serde_json::json!({})).await.expect("asked");
    let answer = host.sync(5_000).await;
    assert_eq!(answer.intents.len(), 1);
    assert_eq!(answer.intents[0].slug.as_str(), "b");
    let everything = SyncRequest { intent_seq: IntentSeq(0), ..host.request(0) };
    assert_eq!(host.send(&everything).await.expect("synced").intents.len(), 2);
    // A request with reports asks for none; a parked one that is ahead of a restored control plane for all.
    let ahead = SyncRequest { intent_seq: IntentSeq(u64::MAX >> 1), ..host.request(0) };
    assert_eq!(host.send(&ahead).await.expect("synced").intents.len(), 0);
    let parked = SyncRequest { wait_ms: 20_000, ..ahead };
    assert_eq!(host.send(&parked).await.expect("synced").intents.len(), 2);
    it.stop().await;
}

#[tokio::test]
async fn an_older_report_never_overwrites_a_newer_one() {
    let it = Installation::start().await;
    let mut host = it.host().await;
    let opened = it.open("ws", true).await;
    host.report(awake(&opened.id, 1)).await;
    let mut late = report(&opened.id, 1, RuntimeState::Waking, Phase::Working);
    late.seq = 1;
    host.send(&SyncRequest { reports: vec![late], ..host.request(0) }).await.expect("synced");
    assert_eq!(it.view("ws").await.runtime.stated.state, RuntimeState::Awake);
    it.stop().await;
}

#[tokio::test]
async fn a_host_that_knows_a_higher_generation_is_believed() {
    let it = Installation::start().await;
    let opened = it.open("ws", true).await;
    let client = it.client(Some(&it.token("host.token")));
    let request = RegisterRequest { known: BTreeMap::from([(opened.id.clone(), Generation(40))]), ..registration() };
    let host = Host::register_as(client, request).await;
    assert_eq!(host.intent(&opened.id).await.expect("an intent").generation, Generation(41));
    it.stop().await;
}

#[tokio::test]
async fn a_host_that_was_started_again_is_not_believed_to_run_what_it_reported_before() {
    let it = Installation::start().await;
    let mut host = it.host().await;
    let opened = it.open("ws", true).await;
    host.report(awake(&opened.id, 1)).await;
    let known = BTreeMap::from([(opened.id.clone(), Generation(1))]);
    let same_boot = RegisterRequest { known: known.clone(), ..registration() };
    Host::register_as(it.client(Some(&it.token("host.token"))), same_boot).await;
    assert_eq!(it.view("ws").await.runtime.stated.state, RuntimeState::Awake, "a new daemon alone ends nothing");
    let rebooted = RegisterRequest { known, boot: BootId("another".into()), ..registration() };
    Host::register_as(it.client(Some(&it.token("host.token"))), rebooted).await;
    assert_eq!(it.view("ws").await.runtime.stated.state, RuntimeState::Waking);
    let woken = it.ask("ws", "wake", serde_json::json!({})).await.expect("asked");
    assert!(!woken.state.is_final(), "a wake is not done by what ran before: {woken:?}");
    it.stop().await;
}

#[tokio::test]
async fn stopping_answers_parked_requests_at_once_and_a_restart_goes_on_where_it_was() {
    let it = Installation::start().await;
    let mut host = it.host().await;
    let opened = it.open("ws", true).await;
    host.sync(0).await;
    let parked = host.clone();
    let waiting = tokio::spawn(async move { parked.send(&parked.request(25_000)).await });
    // A bell that rings without news leaves it parked; the round trips let it arrive.
    for _ in 0..20 {
        it.view("ws").await;
    }
    assert!(!waiting.is_finished());
    let Installation { running, pool, url, state } = it;
    let started = Instant::now();
    running.stop().await;
    assert!(started.elapsed() < Duration::from_secs(4), "the parked request did not hold the stop up");
    drop(waiting.await.expect("ran"));
    pool.close().await;
    let it = Installation::on(url, state).await;
    let again: envforge_api::public::Opened =
        it.owner().post("/v1/workspaces/open", &opening("ws")).await.expect("opened");
    assert_eq!(again.id, opened.id);
    let address = std::fs::read_to_string(it.state.join("address")).expect("the address");
    assert_eq!(address.trim(), format!("http://{}", it.running.address()));
    it.stop().await;
}

#[tokio::test]
async fn a_host_gets_a_pass_for_itself_that_every_gateway_can_verify_for_a_minute() {
    let it = Installation::start().await;
    let host = it.host().await;
    let feed: Feed = it.gateway().get("/v1/gateway/feed").await.expect("the feed");
    let granted: PassGranted = host.client.post("/v1/host/pass", &()).await.expect("a pass");
    assert_eq!(granted.base, feed.base);
    let verified = |now| sign::verify::<Pass>(&feed.keys, granted.token.expose(), now);
    let now = Timestamp::now();
    let pass = verified(now).expect("valid");
    assert_eq!((&pass.host, pass.expires_at), (&host.answer.host, granted.expires_at));
    assert!(pass.expires_at.duration_since(now).as_secs() <= PASS_SECONDS);
    assert_eq!(verified(pass.expires_at), Err(Refused::Expired));
    // It is nothing else.
    assert_eq!(capability::verify(&feed.keys, granted.token.expose(), now), Err(Refused::Signature));
    it.stop().await;
}
