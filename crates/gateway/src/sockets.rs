//! WebSockets once they are open: octets both ways until one side, the visit or the gateway ends.
//!
//! An idle socket costs no buffer: octets are read into one that the whole core shares, and only what the other side
//! does not take at once is kept.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Read at once, in octets.
const CHUNK: usize = 32 << 10;

thread_local! {
    static SCRATCH: RefCell<Box<[u8; CHUNK]>> = RefCell::new(Box::new([0; CHUNK]));
}

/// What is told of octets that came.
pub(crate) trait Watch: Send {
    fn saw(&mut self, octets: &[u8]);
}

/// One direction.
struct Way<W> {
    /// Taken from one side, not yet by the other.
    left: Vec<u8>,
    from: usize,
    state: Open,
    watch: W,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    Yes,
    /// Nothing more comes; what is left goes, then the end does.
    Ending,
    Ended,
}

impl<W: Watch> Way<W> {
    fn new(begun: Vec<u8>, mut watch: W) -> Self {
        watch.saw(&begun);
        Self { left: begun, from: 0, state: Open::Yes, watch }
    }

    fn poll<R, T>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut T) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        T: AsyncWrite + Unpin,
    {
        loop {
            while self.from < self.left.len() {
                let wrote = ready!(Pin::new(&mut *writer).poll_write(cx, &self.left[self.from..]))?;
                if wrote == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.from += wrote;
            }
            if self.from > 0 {
                self.from = 0;
                // Kept only while something waits: most sockets are idle most of the time.
                self.left = Vec::new();
                ready!(Pin::new(&mut *writer).poll_flush(cx))?;
            }
            match self.state {
                Open::Ended => return Poll::Ready(Ok(())),
                Open::Ending => {
                    ready!(Pin::new(&mut *writer).poll_shutdown(cx))?;
                    self.state = Open::Ended;
                    return Poll::Ready(Ok(()));
                }
                Open::Yes => {}
            }
            let moved = SCRATCH.with_borrow_mut(|scratch| {
                let mut into = ReadBuf::new(&mut scratch[..]);
                match Pin::new(&mut *reader).poll_read(cx, &mut into) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Ready(Ok(())) => {}
                }
                let octets = into.filled();
                if octets.is_empty() {
                    self.state = Open::Ending;
                    return Poll::Ready(Ok(()));
                }
                self.watch.saw(octets);
                match Pin::new(&mut *writer).poll_write(cx, octets) {
                    Poll::Ready(Ok(wrote)) if wrote == octets.len() => {}
                    Poll::Ready(Ok(wrote)) => self.left = octets[wrote..].to_vec(),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => self.left = octets.to_vec(),
                }
                Poll::Ready(Ok(()))
            });
            ready!(moved)?;
        }
    }
}

/// Carries octets both ways until both directions have ended or one is broken. `begun` is what each side had sent
/// already.
pub(crate) async fn relay<A, B>(
    mut near: A,
    mut far: B,
    begun: [Vec<u8>; 2],
    watches: (impl Watch, impl Watch),
) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let [of_near, of_far] = begun;
    let mut there = Way::new(of_near, watches.0);
    let mut back = Way::new(of_far, watches.1);
    std::future::poll_fn(|cx| {
        let one = there.poll(cx, &mut near, &mut far)?;
        let other = back.poll(cx, &mut far, &mut near)?;
        if one.is_ready() && other.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// Tells messages from keep-alives among what a visitor sends: control frames are none, nor is a short message that
/// says the same as one shortly before.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    header: Vec<u8>,
    /// Octets of the payload still to come.
    payload: u64,
    mask: [u8; 4],
    /// The payload so far, unmasked, of a short message; `None` where it is long or no data.
    short: Option<Vec<u8>>,
    /// Digests of the last short messages.
    known: [u64; 4],
    messages: u64,
}

/// Longer ones are no keep-alives.
const SHORT: u64 = 125;

impl Frames {
    /// Messages that count, in what came now.
    pub(crate) fn read(&mut self, mut octets: &[u8]) -> u64 {
        self.messages = 0;
        while !octets.is_empty() {
            if self.payload > 0 {
                let here = usize::try_from(self.payload).unwrap_or(usize::MAX).min(octets.len());
                if let Some(short) = &mut self.short {
                    for octet in &octets[..here] {
                        short.push(octet ^ self.mask[short.len() % 4]);
                    }
                }
                self.payload -= here as u64;
                octets = &octets[here..];
                if self.payload == 0 {
                    self.message_ended();
                }
                continue;
            }
            self.header.push(octets[0]);
            octets = &octets[1..];
            self.header_grew();
        }
        self.messages
    }

    fn header_grew(&mut self) {
        let header = &self.header;
        let Some(second) = header.get(1) else { return };
        let (masked, short) = (second & 0x80 != 0, second & 0x7f);
        let extended = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let whole = 2 + extended + if masked { 4 } else { 0 };
        if header.len() < whole {
            return;
        }
        let of_length = &header[2..2 + extended];
        self.payload = match extended {
            0 => u64::from(short),
            _ => of_length.iter().fold(0, |all, octet| (all << 8) | u64::from(*octet)),
        };
        self.mask = if masked { [0, 1, 2, 3].map(|at| header[2 + extended + at]) } else { [0; 4] };
        let is_data = header[0] & 0x08 == 0;
        self.short = (is_data && self.payload <= SHORT).then(Vec::new);
        if is_data && self.payload > SHORT {
            self.messages += 1;
        }
        self.header.clear();
        if self.payload == 0 {
            self.short = None;
        }
    }

    fn message_ended(&mut self) {
        let Some(short) = self.short.take() else { return };
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        short.hash(&mut hasher);
        let digest = hasher.finish();
        // The one that was said last comes first, the one that was not said for longest goes.
        match self.known.iter().position(|known| *known == digest) {
            Some(at) => self.known[..=at].rotate_right(1),
            None => {
                self.known.rotate_right(1);
                self.known[0] = digest;
                self.messages += 1;
            }
        }
    }
}

/// Counts through a closure.
pub(crate) struct Saw<F>(pub(crate) F);

impl<F: FnMut(&[u8]) + Send> Watch for Saw<F> {
    fn saw(&mut self, octets: &[u8]) {
        if !octets.is_empty() {
            (self.0)(octets);
        }
    }
}

/// One side of a socket.
pub(crate) trait Side: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Side for T {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    fn frame(opcode: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
        let mut frame = vec![0x80 | opcode];
        match payload.len() {
            short @ 0..=125 => frame.push(0x80 | u8::try_from(short).expect("short")),
            long => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&u16::try_from(long).expect("not that long").to_be_bytes());
            }
        }
        frame.extend_from_slice(&mask);
        frame.extend(payload.iter().enumerate().map(|(at, octet)| octet ^ mask[at % 4]));
        frame
    }

    #[test]
    fn keep_alives_are_no_messages_however_they_are_cut_and_masked() {
        let mut all = Vec::new();
        let mut expected = 0;
        for round in 0..10_u8 {
            let mask = [round, 7, 99, round.wrapping_mul(31)];
            all.extend(frame(0x9, b"control", mask));
            all.extend(frame(0x1, b"{\"type\":\"ping\"}", mask));
            all.extend(frame(0x1, b"", mask));
            all.extend(frame(0x1, format!("word {round}").as_bytes(), mask));
            all.extend(frame(0x2, &[round; 400], mask));
            expected += 2;
        }
        // The first ping is news.
        expected += 1;
        for size in [1, 2, 3, 7, 64, all.len()] {
            let mut frames = Frames::default();
            let counted: u64 = all.chunks(size).map(|part| frames.read(part)).sum();
            assert_eq!(counted, expected, "in pieces of {size}");
        }
    }

    #[tokio::test]
    async fn octets_and_ends_go_both_ways_past_a_slow_reader() {
        let (mut visitor, near) = duplex(1 << 10);
        let (mut service, far) = duplex(1 << 10);
        let seen = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = Arc::clone(&seen);
        let watch = Saw(move |octets: &[u8]| {
            count.fetch_add(octets.len(), std::sync::atomic::Ordering::SeqCst);
        });
        let relaying = tokio::spawn(relay(near, far, [b"begun ".to_vec(), Vec::new()], (watch, Saw(|_: &[u8]| {}))));
        let sent = vec![7_u8; 100_000];
        let (to_send, expected) = (sent.clone(), sent.len() + 6);
        let sending = tokio::spawn(async move {
            visitor.write_all(&to_send).await.expect("sent");
            visitor.shutdown().await.expect("ended");
            let mut answer = String::new();
            visitor.read_to_string(&mut answer).await.expect("answered");
            answer
        });
        let mut heard = Vec::new();
        service.read_to_end(&mut heard).await.expect("heard");
        assert_eq!((heard.len(), &heard[..6]), (expected, &b"begun "[..]));
        service.write_all(b"answer after the end").await.expect("sent");
        drop(service);
        assert_eq!(sending.await.expect("sent"), "answer after the end");
        relaying.await.expect("relayed").expect("sound");
        assert_eq!(seen.load(std::sync::atomic::Ordering::SeqCst), expected);
    }
}
