//! Listeners of this daemon in the network of a workspace, on both of its loopback addresses.

use crate::system::{SystemError, sandbox::parked::Listeners};
use std::io;
use tokio::net::{TcpListener, TcpStream};

#[derive(Debug)]
pub(super) struct Listening {
    four: TcpListener,
    six: Option<TcpListener>,
}

impl Listening {
    /// Takes what `bind` makes; it may enter other networks, on threads of its own.
    pub(super) async fn on(
        bind: impl FnOnce() -> Result<Listeners, SystemError> + Send + 'static,
    ) -> Result<Self, SystemError> {
        let doing = |e| SystemError::new("listen in a workspace's network", e);
        let Listeners { four, six } =
            tokio::task::spawn_blocking(bind).await.map_err(|e| doing(io::Error::other(e)))??;
        Ok(Self {
            four: TcpListener::from_std(four).map_err(doing)?,
            six: six.map(TcpListener::from_std).transpose().map_err(doing)?,
        })
    }

    pub(super) async fn accept(&self) -> io::Result<TcpStream> {
        let six = async {
            match &self.six {
                Some(six) => six.accept().await,
                None => std::future::pending().await,
            }
        };
        let (stream, _) = tokio::select! {
            accepted = self.four.accept() => accepted?,
            accepted = six => accepted?,
        };
        Ok(stream)
    }

    /// Listens no longer; the connections that had come already.
    pub(super) fn close(self) -> Vec<TcpStream> {
        let listeners = [Some(self.four), self.six].into_iter().flatten().filter_map(|l| l.into_std().ok());
        let waiting = |listener: std::net::TcpListener| {
            std::iter::from_fn(move || listener.accept().ok()).filter_map(|(stream, _)| {
                stream.set_nonblocking(true).ok()?;
                TcpStream::from_std(stream).ok()
            })
        };
        listeners.flat_map(waiting).collect()
    }
}
