//! Load for benchmarks: a server whose WebSockets say back what they hear, and clients of it.
//!
//! ```text
//! sockets serve PORT                                    the server
//! sockets echo ADDRESS HOST COOKIE SOCKETS SECONDS      a message of 1 KiB to and fro on each; prints JSON
//! sockets idle ADDRESS HOST COOKIE SOCKETS              opens them, says `open`, keeps them until its input ends
//! ```
#![allow(clippy::print_stdout, reason = "its output is what it is for")]

use std::{
    io::{self, Read},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

const MESSAGE: usize = 1024;

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<usize>().map_err(io::Error::other);
    match words[..] {
        ["serve", port] => serve(u16::try_from(number(port)?).map_err(io::Error::other)?).await,
        ["echo", address, host, cookie, sockets, seconds] => {
            let seconds = Duration::from_secs(number(seconds)? as u64);
            echo(open_all(address, host, cookie, number(sockets)?).await?, seconds).await
        }
        ["idle", address, host, cookie, sockets] => {
            let _open = open_all(address, host, cookie, number(sockets)?).await?;
            println!("open");
            tokio::task::spawn_blocking(|| io::stdin().read_to_end(&mut Vec::new()))
                .await
                .map_err(io::Error::other)??;
            Ok(())
        }
        _ => Err(io::Error::other("serve, echo or idle")),
    }
}

async fn head(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

async fn serve(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            stream.set_nodelay(true)?;
            let agreed = match head(&mut stream).await?.to_ascii_lowercase().contains("upgrade: websocket") {
                // The answer to the one key that clients of this program send: the example of RFC 6455.
                true => {
                    "101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                     sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
                }
                false => "200 OK\r\ncontent-length: 0\r\n\r\n",
            };
            stream.write_all(format!("HTTP/1.1 {agreed}").as_bytes()).await?;
            // An idle socket costs no buffer here either.
            let mut heard = Vec::new();
            loop {
                stream.readable().await?;
                heard.reserve(64 << 10);
                match stream.try_read_buf(&mut heard) {
                    Ok(0) => return Ok::<_, io::Error>(()),
                    Ok(_) => stream.write_all(&heard).await?,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
                heard = Vec::new();
            }
        });
    }
}

async fn open_all(address: &str, host: &str, cookie: &str, sockets: usize) -> io::Result<Vec<TcpStream>> {
    let request = format!(
        "GET /ws HTTP/1.1\r\nhost: {host}\r\norigin: http://{host}\r\ncookie: {cookie}\r\nconnection: Upgrade\r\n\
         upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    let mut open = Vec::with_capacity(sockets);
    for _ in 0..sockets {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        stream.write_all(request.as_bytes()).await?;
        let answer = head(&mut stream).await?;
        if !answer.starts_with("HTTP/1.1 101") {
            return Err(io::Error::other(format!("no socket: {answer}")));
        }
        open.push(stream);
    }
    Ok(open)
}

async fn echo(sockets: Vec<TcpStream>, seconds: Duration) -> io::Result<()> {
    let mut all = JoinSet::new();
    let end = Instant::now() + seconds;
    for mut socket in sockets {
        all.spawn(async move {
            // A binary frame of 1016 octets, masked with zeros: 1024 octets as a whole.
            let mut message = vec![0_u8; MESSAGE];
            message[..8].copy_from_slice(&[0x82, 0xfe, 0x03, 0xf8, 0, 0, 0, 0]);
            let mut took = Vec::new();
            while Instant::now() < end {
                let begun = Instant::now();
                socket.write_all(&message).await?;
                socket.read_exact(&mut message).await?;
                took.push(begun.elapsed());
            }
            Ok::<_, io::Error>(took)
        });
    }
    let mut took = Vec::new();
    while let Some(one) = all.join_next().await {
        took.extend(one.map_err(io::Error::other)??);
    }
    took.sort_unstable();
    let at = |share: usize| took.get(took.len() * share / 100).map_or(0, Duration::as_micros);
    let each = took.len() as f64 / seconds.as_secs_f64();
    println!("{{\"per_second\": {each:.0}, \"p50_us\": {}, \"p99_us\": {}}}", at(50), at(99));
    Ok(())
}
