//! Any octets from the other side: an end notices when they make no sense, when they stop and when nobody is there.

use super::{
    super::input::Input,
    SOON,
    frames::{PREFACE, SETTINGS, frame, script},
    services::{Services, open},
};
use crate::tunnel::{Tunnel, serve};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, copy, duplex, sink, split},
    task::JoinHandle,
    time::timeout,
};

/// What a peer says and how it goes on.
struct Peer {
    says: Vec<u8>,
    /// Reads what it is told.
    listens: bool,
    /// Hangs up afterwards, or else says nothing more.
    ends: bool,
}

impl Peer {
    fn new(input: &mut Input<'_>, begin: &[u8]) -> Self {
        let (polite, listens, ends) = (input.flag(), input.flag(), input.flag());
        let begin = if polite { begin } else { &[] };
        Self { says: [begin, &script(input)].concat(), listens, ends }
    }

    /// Goes on until it is stopped, or has said everything and hung up.
    fn goes_on(self, stream: DuplexStream) -> JoinHandle<()> {
        tokio::spawn(async move {
            let (mut read, mut write) = split(stream);
            let says = async {
                // The other side may well have ended by then.
                drop(write.write_all(&self.says).await);
                if !self.ends {
                    std::future::pending::<()>().await;
                }
            };
            let listens = async {
                if self.listens {
                    drop(copy(&mut read, &mut sink()).await);
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = says => {}
                () = listens => {}
            }
        })
    }
}

fn wire(input: &mut Input<'_>) -> (DuplexStream, DuplexStream) {
    duplex(input.of(&[256, 4 << 10, 64 << 10]))
}

/// A host ends whatever a gateway says, and all streams with it.
pub(super) async fn to_host(input: &mut Input<'_>) {
    let (near, far) = wire(input);
    let services = Services::default();
    let behind = services.clone();
    let peer = Peer::new(input, &[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).goes_on(near);
    let serving = serve(TokioIo::new(far), move |what| behind.clone().connect(what));
    // How it ends does not matter.
    drop(timeout(SOON, serving).await.expect("the host does not notice the end"));
    peer.abort();
    drop(services);
}

/// A gateway's end ends whatever a host says; a stream is opened or not, and ends.
pub(super) async fn to_gateway(input: &mut Input<'_>) {
    let (near, far) = wire(input);
    let peer = Peer::new(input, &frame(SETTINGS, 0, 0, &[])).goes_on(far);
    let begun = timeout(SOON, Tunnel::begin(TokioIo::new(near))).await.expect("it never begins");
    if let Ok((tunnel, driver)) = begun {
        let streams = [0, 1].map(|n| {
            let tunnel = tunnel.clone();
            tokio::spawn(async move {
                if let Ok((mut pipe, _)) = tunnel.open(&open(0, n)).await {
                    drop(pipe.write_all(&[7; 100]).await);
                    let mut all = Vec::new();
                    drop(pipe.read_to_end(&mut all).await);
                }
            })
        });
        timeout(SOON, driver).await.expect("the gateway does not notice the end");
        for stream in streams {
            timeout(SOON, stream).await.expect("a stream does not end").expect("no panic");
        }
        assert!(tunnel.is_closed());
    }
    peer.abort();
}
