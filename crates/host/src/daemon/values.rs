//! Values of managed resources that the host made up, each once: passwords, numbers, buckets with their keys, and the
//! names of the data. Kept with the workspace in `state/resources.json`; every change of that file is made here.

use crate::{
    resources::{self, storage::Keyring},
    system::{SystemError, files, sandbox::Sandbox},
};
use envforge_api::{
    ids::WorkspaceId,
    names::ServiceName,
    resource::{ResourceKind, ResourceMode},
    secret::Secret,
};
use envforge_manifest::ResolvedResource;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// What was made up for one workspace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Values {
    #[serde(default)]
    passwords: BTreeMap<ResourceKind, Secret>,
    /// Of databases that a service has for itself.
    #[serde(default)]
    passwords_of_services: BTreeMap<ServiceName, Secret>,
    /// Numbers of the Redis databases that services have for themselves. None is ever given to another.
    #[serde(default)]
    numbers: BTreeMap<ResourceKind, BTreeMap<ServiceName, u16>>,
    /// Names the data of this workspace: new data has a new name.
    #[serde(default)]
    data: String,
    /// How often the data of one resource was made anew.
    #[serde(default)]
    resets: BTreeMap<ResourceKind, u32>,
    #[serde(default)]
    storage: Keyring,
}

/// Held while a workspace's file is changed: two that describe one at the same moment make up one password, not two.
static CHANGING: Mutex<()> = Mutex::new(());

/// Where they are kept.
fn path(sandbox_dir: &Path) -> PathBuf {
    sandbox_dir.join("state").join("resources.json")
}

/// Changes what is kept, if `change` changes it.
fn change(sandbox_dir: &Path, change: impl FnOnce(&mut Values)) -> Result<Values, SystemError> {
    let _alone = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
    let known = Values::of(sandbox_dir);
    let mut values = known.clone();
    change(&mut values);
    if values != known {
        let bytes = serde_json::to_vec(&values).unwrap_or_default();
        files::write_durably(&path(sandbox_dir), &bytes, 0o600)?;
    }
    Ok(values)
}

/// The values for these resources; what is missing is made up and kept.
///
/// # Errors
/// When the disk refuses.
pub(super) fn complete(sandbox: &Sandbox, resources: &[ResolvedResource]) -> Result<Values, SystemError> {
    change(&sandbox.dir, |values| values.complete(&sandbox.workspace, resources))
}

/// Has these resources made anew: whoever describes them from here on says so, and whoever starts their servers wipes them.
///
/// # Errors
/// When the disk refuses; nothing is to be wiped then.
pub(super) fn renew(sandbox_dir: &Path, kinds: &BTreeSet<ResourceKind>) -> Result<(), SystemError> {
    let renewed =
        change(sandbox_dir, |values| kinds.iter().for_each(|kind| *values.resets.entry(*kind).or_default() += 1));
    renewed.map(drop)
}

/// The values of a copied workspace, from those of its source: what names the data stays, since that is the same (what was
/// set up for it need not be set up again); everything that opens it is made anew. Its storage is what it has already.
#[must_use]
pub(super) fn of_copy(source: &[u8], storage: Keyring) -> Vec<u8> {
    let known: Values = serde_json::from_slice(source).unwrap_or_default();
    let values =
        Values { numbers: known.numbers, data: known.data, resets: known.resets, storage, ..Values::default() };
    serde_json::to_vec(&values).unwrap_or_default()
}

/// Makes up the storage of a workspace that is to be a copy, before there is anything in it: whoever removes the workspace
/// then knows what to remove.
pub(super) fn storage_of_copy(
    sandbox_dir: &Path,
    workspace: &WorkspaceId,
    source: &Keyring,
) -> Result<Keyring, SystemError> {
    let values = change(sandbox_dir, |values| values.storage.follow(workspace, source));
    values.map(|values| values.storage)
}

impl Values {
    /// Those of the workspace there, as far as its host made them up already.
    #[must_use]
    pub(super) fn of(sandbox_dir: &Path) -> Self {
        let bytes = fs::read(path(sandbox_dir)).ok();
        bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// Makes up what is missing.
    fn complete(&mut self, workspace: &WorkspaceId, resources: &[ResolvedResource]) {
        self.passwords.entry(ResourceKind::Database).or_insert_with(|| Secret::random(20));
        if self.data.is_empty() {
            self.data = Secret::random(10).expose().to_owned();
        }
        let managed = |r: &&ResolvedResource| r.kind == ResourceKind::Storage && r.mode == ResourceMode::Managed;
        resources.iter().filter(managed).for_each(|r| self.storage.complete(workspace, r.service.as_ref()));
        for (kind, service) in resources.iter().filter_map(|r| Some((r.kind, r.service.clone()?))) {
            match kind {
                ResourceKind::Database => {
                    self.passwords_of_services.entry(service).or_insert_with(|| Secret::random(20));
                }
                ResourceKind::Cache | ResourceKind::Queue => {
                    let given = self.numbers.values().flat_map(BTreeMap::values).max();
                    let next = given.map_or(resources::SHARED_NUMBERS, |last| last + 1);
                    self.numbers.entry(kind).or_default().entry(service).or_insert(next);
                }
                ResourceKind::Storage | ResourceKind::Mail => {}
            }
        }
    }

    /// The fields of a managed resource; `storage` is where browsers reach the workspace's storage.
    #[must_use]
    pub(super) fn fields(
        &self,
        kind: ResourceKind,
        service: Option<&ServiceName>,
        storage: Option<&str>,
    ) -> BTreeMap<String, Secret> {
        if kind == ResourceKind::Storage {
            return self.storage.bucket(service).map(|bucket| bucket.fields(storage)).unwrap_or_default();
        }
        let none = Secret::new(String::new());
        let (password, number) = match service {
            None => (self.passwords.get(&kind), Some(u16::from(kind == ResourceKind::Queue))),
            Some(service) => (
                self.passwords_of_services.get(service),
                self.numbers.get(&kind).and_then(|of| of.get(service)).copied(),
            ),
        };
        let (password, number) = (password.unwrap_or(&none), number.unwrap_or_default());
        resources::fields(kind, resources::Part { service, password, number })
    }

    /// Names the data of these resources: other data has another name.
    #[must_use]
    pub(super) fn data_of(&self, kinds: impl IntoIterator<Item = ResourceKind>) -> String {
        let mut name = self.data.clone();
        for kind in kinds {
            if let Some(times) = self.resets.get(&kind) {
                name.push_str(&format!(" {kind} {times}"));
            }
        }
        name
    }

    /// How often this resource was made anew.
    #[must_use]
    pub(super) fn resets(&self, kind: ResourceKind) -> u32 {
        self.resets.get(&kind).copied().unwrap_or_default()
    }

    /// The buckets and their keys.
    #[must_use]
    pub(super) fn keyring(&self) -> &Keyring {
        &self.storage
    }

    /// What must not be shown.
    pub(super) fn secrets(&self) -> impl Iterator<Item = &Secret> {
        let of_storage = self.storage.all().map(|bucket| &bucket.keys.secret_key);
        self.passwords.values().chain(self.passwords_of_services.values()).chain(of_storage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use envforge_api::resource::ResourceScope;

    #[test]
    fn what_a_service_has_for_itself_keeps_its_names_and_is_no_other_s() {
        let resource = |kind, service: Option<&str>| ResolvedResource {
            kind,
            mode: ResourceMode::Managed,
            scope: ResourceScope::Service,
            service: service.map(|name| name.parse().expect("a name")),
            consumers: vec![],
            extensions: vec![],
            seeds: vec![],
        };
        let of = |service| {
            [ResourceKind::Cache, ResourceKind::Queue, ResourceKind::Database].map(|kind| resource(kind, service))
        };
        let mut values = Values::default();
        let id = WorkspaceId::generate();
        values.complete(&id, &of(Some("web-b")));
        let first = values.clone();
        // A service that is gone for a while, and back later, finds what it left.
        values.complete(&id, &of(Some("api")));
        values.complete(&id, &[of(None), of(Some("web-b"))].concat());
        let url = |values: &Values, kind, service: Option<&str>| {
            let service = service.map(|name| name.parse().expect("a name"));
            values.fields(kind, service.as_ref(), None)["url"].expose().to_owned()
        };
        let all = [None, Some("web-b"), Some("api")];
        let urls = all.map(|service| {
            [ResourceKind::Cache, ResourceKind::Queue, ResourceKind::Database].map(|kind| url(&values, kind, service))
        });
        assert_eq!(urls.as_flattened().iter().collect::<BTreeSet<_>>().len(), 9, "each has its own: {urls:?}");
        assert_eq!(
            url(&first, ResourceKind::Database, Some("web-b")),
            url(&values, ResourceKind::Database, Some("web-b"))
        );
        assert!(urls[1][2].starts_with("postgres://app_web_b:") && urls[1][2].ends_with("@localhost:5432/app_web_b"));
        assert_eq!(&urls[0][..2], ["redis://localhost:6379/0", "redis://localhost:6379/1"]);
        assert_eq!(values.secrets().count(), 3);
    }

    #[test]
    fn a_copy_has_its_data_under_the_same_names_and_credentials_of_its_own() {
        let shared = ResolvedResource {
            kind: ResourceKind::Database,
            mode: ResourceMode::Managed,
            scope: ResourceScope::Workspace,
            service: None,
            consumers: vec![],
            extensions: vec![],
            seeds: vec![],
        };
        let mut source = Values::default();
        source.complete(&WorkspaceId::generate(), std::slice::from_ref(&shared));
        let copied = of_copy(&serde_json::to_vec(&source).expect("JSON"), Keyring::default());
        let mut copy: Values = serde_json::from_slice(&copied).expect("values");
        copy.complete(&WorkspaceId::generate(), &[shared]);
        assert_eq!((&copy.data, &copy.numbers), (&source.data, &source.numbers));
        assert_ne!(copy.passwords, source.passwords);
        assert!(copy.secrets().all(|secret| !source.secrets().any(|of| of == secret)));
    }

    #[test]
    fn changes_at_the_same_moment_are_all_kept() {
        let dir = tempfile::tempdir().expect("directory");
        fs::create_dir(dir.path().join("state")).expect("directory");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| renew(dir.path(), &BTreeSet::from([ResourceKind::Database])).expect("renewed"));
            }
        });
        assert_eq!(Values::of(dir.path()).resets(ResourceKind::Database), 8);
    }
}
