//! Connections of this machine, carried into a workspace: a stream of the host for each, both directions at once.
//!
//! Each direction is as fast as its slower end and has an end of its own; a connection that was broken off on one side is
//! on the other too, so that nothing cut short is taken for whole.

use super::attach::renew_in;
use crate::{
    context::{Context, RESTART},
    wait::BackOff,
};
use envforge_api::{
    capability::Right,
    client::WebSocket,
    forward::{Forwarded, Target},
    names::{ServiceName, Slug},
    problem::{Problem, ProblemKind},
    public::Grant,
    stream::{Control, channel},
    time::Timestamp,
};
use futures_util::{
    SinkExt, StreamExt,
    stream::{FuturesUnordered, SplitSink, SplitStream},
};
use std::{
    io,
    process::ExitCode,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    signal::unix::{SignalKind, signal},
    sync::{Notify, watch},
};
use tokio_tungstenite::tungstenite::Message;

/// Octets carried at once.
const AT_ONCE: usize = 64 << 10;
/// After the machine refused a connection, such as for want of descriptors.
const REST: Duration = Duration::from_millis(100);

/// What is forwarded.
#[derive(Debug)]
pub(crate) struct Source {
    /// The service or data service.
    pub(crate) target: Target,
    /// Whose, where each service has its own.
    pub(crate) service: Option<ServiceName>,
}

/// The way to it.
#[derive(Debug)]
pub(crate) struct Forward<'a> {
    context: &'a Context,
    workspace: &'a Slug,
    source: Source,
    grant: watch::Sender<Grant>,
}

/// Why a connection ended before both sides had closed it.
#[derive(Debug)]
enum Cut {
    /// One side broke it off.
    Broken,
    /// The host says why.
    Refused(Problem),
}

impl From<io::Error> for Cut {
    fn from(_: io::Error) -> Self {
        Self::Broken
    }
}

impl<'a> Forward<'a> {
    /// Asks for a capability.
    ///
    /// # Errors
    /// As the request.
    pub(crate) async fn open(context: &'a Context, workspace: &'a Slug, source: Source) -> Result<Self, Problem> {
        let grant = super::grant(context, workspace, vec![Right::Forward], None).await?;
        Ok(Self { context, workspace, source, grant: watch::Sender::new(grant) })
    }

    fn path(&self, rest: &str) -> String {
        let owner = self.source.service.as_ref().map(|name| format!("?service={name}")).unwrap_or_default();
        let workspace = self.grant.borrow().workspace.clone();
        format!("/host/v1/workspaces/{workspace}/ports/{}{rest}{owner}", self.source.target)
    }

    /// What the target leads to now.
    ///
    /// # Errors
    /// When it is not there.
    pub(crate) async fn leads_to(&self) -> Result<Forwarded, Problem> {
        let host = super::host(self.context, &self.grant.borrow().clone())?;
        host.get(&self.path("")).await
    }

    /// Carries what connects, until a signal asks for the end.
    ///
    /// # Errors
    /// When the permission is taken away.
    pub(crate) async fn serve(&self, listener: TcpListener) -> Result<ExitCode, Problem> {
        let failed = |error: io::Error| Problem::internal(format!("signals cannot be received: {error}"));
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut connections = FuturesUnordered::new();
        let renewing = self.keep_renewed();
        tokio::pin!(renewing);
        loop {
            tokio::select! {
                // How one is asked to end.
                _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
                _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
                problem = &mut renewing => return Err(problem),
                stream = accept(&listener) => connections.push(self.carry(stream)),
                Some(ended) = connections.next() => {
                    if let Err(Cut::Refused(problem)) = ended {
                        // Who is no longer let in will not be for the next one.
                        if is_final(&problem) {
                            return Err(problem);
                        }
                        let hint = if problem.hint.is_empty() { String::new() } else { format!("; {}", problem.hint) };
                        self.context.out.say(&format!("a connection was refused: {}{hint}", problem.message));
                    }
                }
            }
        }
    }

    /// Renews the capability in time, again and again, until that is refused.
    async fn keep_renewed(&self) -> Problem {
        loop {
            let expires_at = self.grant.borrow().expires_at;
            tokio::time::sleep(renew_in(expires_at, Timestamp::now())).await;
            match self.renew().await {
                Ok(()) => {}
                // The one at hand may still be good: it is tried again.
                Err(problem) if problem.kind.retry_helps() => {}
                Err(problem) => return problem,
            }
        }
    }

    /// Gets a newer capability, for what is open and what comes.
    async fn renew(&self) -> Result<(), Problem> {
        let grant = super::grant(self.context, self.workspace, vec![Right::Forward], None).await?;
        self.grant.send_replace(grant);
        Ok(())
    }

    /// A stream of the host; with a newer capability where the one at hand is no longer taken.
    async fn stream(&self) -> Result<WebSocket, Problem> {
        let open = async || {
            let host = super::host(self.context, &self.grant.borrow().clone())?;
            host.websocket(&self.path("/connect")).await
        };
        match open().await {
            Err(problem) if problem.kind == ProblemKind::Unauthenticated => {
                self.renew().await?;
                open().await
            }
            opened => opened,
        }
    }

    /// A stream that leads to the target. Nothing of the program is read before there is one, so it may be asked for again
    /// where a host's daemon ends meanwhile.
    async fn opened(&self) -> Result<(SplitSink<WebSocket, Message>, SplitStream<WebSocket>), Cut> {
        let begun = Instant::now();
        let mut pause = BackOff::new(Duration::from_millis(20), Duration::from_millis(500));
        loop {
            let cut = match self.stream().await.map(StreamExt::split) {
                Ok((sink, mut source)) => match control(source.next().await) {
                    Ok(Control::Started) => return Ok((sink, source)),
                    Ok(Control::Failed { problem }) => Cut::Refused(problem),
                    Ok(_) | Err(_) => Cut::Broken,
                },
                Err(problem) => Cut::Refused(problem),
            };
            let helps = match &cut {
                Cut::Broken => true,
                Cut::Refused(problem) => problem.kind.retry_helps(),
            };
            if !helps || begun.elapsed() > RESTART {
                return Err(cut);
            }
            tokio::time::sleep(pause.step()).await;
        }
    }

    async fn carry(&self, mut local: TcpStream) -> Result<(), Cut> {
        // However this ends before both directions have, the program must not take it for a good end.
        local.set_zero_linger()?;
        local.set_nodelay(true)?;
        let (mut sink, mut source) = self.opened().await?;
        {
            let (from, mut to) = local.split();
            let sent = Notify::new();
            let both = async {
                back(&mut source, &mut to).await?;
                sent.notified().await;
                Ok::<(), Cut>(())
            };
            tokio::select! {
                ended = both => ended?,
                cut = there(from, &mut sink, self.grant.subscribe(), &sent) => return Err(cut),
            }
        }
        // Closed in good order from here on; nothing is lost if the machine refuses.
        let _ = rustix::net::sockopt::set_socket_linger(&local, None);
        // The host has ended it too.
        let _ = sink.close().await;
        Ok(())
    }
}

/// The next connection.
async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(_) => tokio::time::sleep(REST).await,
        }
    }
}

/// Whether no later connection can be carried either.
fn is_final(problem: &Problem) -> bool {
    matches!(problem.kind, ProblemKind::Unauthenticated | ProblemKind::NotFound)
}

type Received = Option<Result<Message, tokio_tungstenite::tungstenite::Error>>;

/// A control message, which is the next one.
fn control(received: Received) -> Result<Control, Cut> {
    match received {
        Some(Ok(Message::Binary(octets))) if octets.first() == Some(&channel::CONTROL) => {
            serde_json::from_slice(&octets[1..]).map_err(|_| Cut::Broken)
        }
        Some(_) | None => Err(Cut::Broken),
    }
}

fn message(of: u8, octets: &[u8]) -> Message {
    let mut message = Vec::with_capacity(octets.len() + 1);
    message.push(of);
    message.extend_from_slice(octets);
    Message::binary(message)
}

/// From the program here to the host; says when it has sent all, and then only passes newer capabilities on: it ends in
/// no other way than by a break.
async fn there(
    mut from: ReadHalf<'_>,
    sink: &mut SplitSink<WebSocket, Message>,
    mut grants: watch::Receiver<Grant>,
    sent: &Notify,
) -> Cut {
    let mut octets = vec![0; AT_ONCE];
    let mut open = true;
    grants.mark_unchanged();
    loop {
        let message = tokio::select! {
            read = from.read(&mut octets), if open => match read {
                Ok(read) => {
                    open = read > 0;
                    message(channel::STDIN, &octets[..read])
                }
                Err(_) => return Cut::Broken,
            },
            // Its sender lives as long as this.
            _ = grants.changed() => {
                let token = grants.borrow_and_update().token.expose().to_owned();
                let Ok(renew) = serde_json::to_vec(&Control::Renew { token }) else { continue };
                message(channel::CONTROL, &renew)
            }
        };
        if sink.send(message).await.is_err() {
            return Cut::Broken;
        }
        if !open {
            sent.notify_one();
        }
    }
}

/// From the host to the program here, to the host's last message.
async fn back(source: &mut SplitStream<WebSocket>, to: &mut WriteHalf<'_>) -> Result<(), Cut> {
    loop {
        let Some(Ok(received)) = source.next().await else { return Err(Cut::Broken) };
        let Message::Binary(octets) = received else { continue };
        match octets.split_first() {
            Some((&channel::STDOUT, [])) => to.shutdown().await?,
            Some((&channel::STDOUT, octets)) => to.write_all(octets).await?,
            Some((&channel::CONTROL, octets)) => match serde_json::from_slice(octets) {
                Ok(Control::Exit { code: 0 }) => return Ok(()),
                Ok(Control::Exit { .. }) => return Err(Cut::Broken),
                Ok(Control::Failed { problem }) => return Err(Cut::Refused(problem)),
                // What a newer host may say beyond this is not for us.
                Ok(_) | Err(_) => {}
            },
            Some(_) | None => {}
        }
    }
}
