//! Objects of storage in copies of workspaces.
//!
//! They lie with the host's server and in no directory. They are copied ahead in passes like everything else; what changed
//! since is listed and copied while everything that writes stands still, since a version that is overwritten
//! later cannot be had any more. A version is copied only if it is still the one that was listed.
//!
//! A fork's are in buckets of the new workspace. A snapshot's are in buckets of their own, which no workspace's keys open;
//! their names are in `objects.json` beside the snapshot before the first of them is made, and its directory goes after
//! them: whoever is killed, nothing is left that nobody can name.

use super::{clear_away, system};
use crate::{
    daemon::{hub::Hub, storage, values::Values},
    resources::storage::{
        Keyring, Root,
        objects::{self, Copied, Listed},
        s3::Client,
        trouble,
    },
    system::{
        SystemError,
        copying::{Passed, Stop},
        files,
    },
};
use envforge_api::{
    ids::{SnapshotId, WorkspaceId},
    states::Trouble,
};
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fs, io, path::Path};

/// Objects that are copied at once.
const AT_ONCE: usize = 8;
/// Looks at a bucket that is written to by someone who does not stand still: an upload by a signed address.
const LOOKS: usize = 5;

/// A bucket with the one that its objects are copied to, or come back to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pair {
    /// The workspace's.
    pub(super) of: String,
    /// The copy's.
    pub(super) bucket: String,
}

/// Those of a fork.
pub(super) fn of_fork(source: &Keyring, copy: &Keyring) -> Vec<Pair> {
    let pair = |(of, bucket): (&str, &str)| Pair { of: of.to_owned(), bucket: bucket.to_owned() };
    source.beside(copy).map(pair).collect()
}

/// Those of a snapshot.
pub(super) fn of_snapshot(workspace: &WorkspaceId, ring: &Keyring, snapshot: &SnapshotId) -> Vec<Pair> {
    let (own, kept) = (workspace.as_str().replace('_', "-"), snapshot.as_str().replace('_', "-"));
    let pair = |of: &str| {
        let part = of.strip_prefix(&own).unwrap_or_default();
        Pair { of: of.to_owned(), bucket: format!("{kept}{part}") }
    };
    ring.all().map(|bucket| pair(&bucket.name)).collect()
}

/// The file that names a snapshot's buckets.
pub(super) const KEPT: &str = "objects.json";

/// Buckets that belong to the snapshot in a directory; `None` where it has no objects at all, not even none.
pub(super) fn kept(dir: &Path) -> Option<Vec<Pair>> {
    serde_json::from_slice(&fs::read(dir.join(KEPT)).ok()?).ok()
}

/// Says which buckets a snapshot is about to have.
pub(super) fn declare(dir: &Path, pairs: &[Pair]) -> Result<(), Trouble> {
    let bytes = serde_json::to_vec(pairs).unwrap_or_default();
    files::write_durably(&dir.join(KEPT), &bytes, 0o600).map_err(system)
}

/// Removes what there is of a snapshot, its buckets first.
pub(super) async fn discard(hub: &Hub, dir: &Path) -> Result<(), Trouble> {
    let buckets = kept(dir).unwrap_or_default();
    if !buckets.is_empty() {
        let root = storage::root(hub).await?;
        for Pair { bucket, .. } in &buckets {
            objects::remove_bucket(&root.client, bucket).await.map_err(trouble)?;
        }
    }
    clear_away(dir).await
}

/// The server, where there is anything of it to copy. It runs for as long as this is kept.
pub(super) async fn reach(hub: &Hub, pairs: &[Pair]) -> Result<Option<Root>, Trouble> {
    if pairs.is_empty() || !storage::was_used(hub) { Ok(None) } else { storage::root(hub).await.map(Some) }
}

/// Copies into buckets that nobody else writes to.
#[derive(Debug)]
pub(super) struct Objects {
    client: Client,
    buckets: Vec<(Pair, BTreeMap<String, Listed>)>,
    moved: bool,
}

impl Objects {
    pub(super) fn new(client: Client, pairs: &[Pair]) -> Self {
        let buckets = pairs.iter().map(|pair| (pair.clone(), BTreeMap::new())).collect();
        Self { client, buckets, moved: false }
    }

    /// Makes the copy's buckets, and empties those that an attempt before left.
    pub(super) async fn begin(&self) -> Result<(), Trouble> {
        for (Pair { bucket, .. }, _) in &self.buckets {
            empty(&self.client, bucket).await?;
        }
        Ok(())
    }

    /// Copies what is new since the last pass.
    pub(super) async fn pass(&mut self, stop: Stop<'_>) -> Result<Passed, Trouble> {
        let mut passed = Passed::default();
        self.moved = false;
        for (Pair { of, bucket }, copied) in &mut self.buckets {
            let listed = objects::listed(&self.client, of).await.map_err(trouble)?;
            let gone: Vec<String> = copied.keys().filter(|key| !listed.contains_key(*key)).cloned().collect();
            for key in gone {
                objects::remove(&self.client, bucket, &key).await.map_err(trouble)?;
                copied.remove(&key);
            }
            let new: Vec<(String, Listed)> =
                listed.into_iter().filter(|(key, now)| copied.get(key) != Some(now)).collect();
            let client = &self.client;
            let copy = async |(key, now): &(String, Listed)| {
                (key.clone(), now.clone(), objects::copy_one(client, of, &now.object, bucket).await)
            };
            let mut copies = stream::iter(&new).map(copy).buffer_unordered(AT_ONCE);
            while let Some((key, now, outcome)) = copies.next().await {
                if stop() {
                    return Err(Trouble::new("the copy was cut short", "is there space on the disk? Try again"));
                }
                match outcome.map_err(trouble)? {
                    Copied::AsListed => {
                        passed.files += 1;
                        passed.bytes += now.object.size;
                        copied.insert(key, now);
                    }
                    Copied::Moved => self.moved = true,
                }
            }
        }
        Ok(passed)
    }

    /// The last pass, while everything stands still.
    pub(super) async fn last(&mut self) -> Result<(), Trouble> {
        for _ in 0..LOOKS {
            self.pass(&|| false).await?;
            if !self.moved {
                return Ok(());
            }
        }
        Err(Trouble::new("the storage is written to from outside again and again", "try again"))
    }

    /// Octets that were copied.
    pub(super) fn octets(&self) -> u64 {
        self.buckets.iter().flat_map(|(_, copied)| copied.values()).map(|listed| listed.object.size).sum()
    }
}

/// A bucket without an object.
async fn empty(client: &Client, bucket: &str) -> Result<(), Trouble> {
    objects::ensure_bucket(client, bucket).await.map_err(trouble)?;
    for key in objects::listed(client, bucket).await.map_err(trouble)?.into_keys() {
        objects::remove(client, bucket, &key).await.map_err(trouble)?;
    }
    Ok(())
}

/// What becomes of a workspace's bucket in a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PutBack {
    /// The workspace's.
    of: String,
    /// Where its objects come from; none: it becomes empty.
    from: Option<String>,
}

/// What a restore of the snapshot in `from` does with the buckets of a workspace; nothing, if the snapshot has no objects
/// since it was made before there were any in snapshots.
pub(super) fn to_put_back(from: &Path, now: &Keyring) -> Vec<PutBack> {
    let Some(kept) = kept(from) else { return Vec::new() };
    let mut all: Vec<PutBack> =
        kept.iter().map(|pair| PutBack { of: pair.of.clone(), from: Some(pair.bucket.clone()) }).collect();
    for bucket in now.all().filter(|bucket| !kept.iter().any(|pair| pair.of == bucket.name)) {
        all.push(PutBack { of: bucket.name.clone(), from: None });
    }
    all
}

/// Has the buckets of a workspace hold what those of a snapshot hold. Done again, it comes to the same.
pub(super) async fn put_back(hub: &Hub, all: &[PutBack]) -> Result<(), Trouble> {
    if all.is_empty() || !storage::was_used(hub) {
        return Ok(());
    }
    let root = storage::root(hub).await?;
    for PutBack { of, from } in all {
        match from {
            Some(from) => objects::mirror(&root.client, from, of).await.map_err(trouble)?,
            None => empty(&root.client, of).await?,
        }
    }
    Ok(())
}

/// Keeps the objects of a workspace that sleeps in buckets of the snapshot that a directory becomes.
pub(super) async fn keep(hub: &Hub, dir: &Path, pairs: &[Pair]) -> Result<(), Trouble> {
    let Some(root) = reach(hub, pairs).await? else { return declare(dir, &[]) };
    declare(dir, pairs)?;
    let mut copy = Objects::new(root.client.clone(), pairs);
    copy.begin().await?;
    copy.last().await
}

/// The buckets of a workspace changed while it was copied: what is in a new one would be missing.
pub(super) fn are_all(dir: &Path, pairs: &[Pair]) -> Result<(), SystemError> {
    let now = Values::of(dir);
    let is_known = |name: &str| pairs.iter().any(|pair| pair.of == name);
    if now.keyring().all().all(|bucket| is_known(&bucket.name)) {
        return Ok(());
    }
    let what = io::Error::other("a service got storage of its own meanwhile");
    Err(SystemError::new("copy the storage", what).with_hint("try again"))
}
