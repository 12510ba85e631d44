//! Redis: cache and queue of a workspace, one server, append-only file.

use super::{Context, Driver, Watch, find_program};
use crate::system::{files, sandbox::DATA};
use envforge_api::{resource::ResourceKind, states::Trouble};
use futures_util::future::LocalBoxFuture;
use nix::{sys::signal::Signal, unistd::Pid};
use std::{io, path::PathBuf, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// How long a server may take to write down what it holds before it is signalled as well.
const OBEYS: Duration = Duration::from_secs(5);

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

/// Empties one of the numbered databases.
async fn flush(number: u16) -> io::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", ResourceKind::Cache.port())).await?;
    stream.write_all(format!("SELECT {number}\r\nFLUSHDB SYNC\r\nQUIT\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    if answer.lines().eq(["+OK", "+OK", "+OK"]) { Ok(()) } else { Err(io::Error::other(answer.trim().to_owned())) }
}

impl Driver for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn program(&self) -> Result<PathBuf, Trouble> {
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

    fn arguments(&self, _context: &Context) -> Vec<String> {
        let dir = format!("{DATA}/redis");
        let port = ResourceKind::Cache.port().to_string();
        let settings = [
            ("--bind", "127.0.0.1 -::1"),
            ("--port", port.as_str()),
            ("--dir", dir.as_str()),
            // Two for the workspace, and those that services have for themselves.
            ("--databases", "1024"),
            ("--daemonize", "no"),
            ("--appendonly", "yes"),
            ("--appendfsync", "everysec"),
            ("--save", ""),
            ("--maxmemory-policy", "noeviction"),
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

    fn prepare<'a>(&'a self, _context: &'a Context) -> LocalBoxFuture<'a, Result<(), Trouble>> {
        Box::pin(async { Ok(()) })
    }

    fn wipe<'a>(&'a self, context: &'a Context, kind: ResourceKind) -> LocalBoxFuture<'a, Result<(), Trouble>> {
        Box::pin(async move {
            for share in context.shares.iter().filter(|share| share.kind == kind) {
                let number = share.fields.get("url").and_then(|url| url.expose().rsplit('/').next()?.parse().ok());
                let Some(number) = number else { continue };
                flush(number).await.map_err(|error| {
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

    fn watch(&self, _context: &Context) -> Option<Box<dyn Watch>> {
        None
    }
}
