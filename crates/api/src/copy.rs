//! Copies of whole workspaces: forks, which become workspaces of their own, and snapshots, which wait to be restored.

use crate::{
    command::CommandView,
    generation::Generation,
    ids::{CommandId, SnapshotId, WorkspaceId},
    names::{Branch, Slug},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

/// What a copy cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CopyReport {
    /// From its beginning until it was whole, in milliseconds.
    pub took_ms: u64,
    /// How long the source stood still meanwhile, in milliseconds; 0 when nothing of it ran.
    pub stall_ms: u64,
    /// Size of the copy, in octets.
    pub size_bytes: u64,
}

/// A snapshot of a workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SnapshotView {
    /// Id.
    pub id: SnapshotId,
    /// The moment that it shows.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Why it was made: `asked`, `before restore`, `before reset`.
    pub reason: String,
    /// The workspace's desired state of that moment.
    pub generation: Generation,
    /// What it cost, and its size.
    #[serde(flatten)]
    pub cost: CopyReport,
}

/// `POST /v1/workspaces/{slug}/forks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ForkRequest {
    /// Made by the caller: sending the same id and body again joins the same fork.
    pub id: CommandId,
    /// Name of the new workspace; its branch too, unless that is named.
    pub name: String,
    /// The branch, made at the source's commit in every checkout of the copy.
    #[serde(default)]
    pub branch: Option<Branch>,
}

/// Answer to [`ForkRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Forked {
    /// Id of the new workspace.
    pub id: WorkspaceId,
    /// Its slug.
    pub workspace: Slug,
    /// What it is a copy of.
    pub source: Slug,
    /// Its branch.
    pub branch: Branch,
    /// Whether its runtime is woken as soon as it is there, because the source's is awake.
    pub wakes: bool,
    /// The record, which belongs to the source; it ends with the copy.
    pub command: CommandView,
}

/// `POST /v1/workspaces/{slug}/snapshots`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SnapshotRequest {
    /// Made by the caller: sending the same id again joins the same record.
    pub id: CommandId,
}

/// `POST /v1/workspaces/{slug}/snapshots/{snapshot}/restore`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RestoreRequest {
    /// Made by the caller: sending the same id and body again joins the same record.
    pub id: CommandId,
}

/// Answer to requests that make, restore or remove a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SnapshotAsked {
    /// The snapshot that is made; of a restore the one that keeps the state before; of a removal the one that goes.
    pub snapshot: SnapshotId,
    /// The record.
    pub command: CommandView,
}

/// `GET /v1/workspaces/{slug}/snapshots`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SnapshotList {
    /// The workspace.
    pub workspace: Slug,
    /// Newest first.
    pub snapshots: Vec<SnapshotView>,
}
