//! The line in which a host is asked for a connection.

use super::super::input::Input;
use crate::dial::{Ask, AskInside, FromInside, asked};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;
use tokio::{io::AsyncWriteExt, net::UnixStream};

/// The rest of the input is what someone says.
pub(super) async fn lines(input: &mut Input<'_>) {
    let keeps = input.flag();
    let said = input.take(16 << 10);
    reads::<Ask>(said, keeps).await;
    reads::<AskInside>(said, keeps).await;
    reads::<FromInside>(said, keeps).await;
}

/// One line of that form is read, nothing else is, and who says nothing more is not waited for.
async fn reads<A: Serialize + DeserializeOwned + Debug>(said: &[u8], keeps: bool) {
    let (mut near, far) = UnixStream::pair().expect("a pair");
    let speaks = async {
        // The other side may hear enough before the end.
        drop(near.write_all(said).await);
        if !keeps {
            drop(near.shutdown().await);
        }
    };
    let ((), heard) = tokio::join!(speaks, asked::<A>(&far));
    let whole = said.strip_suffix(b"\n").filter(|line| line.len() < 8 << 10 && !line.contains(&b'\n'));
    let expected = whole.and_then(|line| serde_json::from_slice::<A>(line).ok());
    if let Some(expected) = &expected {
        let heard = heard.as_ref().expect("a line of that form");
        assert_eq!(serde_json::to_string(heard).ok(), serde_json::to_string(expected).ok());
    }
    assert!(heard.is_err() || said.contains(&b'\n'), "half a line was read");
}
