//! Copies of whole workspaces at one moment: [`fork`] makes another workspace of one, [`snapshot`] keeps one, [`restore`]
//! puts it back.
//!
//! What is copied how is decided purely ([`plan`]); one attempt is [`cut`]. A source that falls asleep, wakes or is
//! removed meanwhile goes first: the attempt is given up and begins again with what is so then.

mod cut;
pub(super) mod fork;
mod objects;
mod plan;
pub(super) mod restore;
pub mod snapshot;

use super::hub::{Hub, RuntimeFacts, Workspace};
use crate::system::{
    SystemError,
    accounts::{self, Accounts},
    copying::Owners,
    files, removal,
    sandbox::Sandbox,
};
use envforge_api::{
    copy::CopyReport,
    generation::Generation,
    host::{DesiredShell, ResourceReport},
    ids::RuntimeInstanceId,
    resource::ResourceMode,
    states::{ResourceState, RuntimeState, Trouble},
    time::Timestamp,
};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Attempts at most, while the source wakes and sleeps again and again.
const ATTEMPTS: usize = 4;
/// How long a source that is on its way up or down is waited for.
const SETTLING: Duration = Duration::from_secs(120);

/// A copy that was made.
#[derive(Debug, Clone, Copy)]
struct Taken {
    cost: CopyReport,
    at: Timestamp,
    generation: Generation,
}

fn system(error: SystemError) -> Trouble {
    Trouble::new(error.to_string(), error.hint)
}

/// What a copy relies on: it has to be so from its beginning to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    Asleep,
    Awake(RuntimeInstanceId),
}

/// The standing, once nothing is on its way any more.
fn settled(facts: &RuntimeFacts) -> Option<Standing> {
    if !facts.known || facts.starting.is_some() {
        return None;
    }
    let Some(supervisor) = &facts.supervisor else { return Some(Standing::Asleep) };
    let snapshot = facts.snapshot.as_ref()?;
    let on_its_way = snapshot.resources.iter().any(is_starting);
    let awake = snapshot.runtime.state == RuntimeState::Awake;
    (awake && !on_its_way).then(|| Standing::Awake(supervisor.instance.clone()))
}

/// Whether a server of the workspace's own is on its way. One elsewhere is in no copy.
fn is_starting(resource: &ResourceReport) -> bool {
    resource.mode == ResourceMode::Managed && resource.stated.state == ResourceState::Waking
}

fn standing(facts: &RuntimeFacts) -> Option<Standing> {
    match (&facts.supervisor, &facts.snapshot) {
        (None, _) => Some(Standing::Asleep),
        (Some(_), Some(snapshot)) if snapshot.runtime.state == RuntimeState::Sleeping => None,
        (Some(supervisor), _) => Some(Standing::Awake(supervisor.instance.clone())),
    }
}

fn being_deleted() -> Trouble {
    Trouble::new("the workspace that is copied is being deleted", "")
}

/// Copies a workspace as it is at one moment into the new directory `target`: its files, its data, what of its state
/// belongs to them. Nothing is left of a copy that fails.
async fn take(
    hub: &Hub,
    source: &Workspace,
    target: &Path,
    to: &Accounts,
    is_left_out: fn(&Path) -> bool,
    storage: Storage,
) -> Result<Taken, Trouble> {
    let pairs = storage.pairs();
    // It runs until the copy is there.
    let root = objects::reach(hub, pairs).await?;
    let _one_at_a_time = source.copies.lock().await;
    let mut last = Trouble::new("the workspace wakes and sleeps again and again", "try again");
    for _ in 0..ATTEMPTS {
        let intent = source.intent.borrow().clone();
        if intent.shell == DesiredShell::Absent {
            return Err(being_deleted());
        }
        let mut facts = source.runtime.subscribe();
        let found = match tokio::time::timeout(SETTLING, facts.wait_for(|facts| settled(facts).is_some())).await {
            Ok(Ok(facts)) => settled(&facts),
            Ok(Err(_)) => return Err(being_deleted()),
            // A server that never becomes ready has data all the same.
            Err(_) => standing(&source.runtime.borrow()),
        };
        let Some(found) = found else { continue };
        // Asleep, nothing may start in the middle: whoever wants to makes this give way.
        let resting = match &found {
            Standing::Asleep => Some(source.rest.hold().await),
            Standing::Awake(_) => None,
        };
        if standing(&source.runtime.borrow()).as_ref() != Some(&found) {
            continue;
        }
        if let Some(trouble) = hub.room.holds(&source.id) {
            return Err(trouble);
        }
        clear(target).await?;
        if let Storage::Snapshot(pairs) = &storage {
            objects::declare(target, if root.is_some() { pairs } else { &[] })?;
        }
        let at = Timestamp::now();
        let stop = Arc::new(AtomicBool::new(false));
        let sandbox = Sandbox::of(&hub.installation, &source.id, source.index, &intent.slug);
        let owners = Owners::between(&sandbox.accounts, to);
        let awake = matches!(found, Standing::Awake(_));
        let job = cut::Job {
            sandbox,
            awake,
            target: target.to_owned(),
            owners,
            group: to.user.uid,
            spare: hub.room.margin(),
            is_left_out,
            storage: root.as_ref().map(|root| (root.client.clone(), pairs.to_vec())),
            stop: Arc::clone(&stop),
        };
        let making = cut::make(job);
        tokio::pin!(making);
        let outcome = tokio::select! {
            outcome = &mut making => outcome,
            () = source.rest.wanted(), if resting.is_some() => {
                stop.store(true, Ordering::Relaxed);
                making.await
            }
        };
        drop(resting);
        let as_before = standing(&source.runtime.borrow()).as_ref() == Some(&found);
        match outcome {
            Ok(cut) if as_before => {
                let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
                let cost = CopyReport { took_ms: millis(cut.took), stall_ms: millis(cut.stood), size_bytes: cut.bytes };
                return Ok(Taken { cost, at, generation: intent.generation });
            }
            // Of the end of a runtime something may be in the copy.
            Ok(_) => {}
            Err(trouble) if as_before && !stop.load(Ordering::Relaxed) => {
                let _ = objects::discard(hub, target).await;
                return Err(trouble);
            }
            Err(trouble) => last = trouble,
        }
        let _ = objects::discard(hub, target).await;
    }
    Err(last)
}

/// Where the objects of a workspace are copied to.
enum Storage {
    /// Buckets of the workspace that it becomes.
    Fork(Vec<objects::Pair>),
    /// Buckets of the snapshot's own.
    Snapshot(Vec<objects::Pair>),
}

impl Storage {
    fn pairs(&self) -> &[objects::Pair] {
        match self {
            Self::Fork(pairs) | Self::Snapshot(pairs) => pairs,
        }
    }
}

async fn clear(target: &Path) -> Result<(), Trouble> {
    clear_away(target).await?;
    files::ensure_dir(target, 0o700).map_err(system)
}

/// Removes a tree of any depth.
async fn clear_away(target: &Path) -> Result<(), Trouble> {
    let at: PathBuf = target.to_owned();
    let removed = tokio::task::spawn_blocking(move || removal::remove(&at)).await;
    removed.map_err(|e| Trouble::new(e.to_string(), "try again"))?.map_err(system)
}

/// The accounts of a workspace.
fn accounts_of(hub: &Hub, workspace: &Workspace) -> Accounts {
    accounts::of(&hub.installation, workspace.index)
}
