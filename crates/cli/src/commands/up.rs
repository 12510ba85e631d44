//! `up`: attach now, wake behind.

use crate::{
    args::UpArgs,
    context::{Context, slug},
    output::receipts,
    stream::{attach, cache, git_identity, terminal},
    wait,
};
use envforge_api::{
    names::{Branch, Slug},
    problem::{Problem, ProblemKind},
    public::{OpenWorkspace, Opened, WorkspaceView},
    states::ServiceState,
    time::Timestamp,
};
use std::{process::ExitCode, time::Duration};
use tokio::sync::oneshot;

/// What became of the request to open a workspace.
enum Open {
    /// The control plane granted it.
    Granted(Opened),
    /// It does not answer; a grant of the last hour still opens the shell.
    Cached(Opened),
}

pub(super) async fn run(context: &Context, args: UpArgs) -> Result<ExitCode, Problem> {
    // A terminal inside a workspace is that workspace's own already.
    let attaches = terminal::present()
        && !args.no_attach
        && !args.wait
        && !context.out.json
        && context.settings.inside().is_none();
    let name = match args.name {
        Some(name) => name,
        None => context.workspace(None).await?.to_string(),
    };
    let branch = match &args.branch {
        None => None,
        Some(given) => Some(given.parse::<Branch>().map_err(|error| {
            Problem::new(
                ProblemKind::Usage,
                error.to_string(),
                "`--branch` takes a branch of the project's repositories",
            )
        })?),
    };
    let request = OpenWorkspace {
        name,
        create: args.create,
        from: args.from,
        branch,
        project: context.settings.project.clone(),
        wake: true,
    };
    if attaches
        && let Ok(workspace) = slug(&request.name)
        && let Some(kept) = cache::find(&context.settings, &workspace, Timestamp::now())
    {
        return attach_first(context, &request, kept, args.argv).await;
    }
    let (opened, identity) = tokio::join!(open(context, request), git_identity(context));
    let opened = match opened? {
        Open::Granted(opened) => {
            if opened.created {
                context.out.say(&format!("workspace {} is new", opened.workspace));
            }
            opened
        }
        Open::Cached(opened) if attaches => {
            context.out.say("the control plane does not answer: attaching with the grant of before; no wake was asked");
            opened
        }
        Open::Cached(opened) => {
            return Err(Problem::unavailable(
                format!("the control plane does not answer, so no wake of {} was asked", opened.workspace),
                "try again; on a terminal `envforge up` still attaches the shell",
            ));
        }
    };
    if attaches {
        return attach::run(context, opened, None, args.argv, std::future::ready(identity)).await;
    }
    let view = wait::until_shell_ready(context, &opened.workspace).await?;
    if !args.argv.is_empty() {
        attach::window(context, &opened, args.argv, identity).await?;
    }
    if args.wait {
        return until_healthy(context, &opened).await;
    }
    context.out.data(&view, || line(&view));
    Ok(ExitCode::SUCCESS)
}

/// How long a request for a wake may outlast the attach beside it.
const LAST_CALL: Duration = Duration::from_secs(2);
/// How long it waits for the shell to be on the screen.
const SHELL_FIRST: Duration = Duration::from_millis(100);

/// Attaches with a grant of the last hour and asks for the wake once the shell is on the screen, so that a shell that was
/// open before is open again without waiting for the control plane, or for a processor that a wake keeps busy.
async fn attach_first(
    context: &Context,
    request: &OpenWorkspace,
    kept: Opened,
    argv: Vec<String>,
) -> Result<ExitCode, Problem> {
    let (send, opened) = oneshot::channel();
    let (begin, may_ask) = oneshot::channel();
    let ask = async {
        // A shell that takes its time, or its end, is no reason not to wake.
        let _ = tokio::time::timeout(SHELL_FIRST, may_ask).await;
        let opened = ask(context, request).await?;
        cache::keep(&context.settings, &opened);
        // An attach that is well does not need it.
        let _ = send.send(opened);
        Ok::<_, Problem>(())
    };
    let fresh = attach::Fresh { opened, ask: Some(begin) };
    let attach = attach::run(context, kept, Some(fresh), argv, git_identity(context));
    tokio::pin!(ask, attach);
    let (attached, asked) = tokio::select! {
        asked = &mut ask => (attach.await, asked),
        attached = &mut attach => {
            // Whoever detached is not kept waiting for a control plane that is away.
            let late = || Problem::unavailable("the control plane did not answer", "");
            (attached, tokio::time::timeout(LAST_CALL, ask).await.unwrap_or_else(|_| Err(late())))
        }
    };
    match (attached, asked) {
        (attached, Ok(())) => attached,
        (Ok(code), Err(problem)) => {
            context.out.say(&format!("no wake was asked: {}", problem.message));
            Ok(code)
        }
        // The workspace is not what it was: what the control plane says about it is the reason.
        (Err(_), Err(problem)) => Err(problem),
    }
}

async fn ask(context: &Context, request: &OpenWorkspace) -> Result<Opened, Problem> {
    let client = context.client().await?.clone().with_deadline(Duration::from_secs(90));
    client.post::<_, Opened>("/v1/workspaces/open", request).await
}

/// Opens the workspace; asks before a branch is created, falls back to a kept grant.
async fn open(context: &Context, mut request: OpenWorkspace) -> Result<Open, Problem> {
    loop {
        match ask(context, &request).await {
            Ok(opened) => {
                cache::keep(&context.settings, &opened);
                return Ok(Open::Granted(opened));
            }
            Err(mut problem) if problem.kind == ProblemKind::Confirm && !request.create => {
                if context.out.can_ask() {
                    let question = format!("{}. Create it?", problem.message.trim_end_matches(['.', '?']));
                    if context.out.confirm(&question)? {
                        request.create = true;
                        continue;
                    }
                }
                if !problem.hint.contains("-c") {
                    problem.hint = format!("`envforge up -c {}` creates it", request.name);
                }
                return Err(problem);
            }
            Err(problem) => {
                let kept = match slug(&request.name) {
                    Ok(workspace) if problem.kind.retry_helps() => {
                        cache::find(&context.settings, &workspace, Timestamp::now())
                    }
                    Ok(_) | Err(_) => None,
                };
                return kept.map(Open::Cached).ok_or(problem);
            }
        }
    }
}

/// Waits for the wake; status 1 unless every service is healthy.
async fn until_healthy(context: &Context, opened: &Opened) -> Result<ExitCode, Problem> {
    let workspace = &opened.workspace;
    let record = match &opened.wake {
        Some(id) => {
            let record = wait::command(context.client().await?, id).await?;
            Some(wait::until_final(context, record).await?)
        }
        None => None,
    };
    let view = context.view(workspace).await?;
    context.out.data(&view, || line(&view));
    let receipts = receipts::of_view(&view.resources);
    receipts::warnings(workspace.as_str(), &receipts).iter().for_each(|line| context.out.say(line));
    let sick = not_healthy(&view);
    if !sick.is_empty() {
        return Err(Problem::new(
            ProblemKind::Failed,
            format!("not healthy in {workspace}: {}", sick.join(", ")),
            format!("`envforge why {workspace} {}` tells why", sick.first().map_or("SERVICE", String::as_str)),
        ));
    }
    if let Some(record) = record {
        wait::succeeded(&record)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Services that do not serve.
fn not_healthy(view: &WorkspaceView) -> Vec<String> {
    view.services.iter().filter(|s| s.stated.state != ServiceState::Healthy).map(|s| s.name.clone()).collect()
}

/// One line that says where a workspace stands.
fn line(view: &WorkspaceView) -> String {
    let name: &Slug = &view.workspace;
    let urls: Vec<_> = view.services.iter().filter_map(|s| s.url.as_deref()).take(1).collect();
    let url = urls.first().map(|url| format!("  {url}")).unwrap_or_default();
    format!("{name}: shell {}, runtime {}{url}", view.shell.state, view.runtime.stated.state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn up_without_a_terminal_prints_one_line_and_wait_names_what_is_not_healthy() {
        let view = sample::workspace();
        assert_eq!(
            line(&view),
            "signed-links: shell ready, runtime awake  http://web--signed-links--acme.dev.localhost"
        );
        assert_eq!(not_healthy(&view), ["backend"]);
    }
}
