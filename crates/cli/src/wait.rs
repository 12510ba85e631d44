//! Waiting for what was asked, by long polls: nothing here looks again in a loop without being told of a change.

use crate::context::Context;
use envforge_api::{
    client::Client,
    command::CommandView,
    ids::CommandId,
    names::Slug,
    problem::{Problem, ProblemKind},
    public::WorkspaceView,
    states::{CommandState, ShellState},
};
use std::time::Duration;

/// How long one long poll for a workspace takes at most, in seconds.
const LONG_POLL_S: u64 = 25;
/// The same for a command record: short, so that people see its states on the way.
const COMMAND_POLL_S: u64 = 2;

/// Growing pauses between attempts.
#[derive(Debug)]
pub(crate) struct BackOff {
    next: Duration,
    longest: Duration,
}

impl BackOff {
    /// From `first`, doubled up to `longest`.
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { next: first, longest }
    }

    /// The next pause.
    pub(crate) fn step(&mut self) -> Duration {
        let now = self.next;
        self.next = (now * 2).min(self.longest);
        now
    }
}

/// A workspace once its version is no longer `after`, or after `seconds` with what is there.
///
/// # Errors
/// As the request.
pub(crate) async fn changed(
    client: &Client,
    workspace: &Slug,
    after: u64,
    seconds: u64,
) -> Result<WorkspaceView, Problem> {
    let client = client.clone().with_deadline(Duration::from_secs(seconds + 10));
    client.get(&format!("/v1/workspaces/{workspace}?after={after}&wait={seconds}")).await
}

/// Follows a workspace until `done` gives something; attempts that may succeed later are repeated for a minute.
///
/// # Errors
/// What `done` or the requests say.
pub(crate) async fn until<T>(
    context: &Context,
    workspace: &Slug,
    mut done: impl FnMut(&WorkspaceView) -> Result<Option<T>, Problem>,
) -> Result<T, Problem> {
    let client = context.client().await?;
    let mut view = context.view(workspace).await?;
    let mut failures = 0;
    let mut pause = BackOff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        if let Some(result) = done(&view)? {
            return Ok(result);
        }
        match changed(client, workspace, view.version, LONG_POLL_S).await {
            Ok(next) => {
                view = next;
                failures = 0;
            }
            Err(problem) if problem.kind.retry_helps() && failures < 12 => {
                failures += 1;
                context.revive().await;
                tokio::time::sleep(pause.step()).await;
            }
            Err(problem) => return Err(problem),
        }
    }
}

/// Waits until the shell opens at once.
///
/// # Errors
/// [`ProblemKind::Failed`] when its preparation failed.
pub(crate) async fn until_shell_ready(context: &Context, workspace: &Slug) -> Result<WorkspaceView, Problem> {
    let progress = context.out.progress(&format!("preparing the shell of {workspace}"));
    until(context, workspace, |view| match view.shell.state {
        ShellState::Ready => Ok(Some(view.clone())),
        ShellState::Absent | ShellState::Preparing => {
            if let Some(reason) = &view.shell.reason {
                progress.set(reason);
            }
            Ok(None)
        }
        ShellState::Failed => Err(Problem::new(
            ProblemKind::Failed,
            format!(
                "the shell of {workspace} could not be prepared: {}",
                view.shell.reason.as_deref().unwrap_or("no reason was given")
            ),
            view.shell.hint.clone().unwrap_or_else(|| format!("`envforge logs {workspace} system` tells more")),
        )),
    })
    .await
}

/// Reads a command record.
///
/// # Errors
/// As the request.
pub(crate) async fn command(client: &Client, id: &CommandId) -> Result<CommandView, Problem> {
    client.get(&format!("/v1/commands/{id}")).await
}

/// Waits until a command record has ended.
///
/// # Errors
/// As the requests; a record that did not succeed is no error here.
pub(crate) async fn until_final(context: &Context, mut record: CommandView) -> Result<CommandView, Problem> {
    let client = context.client().await?;
    let progress = context.out.progress(&format!("{} of {}: {}", record.kind, record.workspace, record.state));
    let mut failures = 0;
    let mut pause = BackOff::new(Duration::from_millis(100), Duration::from_secs(5));
    while !record.state.is_final() {
        progress.set(&format!("{} of {}: {}", record.kind, record.workspace, record.state));
        match client.get(&format!("/v1/commands/{}?wait={COMMAND_POLL_S}", record.id)).await {
            Ok(next) => {
                record = next;
                failures = 0;
            }
            Err(problem) if problem.kind.retry_helps() && failures < 12 => {
                failures += 1;
                context.revive().await;
                tokio::time::sleep(pause.step()).await;
            }
            Err(problem) => return Err(problem),
        }
    }
    Ok(record)
}

/// A record that ended otherwise than well, as a problem.
///
/// # Errors
/// [`ProblemKind::Failed`] unless it succeeded.
pub(crate) fn succeeded(record: &CommandView) -> Result<(), Problem> {
    match record.state {
        CommandState::Succeeded => Ok(()),
        state => Err(Problem::new(
            ProblemKind::Failed,
            match &record.reason {
                Some(reason) => format!("{} of {} {state}: {reason}", record.kind, record.workspace),
                None => format!("{} of {} {state}", record.kind, record.workspace),
            },
            format!("`envforge why {}` tells more", record.workspace),
        )),
    }
}
