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

use crate::system::{SystemError, files};
use envforge_api::stream::LogLevel;
use protocol::RuntimeSpec;
use runtime::{Goes, Runtime};
use std::{
    fs,
    io::{self, Read, Write},
    path::Path,
    process::ExitCode,
};
use tokio::{sync::mpsc, task::LocalSet};

/// What the daemon says on standard input once the description is written.
pub const BEGIN: &[u8; 1] = b"\n";

/// `envforge supervise <spec-file>`: runs until the runtime is asleep. Its caller gives it a runtime of one thread, and
/// says [`BEGIN`] on its standard input when it may read its description; without a word it ends.
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
    let mut word = [0];
    // Nothing else has anything to do before that.
    if io::stdin().read_exact(&mut word).is_err() {
        return Ok(());
    }
    let bytes = fs::read(path).map_err(|e| SystemError::new("read the runtime's description", e))?;
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
    if let Some(reason) = runtime.closed() {
        return runtime.finish(&reason);
    }
    runtime.take_over().await?;
    dial::listen(&runtime)?;
    link::listen(&runtime, events.clone())?;
    runtime.begin();
    // Services wait for servers, and those take longest: they are started before anything else takes the processor.
    runtime.start_servers();
    tokio::task::yield_now().await;
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

fn lost_namespaces() -> SystemError {
    SystemError::new("supervise the workspace", io::Error::other("its namespaces were ended by someone"))
}

const LOCK_ATTEMPTS: u32 = 100;
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_millis(10);

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
