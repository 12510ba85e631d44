//! Accepting intents: ledgered first, then acted on.
//!
//! An intent that the ledger cannot keep is not accepted, and nothing of it is begun: it is reported as failed with the
//! reason, and tried again by itself, so that it heals when the disk has space again. A removal alone is begun all the
//! same: it is what frees space, and the control plane, which keeps it, asks for it again after a crash.

use super::{
    hub::{Hub, Workspace},
    ledger::WorkspaceRecord,
    reconcile,
};
use crate::system::Result;
use envforge_api::{
    generation::Fence,
    host::{DesiredShell, WorkspaceIntent},
    states::{ShellState, Stated, Trouble},
    time::Timestamp,
};
use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// An intent that is not accepted.
#[derive(Debug, Clone)]
pub struct Unkept {
    /// What was asked.
    pub intent: WorkspaceIntent,
    /// Why it is not accepted.
    pub trouble: Trouble,
    /// Since when.
    pub since: Timestamp,
}

/// Accepts what is new of these.
pub(super) fn accept(hub: &Arc<Hub>, intents: &[WorkspaceIntent], stop: &CancellationToken) {
    // Both syncs may bring the same new workspace at the same moment: it is one.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    for intent in intents {
        let id = &intent.workspace;
        let unkept = hub.unkept(id);
        if unkept.as_ref().is_some_and(|known| known.intent.generation > intent.generation) {
            continue;
        }
        match take(hub, intent, stop) {
            Ok(()) if unkept.is_some() => {
                hub.all_unkept().remove(id);
                tracing::info!(workspace = %id, generation = %intent.generation, "an intent is accepted after all");
                hub.touch(id);
            }
            Ok(()) => {}
            Err(error) => {
                let known = unkept.filter(|known| known.intent.generation == intent.generation);
                if known.is_none() {
                    tracing::error!(workspace = %id, %error, hint = %error.hint, "an intent is not accepted because it cannot be ledgered");
                }
                let since = known.map_or_else(Timestamp::now, |known| known.since);
                let trouble = Trouble::new(error.to_string(), error.hint);
                hub.all_unkept().insert(id.clone(), Unkept { intent: intent.clone(), trouble, since });
                hub.touch(id);
            }
        }
    }
}

fn take(hub: &Arc<Hub>, intent: &WorkspaceIntent, stop: &CancellationToken) -> Result<()> {
    let gone = intent.shell == DesiredShell::Absent;
    let Some(known) = hub.get(&intent.workspace) else {
        if gone && !hub.installation.workspace_dir(&intent.workspace).exists() {
            // Already removed; the report that says so may have been lost.
            let removed = Workspace::new(0, intent.clone());
            removed.shell.send_replace(Stated::plain(ShellState::Absent, Timestamp::now()));
            removed.runtime.send_modify(|facts| facts.known = true);
            hub.insert(Arc::new(removed));
            return Ok(());
        }
        let index = {
            let mut ledger = hub.ledger();
            let index = ledger.host.next_index;
            ledger.change(|host| host.next_index += 1)?;
            ledger.put(&WorkspaceRecord { index, intent: intent.clone() })?;
            index
        };
        let workspace = Arc::new(Workspace::new(index, intent.clone()));
        hub.insert(Arc::clone(&workspace));
        reconcile::begin(hub, &workspace, stop);
        return Ok(());
    };
    let current = known.intent.borrow().clone();
    match Fence::judge(current.generation, intent.generation, current == *intent) {
        Fence::Newer => {
            let kept = hub.ledger().put(&WorkspaceRecord { index: known.index, intent: intent.clone() });
            match kept {
                Err(error) if gone => tracing::warn!(%error, "a removal is begun although it cannot be ledgered"),
                kept => kept?,
            }
            known.intent.send_replace(intent.clone());
            hub.touch(&intent.workspace);
        }
        Fence::Same => {}
        Fence::Older => tracing::warn!(workspace = %intent.workspace, "an older intent is refused"),
        Fence::Conflict => {
            tracing::error!(workspace = %intent.workspace, generation = %intent.generation, "an intent of the same generation with other content is refused");
        }
    }
    Ok(())
}

/// Tries again what the disk refused, for as long as the daemon runs: nobody tells when there is space again.
pub(super) async fn insist(hub: &Arc<Hub>, stop: &CancellationToken) -> Infallible {
    // A new refusal touches this.
    let mut dirty = hub.dirty.subscribe();
    let mut pause = FIRST_PAUSE;
    loop {
        dirty.borrow_and_update();
        if hub.all_unkept().is_empty() && !hub.ledger().is_unwritten() {
            pause = FIRST_PAUSE;
            // The sender lives as long as the hub.
            let _ = dirty.changed().await;
            continue;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        let again: Vec<WorkspaceIntent> = hub.all_unkept().values().map(|unkept| unkept.intent.clone()).collect();
        accept(hub, &again, stop);
        // What still cannot be written is tried at the next turn.
        let _ = hub.ledger().settle();
    }
}
