//! Checks one envforge.yml. The order of the functions is the order of the keys in the reference.

mod environment;
mod health;
mod steps;

pub(crate) use steps::{FAMILIES, LAYERS};

use crate::{
    DeclaredResource, ProxyMode, ServiceManifest,
    findings::{Findings, Pos, quote},
    section::{self, Section},
    tree::{self, Node, Value},
};
use data_encoding::HEXLOWER;
use envforge_api::{names::ServiceName, problem::Diagnostic, project::RuntimeSize, resource::ResourceKind};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Keys of the file.
pub(crate) const TOP: &[&str] = &[
    "version",
    "service",
    "ports",
    "workers",
    "health",
    "resources",
    "inputs",
    "outputs",
    "environment",
    "setup",
    "tests",
    "routes",
    "proxy",
    "tools",
    "runtime",
];
/// Keys of `service`.
pub(crate) const SERVICE: &[&str] = &["name", "type", "command", "port", "inputs"];
/// Keys of `runtime`, here and in a project file.
pub(crate) const RUNTIME: &[&str] = &["size", "sleep"];

pub(crate) fn parse(file: &str, text: &str) -> Result<ServiceManifest, Vec<Diagnostic>> {
    let mut findings = Findings::new(file, text);
    let manifest = tree::read(text, &mut findings).and_then(|root| check(&mut findings, &root, text));
    match manifest {
        Some(manifest) if findings.is_empty() => Ok(manifest),
        _ => {
            if findings.is_empty() {
                findings.add(Pos::START, "the file is empty", "write `version: 1` and describe the service");
            }
            Err(findings.into_sorted())
        }
    }
}

fn check(f: &mut Findings<'_>, root: &Node, text: &str) -> Option<ServiceManifest> {
    if root.is_null() {
        return None;
    }
    let top = section::section(f, root, "envforge.yml", TOP, false)?;
    version(f, top);
    let service = top.get("service").and_then(|node| section::section(f, node, "`service`", SERVICE, false));
    let field = |f: &mut Findings<'_>, key: &str, what: &str| {
        service.and_then(|s| s.get(key)).and_then(|node| section::text(f, node, what)).map(str::to_owned)
    };
    let display_name = field(f, "name", "the name of the service");
    let kind_hint = field(f, "type", "the type of the service");
    let command =
        service.and_then(|s| s.get("command")).and_then(|node| section::command(f, node, "the command of the service"));
    let ports = ports(f, top, service);
    let workers = workers(f, top);
    let health = top.get("health").and_then(|node| health::check(f, node, &ports));
    let resources = resources(f, top);
    let inputs = inputs(f, top, service);
    let outputs = outputs(f, top, &ports);
    let declared = environment::Declared { resources: &resources, inputs: &inputs, ports: &ports };
    let environment = top.get("environment").map(|node| environment::check(f, node, &declared)).unwrap_or_default();
    let setup = top.get("setup").map(|node| steps::check(f, node, "setup")).unwrap_or_default();
    let tests = top.get("tests").map(|node| steps::check(f, node, "tests")).unwrap_or_default();
    let routes = steps::routes(f, top);
    let proxy =
        top.get("proxy").and_then(|node| section::word(f, node, "way of proxying", &["localhost", "forwarded"]));
    let tools = tools(f, top);
    let (size, sleep_after_seconds) = top.get("runtime").map(|node| runtime(f, node)).unwrap_or_default();
    Some(ServiceManifest {
        digest: HEXLOWER.encode(&Sha256::digest(text.as_bytes())),
        display_name,
        kind_hint,
        command,
        ports: ports.into_iter().map(|port| (port.name, port.number)).collect(),
        workers,
        health,
        resources,
        inputs,
        outputs,
        environment,
        setup,
        tests,
        routes,
        proxy: proxy.unwrap_or(ProxyMode::Localhost),
        tools,
        size,
        sleep_after_seconds,
    })
}

fn version(f: &mut Findings<'_>, top: Section<'_>) {
    let Some(node) = top.get("version") else {
        f.add(top.at, "`version` is missing", "write `version: 1` as the first line");
        return;
    };
    match &node.value {
        Value::Scalar { text, plain: true } if text == "1" => {}
        Value::Scalar { text, .. } => {
            f.add(node.at, format!("version {} is not known", quote(text)), "write `version: 1`");
        }
        _ => section::wrong(f, node, "`version`", "the number 1", "write `version: 1`"),
    }
}

/// A declared port. A number that is wrong is kept as 0, so that a reference to its name is no second finding.
#[derive(Debug)]
struct Port {
    name: ServiceName,
    number: u16,
}

/// The port that `service.url` and a health check without `port` mean: `http`, or the only one.
fn main_port(ports: &[Port]) -> Option<&Port> {
    ports.iter().find(|port| port.name.as_str() == "http").or(if let [only] = ports { Some(only) } else { None })
}

fn ports(f: &mut Findings<'_>, top: Section<'_>, service: Option<Section<'_>>) -> Vec<Port> {
    let mut ports: Vec<Port> = Vec::new();
    let mut take = |f: &mut Findings<'_>, name: ServiceName, at: Pos, node: &Node| {
        if ports.iter().any(|port| port.name == name) {
            f.add(at, format!("the port `{name}` is declared twice"), "keep `ports`, and remove `service.port`");
            return;
        }
        let number = section::port(f, node, &format!("the port `{name}`")).unwrap_or(0);
        if let Some(same) = ports.iter().find(|port| number != 0 && port.number == number) {
            let reason = format!("the ports `{}` and `{name}` have the same number {number}", same.name);
            f.add(node.at, reason, "give each port a number of its own");
        }
        ports.push(Port { name, number });
    };
    if let Some(entry) = service.and_then(|s| s.entry("port"))
        && let Ok(name) = "http".parse()
    {
        take(f, name, entry.at, &entry.value);
    }
    if let Some(node) = top.get("ports") {
        for entry in section::entries(f, node, "`ports`", "ports: { http: 3000 }") {
            if let Some(name) = section::name(f, entry.at, &entry.key, "a port") {
                take(f, name, entry.at, &entry.value);
            }
        }
    }
    ports
}

fn workers(f: &mut Findings<'_>, top: Section<'_>) -> Vec<(ServiceName, String)> {
    let mut workers = Vec::new();
    let Some(node) = top.get("workers") else { return workers };
    for entry in section::entries(f, node, "`workers`", "workers: { mailer: { command: node mailer.js } }") {
        let name = section::name(f, entry.at, &entry.key, "a worker");
        let what = format!("the worker {}", quote(&entry.key));
        let command = match &entry.value.value {
            Value::Scalar { .. } => section::command(f, &entry.value, &what),
            _ => section::section(f, &entry.value, &what, &["command"], false).and_then(|worker| {
                let Some(node) = worker.get("command") else {
                    f.add(entry.at, format!("{what} has no command"), "add `command: …`");
                    return None;
                };
                section::command(f, node, &format!("the command of {what}"))
            }),
        };
        workers.extend(name.zip(command));
    }
    workers
}

fn resources(f: &mut Findings<'_>, top: Section<'_>) -> BTreeMap<ResourceKind, DeclaredResource> {
    let mut resources = BTreeMap::new();
    let Some(node) = top.get("resources") else { return resources };
    let kinds: Vec<&str> = ResourceKind::ALL.iter().map(|kind| kind.as_str()).collect();
    if !matches!(node.value, Value::Map(_)) {
        section::wrong(f, node, "`resources`", "a map", "write it as `resources: { database: { required: true } }`");
        return resources;
    }
    let Some(all) = section::section(f, node, "`resources`", &kinds, false) else { return resources };
    for kind in ResourceKind::ALL {
        let Some(node) = all.get(kind.as_str()) else { continue };
        resources.insert(*kind, resource(f, node, *kind));
    }
    resources
}

fn resource(f: &mut Findings<'_>, node: &Node, kind: ResourceKind) -> DeclaredResource {
    let known: &[&str] = match kind {
        ResourceKind::Database => &["required", "seed", "extensions"],
        ResourceKind::Cache | ResourceKind::Queue | ResourceKind::Storage | ResourceKind::Mail => &["required"],
    };
    let what = format!("the resource `{kind}`");
    let mut declared = DeclaredResource { required: true, seed: None, extensions: Vec::new() };
    let Some(fields) = section::section(f, node, &what, known, true) else { return declared };
    if let Some(required) = fields.get("required") {
        declared.required = section::boolean(f, required, "`required`").unwrap_or(true);
    }
    if kind != ResourceKind::Database {
        return declared;
    }
    declared.seed = fields.get("seed").and_then(|node| section::relative_path(f, node, "the seed file"));
    let Some(extensions) = fields.get("extensions") else { return declared };
    for item in section::items(f, extensions, "`extensions`").unwrap_or_default() {
        let Some(name) = section::text(f, item, "an extension") else { continue };
        if name.len() > 63 || !name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-')) {
            let mend = "write the name as in `CREATE EXTENSION`, such as `pgcrypto`";
            f.add(item.at, format!("{} is not the name of an extension", quote(name)), mend);
        } else if !declared.extensions.iter().any(|known| known == name) {
            declared.extensions.push(name.to_owned());
        }
    }
    declared
}

fn inputs(f: &mut Findings<'_>, top: Section<'_>, service: Option<Section<'_>>) -> BTreeMap<String, bool> {
    let mut inputs = BTreeMap::new();
    let places = [top.get("inputs"), service.and_then(|s| s.get("inputs"))];
    for node in places.into_iter().flatten() {
        for entry in section::entries(f, node, "`inputs`", "inputs: { site_url: { required: true } }") {
            let Some(name) = section::identifier(f, entry, "an input") else { continue };
            if inputs.contains_key(&name) {
                f.add(entry.at, format!("the input `{name}` is declared twice"), "keep one of the two");
                continue;
            }
            let what = format!("the input `{name}`");
            let fields = section::section(f, &entry.value, &what, &["required"], true);
            let required = fields.and_then(|fields| fields.get("required"));
            inputs.insert(name, required.and_then(|node| section::boolean(f, node, "`required`")).unwrap_or(true));
        }
    }
    inputs
}

fn outputs(f: &mut Findings<'_>, top: Section<'_>, ports: &[Port]) -> BTreeMap<String, ServiceName> {
    let mut outputs = BTreeMap::new();
    let Some(node) = top.get("outputs") else { return outputs };
    for entry in section::entries(f, node, "`outputs`", "outputs: { base_url: { port: http } }") {
        let Some(name) = section::identifier(f, entry, "an output") else { continue };
        if matches!(name.as_str(), "url" | "internal_url") {
            let mend = "remove it: every service has its `url` and `internal_url` without declaring them";
            f.add(entry.at, format!("the output name `{name}` is taken"), mend);
            continue;
        }
        let what = format!("the output `{name}`");
        let Some(fields) = section::section(f, &entry.value, &what, &["port"], false) else { continue };
        let Some(port) = fields.get("port") else {
            f.add(entry.at, format!("{what} names no port"), "write it as `{ port: http }`");
            continue;
        };
        if let Some(port) = named_port(f, port, ports) {
            outputs.insert(name, port);
        }
    }
    outputs
}

/// The name of a declared port. Its number is understood too.
fn named_port(f: &mut Findings<'_>, node: &Node, ports: &[Port]) -> Option<ServiceName> {
    let Value::Scalar { text, .. } = &node.value else {
        section::wrong(f, node, "`port`", "the name of a port", "write a name from `ports`");
        return None;
    };
    let known = ports.iter().find(|port| port.name.as_str() == text || port.number.to_string() == *text);
    if known.is_none() {
        let mend = match ports {
            [] => "declare it: `ports: { http: 3000 }`".to_owned(),
            _ => format!("write {}", crate::findings::one_of(ports.iter().map(|port| port.name.as_str()))),
        };
        f.add(node.at, format!("no port {} is declared", quote(text)), mend);
    }
    known.map(|port| port.name.clone())
}

fn tools(f: &mut Findings<'_>, top: Section<'_>) -> BTreeMap<String, String> {
    let mut tools = BTreeMap::new();
    let Some(node) = top.get("tools") else { return tools };
    for entry in section::entries(f, node, "`tools`", "tools: { node: \"22\" }") {
        let name_fits = entry.key.starts_with(|c: char| c.is_ascii_alphanumeric())
            && entry.key.len() <= 63
            && entry.key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'+'));
        if !name_fits {
            f.add(
                entry.at,
                format!("{} is not the name of a tool", quote(&entry.key)),
                "write it as on the command line",
            );
            continue;
        }
        let what = format!("the version of `{}`", entry.key);
        let version = match &entry.value.value {
            Value::Scalar { text, plain: true } if tree::is_number(text) => Some(text.as_str()),
            _ => section::text(f, &entry.value, &what),
        };
        let Some(version) = version else { continue };
        if version.len() > 64 || version.contains(|c: char| c.is_control() || c.is_whitespace()) {
            f.add(
                entry.value.at,
                format!("{} is not a version", quote(version)),
                "write it in quotes, such as `\"22\"`",
            );
            continue;
        }
        tools.insert(entry.key.clone(), version.to_owned());
    }
    tools
}

/// `runtime`, as it stands in both kinds of file: size and idle seconds.
pub(crate) fn runtime(f: &mut Findings<'_>, node: &Node) -> (Option<RuntimeSize>, Option<u64>) {
    let Some(fields) = section::section(f, node, "`runtime`", RUNTIME, false) else { return (None, None) };
    let sizes: Vec<&str> = RuntimeSize::ALL.iter().map(|size| size.as_str()).collect();
    let size = fields.get("size").and_then(|node| section::word(f, node, "size", &sizes));
    let after = fields
        .get("sleep")
        .and_then(|node| section::section(f, node, "`sleep`", &["after"], false))
        .and_then(|sleep| sleep.get("after"))
        .and_then(|node| section::duration(f, node, "`sleep.after`", 1_000));
    (size, after.map(|millis| millis / 1000))
}
