//! `run`: a set-up step, a test or a command in a service's environment, streamed, with a receipt.

use super::services::service;
use crate::{
    args::{RunArgs, words},
    context::Context,
    output::times,
    stream::{
        self,
        exec::exit_code,
        framing::{Frame, Stream},
    },
    wait::{self, BackOff},
};
use envforge_api::{
    capability::Right,
    client::Client,
    command::{CommandView, RunSpec},
    ids::CommandId,
    names::Slug,
    problem::{Problem, ProblemKind},
    public::{Commanded, RunRequest},
    states::CommandState,
    stream::Control,
};
use std::{process::ExitCode, time::Duration};
use tokio::signal::unix::{Signal, SignalKind, signal};

pub(super) async fn run(context: &Context, args: RunArgs) -> Result<ExitCode, Problem> {
    let (ws, target) = words::run_target(&args.words, &args.argv)?;
    let service = args.service.as_deref().map(service).transpose()?;
    let workspace = context.workspace(ws.as_deref()).await?;
    begin(context, &workspace, RunSpec { service, target }, args.detach).await
}

/// Has something run and follows it to its end, unless `detach`.
pub(super) async fn begin(
    context: &Context,
    workspace: &Slug,
    spec: RunSpec,
    detach: bool,
) -> Result<ExitCode, Problem> {
    let client = context.client().await?;
    let request = RunRequest { id: CommandId::generate(), spec };
    let asked: Commanded = client.post(&format!("/v1/workspaces/{workspace}/runs"), &request).await?;
    if detach {
        context.out.data(&asked.command, || asked.command.id.to_string());
        return Ok(ExitCode::SUCCESS);
    }
    let grant = stream::grant(context, workspace, vec![Right::Run], None).await?;
    let host = stream::host(context, &grant)?;
    let failed = |error: std::io::Error| Problem::internal(format!("signals cannot be received: {error}"));
    let mut follower = Follower {
        context,
        client,
        path: format!("/host/v1/workspaces/{}/runs/{}/output", grant.workspace, asked.command.id),
        host,
        id: asked.command.id.clone(),
        interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
        terminate: signal(SignalKind::terminate()).map_err(failed)?,
        cancelled: false,
    };
    let Some(code) = follower.follow().await? else {
        context.out.say(&format!("left {} running: `envforge workspace command {}`", follower.id, follower.id));
        return Ok(ExitCode::from(130));
    };
    let receipt = wait::until_final(context, wait::command(client, &follower.id).await?).await?;
    if context.out.json {
        context.out.json_line(&receipt);
    } else {
        context.out.say(&receipt_line(&receipt));
    }
    status(&receipt, code)
}

/// What the process ends with: the run's own status, else a failure of EnvForge with the record's reason.
fn status(receipt: &CommandView, heard: Option<i32>) -> Result<ExitCode, Problem> {
    match (heard.or(receipt.exit_code), receipt.state) {
        (Some(code), _) => Ok(exit_code(code)),
        (None, CommandState::Succeeded) => Ok(ExitCode::SUCCESS),
        (None, CommandState::Cancelled) => Ok(ExitCode::from(130)),
        (None, _) => Err(Problem::new(
            ProblemKind::Failed,
            receipt.reason.clone().unwrap_or_else(|| format!("the run was {}", receipt.state)),
            format!("`envforge workspace command {}` shows its receipt", receipt.id),
        )),
    }
}

fn receipt_line(receipt: &CommandView) -> String {
    let took = receipt
        .finished_at
        .map(|at| format!(", {}", times::duration(at.as_second() - receipt.requested_at.as_second())))
        .unwrap_or_default();
    let code = receipt.exit_code.map(|code| format!(" with status {code}")).unwrap_or_default();
    let reason = receipt.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("{} {} {}{code}{took}{reason}", receipt.id, receipt.kind, receipt.state)
}

/// How long a run's record may take to say what its host said: a control plane that is away longer tells it later.
const RECORDED_WITHIN: Duration = Duration::from_secs(5);

/// Follows the output of one run.
struct Follower<'a> {
    context: &'a Context,
    client: &'a Client,
    host: Client,
    path: String,
    id: CommandId,
    interrupt: Signal,
    terminate: Signal,
    cancelled: bool,
}

impl Follower<'_> {
    /// Passes output on until the run has ended: its status where the stream said it. `None` when the person left.
    async fn follow(&mut self) -> Result<Option<Option<i32>>, Problem> {
        let progress = self.context.out.progress("waiting for the run to begin");
        let mut pause = BackOff::new(Duration::from_millis(100), Duration::from_secs(1));
        let mut shown = 0_usize;
        let mut progress = Some(progress);
        loop {
            match Stream::open(&self.host, &self.path, None).await {
                Ok(mut stream) => {
                    // A stream tells the whole output from its beginning: what was shown already is passed over.
                    let mut skip = shown;
                    loop {
                        let frame = tokio::select! {
                            frame = stream.next() => frame,
                            _ = self.interrupt.recv() => { if self.cancel().await { return Ok(None) } continue }
                            _ = self.terminate.recv() => { if self.cancel().await { return Ok(None) } continue }
                        };
                        match frame {
                            Ok(Frame::Stdout(bytes)) => {
                                drop(progress.take());
                                self.pass_on(&bytes, false, &mut skip, &mut shown);
                            }
                            Ok(Frame::Stderr(bytes)) => {
                                drop(progress.take());
                                self.pass_on(&bytes, true, &mut skip, &mut shown);
                            }
                            Ok(Frame::Control(Control::Exit { code })) => return Ok(Some(Some(code))),
                            Ok(Frame::Control(Control::Failed { problem })) => {
                                return if self.is_recorded().await { Ok(Some(None)) } else { Err(problem) };
                            }
                            Ok(Frame::Control(Control::Progress { message })) => {
                                if let Some(progress) = &progress {
                                    progress.set(&message);
                                }
                            }
                            Ok(Frame::Control(_)) => {}
                            Err(_) => break,
                        }
                    }
                }
                // Not taken by the host yet, or the host is just coming back.
                Err(problem) if problem.kind == ProblemKind::NotFound || problem.kind.retry_helps() => {}
                Err(problem) => return Err(problem),
            }
            match self.record().await {
                Ok(record) if record.state.is_final() => return Ok(Some(None)),
                Ok(_) => {}
                Err(problem) if problem.kind.retry_helps() => self.context.revive().await,
                Err(problem) => return Err(problem),
            }
            tokio::select! {
                () = tokio::time::sleep(pause.step()) => {}
                _ = self.interrupt.recv() => if self.cancel().await { return Ok(None) },
                _ = self.terminate.recv() => if self.cancel().await { return Ok(None) },
            }
        }
    }

    fn pass_on(&self, bytes: &[u8], error: bool, skip: &mut usize, shown: &mut usize) {
        let passed_over = (*skip).min(bytes.len());
        *skip -= passed_over;
        let bytes = &bytes[passed_over..];
        *shown += bytes.len();
        // With --json, standard output is the receipt's alone.
        if error || self.context.out.json { self.context.out.stderr(bytes) } else { self.context.out.stdout(bytes) }
    }

    /// Whether the run's end is in its record, which hears of it a moment after who follows the output.
    async fn is_recorded(&self) -> bool {
        let ended = async { wait::until_final(self.context, self.record().await?).await };
        matches!(tokio::time::timeout(RECORDED_WITHIN, ended).await, Ok(Ok(_)))
    }

    async fn record(&self) -> Result<CommandView, Problem> {
        wait::command(self.client, &self.id).await
    }

    /// Asks to cancel the run; true when it was asked before and the person does not want to wait.
    async fn cancel(&mut self) -> bool {
        if self.cancelled {
            return true;
        }
        self.cancelled = true;
        self.context.out.say("cancelling; once more leaves it");
        if let Err(problem) = super::workspace::cancel(self.client, &self.id).await {
            self.context.out.problem(&problem);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tables;

    fn receipt(state: &str, code: Option<i32>) -> CommandView {
        serde_json::from_value(serde_json::json!({
            "id": "cmd_00000000000000000000000000", "workspace": "a", "kind": "RUN_COMMAND", "state": state,
            "generation": 1, "attempt": 1, "requested_by": "ada", "trigger": "run",
            "requested_at": "2026-01-01T00:00:00Z", "finished_at": "2026-01-01T00:00:05Z", "exit_code": code,
        }))
        .expect("a record")
    }

    #[test]
    fn a_run_ends_with_its_own_status_and_a_failure_of_envforge_is_told_apart() {
        let code = |state: &str, code, heard| status(&receipt(state, code), heard).map(|c| format!("{c:?}"));
        let of = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(code("failed", Some(7), None), Ok(of(7)));
        assert_eq!(code("failed", None, Some(3)), Ok(of(3)));
        assert_eq!(code("succeeded", None, None), Ok(of(0)));
        assert_eq!(code("cancelled", None, None), Ok(of(130)));
        assert_eq!(code("interrupted", None, None).expect_err("failed").kind, ProblemKind::Failed);
    }

    #[test]
    fn a_receipt_is_one_line_without_output() {
        assert_eq!(
            receipt_line(&receipt("failed", Some(7))),
            "cmd_00000000000000000000000000 RUN_COMMAND failed with status 7, 5s"
        );
        assert!(tables::command(&receipt("failed", Some(7))).contains("exit        7"));
    }
}
