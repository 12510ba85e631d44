//! The terminal of a workspace: attached at once, attached again by itself after a lost connection.

use super::{
    framing::{Frame, Stream},
    stdin::Stdin,
    terminal::{self, Raw},
};
use crate::{context::Context, wait::BackOff};
use envforge_api::{
    capability::Right,
    ids::WorkspaceId,
    names::Slug,
    problem::{Problem, ProblemKind},
    public::{Grant, Opened},
    stream::{AttachStart, Control, TerminalSize},
    time::Timestamp,
};
use std::{collections::BTreeMap, pin::Pin, process::ExitCode, time::Duration};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
};

/// How one connection ended.
#[derive(Debug)]
enum End {
    /// The person detached, or the session ended.
    Exit(i32),
    /// A signal asks this process to end.
    Signal(u8),
    /// The host refused or failed.
    Failed(Problem),
    /// The connection was lost.
    Lost,
}

type Identity<'a> = Pin<Box<dyn Future<Output = BTreeMap<String, String>> + 'a>>;

/// Everything that outlives one connection.
struct Session<'a> {
    context: &'a Context,
    workspace: Slug,
    id: WorkspaceId,
    grant: Grant,
    fresh: Option<Fresh>,
    start: AttachStart,
    /// Who is at the terminal, until it is found out.
    identity: Option<Identity<'a>>,
    stdin: Stdin,
    resize: Signal,
    endings: Endings,
}

/// While a kept grant is used: the one that the control plane gives meanwhile, should the host refuse the old one.
#[derive(Debug)]
pub(crate) struct Fresh {
    /// Brings it.
    pub(crate) opened: oneshot::Receiver<Opened>,
    /// Says when the control plane may be asked: the shell is on the screen, or is refused.
    pub(crate) ask: Option<oneshot::Sender<()>>,
}

impl Fresh {
    fn ask(&mut self) {
        if let Some(ask) = self.ask.take() {
            // Whoever asks may have done so already.
            let _ = ask.send(());
        }
    }
}

/// Signals that ask this process to end; caught so that the terminal is restored first.
struct Endings {
    interrupt: Signal,
    quit: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Endings {
    fn catch() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The exit status of the next one.
    async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 130,
            _ = self.quit.recv() => 131,
            _ = self.terminate.recv() => 143,
            _ = self.hangup.recv() => 129,
        }
    }
}

/// Attaches until the person detaches; the exit status. `fresh` is another grant that may follow the first. The caller's
/// identity is found out beside it: a session that is there already does not wait for it.
///
/// # Errors
/// When the shell cannot be attached.
pub(crate) async fn run<'a>(
    context: &'a Context,
    opened: Opened,
    fresh: Option<Fresh>,
    command: Vec<String>,
    git_identity: impl Future<Output = BTreeMap<String, String>> + 'a,
) -> Result<ExitCode, Problem> {
    let failed = |error: std::io::Error| Problem::internal(format!("signals cannot be received: {error}"));
    let resize = signal(SignalKind::window_change()).map_err(failed)?;
    let endings = Endings::catch().map_err(failed)?;
    let raw = Raw::enter()?;
    let mut session = Session {
        context,
        workspace: opened.workspace,
        id: opened.id,
        grant: opened.grant,
        fresh,
        start: AttachStart {
            size: terminal::size(),
            term: terminal::term(),
            command,
            git_identity: BTreeMap::new(),
            identity_follows: true,
        },
        identity: Some(Box::pin(git_identity)),
        stdin: Stdin::start(),
        resize,
        endings,
    };
    let ended = session.follow().await;
    drop(raw);
    match ended? {
        End::Exit(code) => Ok(super::exec::exit_code(code)),
        End::Signal(code) => Ok(ExitCode::from(code)),
        End::Failed(problem) => Err(problem),
        End::Lost => Err(Problem::unavailable(
            format!("the connection to {} was lost", session.workspace),
            format!("`envforge up {}` attaches again; what runs in the shell goes on", session.workspace),
        )),
    }
}

impl Session<'_> {
    /// One connection after the other until an end that is final.
    async fn follow(&mut self) -> Result<End, Problem> {
        let mut pause = BackOff::new(Duration::from_millis(200), Duration::from_secs(5));
        let mut attached_once = false;
        let mut attempts = 0_u32;
        loop {
            let opened = self.open().await;
            match opened {
                Ok(stream) => {
                    let (end, begun) = self.relay(stream).await;
                    if begun {
                        attached_once = true;
                        attempts = 0;
                        pause = BackOff::new(Duration::from_millis(200), Duration::from_secs(5));
                        // A window for the command exists now: another attach must not make a second one.
                        self.start.command.clear();
                    }
                    match end {
                        End::Exit(_) | End::Signal(_) => return Ok(end),
                        // The host may still know, as being deleted, what the control plane knows to be gone.
                        End::Failed(problem)
                            if !attached_once && self.fresh.is_some() && problem.kind == ProblemKind::Conflict =>
                        {
                            self.take_fresh(problem).await?;
                            continue;
                        }
                        End::Failed(problem) if !(attached_once && problem.kind.retry_helps()) => {
                            return Ok(End::Failed(problem));
                        }
                        End::Failed(_) | End::Lost => {}
                    }
                }
                Err(problem) if problem.kind.retry_helps() && (attached_once || attempts < 50) => {}
                // Made for a workspace or an installation that is gone, perhaps: the control plane knows better.
                Err(problem) if self.fresh.is_some() && is_refusal(&problem) => {
                    self.take_fresh(problem).await?;
                    continue;
                }
                // The capability may have expired while the connection was away.
                Err(problem) if problem.kind == ProblemKind::Unauthenticated && attempts < 5 => self.renew().await,
                Err(problem) => return Err(problem),
            }
            attempts += 1;
            if attempts > 2 {
                self.context.revive().await;
            }
            if attached_once || attempts > 3 {
                self.status("connection lost; attaching again … (Ctrl-C gives up)");
            }
            if let Some(end) = self.wait(pause.step()).await {
                return Ok(end);
            }
        }
    }

    /// Goes on with the grant that follows the refused one.
    ///
    /// # Errors
    /// The refusal, when there is none: the control plane's own problem is told by the one who asked.
    async fn take_fresh(&mut self, refusal: Problem) -> Result<(), Problem> {
        let Some(mut fresh) = self.fresh.take() else { return Err(refusal) };
        fresh.ask();
        let Ok(opened) = fresh.opened.await else { return Err(refusal) };
        (self.workspace, self.id, self.grant) = (opened.workspace, opened.id, opened.grant);
        Ok(())
    }

    async fn open(&mut self) -> Result<Stream, Problem> {
        self.start.size = terminal::size();
        let host = super::host(self.context, &self.grant)?;
        let path = format!("/host/v1/workspaces/{}/attach", self.id);
        Stream::open(&host, &path, Some(&Control::Attach(self.start.clone()))).await
    }

    /// Passes everything on until the connection ends; also whether the stream had begun.
    async fn relay(&mut self, mut stream: Stream) -> (End, bool) {
        let mut begun = false;
        let renewal = tokio::time::sleep(renew_in(self.grant.expires_at, Timestamp::now()));
        tokio::pin!(renewal);
        loop {
            let identity = async {
                match &mut self.identity {
                    Some(identity) => identity.await,
                    None => std::future::pending().await,
                }
            };
            let sent = tokio::select! {
                frame = stream.next() => match frame {
                    Ok(Frame::Stdout(bytes) | Frame::Stderr(bytes)) => {
                        if !begun {
                            self.clear_status();
                            begun = true;
                        }
                        self.context.out.stdout(&bytes);
                        if let Some(fresh) = &mut self.fresh {
                            fresh.ask();
                        }
                        Ok(())
                    }
                    Ok(Frame::Control(Control::Started)) => {
                        self.clear_status();
                        begun = true;
                        Ok(())
                    }
                    Ok(Frame::Control(Control::Progress { message })) => {
                        self.status(&message);
                        Ok(())
                    }
                    Ok(Frame::Control(Control::Exit { code })) => {
                        stream.close().await;
                        return (End::Exit(code), begun);
                    }
                    Ok(Frame::Control(Control::Failed { problem })) => return (End::Failed(problem), begun),
                    Ok(Frame::Control(_)) => Ok(()),
                    Err(_) => return (End::Lost, begun),
                },
                chunk = self.stdin.next() => {
                    if chunk.is_empty() {
                        // The terminal itself is gone.
                        return (End::Signal(129), begun);
                    }
                    // Before the shell is there, Ctrl-C is meant for this program.
                    if !begun && gives_up(&chunk) {
                        return (End::Signal(130), begun);
                    }
                    stream.input(&chunk).await
                }
                git_identity = identity => {
                    self.identity = None;
                    self.start.git_identity.clone_from(&git_identity);
                    self.start.identity_follows = false;
                    stream.control(&Control::Identity { git_identity }).await
                }
                _ = self.resize.recv() => stream.control(&Control::Resize { size: terminal::size() }).await,
                () = &mut renewal => {
                    self.renew().await;
                    let next = renew_in(self.grant.expires_at, Timestamp::now());
                    renewal.as_mut().reset(tokio::time::Instant::now() + next);
                    stream.control(&Control::Renew { token: self.grant.token.expose().to_owned() }).await
                }
                code = self.endings.next() => return (End::Signal(code), begun),
            };
            if sent.is_err() {
                return (End::Lost, begun);
            }
        }
    }

    /// A pause that Ctrl-C and signals end.
    async fn wait(&mut self, pause: Duration) -> Option<End> {
        let over = tokio::time::sleep(pause);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => return None,
                chunk = self.stdin.next() => {
                    if chunk.is_empty() || gives_up(&chunk) {
                        self.clear_status();
                        return Some(End::Lost);
                    }
                }
                code = self.endings.next() => return Some(End::Signal(code)),
            }
        }
    }

    /// Gets a newer capability; without one the old one is used as long as it lasts.
    async fn renew(&mut self) {
        if let Ok(grant) = super::grant(self.context, &self.workspace, vec![Right::Attach], None).await {
            self.grant = grant;
        }
    }

    fn status(&self, text: &str) {
        self.context.out.stderr(format!("\r\x1b[K[envforge] {text}").as_bytes());
    }

    fn clear_status(&self) {
        self.context.out.stderr(b"\r\x1b[K");
    }
}

fn is_refusal(problem: &Problem) -> bool {
    matches!(problem.kind, ProblemKind::NotFound | ProblemKind::Unauthenticated)
}

/// Ctrl-C or Ctrl-D.
fn gives_up(chunk: &[u8]) -> bool {
    chunk.iter().any(|byte| matches!(byte, 3 | 4))
}

/// When to ask for a newer capability: after three quarters of what is left, at least 30 seconds from now.
pub(super) fn renew_in(expires_at: Timestamp, now: Timestamp) -> Duration {
    let left = u64::try_from(expires_at.as_second() - now.as_second()).unwrap_or(0);
    Duration::from_secs((left / 4 * 3).max(30))
}

/// Opens a window for `command` without anyone watching: attaches, waits until the terminal is drawn, detaches.
///
/// # Errors
/// When the shell cannot be attached.
pub(crate) async fn window(
    context: &Context,
    opened: &Opened,
    command: Vec<String>,
    git_identity: BTreeMap<String, String>,
) -> Result<(), Problem> {
    let host = super::host(context, &opened.grant)?;
    let start = AttachStart {
        size: TerminalSize { columns: 80, rows: 24 },
        term: "xterm-256color".to_owned(),
        command,
        git_identity,
        identity_follows: false,
    };
    let path = format!("/host/v1/workspaces/{}/attach", opened.id);
    let mut stream = Stream::open(&host, &path, Some(&Control::Attach(start))).await?;
    loop {
        match stream.next().await? {
            Frame::Stdout(_) | Frame::Stderr(_) | Frame::Control(Control::Exit { .. }) => break,
            Frame::Control(Control::Failed { problem }) => return Err(problem),
            Frame::Control(_) => {}
        }
    }
    stream.close().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_is_renewed_well_before_it_ends() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("time");
        assert_eq!(renew_in("2026-01-01T01:00:00Z".parse().expect("time"), now), Duration::from_secs(2700));
        assert_eq!(renew_in(now, now), Duration::from_secs(30));
    }
}
