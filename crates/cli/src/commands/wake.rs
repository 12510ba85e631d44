//! `wake` and `sleep`.

use crate::{args::WaitArgs, context::Context, output::receipts, wait};
use envforge_api::{
    problem::Problem,
    public::{Commanded, WakeRequest},
};
use std::process::ExitCode;

/// Which of the two.
#[derive(Debug, Clone, Copy)]
pub(super) enum Verb {
    /// START_RUNTIME.
    Wake,
    /// SLEEP_RUNTIME.
    Sleep,
}

pub(super) async fn run(context: &Context, verb: Verb, args: WaitArgs) -> Result<ExitCode, Problem> {
    let workspace = context.workspace(args.ws.as_deref()).await?;
    let client = context.client().await?;
    let asked: Commanded = match verb {
        Verb::Wake => client.post(&format!("/v1/workspaces/{workspace}/wake"), &WakeRequest::default()).await?,
        Verb::Sleep => client.post(&format!("/v1/workspaces/{workspace}/sleep"), &serde_json::json!({})).await?,
    };
    let record = if args.wait { wait::until_final(context, asked.command).await? } else { asked.command };
    context.out.data(&record, || {
        let reason = record.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        format!("{} {} of {workspace} {}{reason}", record.id, record.kind, record.state)
    });
    receipts::warnings(workspace.as_str(), &record.receipt).iter().for_each(|line| context.out.say(line));
    if args.wait {
        wait::succeeded(&record)?;
    }
    Ok(ExitCode::SUCCESS)
}
