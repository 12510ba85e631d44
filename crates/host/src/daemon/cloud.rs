//! Resources that a provisioner makes: asked for at every wake, remembered with the workspace, and removed with it.
//!
//! `state/cloud.json` (0600) says what may exist: an entry is written before a program is first asked to make something,
//! and taken out after it said that this is gone. Nothing else removes: neither another mode nor a service that no
//! longer declares it. A daemon that is killed asks again; programs bear that.

use super::{
    elsewhere::Key,
    hub::{Hub, Workspace},
    provisioner::{self, About, AboutResource, AboutWorkspace, Action, Answer, State},
    secrets,
};
use crate::{
    resources::outside::{self, Fields, Flaw},
    supervise::protocol::RuntimeSpec,
    system::{SystemError, files},
};
use envforge_api::{
    host::WorkspaceIntent,
    names::ServiceName,
    resource::{ResourceKind, ResourceMode},
    secret::Secret,
    states::Trouble,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{sync::Notify, task::AbortHandle, time::Instant};

/// Between two questions about one that is coming, or whose program failed; doubling.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// One that is coming for longer is blocked until it is there: a wake that goes on for ever is metered for ever.
const LONGEST_COMING: Duration = Duration::from_secs(15 * 60);

/// Something that may exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    kind: ResourceKind,
    service: Option<ServiceName>,
    /// Names the data: what is made anew has another name.
    data: String,
    /// What was answered last; absent before the first answer.
    #[serde(default)]
    fields: Option<Fields>,
}

impl Record {
    fn is(&self, key: &Key) -> bool {
        (self.kind, &self.service) == (key.0, &key.1)
    }
}

fn path(workspace_dir: &Path) -> PathBuf {
    workspace_dir.join("state").join("cloud.json")
}

/// What may exist. A file that cannot be read is an error: it is all that leads to what was made.
fn records(workspace_dir: &Path) -> Result<Vec<Record>, Trouble> {
    let damaged = |what: &str| {
        let hint =
            "put state/cloud.json of the workspace back from a backup, or remove it when nothing that was made is left";
        Trouble::new(format!("what provisioners made for the workspace is not known: its list {what}"), hint)
    };
    match fs::read(path(workspace_dir)).map(zeroize::Zeroizing::new) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|_| damaged("is damaged")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(damaged(&format!("cannot be read ({})", error.kind()))),
    }
}

/// Held while a workspace's list is changed.
static CHANGING: Mutex<()> = Mutex::new(());

fn change(workspace_dir: &Path, change: impl FnOnce(&mut Vec<Record>)) -> Result<(), Trouble> {
    let _alone = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
    let known = records(workspace_dir)?;
    let mut all = known.clone();
    change(&mut all);
    if all == known {
        return Ok(());
    }
    let bytes = zeroize::Zeroizing::new(serde_json::to_vec(&all).unwrap_or_default());
    files::write_durably(&path(workspace_dir), &bytes, 0o600)
        .map_err(|e: SystemError| Trouble::new(e.to_string(), e.hint))
}

/// What is known of one for a description.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    /// Its fields, once there are any.
    pub(super) fields: Option<Fields>,
    /// Names its data.
    pub(super) data: String,
    /// Why it cannot be had, as far as that is known.
    pub(super) trouble: Option<Trouble>,
}

/// What is known of all; `asked` is what came of asking since the wake.
pub(super) fn known(workspace_dir: &Path, asked: &BTreeMap<Key, Trouble>) -> BTreeMap<Key, Known> {
    // A list that cannot be read is told by asking.
    let records = records(workspace_dir).unwrap_or_default();
    let known = |of: Record| ((of.kind, of.service), Known { fields: of.fields, data: of.data, trouble: None });
    let mut all: BTreeMap<Key, Known> = records.into_iter().map(known).collect();
    for (key, trouble) in asked {
        all.entry(key.clone()).or_default().trouble = Some(trouble.clone());
    }
    all
}

/// What must not be shown of all that was made for a workspace.
pub(super) fn masked(workspace_dir: &Path) -> Vec<Secret> {
    let records = records(workspace_dir).unwrap_or_default();
    records.iter().filter_map(|record| record.fields.as_ref()).flat_map(outside::masked).collect()
}

/// The questions of one awake runtime. They end with this.
#[derive(Debug, Default)]
pub(super) struct Asking {
    tasks: BTreeMap<Key, AbortHandle>,
    /// Something came of one.
    pub(super) news: Arc<Notify>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Asking {
    fn stop(&mut self) {
        for (_, task) in std::mem::take(&mut self.tasks) {
            task.abort();
        }
    }

    /// Asks once for each resource that an awake runtime has from a provisioner; `None`: it is not awake.
    pub(super) fn follow(&mut self, hub: &Arc<Hub>, workspace: &Arc<Workspace>, spec: Option<&RuntimeSpec>) {
        let Some(spec) = spec else {
            if !self.tasks.is_empty() {
                self.stop();
                workspace.cloud.send_replace(BTreeMap::new());
            }
            return;
        };
        for of in spec.resources.iter().filter(|of| of.resource.mode == ResourceMode::Cloud) {
            let key = (of.resource.kind, of.resource.service.clone());
            if self.tasks.contains_key(&key) {
                continue;
            }
            let about = About {
                resource: AboutResource {
                    kind: key.0,
                    service: key.1.clone(),
                    extensions: of.resource.extensions.clone(),
                },
                workspace: AboutWorkspace::of(&workspace.intent.borrow()),
            };
            let asking = ask(Arc::clone(hub), Arc::clone(workspace), key.clone(), about, Arc::clone(&self.news));
            self.tasks.insert(key, tokio::spawn(asking).abort_handle());
        }
    }
}

/// Asks until it is there. Ends with the runtime; what was begun then is asked again at the next wake.
async fn ask(hub: Arc<Hub>, workspace: Arc<Workspace>, key: Key, about: About, news: Arc<Notify>) {
    let mut pause = FIRST_PAUSE;
    let begun = Instant::now();
    loop {
        let outcome = once(&hub, &workspace, &key, &about).await;
        let trouble = match &outcome {
            Ok(Made::Coming) if begun.elapsed() >= LONGEST_COMING => Some(late(key.0)),
            Ok(Made::Ready | Made::Coming) => None,
            Err(trouble) => {
                tracing::warn!(workspace = %workspace.id, kind = %key.0, reason = %trouble.reason, "a provisioner was asked in vain");
                Some(trouble.clone())
            }
        };
        let changed = workspace.cloud.send_if_modified(|known| match trouble {
            Some(trouble) => known.insert(key.clone(), trouble.clone()).as_ref() != Some(&trouble),
            None => known.remove(&key).is_some(),
        });
        let is_ready = matches!(outcome, Ok(Made::Ready));
        if changed || is_ready {
            news.notify_one();
        }
        if is_ready {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn late(kind: ResourceKind) -> Trouble {
    let minutes = LONGEST_COMING.as_secs() / 60;
    let reason = format!("the provisioner of {kind} is at it for more than {minutes} minutes");
    Trouble::new(reason, "it is asked again by itself while the runtime is awake, and at the next wake")
}

/// What one question came to.
enum Made {
    Ready,
    Coming,
}

async fn once(hub: &Hub, workspace: &Workspace, key: &Key, about: &About) -> Result<Made, Trouble> {
    let dir = hub.installation.workspace_dir(&workspace.id);
    let settings = secrets::settings(hub, &workspace.id, key.0).await?;
    let ask = async |action| provisioner::ask(hub, workspace.index, action, about, &settings).await;
    let known = records(&dir)?.into_iter().find(|record| record.is(key));
    if known.is_some_and(|record| record.fields.is_some()) {
        let said = ask(Action::Describe).await?;
        match said.state {
            Some(State::Ready) => return keep(&dir, key, said.fields).map(|()| Made::Ready),
            Some(State::Coming) => return Ok(Made::Coming),
            Some(State::Absent) => {
                // Whoever removed it: what is made in its place is empty, and set up anew.
                tracing::warn!(workspace = %workspace.id, kind = %key.0, "what a provisioner made is gone; it is made anew");
                change(&dir, |all| all.retain(|record| !record.is(key)))?;
            }
            Some(State::Going) | None => return Err(unclear(key.0, "neither ready, coming nor absent")),
        }
    }
    // From here on something may exist.
    let data = Secret::random(5).expose().to_owned();
    change(&dir, |all| {
        if !all.iter().any(|record| record.is(key)) {
            all.push(Record { kind: key.0, service: key.1.clone(), data, fields: None });
        }
    })?;
    let said = ask(Action::Ensure).await?;
    match (said.state, said.fields) {
        (Some(State::Coming), _) => Ok(Made::Coming),
        (Some(State::Ready) | None, Some(fields)) => keep(&dir, key, Some(fields)).map(|()| Made::Ready),
        (Some(State::Ready | State::Going | State::Absent) | None, _) => {
            Err(unclear(key.0, "that it is neither coming nor ready with its fields"))
        }
    }
}

fn unclear(kind: ResourceKind, what: &str) -> Trouble {
    let hint = "it is tried again by itself; the contract is docs/provisioners.md";
    Trouble::new(format!("the provisioner of {kind} says {what}"), hint)
}

/// Keeps fields that were answered; none: as they are known.
fn keep(dir: &Path, key: &Key, fields: Option<Fields>) -> Result<(), Trouble> {
    let Some(fields) = fields else { return Ok(()) };
    let kind = key.0;
    let unknown = fields.keys().any(|name| !kind.fields().contains(&name.as_str()));
    if unknown {
        return Err(unclear(kind, "fields that such a resource does not have"));
    }
    let whole = outside::complete(kind, &fields).map_err(|flaw| match flaw {
        Flaw::Missing(field) => unclear(kind, &format!("no {field}")),
        Flaw::Wrong(field, why) => unclear(kind, &format!("a {field} that {why}")),
    })?;
    change(dir, |all| {
        if let Some(record) = all.iter_mut().find(|record| record.is(key)) {
            record.fields = Some(whole);
        }
    })
}

/// Has everything removed that provisioners made for a workspace. Cut short, it is called again.
///
/// # Errors
/// What is left, and why. The workspace is then not gone.
pub(super) async fn remove(hub: &Hub, workspace: &Workspace, intent: &WorkspaceIntent) -> Result<(), Trouble> {
    let dir = hub.installation.workspace_dir(&workspace.id);
    let all = records(&dir)?;
    let mut left = BTreeSet::new();
    let mut first = None;
    for record in &all {
        if let Err(trouble) = remove_one(hub, workspace, intent, &dir, record).await {
            left.insert(record.kind.as_str());
            first.get_or_insert(trouble);
        }
    }
    match first {
        None => Ok(()),
        Some(trouble) => {
            let left = left.into_iter().collect::<Vec<_>>().join(", ");
            Err(Trouble::new(format!("{left} of the workspace is not removed yet: {}", trouble.reason), trouble.hint))
        }
    }
}

async fn remove_one(
    hub: &Hub,
    workspace: &Workspace,
    intent: &WorkspaceIntent,
    dir: &Path,
    record: &Record,
) -> Result<(), Trouble> {
    let settings = secrets::settings(hub, &workspace.id, record.kind).await?;
    let about = About {
        resource: AboutResource { kind: record.kind, service: record.service.clone(), extensions: Vec::new() },
        workspace: AboutWorkspace::of(intent),
    };
    let said: Answer = provisioner::ask(hub, workspace.index, Action::Remove, &about, &settings).await?;
    match said.state {
        Some(State::Absent) => change(dir, |all| all.retain(|known| known != record)),
        Some(State::Going) => Err(Trouble::new("its provisioner is at it", "it is asked again by itself")),
        Some(State::Ready | State::Coming) | None => Err(unclear(record.kind, "not that it is absent")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> Key {
        (ResourceKind::Database, None)
    }

    #[test]
    fn what_was_answered_is_kept_whole_or_not_at_all() {
        let dir = tempfile::tempdir().expect("directory");
        fs::create_dir(dir.path().join("state")).expect("made");
        change(dir.path(), |all| {
            all.push(Record { kind: ResourceKind::Database, service: None, data: "d".into(), fields: None });
        })
        .expect("kept");
        let fields = |pairs: &[(&str, &str)]| {
            Some(pairs.iter().map(|(name, value)| ((*name).to_owned(), Secret::new((*value).to_owned()))).collect())
        };
        for bad in [fields(&[]), fields(&[("url", "hunter2")]), fields(&[("url", "postgres://u:p@h/d"), ("more", "x")])]
        {
            let trouble = keep(dir.path(), &database(), bad).expect_err("refused");
            assert!(!format!("{trouble:?}").contains("hunter2"));
        }
        assert!(known(dir.path(), &BTreeMap::new())[&database()].fields.is_none());
        keep(dir.path(), &database(), fields(&[("url", "postgres://u:pass-word@h.example/d")])).expect("kept");
        let all = known(dir.path(), &BTreeMap::from([(database(), Trouble::new("why", ""))]));
        assert_eq!(all[&database()].fields.as_ref().expect("whole")["name"].expose(), "d");
        assert_eq!(all[&database()].trouble.as_ref().expect("told").reason, "why");
        assert!(masked(dir.path()).iter().any(|value| value.expose() == "pass-word"));
    }

    #[test]
    fn a_list_that_cannot_be_read_is_no_empty_list() {
        let dir = tempfile::tempdir().expect("directory");
        fs::create_dir(dir.path().join("state")).expect("made");
        assert!(records(dir.path()).expect("none yet").is_empty());
        fs::write(path(dir.path()), b"[{").expect("written");
        assert!(records(dir.path()).expect_err("damaged").reason.contains("is damaged"));
        assert!(change(dir.path(), Vec::clear).is_err());
    }
}
