//! START_RUNTIME up to the supervisor: read every envforge.yml, resolve it against the project, decide every value,
//! write env files and the runtime's description.

use super::{
    hub::{Hub, Workspace},
    shell,
};
use crate::{
    resources::{
        self,
        storage::{Keyring, Place},
    },
    supervise::{
        protocol::{ProcessSpec, ResourceSpec, RuntimeSpec, SeedStep, SetupStep, VERSION},
        redact::Redactor,
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
    ids::{RuntimeInstanceId, WorkspaceId},
    names::ServiceName,
    problem::Diagnostic,
    resource::{ResourceKind, ResourceMode},
    secret::Secret,
    states::Trouble,
};
use envforge_manifest::{EnvValue, Layer, Resolution, ResolvedResource, ResolvedService, resolve};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
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
    values: Values,
}

impl Description {
    /// Names the data that a service uses: its runtime steps are done for these.
    #[must_use]
    pub(super) fn data_of(&self, service: &ResolvedService) -> String {
        self.values.data_of(service.declared.keys().copied())
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

/// Values of managed resources that the host made up: `state/resources.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Values {
    #[serde(default)]
    passwords: BTreeMap<ResourceKind, Secret>,
    /// Of databases that a service has for itself.
    #[serde(default)]
    passwords_of_services: BTreeMap<ServiceName, Secret>,
    /// Numbers of the Redis databases that services have for themselves. None is ever given to another.
    #[serde(default)]
    numbers: BTreeMap<ResourceKind, BTreeMap<ServiceName, u16>>,
    /// Names the data of this workspace: new data has a new name.
    #[serde(default)]
    data: String,
    /// How often the data of one resource was made anew.
    #[serde(default)]
    resets: BTreeMap<ResourceKind, u32>,
    #[serde(default)]
    storage: Keyring,
}

impl Values {
    /// Makes up what is missing.
    fn complete(&mut self, workspace: &WorkspaceId, resources: &[ResolvedResource]) {
        self.passwords.entry(ResourceKind::Database).or_insert_with(|| Secret::random(20));
        if self.data.is_empty() {
            self.data = Secret::random(10).expose().to_owned();
        }
        let managed = |r: &&ResolvedResource| r.kind == ResourceKind::Storage && r.mode == ResourceMode::Managed;
        resources.iter().filter(managed).for_each(|r| self.storage.complete(workspace, r.service.as_ref()));
        for (kind, service) in resources.iter().filter_map(|r| Some((r.kind, r.service.clone()?))) {
            match kind {
                ResourceKind::Database => {
                    self.passwords_of_services.entry(service).or_insert_with(|| Secret::random(20));
                }
                ResourceKind::Cache | ResourceKind::Queue => {
                    let given = self.numbers.values().flat_map(BTreeMap::values).max();
                    let next = given.map_or(resources::SHARED_NUMBERS, |last| last + 1);
                    self.numbers.entry(kind).or_default().entry(service).or_insert(next);
                }
                ResourceKind::Storage | ResourceKind::Mail => {}
            }
        }
    }

    fn fields(&self, kind: ResourceKind, service: Option<&ServiceName>) -> BTreeMap<String, Secret> {
        let none = Secret::new(String::new());
        let (password, number) = match service {
            None => (self.passwords.get(&kind), Some(u16::from(kind == ResourceKind::Queue))),
            Some(service) => (
                self.passwords_of_services.get(service),
                self.numbers.get(&kind).and_then(|of| of.get(service)).copied(),
            ),
        };
        let (password, number) = (password.unwrap_or(&none), number.unwrap_or_default());
        resources::fields(kind, resources::Part { service, password, number })
    }

    /// Names the data of these resources: other data has another name.
    fn data_of(&self, kinds: impl IntoIterator<Item = ResourceKind>) -> String {
        let mut name = self.data.clone();
        for kind in kinds {
            if let Some(times) = self.resets.get(&kind) {
                name.push_str(&format!(" {kind} {times}"));
            }
        }
        name
    }

    /// What must not be shown.
    fn secrets(&self) -> impl Iterator<Item = &Secret> {
        let of_storage = self.storage.all().map(|bucket| &bucket.keys.secret_key);
        self.passwords.values().chain(self.passwords_of_services.values()).chain(of_storage)
    }
}

fn values(sandbox: &Sandbox, resources: &[ResolvedResource]) -> Result<Values, SystemError> {
    let known = read_values(&sandbox.dir);
    let mut values = known.clone();
    values.complete(&sandbox.workspace, resources);
    if values != known {
        let bytes = serde_json::to_vec(&values).unwrap_or_default();
        files::write_durably(&values_path(&sandbox.dir), &bytes, 0o600)?;
    }
    Ok(values)
}

/// Has these resources made anew: whoever describes them from here on says so, and whoever starts their servers wipes them.
///
/// # Errors
/// When the disk refuses; nothing is to be wiped then.
pub(super) fn renew(sandbox_dir: &Path, kinds: &BTreeSet<ResourceKind>) -> Result<(), SystemError> {
    let mut values = read_values(sandbox_dir);
    for kind in kinds {
        *values.resets.entry(*kind).or_default() += 1;
    }
    let bytes = serde_json::to_vec(&values).unwrap_or_default();
    files::write_durably(&values_path(sandbox_dir), &bytes, 0o600)
}

/// The buckets of a workspace and their keys, as far as its host made them up already.
#[must_use]
pub(super) fn keyring(sandbox_dir: &Path) -> Keyring {
    read_values(sandbox_dir).storage
}

/// What must not be shown of a workspace, as far as its host made it up already.
#[must_use]
pub(super) fn redactor(sandbox_dir: &Path) -> Redactor {
    Redactor::new(read_values(sandbox_dir).secrets())
}

/// The fields of a managed resource, as far as its host made them up already.
#[must_use]
pub(super) fn fields_of(
    sandbox_dir: &Path,
    kind: ResourceKind,
    service: Option<&ServiceName>,
) -> BTreeMap<String, Secret> {
    read_values(sandbox_dir).fields(kind, service)
}

fn read_values(sandbox_dir: &Path) -> Values {
    let bytes = fs::read(values_path(sandbox_dir)).ok();
    bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// The values of a copied workspace, from those of its source: what names the data stays, since that is the same (what was
/// set up for it need not be set up again); everything that opens it is made anew.
#[must_use]
pub(super) fn values_of_copy(source: &[u8]) -> Vec<u8> {
    let known: Values = serde_json::from_slice(source).unwrap_or_default();
    let values = Values { numbers: known.numbers, data: known.data, resets: known.resets, ..Values::default() };
    serde_json::to_vec(&values).unwrap_or_default()
}

fn values_path(sandbox_dir: &Path) -> PathBuf {
    sandbox_dir.join("state").join("resources.json")
}

/// Reads the working tree and decides every value.
///
/// # Errors
/// When the disk refuses. What is wrong with one service blocks that service alone.
pub(super) async fn describe(intent: &WorkspaceIntent, sandbox: &Sandbox) -> Result<Description, Trouble> {
    let system = |e: SystemError| Trouble::new(e.to_string(), e.hint);
    let found = shell::read_manifests(sandbox, &intent.spec).await;
    let resolution = resolve(&intent.spec, &found, &shell::facts(intent));
    let values = values(sandbox, &resolution.resources).map_err(system)?;
    let done = read_done(&sandbox.dir, Layer::Runtime);
    let each = |r| resource(r, &values, &done, sandbox, intent.storage_url.as_deref());
    let resources: Vec<ResourceSpec> = resolution.resources.iter().map(each).collect();
    let mut processes = Vec::new();
    for service in &resolution.services {
        processes.extend(processes_of(sandbox, service, &resources, &values, &done));
    }
    let secrets = values.secrets().cloned().collect();
    shell::write_context(sandbox, intent, &found).map_err(system)?;
    Ok(Description { processes, resources, resolution, secrets, values })
}

fn resource(
    resolved: &ResolvedResource,
    values: &Values,
    done: &Done,
    sandbox: &Sandbox,
    storage: Option<&str>,
) -> ResourceSpec {
    let kind = resolved.kind;
    let not_here = || {
        Trouble::new(
            format!("this version provides no managed {kind}"),
            format!("set `resources: {{ {kind}: disabled }}` in the project file, or make it `required: false`"),
        )
    };
    let blocked = match resolved.mode {
        ResourceMode::Managed => match resources::driver(kind) {
            Some(driver) => driver.program(Place::of(sandbox).home()).err(),
            None => Some(not_here()),
        },
        ResourceMode::Disabled => None,
        ResourceMode::Provided | ResourceMode::Cloud => Some(Trouble::new(
            format!("{kind} is {}, which this version does not do", resolved.mode),
            format!("set `resources: {{ {kind}: managed }}` in the project file"),
        )),
    };
    let fields = match resolved.mode {
        ResourceMode::Managed if kind == ResourceKind::Storage => {
            let bucket = values.storage.bucket(resolved.service.as_ref());
            bucket.map(|bucket| bucket.fields(storage)).unwrap_or_default()
        }
        ResourceMode::Managed => values.fields(kind, resolved.service.as_ref()),
        ResourceMode::Provided | ResourceMode::Cloud | ResourceMode::Disabled => BTreeMap::new(),
    };
    let seeds = resolved.seeds.iter().map(|seed| SeedStep {
        name: format!("{kind}.seed.{}", seed.service),
        directory: seed.directory.clone(),
        file: seed.file.clone(),
        digest: values.data_of([kind]),
    });
    let seeds = seeds.filter(|seed| done.get(&seed.name) != Some(&seed.digest)).collect();
    let reset = values.resets.get(&kind).copied().unwrap_or_default();
    ResourceSpec { resource: resolved.clone(), fields, blocked, seeds, reset }
}

fn processes_of(
    sandbox: &Sandbox,
    service: &ResolvedService,
    resources: &[ResourceSpec],
    values: &Values,
    done: &Done,
) -> Vec<ProcessSpec> {
    let (declared, unset_secret) = declared_environment(service, resources);
    let mut environment: BTreeMap<String, Secret> =
        base_environment(&sandbox.accounts.user).into_iter().map(|(name, value)| (name, Secret::new(value))).collect();
    environment.extend(declared.iter().cloned());
    let blocked = service.blocked.clone().or_else(|| {
        unset_secret.map(|name| {
            Trouble::new(
                format!("the secret {name} is not set"),
                "secrets are not part of this version: write a value into `environment`",
            )
        })
    });
    let data = values.data_of(service.declared.keys().copied());
    let setup = service.setup.iter().filter(|step| step.layer == Layer::Runtime).filter_map(|step| {
        let name = format!("{}.{}", service.name, step.name);
        let digest = shell::step_digest(sandbox, &service.directory, step, &data);
        (done.get(&name) != Some(&digest)).then(|| SetupStep { name, run: step.run.clone(), digest })
    });
    let setup: Vec<SetupStep> = setup.collect();
    let awaits_shell = service.setup.iter().any(|step| step.layer == Layer::Shell);
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
        requires: service.declared.iter().filter(|(_, required)| **required).map(|(kind, _)| *kind).collect(),
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

/// What the service declared, with `PORT`; and the first secret that is not set.
fn declared_environment(
    service: &ResolvedService,
    resources: &[ResourceSpec],
) -> (Vec<(String, Secret)>, Option<String>) {
    let mut all = Vec::new();
    let mut unset = None;
    for (name, value) in &service.environment {
        let value = match value {
            EnvValue::Known { text } => Some(Secret::new(text.clone())),
            EnvValue::Resource { kind, field } => {
                let its = |r: &&ResourceSpec| r.resource.service.as_ref().is_none_or(|owner| *owner == service.name);
                let of_kind = resources.iter().filter(|r| r.resource.kind == *kind && r.blocked.is_none());
                of_kind.filter(its).find_map(|r| r.fields.get(field).cloned())
            }
            EnvValue::Secret { name } => {
                unset.get_or_insert_with(|| name.clone());
                None
            }
        };
        if let Some(value) = value {
            all.push((name.clone(), value));
        }
    }
    if let Some(port) = service.http_port {
        all.push(("PORT".into(), Secret::new(port.to_string())));
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
        let (declared, _) = declared_environment(service, &description.resources);
        let mut text = String::new();
        for (name, value) in &declared {
            text.push_str(&format!("{name}={}\n", quoted(value.expose())));
        }
        let path = PathBuf::from(format!(".envforge/env/{}.env", service.name));
        tree.write(&path, text.as_bytes(), 0o600, &sandbox.accounts.user)?;
        let variables = declared
            .into_iter()
            .map(|(name, value)| EnvVariable { shown: redactor.clean(value.expose()), name, value })
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
    let wanted = |r: &ResourceSpec| r.resource.kind == ResourceKind::Database && r.blocked.is_none();
    super::storage::note_need(hub, &description.resources);
    if description.resources.iter().any(wanted) { super::ensure_database_template(hub).await } else { Ok(()) }
}

/// Writes the description of a new instance; returns it.
///
/// # Errors
/// When a server's prepared data cannot be made or the disk refuses.
pub(super) async fn write_spec(
    hub: &Hub,
    workspace: &Workspace,
    intent: &WorkspaceIntent,
    sandbox: &Sandbox,
) -> Result<(RuntimeSpec, Description), Trouble> {
    let system = |e: SystemError| Trouble::new(e.to_string(), e.hint);
    let description = describe(intent, sandbox).await?;
    ensure_templates(hub, &description).await?;
    write_env_files(sandbox, &description, |_| true).map_err(system)?;
    let trigger = match &intent.runtime {
        DesiredRuntime::Awake { trigger } => trigger.clone(),
        DesiredRuntime::Asleep { .. } => "wake".into(),
    };
    let spec = RuntimeSpec {
        version: VERSION,
        instance: RuntimeInstanceId::generate(),
        boot: boot::boot_id().map_err(system)?,
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
    let bytes = serde_json::to_vec(&spec).map_err(|e| Trouble::new(e.to_string(), "this is a defect of EnvForge"))?;
    files::write_durably(&spec_path(&sandbox.dir), &bytes, 0o600).map_err(system)?;
    let _ = workspace;
    Ok((spec, description))
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
    use envforge_api::resource::ResourceScope;

    #[test]
    fn what_a_service_has_for_itself_keeps_its_names_and_is_no_other_s() {
        let resource = |kind, service: Option<&str>| ResolvedResource {
            kind,
            mode: ResourceMode::Managed,
            scope: ResourceScope::Service,
            service: service.map(|name| name.parse().expect("a name")),
            consumers: vec![],
            extensions: vec![],
            seeds: vec![],
        };
        let of = |service| {
            [ResourceKind::Cache, ResourceKind::Queue, ResourceKind::Database].map(|kind| resource(kind, service))
        };
        let mut values = Values::default();
        let id = WorkspaceId::generate();
        values.complete(&id, &of(Some("web-b")));
        let first = values.clone();
        // A service that is gone for a while, and back later, finds what it left.
        values.complete(&id, &of(Some("api")));
        values.complete(&id, &[of(None), of(Some("web-b"))].concat());
        let url = |values: &Values, kind, service: Option<&str>| {
            let service = service.map(|name| name.parse().expect("a name"));
            values.fields(kind, service.as_ref())["url"].expose().to_owned()
        };
        let all = [None, Some("web-b"), Some("api")];
        let urls = all.map(|service| {
            [ResourceKind::Cache, ResourceKind::Queue, ResourceKind::Database].map(|kind| url(&values, kind, service))
        });
        assert_eq!(urls.as_flattened().iter().collect::<BTreeSet<_>>().len(), 9, "each has its own: {urls:?}");
        assert_eq!(
            url(&first, ResourceKind::Database, Some("web-b")),
            url(&values, ResourceKind::Database, Some("web-b"))
        );
        assert!(urls[1][2].starts_with("postgres://app_web_b:") && urls[1][2].ends_with("@localhost:5432/app_web_b"));
        assert_eq!(&urls[0][..2], ["redis://localhost:6379/0", "redis://localhost:6379/1"]);
        assert_eq!(values.secrets().count(), 3);
    }

    #[test]
    fn a_copy_has_its_data_under_the_same_names_and_credentials_of_its_own() {
        let shared = ResolvedResource {
            kind: ResourceKind::Database,
            mode: ResourceMode::Managed,
            scope: ResourceScope::Workspace,
            service: None,
            consumers: vec![],
            extensions: vec![],
            seeds: vec![],
        };
        let mut source = Values::default();
        source.complete(&WorkspaceId::generate(), std::slice::from_ref(&shared));
        let copied = values_of_copy(&serde_json::to_vec(&source).expect("JSON"));
        let mut copy: Values = serde_json::from_slice(&copied).expect("values");
        copy.complete(&WorkspaceId::generate(), &[shared]);
        assert_eq!((&copy.data, &copy.numbers), (&source.data, &source.numbers));
        assert_ne!(copy.passwords, source.passwords);
        assert!(copy.secrets().all(|secret| !source.secrets().any(|of| of == secret)));
    }

    #[test]
    fn values_in_env_files_are_read_back_as_they_are() {
        for value in ["", "plain", "a b", "it's", "$HOME `x` \"q\" \\"] {
            let script = format!("X={}; printf %s \"$X\"", quoted(value));
            let out = std::process::Command::new("/bin/sh").args(["-c", &script]).output().expect("sh");
            assert_eq!(String::from_utf8_lossy(&out.stdout), value);
        }
    }
}
