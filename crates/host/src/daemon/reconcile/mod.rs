//! Makes one workspace what it should be: a task for its shell layer, one for its runtime, until it is gone.
//!
//! Both only ever compare what should be with what is and take one step; a daemon that was killed between two steps
//! takes the same one again.

mod instance;
mod update;

use super::{
    cloud,
    copy::snapshot,
    hub::{Hub, Reset, RuntimeFacts, Workspace},
    inside, parked,
    plan::{Found, Step, plan},
    shell, storage, streams,
};
use crate::{
    supervise::protocol::{Ask, Ended, RuntimeSpec, Snapshot},
    system::{files, sandbox, sandbox::Sandbox},
};
use envforge_api::{
    host::{DesiredShell, WorkspaceIntent},
    names::ServiceName,
    states::{RuntimeState, ShellState, Stated, Trouble},
    time::Timestamp,
};
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, PoisonError},
    time::Duration,
};
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

/// A failed preparation is tried again after this, doubling, without anyone asking.
const PREPARE_AGAIN: Duration = Duration::from_secs(4);
const PREPARE_AT_LAST: Duration = Duration::from_secs(60);
/// A supervisor that could not be replaced is tried again after this.
const REPLACE_AGAIN: Duration = Duration::from_millis(500);
/// How often envforge.yml files of an awake runtime are compared with what runs.
const LOOK_FOR_EDITS: Duration = Duration::from_secs(3);

/// Starts the tasks of a workspace. They end with the workspace or with `stop`.
pub(super) fn begin(hub: &Arc<Hub>, workspace: &Arc<Workspace>, stop: &CancellationToken) {
    let setup = Arc::clone(&workspace.setup);
    let stop = stop.child_token();
    let (h, w, s, m) = (Arc::clone(hub), Arc::clone(workspace), stop.clone(), Arc::clone(&setup));
    tokio::spawn(async move {
        tokio::select! {
            () = s.cancelled() => {}
            () = keep_shell(&h, &w, &s, &m) => s.cancel(),
        }
    });
    let (h, w, s) = (Arc::clone(hub), Arc::clone(workspace), stop.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = s.cancelled() => {}
            () = parked::keep(&h, &w) => {}
            () = inside::keep(&h, &w) => {}
        }
    });
    let (h, w) = (Arc::clone(hub), Arc::clone(workspace));
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = keep_runtime(&h, &w, &setup) => {}
        }
    });
}

fn show_shell(hub: &Hub, workspace: &Workspace, state: ShellState, trouble: Option<Trouble>) {
    workspace.shell.send_if_modified(|known| {
        let since = if known.state == state { known.since } else { Timestamp::now() };
        let next = match trouble {
            Some(trouble) => Stated::because(state, since, trouble),
            None => Stated::plain(state, since),
        };
        let changed = *known != next;
        *known = next;
        changed
    });
    hub.touch(&workspace.id);
}

/// The shell layer. Returns when the workspace was removed and the control plane knows.
async fn keep_shell(hub: &Arc<Hub>, workspace: &Arc<Workspace>, stop: &CancellationToken, setup: &Arc<Mutex<()>>) {
    let mut intents = workspace.intent.subscribe();
    let mut served = false;
    let mut pause = PREPARE_AGAIN;
    loop {
        let intent = intents.borrow_and_update().clone();
        if intent.shell == DesiredShell::Absent {
            remove(hub, workspace, &intent).await;
            return;
        }
        let state = workspace.shell.borrow().state;
        let mut again = None;
        if state != ShellState::Ready {
            if !shell::was_prepared(hub, workspace) {
                show_shell(hub, workspace, ShellState::Preparing, None);
            }
            let prepared = {
                // A restore exchanges directories meanwhile.
                let _alone = workspace.rest.claim().await;
                shell::prepare(hub, workspace, &intent).await
            };
            match prepared {
                Ok(sandbox) => {
                    let mark = sandbox.dir.join("state").join("prepared");
                    // Only a hint for the next start of the daemon: without it, `preparing` is shown for a moment.
                    let _ = files::write_whole(&mark, b"", 0o600);
                    workspace.sandbox.send_replace(Some(sandbox.clone()));
                    if !served {
                        served = true;
                        serve_inside(hub, workspace, stop);
                    }
                    workspace.progress.send_replace(String::new());
                    show_shell(hub, workspace, ShellState::Ready, None);
                    set_up_behind(hub, workspace, intent, sandbox, setup);
                }
                Err(trouble) => {
                    tracing::warn!(workspace = %workspace.id, reason = %trouble.reason, "a shell could not be prepared");
                    workspace.shell_failed.send_replace(intent.generation);
                    show_shell(hub, workspace, ShellState::Failed, Some(trouble));
                    again = Some(pause);
                }
            }
        }
        let due = async {
            match again {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = intents.changed() => {
                if changed.is_err() {
                    return;
                }
                pause = PREPARE_AGAIN;
            }
            () = workspace.again.notified() => pause = PREPARE_AGAIN,
            () = due => pause = (pause * 2).min(PREPARE_AT_LAST),
        }
    }
}

fn serve_inside(hub: &Arc<Hub>, workspace: &Arc<Workspace>, stop: &CancellationToken) {
    let (hub, workspace, stop) = (Arc::clone(hub), Arc::clone(workspace), stop.clone());
    // Ends with the workspace. If it cannot listen, the command line inside says that no host answers.
    tokio::spawn(async move {
        if let Err(error) = streams::serve_workspace(hub, Arc::clone(&workspace), stop).await {
            tracing::error!(workspace = %workspace.id, %error, "the socket inside a workspace is not served");
        }
    });
}

/// Shell-layer set-up, one at a time; the runtime, if one waits, is told how it went. What the next clone copies is tidied
/// last.
fn set_up_behind(
    hub: &Arc<Hub>,
    workspace: &Arc<Workspace>,
    intent: WorkspaceIntent,
    sandbox: Sandbox,
    setup: &Arc<Mutex<()>>,
) {
    let (hub, workspace, setup) = (Arc::clone(hub), Arc::clone(workspace), Arc::clone(setup));
    tokio::spawn(async move {
        let outcome = {
            let _alone = setup.lock().await;
            shell::run_setup(&hub, &workspace, &intent, &sandbox).await
        };
        release(&workspace, outcome).await;
        shell::tidy_caches(&hub, &intent).await;
    });
}

async fn release(workspace: &Workspace, outcome: BTreeMap<ServiceName, Option<Trouble>>) {
    let services: BTreeMap<String, Option<Trouble>> =
        outcome.into_iter().map(|(name, trouble)| (name.to_string(), trouble)).collect();
    let supervisor = workspace.runtime.borrow().supervisor.clone();
    if let Some(supervisor) = supervisor
        && !services.is_empty()
    {
        // One that is gone gets it again when it is replaced.
        let _ = supervisor.ask(Ask::Release { services }).await;
    }
}

/// Removes everything, once the runtime is down.
async fn remove(hub: &Arc<Hub>, workspace: &Arc<Workspace>, intent: &WorkspaceIntent) {
    let mut runtime = workspace.runtime.subscribe();
    // It ends by the runtime's own task, which sees the same intent.
    let _ = runtime.wait_for(|facts| facts.supervisor.is_none()).await;
    // A copy of it that is under way is given up.
    let _alone = workspace.rest.claim().await;
    let sandbox = Sandbox::of(&hub.installation, &workspace.id, workspace.index, &intent.slug);
    let removed = async || {
        snapshot::remove_all(hub, &workspace.id).await?;
        // First: its keys are known only as long as its directory is there.
        storage::remove(hub, &sandbox.dir).await?;
        cloud::remove(hub, workspace, intent).await?;
        sandbox::remove(&hub.installation, &sandbox).await.map_err(|e| Trouble::new(e.to_string(), e.hint))
    };
    while let Err(mut trouble) = removed().await {
        if trouble.hint.is_empty() {
            trouble.hint = "it is tried again by itself".into();
        }
        workspace.shell_failed.send_replace(intent.generation);
        show_shell(hub, workspace, ShellState::Failed, Some(trouble));
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    workspace.sandbox.send_replace(None);
    show_shell(hub, workspace, ShellState::Absent, None);
}

/// What the daemon knows of a workspace's runtime beyond what it shows.
#[derive(Debug, Default)]
struct Memory {
    snapshots: Option<mpsc::UnboundedReceiver<Snapshot>>,
    ended: Option<Ended>,
    lost: bool,
    /// Services of the instance, to know who belongs to whom.
    spec: Option<RuntimeSpec>,
    acted_restarts: BTreeMap<ServiceName, u64>,
    /// Questions to provisioners.
    cloud: cloud::Asking,
}

/// The runtime layer.
async fn keep_runtime(hub: &Arc<Hub>, workspace: &Arc<Workspace>, setup: &Arc<Mutex<()>>) {
    let mut intents = workspace.intent.subscribe();
    let mut shell = workspace.shell.subscribe();
    let mut may_wake = hub.may_wake.subscribe();
    let mut memory = Memory::default();
    let mut resets = workspace.resets_asked.lock().unwrap_or_else(PoisonError::into_inner).take();
    instance::adopt(hub, workspace, &mut memory).await;
    change(hub, workspace, |facts| facts.known = true);
    let mut look = tokio::time::interval(LOOK_FOR_EDITS);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let intent = intents.borrow_and_update().clone();
        let step = plan(&intent, &found(hub, workspace, &memory));
        match step {
            Step::Wait => {}
            Step::Start => {
                let _alone = workspace.rest.claim().await;
                // A restore may have taken its turn.
                if workspace.shell.borrow().state == ShellState::Ready {
                    instance::start(hub, workspace, &intent, &mut memory, setup).await;
                }
            }
            Step::Replace => {
                let _alone = workspace.rest.claim().await;
                instance::replace(hub, workspace, &mut memory, setup).await;
            }
            Step::Update => update::update(hub, workspace, &intent, &mut memory, setup).await,
            Step::Sleep(reason) => {
                let supervisor = workspace.runtime.borrow().supervisor.clone();
                if let Some(supervisor) = supervisor {
                    // One that is gone closes its line, which is heard below.
                    let _ = supervisor.ask(Ask::Sleep { reason }).await;
                }
            }
        }
        let (connected, lost) = (memory.snapshots.is_some(), memory.lost);
        memory.cloud.follow(hub, workspace, memory.spec.as_ref().filter(|_| connected));
        let answered = Arc::clone(&memory.cloud.news);
        let next = async {
            match &mut memory.snapshots {
                Some(snapshots) => snapshots.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = intents.changed() => if changed.is_err() { return },
            _ = shell.changed() => {}
            _ = may_wake.changed() => {}
            snapshot = next => instance::heard(hub, workspace, &mut memory, snapshot),
            // A supervisor that could not be replaced is tried again without anyone asking.
            () = tokio::time::sleep(REPLACE_AGAIN), if lost => {}
            () = answered.notified() => update::refresh(hub, workspace, &intent, &mut memory, setup).await,
            Some(reset) = asked(&mut resets) => update::reset(hub, workspace, &intent, &mut memory, setup, reset).await,
            _ = look.tick(), if connected => update::look_for_edits(hub, workspace, &intent).await,
        }
    }
}

async fn asked(resets: &mut Option<mpsc::UnboundedReceiver<Reset>>) -> Option<Reset> {
    match resets {
        Some(resets) => resets.recv().await,
        None => std::future::pending().await,
    }
}

fn found(hub: &Hub, workspace: &Workspace, memory: &Memory) -> Found {
    let facts = workspace.runtime.borrow();
    let running = facts.supervisor.as_ref().and(facts.snapshot.as_ref());
    Found {
        shell_ready: workspace.shell.borrow().state == ShellState::Ready,
        may_wake: *hub.may_wake.borrow(),
        running: running.map(|s| s.generation),
        sleeping: running.is_some_and(|s| s.runtime.state == RuntimeState::Sleeping),
        ended: memory.ended.as_ref().map(|e| e.generation),
        failed: facts.failed.as_ref().map(|(generation, _, _)| *generation),
        lost: memory.lost,
    }
}

fn change(hub: &Hub, workspace: &Workspace, change: impl FnOnce(&mut RuntimeFacts)) {
    workspace.runtime.send_modify(change);
    hub.touch(&workspace.id);
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}
