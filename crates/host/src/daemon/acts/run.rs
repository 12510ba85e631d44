//! Runs of commands: set-up steps, tests and commands of one's own, in the layer that each belongs to, and resets.

use super::{interrupted, ready_sandbox};
use crate::{
    daemon::{
        copy,
        hub::{Hub, Reset, RuntimeFacts, Workspace},
        runtime, shell,
    },
    supervise::{
        logs, process,
        protocol::{Ask, RunFrame, RunOrder, RunPart},
        redact::Redactor,
        runs::{output_path, prune_outputs},
        setup,
    },
    system::{
        SystemError,
        enter::{As, Entry},
        sandbox::{Sandbox, WORKSPACE},
    },
};
use envforge_api::{
    client::Client,
    command::{ActReport, RunSpec, RunTarget},
    ids::CommandId,
    names::ServiceName,
    public::{Commanded, WakeRequest},
    resource::ResourceKind,
    states::{CommandState, RuntimeState, Trouble},
};
use envforge_manifest::{Layer, ResolvedService, Step};
use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::oneshot;

/// One part of a run before its environment is known.
#[derive(Debug)]
struct Part {
    service: ServiceName,
    title: String,
    argv: Vec<String>,
    layer: Layer,
    directory: String,
    step: Option<(String, String)>,
}

pub(super) async fn run(
    hub: &Arc<Hub>,
    workspace: &Workspace,
    id: &CommandId,
    spec: &RunSpec,
) -> Result<ActReport, Trouble> {
    let sandbox = ready_sandbox(hub, workspace).await?;
    let intent = workspace.intent.borrow().clone();
    let description = runtime::describe(hub, &intent, &sandbox).await?;
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
        secrets: description.secrets.clone(),
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
    let is_awake = |facts: &RuntimeFacts| {
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
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(disk)?;
    let output = ShellOutput { file: Mutex::new(file), redactor: Redactor::new(&description.secrets) };
    let cancelled = hub.shell_run(id);
    let steps = hub.get(&sandbox.workspace).map(|workspace| Arc::clone(&workspace.setup));
    let steps = steps.filter(|_| parts.iter().any(|part| part.step.is_some()));
    let _alone = match steps {
        Some(steps) => Some(steps.lock_owned().await),
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
        let environment = shell::shell_variables(sandbox, service, &description.given);
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
            && let Err(error) = setup::record_done(&sandbox.dir, Layer::Shell, step, digest)
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
    file: Mutex<File>,
    redactor: Redactor,
}

impl ShellOutput {
    fn write(&self, frame: &RunFrame) {
        if let Ok(mut line) = serde_json::to_vec(frame) {
            line.push(b'\n');
            let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            // A full disk loses output, not the command's status.
            let _ = file.write_all(&line);
        }
    }

    async fn copy(&self, from: Option<impl tokio::io::AsyncRead + Unpin>, frame: fn(String) -> RunFrame) {
        let Some(from) = from else { return };
        let mut reader = tokio::io::BufReader::new(from);
        let mut line = Vec::new();
        while let Some(text) = logs::next_line(&mut reader, &mut line).await {
            self.write(&frame(format!("{}\n", self.redactor.clean(&text))));
        }
    }
}

/// Waits for the end of a run that a supervisor has; `None` when no supervisor knows it (any more).
pub(super) async fn follow(workspace: &Workspace, id: &CommandId) -> Option<ActReport> {
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
