//! Which labels the dev hosts of a workspace get. Pure.
//!
//! A workspace's own part keeps its labels apart from every other's, so that only those of one workspace can meet:
//! `web-admin` the service and `admin` of `web` the port, or two long names with one beginning. The first to be known
//! has the plain label, and the other one with a digest; none is ever changed.

use super::store::DevHost;
use crate::http::errors::{Failure, unreadable};
use envforge_api::{
    dev_host::{HostLabel, STORAGE, port_part, service_part},
    host::Face,
    names::{ServiceName, short_hash},
    problem::Problem,
    project::ProjectSpec,
};

/// Digits and hyphen of a digest, taken off the 16 octets of a service's part.
const HEAD: usize = 9;

/// The labels to try, in order; the digests go on without end.
fn candidates(service: &ServiceName, port: Option<&ServiceName>) -> impl Iterator<Item = String> {
    let (plain, name) = match port {
        Some(port) => (port_part(service, port), format!("{service}.{port}")),
        None => (service_part(service), service.to_string()),
    };
    let head: String = plain.chars().take(HEAD).collect();
    let digests =
        (1_u32..).map(move |n| format!("{}-{}", head.trim_end_matches('-'), short_hash(&format!("{name}#{n}"))));
    std::iter::once(plain).chain(digests)
}

/// The label of presigned storage addresses.
///
/// # Errors
/// When the stored parts make no label.
pub(super) fn storage(workspace: &str, organization: &str) -> Result<HostLabel, Failure> {
    HostLabel::join(STORAGE, workspace, organization).map_err(|_| unreadable("label"))
}

/// What a workspace lacks beside what it has.
///
/// # Errors
/// `invalid` for a service with the reserved name; when the stored parts make no label.
pub(super) fn missing(
    known: &[DevHost],
    spec: &ProjectSpec,
    faces: &[Face],
    workspace: &str,
    organization: &str,
) -> Result<Vec<DevHost>, Failure> {
    let services = spec.services.iter().map(|service| (&service.name, None));
    let ports = faces.iter().flat_map(|face| face.further_ports().map(|(port, _)| (&face.service, Some(port))));
    let mut made: Vec<DevHost> = Vec::new();
    for (service, port) in services.chain(ports) {
        let has = |host: &DevHost| host.service == *service && host.port.as_ref() == port;
        if known.iter().chain(&made).any(has) {
            continue;
        }
        if service.as_str() == STORAGE {
            let reason = "a service cannot be called `storage`: that host name is kept for signed storage addresses";
            return Err(Problem::invalid(reason, "give it another name in the project file, such as `files`").into());
        }
        for part in candidates(service, port) {
            let label = HostLabel::join(&part, workspace, organization).map_err(|_| unreadable("label"))?;
            let taken = known.iter().chain(&made).any(|host| host.label == label);
            if !taken {
                made.push(DevHost { label, service: service.clone(), port: port.cloned() });
                break;
            }
        }
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;
    use envforge_api::{dev_host::ProxyMode, project::ProjectService};
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn spec(services: &[ServiceName]) -> ProjectSpec {
        let service = |name: &ServiceName| ProjectService {
            name: name.clone(),
            repo: "/srv/r.git".into(),
            path: None,
            ports: BTreeMap::new(),
        };
        serde_json::from_value(serde_json::json!({
            "project": "p", "services": services.iter().map(service).collect::<Vec<_>>(),
        }))
        .expect("a project")
    }

    fn face(service: &ServiceName, ports: &[ServiceName]) -> Face {
        let ports = ports.iter().map(|port| (port.clone(), 3000)).collect();
        let proxy = ProxyMode::Localhost;
        Face { service: service.clone(), ports, main: None, families: vec![], proxy }
    }

    fn name(text: &str) -> ServiceName {
        text.parse().expect("a name")
    }

    fn labels(hosts: &[DevHost]) -> Vec<&str> {
        hosts.iter().map(|host| host.label.parts()[0]).collect()
    }

    #[test]
    fn the_first_to_be_known_has_the_plain_label_and_the_reserved_name_is_refused() {
        let (web, admin) = (name("web"), name("admin"));
        let first =
            missing(&[], &spec(std::slice::from_ref(&web)), &[face(&web, &[admin])], "ws", "org").expect("made");
        assert_eq!(labels(&first), ["web", "web-admin"]);
        let later = missing(&first, &spec(&[web.clone(), name("web-admin")]), &[], "ws", "org").expect("made");
        assert_eq!(later.len(), 1);
        assert!(labels(&later)[0].starts_with("web-admin-"), "{later:?}");
        let refused = missing(&first, &spec(&[web, name("storage")]), &[], "ws", "org").expect_err("reserved");
        assert!(refused.0.message.contains("`storage`") && !refused.0.hint.is_empty(), "{refused:?}");
        // One that is older than the reservation keeps what it has.
        let old =
            DevHost { label: "storage-abc--ws--org".parse().expect("a label"), service: name("storage"), port: None };
        assert!(missing(&[old], &spec(&[name("storage")]), &[], "ws", "org").expect("nothing").is_empty());
        assert_eq!(storage("ws", "org").expect("a label").as_str(), "storage--ws--org");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn labels_never_meet_silently(
            names in proptest::collection::btree_set("[ab]{1,2}(-[ab]{1,20}){0,2}", 1..12),
            ports in proptest::collection::btree_set("[ab]{1,2}(-[ab]{1,8})?", 0..6),
            at_once in any::<bool>(),
        ) {
            let services: Vec<_> = names.iter().map(|text| name(text)).collect();
            let ports: Vec<_> = ports.iter().map(|text| name(text)).collect();
            let faces: Vec<_> = services.iter().map(|service| face(service, &ports)).collect();
            let mut known: Vec<DevHost> = Vec::new();
            // Whether they become known at once or one after the other.
            let first = if at_once { services.len() } else { 1 };
            for until in first..=services.len() {
                let more = missing(&known, &spec(&services[..until]), &faces[..until], "ws", "org").expect("made");
                known.extend(more);
            }
            prop_assert_eq!(known.len(), services.len() * (1 + ports.len()));
            let distinct: BTreeSet<_> = known.iter().map(|host| &host.label).collect();
            prop_assert_eq!(distinct.len(), known.len());
            prop_assert!(missing(&known, &spec(&services), &faces, "ws", "org").expect("made").is_empty());
        }
    }
}
