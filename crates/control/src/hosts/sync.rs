//! Sync: reports, readings and acts come in, intents and leases go out.
//!
//! What came in is stored first, each workspace in a transaction of its own. Then the answer is read; a parked
//! request waits for its host's bell before that. Epoch first: a daemon that was replaced changes nothing.

use super::store::{self, Waits};
use crate::{
    app::App,
    audit,
    commands::{self, progress},
    db, dev_hosts, gateways,
    http::errors::Failure,
    usage,
    workspaces::{self, store::Updated},
};
use envforge_api::{
    command::{ActReport, CommandKind, LeasedAct},
    generation::{HostEpoch, IntentSeq},
    host::{MAX_PARK_MS, SyncAnswer, SyncRequest, WorkspaceIntent, WorkspaceReport},
    ids::{CommandId, HostId},
    problem::{Problem, ProblemKind},
    states::CommandState,
};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

fn stale() -> Failure {
    Problem::new(
        ProblemKind::StaleEpoch,
        "another daemon has registered for this host since",
        "stop: only the newest registration may act",
    )
    .into()
}

fn check(current: HostEpoch, given: HostEpoch) -> Result<(), Failure> {
    if current == given { Ok(()) } else { Err(stale()) }
}

/// One sync.
///
/// # Errors
/// `stale_epoch` when a newer registration exists.
pub(crate) async fn sync(app: &App, host: &HostId, request: SyncRequest) -> Result<SyncAnswer, Failure> {
    let mut bell = app.bells.host(host);
    let (epoch, _) = store::heard(&app.pool, host).await?;
    check(epoch, request.epoch)?;
    for orphan in &request.orphans {
        tracing::warn!(%host, orphan, "the host found something that no intent names; it stays as it is");
    }
    // Readings before reports: a session is closed before its workspace is shown asleep.
    let stored_readings = usage::record::store_all(app, host, request.readings).await?;
    let mut recorded_acts = Vec::new();
    for act in request.acts {
        let id = act.id.clone();
        record_act(app, host, epoch, act).await?;
        recorded_acts.push(id);
    }
    for report in request.reports {
        accept(app, host, epoch, report).await?;
    }
    let waits = park(app, host, &mut bell, request.epoch, request.intent_seq, request.wait_ms).await?;
    // A woken workspace waits for this answer: nothing is asked of the database that has nothing to say.
    let (intent_seq, intents) = intents(app, host, request.intent_seq, waits.newest, request.wait_ms).await?;
    let leases = if waits.lease { store::offer(&app.pool, host).await? } else { Vec::new() };
    let runs: Vec<&str> =
        leases.iter().filter(|l| matches!(l.act, LeasedAct::Run { .. })).map(|l| l.id.as_str()).collect();
    if !runs.is_empty() {
        commands::store::offered(&app.pool, &runs).await?;
    }
    let told = waits.traffic || request.intent_seq == IntentSeq(0);
    let traffic = if told { gateways::traffic(app, host).await? } else { Vec::new() };
    Ok(SyncAnswer {
        traffic,
        intent_seq,
        intents,
        leases,
        keys: app.keys.verify_keys(),
        revoked: Vec::new(),
        stored_readings,
        recorded_acts,
    })
}

/// Waits until there is something to answer, the time is over, or the server stops.
async fn park(
    app: &App,
    host: &HostId,
    bell: &mut tokio::sync::watch::Receiver<u64>,
    given: HostEpoch,
    seq: IntentSeq,
    wait_ms: u32,
) -> Result<Waits, Failure> {
    let deadline = Instant::now() + Duration::from_millis(u64::from(wait_ms.min(MAX_PARK_MS)));
    loop {
        bell.mark_unchanged();
        let waits = store::waits(&app.pool, host).await?;
        check(waits.epoch, given)?;
        if wait_ms == 0 || waits.newest != seq || waits.lease_due || waits.traffic || Instant::now() >= deadline {
            return Ok(waits);
        }
        // The bell is enough; the look every five seconds is for a lease whose first answer was lost.
        let look = (Instant::now() + Duration::from_secs(5)).min(deadline);
        tokio::select! {
            _ = timeout_at(look, bell.changed()) => {}
            () = app.stopping.cancelled() => return Ok(waits),
        }
    }
}

/// What changed since `seq`. A parked host that is ahead (its control plane was restored) is told everything; a
/// request with reports that is ahead wants no intents, those come by the parked one.
async fn intents(
    app: &App,
    host: &HostId,
    seq: IntentSeq,
    newest: IntentSeq,
    wait_ms: u32,
) -> Result<(IntentSeq, Vec<WorkspaceIntent>), Failure> {
    if seq > newest && wait_ms == 0 {
        return Ok((newest, Vec::new()));
    }
    let since = if seq > newest { IntentSeq(0) } else { seq };
    let rows = workspaces::store::changed_since(&app.pool, host, since).await?;
    // A change that committed between the two reads is in `rows` already and is repeated next time: harmless.
    let ids: Vec<&str> = rows.iter().map(|row| row.id.as_str()).collect();
    let generations: Vec<i64> = rows.iter().map(|row| db::big(row.generation.0)).collect();
    if !rows.is_empty() {
        commands::store::delivered(&app.pool, &ids, &generations).await?;
    }
    let intents = rows
        .iter()
        .map(|row| WorkspaceIntent {
            workspace: row.id.clone(),
            generation: row.generation,
            slug: row.slug.clone(),
            project: row.project.clone(),
            organization: row.organization_slug.clone(),
            owner: row.owner_name.clone(),
            branch: row.branch.clone(),
            from: row.from.clone(),
            shell: row.desired.shell,
            runtime: row.desired.runtime.clone(),
            stopped: row.desired.stopped.clone(),
            restarts: row.desired.restarts.clone(),
            hold_until: row.desired.hold_until,
            revision: row.desired.revision,
            spec: row.spec.clone(),
            urls: row.urls(&app.base),
            storage_url: row.storage_host.as_ref().map(|label| app.base.origin(label)),
        })
        .collect();
    Ok((newest, intents))
}

/// Stores a report and ends the records that it decides.
async fn accept(app: &App, host: &HostId, epoch: HostEpoch, report: WorkspaceReport) -> Result<(), Failure> {
    let id = report.workspace.clone();
    let host = host.clone();
    let shown = db::write(&app.pool, move |tx| {
        Box::pin(async move {
            let Some(row) = workspaces::store::lock(&mut *tx, &report.workspace).await? else { return Ok(false) };
            if row.host != host {
                tracing::warn!(%host, workspace = %row.slug, "a host reported on a workspace of another host");
                return Ok(false);
            }
            check(store::position(&mut *tx, &host).await?.0, epoch)?;
            let shown = match workspaces::store::report(&mut *tx, &row, epoch, &report).await? {
                Updated::NotNewer => return Ok(false),
                Updated::Stored { shown } => shown,
            };
            if row.faces() != report.faces {
                dev_hosts::ensure(&mut *tx, &row, &row.spec, &report.faces).await?;
            }
            let mut ended = false;
            for command in commands::store::open(&mut *tx, &row.id).await? {
                let progress = progress::judge(&command, &report);
                let Some((state, reason)) = progress.news(command.state) else { continue };
                commands::store::set(&mut *tx, &command.id, state, None, reason).await?;
                ended |= state.is_final();
                if command.kind == CommandKind::DeleteWorkspace && state == CommandState::Succeeded {
                    workspaces::store::gone(&mut *tx, &row.id).await?;
                    dev_hosts::store::remove(&mut *tx, &row.id).await?;
                    commands::store::end_rest(&mut *tx, &row.id).await?;
                    store::end_leases(&mut *tx, &row.id).await?;
                    let (by, target) = (host.as_str(), row.slug.as_str());
                    audit::store::add(&mut *tx, &row.organization, by, "workspace.gone", target, &[]).await?;
                }
            }
            Ok(shown || ended)
        })
    })
    .await?;
    if shown {
        app.bells.ring_workspace(&id);
    }
    Ok(())
}

/// Records news of a leased act; a run's record moves with it.
async fn record_act(app: &App, host: &HostId, epoch: HostEpoch, report: ActReport) -> Result<(), Failure> {
    let id: CommandId = report.id.clone();
    let host = host.clone();
    let moved = db::write(&app.pool, move |tx| {
        Box::pin(async move {
            check(store::position(&mut *tx, &host).await?.0, epoch)?;
            // Workspace before lease: the order in which everyone locks.
            let Some(LeasedAct::Run { workspace, .. }) = store::act(&mut *tx, &report.id).await? else {
                store::record(&mut *tx, &host, &report).await?;
                return Ok(None);
            };
            workspaces::store::lock(&mut *tx, &workspace).await?;
            if store::record(&mut *tx, &host, &report).await?.is_none() {
                return Ok(None);
            }
            commands::store::set(&mut *tx, &report.id, report.state, report.exit_code, report.reason.as_deref())
                .await?;
            workspaces::store::touch(tx, &workspace).await?;
            Ok(Some(workspace))
        })
    })
    .await?;
    app.bells.ring_lease(&id);
    if let Some(workspace) = moved {
        app.bells.ring_workspace(&workspace);
    }
    Ok(())
}
