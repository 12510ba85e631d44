//! Snapshots: once-only acts with ids that the caller made. Same id and body = same record, so that a caller whose answer
//! was lost asks again without anything being done twice.

use super::SnapshotOrder;
use crate::{
    app::App,
    audit,
    commands::{
        self,
        store::{Body, NewCommand},
    },
    db, hosts,
    http::errors::{Failure, not_found},
    workspaces::{
        act,
        lifecycle::Request,
        store::{self, Row},
        view,
    },
};
use envforge_api::{
    command::{CommandKind, LeasedAct},
    copy::{SnapshotAsked, SnapshotList},
    host::DesiredShell,
    ids::{CommandId, SnapshotId, WorkspaceId},
    problem::{Problem, ProblemKind},
    states::{CommandState, RuntimeState},
};
use sqlx::PgConnection;

/// What is asked for.
#[derive(Debug, Clone)]
pub(crate) enum Asked {
    Create,
    Restore(SnapshotId),
    Remove(SnapshotId),
}

impl Asked {
    fn kind(&self) -> CommandKind {
        match self {
            Self::Create => CommandKind::CreateSnapshot,
            Self::Restore(_) => CommandKind::RestoreSnapshot,
            Self::Remove(_) => CommandKind::RemoveSnapshot,
        }
    }

    fn action(&self) -> &'static str {
        match self {
            Self::Create => "workspace.snapshot.create",
            Self::Restore(_) => "workspace.snapshot.restore",
            Self::Remove(_) => "workspace.snapshot.remove",
        }
    }

    /// Whether a record of before is of this request.
    fn made(&self, kind: CommandKind, order: &SnapshotOrder) -> bool {
        let named = match self {
            Self::Create => true,
            Self::Restore(snapshot) | Self::Remove(snapshot) => *snapshot == order.snapshot,
        };
        named && kind == self.kind()
    }
}

/// Those of a workspace, newest first.
pub(crate) fn list(row: &Row) -> SnapshotList {
    let mut snapshots = row.report.as_ref().map(|report| report.snapshots.clone()).unwrap_or_default();
    snapshots.reverse();
    SnapshotList { workspace: row.slug.clone(), snapshots }
}

/// Records what is asked for and leases it to the host.
///
/// # Errors
/// `not_found` for a snapshot that is not there; `conflict` when the id names another request or the workspace is being
/// deleted.
pub(crate) async fn ask(
    app: &App,
    workspace: &WorkspaceId,
    id: CommandId,
    asked: Asked,
    by: String,
) -> Result<SnapshotAsked, Failure> {
    let (key, command) = (workspace.clone(), id.clone());
    let (host, order) =
        db::write(&app.pool, move |tx| Box::pin(async move { within(tx, &key, &command, &asked, &by).await })).await?;
    app.bells.ring_host(&host);
    app.bells.ring_workspace(workspace);
    let command = commands::store::view(&app.pool, &id).await?;
    Ok(SnapshotAsked { snapshot: order.kept.unwrap_or(order.snapshot), command })
}

async fn within(
    tx: &mut PgConnection,
    workspace: &WorkspaceId,
    id: &CommandId,
    asked: &Asked,
    by: &str,
) -> Result<(envforge_api::ids::HostId, SnapshotOrder), Failure> {
    let conflict = |message: &str, hint: &str| Problem::new(ProblemKind::Conflict, message, hint);
    let row = store::lock(&mut *tx, workspace).await?.ok_or_else(|| not_found("that workspace"))?;
    if let Some((of, kind, body)) = commands::store::belongs(&mut *tx, id).await? {
        return match body.snapshot {
            Some(order) if of == row.id && asked.made(kind, &order) => Ok((row.host, order)),
            Some(_) | None => {
                Err(conflict("the id belongs to another request already", "make a new id for each request").into())
            }
        };
    }
    if row.desired.shell == DesiredShell::Absent {
        return Err(conflict("the workspace is being deleted", "").into());
    }
    let there = |snapshot: &SnapshotId| {
        let known = row.report.iter().flat_map(|report| &report.snapshots).any(|known| known.id == *snapshot);
        if known { Ok(()) } else { Err(not_found(format!("snapshot `{snapshot}` of `{}`", row.slug))) }
    };
    let (order, act, generation) = match asked {
        Asked::Create => {
            let snapshot = SnapshotId::generate();
            let reason = "asked".into();
            let act = LeasedAct::CreateSnapshot { workspace: row.id.clone(), snapshot: snapshot.clone(), reason };
            (SnapshotOrder { snapshot, kept: None, wakes: false }, act, row.generation)
        }
        Asked::Restore(snapshot) => {
            there(snapshot)?;
            let wakes = matches!(view::runtime(&row).state, RuntimeState::Waking | RuntimeState::Awake);
            act::within(&mut *tx, &row, &Request::Sleep { reason: "restore".into() }, by).await?;
            let asleep = store::by_id(&mut *tx, &row.id).await?.ok_or_else(|| not_found("that workspace"))?;
            let kept = SnapshotId::generate();
            let act = LeasedAct::RestoreSnapshot {
                workspace: row.id.clone(),
                snapshot: snapshot.clone(),
                kept: kept.clone(),
                generation: asleep.generation,
            };
            (SnapshotOrder { snapshot: snapshot.clone(), kept: Some(kept), wakes }, act, asleep.generation)
        }
        Asked::Remove(snapshot) => {
            there(snapshot)?;
            let act = LeasedAct::RemoveSnapshot { workspace: row.id.clone(), snapshot: snapshot.clone() };
            (SnapshotOrder { snapshot: snapshot.clone(), kept: None, wakes: false }, act, row.generation)
        }
    };
    let new = NewCommand {
        id,
        workspace: &row.id,
        kind: asked.kind(),
        state: CommandState::Queued,
        generation,
        by,
        trigger: "snapshot",
        service: None,
        body: Body { snapshot: Some(order.clone()), ..Body::default() },
    };
    commands::store::insert(&mut *tx, new).await?;
    hosts::store::lease(&mut *tx, &row.host, id, &act).await?;
    let details = [("snapshot", order.snapshot.to_string()), ("command", id.to_string())];
    audit::store::add(tx, &row.organization, by, asked.action(), row.slug.as_str(), &details).await?;
    Ok((row.host, order))
}

/// A restore has ended: what was awake before is woken.
pub(crate) async fn ended(tx: &mut PgConnection, row: &Row, id: &CommandId) -> Result<bool, Failure> {
    let order = commands::store::belongs(&mut *tx, id).await?.and_then(|(_, _, body)| body.snapshot);
    let wakes = order.is_some_and(|order| order.wakes) && row.desired.shell == DesiredShell::Ready;
    // Someone may have asked for something else meanwhile.
    let asked =
        matches!(&row.desired.runtime, envforge_api::host::DesiredRuntime::Asleep { reason } if reason == "restore");
    if !wakes || !asked {
        return Ok(false);
    }
    act::within(tx, row, &Request::Wake { trigger: "restore".into() }, row.host.as_str()).await?;
    Ok(true)
}
