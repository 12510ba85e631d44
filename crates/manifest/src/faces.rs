//! What the services of a project show to a gateway: ports after the project's overrides, path families, the way of
//! proxying. A file that cannot be used now hides nothing that was seen of its service before.

use crate::{FoundManifest, join::ports_of};
use envforge_api::{host::Face, names::ServiceName, project::ProjectSpec};
use std::collections::BTreeMap;

/// The faces of a project's services, in its order; `before` is what was known of them.
#[must_use]
pub fn faces(spec: &ProjectSpec, found: &BTreeMap<ServiceName, FoundManifest>, before: &[Face]) -> Vec<Face> {
    let face = |service: &ServiceName| match found.get(service) {
        Some(FoundManifest::Good(manifest)) => {
            let entry = spec.services.iter().find(|entry| entry.name == *service)?;
            let (ports, main) = ports_of(entry, Some(manifest));
            let (families, proxy) = (manifest.routes.clone(), manifest.proxy);
            Some(Face { service: service.clone(), ports, main, families, proxy })
        }
        Some(FoundManifest::Bad(_) | FoundManifest::Missing(_)) | None => {
            before.iter().find(|known| known.service == *service).cloned()
        }
    };
    spec.services.iter().filter_map(|entry| face(&entry.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{parse_project, parse_service};
    use envforge_api::{dev_host::ProxyMode, link::Family};

    fn found(texts: &[(&str, &str)]) -> BTreeMap<ServiceName, FoundManifest> {
        let read = |text: &str| match parse_service("envforge.yml", text) {
            Ok(manifest) => FoundManifest::Good(Box::new(manifest)),
            Err(findings) => FoundManifest::Bad(findings),
        };
        texts.iter().map(|(name, text)| (name.parse().expect("a service"), read(text))).collect()
    }

    #[test]
    fn a_face_has_the_ports_of_the_project_and_stays_as_it_was_while_its_file_is_bad() {
        let spec = "project: p\nservices:\n  web: { repo: /srv/web.git, ports: { http: 3001 } }\n  api: { repo: /srv/api.git }\n  job: { repo: /srv/job.git }\n";
        let spec = parse_project("p.yml", spec).expect("a project");
        let web = "version: 1\nservice: { name: Web, command: run }\nports: { http: 3000, admin: 3100 }\nroutes: [ { path: /api, family: api } ]\nproxy: forwarded\n";
        let api = "version: 1\nservice: { name: Api, command: run }\nports: { grpc: 9000 }\n";
        let seen = faces(&spec, &found(&[("web", web), ("api", api)]), &[]);
        let named = |face: &Face| (face.service.to_string(), face.main_port());
        assert_eq!(
            seen.iter().map(named).collect::<Vec<_>>(),
            [("web".into(), Some(3001)), ("api".into(), Some(9000))]
        );
        assert_eq!(
            (seen[0].proxy, seen[0].families.clone()),
            (ProxyMode::Forwarded, vec![("/api".into(), Family::Api)])
        );
        assert_eq!(
            seen[0].further_ports().map(|(name, port)| (name.as_str(), port)).collect::<Vec<_>>(),
            [("admin", 3100)]
        );
        assert_eq!(seen[1].proxy, ProxyMode::Localhost);
        assert_eq!(faces(&spec, &found(&[("web", "version: 7"), ("api", api)]), &seen), seen);
    }
}
