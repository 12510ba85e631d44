//! `bindings.routes`: which paths of one service's origin go to another service.

use super::{Names, Routes};
use crate::{
    findings::{Findings, Pos},
    section,
    tree::{Node, Value},
};
use envforge_api::names::ServiceName;
use std::collections::{BTreeMap, BTreeSet};

pub(super) fn check(f: &mut Findings<'_>, node: &Node, names: &Names) -> Routes {
    let mut routes = Routes::new();
    let mut places: Vec<(Pos, ServiceName, String)> = Vec::new();
    for entry in section::entries(f, node, "`routes`", "routes: { web: { /api: backend } }") {
        let service = names.find(f, entry.at, &entry.key);
        let mut paths = BTreeMap::new();
        for route in section::entries(f, &entry.value, "the routes of a service", "{ /api: backend }") {
            let path = section::route_path(f, route.at, &route.key);
            let target = match &route.value.value {
                Value::Scalar { text, .. } if !route.value.is_null() => names.find(f, route.value.at, text),
                _ => {
                    section::wrong(f, &route.value, "the target of a route", "a service", "write `/api: SERVICE`");
                    None
                }
            };
            if let (Some(service), Some(path), Some(target)) = (&service, path, target) {
                places.push((route.at, service.clone(), path.clone()));
                paths.insert(path, target);
            }
        }
        if let Some(service) = service
            && !paths.is_empty()
        {
            routes.insert(service, paths);
        }
    }
    cycles(f, &routes, &places);
    routes
}

/// The service that a path of `of` goes to: the longest prefix on whole segments.
pub(super) fn covering<'r>(of: &'r BTreeMap<String, ServiceName>, path: &str) -> Option<&'r ServiceName> {
    of.iter()
        .filter(|(prefix, _)| {
            *prefix == "/"
                || path.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
        .max_by_key(|(prefix, _)| prefix.len())
        .map(|(_, target)| target)
}

/// Follows each route through the services it leads to; coming to one a second time is a finding, once per cycle.
fn cycles(f: &mut Findings<'_>, routes: &Routes, places: &[(Pos, ServiceName, String)]) {
    let mut told: BTreeSet<BTreeSet<&ServiceName>> = BTreeSet::new();
    for (at, start, path) in places {
        let mut way = vec![start];
        let mut here = start;
        while let Some(next) = routes.get(here).and_then(|of| covering(of, path)) {
            let seen = way.iter().position(|service| *service == next);
            way.push(next);
            let Some(begin) = seen else {
                here = next;
                continue;
            };
            if told.insert(way[begin..].iter().copied().collect()) {
                let names: Vec<&str> = way[begin..].iter().map(|name| name.as_str()).collect();
                let reason = format!("the route `{path}` goes in a circle: {}", names.join(" → "));
                f.add(*at, reason, "let each path end at the service that answers it");
            }
            break;
        }
    }
}
