//! The daemon's part in storage: it has a keeper run while a runtime needs one, says which presigned requests are right,
//! and removes what a workspace had.

use super::{
    hub::{Hub, Workspace},
    values::Values,
};
use crate::{
    resources::storage::{External, Place, Root, keeper, objects, s3::Client, trouble, users},
    supervise::protocol::ResourceSpec,
    system::{SystemError, installation::Installation},
};
use envforge_api::{
    dial::Dialled,
    resource::{ResourceKind, ResourceMode},
    sigv4::Presigned,
    states::{ResourceState, RuntimeState, Trouble},
    tunnel::NotOpened,
};
use std::{path::Path, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// A keeper that does not start is tried again after this.
const AGAIN: Duration = Duration::from_secs(5);

/// The storage of this host.
pub(super) fn place(hub: &Hub) -> Place {
    Place::new(&hub.installation.home, &hub.installation.run)
}

/// Has a keeper run without waiting for it: a runtime that is about to start needs one.
pub(super) fn note_need(hub: &Hub, resources: &[ResourceSpec]) {
    let needs = |r: &ResourceSpec| {
        r.resource.kind == ResourceKind::Storage && r.resource.mode == ResourceMode::Managed && r.blocked.is_none()
    };
    if resources.iter().any(needs) {
        let place = place(hub);
        // The supervisor waits for it, and tells why it does not come.
        tokio::spawn(async move { ensure(&place).await });
    }
}

/// Whether a server ever held anything for this installation.
pub(super) fn was_used(hub: &Hub) -> bool {
    place(hub).was_used()
}

/// The server as root knows it, started where it sleeps.
///
/// # Errors
/// When it cannot be had, with how to get it.
pub(super) async fn root(hub: &Hub) -> Result<Root, Trouble> {
    let place = place(hub);
    ensure(&place).await?;
    Root::reach(&place).await
}

/// One at a time: each would start a keeper of its own.
pub(super) async fn ensure(place: &Place) -> Result<(), Trouble> {
    static ONCE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _alone = ONCE.lock().await;
    keeper::ensure(place).await
}

/// Whether the supervisor of a workspace carries connections to storage, or would.
fn needs(workspace: &Workspace) -> bool {
    let facts = workspace.runtime.borrow();
    let snapshot = facts.snapshot.as_ref().filter(|_| facts.supervisor.is_some());
    snapshot.is_some_and(|snapshot| {
        let storage = snapshot.resources.iter().filter(|r| r.kind == ResourceKind::Storage);
        storage.into_iter().any(|r| r.mode == ResourceMode::Managed && r.stated.state != ResourceState::Disabled)
    })
}

/// Starts a keeper again that was killed while runtimes need it. Ends with the daemon, which no keeper does.
pub(super) async fn keep(hub: Arc<Hub>, stop: CancellationToken) {
    let place = place(&hub);
    let watched = async {
        let mut dirty = hub.dirty.subscribe();
        let mut said = String::new();
        loop {
            let needed = dirty.wait_for(|_| hub.all().iter().any(|workspace| needs(workspace))).await;
            // Of the outcome only this much: the guard inside must not live over the next line.
            if needed.map(drop).is_err() {
                return;
            }
            if let Err(trouble) = ensure(&place).await {
                if trouble.reason != said {
                    tracing::warn!(reason = %trouble.reason, "the storage server is not kept");
                    said = trouble.reason;
                }
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            keeper::watch(&place).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = watched => {}
    }
}

/// A connection to the server for a request that one of the workspace's keys signed.
pub(super) async fn presigned(hub: &Hub, workspace: &Workspace, asked: &Presigned) -> Result<Dialled, NotOpened> {
    let dir = hub.installation.workspace_dir(&workspace.id);
    let values = Values::of(&dir);
    let right = values.keyring().secret(&asked.access_key).is_some_and(|secret| asked.is_signed_with(secret));
    if !right {
        return Err(NotOpened::Refused);
    }
    let ready = {
        let facts = workspace.runtime.borrow();
        let snapshot = facts.snapshot.as_ref().filter(|_| facts.supervisor.is_some());
        // On its way to sleep what it holds is counted: nothing is added any more.
        let is_ready = |s: &crate::supervise::protocol::Snapshot| {
            s.runtime.state != RuntimeState::Sleeping
                && s.resources.iter().any(|r| r.kind == ResourceKind::Storage && r.stated.state == ResourceState::Ready)
        };
        snapshot.is_some_and(is_ready)
    };
    if !ready {
        return Err(NotOpened::Asleep);
    }
    let socket = keeper::dial(&place(hub)).await.map_err(|_| NotOpened::Asleep)?;
    Ok(Dialled { socket, instance: None })
}

/// Removes the buckets of a workspace with everything in them, and their keys.
///
/// # Errors
/// When the server cannot be had: what it holds would stay.
pub(super) async fn remove(hub: &Hub, dir: &Path) -> Result<(), Trouble> {
    let (place, ring) = (place(hub), Values::of(dir).keyring().clone());
    if ring.all().next().is_none() || !place.was_used() {
        return Ok(());
    }
    ensure(&place).await?;
    let root = Root::reach(&place).await?;
    for bucket in ring.all() {
        users::remove(&root.client, root.kind, bucket).await.map_err(trouble)?;
    }
    Ok(())
}

/// `envforge host copy-storage`: carries every workspace's objects from the server in use to another one, with buckets and
/// keys as they are here. Says what it does through `say`. Needs no daemon; done again, it carries what is new since.
///
/// # Errors
/// When one of the servers does not answer.
pub async fn copy(home: &Path, to: &External, say: impl Fn(&str)) -> Result<(), Trouble> {
    let installation = Installation::open(home).map_err(|e| Trouble::new(e.to_string(), e.hint))?;
    let place = Place::new(&installation.home, &installation.run);
    if place.external().as_ref() == Some(to) {
        return Err(Trouble::new("the host uses this very server already", "name the one to copy to"));
    }
    let workspaces = std::fs::read_dir(installation.home.join("workspaces")).into_iter().flatten().flatten();
    let mut rings: Vec<_> =
        workspaces.map(|entry| (entry.file_name(), Values::of(&entry.path()).keyring().clone())).collect();
    rings.sort_by(|(one, _), (other, _)| one.cmp(other));
    ensure(&place).await?;
    let from = Root::reach(&place).await?;
    let target = Client::at(&to.address, to.root.clone());
    let kind = users::kind(&target).await.map_err(|e| Trouble::new(e.to_string(), "is the endpoint right?"))?;
    for (workspace, ring) in rings {
        for bucket in ring.all() {
            // One that was never woken has keys and no bucket.
            users::ensure(&from.client, from.kind, bucket).await.map_err(trouble)?;
            users::ensure(&target, kind, bucket).await.map_err(trouble)?;
            let carried = objects::carry(&from.client, &target, &bucket.name).await.map_err(trouble)?;
            say(&format!("{}: {carried} objects copied", workspace.display()));
        }
    }
    for bucket in super::copy::snapshot::buckets(home) {
        objects::ensure_bucket(&target, &bucket).await.map_err(trouble)?;
        let carried = objects::carry(&from.client, &target, &bucket).await.map_err(trouble)?;
        say(&format!("{bucket}: {carried} objects copied"));
    }
    Ok(())
}

/// Has the host use the configured server. A keeper of another one is ended: those who need it get the new one.
///
/// # Errors
/// When what is configured cannot be meant, or the disk refuses.
pub(super) async fn configure(hub: &Hub, external: Option<&External>) -> Result<(), SystemError> {
    let place = place(hub);
    if place.configure(external)? {
        keeper::end(&place).await?;
    }
    Ok(())
}
