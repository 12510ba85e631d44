//! Leased commands: acts that are done once, by an id the caller made. Ledgered before they begin and when they end.

mod run;

use super::{
    copy,
    hub::{Hub, Workspace},
    shell,
};
use crate::{supervise::protocol::Ask, system::sandbox::Sandbox};
use envforge_api::{
    command::{ActAnswer, ActReport, LeasedAct, LeasedCommand},
    ids::{CommandId, SnapshotId, WorkspaceId},
    states::{CommandState, ShellState, Stated, Trouble},
};
use run::{follow, run};
use std::sync::Arc;

/// Takes over leases that are new; those known already are being done or were done.
pub(super) fn take(hub: &Arc<Hub>, leases: Vec<LeasedCommand>) {
    for lease in leases {
        let id = lease.id.clone();
        {
            let mut ledger = hub.ledger();
            let known = ledger.host.running.contains_key(&id) || ledger.host.finished.contains_key(&id);
            // An answer that was on its way while the end was recorded hands it over once more.
            if known || !hub.first_seen(&id) {
                continue;
            }
            let kept = lease.clone();
            if let Err(error) = ledger.change(|host| drop(host.running.insert(id.clone(), kept))) {
                tracing::error!(%error, hint = %error.hint, "a command cannot be ledgered");
                if !lease.act.may_repeat() {
                    // Not begun: its end is told, and kept in memory until the disk takes it.
                    let report = failed(&id, Trouble::new(error.to_string(), error.hint));
                    let _ = ledger.note(|host| drop(host.finished.insert(id, report)));
                    drop(ledger);
                    hub.touch_acts();
                    continue;
                }
            }
        }
        hub.touch_acts();
        let hub = Arc::clone(hub);
        // Ends with the act. A daemon that is stopped in the middle finds it ledgered as running.
        tokio::spawn(async move { perform(&hub, lease).await });
    }
}

/// After a start: acts that were under way go on if they may be repeated; runs that a supervisor still knows are
/// followed; others were interrupted.
pub(super) fn resume(hub: &Arc<Hub>) {
    let running: Vec<LeasedCommand> = hub.ledger().host.running.values().cloned().collect();
    for lease in running {
        let hub = Arc::clone(hub);
        tokio::spawn(async move {
            match &lease.act {
                LeasedAct::Run { workspace, .. } => {
                    let known = match hub.get(workspace) {
                        Some(workspace) => follow(&workspace, &lease.id).await,
                        None => None,
                    };
                    finish(&hub, known.unwrap_or_else(|| interrupted(&lease.id)));
                }
                LeasedAct::CreateSnapshot { workspace, snapshot, .. } => {
                    finish(&hub, cut_short(&hub, &lease.id, workspace, snapshot))
                }
                LeasedAct::RestoreSnapshot { workspace, .. } => {
                    finish(&hub, restored(&hub, &lease.id, workspace).await)
                }
                LeasedAct::CancelRun { .. }
                | LeasedAct::FindBranch { .. }
                | LeasedAct::InspectWork { .. }
                | LeasedAct::RemoveSnapshot { .. } => perform(&hub, lease).await,
            }
        });
    }
}

/// News of every act that the control plane has not recorded.
#[must_use]
pub(super) fn news(hub: &Hub) -> Vec<ActReport> {
    let ledger = hub.ledger();
    let running = ledger.host.running.keys().map(|id| ActReport {
        id: id.clone(),
        state: CommandState::Running,
        exit_code: None,
        reason: None,
        answer: None,
    });
    running.chain(ledger.host.finished.values().cloned()).collect()
}

fn interrupted(id: &CommandId) -> ActReport {
    ActReport {
        id: id.clone(),
        state: CommandState::Interrupted,
        exit_code: None,
        reason: Some("the process that ran it was lost; it is not run again by itself".into()),
        answer: None,
    }
}

/// A snapshot that was under way when the daemon was killed.
fn cut_short(hub: &Hub, id: &CommandId, workspace: &WorkspaceId, snapshot: &SnapshotId) -> ActReport {
    let known = hub.get(workspace).and_then(|workspace| {
        workspace.snapshots.borrow().iter().find(|known| known.id == *snapshot).map(|known| known.cost)
    });
    let Some(cost) = known else {
        let reason = "the host daemon was restarted in the middle; nothing is left of the snapshot, and it is not made again by itself";
        return ActReport { reason: Some(reason.into()), ..interrupted(id) };
    };
    ActReport {
        state: CommandState::Succeeded,
        reason: None,
        answer: Some(ActAnswer::Copied { cost }),
        ..interrupted(id)
    }
}

/// A restore that was under way when the daemon was killed: preparing the shell brought it to its end if it had begun to
/// exchange anything.
async fn restored(hub: &Hub, id: &CommandId, workspace: &WorkspaceId) -> ActReport {
    let Some(workspace) = hub.get(workspace) else { return interrupted(id) };
    let _ = settled(&workspace).await;
    if copy::restore::was_done(hub, &workspace, id) {
        return ActReport { state: CommandState::Succeeded, reason: None, ..interrupted(id) };
    }
    let reason = "the host daemon was restarted in the middle; nothing of the workspace was changed, and it is not restored by itself";
    ActReport { reason: Some(reason.into()), ..interrupted(id) }
}

fn failed(id: &CommandId, trouble: Trouble) -> ActReport {
    let reason =
        if trouble.hint.is_empty() { trouble.reason } else { format!("{} ({})", trouble.reason, trouble.hint) };
    ActReport { id: id.clone(), state: CommandState::Failed, exit_code: None, reason: Some(reason), answer: None }
}

fn finish(hub: &Hub, report: ActReport) {
    let id = report.id.clone();
    let kept = hub.ledger().note(|host| {
        host.running.remove(&id);
        host.finished.insert(id.clone(), report);
    });
    if let Err(error) = kept {
        tracing::error!(%error, "the end of a command cannot be ledgered");
    }
    hub.touch_acts();
}

async fn perform(hub: &Arc<Hub>, lease: LeasedCommand) {
    let id = lease.id.clone();
    let done =
        |answer| ActReport { id: id.clone(), state: CommandState::Succeeded, exit_code: None, reason: None, answer };
    let failed = |trouble: Trouble| failed(&id, trouble);
    let report = match &lease.act {
        LeasedAct::FindBranch { repos, branch } => match shell::find_branch(hub, repos, branch).await {
            Ok(found) => done(Some(ActAnswer::Branches { found })),
            Err(trouble) => failed(trouble),
        },
        LeasedAct::InspectWork { workspace } => match inspect(hub, workspace).await {
            Ok(at_risk) => done(Some(ActAnswer::Work { at_risk })),
            Err(trouble) => failed(trouble),
        },
        LeasedAct::CreateSnapshot { workspace, snapshot, reason } => match hub.get(workspace) {
            Some(workspace) => match copy::snapshot::create_as(hub, &workspace, snapshot, reason).await {
                Ok(view) => done(Some(ActAnswer::Copied { cost: view.cost })),
                Err(trouble) => failed(trouble),
            },
            None => failed(not_here()),
        },
        LeasedAct::RestoreSnapshot { workspace, snapshot, kept, generation } => match hub.get(workspace) {
            Some(workspace) => {
                let order = copy::restore::Order { command: &id, snapshot, kept, generation: *generation };
                match copy::restore::restore(hub, &workspace, order).await {
                    Ok(cost) => done(Some(ActAnswer::Copied { cost })),
                    Err(trouble) => failed(trouble),
                }
            }
            None => failed(not_here()),
        },
        LeasedAct::RemoveSnapshot { workspace, snapshot } => match hub.get(workspace) {
            Some(workspace) => match copy::snapshot::remove(hub, &workspace, snapshot).await {
                Ok(()) => done(None),
                Err(trouble) => failed(trouble),
            },
            None => done(None),
        },
        LeasedAct::CancelRun { workspace, run } => {
            cancel(hub, workspace, run).await;
            done(None)
        }
        LeasedAct::Run { workspace, spec } => match hub.get(workspace) {
            Some(workspace) => match run(hub, &workspace, &id, spec).await {
                Ok(report) => report,
                Err(trouble) => failed(trouble),
            },
            None => failed(not_here()),
        },
    };
    finish(hub, report);
}

fn not_here() -> Trouble {
    Trouble::new("the workspace is not on this host", "")
}

async fn inspect(hub: &Hub, id: &WorkspaceId) -> Result<Vec<String>, Trouble> {
    let Some(workspace) = hub.get(id) else { return Ok(Vec::new()) };
    let intent = workspace.intent.borrow().clone();
    // One whose shell could not be prepared is looked at as far as it is there.
    let _ = settled(&workspace).await;
    if !hub.installation.workspace_dir(id).join("files").is_dir() {
        return Ok(Vec::new());
    }
    let sandbox = sandbox(hub, &workspace).await?;
    shell::inspect_work(&sandbox, &intent).await
}

/// Its shell, when that is prepared or has failed; `None` once the workspace is gone.
async fn settled(workspace: &Workspace) -> Option<Stated<ShellState>> {
    let mut shell = workspace.shell.subscribe();
    let settled = shell.wait_for(|s| matches!(s.state, ShellState::Ready | ShellState::Failed)).await;
    settled.ok().map(|s| s.clone())
}

async fn ready_sandbox(hub: &Hub, workspace: &Workspace) -> Result<Sandbox, Trouble> {
    match settled(workspace).await {
        Some(stated) if stated.state == ShellState::Failed => {
            Err(Trouble::new(stated.reason.unwrap_or_default(), stated.hint.unwrap_or_default()))
        }
        Some(_) | None => sandbox(hub, workspace).await,
    }
}

async fn sandbox(hub: &Hub, workspace: &Workspace) -> Result<Sandbox, Trouble> {
    let slug = workspace.intent.borrow().slug.clone();
    crate::system::sandbox::ensure(&hub.installation, &workspace.id, workspace.index, &slug)
        .await
        .map_err(|e| Trouble::new(e.to_string(), e.hint))
}

async fn cancel(hub: &Hub, workspace: &WorkspaceId, run: &CommandId) {
    let Some(workspace) = hub.get(workspace) else { return };
    hub.cancel_shell_run(run);
    let supervisor = workspace.runtime.borrow().supervisor.clone();
    if let Some(supervisor) = supervisor {
        // A run that ended meanwhile needs no cancelling.
        let _ = supervisor.ask(Ask::CancelRun { id: run.clone() }).await;
    }
}
