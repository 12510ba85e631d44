//! Eviction in a cache that shares its server with a queue.
//!
//! Redis evicts by one policy for all databases, and none of its policies can tell them apart: `allkeys-*` would throw away
//! work of the queue, `volatile-*` whatever of it has an end (locks, results, jobs that are kept for a while), and without
//! any a full cache would have writes of the queue refused. So such a server has neither a policy nor a bound of its own,
//! and this one looks how much it holds: when that is more than its share, the least recently used of a few keys, picked
//! at random, is removed from the cache's databases, again and again, as Redis does it. No database of a queue is touched.
//!
//! What is promised: no write of a queue is lost or refused for the sake of the cache. What is not: the share is a mark and
//! no wall. Between two looks more can be written, and a queue that is larger than the share leaves no room for a cache.

use super::{super::Context, CACHE_SHARE, has_queue, numbers};
use envforge_api::resource::ResourceKind;
use std::{io, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    sync::watch,
    time::timeout,
};

/// Between two looks while there is much room.
const SELDOM: Duration = Duration::from_secs(1);
/// The same when more than half of the share is used.
const OFTEN: Duration = Duration::from_millis(100);
/// How long an answer may take: a server that stands still for a copy gives none meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);

/// Removes from the databases ARGV[2…] until not more than ARGV[1] octets are used, at most for a few milliseconds; says
/// how much is used, and whether there is more to remove.
const SCRIPT: &str = "local function used() return tonumber(string.match(redis.call('INFO', 'memory'), 'used_memory:(%d+)')) end \
    local now, removed, empty = used(), 0, 0 \
    while now > tonumber(ARGV[1]) and removed < 2000 and empty < #ARGV - 1 do \
      empty = 0 \
      for n = 2, #ARGV do \
        redis.call('SELECT', ARGV[n]) \
        local oldest, idle \
        for _ = 1, 5 do \
          local key = redis.call('RANDOMKEY') \
          if not key then break end \
          local of = redis.call('OBJECT', 'IDLETIME', key) or 0 \
          if not idle or of > idle then oldest, idle = key, of end \
        end \
        if oldest then redis.call('DEL', oldest) removed = removed + 1 else empty = empty + 1 end \
      end \
      if removed % 20 < #ARGV then now = used() end \
    end \
    return used()";

/// Looks after a server for as long as it serves.
pub(super) async fn tend(mut contexts: watch::Receiver<Context>) {
    loop {
        let (caches, share) = {
            let context = contexts.borrow_and_update();
            let caches = if has_queue(&context) { numbers(&context, ResourceKind::Cache) } else { Vec::new() };
            (caches, context.size.memory_bytes() / CACHE_SHARE)
        };
        if caches.is_empty() {
            // Its own policy does it, or there is nothing to evict.
            if contexts.changed().await.is_err() {
                return std::future::pending().await;
            }
            continue;
        }
        tokio::select! {
            changed = contexts.changed() => if changed.is_err() {
                return std::future::pending().await;
            },
            () = keep_below(ResourceKind::Cache.port(), &caches, share) => {}
        }
    }
}

/// Does not end.
async fn keep_below(port: u16, caches: &[u16], share: u64) {
    loop {
        let used = timeout(PATIENCE, evict(port, caches, share)).await;
        let pause = match used {
            Ok(Ok(used)) if used > share / 2 => OFTEN,
            // One that does not answer is about to start, to end, or busy: what it holds does not grow.
            Ok(Ok(_) | Err(_)) | Err(_) => SELDOM,
        };
        tokio::time::sleep(pause).await;
    }
}

/// Evicts until the server uses no more than its share, or its caches are empty; octets that it uses.
async fn evict(port: u16, caches: &[u16], share: u64) -> io::Result<u64> {
    let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await?);
    // Cheap, and all there is to do most of the time.
    let mut used = used(&mut stream).await?;
    while used > share {
        let mut words = vec!["EVAL".to_owned(), SCRIPT.to_owned(), "0".to_owned(), share.to_string()];
        words.extend(caches.iter().map(ToString::to_string));
        // Others are served between two rounds.
        let now = number(&mut stream, &words).await?;
        if now >= used {
            return Ok(now);
        }
        used = now;
    }
    Ok(used)
}

async fn used(stream: &mut BufReader<TcpStream>) -> io::Result<u64> {
    say(stream, &["INFO".to_owned(), "memory".to_owned()]).await?;
    let length = line(stream).await?.trim_start_matches('$').parse::<usize>().map_err(io::Error::other)?;
    let mut text = vec![0; length + 2];
    stream.read_exact(&mut text).await?;
    let text = String::from_utf8_lossy(&text);
    let found = text.lines().find_map(|line| line.strip_prefix("used_memory:")?.trim().parse().ok());
    found.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

async fn number(stream: &mut BufReader<TcpStream>, words: &[String]) -> io::Result<u64> {
    say(stream, words).await?;
    let answer = line(stream).await?;
    answer.trim_start_matches(':').parse().map_err(|_| io::Error::other(answer))
}

async fn say(stream: &mut BufReader<TcpStream>, words: &[String]) -> io::Result<()> {
    let mut text = format!("*{}\r\n", words.len());
    for word in words {
        text.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    stream.get_mut().write_all(text.as_bytes()).await
}

async fn line(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = String::new();
    match stream.read_line(&mut line).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(line.trim_end().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    struct Server {
        child: Child,
        port: u16,
        _dir: tempfile::TempDir,
    }

    impl Drop for Server {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    /// A real one, as a workspace with a queue has it.
    async fn server() -> Option<Server> {
        let program = super::super::find_program("redis-server", &[])?;
        let dir = tempfile::tempdir().expect("a directory");
        let held = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = held.local_addr().expect("bound").port();
        drop(held);
        let child = Command::new(program)
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "yes"])
            .args(["--appendfsync", "always", "--maxmemory", "0", "--maxmemory-policy", "noeviction"])
            .arg("--dir")
            .arg(dir.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("it starts");
        let server = Server { child, port, _dir: dir };
        for _ in 0..500 {
            if evict(port, &[], u64::MAX).await.is_ok() {
                return Some(server);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("it does not answer");
    }

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    /// Writes to a database until `writes` are done; each must be acknowledged.
    async fn write(port: u16, database: u16, writes: u32, command: impl Fn(u32) -> String) {
        let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await.expect("it listens"));
        say(&mut stream, &words(&format!("SELECT {database}"))).await.expect("said");
        assert_eq!(line(&mut stream).await.expect("answered"), "+OK");
        for n in 0..writes {
            say(&mut stream, &words(&command(n))).await.expect("said");
            let answer = line(&mut stream).await.expect("answered");
            assert!(answer.starts_with(['+', ':']), "{answer}");
        }
    }

    async fn ask(port: u16, database: u16, command: &str) -> u64 {
        let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await.expect("it listens"));
        say(&mut stream, &words(&format!("SELECT {database}"))).await.expect("said");
        line(&mut stream).await.expect("answered");
        number(&mut stream, &words(command)).await.expect("a number")
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_full_cache_loses_keys_while_its_queue_loses_and_is_refused_nothing_not_even_what_has_an_end() {
        const SHARE: u64 = 24 << 20;
        const WRITES: u32 = 2000;
        let Some(server) = server().await else { return };
        let port = server.port;
        let large = "x".repeat(50_000);
        let keeper = tokio::spawn(async move { keep_below(port, &[0, 2], SHARE).await });
        // Five times the share, in two caches, beside a queue of jobs, locks and results that end some time.
        tokio::join!(
            write(port, 0, WRITES, |n| format!("SET c{n} {large}")),
            write(port, 2, WRITES / 2, |n| format!("SET d{n} {large}")),
            write(port, 1, WRITES, |n| match n % 2 {
                0 => format!("RPUSH jobs job{n}"),
                _ => format!("SET lock{n} held EX 3600"),
            }),
        );
        let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await.expect("it listens"));
        for _ in 0..500 {
            if used(&mut stream).await.expect("answered") <= SHARE {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(used(&mut stream).await.expect("answered") <= SHARE);
        assert_eq!(ask(port, 1, "LLEN jobs").await, u64::from(WRITES / 2));
        assert_eq!(ask(port, 1, "DBSIZE").await, u64::from(WRITES / 2 + 1));
        let (one, two) = (ask(port, 0, "DBSIZE").await, ask(port, 2, "DBSIZE").await);
        assert!(one + two > 0 && one + two < u64::from(WRITES * 3 / 2), "some are left, and not all: {one} {two}");
        write(port, 0, 1, |_| "SET still takes".into()).await;
        keeper.abort();

        // A queue that is larger than the share leaves none of the cache, and is left alone.
        let all = ask(port, 1, "DBSIZE").await;
        evict(port, &[0, 2], 1).await.expect("evicted");
        assert_eq!((ask(port, 0, "DBSIZE").await, ask(port, 2, "DBSIZE").await), (0, 0));
        assert_eq!(ask(port, 1, "DBSIZE").await, all);
    }
}
