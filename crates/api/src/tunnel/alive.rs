//! Notices that the other side is gone. Whatever is heard shows that it is not: a ping may wait long behind the data of
//! a slow line, so that a missing answer alone says nothing.

use super::{PATIENCE, QUIET};
use h2::{Ping, PingPong};
use hyper_util::rt::TokioIo;
use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{sleep, timeout},
};

/// Whether anything was heard since it was last asked.
#[derive(Clone, Default)]
pub(super) struct Ears(Arc<AtomicBool>);

impl Ears {
    fn heard(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }

    /// Ends once the other side is gone.
    pub(super) async fn gone(self, mut pings: PingPong) {
        loop {
            sleep(QUIET).await;
            if self.heard() {
                continue;
            }
            // It fails while an earlier one is under way, which asks the same.
            drop(pings.send_ping(Ping::opaque()));
            let answered = timeout(PATIENCE, poll_fn(|cx| pings.poll_pong(cx))).await.is_ok();
            if !answered && !self.heard() {
                return;
            }
        }
    }
}

/// A connection that is listened to.
pub(super) struct Heard<I> {
    inner: TokioIo<I>,
    ears: Ears,
}

impl<I> Heard<I> {
    pub(super) fn new(connection: I, ears: &Ears) -> Self {
        Self { inner: TokioIo::new(connection), ears: ears.clone() }
    }
}

impl<I: hyper::rt::Read + Unpin> AsyncRead for Heard<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, into))?;
        if into.filled().len() > before {
            self.ears.0.store(true, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: hyper::rt::Write + Unpin> AsyncWrite for Heard<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, octets)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
