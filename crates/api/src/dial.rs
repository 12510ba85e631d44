//! Dialling on one machine: a connection into a workspace's network, handed over as an open socket.
//!
//! The one who wants it connects to a unix socket, says in one line what it wants, and gets one line back: a connected
//! TCP socket beside it, or the reason why there is none. From then on nobody stands between the two ends, so that
//! whoever made the connection may be restarted without anyone noticing.

use crate::{
    generation::Generation,
    ids::{RuntimeInstanceId, WorkspaceId},
    secret::Secret,
    sigv4::Presigned,
    tunnel::NotOpened,
};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::Path,
    time::Duration,
};
use tokio::{
    io::{AsyncWriteExt, Interest},
    net::{UnixListener, UnixStream},
    time::timeout,
};

/// What a gateway asks a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// Which.
    pub workspace: WorkspaceId,
    /// The port.
    pub port: u16,
    /// A capability to dial.
    pub token: Secret,
    /// Wait until something is ready there, as it is told of sooner on its host than by way of the control plane.
    #[serde(default)]
    pub wait: Option<Wait>,
    /// The storage server in the place of a port, for a request that was signed with a key of the workspace.
    #[serde(default)]
    pub presigned: Option<Presigned>,
}

impl Ask {
    /// To a port, at once.
    #[must_use]
    pub const fn port(workspace: WorkspaceId, port: u16, token: Secret) -> Self {
        Self { workspace, port, token, wait: None, presigned: None }
    }

    /// How long its answer may take beyond the usual.
    #[must_use]
    pub fn within(&self) -> Duration {
        match (self.wait, &self.presigned) {
            (Some(wait), _) => Duration::from_millis(wait.ms.into()),
            // The server may just be started.
            (None, Some(_)) => Duration::from_secs(5),
            (None, None) => Duration::ZERO,
        }
    }
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// The wake: whatever was before it is of no interest.
    pub generation: Generation,
    /// At most so long, in milliseconds.
    pub ms: u32,
}

/// What a host asks a runtime's supervisor, which lives in the workspace's network.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AskInside {
    /// The port.
    pub port: u16,
}

/// What a host says of a connection from inside a workspace that it hands to a gateway; the gateway answers with a line
/// feed, and what follows is the visitor's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FromInside {
    /// Whose it is.
    pub workspace: WorkspaceId,
}

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    /// Absent: the socket comes with it.
    #[serde(default)]
    not_opened: Option<NotOpened>,
    /// The run of the runtime that it leads to, where the other side knows.
    #[serde(default)]
    instance: Option<RuntimeInstanceId>,
}

/// A connection, and the run of the runtime that it leads to where that was told.
#[derive(Debug)]
pub struct Dialled {
    /// Connected.
    pub socket: std::net::TcpStream,
    /// Whose.
    pub instance: Option<RuntimeInstanceId>,
}

/// Longest line, in octets.
const LINE: usize = 8 << 10;
/// How long the other side may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Listens at `path`, for the caller's user alone. Bound under another name and renamed: whoever finds the socket finds it
/// listening, and closed to others.
///
/// # Errors
/// When the machine refuses.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let fresh = path.with_extension("new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
    fs::rename(&fresh, path)?;
    Ok(listener)
}

/// Asks at the socket `path`; an answer may take `within` beyond the usual.
///
/// # Errors
/// The reason of the other side, or [`NotOpened::Away`] when it does not answer.
pub async fn dial<A: Serialize + Sync>(path: &Path, ask: &A, within: Duration) -> Result<Dialled, NotOpened> {
    let exchange = async {
        let mut stream = UnixStream::connect(path).await?;
        let mut line = serde_json::to_vec(ask)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        receive(&stream).await
    };
    match timeout(PATIENCE + within, exchange).await {
        Ok(Ok((answer, socket))) => match (answer.not_opened, socket) {
            (Some(why), _) => Err(why),
            (None, Some(socket)) => Ok(Dialled { socket: socket.into(), instance: answer.instance }),
            (None, None) => Err(NotOpened::Away),
        },
        Ok(Err(_)) | Err(_) => Err(NotOpened::Away),
    }
}

async fn receive(stream: &UnixStream) -> io::Result<(Answer, Option<OwnedFd>)> {
    let mut octets = [0; 512];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let read = stream
        .async_io(Interest::READABLE, || {
            let mut into = [IoSliceMut::new(&mut octets)];
            let message = rustix::net::recvmsg(stream, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
            Ok(message.bytes)
        })
        .await?;
    let mut socket = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut sockets) = message {
            socket = sockets.next();
        }
    }
    Ok((serde_json::from_slice(&octets[..read])?, socket))
}

/// Reads what is asked on a connection.
///
/// # Errors
/// When it is no line of that form, or does not come in time.
pub async fn asked<A: DeserializeOwned>(stream: &UnixStream) -> io::Result<A> {
    let mut line = Vec::new();
    let read = async {
        while line.last() != Some(&b'\n') {
            if line.len() >= LINE {
                return Err(io::ErrorKind::InvalidData.into());
            }
            stream.readable().await?;
            match stream.try_read_buf(&mut line) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(serde_json::from_slice(&line)?)
    };
    timeout(PATIENCE, read).await.map_err(|_| io::ErrorKind::TimedOut)?
}

/// Answers: the socket goes along, and the caller's own copy is closed.
///
/// # Errors
/// When the other side is gone.
pub async fn answer(stream: &UnixStream, outcome: Result<Dialled, NotOpened>) -> io::Result<()> {
    let (socket, told) = match outcome {
        Ok(Dialled { socket, instance }) => (Some(socket), Answer { not_opened: None, instance }),
        Err(why) => (None, Answer { not_opened: Some(why), instance: None }),
    };
    let mut line = serde_json::to_vec(&told)?;
    line.push(b'\n');
    let sockets: Vec<BorrowedFd<'_>> = socket.iter().map(AsFd::as_fd).collect();
    stream
        .async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !sockets.is_empty() {
                ancillary.push(SendAncillaryMessage::ScmRights(&sockets));
            }
            // A short line on an empty socket goes as a whole.
            Ok(rustix::net::sendmsg(stream, &[IoSlice::new(&line)], &mut ancillary, SendFlags::NOSIGNAL)?)
        })
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[tokio::test]
    async fn a_socket_or_a_reason_is_handed_over() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("dial.sock");
        std::os::unix::fs::symlink("/nowhere", path.with_extension("new")).expect("what a killed one left");
        let listener = listen(&path).expect("a socket");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        let service = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = service.local_addr().expect("an address").port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let ask: AskInside = asked(&stream).await.expect("asked");
                let outcome = std::net::TcpStream::connect(("127.0.0.1", ask.port));
                let outcome = outcome.map(|socket| Dialled { socket, instance: None });
                answer(&stream, outcome.map_err(|_| NotOpened::NotListening)).await.expect("told");
            }
        });
        let none = Duration::ZERO;
        let mut near = dial(&path, &AskInside { port }, none).await.expect("a connection").socket;
        let (mut far, _) = service.accept().expect("accepted");
        drop(service);
        near.write_all(b"hello").expect("written");
        drop(near);
        let mut heard = String::new();
        far.read_to_string(&mut heard).expect("heard");
        assert_eq!(heard, "hello");
        assert_eq!(dial(&path, &AskInside { port }, none).await.err(), Some(NotOpened::NotListening));
        assert_eq!(dial(&dir.path().join("none"), &AskInside { port }, none).await.err(), Some(NotOpened::Away));
    }
}
