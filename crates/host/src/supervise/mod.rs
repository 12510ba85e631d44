//! The runtime supervisor: one small process per awake runtime that outlives the daemon.
//!
//! One thread, one loop: tasks of this thread wait for what happens (a process ended, a check passed, a server
//! answers, the daemon asks, time went by) and send an [`Event`](events::Event); the loop is the only one that changes the
//! [`Runtime`], and after every event it starts what can be started now. Files and sockets are in [`protocol`].

mod dial;
mod events;
pub mod health;
pub mod idle;
mod link;
pub mod logs;
pub mod meter;
mod outside;
pub mod process;
pub mod protocol;
pub mod receipt;
pub mod redact;
mod relay;
mod reset;
mod resource;
pub mod runs;
mod runtime;
mod seed;
mod server;
mod service;
pub mod setup;
mod sleep;
pub mod still;
mod told;

use crate::system::{SystemError, files};
use envforge_api::stream::LogLevel;
use protocol::RuntimeSpec;
use runtime::{Goes, Runtime};
use std::{
    fs,
    io::{self, Read, Write},
    path::Path,
    process::ExitCode,
    time::Duration,
};
use tokio::{sync::mpsc, task::LocalSet};

/// What the daemon says on standard input once the description is on disk. Before that it says the length of the
/// description (8 octets, the highest first) and the description itself; none is said of one that is on disk already.
pub const BEGIN: &[u8; 1] = b"\n";

/// How long services that need no server wait until those that there are have their processes.
const SERVERS_FIRST: Duration = Duration::from_millis(20);

/// `envforge supervise <spec-file>`: runs until the runtime is asleep. Its caller gives it a runtime of one thread, tells
/// it the description on its standard input, and says [`BEGIN`] when it may act; without a word it ends.
pub async fn main(spec: &Path) -> ExitCode {
    // A defect in one task must not leave the others waiting for it: the daemon replaces a supervisor that ends.
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |about| {
        say(about);
        std::process::abort();
    }));
    match LocalSet::new().run_until(supervise(spec)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            crate::system::enter::complain(&error);
            ExitCode::FAILURE
        }
    }
}

async fn supervise(path: &Path) -> Result<(), SystemError> {
    // Nothing else has anything to do before that.
    let Ok(told) = description(&mut io::stdin()) else { return Ok(()) };
    let begun = told == Told::Begin;
    let bytes = match told {
        Told::Description(bytes) => bytes,
        Told::OnDisk | Told::Begin => {
            fs::read(path).map_err(|e| SystemError::new("read the runtime's description", e))?
        }
    };
    let spec: RuntimeSpec = serde_json::from_slice(&bytes).map_err(|e| {
        SystemError::new("read the runtime's description", io::Error::new(io::ErrorKind::InvalidData, e))
    })?;
    let _alone = lock(&spec).await?;
    // A terminal that closes or a daemon that stops must not reach us.
    let _ = rustix::process::setsid();
    // From here on `localhost` is the workspace's: health checks and databases are reached without a detour.
    spec.sandbox.join_network()?;
    let sandbox = spec.sandbox.clone();
    let lost = sandbox.lost();
    tokio::pin!(lost);
    let (events, mut happened) = mpsc::unbounded_channel();
    let mut runtime = Runtime::new(spec, events.clone())?;
    runtime.look_ahead();
    let mut word = [0];
    if !begun && io::stdin().read_exact(&mut word).is_err() {
        return Ok(());
    }
    if let Some(reason) = runtime.closed() {
        return runtime.finish(&reason);
    }
    runtime.take_over().await?;
    dial::listen(&runtime)?;
    link::listen(&runtime, events.clone())?;
    runtime.begin();
    // Services wait for servers, and those take longest: they are started before anything else takes the processor. What
    // takes its time before that (a look at large data, a first copy) is not waited for.
    runtime.start_servers();
    let _ = tokio::time::timeout(SERVERS_FIRST, runtime.shared.launched()).await;
    loop {
        runtime.advance();
        runtime.publish();
        let event = tokio::select! {
            event = happened.recv() => event,
            // The network that this process is in leads nowhere now: a new supervisor enters the new one.
            () = &mut lost => return Err(lost_namespaces()),
        };
        let Some(event) = event else { return Ok(()) };
        if runtime.handle(event)? == Goes::ToItsEnd {
            return Ok(());
        }
        // What happened at the same moment is judged together, so that it is published once.
        while let Ok(event) = happened.try_recv() {
            if runtime.handle(event)? == Goes::ToItsEnd {
                return Ok(());
            }
        }
    }
}

/// What the daemon says first.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    /// The description, which is about to be on disk.
    Description(Vec<u8>),
    /// It is on disk already.
    OnDisk,
    /// The same, and it may begin: a daemon from before an upgrade says no more.
    Begin,
}

fn description(from: &mut impl Read) -> io::Result<Told> {
    let mut length = [0; 8];
    // No description is so long that its length would begin like this.
    from.read_exact(&mut length[..1])?;
    if length[..1] == *BEGIN {
        return Ok(Told::Begin);
    }
    from.read_exact(&mut length[1..])?;
    let length = u64::from_be_bytes(length);
    if length == 0 {
        return Ok(Told::OnDisk);
    }
    let mut bytes = Vec::new();
    from.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == length { Ok(Told::Description(bytes)) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn lost_namespaces() -> SystemError {
    SystemError::new("supervise the workspace", io::Error::other("its namespaces were ended by someone"))
}

const LOCK_ATTEMPTS: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// One supervisor for a workspace: the lock ends with the process, however it ends.
async fn lock(spec: &RuntimeSpec) -> Result<fs::File, SystemError> {
    let path = spec.sandbox.dir.join("state").join("supervisor.lock");
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|e| SystemError::new("lock the workspace", e))?;
    // A child that the one before was making when it was killed holds its lock until it becomes a program.
    for left in (0..LOCK_ATTEMPTS).rev() {
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(error) if left == 0 => {
                return Err(SystemError::new("supervise the workspace: another supervisor does", error.into()));
            }
            Err(_) => tokio::time::sleep(LOCK_PAUSE).await,
        }
    }
    note_pid(&path.with_extension("pid"))?;
    Ok(file)
}

/// Where a full disk has no room for a new file, the one of an earlier supervisor is written over: every number is of
/// the same length.
fn note_pid(path: &Path) -> Result<(), SystemError> {
    let pid = format!("{:>10}\n", std::process::id());
    let noted = files::write_whole(path, pid.as_bytes(), 0o600);
    let over = || fs::OpenOptions::new().write(true).open(path)?.write_all(pid.as_bytes());
    if noted.is_err() && over().is_ok() { Ok(()) } else { noted }
}

impl Runtime {
    /// A line in the log `system`, for people.
    fn note(&self, level: LogLevel, text: &str) {
        self.shared.logs.system(level, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_is_taken_as_a_whole_or_not_at_all() {
        let told = |octets: &[u8]| description(&mut &*octets).map_err(|error| error.kind());
        assert_eq!(told(b"\0\0\0\0\0\0\0\x02{}\n"), Ok(Told::Description(b"{}".to_vec())));
        assert_eq!(told(b"\0\0\0\0\0\0\0\0\n"), Ok(Told::OnDisk));
        assert_eq!(told(b"\n"), Ok(Told::Begin));
        for cut in [&b""[..], b"\0\0", b"\0\0\0\0\0\0\0\x02{"] {
            assert_eq!(told(cut), Err(io::ErrorKind::UnexpectedEof));
        }
    }
}
