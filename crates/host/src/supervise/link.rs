//! The supervisor's socket: numbered requests of the daemon, answers, and a snapshot at every change.

use super::{
    events::Event,
    protocol::{Ask, Message, Reply, Request, Snapshot},
    runtime::Runtime,
};
use crate::system::SystemError;
use envforge_api::dial;
use std::sync::Arc;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixStream, unix::OwnedWriteHalf},
    sync::{mpsc::UnboundedSender, oneshot, watch},
};

/// Listens; connections are served until the supervisor ends.
pub(super) fn listen(runtime: &Runtime, events: UnboundedSender<Event>) -> Result<(), SystemError> {
    let listener = dial::listen(&runtime.shared.sandbox.supervisor_socket())
        .map_err(|e| SystemError::new("listen for the daemon", e))?;
    let snapshots = runtime.subscribe();
    tokio::task::spawn_local(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    tokio::task::spawn_local(serve(stream, snapshots.clone(), events.clone()));
                }
                // Out of descriptors: those in use end some time.
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
            }
        }
    });
    Ok(())
}

async fn serve(stream: UnixStream, snapshots: watch::Receiver<Arc<Snapshot>>, events: UnboundedSender<Event>) {
    let mut stills = false;
    converse(stream, snapshots, &events, &mut stills).await;
    if stills {
        // Whoever had the workspace stand still is gone. Where it went on, this changes nothing.
        let _ = events.send(Event::Asked { ask: Ask::GoOn, answer: oneshot::channel().0 });
    }
}

async fn converse(
    stream: UnixStream,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    events: &UnboundedSender<Event>,
    stills: &mut bool,
) {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    let mut subscribed = false;
    loop {
        tokio::select! {
            line = lines.next_line() => {
                let Ok(Some(line)) = line else { return };
                let Ok(request) = serde_json::from_str::<Request>(&line) else { return };
                let hello = matches!(request.ask, Ask::Hello { .. });
                *stills = matches!(request.ask, Ask::StandStill { .. }) || *stills && request.ask != Ask::GoOn;
                let (answer, answered) = oneshot::channel();
                let _ = events.send(Event::Asked { ask: request.ask, answer });
                let Ok(answer) = answered.await else { return };
                if send(&mut write, &Message::Reply(Reply { number: request.number, answer })).await.is_err() {
                    return;
                }
                if hello {
                    subscribed = true;
                    snapshots.mark_changed();
                }
            }
            changed = snapshots.changed(), if subscribed => {
                if changed.is_err() {
                    return;
                }
                let snapshot = Snapshot::clone(&snapshots.borrow_and_update());
                if send(&mut write, &Message::Snapshot(Box::new(snapshot))).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn send(write: &mut OwnedWriteHalf, message: &Message) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    write.write_all(&line).await
}
