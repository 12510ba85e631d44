//! Deleting: the only thing that removes data, so it says first what goes and refuses to lose work.

use super::{act, lifecycle::Request, store::Row};
use crate::{app::App, hosts, http::errors::Failure};
use envforge_api::{
    command::{ActAnswer, LeasedAct},
    problem::{Problem, ProblemKind},
    public::{DeleteRequest, Deleted},
    states::ShellState,
};

/// Deletes, or says what a deletion would take.
///
/// # Errors
/// `confirm` with the work at risk, unless forced; `unavailable` when the host cannot be asked about it.
pub(crate) async fn delete(app: &App, row: &Row, request: DeleteRequest, by: String) -> Result<Deleted, Failure> {
    let goes = goes(row);
    let deleting = row.desired.shell == envforge_api::host::DesiredShell::Absent;
    let prepared = row.report.as_ref().is_some_and(|report| report.shell.stated.state != ShellState::Absent);
    // A forced deletion must not depend on an answer; a preview should have it but is told without.
    let at_risk = if deleting || !prepared || (request.force && !request.dry_run) {
        Vec::new()
    } else {
        inspect(app, row).await?
    };
    if request.dry_run {
        return Ok(Deleted { goes, at_risk, command: None });
    }
    if !at_risk.is_empty() && !request.force {
        return Err(Problem::new(
            ProblemKind::Confirm,
            format!("work in `{}` would be lost: {}", row.slug, at_risk.join("; ")),
            "commit and push it, or delete with --force",
        )
        .into());
    }
    let command = act::act(app, &row.id, Request::Delete, by).await?;
    Ok(Deleted { goes, at_risk, command: Some(command) })
}

async fn inspect(app: &App, row: &Row) -> Result<Vec<String>, Failure> {
    let act = LeasedAct::InspectWork { workspace: row.id.clone() };
    match hosts::ask::ask(app, &row.organization, &row.host, act).await? {
        ActAnswer::Work { at_risk } => Ok(at_risk),
        ActAnswer::Branches { .. } | ActAnswer::Copied { .. } => {
            Err(Problem::internal("the host answered another question").into())
        }
    }
}

fn goes(row: &Row) -> Vec<String> {
    let mut goes: Vec<String> = row
        .spec
        .checkouts()
        .into_iter()
        .map(|checkout| format!("checkout {} (branch {})", checkout.directory, row.branch))
        .collect();
    for resource in row.report.iter().flat_map(|report| &report.resources) {
        if resource.mode == envforge_api::resource::ResourceMode::Managed {
            let of = resource.service.as_ref().map_or_else(String::new, |service| format!(" of {service}"));
            goes.push(format!("{}{of} data", resource.kind));
        }
    }
    for snapshot in row.report.iter().flat_map(|report| &report.snapshots) {
        goes.push(format!("snapshot {} of {}", snapshot.id, snapshot.created_at));
    }
    goes.push("terminals, logs and links".into());
    goes
}
