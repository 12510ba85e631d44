//! `environment`: what a service's process finds in its environment.
//!
//! A service names data services, inputs and secrets of its own; it never names another service or a host. What is
//! outside comes in through an input, which the project file binds: so the same file serves every workspace.

use super::{Port, main_port};
use crate::{
    DeclaredResource, EnvSource, ServiceField, WorkspaceField,
    findings::{Findings, nearest, one_of, quote},
    section,
    tree::{Node, Value},
};
use envforge_api::resource::ResourceKind;
use std::collections::BTreeMap;

/// What references may name.
pub(super) struct Declared<'d> {
    pub(super) resources: &'d BTreeMap<ResourceKind, DeclaredResource>,
    pub(super) inputs: &'d BTreeMap<String, bool>,
    pub(super) ports: &'d [Port],
}

/// Why a reference is refused, and the mend.
type Refused = (String, String);

pub(super) fn check(f: &mut Findings<'_>, node: &Node, declared: &Declared<'_>) -> Vec<(String, EnvSource)> {
    let mut found = Vec::new();
    for entry in section::entries(f, node, "`environment`", "environment: { NODE_ENV: development }") {
        if !section::is_identifier(&entry.key) {
            let reason = format!("{} is not the name of a variable", quote(&entry.key));
            f.add(entry.at, reason, "use letters, digits and underscores, not beginning with a digit");
        } else if entry.key == "PORT" {
            let mend = "remove it: the value is the port `http`, or the only one declared";
            f.add(entry.at, "`PORT` is set by EnvForge", mend);
        } else if let Some(source) = value(f, &entry.key, &entry.value, declared) {
            found.push((entry.key.clone(), source));
        }
    }
    found
}

fn value(f: &mut Findings<'_>, name: &str, node: &Node, declared: &Declared<'_>) -> Option<EnvSource> {
    let what = format!("the variable `{name}`");
    let mend = "write a value, `\"\"` for an empty one, or `{ from: … }`";
    if node.is_null() {
        f.add(node.at, format!("{what} has no value"), mend);
        return None;
    }
    match &node.value {
        Value::Scalar { text, .. } if text.contains('\0') => {
            f.add(node.at, format!("{what} has a NUL character in it"), "remove it");
            None
        }
        Value::Scalar { text, .. } => {
            if let Some(host) = foreign_host(text) {
                let reason = format!("{what} names the host {}, which no workspace knows", quote(host));
                // The line may hold a password before the host.
                if text.contains('@') {
                    f.add_hidden(node.at, reason, OUTSIDE)
                } else {
                    f.add(node.at, reason, OUTSIDE)
                }
                return None;
            }
            Some(EnvSource::Literal { value: text.clone() })
        }
        Value::Map(_) => {
            let fields = section::section(f, node, &what, &["from"], false)?;
            let Some(from) = fields.get("from") else {
                f.add(node.at, format!("{what} does not say where its value comes from"), "write `{ from: … }`");
                return None;
            };
            let given = section::text(f, from, "`from`")?;
            match reference(given, declared) {
                Ok(source) => Some(source),
                Err((reason, mend)) => {
                    f.add(from.at, reason, mend);
                    None
                }
            }
        }
        Value::List(_) | Value::Broken => {
            section::wrong(f, node, &what, "text or `{ from: … }`", mend);
            None
        }
    }
}

const ROOTS: &[&str] = &["resource", "input", "secret", "workspace", "service"];

fn reference(given: &str, declared: &Declared<'_>) -> Result<EnvSource, Refused> {
    let parts: Vec<&str> = given.split('.').collect();
    match parts[..] {
        ["resource", kind, field] => resource(given, kind, field, declared),
        ["input", name] if declared.inputs.contains_key(name) => Ok(EnvSource::Input { name: name.to_owned() }),
        ["input", name] => {
            let known = declared.inputs.keys().map(String::as_str);
            let mend = match nearest(name, known) {
                Some(word) => format!("did you mean `input.{word}`? Otherwise declare it under `inputs`"),
                None => "declare it: `inputs: { NAME: { required: true } }`".to_owned(),
            };
            Err((format!("the input {} is not declared", quote(name)), mend))
        }
        ["secret", name] if section::is_identifier(&name.replace('-', "_")) => {
            Ok(EnvSource::Secret { name: name.to_owned() })
        }
        ["secret", name] => {
            let mend = "use letters, digits, hyphens and underscores, beginning with a letter";
            Err((format!("{} is not the name of a secret", quote(name)), mend.to_owned()))
        }
        ["workspace", field] => match field {
            "slug" => Ok(EnvSource::Workspace { field: WorkspaceField::Slug }),
            "branch" => Ok(EnvSource::Workspace { field: WorkspaceField::Branch }),
            "project" => Ok(EnvSource::Workspace { field: WorkspaceField::Project }),
            "organization" => Ok(EnvSource::Workspace { field: WorkspaceField::Organization }),
            _ => Err(no_field("workspace", field, &["slug", "branch", "project", "organization"])),
        },
        ["service", "url" | "internal_url"] if main_port(declared.ports).is_none() => Err((
            format!("{} needs a port called `http` or a single port", quote(given)),
            "declare `ports: { http: 3000 }`".to_owned(),
        )),
        ["service", "url"] => Ok(EnvSource::Service { field: ServiceField::Url }),
        ["service", "internal_url"] => Ok(EnvSource::Service { field: ServiceField::InternalUrl }),
        ["service", field] => Err(no_field("service", field, &["url", "internal_url"])),
        [root, ..] if ROOTS.contains(&root) => Err((
            format!("{} is not a reference", quote(given)),
            "write `resource.KIND.FIELD`, `input.NAME`, `secret.NAME`, `workspace.FIELD` or `service.FIELD`".to_owned(),
        )),
        _ => Err(outside(given, &parts)),
    }
}

fn resource(given: &str, kind: &str, field: &str, declared: &Declared<'_>) -> Result<EnvSource, Refused> {
    let Ok(known) = kind.parse::<ResourceKind>() else {
        let kinds = ResourceKind::ALL.iter().map(|kind| kind.as_str());
        let mend = match nearest(kind, kinds.clone()) {
            Some(word) => format!("did you mean `resource.{word}.{field}`?"),
            None => format!("the kinds are {}", one_of(kinds)),
        };
        return Err((format!("{} is not a resource", quote(kind)), mend));
    };
    if !known.fields().contains(&field) {
        return Err(no_field(&format!("resource.{known}"), field, known.fields()));
    }
    if !declared.resources.contains_key(&known) {
        let reason = format!("{}: the resource `{known}` is not declared", quote(given));
        return Err((reason, format!("declare it: `resources: {{ {known}: {{ required: true }} }}`")));
    }
    Ok(EnvSource::Resource { kind: known, field: field.to_owned() })
}

fn no_field(of: &str, field: &str, known: &[&str]) -> Refused {
    let choice = format!("the fields are {}", one_of(known.iter().copied()));
    let mend = match nearest(field, known.iter().copied()) {
        Some(word) => format!("did you mean `{of}.{word}`? {choice}"),
        None => choice,
    };
    (format!("`{of}` has no field {}", quote(field)), mend)
}

/// The mend for everything that is another's.
const OUTSIDE: &str = "for another service, declare an input (`inputs: { NAME: { required: true } }`), write \
                       `{ from: input.NAME }` here and bind it in the project file; for data, write \
                       `{ from: resource.KIND.FIELD }`";

/// Schemes of addresses that one service has of another in set-ups where services find each other by name.
const SCHEMES: &[&str] =
    &["http", "https", "ws", "wss", "postgres", "postgresql", "mysql", "mongodb", "redis", "rediss", "amqp", "smtp"];

/// The host of a written address that can only be another service (`http://backend:4100`) or one certain workspace
/// (`http://web--x--acme.dev.localhost`). Addresses on the Internet and on `localhost` are plain values.
fn foreign_host(text: &str) -> Option<&str> {
    let (scheme, rest) = text.split_once("://")?;
    if !SCHEMES.contains(&scheme) {
        return None;
    }
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = host.split(':').next()?;
    let by_name = host.starts_with(|c: char| c.is_ascii_alphabetic())
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    ((by_name && host != "localhost") || host.ends_with(".localhost")).then_some(host)
}

/// Something that is none of the service's own: another service, a host, or a slip.
fn outside(given: &str, parts: &[&str]) -> Refused {
    if let Some(word) = nearest(parts[0], ROOTS.iter().copied())
        && parts.len() > 1
    {
        return (format!("{} is not a reference", quote(given)), format!("did you mean `{word}.…`?"));
    }
    if given.contains("://") || given.contains([':', '/']) || parts.len() > 2 || parts[0] == "localhost" {
        return (
            format!("{} names a host: a service does not know where others are", quote(given)),
            OUTSIDE.to_owned(),
        );
    }
    if parts.len() == 2 {
        return (format!("{} refers to another service, which is not allowed", quote(given)), OUTSIDE.to_owned());
    }
    (
        format!("{} is not a reference", quote(given)),
        format!("write a plain value without `from`, or begin with {}", one_of(ROOTS.iter().copied())),
    )
}
