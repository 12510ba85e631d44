//! A resource whose server is not the workspace's own: this supervisor, which lives in the workspace's network, listens
//! in its place and carries every connection to the one that the server's keeper hands out.

use super::{events::Event, runtime::Shared};
use crate::resources::storage::{Place, keeper};
use envforge_api::{resource::ResourceKind, states::Trouble};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};

/// Connections of one workspace that are carried at once; further ones wait to be accepted. The server and its keeper are
/// everyone's, and each connection takes two of the supervisor's descriptors, of which a process has 1024 by default.
const MOST: usize = 256;

/// Serves until the server is lost; `prepared` is begun once there is one, and does not end by itself.
///
/// # Errors
/// When it cannot be had, or what `prepared` says.
pub(super) async fn run(
    server: &'static str,
    place: &Place,
    run: u64,
    prepared: impl Future<Output = Result<(), Trouble>>,
    shared: &Shared,
) -> Result<(), Trouble> {
    // Ends with this, and what is carried with it.
    let mut listening = JoinSet::new();
    listen(place, &mut listening).await?;
    let mut need = keeper::Need::ready(place).await?;
    tokio::select! {
        failed = prepared => failed,
        () = need.lost() => {
            shared.tell(Event::ServerEnded { server, run });
            Ok(())
        }
    }
}

async fn listen(place: &Place, into: &mut JoinSet<()>) -> Result<(), Trouble> {
    let port = ResourceKind::Storage.port();
    let free = Arc::new(Semaphore::new(MOST));
    let mut served = false;
    for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        match TcpListener::bind((address, port)).await {
            Ok(listener) => {
                served = true;
                into.spawn_local(accept(listener, place.clone(), Arc::clone(&free)));
            }
            // A network without IPv6.
            Err(_) if served => {}
            Err(error) => {
                let reason = format!("nothing can listen on port {port} of the workspace: {error}");
                return Err(Trouble::new(reason, "it is tried again by itself"));
            }
        }
    }
    Ok(())
}

async fn accept(listener: TcpListener, place: Place, free: Arc<Semaphore>) {
    let mut carried = JoinSet::new();
    loop {
        // One that waits for a place is not accepted yet. Cut short, both are given back.
        let next = async {
            let taken = Arc::clone(&free).acquire_owned().await.map_err(io::Error::other)?;
            listener.accept().await.map(|(near, _)| (near, taken))
        };
        tokio::select! {
            accepted = next => match accepted {
                Ok((near, taken)) => {
                    let place = place.clone();
                    // What is refused is closed, as if nobody listened.
                    carried.spawn_local(async move {
                        drop(carry(near, &place).await);
                        drop(taken);
                    });
                }
                // Out of descriptors: those in use end some time.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
            Some(_) = carried.join_next() => {}
        }
    }
}

async fn carry(mut near: TcpStream, place: &Place) -> io::Result<()> {
    let far = keeper::dial(place).await.map_err(|why| io::Error::other(why.to_string()))?;
    let mut far = TcpStream::from_std(far)?;
    near.set_nodelay(true)?;
    copy_bidirectional(&mut near, &mut far).await.map(drop)
}
