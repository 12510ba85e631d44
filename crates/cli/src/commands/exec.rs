//! `exec`: a command in the shell layer.

use crate::{args::ExecArgs, context::Context, stream, wait};
use envforge_api::{capability::Right, problem::Problem, states::ShellState};
use std::process::ExitCode;

pub(super) async fn run(context: &Context, args: ExecArgs) -> Result<ExitCode, Problem> {
    let workspace = context.workspace(args.ws.as_deref()).await?;
    let (grant, identity) =
        tokio::join!(stream::grant(context, &workspace, vec![Right::Exec], None), stream::git_identity(context));
    let grant = grant?;
    let view = context.view(&workspace).await?;
    if view.shell.state != ShellState::Ready && context.settings.inside().is_none() {
        wait::until_shell_ready(context, &workspace).await?;
    }
    let host = stream::host(context, &grant)?;
    stream::exec::run(&context.out, &host, &grant.workspace, args.argv, identity).await
}
