//! Dev hosts from inside: the public addresses of a workspace's services work in its own shell, without a link.
//!
//! Their names lead to the workspace's loopback, where this daemon listens on the port of the base and hands each
//! connection to the gateway on this machine, saying whose it is. Nothing else is reached that way: the gateway gives a
//! workspace its own dev hosts and no other.

use super::{
    hub::{Hub, Workspace},
    listening::Listening,
};
use crate::system::sandbox::parked;
use envforge_api::dial::FromInside;
use std::{collections::BTreeSet, io, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpStream, UnixStream},
};

/// What could not be had is tried again after this.
const AGAIN: Duration = Duration::from_secs(10);

/// Where a gateway on this machine takes connections from inside.
fn door(hub: &Hub) -> PathBuf {
    hub.installation.run.join("gateway.sock")
}

/// The names of dev hosts, and the port that they all have.
fn addresses<'a>(origins: impl Iterator<Item = &'a String>) -> Option<(BTreeSet<String>, u16)> {
    let mut names = BTreeSet::new();
    let mut at = None;
    for origin in origins {
        // With TLS the gateway would have to prove itself here; visitors from inside go the way of all others then.
        let (name, port) = match origin.strip_prefix("http://")?.split_once(':') {
            Some((name, port)) => (name, port.parse().ok()?),
            None => (origin.strip_prefix("http://")?, 80),
        };
        names.insert(name.to_owned());
        at = Some(port);
    }
    Some((names, at?))
}

/// What is served inside at the moment.
struct Served {
    network: parked::Network,
    port: u16,
    listening: Listening,
}

/// Keeps the addresses working until the workspace is gone.
pub(super) async fn keep(hub: &Arc<Hub>, workspace: &Arc<Workspace>) {
    let (mut intents, mut sandboxes) = (workspace.intent.subscribe(), workspace.sandbox.subscribe());
    let mut now: Option<Served> = None;
    loop {
        let wanted = {
            let intent = intents.borrow_and_update();
            addresses(intent.urls.values().chain(&intent.storage_url))
        };
        let sandbox = sandboxes.borrow_and_update().clone();
        let mut again = None;
        match (wanted, &sandbox) {
            (Some((names, port)), Some(sandbox)) if sandbox.has_network_of_its_own() => {
                if let Err(error) = sandbox.name_hosts(&names) {
                    tracing::info!(workspace = %workspace.id, %error, "dev hosts have no names inside");
                }
                let network = parked::network(sandbox);
                let is_there = now.as_ref().is_some_and(|now| now.port == port && Some(now.network) == network);
                if let (Some(network), false) = (network, is_there) {
                    now = None;
                    let sandbox = sandbox.clone();
                    match Listening::on(move || parked::listen(&sandbox, port)).await {
                        Ok(listening) => now = Some(Served { network, port, listening }),
                        Err(error) => {
                            tracing::info!(workspace = %workspace.id, %error, "dev hosts are not served inside");
                            again = Some(AGAIN);
                        }
                    }
                }
            }
            (Some(_) | None, Some(_) | None) => now = None,
        }
        let accepted = async {
            match &now {
                Some(served) => served.listening.accept().await,
                None => std::future::pending().await,
            }
        };
        let due = async {
            match again {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            accepted = accepted => if let Ok(stream) = accepted {
                let (hub, workspace) = (Arc::clone(hub), Arc::clone(workspace));
                // Ends with the connection.
                tokio::spawn(async move { drop(carry(&hub, &workspace, stream).await) });
            },
            changed = intents.changed() => if changed.is_err() { return },
            _ = sandboxes.changed() => {}
            () = due => {}
        }
    }
}

async fn carry(hub: &Hub, workspace: &Workspace, mut near: TcpStream) -> io::Result<()> {
    let mut far = UnixStream::connect(door(hub)).await?;
    let mut line = serde_json::to_vec(&FromInside { workspace: workspace.id.clone() })?;
    line.push(b'\n');
    far.write_all(&line).await?;
    far.read_u8().await?;
    near.set_nodelay(true)?;
    copy_bidirectional(&mut near, &mut far).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_addresses_of_one_base_are_served_inside() {
        let of = |origins: &[&str]| {
            let origins: Vec<String> = origins.iter().map(|origin| (*origin).to_owned()).collect();
            addresses(origins.iter()).map(|(names, port)| (names.into_iter().collect::<Vec<_>>().join(" "), port))
        };
        let two = ["http://web--w--o.dev.localhost:7080", "http://api--w--o.dev.localhost:7080"];
        assert_eq!(of(&two), Some(("api--w--o.dev.localhost web--w--o.dev.localhost".into(), 7080)));
        assert_eq!(of(&["http://web--w--o.dev.test"]), Some(("web--w--o.dev.test".into(), 80)));
        assert_eq!(of(&["https://web--w--o.dev.example"]), None);
        assert_eq!(of(&[]), None);
    }
}
