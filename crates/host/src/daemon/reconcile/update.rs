//! A runtime that stays awake: services started, stopped and restarted, holds, edits of envforge.yml.

use super::{Memory, change, set_up_behind};
use crate::{
    daemon::{
        hub::{Hub, Reset, Workspace},
        runtime, shell, values,
    },
    supervise::protocol::{Ask, ProcessSpec, ResetOrder, ResourceSpec, RuntimeSpec, Snapshot},
    system::{files, sandbox::Sandbox},
};
use envforge_api::{
    host::{Refusal, WorkspaceIntent},
    names::ServiceName,
    resource::ResourceMode,
    states::{Health, ServiceState, Trouble},
    time::Timestamp,
};
use envforge_manifest::FoundManifest;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::sync::Mutex;

pub(super) fn remember_restarts(made: &Sandbox, intent: &WorkspaceIntent, memory: &mut Memory) {
    if memory.acted_restarts == intent.restarts {
        return;
    }
    memory.acted_restarts.clone_from(&intent.restarts);
    let bytes = serde_json::to_vec(&memory.acted_restarts).unwrap_or_default();
    if let Err(error) = files::write_durably(&made.dir.join("state").join("restarts.json"), &bytes, 0o600) {
        tracing::error!(%error, "acted restarts cannot be kept: they may be done again");
    }
}

/// Services were stopped, started or restarted, or a hold changed, while the runtime is awake.
pub(super) async fn update(
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
    // A restart may be the first to ask for a database.
    let described = async {
        let description = runtime::describe(hub, intent, &made).await?;
        runtime::ensure_templates(hub, &description).await?;
        Ok(description)
    };
    let description = match described.await {
        Ok(description) => description,
        Err(trouble) => {
            change(hub, workspace, |facts| facts.failed = Some((intent.generation, trouble, Timestamp::now())));
            return;
        }
    };
    let was_stopped =
        runtime::stopped_processes(&spec.services, &spec.stopped.iter().filter_map(|s| s.parse().ok()).collect());
    let stopped = runtime::stopped_processes(&description.processes, &intent.stopped);
    let is_asked = |process: &ProcessSpec| asked.iter().any(|service| service.as_str() == process.service);
    let starts = |process: &ProcessSpec| was_stopped.contains(&process.name) && !stopped.contains(&process.name);
    // An invalid edit leaves what runs untouched: a service that became blocked is not restarted.
    let is_refused = |process: &ProcessSpec| {
        let runs = spec.services.iter().any(|known| known.name == process.name && known.blocked.is_none());
        process.blocked.is_some() && runs && !was_stopped.contains(&process.name)
    };
    let concerned = || description.processes.iter().filter(|p| is_asked(p) || starts(p));
    let fresh: Vec<_> = concerned().filter(|p| !is_refused(p)).cloned().collect();
    let mut refused = facts.refused.clone();
    refused.retain(|refusal| !asked.contains(&refusal.service));
    refused.extend(concerned().filter(|p| is_refused(p) && !p.worker).filter_map(|process| {
        let reason = process.blocked.clone()?.reason;
        Some(Refusal { service: process.service.parse().ok()?, generation: intent.generation, reason })
    }));
    let restart: BTreeSet<String> = fresh.iter().filter(|p| is_asked(p)).map(|p| p.name.clone()).collect();
    // What others run with stays as it is, whatever their files say by now.
    let is_fresh = |service: &ServiceName| fresh.iter().any(|process| process.service == service.as_str());
    if let Err(error) = runtime::write_env_files(&made, &description, is_fresh) {
        tracing::error!(%error, "environment files cannot be written");
    }
    let (mut next, resources) = renewed(spec, &fresh, &description);
    next.stopped.clone_from(&stopped);
    next.generation = intent.generation;
    next.hold_until = intent.hold_until;
    keep(&made, &next);
    memory.spec = Some(next);
    let waits_for_shell = fresh.iter().any(|p| p.awaits_shell);
    let hold = supervisor.ask(Ask::Hold { until: intent.hold_until }).await;
    let (generation, secrets) = (intent.generation, description.secrets.clone());
    let asked = Ask::Update { processes: fresh, resources, restart, stopped, generation, secrets };
    match hold.and(supervisor.ask(asked).await) {
        Ok(()) => {
            remember_restarts(&made, intent, memory);
            // Until its own word comes: the same step is not taken twice.
            change(hub, workspace, |facts| {
                facts.diagnostics = description.diagnostics();
                facts.refused = refused;
                facts.failed = None;
                if let Some(known) = &mut facts.snapshot {
                    known.generation = intent.generation.max(known.generation);
                }
            });
            if waits_for_shell {
                // Edited steps run again before the service does: from here on it waits for their end.
                set_up_behind(hub, workspace, intent.clone(), made.clone(), setup);
            }
        }
        Err(trouble) => {
            tracing::info!(workspace = %workspace.id, reason = %trouble.reason, generation = %snapshot.generation, "the runtime takes no update now");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A provisioner answered: what waited for it gets its values. What runs goes on as it is.
pub(super) async fn refresh(
    hub: &Arc<Hub>,
    workspace: &Arc<Workspace>,
    intent: &WorkspaceIntent,
    memory: &mut Memory,
    setup: &Arc<Mutex<()>>,
) {
    let (Some(supervisor), Some(spec)) = (workspace.runtime.borrow().supervisor.clone(), memory.spec.clone()) else {
        return;
    };
    let made = spec.sandbox.clone();
    let description = match runtime::describe(hub, intent, &made).await {
        Ok(description) => description,
        Err(trouble) => {
            tracing::warn!(workspace = %workspace.id, reason = %trouble.reason, "what a provisioner answered cannot be described");
            return;
        }
    };
    let is_cloud = |of: &ResourceSpec| of.resource.mode == ResourceMode::Cloud;
    let of_cloud = |all: &[ResourceSpec]| all.iter().filter(|of| is_cloud(of)).cloned().collect::<Vec<_>>();
    if of_cloud(&description.resources) == of_cloud(&spec.resources) {
        return;
    }
    let consumers: BTreeSet<ServiceName> =
        description.resources.iter().filter(|of| is_cloud(of)).flat_map(|of| of.resource.consumers.clone()).collect();
    let snapshot = workspace.runtime.borrow().snapshot.clone();
    let runs = |name: &str| snapshot.as_ref().is_some_and(|snapshot| is_running(snapshot, name));
    let waits = |process: &&ProcessSpec| {
        consumers.iter().any(|service| service.as_str() == process.service)
            && !runs(&process.name)
            && !spec.services.iter().any(|known| known == *process)
    };
    let fresh: Vec<ProcessSpec> = description.processes.iter().filter(waits).cloned().collect();
    let is_fresh = |service: &ServiceName| fresh.iter().any(|process| process.service == service.as_str());
    if let Err(error) = runtime::write_env_files(&made, &description, is_fresh) {
        tracing::error!(%error, "environment files cannot be written");
    }
    let (stopped, generation) = (spec.stopped.clone(), spec.generation);
    let (next, resources) = renewed(spec, &fresh, &description);
    keep(&made, &next);
    memory.spec = Some(next);
    let waits_for_shell = fresh.iter().any(|process| process.awaits_shell);
    let (restart, secrets) = (BTreeSet::new(), description.secrets.clone());
    let asked = Ask::Update { processes: fresh, resources, restart, stopped, generation, secrets };
    match supervisor.ask(asked).await {
        Ok(()) if waits_for_shell => set_up_behind(hub, workspace, intent.clone(), made, setup),
        Ok(()) => {}
        // It goes to sleep, or is replaced and reads what was kept.
        Err(trouble) => {
            tracing::info!(workspace = %workspace.id, reason = %trouble.reason, "the runtime takes no answer of a provisioner now");
        }
    }
}

/// Whether a service has a process, as far as it shows.
fn is_running(snapshot: &Snapshot, name: &str) -> bool {
    let service = snapshot.services.iter().find(|service| service.name == name);
    service.is_some_and(|service| match service.stated.state {
        ServiceState::Healthy | ServiceState::Crashed => true,
        // One that waits has no health.
        ServiceState::Unhealthy | ServiceState::Starting => service.health != Health::None,
        ServiceState::Stopped => false,
    })
}

/// The description of a runtime with these processes as they are now, and every resource that any of its services needs.
fn renewed(
    mut spec: RuntimeSpec,
    fresh: &[ProcessSpec],
    description: &runtime::Description,
) -> (RuntimeSpec, Vec<ResourceSpec>) {
    for process in fresh {
        match spec.services.iter_mut().find(|known| known.name == process.name) {
            Some(known) => *known = process.clone(),
            None => spec.services.push(process.clone()),
        }
    }
    // A file that cannot be used now does not take away what its service runs with.
    let mut resources = description.resources.clone();
    let declared = |kept: &ResourceSpec| {
        let same = |new: &ResourceSpec| {
            (new.resource.kind, &new.resource.service) == (kept.resource.kind, &kept.resource.service)
        };
        description.resources.iter().any(same)
    };
    resources.extend(spec.resources.iter().filter(|kept| !declared(kept)).cloned());
    spec.resources.clone_from(&resources);
    // What others run with is masked still.
    spec.secrets
        .extend(description.secrets.iter().filter(|new| !spec.secrets.contains(new)).cloned().collect::<Vec<_>>());
    (spec, resources)
}

/// Writes the description down, for a supervisor that has to take over.
fn keep(made: &Sandbox, spec: &RuntimeSpec) {
    if let Err(error) = serde_json::to_vec(spec)
        .map_err(std::io::Error::from)
        .and_then(|bytes| files::write_durably(&runtime::spec_path(&made.dir), &bytes, 0o600).map_err(|e| e.source))
    {
        tracing::error!(%error, "the runtime's description cannot be written");
    }
}

/// Data services are to be wiped and filled anew, and their consumers restarted.
pub(super) async fn reset(
    hub: &Arc<Hub>,
    workspace: &Arc<Workspace>,
    intent: &WorkspaceIntent,
    memory: &mut Memory,
    setup: &Arc<Mutex<()>>,
    reset: Reset,
) {
    let outcome = begin_reset(hub, workspace, intent, memory, setup, &reset).await;
    // An act that nobody waits for any more goes on all the same.
    let _ = reset.answer.send(outcome);
}

async fn begin_reset(
    hub: &Arc<Hub>,
    workspace: &Arc<Workspace>,
    intent: &WorkspaceIntent,
    memory: &mut Memory,
    setup: &Arc<Mutex<()>>,
    reset: &Reset,
) -> Result<(), Trouble> {
    let facts = workspace.runtime.borrow().clone();
    let (Some(supervisor), Some(spec)) = (facts.supervisor, memory.spec.clone()) else {
        return Err(Trouble::new("the runtime went to sleep before the reset began", "run it again"));
    };
    if !supervisor.knows_reset() {
        return Err(Trouble::new("the runtime was woken by an older version", "`envforge sleep`, then try again"));
    }
    let made = spec.sandbox.clone();
    // From here on it is wiped whatever happens: by this runtime, or by the next one.
    values::renew(&made.dir, &reset.kinds).map_err(|e| Trouble::new(e.to_string(), e.hint))?;
    let description = runtime::describe(hub, intent, &made).await?;
    let of_kind = description.resources.iter().filter(|known| reset.kinds.contains(&known.resource.kind));
    let consumers: BTreeSet<&ServiceName> = of_kind.flat_map(|known| &known.resource.consumers).collect();
    let uses = |process: &&ProcessSpec| consumers.iter().any(|service| service.as_str() == process.service);
    let fresh: Vec<ProcessSpec> = description.processes.iter().filter(uses).cloned().collect();
    if let Err(error) = runtime::write_env_files(&made, &description, |service| consumers.contains(service)) {
        tracing::error!(%error, "environment files cannot be written");
    }
    let (next, resources) = renewed(spec, &fresh, &description);
    keep(&made, &next);
    memory.spec = Some(next);
    let waits_for_shell = fresh.iter().any(|process| process.awaits_shell);
    let order = ResetOrder {
        id: reset.id.clone(),
        kinds: reset.kinds.clone(),
        processes: fresh,
        resources,
        secrets: description.secrets.clone(),
    };
    supervisor.ask(Ask::Reset(order)).await?;
    if waits_for_shell {
        set_up_behind(hub, workspace, intent.clone(), made, setup);
    }
    Ok(())
}

/// Compares the envforge.yml files of an awake runtime with what it runs.
pub(super) async fn look_for_edits(hub: &Hub, workspace: &Workspace, intent: &WorkspaceIntent) {
    let (Some(made), Some(snapshot)) =
        (workspace.sandbox.borrow().clone(), workspace.runtime.borrow().snapshot.clone())
    else {
        return;
    };
    let found = shell::read_manifests(&made, &intent.spec).await;
    shell::show_faces(hub, workspace, &intent.spec, &found);
    let mut stale = BTreeSet::new();
    let mut diagnostics = Vec::new();
    for (service, manifest) in &found {
        let digest = match manifest {
            FoundManifest::Good(manifest) => manifest.digest.clone(),
            // What runs without a usable one has no digest either.
            FoundManifest::Bad(findings) => {
                diagnostics.extend(findings.iter().cloned());
                String::new()
            }
            FoundManifest::Missing(_) => String::new(),
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
