//! The line to the control plane: register once, then two syncs side by side, one parked and one with reports.

use super::{acts, hub::Hub, intents, outbox::Outbox, report};
use crate::{
    supervise::protocol::Ask,
    system::{boot, machine_memory},
};
use envforge_api::{
    client::Client,
    command::ActReport,
    generation::{HostEpoch, IntentSeq},
    host::{
        Capacity, DesiredShell, HostRole, MAX_PARK_MS, Phase, RegisterAnswer, RegisterRequest, SyncAnswer, SyncRequest,
        Traffic, WorkspaceReport,
    },
    ids::{CommandId, WorkspaceId},
    problem::{Problem, ProblemKind},
    states::{RuntimeState, ShellState},
    time::Timestamp,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// Readings are sent at least this often while a runtime is awake.
const READINGS_EVERY: Duration = Duration::from_secs(4);

/// Why the line ended.
#[derive(Debug)]
pub(super) enum End {
    /// The daemon is being stopped.
    Stopped,
    /// Another registration of this host replaced ours: stop acting.
    Replaced,
}

/// Registers, says so through `registered`, and syncs until stopped or replaced.
pub(super) async fn keep(hub: &Arc<Hub>, stop: &CancellationToken, registered: impl FnOnce()) -> End {
    let client = Client::new(hub.server.clone(), Some(hub.token.clone())).with_deadline(Duration::from_secs(40));
    let epoch = tokio::select! {
        () = stop.cancelled() => return End::Stopped,
        epoch = register(hub, &client) => epoch,
    };
    registered();
    // Everything once: a control plane restored from a backup may have other intents at numbers we know.
    let position = AtomicU64::new(0);
    tokio::select! {
        () = stop.cancelled() => End::Stopped,
        () = listen(hub, &client, epoch, &position, stop) => End::Replaced,
        () = tell(hub, &client, epoch, &position, stop) => End::Replaced,
        never = intents::insist(hub, stop) => match never {},
    }
}

async fn register(hub: &Hub, client: &Client) -> HostEpoch {
    let mut pause = FIRST_PAUSE;
    loop {
        let known = hub.all().iter().map(|w| (w.id.clone(), w.intent.borrow().generation)).collect();
        let outcome = match boot::boot_id() {
            Ok(boot) => {
                let request = RegisterRequest {
                    roles: BTreeSet::from([HostRole::Shell, HostRole::Runtime]),
                    boot,
                    boot_now: boot::now(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    capacity: capacity(),
                    dial_socket: Some(super::dial::path(hub).to_string_lossy().into_owned()),
                    local_socket: Some(super::streams::path(hub).to_string_lossy().into_owned()),
                    known,
                };
                client.post::<_, RegisterAnswer>("/v1/host/register", &request).await
            }
            Err(error) => Err(Problem::internal(error.to_string())),
        };
        match outcome {
            Ok(answer) => {
                let (host, keys) = (answer.host.clone(), answer.keys.clone());
                if let Err(error) = hub.ledger().note(|record| {
                    record.host = Some(host);
                    record.keys = keys;
                }) {
                    tracing::error!(%error, "the registration cannot be ledgered");
                }
                hub.host.send_replace(Some(answer.host));
                hub.keys.send_replace(answer.keys);
                return answer.epoch;
            }
            Err(problem) => tracing::warn!(kind = %problem.kind, reason = %problem.message, "not registered yet"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn capacity() -> Capacity {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    Capacity { cpu_millis: cpus * 1000, memory_bytes: machine_memory().unwrap_or(0) }
}

/// The parked sync. Returns when the epoch is stale.
async fn listen(hub: &Arc<Hub>, client: &Client, epoch: HostEpoch, position: &AtomicU64, stop: &CancellationToken) {
    let mut pause = FIRST_PAUSE;
    loop {
        let request = empty(epoch, IntentSeq(position.load(Ordering::Relaxed)), MAX_PARK_MS);
        match client.post::<_, SyncAnswer>("/v1/host/sync", &request).await {
            Ok(answer) => {
                pause = FIRST_PAUSE;
                apply(hub, &answer, stop);
                position.store(answer.intent_seq.0, Ordering::Relaxed);
                hub.may_wake.send_if_modified(|may| !std::mem::replace(may, true));
                acts::take(hub, answer.leases);
            }
            Err(problem) if problem.kind == ProblemKind::StaleEpoch => return,
            Err(problem) => {
                tracing::debug!(kind = %problem.kind, reason = %problem.message, "no sync");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

fn empty(epoch: HostEpoch, intent_seq: IntentSeq, wait_ms: u32) -> SyncRequest {
    SyncRequest {
        epoch,
        intent_seq,
        wait_ms,
        reports: Vec::new(),
        readings: Vec::new(),
        acts: Vec::new(),
        orphans: Vec::new(),
    }
}

/// Ledgers what an answer says, then lets it act.
fn apply(hub: &Arc<Hub>, answer: &SyncAnswer, stop: &CancellationToken) {
    if *hub.keys.borrow() != answer.keys {
        if let Err(error) = hub.ledger().note(|record| record.keys.clone_from(&answer.keys)) {
            tracing::error!(%error, hint = %error.hint, "the keys cannot be ledgered");
        }
        hub.keys.send_replace(answer.keys.clone());
    }
    let revoked: BTreeSet<_> = answer.revoked.iter().cloned().collect();
    hub.revoked.send_if_modified(|known| {
        let changed = *known != revoked;
        *known = revoked;
        changed
    });
    intents::accept(hub, &answer.intents, stop);
    for traffic in &answer.traffic {
        tell_traffic(hub, traffic);
    }
}

/// The supervisor judges idleness; one that starts later is not idle yet.
fn tell_traffic(hub: &Hub, traffic: &Traffic) {
    let supervisor = hub.get(&traffic.workspace).and_then(|workspace| workspace.runtime.borrow().supervisor.clone());
    let Some(supervisor) = supervisor.filter(|supervisor| supervisor.knows_traffic()) else { return };
    let age = Timestamp::now().duration_since(traffic.last_at).as_millis();
    let ask = Ask::Traffic { age_ms: u64::try_from(age).unwrap_or(0) };
    // One that is gone needs no word, and the next answer says it again.
    tokio::spawn(async move { drop(supervisor.ask(ask).await) });
}

/// Syncs that carry reports, acts and readings, whenever there is something. Returns when the epoch is stale.
async fn tell(hub: &Arc<Hub>, client: &Client, epoch: HostEpoch, position: &AtomicU64, stop: &CancellationToken) {
    let mut dirty = hub.dirty.subscribe();
    let mut told: BTreeMap<WorkspaceId, WorkspaceReport> = BTreeMap::new();
    let mut begun: BTreeSet<CommandId> = BTreeSet::new();
    let mut changed: BTreeSet<WorkspaceId> = hub.all().iter().map(|w| w.id.clone()).collect();
    let mut outbox = Outbox::default();
    let mut seq = 0;
    let mut pause = FIRST_PAUSE;
    let mut clock = tokio::time::interval(READINGS_EVERY);
    // When the first change was seen that is told together with what follows it.
    let mut since: Option<Instant> = None;
    loop {
        dirty.borrow_and_update();
        changed.append(&mut hub.take_changed());
        let mut reports = Vec::new();
        changed.retain(|id| {
            let now = report::of(hub, id);
            let Some(now) = now.filter(|now| told.get(id) != Some(now)) else { return false };
            reports.push(now);
            true
        });
        let mut acts = acts::news(hub);
        // That one runs is told once.
        begun.retain(|id| acts.iter().any(|act| act.id == *id));
        acts.retain(|act| act.state.is_final() || !begun.contains(&act.id));
        if acts.is_empty() && !reports.iter().any(|now| is_awaited(told.get(&now.workspace), now)) {
            let together = (!reports.is_empty()).then(|| *since.get_or_insert_with(Instant::now) + TOGETHER);
            let due = async {
                match together {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => std::future::pending().await,
                _ = dirty.changed() => continue,
                () = due => {}
                _ = clock.tick() => {}
            }
        }
        since = None;
        let mut request = empty(epoch, IntentSeq(position.load(Ordering::Relaxed)), 0);
        for now in reports {
            seq += 1;
            request.reports.push(WorkspaceReport { seq, ..now });
        }
        request.readings = outbox.collect(hub);
        request.acts = acts;
        // Nothing new is no reason to ask: the parked sync is the heartbeat.
        if request.reports.is_empty() && request.readings.is_empty() && request.acts.is_empty() {
            continue;
        }
        match client.post::<_, SyncAnswer>("/v1/host/sync", &request).await {
            Ok(answer) => {
                pause = FIRST_PAUSE;
                for sent in std::mem::take(&mut request.reports) {
                    settle_removed(hub, &sent);
                    changed.remove(&sent.workspace);
                    told.insert(sent.workspace.clone(), WorkspaceReport { seq: 0, ..sent });
                }
                outbox.stored(&request.readings, &answer.stored_readings);
                let running = request.acts.iter().filter(|act| !act.state.is_final()).map(|act| act.id.clone());
                begun.extend(running.filter(|id| answer.recorded_acts.contains(id)));
                forget_recorded(hub, &request.acts, &answer);
                // What the parked sync will bring may come here first; it is the same there.
                apply(hub, &answer, stop);
                acts::take(hub, answer.leases);
            }
            Err(problem) if problem.kind == ProblemKind::StaleEpoch => return,
            Err(problem) => {
                tracing::debug!(kind = %problem.kind, reason = %problem.message, "a report was not taken");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// How long the steps of a wake or a sleep are gathered before they are told: each alone would take from the processors and
/// the disk what starts or stops needs, and the end would wait for the step before it to be told. Most wakes and sleeps
/// are over by then.
const TOGETHER: Duration = Duration::from_millis(200);

/// Whether someone may wait for what a report says beyond the last one: everything but the steps of a wake or a sleep.
fn is_awaited(told: Option<&WorkspaceReport>, now: &WorkspaceReport) -> bool {
    let on_its_way = match now.runtime.stated.state {
        RuntimeState::Waking => now.start.is_none(),
        RuntimeState::Sleeping => now.runtime.phase == Phase::Working,
        RuntimeState::Asleep | RuntimeState::Awake | RuntimeState::Frozen | RuntimeState::Failed => false,
    };
    !on_its_way || told.is_none_or(|told| told.shell != now.shell)
}

/// A removed workspace is forgotten once the control plane knows.
fn settle_removed(hub: &Hub, sent: &WorkspaceReport) {
    let gone = hub.get(&sent.workspace).is_some_and(|workspace| {
        workspace.intent.borrow().shell == DesiredShell::Absent && sent.shell.stated.state == ShellState::Absent
    });
    if gone {
        if let Err(error) = hub.ledger().forget(&sent.workspace) {
            tracing::error!(%error, "a removed workspace cannot be taken out of the ledger");
        }
        hub.forget(&sent.workspace);
    }
}

/// Ends that are recorded now need not be told again. An act may have ended while word of its beginning was on its way:
/// only what was sent as final counts.
fn forget_recorded(hub: &Hub, sent: &[ActReport], answer: &SyncAnswer) {
    let told = sent.iter().filter(|act| act.state.is_final() && answer.recorded_acts.contains(&act.id));
    let done: Vec<_> = told.map(|act| act.id.clone()).collect();
    if !done.is_empty()
        && let Err(error) = hub.ledger().note(|host| done.iter().for_each(|id| drop(host.finished.remove(id))))
    {
        tracing::error!(%error, "recorded commands cannot be taken out of the ledger");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::{intents::Unkept, plan::tests::intent, report::blank};
    use envforge_api::{
        host::{LayerReport, StartVerdict},
        states::{Stated, Trouble},
    };

    fn report(state: RuntimeState, phase: Phase, start: Option<StartVerdict>) -> WorkspaceReport {
        let trouble = Trouble::new("no space", "free some");
        let of = blank(&Unkept { intent: intent(2, true), trouble, since: Timestamp::now() });
        WorkspaceReport { runtime: LayerReport { stated: Stated::plain(state, Timestamp::now()), phase }, start, ..of }
    }

    #[test]
    fn steps_of_a_wake_or_a_sleep_are_told_together_and_what_someone_waits_for_at_once() {
        let failed = || Phase::Failed { trouble: Trouble::new("no space", "free some") };
        let told = report(RuntimeState::Awake, Phase::Settled, None);
        let known = |now: WorkspaceReport| {
            is_awaited(Some(&WorkspaceReport { shell: now.shell.clone(), ..told.clone() }), &now)
        };
        assert!(!known(report(RuntimeState::Waking, Phase::Working, None)));
        assert!(!known(report(RuntimeState::Sleeping, Phase::Working, None)));
        assert!(known(report(RuntimeState::Waking, Phase::Working, Some(StartVerdict::Succeeded))));
        assert!(known(report(RuntimeState::Sleeping, failed(), None)));
        assert!(known(report(RuntimeState::Asleep, Phase::Settled, None)));
        assert!(is_awaited(None, &report(RuntimeState::Waking, Phase::Working, None)), "nothing of it is known");
    }
}
