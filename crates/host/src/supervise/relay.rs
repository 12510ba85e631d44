//! A resource whose server is not the workspace's own: this supervisor, which lives in the workspace's network, listens
//! in its place and carries every connection to the one that the server's keeper hands out.

use super::{
    events::Event,
    resource::{prepare, wait_until_it_answers},
    runtime::Shared,
};
use crate::resources::{
    Context, Driver,
    storage::{Place, keeper},
};
use envforge_api::{resource::ResourceKind, states::Trouble};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    rc::Rc,
    time::Duration,
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// Serves until the server is lost.
///
/// # Errors
/// When it cannot be had or prepared.
pub(super) async fn run(
    driver: &dyn Driver,
    place: &Place,
    run: u64,
    mut contexts: watch::Receiver<Context>,
    shared: &Rc<Shared>,
) -> Result<(), Trouble> {
    let name = driver.name();
    let context = contexts.borrow_and_update().clone();
    driver.ensure(&context).await?;
    // Ends with this, and what is carried with it.
    let mut listening = JoinSet::new();
    listen(place, &mut listening).await?;
    let mut need = keeper::Need::ready(place).await?;
    let mut serves = false;
    let ready = async {
        prepare(driver, shared, &context).await?;
        wait_until_it_answers(driver, &context).await?;
        serves = true;
        shared.tell(Event::ServerReady { server: name, run });
        while contexts.changed().await.is_ok() {
            let context = contexts.borrow_and_update().clone();
            shared.tell(match prepare(driver, shared, &context).await {
                Ok(()) => Event::ServerReady { server: name, run },
                Err(trouble) => Event::ServerUnprepared { server: name, run, trouble },
            });
        }
        std::future::pending::<Result<(), Trouble>>().await
    };
    let lost = tokio::select! {
        failed = ready => return failed,
        () = need.lost() => Trouble::new("the storage server ended", "it is started again by itself"),
    };
    if serves {
        shared.tell(Event::ServerEnded { server: name, run });
        return Ok(());
    }
    Err(lost)
}

async fn listen(place: &Place, into: &mut JoinSet<()>) -> Result<(), Trouble> {
    let port = ResourceKind::Storage.port();
    let mut served = false;
    for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        match TcpListener::bind((address, port)).await {
            Ok(listener) => {
                served = true;
                into.spawn_local(accept(listener, place.clone()));
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

async fn accept(listener: TcpListener, place: Place) {
    let mut carried = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((near, _)) => {
                    let place = place.clone();
                    // What is refused is closed, as if nobody listened.
                    carried.spawn_local(async move { drop(carry(near, &place).await) });
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
