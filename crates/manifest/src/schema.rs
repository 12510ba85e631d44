//! JSON Schemas of both files, for editors: completion and marks while typing.
//!
//! They are looser than the check: what one value says of another (a reference to a declared resource, two equal
//! ports) is for [`crate::parse_service`] and [`crate::parse_project`] alone. No text that these accept is refused here.

use crate::service::{FAMILIES, LAYERS};
use envforge_api::{
    project::RuntimeSize,
    resource::{ResourceKind, ResourceMode, ResourceScope},
};
use serde_json::{Map, Value, json};

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";
const NAME: &str = "^[a-z0-9]+(-[a-z0-9]+)*$";
const IDENTIFIER: &str = "^[A-Za-z_][A-Za-z0-9_]*$";
const DURATION: &str = "^([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$";
const PATH: &str = "^/[^\\s\\\\%?#*]*$";

/// The JSON Schema of envforge.yml.
#[must_use]
pub fn service_schema() -> Value {
    let input = nullable(closed(json!({
        "required": { "type": "boolean", "default": true, "description": "Whether the service cannot start without it." }
    })));
    let inputs = described(names(IDENTIFIER, input), "Values that the project binds, by name.");
    let ports =
        described(names(NAME, port()), "Ports the service listens on, by name. `http` is the one its URL leads to.");
    json!({
        "$schema": DIALECT,
        "title": "envforge.yml",
        "description": "One service of a project: what it runs, needs and offers.",
        "type": "object",
        "required": ["version"],
        "additionalProperties": false,
        "properties": {
            "version": { "const": 1, "description": "Version of this format." },
            "service": closed(json!({
                "name": { "type": "string", "description": "Name shown to people." },
                "type": { "type": "string", "description": "A hint, such as `node`." },
                "command": described(command(), "Shell command that serves, in the directory of this file."),
                "port": described(port(), "Short form of `ports: { http: … }`."),
                "inputs": inputs,
            })),
            "ports": ports,
            "workers": described(
                names(NAME, any([command(), with_required(closed(json!({ "command": command() })), &["command"])])),
                "Further processes, by name.",
            ),
            "health": health(),
            "resources": resources(),
            "inputs": inputs,
            "outputs": described(
                names(IDENTIFIER, with_required(closed(json!({ "port": port_name() })), &["port"])),
                "Addresses that other services may be bound to, by name.",
            ),
            "environment": environment(),
            "setup": described(names(NAME, step()), "Steps in written order, before the service first starts."),
            "tests": described(names(NAME, step()), "What `envforge run test` runs."),
            "routes": {
                "type": "array",
                "description": "Families of paths, for links that open only some.",
                "items": with_required(
                    closed(json!({ "path": { "type": "string", "pattern": PATH }, "family": { "enum": FAMILIES } })),
                    &["path", "family"],
                ),
            },
            "proxy": {
                "enum": ["localhost", "forwarded"],
                "default": "localhost",
                "description": "Whether requests look as if they came from localhost, or carry the public host.",
            },
            "tools": described(
                names("^[A-Za-z0-9][A-Za-z0-9._+-]*$", json!({ "type": ["string", "number"] })),
                "Programs and their versions.",
            ),
            "runtime": runtime(),
        },
    })
}

/// The JSON Schema of a project file.
#[must_use]
pub fn project_schema() -> Value {
    let mode = json!({ "enum": words(ResourceMode::ALL.iter().map(|mode| mode.as_str())) });
    let scope = json!({ "enum": words(ResourceScope::ALL.iter().map(|scope| scope.as_str())), "default": "workspace" });
    let modes = ResourceKind::ALL
        .iter()
        .map(|kind| (kind.as_str(), any([mode.clone(), closed(json!({ "mode": mode, "scope": scope }))])));
    json!({
        "$schema": DIALECT,
        "title": "EnvForge project",
        "description": "The services of a project, how they are bound to each other, and who provides their resources.",
        "type": "object",
        "required": ["project", "services"],
        "additionalProperties": false,
        "properties": {
            "project": { "type": "string", "pattern": NAME, "maxLength": 63, "description": "Name of the project." },
            "services": {
                "type": "object",
                "minProperties": 1,
                "propertyNames": { "pattern": NAME, "maxLength": 63 },
                "additionalProperties": with_required(
                    closed(json!({
                        "repo": { "type": "string", "description": "URL or absolute path of the Git repository." },
                        "path": { "type": "string", "description": "Directory of the service in the repository." },
                        "ports": described(names(NAME, port()), "Ports in place of the declared ones, by name."),
                    })),
                    &["repo"],
                ),
            },
            "bindings": nullable(closed(json!({
                "routes": described(
                    names(NAME, names(PATH, json!({ "type": "string", "pattern": NAME }))),
                    "Paths of a service's origin that go to another service.",
                ),
                "inputs": described(
                    names("^[a-z0-9-]+\\.[A-Za-z_][A-Za-z0-9_]*$", json!({
                        "type": "string",
                        "pattern": "^\\s*(route\\s+/\\S*|[a-z0-9-]+\\.[A-Za-z_][A-Za-z0-9_]*)\\s*$",
                    })),
                    "`SERVICE.INPUT`: `route /PATH`, `SERVICE.url`, `SERVICE.internal_url` or `SERVICE.OUTPUT`.",
                ),
            }))),
            "resources": nullable(described(closed(object(modes)), "Who provides each resource.")),
            "runtime": runtime(),
        },
    })
}

fn health() -> Value {
    let time = |default: &str| json!({ "type": "string", "pattern": DURATION, "minLength": 2, "default": default });
    let fields = json!({
        "http": { "type": "string", "pattern": "^/", "description": "Path; healthy when GET answers below 400." },
        "tcp": described(any([port_name(), json!({ "enum": [true, null] })]), "Port; healthy when it accepts connections."),
        "command": described(command(), "Shell command; healthy when it ends with 0."),
        "port": port_name(),
        "interval": time("1s"),
        "timeout": time("2s"),
        "start_period": time("60s"),
    });
    described(closed(fields), "How the service shows that it serves. Without it: TCP on the port `http`.")
}

fn resources() -> Value {
    let kinds = ResourceKind::ALL.iter().map(|kind| {
        let mut fields = json!({ "required": { "type": "boolean", "default": true } });
        if *kind == ResourceKind::Database {
            fields["seed"] = json!({ "type": "string", "description": "SQL file, relative to this file." });
            fields["extensions"] = described(list(json!({ "type": "string" })), "PostgreSQL extensions.");
        }
        (kind.as_str(), nullable(closed(fields)))
    });
    described(closed(object(kinds)), "Data services it uses.")
}

fn environment() -> Value {
    let references = ResourceKind::ALL
        .iter()
        .flat_map(|kind| kind.fields().iter().map(move |field| format!("resource.{kind}.{field}")));
    let others = ["slug", "branch", "project", "organization"].map(|field| format!("workspace.{field}"));
    let own = ["url", "internal_url"].map(|field| format!("service.{field}"));
    let known: Vec<String> = references.chain(others).chain(own).collect();
    let from = any([
        json!({ "enum": known }),
        json!({ "type": "string", "pattern": "^(input\\.[A-Za-z_][A-Za-z0-9_]*|secret\\.[A-Za-z_-][A-Za-z0-9_-]*)$" }),
    ]);
    let value = any([
        json!({ "type": ["string", "number", "boolean"] }),
        with_required(closed(json!({ "from": from })), &["from"]),
    ]);
    let mut all = nullable(names(IDENTIFIER, value));
    all["propertyNames"]["not"] = json!({ "const": "PORT" });
    described(all, "Variables of the service's processes. `PORT` is set by EnvForge.")
}

fn runtime() -> Value {
    closed(json!({
        "size": { "enum": words(RuntimeSize::ALL.iter().map(|size| size.as_str())) },
        "sleep": closed(json!({ "after": {
            "type": "string", "pattern": DURATION, "minLength": 2, "description": "Idle time after which it sleeps.",
        } })),
    }))
}

fn step() -> Value {
    let run = list(command());
    let fields = closed(json!({
        "run": run,
        "layer": { "enum": LAYERS, "default": "runtime" },
        "changes": described(list(json!({ "type": "string" })), "Files whose change makes the step run again."),
    }));
    any([run, with_required(fields, &["run"])])
}

fn command() -> Value {
    json!({ "type": ["string", "boolean"], "minLength": 1 })
}

fn port() -> Value {
    json!({ "type": "integer", "minimum": 1, "maximum": 65535 })
}

/// A declared port, by name or number.
fn port_name() -> Value {
    json!({ "type": ["string", "integer"], "description": "Name of a declared port." })
}

/// One item or a list of them.
fn list(item: Value) -> Value {
    any([item.clone(), json!({ "type": "array", "items": item })])
}

fn any<const N: usize>(choices: [Value; N]) -> Value {
    json!({ "anyOf": choices.to_vec() })
}

/// An object with these keys and no other.
fn closed(properties: Value) -> Value {
    json!({ "type": "object", "additionalProperties": false, "properties": properties })
}

/// An object with free keys of one shape.
fn names(pattern: &str, value: Value) -> Value {
    json!({ "type": ["object", "null"], "propertyNames": { "pattern": pattern }, "additionalProperties": value })
}

fn nullable(mut schema: Value) -> Value {
    schema["type"] = json!(["object", "null"]);
    schema
}

fn with_required(mut schema: Value, keys: &[&str]) -> Value {
    schema["required"] = json!(keys);
    schema
}

fn described(mut schema: Value, text: &str) -> Value {
    schema["description"] = json!(text);
    schema
}

fn words(words: impl Iterator<Item = &'static str>) -> Vec<&'static str> {
    words.collect()
}

fn object<'k>(entries: impl Iterator<Item = (&'k str, Value)>) -> Value {
    Value::Object(entries.map(|(key, value)| (key.to_owned(), value)).collect::<Map<_, _>>())
}
