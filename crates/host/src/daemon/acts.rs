//! Leased commands: acts that are done once, by an id the caller made. Ledgered before they begin and when they end.

use super::{
    copy,
    hub::{Hub, Reset, Workspace},
    runtime, shell,
};
use crate::{
    supervise::{
        process,
        protocol::{Ask, RunFrame, RunOrder, RunPart},
        redact::Redactor,
        runs::{output_path, prune_outputs},
    },
    system::{
        SystemError,
        enter::{As, Entry},
        sandbox::{Sandbox, WORKSPACE},
    },
};
use envforge_api::{
    client::Client,
    command::{ActAnswer, ActReport, LeasedAct, LeasedCommand, RunSpec, RunTarget},
    ids::CommandId,
    public::{Commanded, WakeRequest},
    resource::ResourceKind,
    states::{CommandState, RuntimeState, ShellState, Stated, Trouble},
};
use envforge_manifest::{Layer, ResolvedService, Step};
use std::{collections::BTreeSet, io::Write, os::unix::fs::OpenOptionsExt, sync::Arc, time::Duration};
use tokio::sync::oneshot;

/// Takes over leases that are new; those known already are being done or were done.
pub(super) fn take(hub: &Arc<Hub>, leases: Vec<LeasedCommand>) {
    for lease in leases {
        let id = lease.id.clone();
        {
            let mut ledger = hub.ledger();
            let known = ledger.host.running.contains_key(&id) || ledger.host.finished.contains_key(&id);
            // An answer that was on its way while the end was recorded hands it over once more.
            if known || !hub.first_seen(&id) {
                continue;
            }
            let kept = lease.clone();
            if let Err(error) = ledger.change(|host| drop(host.running.insert(id.clone(), kept))) {
                tracing::error!(%error, hint = %error.hint, "a command cannot be ledgered");
                if !lease.act.may_repeat() {
                    // Not begun: its end is told, and kept in memory until the disk takes it.
                    let report = failed(&id, Trouble::new(error.to_string(), error.hint));
                    let _ = ledger.note(|host| drop(host.finished.insert(id, report)));
                    drop(ledger);
                    hub.touch_acts();
                    continue;
                }
            }
        }
        hub.touch_acts();
        let hub = Arc::clone(hub);
        // Ends with the act. A daemon that is stopped in the middle finds it ledgered as running.
        tokio::spawn(async move { perform(&hub, lease).await });
    }
}

/// After a start: acts that were under way go on if they may be repeated; runs that a supervisor still knows are
/// followed; others were interrupted.
pub(super) fn resume(hub: &Arc<Hub>) {
    let running: Vec<LeasedCommand> = hub.ledger().host.running.values().cloned().collect();
    for lease in running {
        let hub = Arc::clone(hub);
        tokio::spawn(async move {
            match &lease.act {
                LeasedAct::Run { workspace, .. } => {
                    let known = match hub.get(workspace) {
                        Some(workspace) => follow(&workspace, &lease.id).await,
                        None => None,
                    };
                    finish(&hub, known.unwrap_or_else(|| interrupted(&lease.id)));
                }
                LeasedAct::CreateSnapshot { workspace, snapshot, .. } => {
                    finish(&hub, cut_short(&hub, &lease.id, workspace, snapshot))
                }
                LeasedAct::RestoreSnapshot { workspace, .. } => {
                    finish(&hub, restored(&hub, &lease.id, workspace).await)
                }
                LeasedAct::CancelRun { .. }
                | LeasedAct::FindBranch { .. }
                | LeasedAct::InspectWork { .. }
                | LeasedAct::RemoveSnapshot { .. } => perform(&hub, lease).await,
            }
        });
    }
}

/// News of every act that the control plane has not recorded.
#[must_use]
pub(super) fn news(hub: &Hub) -> Vec<ActReport> {
    let ledger = hub.ledger();
    let running = ledger.host.running.keys().map(|id| ActReport {
        id: id.clone(),
        state: CommandState::Running,
        exit_code: None,
        reason: None,
        answer: None,
    });
    running.chain(ledger.host.finished.values().cloned()).collect()
}

fn interrupted(id: &CommandId) -> ActReport {
    ActReport {
        id: id.clone(),
        state: CommandState::Interrupted,
        exit_code: None,
        reason: Some("the process that ran it was lost; it is not run again by itself".into()),
        answer: None,
    }
}

/// A snapshot that was under way when the daemon was killed.
fn cut_short(
    hub: &Hub,
    id: &CommandId,
    workspace: &envforge_api::ids::WorkspaceId,
    snapshot: &envforge_api::ids::SnapshotId,
) -> ActReport {
    let known = hub.get(workspace).and_then(|workspace| {
        workspace.snapshots.borrow().iter().find(|known| known.id == *snapshot).map(|known| known.cost)
    });
    let Some(cost) = known else {
        let reason = "the host daemon was restarted in the middle; nothing is left of the snapshot, and it is not made again by itself";
        return ActReport { reason: Some(reason.into()), ..interrupted(id) };
    };
    ActReport {
        state: CommandState::Succeeded,
        reason: None,
        answer: Some(ActAnswer::Copied { cost }),
        ..interrupted(id)
    }
}

/// A restore that was under way when the daemon was killed: preparing the shell brought it to its end if it had begun to
/// exchange anything.
async fn restored(hub: &Hub, id: &CommandId, workspace: &envforge_api::ids::WorkspaceId) -> ActReport {
    let Some(workspace) = hub.get(workspace) else { return interrupted(id) };
    let _ = settled(&workspace).await;
    if copy::restore::was_done(hub, &workspace, id) {
        return ActReport { state: CommandState::Succeeded, reason: None, ..interrupted(id) };
    }
    let reason = "the host daemon was restarted in the middle; nothing of the workspace was changed, and it is not restored by itself";
    ActReport { reason: Some(reason.into()), ..interrupted(id) }
}

fn failed(id: &CommandId, trouble: Trouble) -> ActReport {
    let reason =
        if trouble.hint.is_empty() { trouble.reason } else { format!("{} ({})", trouble.reason, trouble.hint) };
    ActReport { id: id.clone(), state: CommandState::Failed, exit_code: None, reason: Some(reason), answer: None }
}

fn finish(hub: &Hub, report: ActReport) {
    let id = report.id.clone();
    let kept = hub.ledger().note(|host| {
        host.running.remove(&id);
        host.finished.insert(id.clone(), report);
    });
    if let Err(error) = kept {
        tracing::error!(%error, "the end of a command cannot be ledgered");
    }
    hub.touch_acts();
}

async fn perform(hub: &Arc<Hub>, lease: LeasedCommand) {
    let id = lease.id.clone();
    let done =
        |answer| ActReport { id: id.clone(), state: CommandState::Succeeded, exit_code: None, reason: None, answer };
    let failed = |trouble: Trouble| failed(&id, trouble);
    let report = match &lease.act {
        LeasedAct::FindBranch { repos, branch } => match shell::find_branch(hub, repos, branch).await {
            Ok(found) => done(Some(ActAnswer::Branches { found })),
            Err(trouble) => failed(trouble),
        },
        LeasedAct::InspectWork { workspace } => match inspect(hub, workspace).await {
            Ok(at_risk) => done(Some(ActAnswer::Work { at_risk })),
            Err(trouble) => failed(trouble),
        },
        LeasedAct::CreateSnapshot { workspace, snapshot, reason } => match hub.get(workspace) {
            Some(workspace) => match copy::snapshot::create_as(hub, &workspace, snapshot, reason).await {
                Ok(view) => done(Some(ActAnswer::Copied { cost: view.cost })),
                Err(trouble) => failed(trouble),
            },
            None => failed(not_here()),
        },
        LeasedAct::RestoreSnapshot { workspace, snapshot, kept, generation } => match hub.get(workspace) {
            Some(workspace) => {
                let order = copy::restore::Order { command: &id, snapshot, kept, generation: *generation };
                match copy::restore::restore(hub, &workspace, order).await {
                    Ok(cost) => done(Some(ActAnswer::Copied { cost })),
                    Err(trouble) => failed(trouble),
                }
            }
            None => failed(not_here()),
        },
        LeasedAct::RemoveSnapshot { workspace, snapshot } => match hub.get(workspace) {
            Some(workspace) => match copy::snapshot::remove(hub, &workspace, snapshot).await {
                Ok(()) => done(None),
                Err(trouble) => failed(trouble),
            },
            None => done(None),
        },
        LeasedAct::CancelRun { workspace, run } => {
            cancel(hub, workspace, run).await;
            done(None)
        }
        LeasedAct::Run { workspace, spec } => match hub.get(workspace) {
            Some(workspace) => match run(hub, &workspace, &id, spec).await {
                Ok(report) => report,
                Err(trouble) => failed(trouble),
            },
            None => failed(not_here()),
        },
    };
    finish(hub, report);
}

fn not_here() -> Trouble {
    Trouble::new("the workspace is not on this host", "")
}

async fn inspect(hub: &Hub, id: &envforge_api::ids::WorkspaceId) -> Result<Vec<String>, Trouble> {
    let Some(workspace) = hub.get(id) else { return Ok(Vec::new()) };
    let intent = workspace.intent.borrow().clone();
    // One whose shell could not be prepared is looked at as far as it is there.
    let _ = settled(&workspace).await;
    if !hub.installation.workspace_dir(id).join("files").is_dir() {
        return Ok(Vec::new());
    }
    let sandbox = sandbox(hub, &workspace).await?;
    shell::inspect_work(&sandbox, &intent).await
}

/// Its shell, when that is prepared or has failed; `None` once the workspace is gone.
async fn settled(workspace: &Workspace) -> Option<Stated<ShellState>> {
    let mut shell = workspace.shell.subscribe();
    let settled = shell.wait_for(|s| matches!(s.state, ShellState::Ready | ShellState::Failed)).await;
    settled.ok().map(|s| s.clone())
}

async fn ready_sandbox(hub: &Hub, workspace: &Workspace) -> Result<Sandbox, Trouble> {
    match settled(workspace).await {
        Some(stated) if stated.state == ShellState::Failed => {
            Err(Trouble::new(stated.reason.unwrap_or_default(), stated.hint.unwrap_or_default()))
        }
        Some(_) | None => sandbox(hub, workspace).await,
    }
}

async fn sandbox(hub: &Hub, workspace: &Workspace) -> Result<Sandbox, Trouble> {
    let slug = workspace.intent.borrow().slug.clone();
    crate::system::sandbox::ensure(&hub.installation, &workspace.id, workspace.index, &slug)
        .await
        .map_err(|e| Trouble::new(e.to_string(), e.hint))
}

async fn cancel(hub: &Hub, workspace: &envforge_api::ids::WorkspaceId, run: &CommandId) {
    let Some(workspace) = hub.get(workspace) else { return };
    hub.cancel_shell_run(run);
    let supervisor = workspace.runtime.borrow().supervisor.clone();
    if let Some(supervisor) = supervisor {
        // A run that ended meanwhile needs no cancelling.
        let _ = supervisor.ask(Ask::CancelRun { id: run.clone() }).await;
    }
}

/// One part of a run before its environment is known.
#[derive(Debug)]
struct Part {
    service: envforge_api::names::ServiceName,
    title: String,
    argv: Vec<String>,
    layer: Layer,
    directory: String,
    step: Option<(String, String)>,
}

async fn run(hub: &Arc<Hub>, workspace: &Workspace, id: &CommandId, spec: &RunSpec) -> Result<ActReport, Trouble> {
    let sandbox = ready_sandbox(hub, workspace).await?;
    let intent = workspace.intent.borrow().clone();
    let description = runtime::describe(&intent, &sandbox).await?;
    if let RunTarget::Reset { kinds } = &spec.target {
        return reset(hub, workspace, id, &description, kinds).await;
    }
    let parts = parts(&sandbox, &description, spec)?;
    if parts.iter().all(|part| part.layer == Layer::Shell) {
        return run_in_shell(hub, &sandbox, &description, id, &parts).await;
    }
    awake(hub, workspace).await?;
    let supervisor = workspace.runtime.borrow().supervisor.clone();
    let gone = || Trouble::new("the runtime went to sleep before the command began", "run it again");
    let order = RunOrder {
        id: id.clone(),
        source: "run".into(),
        parts: parts.iter().map(|part| runtime_part(&description, part)).collect(),
    };
    supervisor.ok_or_else(gone)?.ask(Ask::Run(order)).await?;
    Ok(follow(workspace, id).await.unwrap_or_else(|| interrupted(id)))
}

/// Wipes data services and fills them anew, in a runtime that is awake.
async fn reset(
    hub: &Arc<Hub>,
    workspace: &Workspace,
    id: &CommandId,
    description: &runtime::Description,
    kinds: &BTreeSet<ResourceKind>,
) -> Result<ActReport, Trouble> {
    description.can_be_reset(kinds)?;
    // Nothing is wiped that cannot be had again.
    copy::snapshot::create(hub, workspace, "before reset").await?;
    awake(hub, workspace).await?;
    let (answer, begun) = oneshot::channel();
    let asked = workspace.resets.send(Reset { id: id.clone(), kinds: kinds.clone(), answer });
    let gone = || Trouble::new("the workspace was removed", "");
    asked.map_err(|_| gone())?;
    begun.await.map_err(|_| gone())??;
    Ok(follow(workspace, id).await.unwrap_or_else(|| interrupted(id)))
}

/// Waits until the runtime serves, having it woken where it is asleep: which layer a test belongs to is known here
/// alone, so the wake is asked for in the workspace's name.
async fn awake(hub: &Hub, workspace: &Workspace) -> Result<(), Trouble> {
    let mut facts = workspace.runtime.subscribe();
    let is_awake = |facts: &super::hub::RuntimeFacts| {
        facts.supervisor.is_some() && facts.snapshot.as_ref().is_some_and(|s| s.runtime.state == RuntimeState::Awake)
    };
    if is_awake(&facts.borrow_and_update()) {
        return Ok(());
    }
    let client = Client::new(hub.server.clone(), Some(hub.token.clone()))
        .with_header("x-envforge-workspace", workspace.id.to_string());
    let path = format!("/v1/workspaces/{}/wake", workspace.id);
    let woken: Commanded = client
        .post(&path, &WakeRequest { trigger: Some("run".into()) })
        .await
        .map_err(|problem| Trouble::new(format!("the runtime cannot be woken: {}", problem.message), problem.hint))?;
    let wanted = woken.command.generation;
    let wait = async {
        loop {
            {
                let now = facts.borrow_and_update();
                if is_awake(&now) {
                    return Ok(());
                }
                if let Some((generation, trouble, _)) = &now.failed
                    && *generation >= wanted
                {
                    return Err(trouble.clone());
                }
            }
            if facts.changed().await.is_err() {
                return Err(Trouble::new("the workspace was removed", ""));
            }
        }
    };
    let outcome = tokio::time::timeout(Duration::from_secs(600), wait).await;
    outcome
        .unwrap_or_else(|_| Err(Trouble::new("the runtime was not awake within 10 minutes", "`envforge why` says why")))
}

fn parts(sandbox: &Sandbox, description: &runtime::Description, spec: &RunSpec) -> Result<Vec<Part>, Trouble> {
    let all: Vec<&ResolvedService> = match &spec.service {
        Some(name) => description.resolution.services.iter().filter(|s| s.name == *name).collect(),
        None => description.resolution.services.iter().collect(),
    };
    if all.is_empty() {
        let names: Vec<_> = description.resolution.services.iter().map(|s| s.name.to_string()).collect();
        let what = spec.service.as_ref().map_or("a service".to_owned(), |s| format!("a service {s}"));
        return Err(Trouble::new(format!("the project has no {what}"), format!("it has: {}", names.join(", "))));
    }
    let of_steps = |kind: &str, name: &Option<String>, steps: fn(&ResolvedService) -> &[Step]| {
        let mut parts = Vec::new();
        for service in &all {
            for step in steps(service).iter().filter(|s| name.as_ref().is_none_or(|n| s.name.as_str() == n)) {
                let full = format!("{}.{}", service.name, step.name);
                let data = if step.layer == Layer::Runtime { description.data_of(service) } else { String::new() };
                let digest = shell::step_digest(sandbox, &service.directory, step, &data);
                for (at, command) in step.run.iter().enumerate() {
                    let last = at + 1 == step.run.len();
                    parts.push(Part {
                        service: service.name.clone(),
                        title: if at == 0 { format!("{}: {}", service.name, step.name) } else { String::new() },
                        argv: process::shell(command),
                        layer: step.layer,
                        directory: format!("{WORKSPACE}/{}", service.directory),
                        step: (last && kind == "setup step").then(|| (full.clone(), digest.clone())),
                    });
                }
            }
        }
        if parts.is_empty() {
            let known: Vec<String> =
                all.iter().flat_map(|s| steps(s).iter().map(|step| format!("{}.{}", s.name, step.name))).collect();
            let which = name.as_ref().map_or(String::new(), |n| format!(" {n}"));
            let hint = if known.is_empty() {
                "no envforge.yml declares one".into()
            } else {
                format!("declared: {}", known.join(", "))
            };
            return Err(Trouble::new(format!("there is no {kind}{which}"), hint));
        }
        Ok(parts)
    };
    match &spec.target {
        RunTarget::Setup { name } => of_steps("setup step", name, |s| &s.setup),
        RunTarget::Test { name } => of_steps("test", name, |s| &s.tests),
        RunTarget::Reset { .. } => Ok(Vec::new()),
        RunTarget::Argv { argv } => Ok(vec![Part {
            service: all[0].name.clone(),
            title: argv.first().cloned().unwrap_or_default(),
            argv: argv.clone(),
            layer: Layer::Runtime,
            directory: format!("{WORKSPACE}/{}", all[0].directory),
            step: None,
        }]),
    }
}

fn runtime_part(description: &runtime::Description, part: &Part) -> RunPart {
    let process = description.processes.iter().find(|p| p.service == part.service.as_str());
    RunPart {
        title: part.title.clone(),
        argv: part.argv.clone(),
        directory: part.directory.clone(),
        environment: process.map(|p| p.environment.clone()).unwrap_or_default(),
        // What is done is noted for each layer where that layer's steps are begun.
        records: part.step.clone().filter(|_| part.layer == Layer::Runtime),
    }
}

/// Time between asking a cancelled command to end and killing all of it.
const CANCEL_GRACE: Duration = Duration::from_secs(5);

/// Runs shell-layer parts without a runtime: never metered.
async fn run_in_shell(
    hub: &Hub,
    sandbox: &Sandbox,
    description: &runtime::Description,
    id: &CommandId,
    parts: &[Part],
) -> Result<ActReport, Trouble> {
    let disk = |e: std::io::Error| {
        let error = SystemError::new("keep the run's output", e).on_disk(&sandbox.dir);
        Trouble::new(error.to_string(), error.hint)
    };
    prune_outputs(&sandbox.dir);
    let path = output_path(&sandbox.dir, id);
    let file = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(disk)?;
    let output = ShellOutput { file: std::sync::Mutex::new(file), redactor: Redactor::new(&description.secrets) };
    let cancelled = hub.shell_run(id);
    let setup = hub.get(&sandbox.workspace).map(|workspace| Arc::clone(&workspace.setup));
    let setup = setup.filter(|_| parts.iter().any(|part| part.step.is_some()));
    let _alone = match setup {
        Some(setup) => Some(setup.lock_owned().await),
        None => None,
    };
    let group = sandbox.cgroups.shell_child(&format!("runs/{id}"));
    let group = group.map_err(|e| Trouble::new(e.to_string(), e.hint))?;
    let mut code = 0;
    for part in parts {
        if parts.len() > 1 && !part.title.is_empty() {
            output.write(&RunFrame::Err(format!("== {}\n", part.title)));
        }
        let Some(service) = description.resolution.services.iter().find(|s| s.name == part.service) else { continue };
        let entry = Entry::new(sandbox, As::User, &group, &part.directory);
        let environment = shell::shell_variables(sandbox, service);
        let mut child =
            process::spawn(&entry, &part.argv, &environment).map_err(|e| Trouble::new(e.to_string(), e.hint))?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let copied = async {
            tokio::join!(output.copy(out, RunFrame::Out), output.copy(err, RunFrame::Err));
        };
        let status = tokio::select! {
            status = process::wait_copied(&mut child, copied) => status,
            () = cancelled.cancelled() => {
                process::stop(&group, CANCEL_GRACE).await;
                child.wait().await
            }
        };
        code = status.map_or(125, process::exit_code);
        if code != 0 || cancelled.is_cancelled() {
            break;
        }
        if let Some((step, digest)) = &part.step
            && let Err(error) = crate::supervise::setup::record_done(&sandbox.dir, Layer::Shell, step, digest)
        {
            output.write(&RunFrame::Err(format!("== {step}: not kept as done: {error}\n")));
        }
    }
    output.write(&RunFrame::Exit(code));
    // Nothing of it is left but what it started to stay, in the way of daemons; then the group stays as well.
    let _ = group.remove();
    // Read before the run is forgotten, which cancels what is left of it.
    let was_cancelled = cancelled.is_cancelled();
    hub.cancel_shell_run(id);
    let state = match (was_cancelled && code != 0, code) {
        (true, _) => CommandState::Cancelled,
        (false, 0) => CommandState::Succeeded,
        (false, _) => CommandState::Failed,
    };
    let reason = (code != 0).then(|| format!("ended with status {code}"));
    Ok(ActReport { id: id.clone(), state, exit_code: Some(code), reason, answer: None })
}

#[derive(Debug)]
struct ShellOutput {
    file: std::sync::Mutex<std::fs::File>,
    redactor: Redactor,
}

impl ShellOutput {
    fn write(&self, frame: &RunFrame) {
        if let Ok(mut line) = serde_json::to_vec(frame) {
            line.push(b'\n');
            let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            // A full disk loses output, not the command's status.
            let _ = file.write_all(&line);
        }
    }

    async fn copy(&self, from: Option<impl tokio::io::AsyncRead + Unpin>, frame: fn(String) -> RunFrame) {
        let Some(from) = from else { return };
        let mut reader = tokio::io::BufReader::new(from);
        let mut line = Vec::new();
        while let Some(text) = crate::supervise::logs::next_line(&mut reader, &mut line).await {
            self.write(&frame(format!("{}\n", self.redactor.clean(&text))));
        }
    }
}

/// Waits for the end of a run that a supervisor has; `None` when no supervisor knows it (any more).
async fn follow(workspace: &Workspace, id: &CommandId) -> Option<ActReport> {
    let mut facts = workspace.runtime.subscribe();
    let mut seen = false;
    // After a start of the daemon the supervisor's first word takes a moment.
    let patience = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        {
            let now = facts.borrow_and_update();
            let known = now.snapshot.as_ref().and_then(|s| s.runs.iter().find(|run| run.id == *id));
            match known {
                Some(run) if run.state.is_final() => {
                    return Some(ActReport {
                        id: id.clone(),
                        state: run.state,
                        exit_code: run.exit_code,
                        reason: run.reason.clone(),
                        answer: None,
                    });
                }
                Some(_) if now.supervisor.is_some() => seen = true,
                Some(_) | None if seen => return None,
                Some(_) | None => {}
            }
        }
        if seen {
            facts.changed().await.ok()?;
        } else {
            tokio::time::timeout_at(patience, facts.changed()).await.ok()?.ok()?;
        }
    }
}
