//! `status` and `ls`.

use crate::{
    args::StatusArgs,
    context::Context,
    output::{status, tables},
    wait,
};
use envforge_api::{names::Slug, problem::Problem, public::WorkspaceList, public::WorkspaceView, time::Timestamp};
use std::{io::IsTerminal, process::ExitCode, time::Duration};

pub(super) async fn run(context: &Context, args: StatusArgs) -> Result<ExitCode, Problem> {
    let workspace = context.workspace(args.ws.as_deref()).await?;
    if args.watch {
        return watch(context, &workspace).await;
    }
    let view = context.view(&workspace).await?;
    context.out.data(&view, || status::block(&view, Timestamp::now()));
    Ok(ExitCode::SUCCESS)
}

/// Shows the workspace at once and after every change, until the reader or the workspace goes away.
async fn watch(context: &Context, workspace: &Slug) -> Result<ExitCode, Problem> {
    let client = context.client().await?;
    let mut pause = wait::BackOff::new(Duration::from_millis(200), Duration::from_secs(5));
    let mut shown = context.view(workspace).await?;
    show(context, &shown, true);
    while context.out.has_reader() {
        match wait::changed(client, workspace, shown.version, 25).await {
            Ok(view) => {
                pause = wait::BackOff::new(Duration::from_millis(200), Duration::from_secs(5));
                if view.version != shown.version {
                    shown = view;
                    show(context, &shown, false);
                }
            }
            Err(problem) if problem.kind.retry_helps() => {
                context.revive().await;
                tokio::time::sleep(pause.step()).await;
            }
            Err(problem) => return Err(problem),
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(context: &Context, view: &WorkspaceView, first: bool) {
    if context.out.json {
        context.out.json_line(view);
        return;
    }
    let block = status::block(view, Timestamp::now());
    if std::io::stdout().is_terminal() {
        context.out.line(&format!("\x1b[H\x1b[2J{block}"));
    } else if first {
        context.out.line(&block);
    } else {
        context.out.line(&format!("\n{block}"));
    }
}

pub(super) async fn list(context: &Context) -> Result<ExitCode, Problem> {
    let list = WorkspaceList { workspaces: context.workspaces().await? };
    context.out.data(&list, || tables::workspaces(&list.workspaces));
    Ok(ExitCode::SUCCESS)
}
