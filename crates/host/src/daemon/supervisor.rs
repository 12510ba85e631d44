//! The daemon's end of the line to one supervisor.

use crate::{
    supervise::{
        self,
        protocol::{Answer, Ask, KNOWS_RESET, KNOWS_STILLNESS, KNOWS_TRAFFIC, Message, Request, Snapshot, VERSION},
    },
    system::{SystemError, enter, sandbox::Sandbox},
};
use envforge_api::{ids::RuntimeInstanceId, states::Trouble};
use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::Stdio,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixStream, unix::OwnedWriteHalf},
    sync::{mpsc, oneshot},
    time::timeout,
};

/// A connected supervisor. Asking is possible from anywhere; snapshots go to the one who connected.
#[derive(Debug)]
pub struct Supervisor {
    /// The instance it runs.
    pub instance: RuntimeInstanceId,
    version: u32,
    write: tokio::sync::Mutex<OwnedWriteHalf>,
    waiting: Mutex<BTreeMap<u64, oneshot::Sender<Answer>>>,
    next: AtomicU64,
}

/// How long a supervisor may take to answer: its loop never blocks.
const PATIENCE: Duration = Duration::from_secs(10);

/// A supervisor that has not begun: it makes itself ready while its description is made and written. Dropped, it ends.
#[derive(Debug)]
pub struct Prepared {
    child: tokio::process::Child,
    told: bool,
    /// How long the file of what supervisors complain of was before this one.
    pub complaints_before: u64,
}

impl Prepared {
    /// Tells it the description that is about to be written. It reads it and gets everything ready, but does not act.
    pub async fn describe(&mut self, description: &[u8]) {
        self.told = true;
        if let Some(line) = &mut self.child.stdin {
            let length = (description.len() as u64).to_be_bytes();
            // Whether one that ended had a reason is looked for when it should begin.
            let _ = line.write_all(&length).await;
            let _ = line.write_all(description).await;
        }
    }

    /// Has it begin: its description is on disk. One that ended meanwhile said why.
    pub async fn begin(mut self) -> tokio::process::Child {
        if !self.told {
            self.describe(&[]).await;
        }
        if let Some(mut line) = self.child.stdin.take() {
            let _ = line.write_all(supervise::BEGIN).await;
        }
        self.child
    }
}

/// Prepares a supervisor for the description that will be at `spec`. Once it has begun it outlives the caller.
///
/// # Errors
/// When the machine has no room for a process.
pub fn prepare(sandbox: &Sandbox, spec: &Path) -> Result<Prepared, SystemError> {
    let doing = |e| SystemError::new("start the runtime's supervisor", e);
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(sandbox.dir.join("logs").join("supervisor.err"))
        .map_err(doing)?;
    let complaints_before = log.metadata().map_or(0, |about| about.len());
    let _ = fs::remove_file(sandbox.supervisor_socket());
    let mut command = tokio::process::Command::new(enter::own_binary()?);
    command.arg("supervise").arg(spec).env_clear();
    for name in ["PATH", "RUST_LOG", crate::system::boot::BOOT_ID_PATH_VAR] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::from(log));
    command.spawn().map(|child| Prepared { child, told: false, complaints_before }).map_err(doing)
}

/// Connects to a supervisor and says hello; snapshots come through the channel, which closes with the connection.
///
/// # Errors
/// When nothing listens, or it does not answer.
pub async fn connect(sandbox: &Sandbox) -> io::Result<(std::sync::Arc<Supervisor>, mpsc::UnboundedReceiver<Snapshot>)> {
    let stream = UnixStream::connect(sandbox.supervisor_socket()).await?;
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    let hello = Request { number: 0, ask: Ask::Hello { version: VERSION } };
    write.write_all(&line_of(&hello)?).await?;
    let first = timeout(PATIENCE, lines.next_line()).await.map_err(|_| io::ErrorKind::TimedOut)??;
    let message = serde_json::from_str::<Message>(&first.unwrap_or_default())?;
    let Message::Reply(reply) = message else { return Err(io::ErrorKind::InvalidData.into()) };
    let Answer::Hello { instance, version } = reply.answer else { return Err(io::ErrorKind::InvalidData.into()) };
    let supervisor = std::sync::Arc::new(Supervisor {
        instance,
        version,
        write: tokio::sync::Mutex::new(write),
        waiting: Mutex::new(BTreeMap::new()),
        next: AtomicU64::new(1),
    });
    let (send, receive) = mpsc::unbounded_channel();
    let answered = std::sync::Arc::clone(&supervisor);
    // Ends with the connection; whoever still waits for an answer is told by its dropped sender.
    tokio::spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            match serde_json::from_str::<Message>(&line) {
                Ok(Message::Reply(reply)) => {
                    let waiting = answered.waiting().remove(&reply.number);
                    if let Some(waiting) = waiting {
                        let _ = waiting.send(reply.answer);
                    }
                }
                Ok(Message::Snapshot(snapshot)) => {
                    if send.send(*snapshot).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "a supervisor said something this daemon does not understand");
                }
            }
        }
        answered.waiting().clear();
    });
    Ok((supervisor, receive))
}

/// How long a supervisor that lives may take until it answers: it may wait for a disk.
const SLOW: Duration = Duration::from_secs(20);

/// Connects to a supervisor that an earlier daemon left. One that lives and does not answer is waited for, and ended at
/// last: as long as it lives no other can take its place.
///
/// # Errors
/// When none lives.
pub async fn reach(sandbox: &Sandbox) -> io::Result<(std::sync::Arc<Supervisor>, mpsc::UnboundedReceiver<Snapshot>)> {
    let state = sandbox.dir.join("state");
    let deadline = tokio::time::Instant::now() + SLOW;
    let mut pause = Duration::from_millis(10);
    loop {
        let error = match connect(sandbox).await {
            Ok(line) => return Ok(line),
            Err(error) if !lives(&state) => return Err(error),
            Err(error) => error,
        };
        if tokio::time::Instant::now() >= deadline {
            tracing::error!(workspace = %sandbox.workspace, "a runtime's supervisor does not answer and is ended");
            if let Err(error) = kill(&state) {
                tracing::error!(%error, "it cannot be ended");
            }
            return Err(error);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// Whether a supervisor lives, by the state directory of its workspace: its lock ends with it.
pub(super) fn lives(state: &Path) -> bool {
    fs::File::open(state.join("supervisor.lock")).is_ok_and(|lock| {
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockShared)
            == Err(rustix::io::Errno::WOULDBLOCK)
    })
}

/// Ends the supervisor that lives. It stands outside the control groups of its workspace.
///
/// # Errors
/// When it may not be signalled.
pub(super) fn kill(state: &Path) -> Result<(), SystemError> {
    let text = fs::read_to_string(state.join("supervisor.pid")).unwrap_or_default();
    match text.trim().parse::<i32>().ok().filter(|pid| *pid > 1) {
        Some(pid) => nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
            .map_err(|e| SystemError::new("end a supervisor", e.into())),
        None => Ok(()),
    }
}

fn line_of(request: &Request) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    Ok(line)
}

impl Supervisor {
    fn waiting(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, oneshot::Sender<Answer>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it knows of link traffic; one from before an upgrade does not.
    #[must_use]
    pub fn knows_traffic(&self) -> bool {
        self.version >= KNOWS_TRAFFIC
    }

    /// Whether it can wipe data services; one from before an upgrade cannot.
    #[must_use]
    pub fn knows_reset(&self) -> bool {
        self.version >= KNOWS_RESET
    }

    /// Whether it can have the workspace stand still.
    #[must_use]
    pub fn knows_stillness(&self) -> bool {
        self.version >= KNOWS_STILLNESS
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// When it refuses, or is gone.
    pub async fn ask(&self, ask: Ask) -> Result<(), Trouble> {
        let gone = || Trouble::new("the runtime's supervisor does not answer", "try again: it is replaced by itself");
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (send, receive) = oneshot::channel();
        self.waiting().insert(number, send);
        let line = line_of(&Request { number, ask }).map_err(|_| gone())?;
        self.write.lock().await.write_all(&line).await.map_err(|_| gone())?;
        match timeout(PATIENCE, receive).await {
            Ok(Ok(Answer::Refused { trouble })) => Err(trouble),
            Ok(Ok(Answer::Accepted | Answer::Hello { .. })) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(gone()),
        }
    }
}
