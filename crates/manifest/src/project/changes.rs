//! What applying a project file would change, one line for each difference.

use super::modes;
use envforge_api::{
    project::{BindingValue, ProjectService, ProjectSpec, ResourceSetting},
    resource::ResourceScope,
};
use std::collections::{BTreeMap, BTreeSet};

/// Parts of a project in the order in which they are told: rank and name, and a value where one is worth showing.
type Parts = BTreeMap<(u8, String), String>;

pub(crate) fn changes(old: Option<&ProjectSpec>, new: &ProjectSpec) -> Vec<String> {
    let mut lines = Vec::new();
    match old {
        None => lines.push(format!("+ project {}", new.project)),
        Some(old) if old.project != new.project => lines.push(format!("~ project {} → {}", old.project, new.project)),
        Some(_) => {}
    }
    lines.extend(services(old, new));
    let (before, after) = (old.map(parts).unwrap_or_default(), parts(new));
    let keys: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let effects = old.map(|old| modes::effects(old, new)).unwrap_or_default();
    for key in keys {
        let name = &key.1;
        let line = match (before.get(key), after.get(key)) {
            (None, Some(value)) => format!("+ {name}: {value}"),
            (Some(_), None) => format!("- {name}"),
            (Some(was), Some(is)) if was != is => format!("~ {name}: {was} → {is}"),
            _ => continue,
        };
        lines.push(match effects.get(name) {
            Some(effect) => format!("{line}: {effect}"),
            None => line,
        });
    }
    if lines.is_empty() && old.is_some_and(|old| old != new) {
        lines.push("~ order of services or inputs".to_owned());
    }
    lines
}

fn services(old: Option<&ProjectSpec>, new: &ProjectSpec) -> Vec<String> {
    let by_name = |spec: &ProjectSpec| -> BTreeMap<String, ProjectService> {
        spec.services.iter().map(|service| (service.name.to_string(), service.clone())).collect()
    };
    let (before, after) = (old.map(by_name).unwrap_or_default(), by_name(new));
    let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let mut lines = Vec::new();
    for name in names {
        match (before.get(name), after.get(name)) {
            (None, _) => lines.push(format!("+ service {name}")),
            (Some(_), None) => lines.push(format!("- service {name}")),
            (Some(was), Some(is)) => {
                let differences = service_differences(was, is);
                if !differences.is_empty() {
                    lines.push(format!("~ service {name}: {}", differences.join(", ")));
                }
            }
        }
    }
    lines
}

fn service_differences(was: &ProjectService, is: &ProjectService) -> Vec<String> {
    let path = |service: &ProjectService| service.path.clone().unwrap_or_else(|| ".".to_owned());
    let port = |number: Option<&u16>| number.map_or("as declared".to_owned(), u16::to_string);
    let mut found = Vec::new();
    if was.repo != is.repo {
        found.push(format!("repo {} → {}", was.repo, is.repo));
    }
    if was.path != is.path {
        found.push(format!("path {} → {}", path(was), path(is)));
    }
    let names: BTreeSet<_> = was.ports.keys().chain(is.ports.keys()).collect();
    for name in names {
        let (before, after) = (was.ports.get(name), is.ports.get(name));
        if before != after {
            found.push(format!("port {name} {} → {}", port(before), port(after)));
        }
    }
    found
}

fn parts(spec: &ProjectSpec) -> Parts {
    let mut parts = Parts::new();
    for (service, routes) in &spec.routes {
        for (path, target) in routes {
            parts.insert((0, format!("route {service} {path}")), target.to_string());
        }
    }
    for binding in &spec.inputs {
        parts.insert((1, format!("input {}.{}", binding.service, binding.input)), value_text(&binding.value));
    }
    for (kind, setting) in &spec.resources {
        parts.insert((2, format!("resource {kind}")), setting_text(*setting));
    }
    if let Some(size) = spec.runtime.size {
        parts.insert((3, "runtime size".to_owned()), size.to_string());
    }
    if let Some(seconds) = spec.runtime.sleep_after_seconds {
        parts.insert((3, "runtime sleep after".to_owned()), duration_text(seconds));
    }
    parts
}

/// The value of an input as it is written in the file.
pub(crate) fn value_text(value: &BindingValue) -> String {
    match value {
        BindingValue::Route { path } => format!("route {path}"),
        BindingValue::Url { service } => format!("{service}.url"),
        BindingValue::InternalUrl { service } => format!("{service}.internal_url"),
        BindingValue::Output { service, output } => format!("{service}.{output}"),
    }
}

fn setting_text(setting: ResourceSetting) -> String {
    match setting.scope {
        ResourceScope::Workspace => setting.mode.to_string(),
        ResourceScope::Service => format!("{}, one for each service", setting.mode),
    }
}

fn duration_text(seconds: u64) -> String {
    match seconds {
        s if s.is_multiple_of(3600) => format!("{}h", s / 3600),
        s if s.is_multiple_of(60) => format!("{}m", s / 60),
        s => format!("{s}s"),
    }
}
