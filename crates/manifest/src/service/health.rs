//! `health`: how a service shows that it serves.

use super::{Port, main_port, named_port};
use crate::{
    Health, Probe,
    findings::{Findings, quote},
    section,
    tree::{Node, Value, as_bool},
};
use envforge_api::names::ServiceName;

/// Keys of `health`.
pub(crate) const KEYS: &[&str] = &["http", "tcp", "command", "port", "interval", "timeout", "start_period"];

pub(super) fn check(f: &mut Findings<'_>, node: &Node, ports: &[Port]) -> Option<Health> {
    let fields = section::section(f, node, "`health`", KEYS, false)?;
    let mut time = |key: &str, least: u64, default: u64| {
        fields.get(key).and_then(|node| section::duration(f, node, &format!("`{key}`"), least)).unwrap_or(default)
    };
    let interval_ms = time("interval", 50, Health::DEFAULT_INTERVAL_MS);
    let timeout_ms = time("timeout", 10, Health::DEFAULT_TIMEOUT_MS);
    let start_period_ms = time("start_period", 0, Health::DEFAULT_START_PERIOD_MS);

    let mut probes = ["http", "tcp", "command"].into_iter().filter_map(|key| fields.entry(key));
    let first = probes.next();
    for further in probes {
        f.add(further.at, "a health check has one of `http`, `tcp` and `command`", "keep one of them");
    }
    let port_node = fields.get("port");
    let probe = match first {
        Some(entry) if entry.key == "command" => {
            if let Some(port) = fields.entry("port") {
                f.add(port.at, "`port` has no meaning for a command", "remove `port`, or write `http` or `tcp`");
            }
            Probe::Command { command: section::command(f, &entry.value, "the command of the health check")? }
        }
        Some(entry) if entry.key == "http" => {
            let path = http_path(f, &entry.value);
            let port = port_of(f, port_node, node, ports);
            Probe::Http { path: path?, port: port? }
        }
        Some(entry) => Probe::Tcp { port: tcp_port(f, &entry.value, port_node, node, ports)? },
        None => Probe::Tcp { port: port_of(f, port_node, node, ports)? },
    };
    Some(Health { probe, interval_ms, timeout_ms, start_period_ms })
}

fn http_path(f: &mut Findings<'_>, node: &Node) -> Option<String> {
    let given = section::text(f, node, "the path of the health check")?;
    let mend = "write a path on the service itself, such as `/healthz`";
    if given.contains("://") {
        f.add(node.at, format!("{} names a host", quote(given)), mend);
        return None;
    }
    if !given.starts_with('/') || given.contains(|c: char| c.is_control() || c.is_whitespace() || !c.is_ascii()) {
        f.add(node.at, format!("{} is not a path that can be asked for", quote(given)), mend);
        return None;
    }
    Some(given.to_owned())
}

/// The port named by `tcp: NAME`, else the one that `port` names. `tcp: true` and `tcp:` name none.
fn tcp_port(
    f: &mut Findings<'_>,
    tcp: &Node,
    port: Option<&Node>,
    health: &Node,
    ports: &[Port],
) -> Option<ServiceName> {
    let says_only_tcp =
        tcp.is_null() || matches!(&tcp.value, Value::Scalar { text, plain: true } if as_bool(text) == Some(true));
    match port {
        Some(_) if !says_only_tcp => {
            f.add(tcp.at, "the port of the health check is named twice", "write `tcp: NAME` without `port`");
            None
        }
        None if !says_only_tcp => named_port(f, tcp, ports),
        _ => port_of(f, port, health, ports),
    }
}

fn port_of(f: &mut Findings<'_>, port: Option<&Node>, health: &Node, ports: &[Port]) -> Option<ServiceName> {
    match (port, main_port(ports)) {
        (Some(node), _) => named_port(f, node, ports),
        (None, Some(main)) => Some(main.name.clone()),
        (None, None) => {
            let reason = if ports.is_empty() {
                "the health check needs a port, and none is declared"
            } else {
                "the health check does not say which of the ports it means"
            };
            f.add(health.at, reason, "declare `ports: { http: 3000 }`, or name a port with `port: NAME`");
            None
        }
    }
}
