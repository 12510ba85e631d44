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
use std::time::{Duration, Instant};

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

/// How long attempts that may succeed later are repeated: whoever waits longer than this should know why.
const PATIENCE: Duration = Duration::from_secs(12);

/// Failures in a row.
struct Streak {
    since: Option<Instant>,
    pause: BackOff,
}

impl Streak {
    fn new(first: Duration) -> Self {
        Self { since: None, pause: BackOff::new(first, Duration::from_secs(2)) }
    }

    fn over(&mut self) {
        self.since = None;
    }

    /// Waits for the next attempt, looking after a local installation meanwhile.
    ///
    /// # Errors
    /// The problem itself, when trying again does not help, or has not for too long.
    async fn again(&mut self, context: &Context, problem: Problem) -> Result<(), Problem> {
        let since = *self.since.get_or_insert_with(Instant::now);
        let left = PATIENCE.saturating_sub(since.elapsed());
        if !problem.kind.retry_helps() || left.is_zero() {
            return Err(problem);
        }
        // One that takes longer shows itself in the attempt that follows.
        let _ = tokio::time::timeout(left, context.revive()).await;
        tokio::time::sleep(self.pause.step()).await;
        Ok(())
    }
}

/// Follows a workspace until `done` gives something; attempts that may succeed later are repeated for a moment.
///
/// # Errors
/// What `done` or the requests say.
pub(crate) async fn until<T>(
    context: &Context,
    workspace: &Slug,
    mut done: impl FnMut(&WorkspaceView) -> Result<Option<T>, Problem>,
) -> Result<T, Problem> {
    // How long is tried is decided here alone.
    let client = context.client().await?.clone().with_patience(Duration::ZERO);
    let mut view = context.view(workspace).await?;
    let mut streak = Streak::new(Duration::from_millis(200));
    loop {
        if let Some(result) = done(&view)? {
            return Ok(result);
        }
        match changed(&client, workspace, view.version, LONG_POLL_S).await {
            Ok(next) => {
                view = next;
                streak.over();
            }
            Err(problem) => streak.again(context, problem).await?,
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
    let client = context.client().await?.clone().with_patience(Duration::ZERO);
    let progress = context.out.progress(&format!("{} of {}: {}", record.kind, record.workspace, record.state));
    let mut streak = Streak::new(Duration::from_millis(100));
    while !record.state.is_final() {
        progress.set(&format!("{} of {}: {}", record.kind, record.workspace, record.state));
        match client.get(&format!("/v1/commands/{}?wait={COMMAND_POLL_S}", record.id)).await {
            Ok(next) => {
                record = next;
                streak.over();
            }
            Err(problem) => streak.again(context, problem).await?,
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
