//! One octet of channel before each message.

use envforge_api::{
    client::{Client, WebSocket},
    problem::Problem,
    stream::{Control, channel},
};
use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;

/// What a host sends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// A control message.
    Control(Control),
    /// Standard output, or the terminal.
    Stdout(Vec<u8>),
    /// Standard error.
    Stderr(Vec<u8>),
}

/// An open stream.
#[derive(Debug)]
pub(crate) struct Stream {
    socket: WebSocket,
}

fn lost() -> Problem {
    Problem::unavailable("the connection to the host was lost", "try again; what runs there goes on")
}

fn message(channel: u8, payload: &[u8]) -> Message {
    let mut bytes = Vec::with_capacity(payload.len() + 1);
    bytes.push(channel);
    bytes.extend_from_slice(payload);
    Message::binary(bytes)
}

/// Reads one message; `None` for channels this version does not know.
fn read(bytes: &[u8]) -> Result<Option<Frame>, Problem> {
    match bytes.split_first() {
        Some((&channel::CONTROL, payload)) => serde_json::from_slice(payload)
            .map(|control| Some(Frame::Control(control)))
            .map_err(|error| Problem::internal(format!("a message of the host could not be read: {error}"))),
        Some((&channel::STDOUT, payload)) => Ok(Some(Frame::Stdout(payload.to_vec()))),
        Some((&channel::STDERR, payload)) => Ok(Some(Frame::Stderr(payload.to_vec()))),
        Some(_) | None => Ok(None),
    }
}

impl Stream {
    /// Opens a stream and says what it is for; a run's output needs no first message.
    ///
    /// # Errors
    /// As [`Client::websocket`].
    pub(crate) async fn open(client: &Client, path: &str, first: Option<&Control>) -> Result<Self, Problem> {
        let mut stream = Self { socket: client.websocket(path).await? };
        if let Some(first) = first {
            stream.control(first).await?;
        }
        Ok(stream)
    }

    /// Sends a control message.
    ///
    /// # Errors
    /// [`envforge_api::problem::ProblemKind::Unavailable`] when the connection is lost.
    pub(crate) async fn control(&mut self, control: &Control) -> Result<(), Problem> {
        let bytes = serde_json::to_vec(control).map_err(|error| Problem::internal(error.to_string()))?;
        self.socket.send(message(channel::CONTROL, &bytes)).await.map_err(|_| lost())
    }

    /// Sends standard input; no octets close it.
    ///
    /// # Errors
    /// As [`Stream::control`].
    pub(crate) async fn input(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        self.socket.send(message(channel::STDIN, bytes)).await.map_err(|_| lost())
    }

    /// The next message of the host. Safe to give up and call again.
    ///
    /// # Errors
    /// [`envforge_api::problem::ProblemKind::Unavailable`] when the connection ended without a last message.
    pub(crate) async fn next(&mut self) -> Result<Frame, Problem> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Binary(bytes))) => {
                    if let Some(frame) = read(&bytes)? {
                        return Ok(frame);
                    }
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(lost()),
                // Pings are answered by the library; the protocol has no texts.
                Some(Ok(_)) => {}
            }
        }
    }

    /// Closes the connection in good order.
    pub(crate) async fn close(mut self) {
        // The other side may be gone already, which is what was wanted.
        let _ = self.socket.close(None).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use envforge_api::{client::Endpoint, problem::ProblemKind, stream::LogQuery};
    use tokio::net::UnixListener;

    /// Serves one WebSocket: answers each message of the client with the given messages, then closes.
    async fn serve(listener: UnixListener, answers: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        let (stream, _) = listener.accept().await.expect("a connection");
        let mut socket = tokio_tungstenite::accept_async(stream).await.expect("a WebSocket");
        let mut heard = Vec::new();
        for answer in answers {
            let message = socket.next().await.expect("a message").expect("readable");
            heard.push(message.into_data().to_vec());
            socket.send(Message::binary(answer)).await.expect("sent");
        }
        socket.close(None).await.expect("closed");
        heard
    }

    #[tokio::test]
    async fn each_message_begins_with_its_channel_and_a_stream_without_a_last_message_was_lost() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).expect("bound");
        let exit = [&[channel::CONTROL][..], br#"{"type":"exit","code":3}"#].concat();
        let server = tokio::spawn(serve(listener, vec![b"\x02out".to_vec(), b"\x03err".to_vec(), exit]));
        let client = Client::new(Endpoint::Unix(path), None);
        let first = Control::Logs(LogQuery::default());
        let mut stream = Stream::open(&client, "/x", Some(&first)).await.expect("open");
        assert_eq!(stream.next().await.expect("frame"), Frame::Stdout(b"out".to_vec()));
        stream.input(b"hi").await.expect("sent");
        assert_eq!(stream.next().await.expect("frame"), Frame::Stderr(b"err".to_vec()));
        stream.input(b"").await.expect("sent");
        assert_eq!(stream.next().await.expect("frame"), Frame::Control(Control::Exit { code: 3 }));
        assert_eq!(stream.next().await.expect_err("lost").kind, ProblemKind::Unavailable);
        let heard = server.await.expect("served");
        assert_eq!(heard[0][0], channel::CONTROL);
        assert_eq!(serde_json::from_slice::<Control>(&heard[0][1..]).expect("control"), first);
        assert_eq!(heard[1], b"\x01hi");
        assert_eq!(heard[2], b"\x01");
    }

    #[test]
    fn a_channel_of_a_later_version_is_passed_over() {
        assert_eq!(read(b"\x09x").expect("passed over"), None);
        assert_eq!(read(b"").expect("passed over"), None);
        assert_eq!(read(b"\x00{").expect_err("no JSON").kind, ProblemKind::Internal);
    }
}
