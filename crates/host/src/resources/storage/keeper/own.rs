//! The host's own server: started in its place, watched, started again, stopped.

use super::{Keys, Told};
use crate::{
    resources::storage::{Kind, Place, s3::Client, users},
    system::{
        SystemError,
        accounts::{self, Account},
        boot,
        cgroup::{self, Group, Limits},
        doors,
        enter::Entry,
        files,
        installation::Installation,
        machine_memory, secluded,
        spawn::Stream,
    },
};
use envforge_api::{states::Trouble, time::BootMillis};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    convert::Infallible,
    fs,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

/// Where it listens, in its own network.
pub(super) const ADDRESS: &str = "127.0.0.1:9000";
/// How long it may take until it answers: what it kept is read first.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest pause between two looks at one that is on its way: it is what a wake may take longer than the server.
const LONGEST_LOOK: Duration = Duration::from_millis(25);
/// SeaweedFS sometimes takes half a minute to end by itself. What it acknowledged is with the kernel by then.
pub(super) const GRACE: Duration = Duration::from_secs(3);
/// First and longest pause before it is started again.
const PAUSES: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(30)];
/// A server that served so long did not end because of how it starts: it is not made to wait longer for that.
const LIVED: Duration = Duration::from_secs(2);
/// A log that is longer is begun anew with the next server.
const LONGEST_LOG: u64 = 16 << 20;

/// A server that lives; pid and start together name a process for good.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Running {
    pid: i32,
    started: BootMillis,
}

impl Running {
    fn lives(self) -> bool {
        boot::process_started(self.pid) == Some(self.started)
    }
}

/// What it takes to run it.
#[derive(Debug)]
pub(super) struct Own {
    kind: Kind,
    root: Keys,
    account: Account,
    base: Group,
    /// Where the one that lives is written down: a keeper that is killed leaves it to the next one.
    noted: PathBuf,
    noted_at: std::os::fd::OwnedFd,
    log: fs::File,
    running: RefCell<Option<Running>>,
}

impl Own {
    /// Goes into the server's place: the one that an earlier keeper left, or a new one. The caller has one thread.
    pub(super) fn prepare(installation: &Installation, place: &Place, root: &Keys) -> Result<Self, SystemError> {
        let (kind, program) = place.server().map_err(|trouble| {
            SystemError::new("start the storage server", std::io::Error::other(trouble.reason)).with_hint(trouble.hint)
        })?;
        let account = accounts::ensure_storage_account(installation)?;
        let data = place.file(&kind.name().to_lowercase());
        files::ensure_dir_for(&data, 0o700, &account)?;
        place.record(kind)?;
        let base = cgroup::ensure_own(installation, "storage", Some(limits()))?;
        let log_path = place.file("server.log");
        if fs::metadata(&log_path).is_ok_and(|about| about.len() > LONGEST_LOG) {
            let _ = fs::remove_file(&log_path);
        }
        let log = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&log_path);
        let log = log.map_err(|e| SystemError::new("write the storage server's log", e).on_disk(&log_path))?;
        let noted = place.file("server.json");
        let left: Option<Running> = fs::read(&noted).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let left = left.filter(|running| running.lives());
        let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let noted_at = rustix::fs::open(place.dir(), flags, rustix::fs::Mode::empty())
            .map_err(|e| SystemError::new("open the storage directory", e.into()))?;
        match left {
            Some(running) => secluded::join(running.pid)?,
            None => {
                // One that was started and not written down: two on one directory would spoil it.
                base.child("server")?.kill()?;
                secluded::enter(&data, &program)?;
            }
        }
        Ok(Self { kind, root: root.clone(), account, base, noted, noted_at, log, running: RefCell::new(left) })
    }

    /// Keeps it running while it is needed.
    pub(super) async fn run(
        &self,
        client: &Client,
        stands: &watch::Sender<Told>,
        mut needs: watch::Receiver<usize>,
    ) -> Infallible {
        let mut pause = PAUSES[0];
        loop {
            if needs.wait_for(|needs| *needs > 0).await.is_err() {
                return std::future::pending().await;
            }
            let told = match self.once(client, stands).await {
                Ok(served) => {
                    if served >= LIVED {
                        pause = PAUSES[0];
                    }
                    Told::Coming
                }
                Err(trouble) => Told::Failed { trouble },
            };
            stands.send_replace(told);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES[1]);
        }
    }

    /// From its start to its end; how long it served.
    async fn once(&self, client: &Client, stands: &watch::Sender<Told>) -> Result<Duration, Trouble> {
        let system = |e: SystemError| Trouble::new(e.to_string(), e.hint);
        let known = *self.running.borrow();
        let running = match known.filter(|running| running.lives()) {
            Some(running) => running,
            None => self.start().await.map_err(system)?,
        };
        let ended = doors::wait_for_end(running.pid);
        tokio::pin!(ended);
        let ready = async {
            let mut pause = Duration::from_millis(10);
            while users::kind(client).await.is_err() {
                tokio::time::sleep(pause).await;
                pause = (pause * 3 / 2).min(LONGEST_LOOK);
            }
        };
        let name = self.kind.name();
        let hint = "its log is storage/server.log in the home of the installation; it is tried again by itself";
        let answers = tokio::select! {
            _ = &mut ended => return Err(Trouble::new(format!("{name} ended before it answered"), hint)),
            answers = timeout(PATIENCE, ready) => answers,
        };
        if answers.is_err() {
            self.stop(GRACE).await;
            return Err(Trouble::new(format!("{name} does not answer after {} s", PATIENCE.as_secs()), hint));
        }
        stands.send_replace(Told::Ready);
        let since = Instant::now();
        let _ = ended.await;
        Ok(since.elapsed())
    }

    async fn start(&self) -> Result<Running, SystemError> {
        // A group that was killed once kills whatever is made in it later: it is made anew once it is empty.
        let _ = self.base.child("server")?.kill();
        self.base.wait_empty().await?;
        let doing = |e| SystemError::new("start the storage server", e);
        let group = self.base.child("server")?;
        let words: Vec<String> = std::iter::once(secluded::PROGRAM.to_owned()).chain(arguments(self.kind)).collect();
        let environment = environment(self.kind, &self.root);
        let log = || self.log.try_clone().map_err(doing);
        let pid = if rustix::process::geteuid().is_root() {
            let entry = Entry {
                pins: vec![],
                group,
                account: self.account.clone(),
                directory: Path::new(secluded::DATA).to_owned(),
                oom_score_adj: 0,
                terminal: false,
                source: None,
                placed: false,
                no_subvolumes: false,
            };
            let streams = [Stream::Null, Stream::Given(log()?.into()), Stream::Given(log()?.into())];
            entry.start(&words, &environment, streams, false)?.id()
        } else {
            let mut command = tokio::process::Command::new(&words[0]);
            command.args(&words[1..]).env_clear().envs(&environment).current_dir(secluded::DATA).process_group(0);
            command.stdin(Stdio::null()).stdout(Stdio::from(log()?)).stderr(Stdio::from(log()?));
            command.spawn().map_err(doing)?.id()
        };
        let gone = || doing(std::io::Error::other("it ended at once"));
        let pid = pid.and_then(|pid| i32::try_from(pid).ok()).ok_or_else(gone)?;
        let running = Running { pid, started: boot::process_started(pid).ok_or_else(gone)? };
        self.running.replace(Some(running));
        self.note(&running);
        Ok(running)
    }

    /// Beneath the directory that was opened before: in here its path may lead nowhere.
    fn note(&self, running: &Running) {
        use rustix::fs::{Mode, OFlags, openat, renameat};
        use std::io::Write;
        let bytes = serde_json::to_vec(running).unwrap_or_default();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let name = self.noted.file_name().unwrap_or_default();
        let written = openat(&self.noted_at, "server.json.new", flags, Mode::RUSR | Mode::WUSR)
            .map_err(std::io::Error::from)
            .and_then(|fd| fs::File::from(fd).write_all(&bytes))
            .and_then(|()| Ok(renameat(&self.noted_at, "server.json.new", &self.noted_at, name)?));
        if written.is_err() {
            // The next keeper then ends this server instead of taking it over.
            let _ = rustix::fs::unlinkat(&self.noted_at, name, rustix::fs::AtFlags::empty());
        }
    }

    /// Ends it, by force when it takes longer than that.
    pub(super) async fn stop(&self, grace: Duration) {
        let Some(running) = self.running.take().filter(|running| running.lives()) else { return };
        let pid = Pid::from_raw(running.pid);
        let _ = kill(pid, Signal::SIGTERM);
        if timeout(grace, doors::wait_for_end(running.pid)).await.is_err() {
            let _ = kill(pid, Signal::SIGKILL);
            let _ = doors::wait_for_end(running.pid).await;
        }
    }
}

/// Half of the machine's memory: what one workspace has it do must not take that of all others. Its processors are everyone's
/// who waits for it.
fn limits() -> Limits {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    let memory_bytes = machine_memory().unwrap_or(8 << 30) / 2;
    Limits { cpu_millis: cpus * 1000, memory_bytes, pids: 4096, cpu_weight: 100 }
}

/// No secret is in them.
fn arguments(kind: Kind) -> Vec<String> {
    let words = match kind {
        Kind::MinIo => {
            format!("server --quiet --address {ADDRESS} --console-address 127.0.0.1:9001 {}", secluded::DATA)
        }
        // Each bucket has a volume of its own, and volumes are many: their number is no measure of space.
        Kind::SeaweedFs => format!(
            "mini -dir={} -ip=127.0.0.1 -ip.bind=127.0.0.1 -s3.port=9000 -s3.iam.readOnly=false -s3.autoCreateBucket=false \
             -s3.port.iceberg=0 -s3.port.lance=0 -webdav=false -admin.ui=false -master.telemetry=false \
             -volume.preStopSeconds=0 -volume.max=16384",
            secluded::DATA
        ),
    };
    words.split_ascii_whitespace().map(str::to_owned).collect()
}

fn environment(kind: Kind, root: &Keys) -> BTreeMap<String, String> {
    let (access, secret) = match kind {
        Kind::MinIo => ("MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD"),
        Kind::SeaweedFs => ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    };
    // Both are Go programs, which give memory back before they reach this.
    let soft = (limits().memory_bytes / 8 * 7).to_string();
    let pairs = [
        ("GOMEMLIMIT", soft.as_str()),
        ("PATH", "/usr/bin:/bin"),
        ("LANG", "C.UTF-8"),
        ("HOME", "/tmp"),
        ("TMPDIR", "/tmp"),
        ("MINIO_BROWSER", "off"),
        ("MINIO_UPDATE", "off"),
        (access, root.access_key.as_str()),
        (secret, root.secret_key.expose()),
    ];
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}
