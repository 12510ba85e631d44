//! A shell-layer command: its input, output, signals and status, as if it ran here.

use super::{
    framing::{Frame, Stream},
    stdin::Stdin,
    terminal,
};
use crate::output::Output;
use envforge_api::{
    client::Client,
    ids::WorkspaceId,
    problem::Problem,
    stream::{Control, ExecStart, ResourceClient},
};
use std::{collections::BTreeMap, process::ExitCode};
use tokio::signal::unix::{SignalKind, signal};

/// An exit status as the process's; what does not fit is 125.
pub(crate) fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(125))
}

/// Runs a command to its end; a terminal is allocated where standard input and output are one.
///
/// # Errors
/// When it could not be run, or the connection was lost.
pub(crate) async fn run(
    out: &Output,
    host: &Client,
    workspace: &WorkspaceId,
    argv: Vec<String>,
    git_identity: BTreeMap<String, String>,
) -> Result<ExitCode, Problem> {
    begin(out, host, workspace, ExecStart { argv, client: None, terminal: None, term: None, git_identity }).await
}

/// The same with the client of a resource.
///
/// # Errors
/// As [`run`], and when the resource is not ready.
pub(crate) async fn run_client(
    out: &Output,
    host: &Client,
    workspace: &WorkspaceId,
    client: ResourceClient,
    argv: Vec<String>,
) -> Result<ExitCode, Problem> {
    let git_identity = BTreeMap::new();
    begin(out, host, workspace, ExecStart { argv, client: Some(client), terminal: None, term: None, git_identity })
        .await
}

async fn begin(out: &Output, host: &Client, workspace: &WorkspaceId, start: ExecStart) -> Result<ExitCode, Problem> {
    let with_terminal = terminal::present();
    let start = Control::Exec(ExecStart {
        terminal: with_terminal.then(terminal::size),
        term: with_terminal.then(terminal::term),
        ..start
    });
    let failed = |error: std::io::Error| Problem::internal(format!("signals cannot be received: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
    let mut quit = signal(SignalKind::quit()).map_err(failed)?;
    let mut resize = signal(SignalKind::window_change()).map_err(failed)?;
    let mut stream = Stream::open(host, &format!("/host/v1/workspaces/{workspace}/exec"), Some(&start)).await?;
    let _raw = if with_terminal { Some(terminal::Raw::enter()?) } else { None };
    let mut stdin = Stdin::start();
    let mut input_open = true;
    loop {
        let forwarded = tokio::select! {
            frame = stream.next() => {
                match frame? {
                    Frame::Stdout(bytes) => out.stdout(&bytes),
                    Frame::Stderr(bytes) => out.stderr(&bytes),
                    Frame::Control(Control::Exit { code }) => {
                        stream.close().await;
                        return Ok(exit_code(code));
                    }
                    Frame::Control(Control::Failed { problem }) => return Err(problem),
                    Frame::Control(_) => {}
                }
                continue;
            }
            chunk = stdin.next(), if input_open => {
                // The command may have closed its input or ended: its last message says how.
                input_open = stream.input(&chunk).await.is_ok() && !chunk.is_empty();
                continue;
            }
            _ = resize.recv(), if with_terminal => Control::Resize { size: terminal::size() },
            _ = interrupt.recv() => Control::Signal { name: "INT".into() },
            _ = terminate.recv() => Control::Signal { name: "TERM".into() },
            _ = hangup.recv() => Control::Signal { name: "HUP".into() },
            _ = quit.recv() => Control::Signal { name: "QUIT".into() },
        };
        stream.control(&forwarded).await?;
    }
}
