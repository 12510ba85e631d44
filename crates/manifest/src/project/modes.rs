//! What another mode of a resource comes to, told before it is applied.

use envforge_api::{
    project::ProjectSpec,
    resource::{ResourceKind, ResourceMode},
};
use std::collections::BTreeMap;

fn mode(spec: &ProjectSpec, kind: ResourceKind) -> ResourceMode {
    spec.resources.get(&kind).map_or(ResourceMode::Managed, |setting| setting.mode)
}

/// The effect of each mode that differs, by the name of its part (`resource database`).
pub(super) fn effects(old: &ProjectSpec, new: &ProjectSpec) -> BTreeMap<String, String> {
    let each = ResourceKind::ALL.iter().map(|kind| (*kind, mode(old, *kind), mode(new, *kind)));
    let differ = each.filter(|(_, was, is)| was != is);
    differ.map(|(kind, was, is)| (format!("resource {kind}"), effect(kind, was, is))).collect()
}

fn effect(kind: ResourceKind, was: ResourceMode, is: ResourceMode) -> String {
    let url = match kind {
        ResourceKind::Mail => "smtp_url",
        ResourceKind::Storage => "endpoint",
        ResourceKind::Database | ResourceKind::Cache | ResourceKind::Queue => "url",
    };
    let again = "set-up steps of the services that use it run again for the other data";
    let comes = match is {
        ResourceMode::Managed => format!(
            "from each workspace's next wake services get the host's own {kind}: with what the workspace had there before, else a new one; {again}"
        ),
        ResourceMode::Provided => format!(
            "from each workspace's next wake services get the values that `envforge secrets set resource.{kind}.{url}` sets, the same for all workspaces; {again}, seeds do not"
        ),
        ResourceMode::Cloud => format!(
            "from each workspace's next wake services get what the host's provisioner makes for it, empty at first; {again}, and seeds"
        ),
        ResourceMode::Disabled => {
            format!("from each workspace's next wake services get no {kind}, and those that require it are blocked")
        }
    };
    let stays = match was {
        ResourceMode::Managed => {
            "; the managed data stays on the host and is there again when the mode is managed again"
        }
        ResourceMode::Provided => "; the values that were set stay set",
        ResourceMode::Cloud => {
            "; what the provisioner made stays until its workspace is deleted, and is there again when the mode is cloud again"
        }
        ResourceMode::Disabled => "",
    };
    comes + stays
}
