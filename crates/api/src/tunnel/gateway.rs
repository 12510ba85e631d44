//! The gateway's end: opens streams.

use super::{
    Broken, CONNECTION_WINDOW, Connected, HEADERS, INSTANCE_HEADER, MAX_STREAMS, NotOpened, OPEN_HEADER, Open,
    PATIENCE, Pipe, SEND_BUFFER, STREAM_WINDOW, WHY_HEADER,
    alive::{Ears, Heard},
};
use h2::client::SendRequest;
use hyper::{Method, Request, StatusCode, body::Bytes, header::HeaderValue};
use tokio::{sync::watch, time::timeout};

/// The gateway's end of a tunnel. Clones share it.
#[derive(Debug, Clone)]
pub struct Tunnel {
    sender: SendRequest<Bytes>,
    /// Its other half lives as long as the driver.
    driven: watch::Receiver<()>,
}

impl Tunnel {
    /// Begins on a connection that was upgraded. The returned future drives it and ends with it; a tunnel whose driver
    /// is dropped is closed.
    ///
    /// # Errors
    /// When the host does not speak the protocol, or says nothing.
    pub async fn begin<I>(connection: I) -> Result<(Self, impl Future<Output = ()>), Broken>
    where
        I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let ears = Ears::default();
        let handshake = h2::client::Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_max_send_streams(MAX_STREAMS as usize)
            .max_send_buffer_size(SEND_BUFFER)
            .max_header_list_size(HEADERS)
            .handshake(Heard::new(connection, &ears));
        let (sender, mut connection) = timeout(PATIENCE, handshake).await.map_err(|_| Broken::Silent)??;
        let (drives, driven) = watch::channel(());
        let pings = connection.ping_pong();
        let driver = async move {
            let _drives = drives;
            let gone = async {
                match pings {
                    Some(pings) => ears.gone(pings).await,
                    None => std::future::pending().await,
                }
            };
            // Its failure is the tunnel's end, which the host mends by dialling again.
            tokio::select! {
                ended = connection => drop(ended),
                () = gone => {}
            }
        };
        Ok((Self { sender, driven }, driver))
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.driven.has_changed().is_err()
    }

    /// Ends when it has ended.
    pub async fn closed(&self) {
        // Nothing is ever sent: it fails once the driver is gone.
        drop(self.driven.clone().changed().await);
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// The host's reason, or [`NotOpened::Away`].
    pub async fn open(&self, what: &Open) -> Result<Connected<Pipe>, NotOpened> {
        let what = serde_json::to_vec(what).ok().and_then(|json| HeaderValue::from_bytes(&json).ok());
        let mut what = what.ok_or(NotOpened::Unknown)?;
        what.set_sensitive(true);
        let request = Request::builder().method(Method::CONNECT).uri("host:1").header(OPEN_HEADER, what);
        let request = request.body(()).map_err(|_| NotOpened::Unknown)?;
        let mut sender = self.sender.clone().ready().await.map_err(|_| NotOpened::Away)?;
        let (answer, send) = sender.send_request(request, false).map_err(|_| NotOpened::Away)?;
        let answer = answer.await.map_err(|_| NotOpened::Away)?;
        let told = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        if answer.status() != StatusCode::OK {
            return Err(told(WHY_HEADER).and_then(|why| why.parse().ok()).unwrap_or(NotOpened::Unknown));
        }
        let instance = told(INSTANCE_HEADER).and_then(|instance| instance.parse().ok());
        Ok((Pipe::new(send, answer.into_body()), instance))
    }
}
