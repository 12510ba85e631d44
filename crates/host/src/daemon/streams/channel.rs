//! The two directions of one stream: messages with an octet of channel first.

use super::{attach, exec, guard::Guard, logs, objects, output, ports, routes::Api};
use crate::daemon::hub::Workspace;
use axum::extract::ws::{Message, WebSocket};
use envforge_api::{
    ids::CommandId,
    problem::{Problem, ProblemKind},
    stream::{Control, TerminalSize, channel},
};
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use std::{collections::BTreeMap, time::Duration};
use tokio::{
    sync::Mutex,
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};

/// How long a client may take to say what it wants.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// A client that is gone is noticed after this long, also while nothing is said.
const PING: Duration = Duration::from_secs(5);
/// How long the last message may take to leave.
const LAST_MESSAGE: Duration = Duration::from_secs(1);

/// Why a stream ended before its command.
#[derive(Debug)]
pub(super) enum Cut {
    /// Nobody listens any more.
    Gone,
    /// It could not be done, or not any longer.
    Failed(Problem),
}

impl From<Problem> for Cut {
    fn from(problem: Problem) -> Self {
        Self::Failed(problem)
    }
}

impl From<axum::Error> for Cut {
    fn from(_: axum::Error) -> Self {
        Self::Gone
    }
}

/// What a client says while a stream is open.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// Octets for standard input; empty = its end.
    Stdin(axum::body::Bytes),
    /// The window changed.
    Resize(TerminalSize),
    /// Deliver a signal.
    Signal(String),
    /// Who is at the terminal, for Git.
    Identity(BTreeMap<String, String>),
}

/// Host to client. Every method waits until the client took the message: that is what slows a process down.
#[derive(Debug)]
pub(super) struct Out(Mutex<SplitSink<WebSocket, Message>>);

impl Out {
    /// Sends octets of a channel.
    pub(super) async fn data(&self, channel: u8, bytes: &[u8]) -> Result<(), Cut> {
        Ok(self.0.lock().await.send(framed(channel, bytes)).await?)
    }

    /// Sends octets some time before the next [`Out::flush`].
    pub(super) async fn feed(&self, channel: u8, bytes: &[u8]) -> Result<(), Cut> {
        Ok(self.0.lock().await.feed(framed(channel, bytes)).await?)
    }

    /// Sends what was fed.
    pub(super) async fn flush(&self) -> Result<(), Cut> {
        Ok(self.0.lock().await.flush().await?)
    }

    /// Sends a control message.
    pub(super) async fn control(&self, message: &Control) -> Result<(), Cut> {
        let bytes = serde_json::to_vec(message).map_err(|e| Problem::internal(e.to_string()))?;
        self.data(channel::CONTROL, &bytes).await
    }

    /// Ends when the client is gone.
    async fn watch(&self) -> Cut {
        let mut tick = interval_at(Instant::now() + PING, PING);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if let Err(error) = self.0.lock().await.send(Message::Ping(axum::body::Bytes::new())).await {
                return error.into();
            }
        }
    }
}

fn framed(channel: u8, bytes: &[u8]) -> Message {
    let mut message = Vec::with_capacity(bytes.len() + 1);
    message.push(channel);
    message.extend_from_slice(bytes);
    Message::Binary(message.into())
}

/// Client to host.
#[derive(Debug)]
pub(super) struct In<'a> {
    source: SplitStream<WebSocket>,
    guard: &'a Guard,
}

impl In<'_> {
    async fn message(&mut self) -> Result<(u8, axum::body::Bytes), Cut> {
        loop {
            match self.source.next().await {
                Some(Ok(Message::Binary(bytes))) if !bytes.is_empty() => return Ok((bytes[0], bytes.slice(1..))),
                Some(Ok(Message::Binary(_) | Message::Text(_) | Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(Cut::Gone),
            }
        }
    }

    /// The first message.
    pub(super) async fn start(&mut self) -> Result<Control, Cut> {
        let wrong = || Problem::invalid("the first message does not say what is wanted", "is this an EnvForge client?");
        let late = || Problem::new(ProblemKind::Timeout, "nothing was asked within 10 seconds", "try again");
        let (of, bytes) = timeout(FIRST_MESSAGE, self.message()).await.map_err(|_| late())??;
        if of != channel::CONTROL {
            return Err(wrong().into());
        }
        Ok(serde_json::from_slice(&bytes).map_err(|_| wrong())?)
    }

    /// The next thing said. Renewals of the permission are dealt with on the way.
    pub(super) async fn next(&mut self) -> Result<Said, Cut> {
        loop {
            let (of, bytes) = self.message().await?;
            if of == channel::STDIN {
                return Ok(Said::Stdin(bytes));
            }
            // What a newer client may say beyond this is not for us.
            match serde_json::from_slice(&bytes) {
                Ok(Control::Resize { size }) if of == channel::CONTROL => return Ok(Said::Resize(size)),
                Ok(Control::Signal { name }) if of == channel::CONTROL => return Ok(Said::Signal(name)),
                Ok(Control::Identity { git_identity }) if of == channel::CONTROL => {
                    return Ok(Said::Identity(git_identity));
                }
                Ok(Control::Renew { token }) if of == channel::CONTROL => self.guard.renew(&token),
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// Listens to a client that has nothing to say but renewals; ends when it is gone.
    pub(super) async fn until_gone(&mut self) -> Cut {
        loop {
            if let Err(cut) = self.next().await {
                return cut;
            }
        }
    }
}

/// What a stream is for.
#[derive(Debug)]
pub(super) enum Kind {
    /// The workspace's terminal session.
    Attach,
    /// A command.
    Exec,
    /// Logs.
    Logs,
    /// Output of a run.
    Output(CommandId),
    /// Objects.
    Storage,
    /// A connection to a port.
    Port(ports::Wanted),
}

impl Kind {
    async fn perform(self, api: &Api, workspace: &Workspace, out: &Out, input: &mut In<'_>) -> Result<i32, Cut> {
        match self {
            Self::Attach => attach::attach(api, workspace, out, input).await,
            Self::Exec => exec::exec(api, workspace, out, input).await,
            Self::Logs => logs::show(api, workspace, out, input).await,
            Self::Output(command) => output::follow(api, workspace, &command, out, input).await,
            Self::Storage => objects::act(api, workspace, out, input).await,
            Self::Port(wanted) => ports::carry(api, workspace, &wanted, out, input).await,
        }
    }
}

/// Runs one stream to its last message. Loss of the permission, of the client or of this daemon drops what it does
/// where it stands.
pub(super) async fn session(socket: WebSocket, api: &Api, workspace: &Workspace, guard: &Guard, kind: Kind) {
    let (sink, source) = socket.split();
    let out = Out(Mutex::new(sink));
    let mut input = In { source, guard };
    let ended = tokio::select! {
        ended = kind.perform(api, workspace, &out, &mut input) => ended,
        problem = guard.ended() => Err(Cut::Failed(problem)),
        gone = out.watch() => Err(gone),
        // The client sees the connection break and comes back to the next daemon.
        () = api.stop.cancelled() => Err(Cut::Gone),
    };
    let last = match ended {
        Ok(code) => Control::Exit { code },
        Err(Cut::Failed(problem)) => Control::Failed { problem },
        Err(Cut::Gone) => return,
    };
    // Whoever does not take the last message in time loses it. The connection stays until the client closed it too:
    // what it still says would else meet a closed socket, and that error would hide the message from it.
    let _ = timeout(LAST_MESSAGE, async {
        out.control(&last).await?;
        out.0.lock().await.close().await?;
        while input.message().await.is_ok() {}
        Ok::<_, Cut>(())
    })
    .await;
}
