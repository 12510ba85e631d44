//! Makes one workspace what it should be: a task for its shell layer, one for its runtime, until it is gone.
//!
//! Both only ever compare what should be with what is and take one step; a daemon that was killed between two steps
//! takes the same one again.

use super::{
    hub::{Hub, RuntimeFacts, Workspace},
    plan::{Found, Step, plan},
    runtime, shell, streams, supervisor,
};
use crate::{
    supervise::{
        meter,
        protocol::{Ask, Ended, RuntimeSpec, Snapshot},
    },
    system::{boot, files, sandbox, sandbox::Sandbox},
};
use envforge_api::{
    host::{DesiredShell, WorkspaceIntent},
    names::ServiceName,
    states::{RuntimeState, ShellState, Stated, Trouble},
    time::Timestamp,
};
use envforge_manifest::FoundManifest;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

/// A failed preparation is tried again after this, without anyone asking.
const PREPARE_AGAIN: Duration = Duration::from_secs(60);
/// How often envforge.yml files of an awake runtime are compared with what runs.
const LOOK_FOR_EDITS: Duration = Duration::from_secs(3);
/// How long a new supervisor may take until it listens.
const SUPERVISOR_START: Duration = Duration::from_secs(20);

/// Starts the tasks of a workspace. They end with the workspace or with `stop`.
pub(super) fn begin(hub: &Arc<Hub>, workspace: &Arc<Workspace>, stop: &CancellationToken) {
    let setup = Arc::new(Mutex::new(()));
    let stop = stop.child_token();
    let (h, w, s, m) = (Arc::clone(hub), Arc::clone(workspace), stop.clone(), Arc::clone(&setup));
    tokio::spawn(async move {
        tokio::select! {
            () = s.cancelled() => {}
            () = keep_shell(&h, &w, &s, &m) => s.cancel(),
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
    hub.touch();
}

/// The shell layer. Returns when the workspace was removed and the control plane knows.
async fn keep_shell(hub: &Arc<Hub>, workspace: &Arc<Workspace>, stop: &CancellationToken, setup: &Arc<Mutex<()>>) {
    let mut intents = workspace.intent.subscribe();
    let mut served = false;
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
            match shell::prepare(hub, workspace, &intent).await {
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
                    show_shell(hub, workspace, ShellState::Failed, Some(trouble));
                    again = Some(PREPARE_AGAIN);
                }
            }
        }
        let pause = async {
            match again {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = intents.changed() => if changed.is_err() { return },
            () = pause => {}
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

/// Shell-layer set-up, one at a time; the runtime, if one waits, is told how it went.
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
    let sandbox = Sandbox::of(&hub.installation, &workspace.id, workspace.index, &intent.slug);
    loop {
        match sandbox::remove(&hub.installation, &sandbox).await {
            Ok(()) => break,
            Err(error) => {
                let hint =
                    if error.hint.is_empty() { "it is tried again by itself".into() } else { error.hint.clone() };
                show_shell(hub, workspace, ShellState::Failed, Some(Trouble::new(error.to_string(), hint)));
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        }
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
}

/// The runtime layer.
async fn keep_runtime(hub: &Arc<Hub>, workspace: &Arc<Workspace>, setup: &Arc<Mutex<()>>) {
    let mut intents = workspace.intent.subscribe();
    let mut shell = workspace.shell.subscribe();
    let mut may_wake = hub.may_wake.subscribe();
    let mut memory = Memory::default();
    adopt(hub, workspace, &mut memory).await;
    change(hub, workspace, |facts| facts.known = true);
    let mut look = tokio::time::interval(LOOK_FOR_EDITS);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let intent = intents.borrow_and_update().clone();
        let step = plan(&intent, &found(hub, workspace, &memory));
        match step {
            Step::Wait => {}
            Step::Start => start(hub, workspace, &intent, &mut memory, setup).await,
            Step::Replace => replace(hub, workspace, &mut memory, setup).await,
            Step::Update => update(hub, workspace, &intent, &mut memory, setup).await,
            Step::Sleep(reason) => {
                let supervisor = workspace.runtime.borrow().supervisor.clone();
                if let Some(supervisor) = supervisor {
                    // One that is gone closes its line, which is heard below.
                    let _ = supervisor.ask(Ask::Sleep { reason }).await;
                }
            }
        }
        let connected = memory.snapshots.is_some();
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
            snapshot = next => heard(hub, workspace, &mut memory, snapshot),
            _ = look.tick(), if connected => look_for_edits(hub, workspace, &intent).await,
        }
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
    hub.touch();
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// After a start of the daemon: what runs, what ended meanwhile, what was lost.
async fn adopt(hub: &Hub, workspace: &Workspace, memory: &mut Memory) {
    let dir = hub.installation.workspace_dir(&workspace.id);
    memory.acted_restarts = read_json(&dir.join("state").join("restarts.json")).unwrap_or_default();
    memory.ended = read_json(&dir.join("state").join("ended.json"));
    let Some(spec) = read_json::<RuntimeSpec>(&runtime::spec_path(&dir)) else { return };
    let ended = memory.ended.as_ref().is_some_and(|ended| ended.instance == spec.instance);
    let snapshot = memory.ended.as_ref().filter(|_| ended).map(|e| (*e.snapshot).clone());
    change(hub, workspace, |facts| {
        facts.size = Some(spec.size);
        facts.snapshot = snapshot;
    });
    if ended {
        memory.spec = Some(spec);
        return;
    }
    if boot::boot_id().is_ok_and(|boot| boot != spec.boot) {
        // The machine was restarted: nothing of this instance is left, and nobody observed its end.
        memory.ended = None;
        if let Err(error) = meter::end_after_reboot(&meter::path_of(&dir, &spec.instance), "reboot") {
            tracing::error!(workspace = %workspace.id, %error, "the readings of a runtime that a reboot ended cannot be closed");
        }
        return;
    }
    let sandbox = spec.sandbox.clone();
    memory.spec = Some(spec);
    match supervisor::connect(&sandbox).await {
        Ok((supervisor, snapshots)) => connected(hub, workspace, memory, supervisor, snapshots).await,
        Err(_) => memory.lost = true,
    }
}

async fn connected(
    hub: &Hub,
    workspace: &Workspace,
    memory: &mut Memory,
    supervisor: Arc<supervisor::Supervisor>,
    mut snapshots: mpsc::UnboundedReceiver<Snapshot>,
) {
    // The first snapshot follows the greeting; before it nothing is known.
    let first = tokio::time::timeout(SUPERVISOR_START, snapshots.recv()).await.ok().flatten();
    memory.lost = first.is_none();
    memory.snapshots = first.is_some().then_some(snapshots);
    change(hub, workspace, |facts| {
        facts.supervisor = first.is_some().then_some(supervisor);
        facts.snapshot = first;
        facts.starting = None;
        facts.failed = None;
    });
}

/// A snapshot, or the end of the line.
fn heard(hub: &Hub, workspace: &Workspace, memory: &mut Memory, snapshot: Option<Snapshot>) {
    if let Some(snapshot) = snapshot {
        change(hub, workspace, |facts| facts.snapshot = Some(snapshot));
        return;
    }
    memory.snapshots = None;
    let dir = hub.installation.workspace_dir(&workspace.id);
    let ended: Option<Ended> = read_json(&dir.join("state").join("ended.json"));
    let instance = memory.spec.as_ref().map(|spec| spec.instance.clone());
    match ended.filter(|ended| Some(&ended.instance) == instance.as_ref()) {
        Some(ended) => {
            let last = (*ended.snapshot).clone();
            memory.ended = Some(ended);
            change(hub, workspace, |facts| {
                facts.supervisor = None;
                facts.snapshot = Some(last);
            });
        }
        None => {
            tracing::warn!(workspace = %workspace.id, "the runtime's supervisor was lost; it is replaced");
            memory.lost = true;
            change(hub, workspace, |facts| facts.supervisor = None);
        }
    }
}

async fn start(
    hub: &Arc<Hub>,
    workspace: &Arc<Workspace>,
    intent: &WorkspaceIntent,
    memory: &mut Memory,
    setup: &Arc<Mutex<()>>,
) {
    change(hub, workspace, |facts| facts.starting = Some(Timestamp::now()));
    let outcome = try_start(hub, workspace, intent, memory, setup).await;
    if let Err(trouble) = outcome {
        tracing::warn!(workspace = %workspace.id, reason = %trouble.reason, "a runtime could not be started");
        change(hub, workspace, |facts| {
            facts.starting = None;
            facts.failed = Some((intent.generation, trouble, Timestamp::now()));
        });
    }
}

async fn try_start(
    hub: &Arc<Hub>,
    workspace: &Arc<Workspace>,
    intent: &WorkspaceIntent,
    memory: &mut Memory,
    setup: &Arc<Mutex<()>>,
) -> Result<(), Trouble> {
    let system = |e: crate::system::SystemError| Trouble::new(e.to_string(), e.hint);
    // Namespaces may have been given back while nothing ran.
    let made =
        sandbox::ensure(&hub.installation, &workspace.id, workspace.index, &intent.slug).await.map_err(system)?;
    workspace.sandbox.send_replace(Some(made.clone()));
    let (spec, description) = runtime::write_spec(hub, workspace, intent, &made).await?;
    remember_restarts(&made, intent, memory);
    change(hub, workspace, |facts| {
        facts.size = Some(spec.size);
        facts.diagnostics = description.diagnostics();
        facts.stale.clear();
    });
    memory.ended = None;
    memory.spec = Some(spec);
    launch(hub, workspace, &made, memory).await?;
    set_up_behind(hub, workspace, intent.clone(), made, setup);
    Ok(())
}

/// Starts a supervisor and waits until it listens.
async fn launch(hub: &Hub, workspace: &Workspace, made: &Sandbox, memory: &mut Memory) -> Result<(), Trouble> {
    let system = |e: crate::system::SystemError| Trouble::new(e.to_string(), e.hint);
    let mut child = supervisor::start(made, &runtime::spec_path(&made.dir)).map_err(system)?;
    let mut pause = Duration::from_millis(1);
    let deadline = tokio::time::Instant::now() + SUPERVISOR_START;
    let line = loop {
        match supervisor::connect(made).await {
            Ok(line) => break Some(line),
            Err(_) if tokio::time::Instant::now() > deadline => break None,
            Err(_) => {}
        }
        tokio::select! {
            // It may have slept already, or said why it cannot run in logs/supervisor.err.
            _ = child.wait() => break None,
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_millis(50)),
        }
    };
    // Reaps it when it ends; it is not ended with us.
    tokio::spawn(async move { child.wait().await });
    match line {
        Some((supervisor, snapshots)) => {
            connected(hub, workspace, memory, supervisor, snapshots).await;
            Ok(())
        }
        None => {
            let said = fs::read_to_string(made.dir.join("logs").join("supervisor.err")).unwrap_or_default();
            let last = said.lines().last().unwrap_or("it ended without a word").trim_start_matches("envforge: ");
            Err(Trouble::new(
                format!("the runtime's supervisor does not run: {last}"),
                "wake again; `envforge doctor` says what the machine lacks",
            ))
        }
    }
}

async fn replace(hub: &Arc<Hub>, workspace: &Arc<Workspace>, memory: &mut Memory, setup: &Arc<Mutex<()>>) {
    let Some(made) = memory.spec.as_ref().map(|spec| spec.sandbox.clone()) else {
        memory.lost = false;
        return;
    };
    // Whatever the lost one had not read to the end is running still; the new one takes it over. Namespaces that were
    // lost with it are made again.
    let there = sandbox::ensure(&hub.installation, &workspace.id, workspace.index, &made.hostname).await;
    let launched = match there {
        Ok(_) => launch(hub, workspace, &made, memory).await,
        Err(error) => Err(Trouble::new(error.to_string(), error.hint)),
    };
    match launched {
        Ok(()) => {
            let intent = workspace.intent.borrow().clone();
            set_up_behind(hub, workspace, intent, made, setup);
        }
        Err(trouble) => {
            tracing::error!(workspace = %workspace.id, reason = %trouble.reason, "a supervisor cannot be replaced");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

fn remember_restarts(made: &Sandbox, intent: &WorkspaceIntent, memory: &mut Memory) {
    memory.acted_restarts.clone_from(&intent.restarts);
    let bytes = serde_json::to_vec(&memory.acted_restarts).unwrap_or_default();
    if let Err(error) = files::write_durably(&made.dir.join("state").join("restarts.json"), &bytes, 0o600) {
        tracing::error!(%error, "acted restarts cannot be kept: they may be done again");
    }
}

/// Services were stopped, started or restarted, or a hold changed, while the runtime is awake.
async fn update(
    hub: &Arc<Hub>,
    workspace: &Arc<Workspace>,
    intent: &WorkspaceIntent,
    memory: &mut Memory,
    setup: &Arc<Mutex<()>>,
) {
    let facts = workspace.runtime.borrow().clone();
    let (Some(supervisor), Some(snapshot), Some(spec)) = (facts.supervisor, facts.snapshot, memory.spec.clone()) else {
        return;
    };
    let made = spec.sandbox.clone();
    let asked: BTreeSet<ServiceName> = intent
        .restarts
        .iter()
        .filter(|(name, count)| memory.acted_restarts.get(*name).copied().unwrap_or(0) < **count)
        .map(|(name, _)| name.clone())
        .collect();
    let description = match runtime::describe(intent, &made).await {
        Ok(description) => description,
        Err(trouble) => {
            change(hub, workspace, |facts| facts.failed = Some((intent.generation, trouble, Timestamp::now())));
            return;
        }
    };
    let was_stopped =
        runtime::stopped_processes(&spec.services, &spec.stopped.iter().filter_map(|s| s.parse().ok()).collect());
    let stopped = runtime::stopped_processes(&description.processes, &intent.stopped);
    // An invalid edit leaves what runs untouched: a service that became blocked is not restarted.
    let fresh: Vec<_> = description
        .processes
        .iter()
        .filter(|p| {
            asked.iter().any(|s| s.as_str() == p.service)
                || (was_stopped.contains(&p.name) && !stopped.contains(&p.name))
        })
        .filter(|p| {
            p.blocked.is_none() || !spec.services.iter().any(|known| known.name == p.name && known.blocked.is_none())
        })
        .cloned()
        .map(|process| runtime::with_resources_of(&spec.resources, process))
        .collect();
    let restart: BTreeSet<String> =
        fresh.iter().filter(|p| asked.iter().any(|s| s.as_str() == p.service)).map(|p| p.name.clone()).collect();
    if let Err(error) = runtime::write_env_files(&made, &description) {
        tracing::error!(%error, "environment files cannot be written");
    }
    let mut next = spec;
    for process in &fresh {
        match next.services.iter_mut().find(|known| known.name == process.name) {
            Some(known) => *known = process.clone(),
            None => next.services.push(process.clone()),
        }
    }
    next.stopped.clone_from(&stopped);
    next.generation = intent.generation;
    next.hold_until = intent.hold_until;
    if let Err(error) = serde_json::to_vec(&next)
        .map_err(std::io::Error::from)
        .and_then(|bytes| files::write_durably(&runtime::spec_path(&made.dir), &bytes, 0o600).map_err(|e| e.source))
    {
        tracing::error!(%error, "the runtime's description cannot be written");
    }
    memory.spec = Some(next);
    let waits_for_shell = fresh.iter().any(|p| p.awaits_shell);
    if waits_for_shell {
        // Edited steps run again before the service does.
        set_up_behind(hub, workspace, intent.clone(), made.clone(), setup);
    }
    let hold = supervisor.ask(Ask::Hold { until: intent.hold_until }).await;
    let asked = Ask::Update { processes: fresh, restart, stopped, generation: intent.generation };
    match hold.and(supervisor.ask(asked).await) {
        Ok(()) => {
            remember_restarts(&made, intent, memory);
            // Until its own word comes: the same step is not taken twice.
            change(hub, workspace, |facts| {
                facts.diagnostics = description.diagnostics();
                if let Some(known) = &mut facts.snapshot {
                    known.generation = intent.generation.max(known.generation);
                }
            });
        }
        Err(trouble) => {
            tracing::info!(workspace = %workspace.id, reason = %trouble.reason, generation = %snapshot.generation, "the runtime takes no update now");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Compares the envforge.yml files of an awake runtime with what it runs.
async fn look_for_edits(hub: &Hub, workspace: &Workspace, intent: &WorkspaceIntent) {
    let (Some(made), Some(snapshot)) =
        (workspace.sandbox.borrow().clone(), workspace.runtime.borrow().snapshot.clone())
    else {
        return;
    };
    let found = shell::read_manifests(&made, &intent.spec).await;
    let mut stale = BTreeSet::new();
    let mut diagnostics = Vec::new();
    for (service, manifest) in &found {
        let digest = match manifest {
            FoundManifest::Good(manifest) => manifest.digest.clone(),
            FoundManifest::Bad(findings) => {
                diagnostics.extend(findings.iter().cloned());
                String::from("bad")
            }
            FoundManifest::Missing(_) => String::from("missing"),
        };
        let prefix = format!("{service}.");
        for (name, known) in &snapshot.digests {
            if (name == service.as_str() || name.starts_with(&prefix)) && *known != digest {
                stale.insert(name.clone());
            }
        }
    }
    let same = {
        let facts = workspace.runtime.borrow();
        facts.stale == stale && facts.diagnostics == diagnostics
    };
    if !same {
        change(hub, workspace, |facts| {
            facts.stale = stale;
            facts.diagnostics = diagnostics;
        });
    }
}
