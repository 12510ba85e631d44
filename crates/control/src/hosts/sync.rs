//! Sync: reports, readings and acts come in, intents and leases go out.
//!
//! What came in is stored first, each workspace in a transaction of its own. Then the answer is read; a parked
//! request waits for its host's bell before that. Epoch first: a daemon that was replaced changes nothing.

use super::store::{self, Waits};
use crate::{
    app::App,
    audit,
    commands::{self, progress},
    copies, db, dev_hosts, gateways,
    http::errors::Failure,
    usage,
    workspaces::{self, store::Updated},
};
use envforge_api::{
    command::{ActAnswer, ActReport, CommandKind, LeasedAct},
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
    let mut kept = stored_readings.is_empty();
    for report in request.reports {
        kept |= accept(app, host, epoch, report).await?;
    }
    if !kept {
        // No report followed that was written: what is acknowledged is on disk all the same.
        store::keep_all(&app.pool, host).await?;
    }
    let waits = park(app, host, &mut bell, request.epoch, request.intent_seq, request.wait_ms).await?;
    // A woken workspace waits for this answer: nothing is asked of the database that has nothing to say.
    let (intent_seq, intents) = intents(app, host, request.intent_seq, waits.newest, request.wait_ms).await?;
    let leases = if waits.lease { store::offer(&app.pool, host).await? } else { Vec::new() };
    let runs: Vec<&str> = leases.iter().filter(|l| l.act.recorded_for().is_some()).map(|l| l.id.as_str()).collect();
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
    note_handed(app, &rows);
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
            fork_of: row.fork_of.clone(),
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

/// Notes that the host is handed these, beside the answer: someone waits for what it does with them.
fn note_handed(app: &App, rows: &[workspaces::store::Row]) {
    if rows.is_empty() {
        return;
    }
    let (ids, generations): (Vec<String>, Vec<i64>) =
        rows.iter().map(|row| (row.id.to_string(), db::big(row.generation.0))).unzip();
    let app = app.clone();
    // Ends with its one statement. Failed or cut short, a record shows one attempt too few.
    tokio::spawn(async move {
        if let Err(failure) = commands::store::delivered(&app.pool, &ids, &generations).await {
            tracing::warn!(problem = %failure.0, "that intents were handed to a host could not be noted");
        }
    });
}

/// Stores a report and ends the records that it decides; false when it changes nothing and nothing was written.
async fn accept(app: &App, host: &HostId, epoch: HostEpoch, report: WorkspaceReport) -> Result<bool, Failure> {
    let id = report.workspace.clone();
    let host = host.clone();
    let accepted = db::write(&app.pool, move |tx| {
        Box::pin(async move {
            let Some(row) = workspaces::store::lock(&mut *tx, &report.workspace).await? else { return Ok(None) };
            if row.host != host {
                tracing::warn!(%host, workspace = %row.slug, "a host reported on a workspace of another host");
                return Ok(None);
            }
            check(store::position(&mut *tx, &host).await?.0, epoch)?;
            let shown = match workspaces::store::report(&mut *tx, &row, epoch, &report).await? {
                Updated::NotNewer => return Ok(None),
                Updated::Stored { shown } => shown,
            };
            if row.faces() != report.faces {
                dev_hosts::ensure(&mut *tx, &row, &row.spec, &report.faces).await?;
            }
            let (mut ended, mut others, mut removes) = (false, Vec::new(), None);
            for command in commands::store::open(&mut *tx, &row.id).await? {
                let progress = progress::judge(&command, &report);
                let Some((state, reason)) = progress.news(command.state) else { continue };
                commands::store::set(&mut *tx, &command.id, state, None, reason).await?;
                ended |= state.is_final();
                let receipt = progress::receipt(command.kind, state, &report);
                if !receipt.is_empty() {
                    commands::store::receipt(&mut *tx, &command.id, &receipt).await?;
                }
                if command.kind == CommandKind::PrepareShell
                    && let Some(moved) = copies::fork::follow(&mut *tx, &row, state, reason, &report).await?
                {
                    removes = moved.removes.then(|| host.clone());
                    others.push(moved.source);
                }
                if command.kind == CommandKind::DeleteWorkspace && state == CommandState::Succeeded {
                    workspaces::store::gone(&mut *tx, &row.id).await?;
                    dev_hosts::store::remove(&mut *tx, &row.id).await?;
                    commands::store::end_rest(&mut *tx, &row.id).await?;
                    store::end_leases(&mut *tx, &row.id).await?;
                    others.extend(copies::fork::gone(&mut *tx, &row.id).await?);
                    let (by, target) = (host.as_str(), row.slug.as_str());
                    audit::store::add(&mut *tx, &row.organization, by, "workspace.gone", target, &[]).await?;
                }
            }
            Ok(Some((shown || ended, others, removes)))
        })
    })
    .await?;
    let Some((shown, others, removes)) = accepted else { return Ok(false) };
    for changed in others.iter().chain(Some(&id).filter(|_| shown)) {
        app.bells.ring_workspace(changed);
    }
    removes.iter().for_each(|host| app.bells.ring_host(host));
    Ok(true)
}

/// Records news of a leased act; where it has a command record, that moves with it.
async fn record_act(app: &App, host: &HostId, epoch: HostEpoch, report: ActReport) -> Result<(), Failure> {
    let id: CommandId = report.id.clone();
    let host = host.clone();
    let moved = db::write(&app.pool, move |tx| {
        Box::pin(async move {
            check(store::position(&mut *tx, &host).await?.0, epoch)?;
            // Workspace before lease: the order in which everyone locks.
            let act = store::act(&mut *tx, &report.id).await?;
            let Some(workspace) = act.as_ref().and_then(LeasedAct::recorded_for) else {
                store::record(&mut *tx, &host, &report).await?;
                return Ok(None);
            };
            let row = workspaces::store::lock(&mut *tx, workspace).await?;
            if store::record(&mut *tx, &host, &report).await?.is_none() {
                return Ok(None);
            }
            commands::store::set(&mut *tx, &report.id, report.state, report.exit_code, report.reason.as_deref())
                .await?;
            if let Some(ActAnswer::Copied { cost }) = &report.answer {
                copies::store::cost(&mut *tx, &report.id, cost).await?;
            }
            workspaces::store::touch(&mut *tx, workspace).await?;
            let wakes = match row.filter(|_| report.state.is_final()) {
                Some(row) => copies::snapshots::ended(tx, &row, &report.id).await?.then_some(host),
                None => None,
            };
            Ok(Some((workspace.clone(), wakes)))
        })
    })
    .await?;
    app.bells.ring_lease(&id);
    if let Some((workspace, wakes)) = moved {
        app.bells.ring_workspace(&workspace);
        wakes.iter().for_each(|host| app.bells.ring_host(host));
    }
    Ok(())
}
