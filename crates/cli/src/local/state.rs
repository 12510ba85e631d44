//! `keeper.json` and `keeper.lock`: what the keeper says about itself and its parts.
//!
//! Rules kept here: the file is replaced whole, so a reader never sees half of it; a process is named by pid *and*
//! start time, so a pid that was given to another process is never taken for ours; the lock alone says whether a
//! keeper lives, and probing it never keeps a keeper from taking it for longer than the probe.

use super::paths::Paths;
use envforge_api::problem::Problem;
use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// A process that cannot be mistaken for a later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Named {
    /// Process id.
    pub(super) pid: i32,
    /// Start time in clock ticks since the kernel started (`/proc/<pid>/stat`, field 22).
    pub(super) ticks: u64,
}

impl Named {
    /// The process that has this pid now; `None` if there is none or it is only waiting to be reaped.
    pub(super) fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
        if matches!(fields.next()?, "Z" | "X") {
            return None;
        }
        Some(Self { pid, ticks: fields.nth(18)?.parse().ok()? })
    }

    /// Whether that very process still runs.
    pub(super) fn lives(self) -> bool {
        Self::of(self.pid) == Some(self)
    }
}

/// Where a keeper is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    /// Parts are being started for the first time.
    Starting,
    /// Every part has been ready once.
    Ready,
    /// Parts are being stopped.
    Stopping,
    /// It ended after stopping everything.
    Stopped,
    /// It ended because a part could not be started; `problem` says why.
    Failed,
}

/// State of one part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartState {
    /// No process, and none is wanted.
    Stopped,
    /// There is a process that is not ready yet.
    Starting,
    /// Ready.
    Running,
    /// It ended by itself and is started again after a pause.
    Restarting,
}

impl fmt::Display for PartState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Restarting => "restarting",
        })
    }
}

/// One part as it is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PartRecord {
    /// `postgres`, `control`, `host` or `gateway`.
    pub(super) name: String,
    /// Its process.
    pub(super) process: Option<Named>,
    /// Its state.
    pub(super) state: PartState,
    /// Since when.
    pub(super) since: Timestamp,
    /// How often this keeper started it again.
    pub(super) restarts: u32,
    /// How it last ended, if it did.
    pub(super) reason: Option<String>,
}

/// The whole of `keeper.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The keeper itself.
    pub(super) keeper: Named,
    /// Where it is.
    pub(super) phase: Phase,
    /// Since when.
    pub(super) since: Timestamp,
    /// Why it failed.
    pub(super) problem: Option<Problem>,
    /// The port the control plane last listened on; tried first at its next start.
    pub(super) port: Option<u16>,
    /// The host below which dev hosts lie, and the port that they and links lead to.
    #[serde(default)]
    pub(super) base_host: Option<String>,
    #[serde(default)]
    pub(super) base_port: Option<u16>,
    /// Its parts.
    pub(super) parts: Vec<PartRecord>,
}

impl Record {
    /// What a keeper wrote last; `None` if there is nothing readable.
    pub(super) fn read(paths: &Paths) -> Option<Self> {
        serde_json::from_slice(&fs::read(paths.record()).ok()?).ok()
    }

    /// The part of that name.
    pub(super) fn part(&self, name: &str) -> Option<&PartRecord> {
        self.parts.iter().find(|part| part.name == name)
    }
}

/// The record a living keeper changes; every change is on disk when the call returns.
#[derive(Debug, Clone)]
pub(super) struct Board {
    paths: Paths,
    record: Arc<Mutex<Record>>,
}

impl Board {
    /// Begins a record, remembering the port and the processes that an earlier keeper left.
    pub(super) fn new(paths: &Paths, phase: Phase, names: &[&str]) -> io::Result<Self> {
        let now = Timestamp::now();
        let keeper = Named::of(std::process::id().cast_signed()).ok_or(io::ErrorKind::NotFound)?;
        let before = Record::read(paths);
        let left = |name: &str| before.as_ref()?.part(name)?.process.filter(|process| process.lives());
        let part = |name: &&str| {
            let (name, process) = ((*name).to_owned(), left(name));
            let state = if process.is_some() { PartState::Starting } else { PartState::Stopped };
            PartRecord { name, process, state, since: now, restarts: 0, reason: None }
        };
        let parts = names.iter().map(part).collect();
        let port = before.as_ref().and_then(|before| before.port);
        let base_port = before.as_ref().and_then(|before| before.base_port);
        let base_host = before.as_ref().and_then(|before| before.base_host.clone());
        let record = Record { keeper, phase, since: now, problem: None, port, base_host, base_port, parts };
        write_atomically(&paths.record(), &record)?;
        Ok(Self { paths: paths.clone(), record: Arc::new(Mutex::new(record)) })
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the record and writes it. A full disk loses the note, never the keeper.
    pub(super) fn change(&self, change: impl FnOnce(&mut Record)) {
        let mut record = self.lock();
        change(&mut record);
        if let Err(error) = write_atomically(&self.paths.record(), &record) {
            super::log::note(&format!("keeper.json could not be written: {error}"));
        }
    }

    /// Enters a phase.
    pub(super) fn enter(&self, phase: Phase, problem: Option<Problem>) {
        self.change(|record| {
            record.phase = phase;
            record.since = Timestamp::now();
            record.problem = problem;
        });
    }

    /// Notes the state of a part.
    pub(super) fn part(&self, name: &str, state: PartState, process: Option<Named>, reason: Option<String>) {
        self.change(|record| {
            if let Some(part) = record.parts.iter_mut().find(|part| part.name == name) {
                if part.state == PartState::Restarting && state == PartState::Starting {
                    part.restarts += 1;
                }
                part.state = state;
                part.process = process;
                part.since = Timestamp::now();
                part.reason = reason.or(part.reason.take());
            }
        });
    }

    /// The port to try first.
    pub(super) fn port(&self) -> Option<u16> {
        self.lock().port
    }

    /// The host below which dev hosts lie.
    pub(super) fn base_host(&self) -> Option<String> {
        self.lock().base_host.clone()
    }

    /// The port that links lead to.
    pub(super) fn base_port(&self) -> Option<u16> {
        self.lock().base_port
    }
}

fn write_atomically(path: &Path, record: &Record) -> io::Result<()> {
    let next = path.with_extension("json.next");
    fs::write(&next, serde_json::to_vec_pretty(record).map_err(io::Error::other)?)?;
    fs::rename(next, path)
}

/// The lock of a living keeper; free again when dropped.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Lock {
    /// Takes the lock. `None`: another keeper lives.
    pub(super) fn take(paths: &Paths) -> io::Result<Option<Self>> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o644).open(paths.lock())?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the lock file is still the one that lies in the home; false after the home was removed.
    pub(super) fn is_in_place(&self, paths: &Paths) -> bool {
        match (self.0.metadata(), fs::metadata(paths.lock())) {
            (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
            (Ok(_) | Err(_), Ok(_) | Err(_)) => false,
        }
    }
}

/// Forgets what a keeper said.
pub(super) fn forget(paths: &Paths) -> io::Result<()> {
    match fs::remove_file(paths.record()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Whether a keeper holds the lock. The probe is a shared lock for a few microseconds, so that probes never
/// exclude one another; a keeper that starts tries more than once.
pub(super) fn keeper_lives(paths: &Paths) -> bool {
    let Ok(file) = File::open(paths.lock()) else { return false };
    flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_with_another_start_time_is_another_process() {
        let me = Named::of(std::process::id().cast_signed()).unwrap();
        assert!(me.lives());
        assert!(!Named { ticks: me.ticks + 1, ..me }.lives());
    }

    #[test]
    fn the_lock_is_seen_by_probes_and_free_when_dropped() {
        let dir = super::super::scratch::Scratch::new();
        let paths = Paths::new(dir.path());
        assert!(!keeper_lives(&paths));
        let lock = Lock::take(&paths).unwrap().unwrap();
        assert!(keeper_lives(&paths) && Lock::take(&paths).unwrap().is_none() && lock.is_in_place(&paths));
        fs::remove_file(paths.lock()).unwrap();
        assert!(!lock.is_in_place(&paths));
        drop(lock);
        assert!(!keeper_lives(&paths));
    }
}
