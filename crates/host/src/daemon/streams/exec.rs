//! Exec: one shell-layer command on the caller's standard streams.

use super::{
    attach,
    channel::{Cut, In, Out, Said},
    client, pump,
    ready::{self, Ready, refused},
    routes::Api,
};
use crate::{
    daemon::hub::Workspace,
    supervise::process::exit_code,
    system::{
        enter::{As, Entry},
        pty::Pty,
        spawn::{Process, Stream},
    },
};
use envforge_api::{
    problem::Problem,
    stream::{Control, ExecStart, TerminalSize, channel},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::time::Duration;
use tokio::{io::AsyncWriteExt, net::unix::pipe, sync::mpsc};
use tokio_util::sync::CancellationToken;

/// Time between asking a command to end and killing it.
const GRACE: Duration = Duration::from_secs(5);
/// Messages of standard input that wait for the command to read them.
const WAITING: usize = 16;

pub(super) async fn exec(api: &Api, workspace: &Workspace, out: &Out, input: &mut In<'_>) -> Result<i32, Cut> {
    let mut start = match input.start().await? {
        Control::Exec(start) if !start.argv.is_empty() || start.client.is_some() => start,
        _ => return Err(Problem::invalid("there is no command to run", "name a program after `--`").into()),
    };
    let term = start.terminal.is_some().then(|| start.term.as_deref().unwrap_or("xterm-256color"));
    let mut ready = ready::wait(api, workspace, out, term, &start.git_identity).await?;
    if let Some(wanted) = &start.client {
        workspace.settled().await;
        let program = client::of(workspace, &ready.sandbox.dir, wanted)?;
        start.argv.splice(..0, program.argv);
        ready.environment.extend(program.environment);
    }
    match start.terminal {
        Some(size) => on_terminal(&ready, &start, size, out, input).await,
        None => on_pipes(&ready, &start, out, input).await,
    }
}

fn entry(ready: &Ready, terminal: bool) -> Entry {
    let shell = &ready.sandbox.cgroups.shell;
    Entry { terminal, ..Entry::new(&ready.sandbox, As::User, shell, ready.directory.as_str()) }
}

async fn on_pipes(ready: &Ready, start: &ExecStart, out: &Out, input: &mut In<'_>) -> Result<i32, Cut> {
    let streams = [Stream::Piped, Stream::Piped, Stream::Piped];
    let started = entry(ready, false).start(&start.argv, &ready.environment, streams, false);
    let mut child = started.map_err(|e| refused(&e.with_hint("is the workspace at its limit of processes?")))?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
        return Err(Problem::internal("a command was started without pipes").into());
    };
    let mut running = Running::new(child);
    let leader = running.leader;
    out.control(&Control::Started).await?;
    let ended = CancellationToken::new();
    let (send, receive) = mpsc::channel(WAITING);
    let shown = async {
        tokio::try_join!(
            pump::pipe(stdout, channel::STDOUT, out, &ended),
            pump::pipe(stderr, channel::STDERR, out, &ended),
            running.end(&ended),
        )
    };
    let fed = async {
        feed(stdin, receive).await;
        // The command decides when it ends, not its input.
        std::future::pending::<Cut>().await
    };
    tokio::select! {
        done = shown => Ok(done?.2),
        never = fed => Err(never),
        gone = heard(input, &send, leader) => Err(gone),
    }
}

async fn on_terminal(
    ready: &Ready,
    start: &ExecStart,
    size: TerminalSize,
    out: &Out,
    input: &mut In<'_>,
) -> Result<i32, Cut> {
    let (pty, theirs) = Pty::open(size, &ready.sandbox.accounts.user).map_err(|e| refused(&e))?;
    let child = attach::spawn(&entry(ready, true), &start.argv, &ready.environment, theirs).map_err(|e| refused(&e))?;
    let mut running = Running::new(child);
    let leader = running.leader;
    out.control(&Control::Started).await?;
    let ended = CancellationToken::new();
    let shown = async { tokio::try_join!(pump::terminal(&pty, channel::STDOUT, out, &ended), running.end(&ended)) };
    let typed = async {
        loop {
            match input.next().await {
                // A terminal without programs takes nothing; its end is noticed where it is read.
                Ok(Said::Stdin(bytes)) => drop(pty.write_all(&bytes).await),
                Ok(Said::Resize(size)) => drop(pty.resize(size)),
                Ok(Said::Signal(name)) => signal(leader, &name),
                Ok(Said::Identity(_)) => {}
                Err(cut) => return cut,
            }
        }
    };
    tokio::select! {
        done = shown => Ok(done?.1),
        gone = typed => Err(gone),
    }
}

/// Passes on what the client says until it is gone. Input that the command does not take holds the client back.
async fn heard(input: &mut In<'_>, stdin: &mpsc::Sender<axum::body::Bytes>, leader: Option<Pid>) -> Cut {
    loop {
        match input.next().await {
            // A command that closed its input misses the rest, as in a pipe.
            Ok(Said::Stdin(bytes)) => drop(stdin.send(bytes).await),
            Ok(Said::Signal(name)) => signal(leader, &name),
            Ok(Said::Resize(_) | Said::Identity(_)) => {}
            Err(cut) => return cut,
        }
    }
}

/// Writes standard input until its end.
async fn feed(mut stdin: pipe::Sender, mut octets: mpsc::Receiver<axum::body::Bytes>) {
    while let Some(bytes) = octets.recv().await {
        if bytes.is_empty() || stdin.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

fn signal(leader: Option<Pid>, name: &str) {
    let signal = match name {
        "INT" => Signal::SIGINT,
        "TERM" => Signal::SIGTERM,
        "HUP" => Signal::SIGHUP,
        "QUIT" => Signal::SIGQUIT,
        _ => return,
    };
    send(leader, signal);
}

/// To the whole session's first group; before the command leads one, to itself.
fn send(leader: Option<Pid>, signal: Signal) {
    let Some(leader) = leader else { return };
    if kill(Pid::from_raw(-leader.as_raw()), signal).is_err() {
        // One that just ended is as wanted.
        let _ = kill(leader, signal);
    }
}

/// A command that is asked to end, and then made to, when it is dropped before its end.
#[derive(Debug)]
struct Running {
    child: Option<Process>,
    leader: Option<Pid>,
}

impl Running {
    fn new(child: Process) -> Self {
        let leader = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        Self { child: Some(child), leader }
    }

    /// Waits for the command's end and says that there will be little more output.
    async fn end(&mut self, ended: &CancellationToken) -> Result<i32, Cut> {
        let Some(child) = &mut self.child else { return Ok(0) };
        let status = child.wait().await;
        self.child = None;
        ended.cancel();
        Ok(status.map_or(1, exit_code))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let (Some(mut child), leader) = (self.child.take(), self.leader) else { return };
        send(leader, Signal::SIGHUP);
        send(leader, Signal::SIGTERM);
        // Ends by itself after the grace. Until then the child is not waited for: its number, which is that of its
        // group, stays its own. Cut short by the end of the daemon, the command has at least been asked.
        tokio::spawn(async move {
            tokio::time::sleep(GRACE).await;
            send(leader, Signal::SIGKILL);
            let _ = child.wait().await;
        });
    }
}
