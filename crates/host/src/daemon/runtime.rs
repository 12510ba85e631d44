//! START_RUNTIME up to the supervisor: read every envforge.yml, resolve it against the project, decide every value,
//! write env files and the runtime's description.

use super::{
    cloud, elsewhere,
    hub::Hub,
    secrets::{self, Given},
    shell,
    supervisor::Prepared,
    values::{self, Values},
};
use crate::{
    resources::{self, storage::Place},
    supervise::{
        protocol::{ProcessSpec, ResourceSpec, RuntimeSpec, SeedStep, SetupStep, VERSION},
        receipt,
        redact::{MASK, Redactor},
        setup::{Done, read_done},
    },
    system::{
        SystemError, boot,
        enter::base_environment,
        files::{self, Beneath},
        sandbox::Sandbox,
    },
};
use envforge_api::{
    host::{DesiredRuntime, WorkspaceIntent},
    ids::RuntimeInstanceId,
    names::ServiceName,
    problem::Diagnostic,
    resource::{ResourceKind, ResourceMode},
    secret::Secret,
    states::Trouble,
};
use envforge_manifest::{EnvValue, Layer, Resolution, ResolvedResource, ResolvedService, resolve};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// Milliseconds between SIGTERM and SIGKILL for services.
const GRACE_MS: u64 = 10_000;

/// Where the description of the current instance is.
#[must_use]
pub(super) fn spec_path(sandbox_dir: &Path) -> PathBuf {
    sandbox_dir.join("state").join("runtime.json")
}

/// Everything that is known about a workspace's processes before they start.
#[derive(Debug)]
pub(super) struct Description {
    /// Processes, in the project's order.
    pub(super) processes: Vec<ProcessSpec>,
    /// Resources.
    pub(super) resources: Vec<ResourceSpec>,
    /// The joined manifests.
    pub(super) resolution: Resolution,
    /// Values to mask.
    pub(super) secrets: Vec<Secret>,
    /// What the organization gave.
    pub(super) given: Given,
    values: Values,
    elsewhere: elsewhere::All,
}

impl Description {
    /// Names the data that a service uses: its runtime steps are done for these.
    #[must_use]
    pub(super) fn data_of(&self, service: &ResolvedService) -> String {
        self.elsewhere.data_of(&self.values, &service.name, service.declared.keys().copied())
    }

    /// Whether these resources are servers of the workspace's own.
    ///
    /// # Errors
    /// The first that is none.
    pub(super) fn can_be_reset(&self, kinds: &BTreeSet<ResourceKind>) -> Result<(), Trouble> {
        for kind in kinds {
            let Some(known) = self.resources.iter().find(|known| known.resource.kind == *kind) else {
                let all: BTreeSet<&str> = self.resources.iter().map(|known| known.resource.kind.as_str()).collect();
                let all = all.into_iter().collect::<Vec<_>>().join(", ");
                let hint = if all.is_empty() { "it has none".into() } else { format!("it has: {all}") };
                return Err(Trouble::new(format!("no service of the workspace uses {kind}"), hint));
            };
            if known.resource.mode != ResourceMode::Managed {
                let mode = known.resource.mode;
                let hint = "only what is managed can be reset: its data is the workspace's own";
                return Err(Trouble::new(format!("{kind} is {mode}"), hint));
            }
            if let Some(trouble) = &known.blocked {
                return Err(Trouble::new(format!("{kind} is blocked: {}", trouble.reason), trouble.hint.clone()));
            }
        }
        Ok(())
    }

    /// Findings of all manifests.
    #[must_use]
    pub(super) fn diagnostics(&self) -> Vec<Diagnostic> {
        self.resolution.diagnostics.clone()
    }
}

/// Reads the working tree and decides every value.
///
/// # Errors
/// When the disk refuses. What is wrong with one service blocks that service alone.
pub(super) async fn describe(hub: &Hub, intent: &WorkspaceIntent, sandbox: &Sandbox) -> Result<Description, Trouble> {
    let system = |e: SystemError| Trouble::new(e.to_string(), e.hint);
    let found = shell::read_manifests(sandbox, &intent.spec).await;
    let resolution = resolve(&intent.spec, &found, &shell::facts(intent));
    let values = values::complete(sandbox, &resolution.resources).map_err(system)?;
    let given =
        secrets::fetch(hub, &sandbox.dir, &intent.workspace, &intent.project, &resolution).await.map_err(system)?;
    let done = read_done(&sandbox.dir, Layer::Runtime);
    let asked = hub.get(&intent.workspace).map(|workspace| workspace.cloud.borrow().clone()).unwrap_or_default();
    let elsewhere = elsewhere::All::of(&resolution.resources, &given, &cloud::known(&sandbox.dir, &asked));
    let known = Known { values: &values, given: &given, elsewhere: &elsewhere, done: &done };
    let each = |r| resource(r, known, sandbox, intent.storage_url.as_deref());
    let resources: Vec<ResourceSpec> = resolution.resources.iter().map(each).collect();
    let mut processes = Vec::new();
    for service in &resolution.services {
        processes.extend(processes_of(sandbox, service, &resources, known));
    }
    let secrets = values.secrets().chain(given.masked()).cloned().chain(elsewhere.masked()).collect();
    shell::write_context(sandbox, intent, &found).map_err(system)?;
    Ok(Description { processes, resources, resolution, secrets, given, values, elsewhere })
}

/// What decides the values of resources and services.
#[derive(Debug, Clone, Copy)]
struct Known<'a> {
    values: &'a Values,
    given: &'a Given,
    elsewhere: &'a elsewhere::All,
    done: &'a Done,
}

fn resource(resolved: &ResolvedResource, known: Known<'_>, sandbox: &Sandbox, storage: Option<&str>) -> ResourceSpec {
    let (kind, values) = (resolved.kind, known.values);
    let elsewhere = known.elsewhere.get(resolved);
    let (fields, blocked) = match (resolved.mode, elsewhere.map(|elsewhere| elsewhere.fields.clone())) {
        (ResourceMode::Managed, _) => {
            let blocked = resources::driver(kind).program(Place::of(sandbox).home()).err();
            (values.fields(kind, resolved.service.as_ref(), storage), blocked)
        }
        (ResourceMode::Provided | ResourceMode::Cloud, Some(Ok(fields))) => (fields, None),
        (ResourceMode::Provided | ResourceMode::Cloud, Some(Err(trouble))) => (BTreeMap::new(), Some(trouble)),
        (ResourceMode::Disabled | ResourceMode::Provided | ResourceMode::Cloud, _) => (BTreeMap::new(), None),
    };
    let of_data = elsewhere.map(|elsewhere| format!(" {kind} {}", elsewhere.data)).unwrap_or_default();
    let seeds = resolved.seeds.iter().map(|seed| SeedStep {
        name: format!("{kind}.seed.{}", seed.service),
        directory: seed.directory.clone(),
        file: seed.file.clone(),
        digest: values.data_of([kind]) + &of_data,
    });
    // What is provided is others' too: nobody fills it unasked.
    let seeds = seeds.filter(|_| resolved.mode != ResourceMode::Provided);
    let seeds = seeds.filter(|seed| known.done.get(&seed.name) != Some(&seed.digest)).collect();
    let coming = elsewhere.is_some_and(|elsewhere| elsewhere.coming);
    ResourceSpec { resource: resolved.clone(), fields, blocked, seeds, reset: values.resets(kind), coming }
}

fn processes_of(
    sandbox: &Sandbox,
    service: &ResolvedService,
    resources: &[ResourceSpec],
    known: Known<'_>,
) -> Vec<ProcessSpec> {
    let (declared, unset) = declared_environment(service, resources, known.given);
    let mut environment: BTreeMap<String, Secret> =
        base_environment(&sandbox.accounts.user).into_iter().map(|(name, value)| (name, Secret::new(value))).collect();
    environment.extend(declared.into_iter().map(|variable| (variable.name, variable.value)));
    let blocked = service.blocked.clone().or(unset);
    let data = known.elsewhere.data_of(known.values, &service.name, service.declared.keys().copied());
    let setup = service.setup.iter().filter(|step| step.layer == Layer::Runtime).filter_map(|step| {
        let name = format!("{}.{}", service.name, step.name);
        let digest = shell::step_digest(sandbox, &service.directory, step, &data);
        (known.done.get(&name) != Some(&digest)).then(|| SetupStep { name, run: step.run.clone(), digest })
    });
    let setup: Vec<SetupStep> = setup.collect();
    let awaits_shell = service.setup.iter().any(|step| step.layer == Layer::Shell);
    // What is asked for right now is waited for even where it may be missing: its value would be.
    let waits = |kind: ResourceKind, required: bool| required || known.elsewhere.is_coming(kind, &service.name);
    let requires: BTreeSet<ResourceKind> =
        service.declared.iter().filter(|(kind, required)| waits(**kind, **required)).map(|(kind, _)| *kind).collect();
    let process = |name: String, worker: bool, command: &str| ProcessSpec {
        name,
        service: service.name.to_string(),
        worker,
        digest: service.digest.clone(),
        directory: service.directory.clone(),
        command: command.to_owned(),
        environment: environment.clone(),
        health: if worker { None } else { service.health.clone() },
        port: if worker { None } else { service.http_port },
        requires: requires.clone(),
        setup: setup.clone(),
        awaits_shell,
        blocked: blocked.clone(),
    };
    let mut all = Vec::new();
    // One that cannot be started is shown all the same.
    if service.command.is_some() || service.workers.is_empty() {
        all.push(process(service.name.to_string(), false, service.command.as_deref().unwrap_or_default()));
    }
    all.extend(
        service.workers.iter().map(|(name, command)| process(format!("{}.{name}", service.name), true, command)),
    );
    all
}

/// A variable of a service.
struct Variable {
    name: String,
    value: Secret,
    /// It is a secret as a whole, however short.
    hidden: bool,
}

/// What the service declared, with `PORT`; and what is wrong with the first secret that is not there.
fn declared_environment(
    service: &ResolvedService,
    resources: &[ResourceSpec],
    given: &Given,
) -> (Vec<Variable>, Option<Trouble>) {
    let mut all = Vec::new();
    let mut unset = None;
    for (name, value) in &service.environment {
        let hidden = matches!(value, EnvValue::Secret { .. });
        let value = match value {
            EnvValue::Known { text } => Some(Secret::new(text.clone())),
            EnvValue::Resource { kind, field } => {
                let its = |r: &&ResourceSpec| r.resource.service.as_ref().is_none_or(|owner| *owner == service.name);
                let of_kind = resources.iter().filter(|r| r.resource.kind == *kind && r.blocked.is_none());
                of_kind.filter(its).find_map(|r| r.fields.get(field).cloned())
            }
            EnvValue::Secret { name } => {
                let value = given.get(name).cloned();
                if value.is_none() {
                    unset.get_or_insert_with(|| given.missing(name));
                }
                value
            }
        };
        if let Some(value) = value {
            all.push(Variable { name: name.clone(), value, hidden });
        }
    }
    if let Some(port) = service.http_port {
        all.push(Variable { name: "PORT".into(), value: Secret::new(port.to_string()), hidden: false });
    }
    (all, unset)
}

/// Writes what the environment of each of these services holds: for its processes' owner as `/workspace/.envforge/env/<service>.env`
/// (0600), and for `envforge env` beside the workspace.
///
/// # Errors
/// When the disk refuses.
pub(super) fn write_env_files(
    sandbox: &Sandbox,
    description: &Description,
    is_wanted: impl Fn(&ServiceName) -> bool,
) -> Result<(), SystemError> {
    use super::streams::env::{EnvFile, EnvVariable};
    let redactor = Redactor::new(&description.secrets);
    let own = sandbox.dir.join("state").join("env");
    files::ensure_dir(&own, 0o700)?;
    let tree = Beneath::open(&sandbox.files())?;
    tree.ensure_dir(Path::new(".envforge/env"), 0o700, &sandbox.accounts.user)?;
    for service in description.resolution.services.iter().filter(|service| is_wanted(&service.name)) {
        let (declared, _) = declared_environment(service, &description.resources, &description.given);
        let mut text = String::new();
        for Variable { name, value, .. } in &declared {
            text.push_str(&format!("{name}={}\n", quoted(value.expose())));
        }
        let path = PathBuf::from(format!(".envforge/env/{}.env", service.name));
        tree.write(&path, text.as_bytes(), 0o600, &sandbox.accounts.user)?;
        let shown = |v: &Variable| if v.hidden { MASK.to_owned() } else { redactor.clean(v.value.expose()) };
        let variables = declared
            .into_iter()
            .map(|variable| EnvVariable { shown: shown(&variable), name: variable.name, value: variable.value })
            .collect();
        let bytes = serde_json::to_vec(&EnvFile { variables }).unwrap_or_default();
        files::write_whole(&own.join(format!("{}.json", service.name)), &bytes, 0o600)?;
    }
    Ok(())
}

/// As a POSIX shell reads it back with `.` or `set -a`.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@,+%".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\'', r"'\''"))
}

/// Waits for the prepared data that the description's servers are made from.
///
/// # Errors
/// When it cannot be made.
pub(super) async fn ensure_templates(hub: &Hub, description: &Description) -> Result<(), Trouble> {
    let wanted = |r: &ResourceSpec| {
        let managed = r.resource.mode == ResourceMode::Managed && r.blocked.is_none();
        managed && r.resource.kind == ResourceKind::Database
    };
    super::storage::note_need(hub, &description.resources);
    if description.resources.iter().any(wanted) { super::ensure_database_template(hub).await } else { Ok(()) }
}

/// Makes the description of a new instance, with everything that it relies on.
///
/// # Errors
/// When a server's prepared data cannot be made or the disk refuses.
pub(super) async fn make_spec(
    hub: &Hub,
    intent: &WorkspaceIntent,
    sandbox: &Sandbox,
) -> Result<(RuntimeSpec, Description), Trouble> {
    let system = |e: SystemError| Trouble::new(e.to_string(), e.hint);
    secrets::forget_former(&sandbox.dir).map_err(system)?;
    let description = describe(hub, intent, sandbox).await?;
    ensure_templates(hub, &description).await?;
    write_env_files(sandbox, &description, |_| true).map_err(system)?;
    let trigger = match &intent.runtime {
        DesiredRuntime::Awake { trigger } => trigger.clone(),
        DesiredRuntime::Asleep { .. } => "wake".into(),
    };
    let boot = boot::boot_id().map_err(system)?;
    let spec = RuntimeSpec {
        version: VERSION,
        instance: RuntimeInstanceId::generate(),
        previous: receipt::predecessor(&sandbox.dir, &boot),
        boot,
        generation: intent.generation,
        sandbox: sandbox.clone(),
        trigger,
        size: description.resolution.size,
        sleep_after_ms: description.resolution.sleep_after_seconds.saturating_mul(1000),
        hold_until: intent.hold_until,
        resources: description.resources.clone(),
        services: description.processes.clone(),
        stopped: stopped_processes(&description.processes, &intent.stopped),
        secrets: description.secrets.clone(),
        grace_ms: GRACE_MS,
        templates: hub.templates(),
    };
    Ok((spec, description))
}

/// Writes the description of a new instance, and tells it to the supervisor that is to begin with it.
///
/// # Errors
/// When the disk refuses.
pub(super) async fn write_spec(spec: &RuntimeSpec, to: &mut Prepared) -> Result<(), Trouble> {
    let bytes = serde_json::to_vec(spec).map_err(|e| Trouble::new(e.to_string(), "this is a defect of EnvForge"))?;
    let (path, kept) = (spec_path(&spec.sandbox.dir), bytes.clone());
    let written = tokio::task::spawn_blocking(move || files::write_durably(&path, &kept, 0o600));
    let ((), written) = tokio::join!(to.describe(&bytes), written);
    written.map_err(|e| Trouble::new(e.to_string(), "wake again"))?.map_err(|e| Trouble::new(e.to_string(), e.hint))
}

/// The processes of stopped services.
#[must_use]
pub(super) fn stopped_processes(processes: &[ProcessSpec], stopped: &BTreeSet<ServiceName>) -> BTreeSet<String> {
    let is_stopped = |p: &&ProcessSpec| stopped.iter().any(|s| s.as_str() == p.service || s.as_str() == p.name);
    processes.iter().filter(is_stopped).map(|p| p.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_in_env_files_are_read_back_as_they_are() {
        for value in ["", "plain", "a b", "it's", "$HOME `x` \"q\" \\"] {
            let script = format!("X={}; printf %s \"$X\"", quoted(value));
            let out = std::process::Command::new("/bin/sh").args(["-c", &script]).output().expect("sh");
            assert_eq!(String::from_utf8_lossy(&out.stdout), value);
        }
    }
}
