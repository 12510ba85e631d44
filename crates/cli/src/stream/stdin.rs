//! Standard input as messages.
//!
//! A read of a terminal cannot be given up, and the runtime would wait for it at its end; so a thread of its own reads
//! and ends with the process.

use std::io::Read;
use tokio::sync::mpsc;

/// What was read; an empty chunk is the end.
#[derive(Debug)]
pub(crate) struct Stdin {
    chunks: mpsc::Receiver<Vec<u8>>,
    ended: bool,
}

impl Stdin {
    /// Begins to read.
    pub(crate) fn start() -> Self {
        let (send, chunks) = mpsc::channel(16);
        std::thread::spawn(move || {
            let mut input = std::io::stdin().lock();
            let mut buffer = vec![0_u8; 16 * 1024];
            loop {
                let chunk = match input.read(&mut buffer) {
                    Ok(count) => buffer[..count].to_vec(),
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    // What cannot be read has ended.
                    Err(_) => Vec::new(),
                };
                let last = chunk.is_empty();
                if send.blocking_send(chunk).is_err() || last {
                    return;
                }
            }
        });
        Self { chunks, ended: false }
    }

    /// The next chunk; after the end, never.
    pub(crate) async fn next(&mut self) -> Vec<u8> {
        if self.ended {
            return std::future::pending().await;
        }
        let chunk = self.chunks.recv().await.unwrap_or_default();
        self.ended = chunk.is_empty();
        chunk
    }
}
