//! One runtime instance from the daemon's side: started, adopted after a start of the daemon, replaced when its
//! supervisor was lost, ended.

use super::{Memory, change, read_json, set_up_behind};
use crate::{
    daemon::{
        hub::{Hub, Workspace},
        runtime, shell, supervisor,
    },
    supervise::{
        logs::Logs,
        meter,
        protocol::{Ended, RuntimeSpec, Snapshot},
        redact::Redactor,
        still,
    },
    system::{boot, disk, sandbox, sandbox::Sandbox},
};
use envforge_api::{host::WorkspaceIntent, states::Trouble, stream::LogLevel, time::Timestamp};
use std::{fs, path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::{Mutex, mpsc};

/// How long a new supervisor may take until it listens.
const SUPERVISOR_START: Duration = Duration::from_secs(20);

/// After a start of the daemon: what runs, what ended meanwhile, what was lost.
pub(super) async fn adopt(hub: &Hub, workspace: &Workspace, memory: &mut Memory) {
    let dir = hub.installation.workspace_dir(&workspace.id);
    // A daemon that was killed in the middle of a copy may have left it standing still. One that does for the disk goes on
    // doing so.
    if hub.room.holds_shell(&workspace.id).is_none() {
        let slug = workspace.intent.borrow().slug.clone();
        still::thaw(&Sandbox::of(&hub.installation, &workspace.id, workspace.index, &slug));
    }
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
    let line = supervisor::reach(&spec.sandbox).await;
    // Described for another directory: a home that was restored or copied.
    let elsewhere = line.is_err() && spec.sandbox.dir != dir;
    let rebooted = boot::boot_id().is_ok_and(|boot| boot != spec.boot);
    if rebooted || elsewhere {
        // Nothing of this instance is left, and nobody observed its end.
        memory.ended = None;
        close_readings(workspace, meter::path_of(&dir, &spec.instance), if rebooted { "reboot" } else { "lost" });
        return;
    }
    memory.spec = Some(spec);
    match line {
        Ok((supervisor, snapshots)) => connected(hub, workspace, memory, supervisor, snapshots).await,
        Err(_) => memory.lost = true,
    }
    if memory.lost {
        note_end(hub, workspace, memory);
    }
}

/// Ends the readings of a runtime that was cut short; what a full disk refuses is tried again until it is done.
fn close_readings(workspace: &Workspace, path: PathBuf, reason: &'static str) {
    let close = move || meter::end_unobserved(&path, reason);
    let Err(error) = close() else { return };
    tracing::error!(workspace = %workspace.id, %error, "the readings of a runtime that was cut short cannot be closed");
    if disk::is_full(&error) {
        // Ends when it is done; a daemon that starts anew begins again.
        tokio::spawn(async move {
            let mut pause = Duration::from_secs(1);
            while close().is_err() {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(8));
            }
        });
    }
}

/// Whether the instance came to its end: a supervisor that is gone was lost only if it left no word of that. Asked
/// after it was found gone, for it may have ended a moment before.
fn note_end(hub: &Hub, workspace: &Workspace, memory: &mut Memory) -> bool {
    let dir = hub.installation.workspace_dir(&workspace.id);
    let instance = memory.spec.as_ref().map(|spec| &spec.instance);
    let ended: Option<Ended> = read_json(&dir.join("state").join("ended.json"));
    let Some(ended) = ended.filter(|ended| Some(&ended.instance) == instance) else { return false };
    let last = (*ended.snapshot).clone();
    memory.lost = false;
    memory.ended = Some(ended);
    change(hub, workspace, |facts| {
        facts.supervisor = None;
        facts.snapshot = Some(last);
    });
    true
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
pub(super) fn heard(hub: &Hub, workspace: &Workspace, memory: &mut Memory, snapshot: Option<Snapshot>) {
    if let Some(snapshot) = snapshot {
        change(hub, workspace, |facts| facts.snapshot = Some(snapshot));
        return;
    }
    memory.snapshots = None;
    if !note_end(hub, workspace, memory) {
        tracing::warn!(workspace = %workspace.id, "the runtime's supervisor was lost; it is replaced");
        memory.lost = true;
        change(hub, workspace, |facts| facts.supervisor = None);
    }
}

pub(super) async fn start(
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
    if let Some(trouble) = hub.room.holds(&workspace.id) {
        return Err(trouble);
    }
    let system = |e: crate::system::SystemError| Trouble::new(e.to_string(), e.hint);
    // It gets ready beside all that follows, and ends if that fails. Making a process holds its thread up.
    let known = sandbox::Sandbox::of(&hub.installation, &workspace.id, workspace.index, &intent.slug);
    let preparing = tokio::task::spawn_blocking(move || supervisor::prepare(&known, &runtime::spec_path(&known.dir)));
    // Namespaces may have been given back while nothing ran.
    let made =
        sandbox::ensure(&hub.installation, &workspace.id, workspace.index, &intent.slug).await.map_err(system)?;
    workspace.sandbox.send_replace(Some(made.clone()));
    // The project may have got another repository since the shell was prepared. What cannot be had of it blocks its own
    // services alone, and the log says why.
    if let Err(trouble) = shell::complete(hub, workspace, intent, &made).await {
        let line = format!("{} ({})", trouble.reason, trouble.hint);
        Logs::new(made.dir.join("logs"), Redactor::default()).system(LogLevel::Warn, &line);
    }
    let (spec, description) = runtime::make_spec(hub, intent, &made).await?;
    let prepared = preparing.await.map_err(|e| Trouble::new(e.to_string(), "wake again"))?;
    let mut prepared = prepared.map_err(system)?;
    runtime::write_spec(&spec, &mut prepared).await?;
    super::update::remember_restarts(&made, intent, memory);
    change(hub, workspace, |facts| {
        facts.size = Some(spec.size);
        facts.diagnostics = description.diagnostics();
        facts.stale.clear();
        facts.refused.clear();
    });
    memory.ended = None;
    memory.spec = Some(spec);
    launch(hub, workspace, &made, memory, prepared).await?;
    set_up_behind(hub, workspace, intent.clone(), made, setup);
    Ok(())
}

/// Has a supervisor begin and waits until it listens.
async fn launch(
    hub: &Hub,
    workspace: &Workspace,
    made: &Sandbox,
    memory: &mut Memory,
    prepared: supervisor::Prepared,
) -> Result<(), Trouble> {
    let log = made.dir.join("logs").join("supervisor.err");
    let before = prepared.complaints_before;
    let mut child = prepared.begin().await;
    let mut pause = Duration::from_millis(1);
    let deadline = tokio::time::Instant::now() + SUPERVISOR_START;
    let line = loop {
        match supervisor::connect(made).await {
            Ok(line) => break Some(line),
            Err(_) if tokio::time::Instant::now() > deadline => {
                // What it began is found by the one that replaces it.
                let _ = child.start_kill();
                memory.lost = true;
                break None;
            }
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
            let said = fs::read(&log).unwrap_or_default();
            let said = String::from_utf8_lossy(said.get(usize::try_from(before).unwrap_or(0)..).unwrap_or_default());
            let last = said.lines().last().map(|line| line.trim_start_matches("envforge: "));
            let full = last.map_or_else(|| disk::has_no_space(&made.dir), disk::says_full);
            let hint = "wake again; `envforge doctor` says what the machine lacks";
            Err(Trouble::new(
                format!("the runtime's supervisor does not run: {}", last.unwrap_or("it ended without a word")),
                if full { disk::hint(&made.dir) } else { hint.into() },
            ))
        }
    }
}

pub(super) async fn replace(hub: &Arc<Hub>, workspace: &Arc<Workspace>, memory: &mut Memory, setup: &Arc<Mutex<()>>) {
    let Some(made) = memory.spec.as_ref().map(|spec| spec.sandbox.clone()) else {
        memory.lost = false;
        return;
    };
    // Started on an instance that ended after all, it would run what nobody measures.
    if note_end(hub, workspace, memory) {
        return;
    }
    // Whatever the lost one had not read to the end is running still; the new one takes it over. Namespaces that were
    // lost with it are made again.
    let there = sandbox::ensure(&hub.installation, &workspace.id, workspace.index, &made.hostname).await;
    let prepared = there.and_then(|_| supervisor::prepare(&made, &runtime::spec_path(&made.dir)));
    let launched = match prepared {
        Ok(prepared) => launch(hub, workspace, &made, memory, prepared).await,
        Err(error) => Err(Trouble::new(error.to_string(), error.hint)),
    };
    match launched {
        Ok(()) => {
            let intent = workspace.intent.borrow().clone();
            set_up_behind(hub, workspace, intent, made, setup);
        }
        Err(trouble) => {
            tracing::error!(workspace = %workspace.id, reason = %trouble.reason, "a supervisor cannot be replaced");
        }
    }
}
