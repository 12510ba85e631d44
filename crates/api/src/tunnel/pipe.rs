//! One stream of a tunnel, as octets.
//!
//! What is read makes room for as much again; what is written waits for room on the other side. A reset is an error to
//! the reader, never an end: what was cut off does not look complete.
//!
//! They are HTTP/2's streams themselves, not an HTTP client's upgrades: there, data that waits for room on the other side
//! keeps a stream open after it was dropped.

use super::SEND_BUFFER;
use h2::{RecvStream, SendStream};
use hyper::body::{Buf, Bytes};
use std::{
    fmt,
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// One stream, as octets. Dropped before both sides have ended it, it is reset, after what was written.
pub struct Pipe {
    pub(super) reader: Reader,
    pub(super) writer: Writer,
}

impl fmt::Debug for Pipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pipe({})", self.reader.stream.stream_id().as_u32())
    }
}

impl Pipe {
    pub(super) fn new(send: SendStream<Bytes>, recv: RecvStream) -> Self {
        let reader = Reader { stream: recv, rest: Bytes::new() };
        Self { reader, writer: Writer { stream: send, ended: false } }
    }
}

/// What comes from the other side.
pub(super) struct Reader {
    stream: RecvStream,
    /// Arrived and not read yet.
    rest: Bytes,
}

/// What goes to the other side.
pub(super) struct Writer {
    stream: SendStream<Bytes>,
    ended: bool,
}

fn broken(error: h2::Error) -> io::Error {
    if error.is_io() {
        error.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into())
    } else {
        io::Error::new(io::ErrorKind::ConnectionReset, error)
    }
}

impl Writer {
    /// Ends once nothing can be written any more, whether or not anyone tries.
    pub(super) async fn breaks(&mut self) -> io::Error {
        match poll_fn(|cx| self.stream.poll_reset(cx)).await {
            Ok(reason) => broken(reason.into()),
            Err(error) => broken(error),
        }
    }
}

impl AsyncRead for Reader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(octets)) => self.rest = octets,
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = into.remaining().min(self.rest.len());
        into.put_slice(&self.rest[..length]);
        self.rest.advance(length);
        // It fails for more than arrived, which this is not.
        drop(self.stream.flow_control().release_capacity(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Writer {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        if octets.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if self.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.stream.reserve_capacity(octets.len().min(SEND_BUFFER));
        while self.stream.capacity() == 0 {
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            }
        }
        let length = self.stream.capacity().min(octets.len());
        let sent = self.stream.send_data(Bytes::copy_from_slice(&octets[..length]), false);
        Poll::Ready(sent.map(|()| length).map_err(broken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection sends what waits by itself.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        self.ended = true;
        Poll::Ready(self.stream.send_data(Bytes::new(), true).map_err(broken))
    }
}

impl AsyncRead for Pipe {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(cx, into)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(cx, octets)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}
