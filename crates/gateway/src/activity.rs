//! What was carried, told to the control plane: by whom and of which family, the last moment that counts against
//! idleness, and for how long the gateway saw each runtime awake, as a second opinion on the bill.
//!
//! An item that could not be told is told again under the same id, so that it counts once.

use crate::{control::Control, known::Knowledge, sessions::Sessions};
use envforge_api::{
    gateway::Activity,
    ids::{ActivityId, WorkspaceId},
    link::Family,
    time::Timestamp,
};
use std::{
    collections::HashMap,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// How often it is told.
const EVERY: Duration = Duration::from_secs(5);
/// Awake time alone is told more rarely.
const AWAKE_EVERY: u32 = 12;
/// Kept while the control plane is away; beyond it the oldest are dropped and counted.
const KEPT: usize = 10_000;

/// Tells until `stop`, and once more then.
pub(crate) async fn tell(control: &Control, knowledge: &Knowledge, sessions: &Sessions, stop: &CancellationToken) {
    let mut unsaid: Vec<Activity> = Vec::new();
    let mut awake = Awake::default();
    let mut from = Timestamp::now();
    let mut round: u32 = 0;
    loop {
        let last = tokio::select! {
            () = stop.cancelled() => true,
            () = tokio::time::sleep(EVERY) => false,
        };
        let now = Timestamp::now();
        awake.look(knowledge);
        unsaid.extend(carried(sessions, from, now));
        if last || round.is_multiple_of(AWAKE_EVERY) {
            unsaid.extend(awake.take(now));
        }
        (from, round) = (now, round.wrapping_add(1));
        sessions.tidy(knowledge);
        if unsaid.len() > KEPT {
            let dropped = unsaid.len() - KEPT;
            unsaid.drain(..dropped);
            tracing::error!(dropped, "too much could not be told to the control plane");
        }
        if !unsaid.is_empty() {
            match control.activity(unsaid.clone()).await {
                Ok(()) => unsaid.clear(),
                Err(problem) => tracing::warn!(kind = %problem.kind, "activity could not be told yet"),
            }
        }
        if last {
            return;
        }
    }
}

fn carried(sessions: &Sessions, from: Timestamp, to: Timestamp) -> Vec<Activity> {
    let mut items = Vec::new();
    for held in sessions.all(to) {
        for (family, tally) in Family::ALL.iter().zip(&held.tallies) {
            let requests = tally.requests.swap(0, Ordering::Relaxed);
            let socket_octets = tally.socket_octets.swap(0, Ordering::Relaxed);
            let counts_at = tally.counts_at.swap(0, Ordering::Relaxed);
            if requests == 0 && socket_octets == 0 && counts_at == 0 {
                continue;
            }
            items.push(Activity {
                id: ActivityId::generate(),
                workspace: held.visit.workspace.clone(),
                holder: Some(held.visit.holder.clone()),
                family: Some(*family),
                from,
                to,
                requests,
                socket_octets,
                awake_seconds: 0,
                counts_at: (counts_at > 0).then(|| Timestamp::from_millisecond(counts_at).ok()).flatten(),
            });
        }
    }
    items
}

/// For how long each runtime was seen awake.
#[derive(Debug, Default)]
struct Awake {
    looked: Option<Instant>,
    seen: HashMap<WorkspaceId, Duration>,
    since: Option<Timestamp>,
}

impl Awake {
    fn look(&mut self, knowledge: &Knowledge) {
        let now = Instant::now();
        let passed = self.looked.replace(now).map_or(Duration::ZERO, |before| now - before);
        self.since.get_or_insert_with(Timestamp::now);
        // What is not known is not counted.
        if !knowledge.is_current() {
            return;
        }
        for (workspace, standing) in &knowledge.now().standings {
            if standing.runtime.state.may_run() && standing.instance.is_some() {
                *self.seen.entry(workspace.clone()).or_default() += passed;
            }
        }
    }

    /// Whole seconds; the rest is kept for the next time.
    fn take(&mut self, to: Timestamp) -> Vec<Activity> {
        let from = self.since.replace(to).unwrap_or(to);
        let mut items = Vec::new();
        for (workspace, seen) in &mut self.seen {
            let awake_seconds = seen.as_secs();
            *seen -= Duration::from_secs(awake_seconds);
            if awake_seconds > 0 {
                items.push(Activity {
                    id: ActivityId::generate(),
                    workspace: workspace.clone(),
                    holder: None,
                    family: None,
                    from,
                    to,
                    requests: 0,
                    socket_octets: 0,
                    awake_seconds,
                    counts_at: None,
                });
            }
        }
        self.seen.retain(|_, seen| !seen.is_zero());
        items
    }
}
