//! `envforge run`: a once-only act with an id of the caller's making.
//!
//! Same id and body = same record, so a caller whose answer was lost asks again without running twice. Nothing is
//! woken here: whether a run needs the runtime is written in envforge.yml (the layer of a step), which only the host
//! reads. A host that has to run something in a sleeping runtime asks for the wake in the workspace's name
//! (`POST /v1/workspaces/{id}/wake`, trigger `run`), so a shell-layer step never wakes or meters anything.

use super::store::{self, Body, NewCommand};
use crate::{
    app::App,
    audit, db, hosts,
    http::errors::{Failure, not_found},
    workspaces,
};
use envforge_api::{
    command::{CommandKind, CommandView, LeasedAct, RunTarget},
    host::DesiredShell,
    ids::WorkspaceId,
    problem::{Problem, ProblemKind},
    public::RunRequest,
    states::CommandState,
};

/// Records a run and leases it to the host.
///
/// # Errors
/// `invalid` for an empty command or an unknown service; `conflict` when the id names another request.
pub(crate) async fn run(
    app: &App,
    workspace: &WorkspaceId,
    request: RunRequest,
    by: String,
) -> Result<CommandView, Failure> {
    if matches!(&request.spec.target, RunTarget::Argv { argv } if argv.is_empty()) {
        return Err(Problem::invalid("the command is empty", "envforge run -- COMMAND [ARGUMENT…]").into());
    }
    let reset = match &request.spec.target {
        RunTarget::Reset { kinds } if kinds.is_empty() => {
            return Err(Problem::invalid("no resource is named", "envforge reset KIND…").into());
        }
        RunTarget::Reset { kinds } => {
            let kinds: Vec<&str> = kinds.iter().map(|kind| kind.as_str()).collect();
            Some(kinds.join(", "))
        }
        RunTarget::Setup { .. } | RunTarget::Test { .. } | RunTarget::Argv { .. } => None,
    };
    let (key, id) = (workspace.clone(), request.id.clone());
    let host = db::write(&app.pool, move |tx| {
        Box::pin(async move {
            let row = workspaces::store::lock(&mut *tx, &key).await?.ok_or_else(|| not_found("that workspace"))?;
            let body = Body { run: Some(request.spec.clone()), ..Body::default() };
            if let Some(known) = store::belongs(&mut *tx, &request.id).await? {
                return if known == (key, CommandKind::RunCommand, body) { Ok(row.host) } else { Err(other()) };
            }
            if row.desired.shell == DesiredShell::Absent {
                return Err(Problem::new(ProblemKind::Conflict, "the workspace is being deleted", "").into());
            }
            if let Some(wanted) = &request.spec.service {
                row.spec.has(wanted)?;
            }
            let new = NewCommand {
                id: &request.id,
                workspace: &row.id,
                kind: CommandKind::RunCommand,
                state: CommandState::Queued,
                generation: row.generation,
                by: &by,
                trigger: "run",
                service: request.spec.service.as_ref(),
                body,
            };
            if !store::insert(&mut *tx, new).await? {
                return Err(other());
            }
            let act = LeasedAct::Run { workspace: row.id.clone(), spec: request.spec };
            hosts::store::lease(&mut *tx, &row.host, &request.id, &act).await?;
            let command = ("command", request.id.to_string());
            let (action, details) = match reset {
                Some(kinds) => ("workspace.reset", vec![command, ("resources", kinds)]),
                None => ("workspace.run", vec![command]),
            };
            audit::store::add(tx, &row.organization, &by, action, row.slug.as_str(), &details).await?;
            Ok(row.host)
        })
    })
    .await?;
    app.bells.ring_host(&host);
    app.bells.ring_workspace(workspace);
    store::view(&app.pool, &id).await
}

fn other() -> Failure {
    Problem::new(
        ProblemKind::Conflict,
        "the id belongs to another request already",
        "make a new id for each run; the same id only for the same run",
    )
    .into()
}
