//! `workspace commands | command | usage`: receipts and the meter, metadata only.

use crate::{args::WorkspaceCommand, context::Context, output::tables};
use envforge_api::{
    client::Client,
    command::CommandView,
    ids::CommandId,
    problem::{Problem, ProblemKind},
    public::{CommandList, Commanded, UsageReport},
    states::CommandState,
    time::Timestamp,
};
use std::process::ExitCode;

pub(super) async fn run(context: &Context, command: WorkspaceCommand) -> Result<ExitCode, Problem> {
    match command {
        WorkspaceCommand::Commands { ws, service, status, limit } => {
            let mut query = format!("?limit={limit}");
            if let Some(service) = service {
                query.push_str(&format!("&service={}", super::services::service(&service)?));
            }
            if let Some(status) = status {
                let state: CommandState = status.parse().map_err(usage)?;
                query.push_str(&format!("&status={state}"));
            }
            let workspace = context.workspace(ws.as_deref()).await?;
            let client = context.client().await?;
            let list: CommandList = client.get(&format!("/v1/workspaces/{workspace}/commands{query}")).await?;
            context.out.data(&list, || tables::commands(&list.commands, Timestamp::now()));
        }
        WorkspaceCommand::Command { id, cancel: wanted } => {
            let id: CommandId = id.parse().map_err(usage)?;
            let client = context.client().await?;
            let record = if wanted { cancel(client, &id).await? } else { crate::wait::command(client, &id).await? };
            context.out.data(&record, || tables::command(&record));
        }
        WorkspaceCommand::Usage { ws } => {
            let workspace = context.workspace(ws.as_deref()).await?;
            let client = context.client().await?;
            let report: UsageReport = client.get(&format!("/v1/workspaces/{workspace}/usage")).await?;
            context.out.data(&report, || tables::usage(&report));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn usage(error: impl std::fmt::Display) -> Problem {
    Problem::new(ProblemKind::Usage, error.to_string(), "`envforge workspace commands` lists ids and states")
}

/// Takes a command back.
///
/// # Errors
/// As the request.
pub(super) async fn cancel(client: &Client, id: &CommandId) -> Result<CommandView, Problem> {
    let answer: Commanded = client.post(&format!("/v1/commands/{id}/cancel"), &serde_json::json!({})).await?;
    Ok(answer.command)
}
