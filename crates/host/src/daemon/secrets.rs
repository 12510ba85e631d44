//! What the organization gave to a workspace: asked of the control plane whenever something of it is described to be
//! started, exactly what its manifests declare. What came last is kept with the workspace (`state/secrets.json`, 0600),
//! for a description that is made while the control plane is away and for masking what programs print; what it replaced is
//! masked until the next wake, since something may still have it.

use super::{cloud, elsewhere, hub::Hub};
use crate::{
    resources::outside,
    supervise::redact::Redactor,
    system::{SystemError, files},
};
use envforge_api::{
    client::Client,
    ids::WorkspaceId,
    names::{SecretName, Slug},
    resource::{ResourceKind, ResourceMode},
    secret::Secret,
    secrets::{GivenSecrets, WantedSecrets},
    states::Trouble,
};
use envforge_manifest::{EnvValue, Resolution};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// How long the control plane may take; services wait meanwhile.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long one that was killed may take until it listens again.
const PATIENCE: Duration = Duration::from_secs(3);

/// What lies with the workspace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    values: BTreeMap<SecretName, Secret>,
    /// What was replaced or taken away since the last wake.
    former: Vec<Secret>,
}

fn path(workspace_dir: &Path) -> PathBuf {
    workspace_dir.join("state").join("secrets.json")
}

impl Kept {
    fn of(workspace_dir: &Path) -> Self {
        let bytes = fs::read(path(workspace_dir)).map(zeroize::Zeroizing::new).ok();
        bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }
}

/// Held while a workspace's file is changed.
static CHANGING: Mutex<()> = Mutex::new(());

fn change(workspace_dir: &Path, change: impl FnOnce(&mut Kept)) -> Result<Kept, SystemError> {
    let _alone = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
    let known = Kept::of(workspace_dir);
    let mut kept = known.clone();
    change(&mut kept);
    if kept != known {
        let bytes = zeroize::Zeroizing::new(serde_json::to_vec(&kept).unwrap_or_default());
        files::write_durably(&path(workspace_dir), &bytes, 0o600)?;
    }
    Ok(kept)
}

/// What there is for a description.
#[derive(Debug, Clone, Default)]
pub(super) struct Given {
    values: BTreeMap<SecretName, Secret>,
    unopened: BTreeSet<SecretName>,
    /// The control plane did not answer: these are the values that it gave last.
    away: bool,
    project: Option<Slug>,
    former: Vec<Secret>,
}

impl Given {
    /// A value.
    #[must_use]
    pub(super) fn get(&self, name: &str) -> Option<&Secret> {
        self.values.get(name)
    }

    /// Why there is none, and what sets it.
    #[must_use]
    pub(super) fn missing(&self, name: &str) -> Trouble {
        let project = self.project.as_ref().map(|project| format!(" --project {project}")).unwrap_or_default();
        let set = format!("`envforge secrets set {name}{project}`");
        if self.unopened.contains(name) {
            let hint = format!("put the key back into secrets.key of the control plane, or set it again: {set}");
            return Trouble::new(format!("the secret {name} is sealed with a key that is lost"), hint);
        }
        if self.away {
            let reason = format!("the control plane does not answer, and the secret {name} was not needed here before");
            return Trouble::new(reason, "restart the service when `envforge status` answers again");
        }
        let hint = format!("{set} sets it, then restart the service; an owner or admin may");
        Trouble::new(format!("the secret {name} is not set"), hint)
    }

    /// These and no others.
    #[cfg(test)]
    pub(super) fn with(values: &[(&str, &str)]) -> Self {
        let value = |(name, value): &(&str, &str)| (name.parse().expect("a name"), Secret::new((*value).to_owned()));
        Self { values: values.iter().map(value).collect(), ..Self::default() }
    }

    /// What must not be shown.
    pub(super) fn masked(&self) -> impl Iterator<Item = &Secret> {
        self.values.iter().filter(|(name, _)| is_masked(name)).map(|(_, value)| value).chain(&self.former)
    }
}

/// The names of databases and users, ports and regions are words of ordinary text.
fn is_masked(name: &SecretName) -> bool {
    let plain = ["name", "user", "port", "region", "bucket"];
    let field = name.as_str().strip_prefix("resource.").and_then(|rest| rest.rsplit('.').next());
    field.is_none_or(|field| !plain.contains(&field))
}

/// The secrets that services declare, and the values of what the project provides.
fn declared(resolution: &Resolution) -> BTreeSet<SecretName> {
    let provided = resolution.resources.iter().filter(|resource| resource.mode == ResourceMode::Provided);
    let provided = provided.flat_map(elsewhere::names).map(|(_, name)| name);
    let values = resolution.services.iter().flat_map(|service| &service.environment);
    values
        .filter_map(|(_, value)| match value {
            EnvValue::Secret { name } => name.parse().ok(),
            EnvValue::Known { .. } | EnvValue::Resource { .. } => None,
        })
        .chain(provided)
        .collect()
}

/// What a description of these services needs.
///
/// # Errors
/// When the disk refuses. A control plane that is away is none: what it gave last is there.
pub(super) async fn fetch(
    hub: &Hub,
    workspace_dir: &Path,
    workspace: &WorkspaceId,
    project: &Slug,
    resolution: &Resolution,
) -> Result<Given, SystemError> {
    let names = declared(resolution);
    let mut given = Given { project: Some(project.clone()), ..Given::default() };
    let answer = if names.is_empty() {
        Some(GivenSecrets::default())
    } else {
        let wanted =
            WantedSecrets { workspace: workspace.clone(), names: names.clone(), provisioners: BTreeSet::new() };
        ask(hub, &wanted).await
    };
    given.away = answer.is_none();
    let kept = change(workspace_dir, |kept| {
        let Some(GivenSecrets { values, unopened }) = answer else { return };
        given.unopened = unopened;
        for (name, old) in std::mem::replace(&mut kept.values, values) {
            if kept.values.get(&name) != Some(&old) && is_masked(&name) && !kept.former.contains(&old) {
                kept.former.push(old);
            }
        }
    })?;
    given.values = kept.values;
    given.values.retain(|name, _| names.contains(name));
    given.former = kept.former;
    Ok(given)
}

/// The settings of a provisioner, which come near no workspace and are kept nowhere.
///
/// # Errors
/// When the control plane does not answer, or cannot open them.
pub(super) async fn settings(
    hub: &Hub,
    workspace: &WorkspaceId,
    kind: ResourceKind,
) -> Result<BTreeMap<String, Secret>, Trouble> {
    let provisioners = BTreeSet::from([kind]);
    let wanted = WantedSecrets { workspace: workspace.clone(), names: BTreeSet::new(), provisioners };
    let Some(given) = ask(hub, &wanted).await else {
        let reason = format!("the control plane, which has the settings of the provisioner of {kind}, does not answer");
        return Err(Trouble::new(reason, "it is tried again by itself"));
    };
    if let Some(name) = given.unopened.first() {
        return Err(Given { unopened: given.unopened.clone(), ..Given::default() }.missing(name.as_str()));
    }
    let setting = |(name, value): (SecretName, Secret)| Some((name.setting_of(kind)?.to_owned(), value));
    Ok(given.values.into_iter().filter_map(setting).collect())
}

/// Asks the control plane; `None` when it does not answer.
async fn ask(hub: &Hub, wanted: &WantedSecrets) -> Option<GivenSecrets> {
    let client =
        Client::new(hub.server.clone(), Some(hub.token.clone())).with_deadline(DEADLINE).with_patience(PATIENCE);
    match client.post("/v1/host/secrets", wanted).await {
        Ok(given) => Some(given),
        Err(problem) => {
            tracing::warn!(workspace = %wanted.workspace, kind = %problem.kind, reason = %problem.message, "secrets cannot be asked for");
            None
        }
    }
}

/// A wake: nothing runs that could still have what was replaced before.
///
/// # Errors
/// When the disk refuses.
pub(super) fn forget_former(workspace_dir: &Path) -> Result<(), SystemError> {
    change(workspace_dir, |kept| kept.former.clear()).map(drop)
}

/// Masks what is known to be secret of a workspace: what its host made up, and what it was given.
#[must_use]
pub(super) fn redactor(workspace_dir: &Path) -> Redactor {
    let (values, kept) = (super::values::Values::of(workspace_dir), Kept::of(workspace_dir));
    let given = Given { values: kept.values, former: kept.former, ..Given::default() };
    // Programs repeat parts of an address as well.
    let parts: Vec<Secret> =
        given.masked().flat_map(outside::masked_value).chain(cloud::masked(workspace_dir)).collect();
    Redactor::new(values.secrets().chain(&parts))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(values: &[(&str, &str)]) -> BTreeMap<SecretName, Secret> {
        values.iter().map(|(name, value)| (name.parse().expect("a name"), Secret::new((*value).into()))).collect()
    }

    #[test]
    fn what_was_replaced_is_masked_until_the_next_wake_and_words_of_ordinary_text_are_not() {
        let dir = tempfile::tempdir().expect("directory");
        fs::create_dir(dir.path().join("state")).expect("directory");
        let now = kept(&[
            ("key", "new-value"),
            ("resource.database.user", "postgres"),
            ("resource.database.host", "db.internal"),
        ]);
        change(dir.path(), |kept| {
            kept.values = now;
            kept.former = vec![Secret::new("old-value".into())];
        })
        .expect("kept");
        let text = "new-value old-value postgres db.internal";
        assert_eq!(redactor(dir.path()).clean(text), "*** *** postgres ***");
        forget_former(dir.path()).expect("forgotten");
        assert_eq!(redactor(dir.path()).clean(text), "*** old-value postgres ***");
    }

    #[test]
    fn an_unset_one_names_the_command_that_sets_it_and_no_other_trouble_says_that() {
        let project = Some("demo".parse().expect("a slug"));
        let unset = Given { project: project.clone(), ..Given::default() }.missing("stripe_key");
        assert!(unset.hint.starts_with("`envforge secrets set stripe_key --project demo`"), "{}", unset.hint);
        let away = Given { project: project.clone(), away: true, ..Given::default() }.missing("stripe_key");
        assert!(!away.hint.contains("secrets set"), "{}", away.hint);
        let unopened = BTreeSet::from(["stripe_key".parse().expect("a name")]);
        let lost = Given { project, unopened, ..Given::default() }.missing("stripe_key");
        assert!(lost.reason.contains("a key that is lost"), "{}", lost.reason);
    }
}
