//! Reads envforge.yml from working trees, as hostile input.

use crate::{
    daemon::hub::{Hub, Workspace},
    system::{files::Beneath, sandbox::Sandbox},
};
use envforge_api::{
    host::WorkspaceIntent,
    names::ServiceName,
    project::{ProjectService, ProjectSpec},
    states::Trouble,
};
use envforge_manifest::{FoundManifest, WorkspaceFacts, faces, parse_service};
use std::{collections::BTreeMap, io, path::Path};

/// Largest envforge.yml, in octets.
const LARGEST: u64 = 256 << 10;

/// Reads the envforge.yml of every service from the working tree: no links followed, at most 256 KiB.
pub async fn read(sandbox: &Sandbox, spec: &ProjectSpec) -> BTreeMap<ServiceName, FoundManifest> {
    let files = match Beneath::open(&sandbox.files()) {
        Ok(files) => files,
        Err(error) => {
            let missing = FoundManifest::Missing(super::trouble(error));
            return spec.services.iter().map(|s| (s.name.clone(), missing.clone())).collect();
        }
    };
    let checkouts = spec.checkouts();
    let mut found = BTreeMap::new();
    for service in &spec.services {
        let directory = checkouts.iter().find(|c| c.services.contains(&service.name)).map(|c| c.directory.as_str());
        found.insert(service.name.clone(), read_one(&files, service, directory.unwrap_or_default()));
    }
    found
}

fn read_one(files: &Beneath, service: &ProjectService, directory: &str) -> FoundManifest {
    let base = Path::new(directory).join(service.path.as_deref().unwrap_or_default());
    let path = base.join("envforge.yml");
    let shown = path.to_string_lossy().into_owned();
    let bytes = match files.read(&path, LARGEST) {
        Ok(bytes) => bytes,
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => {
            let hint = format!("write /workspace/{shown}: docs/manifest.md says what it holds");
            return FoundManifest::Missing(Trouble::new(format!("{shown} is not there"), hint));
        }
        Err(error) => return FoundManifest::Missing(super::trouble(error)),
    };
    let Ok(text) = String::from_utf8(bytes) else {
        return FoundManifest::Missing(Trouble::new(format!("{shown} is not UTF-8 text"), "save it as UTF-8"));
    };
    match parse_service(&shown, &text) {
        Ok(manifest) => FoundManifest::Good(Box::new(manifest)),
        Err(findings) => FoundManifest::Bad(findings),
    }
}

/// Notes what services show to a gateway.
pub fn show_faces(hub: &Hub, workspace: &Workspace, spec: &ProjectSpec, found: &BTreeMap<ServiceName, FoundManifest>) {
    let changed = workspace.faces.send_if_modified(|known| {
        let now = faces(spec, found, known);
        let changed = *known != now;
        *known = now;
        changed
    });
    if changed {
        hub.touch(&workspace.id);
    }
}

/// What a manifest may refer to.
#[must_use]
pub fn facts(intent: &WorkspaceIntent) -> WorkspaceFacts {
    WorkspaceFacts {
        slug: intent.slug.clone(),
        branch: intent.branch.clone(),
        project: intent.project.clone(),
        organization: intent.organization.clone(),
        urls: intent.urls.clone(),
    }
}
