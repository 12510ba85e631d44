//! `resources`, `psql`, `redis` and `mail`: the data services of a workspace, seen, opened and read.

use super::{services::service, waking};
use crate::{
    args::{ClientArgs, MailArgs, RedisArgs, ResetArgs, ResourcesArgs},
    context::Context,
    output::{mail, tables},
    stream, wait,
};
use envforge_api::{
    capability::Right,
    command::{RunSpec, RunTarget},
    mail::{Inbox, Mail},
    names::Slug,
    problem::{Problem, ProblemKind},
    public::ResourceView,
    resource::ResourceKind,
    states::{ResourceState, RuntimeState, ShellState},
    stream::ResourceClient,
    time::Timestamp,
};
use serde::Serialize;
use std::{collections::BTreeSet, process::ExitCode};

#[derive(Debug, Serialize)]
struct Resources<'a> {
    workspace: &'a Slug,
    resources: &'a [ResourceView],
}

pub(super) async fn list(context: &Context, args: ResourcesArgs) -> Result<ExitCode, Problem> {
    let workspace = context.workspace(args.ws.as_deref()).await?;
    let view = context.view(&workspace).await?;
    context.out.data(&Resources { workspace: &workspace, resources: &view.resources }, || {
        if view.resources.is_empty() {
            return format!(
                "{workspace} has no resources known yet: they are read from each envforge.yml at the first wake"
            );
        }
        tables::resources(&view.resources, Timestamp::now())
    });
    Ok(ExitCode::SUCCESS)
}

/// What is wiped, and where. The first word is a workspace unless it names a kind.
fn reset_words(words: &[String]) -> Result<(Option<&str>, BTreeSet<ResourceKind>), Problem> {
    let (ws, kinds) = match words {
        [first, rest @ ..] if first.parse::<ResourceKind>().is_err() => (Some(first.as_str()), rest),
        kinds => (None, kinds),
    };
    let all = || ResourceKind::ALL.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(", ");
    let usage = |message: String| Problem::new(ProblemKind::Usage, message, format!("name one or more of: {}", all()));
    let read = |word: &String| word.parse().map_err(|_| usage(format!("`{word}` is no kind of resource")));
    let kinds: BTreeSet<ResourceKind> = kinds.iter().map(read).collect::<Result<_, _>>()?;
    if kinds.is_empty() { Err(usage("nothing to reset was named".into())) } else { Ok((ws, kinds)) }
}

pub(super) async fn reset(context: &Context, args: ResetArgs) -> Result<ExitCode, Problem> {
    let (ws, kinds) = reset_words(&args.words)?;
    let workspace = context.workspace(ws).await?;
    let view = context.view(&workspace).await?;
    let names = kinds.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(", ");
    let uses = |resource: &&ResourceView| kinds.contains(&resource.kind);
    let consumers: BTreeSet<&str> =
        view.resources.iter().filter(uses).flat_map(|r| &r.consumers).map(|name| name.as_str()).collect();
    let consumers = consumers.into_iter().collect::<Vec<_>>().join(", ");
    let restarted = if consumers.is_empty() { String::new() } else { format!("; restarts {consumers}") };
    if !args.yes {
        if !context.out.can_ask() {
            let message = format!("resetting {names} of {workspace} wipes everything in it{restarted}");
            let hint = format!("`envforge reset {workspace} {} --yes` does it", names.replace(", ", " "));
            return Err(Problem::new(ProblemKind::Usage, message, hint));
        }
        context.out.say(&format!("wipes everything in {names} of {workspace}{restarted}"));
        if !context.out.confirm(&format!("Reset {names} of {workspace}?"))? {
            return Err(Problem::new(ProblemKind::Failed, format!("{workspace} was not reset"), ""));
        }
    }
    super::run::begin(context, &workspace, RunSpec { service: None, target: RunTarget::Reset { kinds } }, false).await
}

pub(super) async fn psql(context: &Context, args: ClientArgs) -> Result<ExitCode, Problem> {
    open(context, &[ResourceKind::Database], args).await
}

pub(super) async fn redis(context: &Context, args: RedisArgs) -> Result<ExitCode, Problem> {
    let kinds: &[_] = if args.queue { &[ResourceKind::Queue] } else { &[ResourceKind::Cache, ResourceKind::Queue] };
    open(context, kinds, args.client).await
}

/// Wakes what sleeps, waits for the first of `kinds` that the workspace has, and runs its client.
pub(super) async fn open(context: &Context, kinds: &[ResourceKind], args: ClientArgs) -> Result<ExitCode, Problem> {
    let owner = args.service.as_deref().map(service).transpose()?;
    let workspace = context.workspace(args.ws.as_deref()).await?;
    let kind = waking::until(context, &workspace, |view| {
        let of = |kind: &ResourceKind| view.resources.iter().find(|r| r.kind == *kind && r.service == owner);
        let found = kinds.iter().find_map(|kind| of(kind).map(|resource| (*kind, resource)));
        match found {
            Some((kind, resource)) => (resource.stated.state != ResourceState::Waking).then_some(kind),
            // The host says which there are.
            None => (view.runtime.stated.state == RuntimeState::Awake).then_some(kinds[0]),
        }
    })
    .await?;
    let grant = stream::grant(context, &workspace, vec![Right::Exec], None).await?;
    let host = stream::host(context, &grant)?;
    let wanted = ResourceClient { kind, service: owner };
    stream::exec::run_client(&context.out, &host, &grant.workspace, wanted, args.argv).await
}

pub(super) async fn inbox(context: &Context, args: MailArgs) -> Result<ExitCode, Problem> {
    let workspace = context.workspace(args.ws.as_deref()).await?;
    if let Some(id) = args.show.as_deref().filter(|id| !id.bytes().all(|octet| octet.is_ascii_alphanumeric())) {
        return Err(Problem::not_found(format!("message `{id}`")));
    }
    let grant = stream::grant(context, &workspace, vec![Right::Mail], None).await?;
    if context.view(&workspace).await?.shell.state != ShellState::Ready {
        wait::until_shell_ready(context, &workspace).await?;
    }
    let host = stream::host(context, &grant)?;
    let path = format!("/host/v1/workspaces/{}/mail", grant.workspace);
    if let Some(id) = args.show {
        let message: Mail = host.get(&format!("{path}/{id}")).await?;
        context.out.data(&message, || mail::message(&message));
        return Ok(ExitCode::SUCCESS);
    }
    let inbox: Inbox = host.get(&path).await?;
    context.out.data(&inbox, || {
        if inbox.messages.is_empty() {
            return format!("no mail in {workspace}");
        }
        mail::list(&inbox)
    });
    Ok(ExitCode::SUCCESS)
}
