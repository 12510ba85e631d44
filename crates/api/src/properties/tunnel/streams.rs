//! Anything that may happen to streams of a sound tunnel: each carries its own octets in order, a stalled one holds a
//! bounded number of them, and none holds back another.

use super::{
    super::input::Input,
    SOON,
    services::{INNER, KINDS, Kind, Services, octets, open, pattern},
};
use crate::tunnel::{NotOpened, Pipe, Tunnel, serve};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex, split},
    time::{sleep, timeout},
};

/// What does not happen by then does not happen for now.
const A_WHILE: Duration = Duration::from_millis(100);
/// So many things happen.
const MOST: usize = 100;
/// Octets written at once.
const AT_ONCE: usize = 64 << 10;
/// What a stream holds at most that nobody reads, in both directions together: a window each, what is written at once
/// and what is on its way to a service and through it.
const HELD: usize = 2 * (512 << 10) + 2 * AT_ONCE + 8 * INNER;

struct Stream {
    n: u16,
    kind: Kind,
    pipe: Pipe,
    written: usize,
    read: usize,
    /// Whether this side has ended it.
    shut: bool,
}

/// Lets what the input says happen.
pub(super) async fn happen(input: &mut Input<'_>) {
    let (near, far) = duplex(input.of(&[1 << 10, 4 << 10, 64 << 10]));
    let services = Services::default();
    let behind = services.clone();
    let serving = tokio::spawn(serve(TokioIo::new(far), move |what| behind.clone().connect(what)));
    let (tunnel, driver) = Tunnel::begin(TokioIo::new(near)).await.expect("a tunnel");
    let driving = tokio::spawn(driver);
    let mut streams: Vec<Stream> = Vec::new();
    let (mut n, mut large) = (0, 0);
    for _ in 0..MOST {
        if input.is_empty() {
            break;
        }
        let at = input.below(streams.len().max(1));
        match (input.below(8), streams.get_mut(at)) {
            (0 | 1, _) | (_, None) => {
                n += 1;
                streams.extend(opened(&tunnel, input.below(8), n).await);
            }
            (2, Some(stream)) => stream.write(1 + input.below(AT_ONCE)).await,
            (3, Some(stream)) => stream.read(1 + input.below(AT_ONCE)).await,
            (4, Some(stream)) if large < 3 => {
                large += 1;
                stream.fill().await;
            }
            (5, Some(stream)) => stream.shut().await,
            (6, _) => drop(streams.swap_remove(at)),
            (_, _) => sleep(Duration::from_secs(input.below(40).try_into().expect("few"))).await,
        }
    }
    assert!(!tunnel.is_closed(), "a sound tunnel stays");
    another(&tunnel).await;
    for stream in streams {
        stream.ends().await;
    }
    drop(tunnel);
    timeout(SOON, driving).await.expect("the gateway's end ends").expect("no panic");
    drop(timeout(SOON, serving).await.expect("the host's end ends").expect("no panic"));
    drop(services);
}

async fn opened(tunnel: &Tunnel, kind: usize, n: u16) -> Option<Stream> {
    let opening = timeout(A_WHILE, tunnel.open(&open(kind, n))).await;
    let kind = KINDS[kind];
    match (kind, opening) {
        (Kind::Refuses, Ok(Err(why))) => {
            assert_eq!(why, NotOpened::NotListening);
            None
        }
        (Kind::Undecided, Err(_)) => None,
        (Kind::Refuses | Kind::Undecided, other) => panic!("{kind:?}: {other:?}"),
        (_, opening) => {
            let (pipe, _) = opening.expect("at once").expect("a stream");
            Some(Stream { n, kind, pipe, written: 0, read: 0, shut: false })
        }
    }
}

/// However the others are, one more stream carries everything at once.
async fn another(tunnel: &Tunnel) {
    let (mut pipe, _) = tunnel.open(&open(0, 1000)).await.expect("another stream");
    let sent = octets(1000, 0, 30_000);
    let mut heard = Vec::new();
    let (mut read, mut write) = split(&mut pipe);
    let sends = async {
        write.write_all(&sent).await?;
        write.shutdown().await
    };
    timeout(A_WHILE, async { tokio::try_join!(sends, read.read_to_end(&mut heard)) })
        .await
        .expect("it is held back")
        .expect("it goes on");
    assert!(heard == sent, "it is harmed");
}

impl Stream {
    /// Whether nothing may break it but this side.
    fn is_sound(&self) -> bool {
        self.kind == Kind::Echo
    }

    /// Whether something was taken.
    async fn writes(&mut self, length: usize) -> bool {
        if self.shut {
            return false;
        }
        let sent = octets(self.n, self.written, length);
        match timeout(A_WHILE, self.pipe.write(&sent)).await {
            Ok(Ok(taken)) => {
                self.written += taken;
                taken > 0
            }
            Ok(Err(error)) => {
                assert!(!self.is_sound(), "a sound stream broke: {error}");
                false
            }
            Err(_) => false,
        }
    }

    async fn write(&mut self, length: usize) {
        self.writes(length).await;
        self.is_bounded();
    }

    /// Until nothing more is taken.
    async fn fill(&mut self) {
        while self.writes(AT_ONCE).await {
            self.is_bounded();
        }
    }

    fn is_bounded(&self) {
        if matches!(self.kind, Kind::Echo | Kind::Stuck | Kind::Source) {
            let back = if self.kind == Kind::Echo { self.read } else { 0 };
            assert!(self.written - back <= HELD, "{} octets are held", self.written - back);
        }
    }

    async fn read(&mut self, length: usize) {
        let mut buffer = vec![0; length];
        if let Ok(Ok(read)) = timeout(A_WHILE, self.pipe.read(&mut buffer)).await {
            self.hears(&buffer[..read]);
            assert!(read > 0 || self.shut || !self.is_sound(), "a sound stream ended");
        }
    }

    fn hears(&mut self, octets: &[u8]) {
        let sound = octets.iter().enumerate().all(|(at, octet)| *octet == pattern(self.n, self.read + at));
        assert!(sound, "{:?}: what came after {} octets is harmed", self.kind, self.read);
        self.read += octets.len();
        let most = if self.kind == Kind::Source { usize::MAX } else { self.written };
        assert!(self.read <= most, "more came back than was sent");
    }

    async fn shut(&mut self) {
        self.shut = true;
        // One that is held back ends once it is read.
        drop(timeout(A_WHILE, self.pipe.shutdown()).await);
    }

    /// A sound one still carries something, gives back everything, and ends.
    async fn ends(mut self) {
        if !self.is_sound() {
            return;
        }
        let rest = async {
            while self.read < self.written {
                let mut buffer = vec![0; AT_ONCE];
                let read = self.pipe.read(&mut buffer).await.expect("a sound stream goes on");
                assert!(read > 0, "it ended {} octets early", self.written - self.read);
                self.hears(&buffer[..read]);
            }
            if !self.shut {
                let more = octets(self.n, self.written, 1000);
                self.pipe.write_all(&more).await.expect("a sound stream goes on");
                self.written += more.len();
                let mut buffer = vec![0; more.len()];
                self.pipe.read_exact(&mut buffer).await.expect("a sound stream goes on");
                self.hears(&buffer);
                self.pipe.shutdown().await.expect("a sound stream ends");
            }
            let read = self.pipe.read(&mut [0]).await.expect("a sound stream ends");
            assert_eq!(read, 0, "more came back than was sent");
        };
        timeout(SOON, rest).await.expect("a sound stream goes on");
    }
}
