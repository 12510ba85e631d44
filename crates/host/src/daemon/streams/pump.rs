//! Moves octets between a process and its stream, never faster than the slower of the two.

use super::channel::{Cut, Out};
use std::{future::Future, io, time::Duration};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_util::sync::CancellationToken;

/// Octets moved at once.
const CHUNK: usize = 32 << 10;
/// Output that comes later than this after the end of a command is of something it left in the background.
const LINGER: Duration = Duration::from_millis(200);

/// Reads what a command still wrote: nothing more once it ended and no output came for a moment.
async fn read(reading: impl Future<Output = io::Result<usize>>, ended: &CancellationToken) -> usize {
    let quiet = async {
        ended.cancelled().await;
        tokio::time::sleep(LINGER).await;
    };
    tokio::select! {
        biased;
        // A broken pipe or terminal has no more to give.
        read = reading => read.unwrap_or(0),
        () = quiet => 0,
    }
}

/// Sends a pipe's octets on `channel` until it is closed.
pub(super) async fn pipe(
    mut from: impl AsyncRead + Unpin,
    channel: u8,
    out: &Out,
    ended: &CancellationToken,
) -> Result<(), Cut> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match read(from.read(&mut buffer), ended).await {
            0 => return Ok(()),
            n => out.data(channel, &buffer[..n]).await?,
        }
    }
}

/// Sends what is shown on a terminal until the last program on it is gone.
pub(super) async fn terminal(
    from: &crate::system::pty::Pty,
    channel: u8,
    out: &Out,
    ended: &CancellationToken,
) -> Result<(), Cut> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match read(from.read(&mut buffer), ended).await {
            0 => return Ok(()),
            n => out.data(channel, &buffer[..n]).await?,
        }
    }
}
