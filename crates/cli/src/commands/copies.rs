//! `fork` and `snapshot`: copies of whole workspaces, data included.

use crate::{
    args::{ForkArgs, SnapshotCommand},
    context::Context,
    output::tables,
    wait,
};
use envforge_api::{
    command::CommandView,
    copy::{CopyReport, ForkRequest, Forked, RestoreRequest, SnapshotAsked, SnapshotList, SnapshotRequest},
    ids::{CommandId, SnapshotId},
    names::Slug,
    problem::{Problem, ProblemKind},
    public::ResourceView,
    resource::ResourceMode,
    time::Timestamp,
};
use http::Method;
use serde::Serialize;
use std::process::ExitCode;

/// What is shown of a fork that is done.
#[derive(Debug, Serialize)]
struct Done<'a> {
    #[serde(flatten)]
    forked: &'a Forked,
    #[serde(flatten)]
    cost: Option<CopyReport>,
}

pub(super) async fn fork(context: &Context, args: ForkArgs) -> Result<ExitCode, Problem> {
    let (ws, name) = last(&args.words, "envforge fork [WS] NEW [--branch B]")?;
    let branch = args.branch.as_deref().map(str::parse).transpose();
    let branch = branch.map_err(|error| usage(format!("{error}"), "name a branch, such as `try-2`"))?;
    let workspace = context.workspace(ws).await?;
    let request = ForkRequest { id: CommandId::generate(), name: name.to_owned(), branch };
    let client = context.client().await?;
    let mut forked: Forked = client.post(&format!("/v1/workspaces/{workspace}/forks"), &request).await?;
    forked.command = wait::until_final(context, forked.command).await?;
    wait::succeeded(&forked.command)?;
    let cost = forked.command.copied;
    context.out.data(&Done { forked: &forked, cost }, || fork_line(&forked, cost));
    if !context.out.json
        && let Ok(view) = context.view(&workspace).await
    {
        not_copied(&view.resources).iter().for_each(|line| context.out.say(line));
    }
    Ok(ExitCode::SUCCESS)
}

/// What of a workspace lies elsewhere and is in no copy of it.
fn not_copied(resources: &[ResourceView]) -> Vec<String> {
    let line = |of: &ResourceView| match of.mode {
        ResourceMode::Cloud => {
            Some(format!("its {} is one of its own, empty: filled and set up at its first wake", of.kind))
        }
        ResourceMode::Provided => Some(format!("its {} is the one that is provided, with the same data", of.kind)),
        ResourceMode::Managed | ResourceMode::Disabled => None,
    };
    resources.iter().filter_map(line).collect()
}

fn fork_line(forked: &Forked, cost: Option<CopyReport>) -> String {
    let Forked { source, workspace, .. } = forked;
    match cost {
        Some(cost) => format!("forked {source} to {workspace} in {}; {}", took(cost.took_ms), stood(source, cost)),
        None => format!("forked {source} to {workspace}"),
    }
}

fn stood(source: &Slug, cost: CopyReport) -> String {
    match cost.stall_ms {
        0 => format!("nothing of {source} had to stand still"),
        stall => format!("{source} stood still for {}", took(stall)),
    }
}

/// Milliseconds as `140 ms`, `1.4 s`, `75 s`.
fn took(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..10_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        _ => format!("{} s", ms / 1000),
    }
}

pub(super) async fn snapshot(context: &Context, command: SnapshotCommand) -> Result<ExitCode, Problem> {
    match command {
        SnapshotCommand::Create { ws } => create(context, ws.as_deref()).await,
        SnapshotCommand::Ls { ws } => {
            let workspace = context.workspace(ws.as_deref()).await?;
            let path = format!("/v1/workspaces/{workspace}/snapshots");
            let list: SnapshotList = context.client().await?.get(&path).await?;
            context.out.data(&list, || tables::snapshots(&list, Timestamp::now()));
            Ok(ExitCode::SUCCESS)
        }
        SnapshotCommand::Restore { words, yes } => restore(context, &words, yes).await,
        SnapshotCommand::Rm { words } => {
            let (workspace, snapshot) = named(context, &words, "envforge snapshot rm [WS] SNAPSHOT").await?;
            let path = format!("/v1/workspaces/{workspace}/snapshots/{snapshot}");
            let client = context.client().await?;
            let asked: SnapshotAsked = client.call(Method::DELETE, &path, None::<&()>).await?;
            finish(context, asked, |_| format!("{snapshot} of {workspace} is removed")).await
        }
    }
}

async fn create(context: &Context, ws: Option<&str>) -> Result<ExitCode, Problem> {
    let workspace = context.workspace(ws).await?;
    let request = SnapshotRequest { id: CommandId::generate() };
    let path = format!("/v1/workspaces/{workspace}/snapshots");
    let asked: SnapshotAsked = context.client().await?.post(&path, &request).await?;
    let snapshot = asked.snapshot.clone();
    finish(context, asked, |record| {
        let cost = record.copied.map(|cost| format!(" in {}; {}", took(cost.took_ms), stood(&workspace, cost)));
        format!("{snapshot} keeps {workspace}, made{}", cost.unwrap_or_default())
    })
    .await
}

async fn restore(context: &Context, words: &[String], yes: bool) -> Result<ExitCode, Problem> {
    let (workspace, snapshot) = named(context, words, "envforge snapshot restore [WS] SNAPSHOT --yes").await?;
    if !yes {
        let goes = format!(
            "restoring {snapshot} puts {workspace} to sleep and ends every process of its shell (terminals, editors, agents); \
             its files and data of now are kept as a snapshot"
        );
        if !context.out.can_ask() {
            return Err(usage(goes, &format!("`envforge snapshot restore {workspace} {snapshot} --yes` does it")));
        }
        context.out.say(&goes);
        if !context.out.confirm(&format!("Restore {workspace}?"))? {
            return Err(Problem::new(ProblemKind::Failed, format!("{workspace} was not restored"), ""));
        }
    }
    let request = RestoreRequest { id: CommandId::generate() };
    let path = format!("/v1/workspaces/{workspace}/snapshots/{snapshot}/restore");
    let asked: SnapshotAsked = context.client().await?.post(&path, &request).await?;
    let kept = asked.snapshot.clone();
    finish(context, asked, |_| format!("{workspace} is as {snapshot} has it; what it was before is {kept}")).await
}

/// Waits for the end of the record and shows it.
async fn finish(
    context: &Context,
    mut asked: SnapshotAsked,
    line: impl FnOnce(&CommandView) -> String,
) -> Result<ExitCode, Problem> {
    asked.command = wait::until_final(context, asked.command).await?;
    wait::succeeded(&asked.command)?;
    context.out.data(&asked, || line(&asked.command));
    Ok(ExitCode::SUCCESS)
}

async fn named(context: &Context, words: &[String], form: &str) -> Result<(Slug, SnapshotId), Problem> {
    let (ws, given) = last(words, form)?;
    // What cannot be an id is none.
    let snapshot = given.parse().map_err(|_| Problem::not_found(format!("snapshot `{given}`")))?;
    Ok((context.workspace(ws).await?, snapshot))
}

/// `[WS] LAST`.
fn last<'a>(words: &'a [String], form: &str) -> Result<(Option<&'a str>, &'a str), Problem> {
    match words {
        [last] => Ok((None, last)),
        [ws, last] => Ok((Some(ws), last)),
        _ => Err(usage("too few or too many words".into(), form)),
    }
}

fn usage(message: String, hint: &str) -> Problem {
    Problem::new(ProblemKind::Usage, message, hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_tells_how_long_it_took_and_how_long_its_source_stood_still() {
        let forked: Forked = serde_json::from_value(serde_json::json!({
            "id": "ws_00000000000000000000000000", "workspace": "try-2", "source": "signed-links", "branch": "try-2",
            "wakes": true, "command": {
                "id": "cmd_00000000000000000000000000", "workspace": "signed-links", "kind": "FORK_WORKSPACE",
                "state": "succeeded", "generation": 1, "attempt": 0, "requested_by": "ada", "trigger": "fork",
                "requested_at": "2026-01-01T00:00:00Z",
            },
        }))
        .expect("a fork");
        let cost = |took_ms, stall_ms| Some(CopyReport { took_ms, stall_ms, size_bytes: 1 });
        let said = fork_line(&forked, cost(1400, 140));
        assert_eq!(said, "forked signed-links to try-2 in 1.4 s; signed-links stood still for 140 ms");
        let said = fork_line(&forked, cost(75_300, 0));
        assert_eq!(said, "forked signed-links to try-2 in 75 s; nothing of signed-links had to stand still");
    }

    #[test]
    fn a_workspace_may_be_left_out_before_the_last_word() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(last(&words("new"), ""), Ok((None, "new")));
        assert_eq!(last(&words("ws new"), ""), Ok((Some("ws"), "new")));
        assert_eq!(last(&[], "form").expect_err("nothing is named").kind, ProblemKind::Usage);
    }
}
