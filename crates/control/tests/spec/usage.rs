//! The meter: a reading counts once, sessions never overlap, contradictions block nothing.

use crate::support::{
    host::{Host, report},
    installation::Installation,
};
use envforge_api::{
    host::{Phase, SyncRequest, WorkspaceReport},
    ids::{RuntimeInstanceId, WorkspaceId},
    project::RuntimeSize,
    public::UsageReport,
    states::{BillingState, RuntimeState},
    time::{BootId, BootMillis},
    usage::Reading,
};

fn reading(workspace: &WorkspaceId, instance: &RuntimeInstanceId, n: u64, at: u64) -> Reading {
    Reading {
        instance: instance.clone(),
        boot: BootId("boot-1".into()),
        n,
        workspace: workspace.clone(),
        size: RuntimeSize::Small,
        trigger: "up".into(),
        // The registration's boot clock stands at 1,000,000 ms.
        at: BootMillis(1_000_000 + at),
        oldest_process: Some(BootMillis(1_000_000)),
        ended: None,
    }
}

fn end(workspace: &WorkspaceId, instance: &RuntimeInstanceId, n: u64, at: u64) -> Reading {
    Reading { ended: Some("idle".into()), oldest_process: None, ..reading(workspace, instance, n, at) }
}

async fn usage(it: &Installation) -> UsageReport {
    it.owner().get("/v1/workspaces/ws/usage").await.expect("usage")
}

async fn set_aside(it: &Installation) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM usage_quarantine").fetch_one(&it.pool).await.expect("a count")
}

async fn begin() -> (Installation, Host, WorkspaceId) {
    let it = Installation::start().await;
    let host = it.host().await;
    let opened = it.open("ws", true).await;
    (it, host, opened.id)
}

#[tokio::test]
async fn readings_sent_twice_count_once_and_the_end_closes_the_session() {
    let (it, host, ws) = begin().await;
    let rt = RuntimeInstanceId::generate();
    let sent = vec![reading(&ws, &rt, 0, 0), reading(&ws, &rt, 1, 5_000), reading(&ws, &rt, 2, 10_000)];
    for _ in 0..3 {
        let stored = host.readings(sent.clone()).await;
        assert_eq!(stored, [(rt.clone(), 0), (rt.clone(), 1), (rt.clone(), 2)]);
    }
    let open = usage(&it).await;
    assert_eq!((open.sessions.len(), open.total_seconds, open.sessions[0].ended_at), (1, 10, None));
    let view = it.view("ws").await;
    assert_eq!((view.billing.state, view.billing.session_seconds), (BillingState::Metering, Some(10)));
    host.readings(vec![end(&ws, &rt, 3, 12_500)]).await;
    host.readings(vec![end(&ws, &rt, 3, 12_500)]).await;
    let closed = usage(&it).await;
    assert_eq!(closed.total_seconds, 12);
    assert_eq!(closed.sessions[0].reason.as_deref(), Some("idle"));
    let ended = closed.sessions[0].ended_at.expect("an end");
    assert_eq!(ended.duration_since(closed.sessions[0].started_at).as_millis(), 12_500);
    assert_eq!(it.view("ws").await.billing.state, BillingState::Off);
    it.stop().await;
}

#[tokio::test]
async fn readings_are_on_disk_before_they_are_acknowledged_with_a_report_or_without() {
    let (it, mut host, ws) = begin().await;
    let rt = RuntimeInstanceId::generate();
    let position = async || -> String {
        let sql = "SELECT pg_current_wal_insert_lsn()::text";
        sqlx::query_scalar(sql).fetch_one(&it.pool).await.expect("a position")
    };
    let is_kept_beyond = async |position: String| -> bool {
        let sql = "SELECT pg_current_wal_flush_lsn() > $1::text::pg_lsn";
        sqlx::query_scalar(sql).bind(position).fetch_one(&it.pool).await.expect("an answer")
    };
    let before = position().await;
    host.readings(vec![reading(&ws, &rt, 0, 0)]).await;
    assert!(is_kept_beyond(before).await, "alone");

    let news = report(&ws, 1, RuntimeState::Waking, Phase::Working);
    host.report(news.clone()).await;
    // It has the number of the one before it: old news, which is not written.
    let sent = SyncRequest { reports: vec![WorkspaceReport { seq: 1, ..news }], ..host.request(0) };
    let before = position().await;
    let sent = SyncRequest { readings: vec![reading(&ws, &rt, 1, 5_000)], ..sent };
    assert_eq!(host.send(&sent).await.expect("an answer").stored_readings, [(rt, 1)]);
    assert!(is_kept_beyond(before).await, "beside a report that changes nothing");
    it.stop().await;
}

#[tokio::test]
async fn readings_in_any_order_and_under_a_newer_epoch_come_to_the_same() {
    let (it, host, ws) = begin().await;
    let rt = RuntimeInstanceId::generate();
    host.readings(vec![reading(&ws, &rt, 2, 10_000), end(&ws, &rt, 3, 11_000)]).await;
    drop(host);
    let host = it.host().await;
    host.readings(vec![reading(&ws, &rt, 1, 5_000), reading(&ws, &rt, 0, 0)]).await;
    let report = usage(&it).await;
    assert_eq!((report.sessions.len(), report.total_seconds), (1, 11));
    assert_eq!(set_aside(&it).await, 0);
    it.stop().await;
}

#[tokio::test]
async fn a_second_nobody_observed_is_not_counted() {
    let (it, host, ws) = begin().await;
    let rt = RuntimeInstanceId::generate();
    // Reading 2 is missing, and between 3 and 4 every process was replaced.
    let mut replaced = reading(&ws, &rt, 4, 20_000);
    replaced.oldest_process = Some(BootMillis(1_018_000));
    host.readings(vec![reading(&ws, &rt, 0, 0), reading(&ws, &rt, 1, 5_000), reading(&ws, &rt, 3, 15_000), replaced])
        .await;
    assert_eq!(usage(&it).await.total_seconds, 5);
    it.stop().await;
}

#[tokio::test]
async fn a_new_instance_ends_a_lost_one_where_it_was_last_seen() {
    let (it, host, ws) = begin().await;
    let (old, new) = (RuntimeInstanceId::generate(), RuntimeInstanceId::generate());
    host.readings(vec![reading(&ws, &old, 0, 0), reading(&ws, &old, 1, 5_000)]).await;
    host.readings(vec![reading(&ws, &new, 0, 60_000)]).await;
    let report = usage(&it).await;
    assert_eq!(report.sessions[1].reason.as_deref(), Some("lost"));
    let lost = &report.sessions[1];
    assert_eq!(lost.ended_at.expect("an end").duration_since(lost.started_at).as_secs(), 5);
    assert_eq!(report.sessions[0].ended_at, None);
    it.stop().await;
}

#[tokio::test]
async fn an_overlap_is_set_aside_and_blocks_nothing_behind_it() {
    let (it, host, ws) = begin().await;
    let (first, second) = (RuntimeInstanceId::generate(), RuntimeInstanceId::generate());
    host.readings(vec![reading(&ws, &first, 0, 0), end(&ws, &first, 1, 10_000)]).await;
    let stored = host.readings(vec![reading(&ws, &second, 0, 5_000), reading(&ws, &second, 1, 20_000)]).await;
    assert_eq!(stored.len(), 2, "acknowledged: it must not come again");
    assert_eq!(set_aside(&it).await, 1);
    assert_eq!(usage(&it).await.sessions.len(), 2, "what followed it was booked");
    it.stop().await;
}

#[tokio::test]
async fn the_database_itself_refuses_overlapping_sessions() {
    let (it, host, ws) = begin().await;
    let rt = RuntimeInstanceId::generate();
    host.readings(vec![reading(&ws, &rt, 0, 0), end(&ws, &rt, 1, 10_000)]).await;
    let error = sqlx::query(
        "INSERT INTO usage_sessions (id, workspace_id, instance, size, trigger, started_at, last_at)
         SELECT 'use_x', workspace_id, 'rt_x', size, trigger, started_at, last_at FROM usage_sessions",
    )
    .execute(&it.pool)
    .await
    .expect_err("refused");
    assert_eq!(error.as_database_error().and_then(|e| e.code()).as_deref(), Some("23P01"));
    it.stop().await;
}

#[tokio::test]
async fn readings_of_another_hosts_workspace_or_an_unknown_boot_are_set_aside() {
    let (it, host, ws) = begin().await;
    let rt = RuntimeInstanceId::generate();
    let mut elsewhere = reading(&ws, &rt, 0, 0);
    elsewhere.boot = BootId("never-registered".into());
    let unknown = reading(&WorkspaceId::generate(), &RuntimeInstanceId::generate(), 0, 0);
    let request = SyncRequest { readings: vec![elsewhere, unknown], ..host.request(0) };
    assert_eq!(host.send(&request).await.expect("synced").stored_readings.len(), 2);
    assert_eq!(set_aside(&it).await, 2);
    assert!(usage(&it).await.sessions.is_empty());
    it.stop().await;
}
