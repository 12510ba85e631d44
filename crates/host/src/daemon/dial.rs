//! The machine's dial socket (`<run>/dial.sock`): a gateway shows a capability for one workspace and gets a connection
//! to one of its declared ports. Only what a service declared can be reached, and no port of a database, whoever asks.

use super::{
    hub::{Hub, Workspace},
    parked, storage,
    streams::bind,
};
use envforge_api::{
    capability::{self, Right},
    dial::{self, Ask, AskInside, Dialled},
    states::ServiceKind,
    time::Timestamp,
    tunnel::NotOpened,
};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{net::UnixStream, time::timeout};
use tokio_util::sync::CancellationToken;

/// Where it is.
pub(super) fn path(hub: &Hub) -> PathBuf {
    hub.installation.run.join("dial.sock")
}

/// Serves until `stop`. Connections that were handed over go on without this daemon.
///
/// # Errors
/// When the socket cannot be bound.
pub(super) async fn serve(hub: Arc<Hub>, stop: CancellationToken) -> std::io::Result<()> {
    // Everyone may connect; what anyone may do is in their capability.
    let listener = bind(&hub.installation.run, &path(&hub), 0o666, None)?;
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let hub = Arc::clone(&hub);
                // Ends with its answer.
                tokio::spawn(async move { answer(&hub, &stream).await });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn answer(hub: &Hub, stream: &UnixStream) {
    let Ok(ask) = dial::asked::<Ask>(stream).await else { return };
    let outcome = connect(hub, &ask).await;
    // Whoever is gone by now needs none.
    drop(dial::answer(stream, outcome).await);
}

/// A connection, for whoever may have one.
pub(super) async fn connect(hub: &Hub, ask: &Ask) -> Result<Dialled, NotOpened> {
    let keys = hub.keys.borrow().clone();
    let given = capability::verify(&keys, ask.token.expose(), Timestamp::now()).map_err(|_| NotOpened::Refused)?;
    let host = hub.host.borrow().clone().ok_or(NotOpened::Refused)?;
    given.allows(&host, &ask.workspace, Right::Dial).map_err(|_| NotOpened::Refused)?;
    let workspace = hub.get(&ask.workspace).ok_or(NotOpened::Refused)?;
    if let Some(presigned) = &ask.presigned {
        return storage::presigned(hub, &workspace, presigned).await;
    }
    if let Some(wait) = ask.wait {
        let within = Duration::from_millis(wait.ms.into());
        match timeout(within, parked::ready(&workspace, ask.port, wait.generation)).await {
            Ok(true) => {}
            Ok(false) => return Err(NotOpened::NotListening),
            Err(_) => return Err(NotOpened::Asleep),
        }
    }
    workspace.settled().await;
    let instance = workspace.runtime.borrow().supervisor.as_ref().map(|supervisor| supervisor.instance.clone());
    let instance = instance.ok_or(NotOpened::Asleep)?;
    if !is_open(&workspace, ask.port) {
        return Err(NotOpened::Refused);
    }
    let sandbox = workspace.sandbox.borrow().clone().ok_or(NotOpened::Asleep)?;
    match dial::dial(&sandbox.dial_socket(), &AskInside { port: ask.port }, Duration::ZERO).await {
        Ok(dialled) => Ok(Dialled { instance: Some(instance), ..dialled }),
        // The supervisor ended between two looks.
        Err(NotOpened::Away) => Err(NotOpened::Asleep),
        Err(why) => Err(why),
    }
}

/// Whether a service declared the port and no resource has it.
fn is_open(workspace: &Workspace, port: u16) -> bool {
    let facts = workspace.runtime.borrow();
    let Some(snapshot) = &facts.snapshot else { return false };
    let of_resource = snapshot.resources.iter().any(|resource| resource.kind.port() == port);
    let runs = |kind: ServiceKind, of: Option<u16>| kind == ServiceKind::Service && of == Some(port);
    let running = snapshot.services.iter().any(|service| runs(service.kind, service.port));
    let declared = || workspace.faces.borrow().iter().any(|face| face.ports.values().any(|of| *of == port));
    !of_resource && (running || declared())
}
