//! Redis: cache and queue of a workspace, one server, append-only file.
//!
//! A server knows one policy for all it holds. One that is a queue, too, evicts nothing by itself; [`evict`] does in the
//! cache's databases alone.

mod evict;

use super::{
    Context, Driver, Quiet, Watch, find_program,
    rest::{self, Look},
};
use crate::system::{files, sandbox::DATA};
use envforge_api::{receipt::Holds, resource::ResourceKind, states::Trouble};
use futures_util::future::LocalBoxFuture;
use nix::{sys::signal::Signal, unistd::Pid};
use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
};

/// How long a server may take to write down what it holds before it is signalled as well.
const OBEYS: Duration = Duration::from_secs(5);

/// A cache alone takes at most this part of the runtime's memory.
const CACHE_SHARE: u64 = 4;

/// The driver.
#[derive(Debug)]
pub struct Redis;

/// Says `SHUTDOWN` and waits for the connection's end, which is the only answer of a server that obeys.
async fn shut_down() -> io::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", ResourceKind::Cache.port())).await?;
    stream.write_all(b"SHUTDOWN\r\n").await?;
    let mut answer = [0_u8; 1];
    match stream.read(&mut answer).await {
        Ok(0) => Ok(()),
        Ok(_) => Err(io::Error::other("not now")),
        // Its end may reset the connection.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error),
    }
}

/// Has the server do this, each of which it is to answer with OK.
async fn tell(commands: &[&str]) -> io::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", ResourceKind::Cache.port())).await?;
    stream.write_all(format!("{}\r\nQUIT\r\n", commands.join("\r\n")).as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    match answer.lines().find(|line| *line != "+OK") {
        None if answer.lines().count() == commands.len() + 1 => Ok(()),
        refused => Err(io::Error::other(refused.unwrap_or("it broke off").to_owned())),
    }
}

/// The databases of a kind, by number.
fn numbers(context: &Context, kind: ResourceKind) -> Vec<u16> {
    let number = |share: &super::Share| share.fields.get("url")?.expose().rsplit('/').next()?.parse().ok();
    context.shares.iter().filter(|share| share.kind == kind).filter_map(number).collect()
}

fn has_queue(context: &Context) -> bool {
    context.shares.iter().any(|share| share.kind == ResourceKind::Queue)
}

/// Octets that were answered and are not in the log of commands yet.
///
/// # Errors
/// When the server does not answer.
pub async fn unwritten(stream: &mut TcpStream) -> io::Result<u64> {
    let text = info(stream, "persistence").await?;
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    field("aof_buffer_length:").ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Keys in all databases.
async fn keys() -> io::Result<u64> {
    let mut stream = TcpStream::connect(("127.0.0.1", ResourceKind::Cache.port())).await?;
    let text = info(&mut stream, "keyspace").await?;
    // `db0:keys=3,expires=0,avg_ttl=0`
    let of_one = |line: &str| line.split_once(":keys=")?.1.split(',').next()?.parse::<u64>().ok();
    Ok(text.lines().filter_map(of_one).sum())
}

/// A section of what the server says of itself.
async fn info(stream: &mut TcpStream, section: &str) -> io::Result<String> {
    stream.write_all(format!("INFO {section}\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    let mut chunk = [0_u8; 4096];
    // `$<octets>\r\n` and so many octets.
    loop {
        let text = String::from_utf8_lossy(&answer).into_owned();
        if let Some((head, body)) = text.split_once("\r\n") {
            let length: usize = head.trim_start_matches('$').parse().map_err(|_| io::ErrorKind::InvalidData)?;
            if body.len() >= length + 2 {
                return Ok(body.to_owned());
            }
        }
        // One that has a thousand databases tells a line of each.
        if answer.len() > 256 << 10 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        match stream.read(&mut chunk).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => answer.extend_from_slice(&chunk[..read]),
        }
    }
}

impl Driver for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn program(&self, _home: &Path) -> Result<PathBuf, Trouble> {
        find_program("redis-server", &[]).ok_or_else(|| {
            Trouble::new("this host has no redis-server", "apt-get install redis-server, then wake again")
        })
    }

    fn ensure<'a>(&'a self, context: &'a Context) -> LocalBoxFuture<'a, Result<(), Trouble>> {
        Box::pin(async {
            super::is_free(ResourceKind::Cache.port())?;
            let dir = context.sandbox.dir.join("data").join("redis");
            files::ensure_dir_in_theirs(&dir, 0o700, &context.sandbox.accounts.resource)
                .map_err(|e| Trouble::new(e.to_string(), e.hint))
        })
    }

    fn arguments(&self, context: &Context) -> Vec<String> {
        let dir = format!("{DATA}/redis");
        let port = ResourceKind::Cache.port().to_string();
        // What a queue took is written before it is acknowledged: with `everysec` a write may wait for a slow disk in
        // memory alone. A cache may forget; nothing in a server that is a queue, too, is ever evicted.
        let has_queue = has_queue(context);
        let (fsync, policy) = if has_queue { ("always", "noeviction") } else { ("everysec", "allkeys-lru") };
        let memory = if has_queue { 0 } else { context.size.memory_bytes() / CACHE_SHARE };
        let memory = memory.to_string();
        let settings = [
            ("--bind", "127.0.0.1 -::1"),
            ("--port", port.as_str()),
            ("--dir", dir.as_str()),
            // Two for the workspace, and those that services have for themselves.
            ("--databases", "1024"),
            ("--daemonize", "no"),
            ("--appendonly", "yes"),
            ("--appendfsync", fsync),
            ("--save", ""),
            ("--maxmemory", memory.as_str()),
            ("--maxmemory-policy", policy),
            // Reached from this workspace's network only; there is no password to print by accident.
            ("--protected-mode", "no"),
            ("--logfile", ""),
        ];
        settings.into_iter().flat_map(|(name, value)| [name.to_owned(), value.to_owned()]).collect()
    }

    fn answers<'a>(&'a self, _context: &'a Context) -> LocalBoxFuture<'a, bool> {
        Box::pin(async {
            let ask = async {
                let mut stream = TcpStream::connect(("127.0.0.1", ResourceKind::Cache.port())).await.ok()?;
                stream.write_all(b"PING\r\n").await.ok()?;
                let mut answer = [0_u8; 5];
                stream.read_exact(&mut answer).await.ok()?;
                // While it loads its file it answers `-LOADING`.
                (&answer == b"+PONG").then_some(())
            };
            ask.await.is_some()
        })
    }

    fn prepare<'a>(&'a self, context: &'a Context) -> LocalBoxFuture<'a, Result<(), Trouble>> {
        Box::pin(async {
            if !has_queue(context) {
                return Ok(());
            }
            // It may have been a cache alone when it was started.
            let settings = ["CONFIG SET maxmemory-policy noeviction maxmemory 0", "CONFIG SET appendfsync always"];
            tell(&settings).await.map_err(|error| {
                Trouble::new(format!("cannot make the cache a queue, too: {error}"), "sleep, then wake again")
            })
        })
    }

    fn wipe<'a>(&'a self, context: &'a Context, kind: ResourceKind) -> LocalBoxFuture<'a, Result<(), Trouble>> {
        Box::pin(async move {
            for number in numbers(context, kind) {
                tell(&[&format!("SELECT {number}"), "FLUSHDB SYNC"]).await.map_err(|error| {
                    let hint = "`envforge logs WS redis` may say why; it is tried again at the next wake";
                    Trouble::new(format!("cannot empty the {kind}: {error}"), hint)
                })?;
            }
            Ok(())
        })
    }

    fn stop<'a>(&'a self, _context: &'a Context, pid: Pid) -> LocalBoxFuture<'a, ()> {
        Box::pin(async move {
            // A signal is looked at ten times a second only; the command is obeyed at once. A server that answers it
            // does not obey yet, and one that cannot be asked is told the other way.
            if tokio::time::timeout(OBEYS, shut_down()).await.is_ok_and(|done| done.is_ok()) {
                return;
            }
            super::signal(pid, Signal::SIGTERM);
        })
    }

    fn count<'a>(&'a self, _context: &'a Context, quiet: Quiet<'a>) -> LocalBoxFuture<'a, Option<Holds>> {
        Box::pin(async move {
            let until = quiet.await;
            let keys = tokio::time::timeout_at(until.into(), keys()).await.ok()?.ok()?;
            Some(Holds::Keys { keys: Some(keys), octets: None, digest: None })
        })
    }

    fn at_rest(&self, context: &Context, until: Instant) -> Look {
        rest::look(&context.sandbox.dir.join("data").join("redis"), |_| false, until)
    }

    fn tend(&self, contexts: watch::Receiver<Context>) -> LocalBoxFuture<'_, ()> {
        Box::pin(evict::tend(contexts))
    }

    fn watch(&self, _context: &Context) -> Option<Box<dyn Watch>> {
        None
    }
}
