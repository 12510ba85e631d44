//! Checks one project file: services, how they are bound to each other, who provides resources.

mod changes;
mod modes;
mod repo;
mod routes;

pub(crate) use changes::{changes, value_text};

use crate::{
    findings::{Findings, Pos, nearest, one_of, quote},
    section::{self, Section},
    service,
    tree::{self, Entry, Node, Value},
};
use envforge_api::{
    names::{ServiceName, Slug},
    problem::Diagnostic,
    project::{BindingValue, InputBinding, ProjectService, ProjectSpec, ResourceSetting, RuntimeSetting},
    resource::{ResourceKind, ResourceMode, ResourceScope},
};
use std::collections::BTreeMap;

/// Keys of the file.
pub(crate) const TOP: &[&str] = &["project", "services", "bindings", "resources", "runtime"];
/// Keys of a service.
pub(crate) const SERVICE: &[&str] = &["repo", "path", "ports"];

pub(crate) fn parse(file: &str, text: &str) -> Result<ProjectSpec, Vec<Diagnostic>> {
    let mut findings = Findings::new(file, text);
    let spec = tree::read(text, &mut findings).and_then(|root| check(&mut findings, &root));
    match spec {
        Some(spec) if findings.is_empty() => Ok(spec),
        _ => {
            if findings.is_empty() {
                findings.add(Pos::START, "the file is empty", "write `project: NAME` and the project's services");
            }
            Err(findings.into_sorted())
        }
    }
}

fn check(f: &mut Findings<'_>, root: &Node) -> Option<ProjectSpec> {
    if root.is_null() {
        return None;
    }
    let top = section::section(f, root, "the project file", TOP, false)?;
    let project = project_name(f, top);
    let services = services(f, top);
    let names = Names { known: services.iter().map(|(name, _)| name.clone()).collect() };
    let bindings =
        top.get("bindings").and_then(|node| section::section(f, node, "`bindings`", &["routes", "inputs"], true));
    let routes = bindings
        .and_then(|bindings| bindings.get("routes"))
        .map(|node| routes::check(f, node, &names))
        .unwrap_or_default();
    let inputs = bindings
        .and_then(|bindings| bindings.get("inputs"))
        .map(|node| inputs(f, node, &names, &routes))
        .unwrap_or_default();
    let resources = resources(f, top);
    let (size, sleep_after_seconds) = top.get("runtime").map(|node| service::runtime(f, node)).unwrap_or_default();
    Some(ProjectSpec {
        project: project?,
        services: services.into_iter().filter_map(|(_, service)| service).collect(),
        routes,
        inputs,
        resources,
        runtime: RuntimeSetting { size, sleep_after_seconds },
    })
}

/// The services that the file names, also those with findings, so that a reference to one is no second finding.
struct Names {
    known: Vec<ServiceName>,
}

impl Names {
    fn find(&self, f: &mut Findings<'_>, at: Pos, given: &str) -> Option<ServiceName> {
        let found = self.known.iter().find(|name| name.as_str() == given).cloned();
        if found.is_none() {
            let known = self.known.iter().map(ServiceName::as_str);
            let mend = match nearest(given, known.clone()) {
                Some(word) => format!("did you mean `{word}`?"),
                None => format!("the services are {}", one_of(known)),
            };
            f.add(at, format!("the project has no service {}", quote(given)), mend);
        }
        found
    }
}

fn project_name(f: &mut Findings<'_>, top: Section<'_>) -> Option<Slug> {
    let Some(node) = top.get("project") else {
        f.add(top.at, "`project` is missing", "write `project: NAME` as the first line");
        return None;
    };
    let given = section::text(f, node, "the name of the project")?;
    let name = given.parse().ok();
    if name.is_none() {
        let mend = "use lower-case letters, digits and single hyphens, 63 at most";
        f.add(node.at, format!("{} is not a name for a project", quote(given)), mend);
    }
    name
}

fn services(f: &mut Findings<'_>, top: Section<'_>) -> Vec<(ServiceName, Option<ProjectService>)> {
    let mut services = Vec::new();
    let mend = "write `services: { web: { repo: https://git.example/acme/web.git } }`";
    let Some(node) = top.get("services") else {
        f.add(top.at, "`services` is missing", mend);
        return services;
    };
    let entries = match &node.value {
        Value::Map(entries) => entries.as_slice(),
        _ => {
            section::wrong(f, node, "`services`", "a map", mend);
            return services;
        }
    };
    if entries.is_empty() {
        f.add(node.at, "the project has no services", mend);
    }
    for entry in entries {
        let Some(name) = section::name(f, entry.at, &entry.key, "a service") else { continue };
        if name.as_str() == "storage" {
            let reason = "a service cannot be called `storage`: that host name is kept for signed storage addresses";
            f.add(entry.at, reason, "choose another name, such as `files`");
        }
        let service = service(f, entry, name.clone());
        services.push((name, service));
    }
    services
}

fn service(f: &mut Findings<'_>, entry: &Entry, name: ServiceName) -> Option<ProjectService> {
    let what = format!("the service `{name}`");
    let fields = section::section(f, &entry.value, &what, SERVICE, false)?;
    let path = fields.get("path").and_then(|node| section::relative_path(f, node, "the path in the repository"));
    let ports = fields.get("ports").map(|node| port_overrides(f, node)).unwrap_or_default();
    let Some(node) = fields.get("repo") else {
        f.add(entry.at, format!("{what} has no `repo`"), "add `repo:` with the URL of its Git repository");
        return None;
    };
    let repo = repo::check(f, node)?;
    Some(ProjectService { name, repo, path: path.and_then(|path| tidy(&path)), ports })
}

/// `./services/web/` is `services/web`; `.` is the root itself.
fn tidy(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    (!parts.is_empty()).then(|| parts.join("/"))
}

fn port_overrides(f: &mut Findings<'_>, node: &Node) -> BTreeMap<ServiceName, u16> {
    let mut ports: BTreeMap<ServiceName, u16> = BTreeMap::new();
    for entry in section::entries(f, node, "`ports`", "ports: { http: 3001 }") {
        let name = section::name(f, entry.at, &entry.key, "a port");
        let number = section::port(f, &entry.value, &format!("the port {}", quote(&entry.key)));
        let (Some(name), Some(number)) = (name, number) else { continue };
        if let Some((same, _)) = ports.iter().find(|(_, known)| **known == number) {
            let reason = format!("the ports `{same}` and `{name}` have the same number {number}");
            f.add(entry.value.at, reason, "give each port a number of its own");
        }
        ports.insert(name, number);
    }
    ports
}

type Routes = BTreeMap<ServiceName, BTreeMap<String, ServiceName>>;

fn inputs(f: &mut Findings<'_>, node: &Node, names: &Names, routes: &Routes) -> Vec<InputBinding> {
    let mut bindings = Vec::new();
    for entry in section::entries(f, node, "`inputs`", "inputs: { web.api_url: route /api }") {
        let target = match entry.key.split_once('.') {
            Some((service, input)) if section::is_identifier(input) => {
                names.find(f, entry.at, service).map(|service| (service, input.to_owned()))
            }
            _ => {
                let reason = format!("{} does not name an input", quote(&entry.key));
                f.add(entry.at, reason, "write `SERVICE.INPUT`, such as `web.api_url`");
                None
            }
        };
        let service = target.as_ref().map(|(service, _)| service);
        let value = section::text(f, &entry.value, "the value of an input")
            .and_then(|given| binding(f, entry.value.at, given.trim(), service, names, routes));
        if let (Some((service, input)), Some(value)) = (target, value) {
            bindings.push(InputBinding { service, input, value });
        }
    }
    bindings
}

fn binding(
    f: &mut Findings<'_>,
    at: Pos,
    given: &str,
    service: Option<&ServiceName>,
    names: &Names,
    routes: &Routes,
) -> Option<BindingValue> {
    if let Some(path) = given.strip_prefix("route").filter(|rest| rest.starts_with(char::is_whitespace)) {
        let path = section::route_path(f, at, path.trim())?;
        let declared =
            service.is_none_or(|service| routes.get(service).is_some_and(|of| routes::covering(of, &path).is_some()));
        if !declared {
            let name = service.map_or("", |service| service.as_str());
            let mend = format!("add it: `bindings: {{ routes: {{ {name}: {{ {path}: SERVICE }} }} }}`");
            f.add(at, format!("`{name}` has no route {}", quote(&path)), mend);
            return None;
        }
        return Some(BindingValue::Route { path });
    }
    match given.split_once('.') {
        Some((source, field)) if section::is_identifier(field) => {
            let service = names.find(f, at, source)?;
            Some(match field {
                "url" => BindingValue::Url { service },
                "internal_url" => BindingValue::InternalUrl { service },
                output => BindingValue::Output { service, output: output.to_owned() },
            })
        }
        _ => {
            let reason = format!("{} is not a value for an input", quote(given));
            let mend = "write `route /PATH`, `SERVICE.url`, `SERVICE.internal_url` or `SERVICE.OUTPUT`";
            f.add(at, reason, mend);
            None
        }
    }
}

fn resources(f: &mut Findings<'_>, top: Section<'_>) -> BTreeMap<ResourceKind, ResourceSetting> {
    let mut resources = BTreeMap::new();
    let Some(node) = top.get("resources") else { return resources };
    let kinds: Vec<&str> = ResourceKind::ALL.iter().map(|kind| kind.as_str()).collect();
    let modes: Vec<&str> = ResourceMode::ALL.iter().map(|mode| mode.as_str()).collect();
    let scopes: Vec<&str> = ResourceScope::ALL.iter().map(|scope| scope.as_str()).collect();
    let Some(all) = section::section(f, node, "`resources`", &kinds, true) else { return resources };
    for kind in ResourceKind::ALL {
        let Some(node) = all.get(kind.as_str()) else { continue };
        let mut setting = ResourceSetting { mode: ResourceMode::Managed, scope: ResourceScope::Workspace };
        if matches!(node.value, Value::Map(_)) {
            let what = format!("the resource `{kind}`");
            let Some(fields) = section::section(f, node, &what, &["mode", "scope"], false) else { continue };
            if let Some(mode) = fields.get("mode").and_then(|node| section::word(f, node, "resource mode", &modes)) {
                setting.mode = mode;
            }
            if let Some(scope) = fields.get("scope").and_then(|node| section::word(f, node, "resource scope", &scopes))
            {
                setting.scope = scope;
            }
        } else if let Some(mode) = section::word(f, node, "resource mode", &modes) {
            setting.mode = mode;
        }
        resources.insert(*kind, setting);
    }
    resources
}
