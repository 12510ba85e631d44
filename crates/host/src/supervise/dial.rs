//! Connections into the workspace for the daemon. The supervisor lives in the workspace's network, so that dialling
//! needs no process and no change of namespaces; the socket is handed over, and nothing of it stays here.

use super::runtime::Runtime;
use crate::system::SystemError;
use envforge_api::{
    dial::{self, AskInside, Dialled},
    tunnel::NotOpened,
};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};
use tokio::{net::TcpStream, time::timeout};

/// A service whose backlog is full may take so long.
const PATIENCE: Duration = Duration::from_secs(3);

/// Listens for the daemon; ends with the supervisor.
pub(super) fn listen(runtime: &Runtime) -> Result<(), SystemError> {
    let listener = dial::listen(&runtime.shared.sandbox.dial_socket())
        .map_err(|e| SystemError::new("listen for connections to the workspace", e))?;
    tokio::task::spawn_local(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    // Ends with the answer; a daemon that is gone wants none.
                    tokio::task::spawn_local(async move {
                        if let Ok(ask) = dial::asked::<AskInside>(&stream).await {
                            drop(dial::answer(&stream, connect(ask.port).await).await);
                        }
                    });
                }
                // Out of descriptors: those in use end some time.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    });
    Ok(())
}

/// A development server may listen on one of the two loopback addresses only.
async fn connect(port: u16) -> Result<Dialled, NotOpened> {
    let either = async {
        let four = TcpStream::connect((IpAddr::V4(Ipv4Addr::LOCALHOST), port)).await;
        match four {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                TcpStream::connect((IpAddr::V6(Ipv6Addr::LOCALHOST), port)).await
            }
            outcome => outcome,
        }
    };
    let stream = timeout(PATIENCE, either).await.map_err(|_| NotOpened::NotListening)?;
    let stream = stream.map_err(|_| NotOpened::NotListening)?;
    stream.set_nodelay(true).map_err(|_| NotOpened::NotListening)?;
    let socket = stream.into_std().map_err(|_| NotOpened::NotListening)?;
    Ok(Dialled { socket, instance: None })
}
