//! Copies of whole workspaces: forks, which are workspaces of their own, and snapshots, which wait to be restored.

pub(crate) mod fork;
pub(crate) mod http;
pub(crate) mod snapshots;
pub(crate) mod store;

use envforge_api::{
    ids::{SnapshotId, WorkspaceId},
    names::Branch,
};
use serde::{Deserialize, Serialize};

/// What is stored with a FORK_WORKSPACE record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ForkOrder {
    /// The workspace that is made.
    pub(crate) workspace: WorkspaceId,
    /// As it was asked for.
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) branch: Option<Branch>,
    pub(crate) wakes: bool,
}

/// What is stored with the record of an act on a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotOrder {
    /// The one that is made, restored or removed.
    pub(crate) snapshot: SnapshotId,
    /// Of a restore: keeps the state before.
    #[serde(default)]
    pub(crate) kept: Option<SnapshotId>,
    /// Of a restore: the runtime is woken when it has ended, since it was awake.
    #[serde(default)]
    pub(crate) wakes: bool,
}
