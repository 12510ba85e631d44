//! Bodies as they go through: streamed, never gathered.

use http_body_util::Full;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use std::{
    error::Error,
    fmt,
    pin::Pin,
    task::{Context, Poll},
};
use tokio_util::sync::WaitForCancellationFutureOwned;

/// The body of an answer.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The gateway's own.
    Own(Full<Bytes>),
    /// A service's, whose end is known beforehand.
    Through(Incoming),
    /// A service's that may never end: it does when the visitor may not visit any more.
    Endless(Incoming, Pin<Box<WaitForCancellationFutureOwned>>),
}

impl Answer {
    pub(crate) fn own(bytes: impl Into<Bytes>) -> Self {
        Self::Own(Full::new(bytes.into()))
    }
}

/// The visitor may not visit any more: what was not sent stays unsaid, and the visitor sees that it is missing.
#[derive(Debug)]
struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the visit has ended")
    }
}

impl Error for Cut {}

impl Body for Answer {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Own(full) => Pin::new(full).poll_frame(cx).map_err(|never| match never {}),
            Self::Through(incoming) => Pin::new(incoming).poll_frame(cx).map_err(Into::into),
            Self::Endless(incoming, cut) => {
                if cut.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Some(Err(Cut.into())));
                }
                Pin::new(incoming).poll_frame(cx).map_err(Into::into)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(full) => full.is_end_stream(),
            Self::Through(incoming) | Self::Endless(incoming, _) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(full) => full.size_hint(),
            Self::Through(incoming) | Self::Endless(incoming, _) => incoming.size_hint(),
        }
    }
}

/// The body of a request.
#[derive(Debug)]
pub(crate) enum Asked {
    Through(Incoming),
    Nothing,
}

impl Body for Asked {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Through(incoming) => Pin::new(incoming).poll_frame(cx),
            Self::Nothing => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Through(incoming) => incoming.is_end_stream(),
            Self::Nothing => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Through(incoming) => incoming.size_hint(),
            Self::Nothing => SizeHint::with_exact(0),
        }
    }
}
