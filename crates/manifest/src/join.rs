//! How a project and its manifests are joined. A pure function of what is known, so that every reason for which a
//! service cannot start is a value that a test can print.

use crate::{
    EnvSource, EnvValue, FoundManifest, Health, Probe, Resolution, ResolvedHealth, ResolvedResource, ResolvedService,
    Seed, ServiceField, ServiceManifest, WorkspaceFacts, WorkspaceField, project::value_text,
};
use envforge_api::{
    names::ServiceName,
    project::{BindingValue, ProjectService, ProjectSpec, ResourceSetting, RuntimeSetting},
    resource::{ResourceKind, ResourceMode, ResourceScope},
    states::Trouble,
};
use std::collections::BTreeMap;

/// What is known of one service before the services are joined.
struct Side<'a> {
    entry: &'a ProjectService,
    /// Absent when the manifest is missing or bad; the reason then.
    manifest: Result<&'a ServiceManifest, Trouble>,
    /// Ports after the project's overrides, by name.
    ports: BTreeMap<ServiceName, u16>,
    http_port: Option<u16>,
}

struct Join<'a> {
    spec: &'a ProjectSpec,
    workspace: &'a WorkspaceFacts,
    sides: Vec<Side<'a>>,
}

pub(crate) fn resolve(
    spec: &ProjectSpec,
    found: &BTreeMap<ServiceName, FoundManifest>,
    workspace: &WorkspaceFacts,
) -> Resolution {
    let sides = spec.services.iter().map(|entry| side(entry, found.get(&entry.name))).collect();
    let join = Join { spec, workspace, sides };
    let manifests = || join.sides.iter().filter_map(|side| side.manifest.as_ref().ok());
    let size = spec.runtime.size.or_else(|| manifests().filter_map(|m| m.size).max());
    let after = spec.runtime.sleep_after_seconds.or_else(|| manifests().filter_map(|m| m.sleep_after_seconds).max());
    let resources = join.resources();
    let mut taken: BTreeMap<u16, String> = resources
        .iter()
        .filter(|resource| resource.mode == ResourceMode::Managed)
        .map(|resource| (resource.kind.port(), format!("the resource `{}`", resource.kind)))
        .collect();
    let diagnostics = spec.services.iter().filter_map(|entry| match found.get(&entry.name) {
        Some(FoundManifest::Bad(findings)) => Some(findings.clone()),
        _ => None,
    });
    Resolution {
        services: join.sides.iter().map(|side| join.service(side, &mut taken)).collect(),
        resources,
        size: size.unwrap_or(RuntimeSetting::DEFAULT_SIZE),
        sleep_after_seconds: after.unwrap_or(RuntimeSetting::DEFAULT_SLEEP_AFTER_SECONDS),
        diagnostics: diagnostics.flatten().collect(),
    }
}

fn side<'a>(entry: &'a ProjectService, found: Option<&'a FoundManifest>) -> Side<'a> {
    let manifest = match found {
        Some(FoundManifest::Good(manifest)) => Ok(manifest.as_ref()),
        Some(FoundManifest::Missing(trouble)) => Err(trouble.clone()),
        Some(FoundManifest::Bad(findings)) => Err(bad(findings)),
        None => Err(Trouble::new(
            format!("the envforge.yml of `{}` was not found", entry.name),
            "add one to its directory, or correct `path` in the project file",
        )),
    };
    let (ports, main) = ports_of(entry, manifest.as_ref().ok().copied());
    let http_port = main.and_then(|name| ports.get(&name)).copied();
    Side { entry, manifest, ports, http_port }
}

/// A service's ports after the project's overrides, and which of them is the main one: `http`, or the only one.
pub(crate) fn ports_of(
    entry: &ProjectService,
    manifest: Option<&ServiceManifest>,
) -> (BTreeMap<ServiceName, u16>, Option<ServiceName>) {
    let mut ports: BTreeMap<ServiceName, u16> =
        manifest.map(|manifest| manifest.ports.iter().cloned().collect()).unwrap_or_default();
    for (name, number) in &entry.ports {
        // Of a manifest that cannot be read, the project's own ports are known all the same.
        if manifest.is_none() || ports.contains_key(name) {
            ports.insert(name.clone(), *number);
        }
    }
    let only = if ports.len() == 1 { ports.keys().next() } else { None };
    let main = ports.get_key_value("http").map(|(name, _)| name).or(only).cloned();
    (ports, main)
}

fn bad(findings: &[envforge_api::problem::Diagnostic]) -> Trouble {
    let Some(first) = findings.first() else {
        return Trouble::new("its envforge.yml cannot be read", "correct the file, then wake or restart");
    };
    let more = match findings.len() {
        1 => String::new(),
        n => format!(" (and {} more)", n - 1),
    };
    let reason = format!("{}:{}:{}: {}{more}", first.file, first.line, first.column, first.reason);
    Trouble::new(reason, if first.mend.is_empty() { "correct the file".to_owned() } else { first.mend.clone() })
}

impl Join<'_> {
    fn setting(&self, kind: ResourceKind) -> ResourceSetting {
        let default = ResourceSetting { mode: ResourceMode::Managed, scope: ResourceScope::Workspace };
        self.spec.resources.get(&kind).copied().unwrap_or(default)
    }

    /// Each declared resource: once for the workspace, or once for each service where the scope says so.
    fn resources(&self) -> Vec<ResolvedResource> {
        let mut all: Vec<ResolvedResource> = Vec::new();
        for kind in ResourceKind::ALL {
            let ResourceSetting { mode, scope } = self.setting(*kind);
            for side in &self.sides {
                let Some(declared) = side.manifest.as_ref().ok().and_then(|m| m.resources.get(kind)) else { continue };
                let service = (scope == ResourceScope::Service).then(|| side.entry.name.clone());
                let at =
                    all.iter().position(|known| known.kind == *kind && known.service == service).unwrap_or_else(|| {
                        let (consumers, extensions, seeds) = (Vec::new(), Vec::new(), Vec::new());
                        all.push(ResolvedResource { kind: *kind, mode, scope, service, consumers, extensions, seeds });
                        all.len() - 1
                    });
                let resource = &mut all[at];
                resource.consumers.push(side.entry.name.clone());
                for extension in &declared.extensions {
                    if !resource.extensions.contains(extension) {
                        resource.extensions.push(extension.clone());
                    }
                }
                resource.seeds.extend(declared.seed.as_ref().map(|file| Seed {
                    service: side.entry.name.clone(),
                    directory: self.directory(side.entry),
                    file: file.clone(),
                }));
            }
        }
        all
    }

    fn service(&self, side: &Side<'_>, taken: &mut BTreeMap<u16, String>) -> ResolvedService {
        let name = &side.entry.name;
        let mut resolved = ResolvedService {
            name: name.clone(),
            digest: String::new(),
            directory: self.directory(side.entry),
            command: None,
            ports: side.ports.clone(),
            http_port: side.http_port,
            workers: Vec::new(),
            health: None,
            environment: Vec::new(),
            declared: BTreeMap::new(),
            setup: Vec::new(),
            tests: Vec::new(),
            tools: BTreeMap::new(),
            blocked: None,
        };
        let manifest = match &side.manifest {
            Ok(manifest) => *manifest,
            Err(trouble) => {
                resolved.blocked = Some(trouble.clone());
                return resolved;
            }
        };
        resolved.digest.clone_from(&manifest.digest);
        resolved.command.clone_from(&manifest.command);
        resolved.workers.clone_from(&manifest.workers);
        resolved.health = health(manifest, side);
        resolved.declared = manifest.resources.iter().map(|(kind, declared)| (*kind, declared.required)).collect();
        resolved.setup.clone_from(&manifest.setup);
        resolved.tests.clone_from(&manifest.tests);
        resolved.tools.clone_from(&manifest.tools);
        resolved.environment = manifest
            .environment
            .iter()
            .filter_map(|(variable, source)| Some((variable.clone(), self.value(side, source)?)))
            .collect();
        let ports = ports_taken(side, taken);
        resolved.blocked = nothing_to_run(manifest)
            .or(ports)
            .or_else(|| self.resource_trouble(manifest))
            .or_else(|| self.input_trouble(side, manifest));
        resolved
    }

    fn directory(&self, entry: &ProjectService) -> String {
        let checkouts = self.spec.checkouts();
        let checkout = checkouts.iter().find(|checkout| checkout.services.contains(&entry.name));
        let root = checkout.map_or("", |checkout| checkout.directory.as_str());
        match &entry.path {
            Some(path) => format!("{root}/{path}"),
            None => root.to_owned(),
        }
    }

    fn value(&self, side: &Side<'_>, source: &EnvSource) -> Option<EnvValue> {
        let text = match source {
            EnvSource::Literal { value } => value.clone(),
            EnvSource::Resource { kind, field } => {
                return match self.setting(*kind).mode {
                    ResourceMode::Managed | ResourceMode::Provided | ResourceMode::Cloud => {
                        Some(EnvValue::Resource { kind: *kind, field: field.clone() })
                    }
                    ResourceMode::Disabled => None,
                };
            }
            EnvSource::Secret { name } => return Some(EnvValue::Secret { name: name.clone() }),
            EnvSource::Input { name } => self.input(side, name)?.ok()?,
            EnvSource::Workspace { field } => match field {
                WorkspaceField::Slug => self.workspace.slug.to_string(),
                WorkspaceField::Branch => self.workspace.branch.to_string(),
                WorkspaceField::Project => self.workspace.project.to_string(),
                WorkspaceField::Organization => self.workspace.organization.to_string(),
            },
            EnvSource::Service { field: ServiceField::Url } => self.workspace.urls.get(&side.entry.name)?.clone(),
            EnvSource::Service { field: ServiceField::InternalUrl } => local(side.http_port?),
        };
        Some(EnvValue::Known { text })
    }

    /// The value of an input; nothing = not bound; an error = bound to something that has no value, and why.
    fn input(&self, side: &Side<'_>, input: &str) -> Option<Result<String, String>> {
        let binding = self.spec.inputs.iter().find(|b| b.service == side.entry.name && b.input == input)?;
        Some(self.bound(side, &binding.value))
    }

    fn bound(&self, side: &Side<'_>, value: &BindingValue) -> Result<String, String> {
        let url = |service: &ServiceName| {
            self.workspace.urls.get(service).cloned().ok_or_else(|| format!("`{service}` has no public address"))
        };
        match value {
            BindingValue::Route { path } => Ok(format!("{}{path}", url(&side.entry.name)?.trim_end_matches('/'))),
            BindingValue::Url { service } => url(service),
            BindingValue::InternalUrl { service } => match self.other(service)? {
                Side { http_port: Some(port), .. } => Ok(local(*port)),
                Side { manifest: Err(_), .. } => Err(format!("the envforge.yml of `{service}` cannot be used")),
                Side { .. } => Err(format!("`{service}` has no port called `http` and not exactly one port")),
            },
            BindingValue::Output { service, output } => {
                let other = self.other(service)?;
                let Ok(manifest) = &other.manifest else {
                    return Err(format!("the envforge.yml of `{service}` cannot be used"));
                };
                let port =
                    manifest.outputs.get(output).ok_or_else(|| format!("`{service}` has no output `{output}`"))?;
                let number = other.ports.get(port).ok_or_else(|| format!("`{service}` has no port `{port}`"))?;
                Ok(local(*number))
            }
        }
    }

    fn other(&self, service: &ServiceName) -> Result<&Side<'_>, String> {
        let other = self.sides.iter().find(|side| side.entry.name == *service);
        other.ok_or_else(|| format!("the project has no service `{service}`"))
    }

    fn resource_trouble(&self, manifest: &ServiceManifest) -> Option<Trouble> {
        let mut required = manifest.resources.iter().filter(|(_, declared)| declared.required).map(|(kind, _)| *kind);
        required.find_map(|kind| match self.setting(kind).mode {
            // Whether it can be had is known where it is used.
            ResourceMode::Managed | ResourceMode::Provided | ResourceMode::Cloud => None,
            ResourceMode::Disabled => Some(Trouble::new(
                format!("it requires the resource `{kind}`, which the project has disabled"),
                format!(
                    "write `resources: {{ {kind}: managed }}` in the project file, or `required: false` in envforge.yml"
                ),
            )),
        })
    }

    fn input_trouble(&self, side: &Side<'_>, manifest: &ServiceManifest) -> Option<Trouble> {
        let name = &side.entry.name;
        let mut required = manifest.inputs.iter().filter(|(_, required)| **required).map(|(input, _)| input);
        required.find_map(|input| match self.input(side, input) {
            Some(Ok(_)) => None,
            None => Some(Trouble::new(
                format!("its required input `{input}` is not bound"),
                format!("add `bindings: {{ inputs: {{ {name}.{input}: … }} }}` to the project file"),
            )),
            Some(Err(why)) => {
                let binding = self.spec.inputs.iter().find(|b| b.service == *name && b.input == *input);
                let given = binding.map(|b| value_text(&b.value)).unwrap_or_default();
                Some(Trouble::new(
                    format!("its required input `{input}` has no value: {why}"),
                    format!("mend that service, or bind `{name}.{input}` to something else than `{given}`"),
                ))
            }
        })
    }
}

fn nothing_to_run(manifest: &ServiceManifest) -> Option<Trouble> {
    (manifest.command.is_none() && manifest.workers.is_empty()).then(|| {
        Trouble::new(
            "its envforge.yml has neither a command nor workers",
            "add `service: { command: … }` to envforge.yml",
        )
    })
}

/// Claims the service's ports. A service that is blocked keeps its claim: mending it must not stop another.
fn ports_taken(side: &Side<'_>, taken: &mut BTreeMap<u16, String>) -> Option<Trouble> {
    let name = &side.entry.name;
    let mut trouble = None;
    for port in side.entry.ports.keys().filter(|port| !side.ports.contains_key(*port)) {
        trouble.get_or_insert_with(|| {
            Trouble::new(
                format!("the project file sets its port `{port}`, which its envforge.yml does not declare"),
                format!("declare the port in envforge.yml, or remove it from `services: {{ {name}: {{ ports: … }} }}`"),
            )
        });
    }
    let mut own = Vec::new();
    for (port, number) in &side.ports {
        let owner = format!("`{name}`");
        let other = taken.get(number).cloned().or_else(|| own.contains(&number).then(|| owner.clone()));
        match other {
            None => own.push(number),
            Some(other) => {
                let by = if other == owner { "another of its ports".to_owned() } else { other };
                trouble.get_or_insert_with(|| {
                    Trouble::new(
                        format!("its port `{port}` is {number}, which is taken by {by}"),
                        format!("give it another: `services: {{ {name}: {{ ports: {{ {port}: … }} }} }}` in the project file"),
                    )
                });
            }
        }
    }
    for number in own {
        taken.insert(*number, format!("`{name}`"));
    }
    trouble
}

fn health(manifest: &ServiceManifest, side: &Side<'_>) -> Option<ResolvedHealth> {
    if let Some(check) = &manifest.health {
        let port = match &check.probe {
            Probe::Http { port, .. } | Probe::Tcp { port } => side.ports.get(port).copied(),
            Probe::Command { .. } => None,
        };
        return Some(ResolvedHealth { check: check.clone(), port });
    }
    // A service with only workers has nothing that listens.
    manifest.command.as_ref()?;
    let number = side.http_port?;
    let (port, _) =
        side.ports.iter().find(|(name, n)| **n == number && (name.as_str() == "http" || side.ports.len() == 1))?;
    let check = Health {
        probe: Probe::Tcp { port: port.clone() },
        interval_ms: Health::DEFAULT_INTERVAL_MS,
        timeout_ms: Health::DEFAULT_TIMEOUT_MS,
        start_period_ms: Health::DEFAULT_START_PERIOD_MS,
    };
    Some(ResolvedHealth { check, port: Some(number) })
}

fn local(port: u16) -> String {
    format!("http://localhost:{port}")
}
