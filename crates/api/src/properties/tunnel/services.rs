//! What is behind the host's end, by port: services that behave, and services that do not.

use crate::{
    dial::Ask,
    ids::WorkspaceId,
    secret::Secret,
    tunnel::{Connected, NotOpened, Open},
};
use std::{
    io,
    sync::{Arc, Mutex},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

/// Octets on the way to or from a service.
pub(super) const INNER: usize = 16 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Sends back what it gets.
    Echo,
    /// Does not listen.
    Refuses,
    /// Never says whether it does.
    Undecided,
    /// Ends at once.
    Gone,
    /// Sends without end, and does not read.
    Source,
    /// Never reads and never sends.
    Stuck,
    /// Sends back the first few octets and breaks off.
    Breaks,
}

pub(super) const KINDS: [Kind; 8] =
    [Kind::Echo, Kind::Echo, Kind::Refuses, Kind::Undecided, Kind::Gone, Kind::Source, Kind::Stuck, Kind::Breaks];

/// The octet at `at` of what stream `n` carries.
pub(super) fn pattern(n: u16, at: usize) -> u8 {
    (at ^ (at >> 8) ^ (at >> 16)).wrapping_mul(31).wrapping_add(usize::from(n).wrapping_mul(97)).to_le_bytes()[0]
}

/// `length` of them.
pub(super) fn octets(n: u16, from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(|at| pattern(n, at)).collect()
}

/// The request for stream `n` to a service of the kind `KINDS[kind]`.
pub(super) fn open(kind: usize, n: u16) -> Open {
    let workspace: WorkspaceId = "ws_00000000000000000000000000".parse().expect("an id");
    let kind = u16::try_from(kind).expect("few");
    Open::Dial(Ask::port(workspace, n * 8 + kind, Secret::new("capability".into())))
}

/// The services of a host.
#[derive(Debug, Clone, Default)]
pub(super) struct Services {
    /// The far ends of those that do nothing.
    stuck: Arc<Mutex<Vec<DuplexStream>>>,
}

impl Services {
    pub(super) async fn connect(self, what: Open) -> Result<Connected<DuplexStream>, NotOpened> {
        let Open::Dial(Ask { port, .. }) = what else { return Err(NotOpened::Refused) };
        let (near, far) = duplex(INNER);
        match KINDS[usize::from(port % 8)] {
            Kind::Echo => drop(tokio::spawn(echo(far, usize::MAX))),
            Kind::Breaks => drop(tokio::spawn(echo(far, 3000))),
            Kind::Refuses => return Err(NotOpened::NotListening),
            Kind::Undecided => std::future::pending().await,
            Kind::Gone => drop(far),
            Kind::Source => drop(tokio::spawn(source(far, port / 8))),
            Kind::Stuck => self.stuck.lock().expect("sound").push(far),
        }
        Ok((near, None))
    }
}

/// Ends with its connection.
async fn echo(mut far: DuplexStream, most: usize) -> io::Result<()> {
    let (mut done, mut buffer) = (0, [0; 4096]);
    while done < most {
        let read = far.read(&mut buffer).await?;
        if read == 0 {
            return far.shutdown().await;
        }
        far.write_all(&buffer[..read]).await?;
        done += read;
    }
    Ok(())
}

/// Ends with its connection.
async fn source(mut far: DuplexStream, n: u16) -> io::Result<()> {
    let mut at = 0;
    loop {
        far.write_all(&octets(n, at, 4096)).await?;
        at += 4096;
    }
}
