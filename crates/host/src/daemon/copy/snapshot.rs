//! Kept states of a workspace: `<home>/snapshots/<workspace>/<snapshot>/{files,data,state}` and, written last, a
//! manifest. A directory without one is what a crash left, and is removed when the daemon starts.

use super::{Storage, accounts_of, objects, system, take};
use crate::{
    daemon::{
        hub::{Hub, Workspace},
        values::Values,
    },
    system::{SystemError, files, removal},
};
use envforge_api::{
    copy::SnapshotView,
    ids::{SnapshotId, WorkspaceId},
    states::Trouble,
};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What a snapshot says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// Of this file.
    version: u32,
    /// Whose it is.
    workspace: WorkspaceId,
    /// What it was called then.
    slug: String,
    #[serde(flatten)]
    pub(super) view: SnapshotView,
}

const VERSION: u32 = 1;
const MANIFEST: &str = "manifest.json";

/// Where the snapshots of a workspace are.
pub(super) fn of_workspace(hub: &Hub, workspace: &WorkspaceId) -> PathBuf {
    hub.installation.home.join("snapshots").join(workspace.as_str())
}

/// Where one of them is.
pub(super) fn dir(hub: &Hub, workspace: &WorkspaceId, snapshot: &SnapshotId) -> PathBuf {
    of_workspace(hub, workspace).join(snapshot.as_str())
}

/// Makes what is in a directory a snapshot.
pub(super) fn declare(at: &Path, workspace: &Workspace, view: SnapshotView) -> Result<(), SystemError> {
    let slug = workspace.intent.borrow().slug.to_string();
    let manifest = Manifest { version: VERSION, workspace: workspace.id.clone(), slug, view };
    let bytes = serde_json::to_vec_pretty(&manifest).unwrap_or_default();
    files::write_durably(&at.join(MANIFEST), &bytes, 0o600)
}

/// The manifest of a snapshot; absent where there is none that can be read.
pub(super) fn manifest(at: &Path) -> Option<Manifest> {
    let manifest: Manifest = serde_json::from_slice(&fs::read(at.join(MANIFEST)).ok()?).ok()?;
    (manifest.version == VERSION).then_some(manifest)
}

/// The files of environments hold passwords, and are written at each wake.
fn is_left_out(path: &Path) -> bool {
    path == Path::new(".envforge/env")
}

/// Keeps the state of a workspace, for this reason.
///
/// # Errors
/// When it cannot be copied; nothing is left of it then.
pub async fn create(hub: &Hub, workspace: &Workspace, reason: &str) -> Result<SnapshotView, Trouble> {
    create_as(hub, workspace, &SnapshotId::generate(), reason).await
}

/// The same under an id that was made before. One that is there is not made again.
///
/// # Errors
/// As [`create`].
pub async fn create_as(
    hub: &Hub,
    workspace: &Workspace,
    id: &SnapshotId,
    reason: &str,
) -> Result<SnapshotView, Trouble> {
    let at = dir(hub, &workspace.id, id);
    if let Some(known) = manifest(&at) {
        return Ok(known.view);
    }
    files::ensure_dir(&hub.installation.home.join("snapshots"), 0o700).map_err(system)?;
    files::ensure_dir(&of_workspace(hub, &workspace.id), 0o700).map_err(system)?;
    // Nothing may be left of an attempt that was cut short, on the server least of all.
    objects::discard(hub, &at).await?;
    let values = Values::of(&hub.installation.workspace_dir(&workspace.id));
    let storage = Storage::Snapshot(objects::of_snapshot(&workspace.id, values.keyring(), id));
    let taken = take(hub, workspace, &at, &accounts_of(hub, workspace), is_left_out, storage).await?;
    let view = SnapshotView {
        id: id.clone(),
        created_at: taken.at,
        reason: reason.to_owned(),
        generation: taken.generation,
        cost: taken.cost,
    };
    if let Err(error) = declare(&at, workspace, view.clone()) {
        let _ = objects::discard(hub, &at).await;
        return Err(system(error));
    }
    show(hub, workspace);
    Ok(view)
}

/// Removes one. One that is gone is removed.
///
/// # Errors
/// When the disk refuses.
pub(in crate::daemon) async fn remove(hub: &Hub, workspace: &Workspace, id: &SnapshotId) -> Result<(), Trouble> {
    let _one_at_a_time = workspace.copies.lock().await;
    let at = dir(hub, &workspace.id, id);
    // From here on it is none.
    match fs::remove_file(at.join(MANIFEST)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(system(SystemError::new("remove the snapshot", error)));
        }
        Ok(()) | Err(_) => {}
    }
    show(hub, workspace);
    objects::discard(hub, &at).await
}

/// Removes all of a workspace that is removed.
///
/// # Errors
/// When the disk or the storage server refuses; calling again goes on.
pub(in crate::daemon) async fn remove_all(hub: &Hub, workspace: &WorkspaceId) -> Result<(), Trouble> {
    for entry in fs::read_dir(of_workspace(hub, workspace)).into_iter().flatten().flatten() {
        objects::discard(hub, &entry.path()).await?;
    }
    removal::remove(&of_workspace(hub, workspace)).map_err(system)
}

/// Buckets of all snapshots of an installation, for whoever moves them.
pub(in crate::daemon) fn buckets(home: &Path) -> Vec<String> {
    let below = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let each = below(home.join("snapshots")).flat_map(below);
    let whole = each.filter(|at| at.join(MANIFEST).exists());
    whole.filter_map(|at| objects::kept(&at)).flatten().map(|pair| pair.bucket).collect()
}

/// Those that there are, oldest first.
fn all(hub: &Hub, workspace: &WorkspaceId) -> Vec<SnapshotView> {
    let entries = fs::read_dir(of_workspace(hub, workspace)).into_iter().flatten().flatten();
    let mut all: Vec<SnapshotView> = entries.filter_map(|entry| manifest(&entry.path())).map(|m| m.view).collect();
    all.sort_by(|a, b| a.created_at.cmp(&b.created_at).then_with(|| a.id.cmp(&b.id)));
    all
}

/// Has them reported.
pub(super) fn show(hub: &Hub, workspace: &Workspace) {
    workspace.snapshots.send_replace(all(hub, &workspace.id));
    hub.touch(&workspace.id);
}

/// After a start: those that there are; what a crash left of others goes.
pub(in crate::daemon) fn look(hub: &Arc<Hub>, workspace: &Arc<Workspace>) {
    show(hub, workspace);
    let left = fs::read_dir(of_workspace(hub, &workspace.id)).into_iter().flatten().flatten();
    let left: Vec<PathBuf> = left.map(|entry| entry.path()).filter(|at| !at.join(MANIFEST).exists()).collect();
    if left.is_empty() || super::restore::is_under_way(hub, workspace) {
        return;
    }
    let (hub, workspace) = (Arc::clone(hub), Arc::clone(workspace));
    // Ends when they are gone; a daemon that starts anew begins again.
    tokio::spawn(async move {
        let _one_at_a_time = workspace.copies.lock().await;
        for at in left.iter().filter(|at| !at.join(MANIFEST).exists()) {
            if let Err(trouble) = objects::discard(&hub, at).await {
                let (id, reason) = (&workspace.id, trouble.reason);
                tracing::warn!(workspace = %id, reason, "what is left of a snapshot cannot be removed");
            }
        }
    });
}
