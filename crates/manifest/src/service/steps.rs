//! `setup`, `tests` and `routes`.

use crate::{
    Layer, RouteFamily, Step,
    findings::{Findings, quote},
    section::{self, Section},
    tree::{Node, Value},
};
use std::str::FromStr;

/// Keys of a setup step or test.
pub(crate) const STEP: &[&str] = &["run", "layer", "changes"];
/// The words of `layer`.
pub(crate) const LAYERS: &[&str] = &["shell", "runtime"];
/// The words of `family`.
pub(crate) const FAMILIES: &[&str] = &["web", "api", "assets", "websockets"];

pub(super) fn check(f: &mut Findings<'_>, node: &Node, key: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let example = format!("{key}: {{ NAME: [command] }}");
    for entry in section::entries(f, node, &format!("`{key}`"), &example) {
        let name = section::name(f, entry.at, &entry.key, if key == "tests" { "a test" } else { "a setup step" });
        let what = format!("{} in `{key}`", quote(&entry.key));
        let (mut layer, mut changes) = (Layer::Runtime, Vec::new());
        let run = if matches!(entry.value.value, Value::Map(_)) {
            let Some(fields) = section::section(f, &entry.value, &what, STEP, false) else { continue };
            if let Some(node) = fields.get("layer") {
                layer = section::word(f, node, "layer", LAYERS).unwrap_or(Layer::Runtime);
            }
            if let Some(node) = fields.get("changes") {
                changes = section::paths(f, node, "a file under `changes`");
            }
            let Some(run) = fields.get("run") else {
                f.add(entry.at, format!("{what} has nothing to run"), "add `run: [command]`");
                continue;
            };
            commands(f, run, &what)
        } else {
            commands(f, &entry.value, &what)
        };
        if let (Some(name), Some(run)) = (name, run) {
            steps.push(Step { name, run, layer, changes });
        }
    }
    steps
}

fn commands(f: &mut Findings<'_>, node: &Node, what: &str) -> Option<Vec<String>> {
    let items = section::items(f, node, what)?;
    if items.is_empty() {
        f.add(node.at, format!("{what} has nothing to run"), "write at least one command, or remove it");
        return None;
    }
    Some(items.iter().filter_map(|item| section::command(f, item, &format!("a command of {what}"))).collect())
}

pub(super) fn routes(f: &mut Findings<'_>, top: Section<'_>) -> Vec<(String, RouteFamily)> {
    let mut routes: Vec<(String, RouteFamily)> = Vec::new();
    let Some(node) = top.get("routes") else { return routes };
    let Value::List(items) = &node.value else {
        section::wrong(f, node, "`routes`", "a list", "write it as `routes: [ { path: /api, family: api } ]`");
        return routes;
    };
    for item in items {
        let Some(fields) = section::section(f, item, "a route", &["path", "family"], false) else { continue };
        for key in ["path", "family"] {
            if fields.get(key).is_none() {
                f.add(item.at, format!("this route has no `{key}`"), "write it as `{ path: /api, family: api }`");
            }
        }
        let path = fields.get("path").and_then(|node| {
            let given = section::text(f, node, "the path of a route")?;
            let path = section::route_path(f, node.at, given)?;
            if routes.iter().any(|(known, _)| *known == path) {
                f.add(node.at, format!("the path {} has two routes", quote(&path)), "keep one of them");
            }
            Some(path)
        });
        let family = fields.get("family").and_then(|node| section::word(f, node, "route family", FAMILIES));
        routes.extend(path.zip(family));
    }
    routes
}

impl FromStr for Layer {
    type Err = ();

    fn from_str(given: &str) -> Result<Self, ()> {
        match given {
            "shell" => Ok(Self::Shell),
            "runtime" => Ok(Self::Runtime),
            _ => Err(()),
        }
    }
}
