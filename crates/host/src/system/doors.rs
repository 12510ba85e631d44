//! Groups of processes where there are no control groups: an ordinary user's.
//!
//! Every process of a workspace is started behind a *door* (see [`super::door`]): a process that adopts whatever its
//! descendants leave behind, and that ends when the last of them has ended. A group is a directory with a file for
//! each of its doors; it is empty when no door stands any more, and its members are the descendants of its doors.
//! Nobody can leave: a daemon that cleared its environment and began its own session is still the door's.
//!
//! Who kills a door from inside orphans what is behind it: that falls to the workspace's init and is counted to
//! `runtime`, so that it is metered and ends with the next sleep.

use super::{Result, SystemError, boot, holder};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};
use tokio::io::Interest;

/// The doors of one group and of those below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doors {
    /// Where their files are.
    pub dir: PathBuf,
    /// The run directory of the workspace if orphans of its init are counted to this group.
    pub orphans_of: Option<PathBuf>,
}

/// What a file in a group's directory stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A process on its way in; its door is its child.
    Entering,
    /// A door.
    Door,
}

/// One process as the kernel shows it.
#[derive(Debug, Clone, Copy)]
struct Process {
    parent: i32,
    /// CPU time of its own and of children that it waited for, in clock ticks.
    ticks: u64,
}

fn file_name(pid: i32, kind: Kind) -> String {
    format!("{pid}.{}", if kind == Kind::Door { "door" } else { "entering" })
}

fn kind_of(name: &str) -> Option<(i32, Kind)> {
    let (pid, kind) = name.split_once('.')?;
    let kind = match kind {
        "door" => Kind::Door,
        "entering" => Kind::Entering,
        _ => return None,
    };
    Some((pid.parse().ok()?, kind))
}

/// A group's directory and the host's `/proc`, both open: they are used from where neither can be seen by its path.
#[derive(Debug)]
pub(super) struct Register {
    dir: OwnedFd,
    proc: OwnedFd,
}

impl Register {
    pub(super) fn open(doors: &Doors) -> Result<Self> {
        let doing = |e: io::Error| SystemError::new("join the workspace's group of processes", e);
        fs::create_dir_all(&doors.dir).map_err(doing)?;
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |path: &Path| rustix::fs::open(path, flags, Mode::empty()).map_err(|e| doing(e.into()));
        Ok(Self { dir: open(&doors.dir)?, proc: open(Path::new("/proc"))? })
    }

    /// Writes a door down.
    pub(super) fn door(&self, pid: i32) -> Result<()> {
        let doing = |e: rustix::io::Errno| SystemError::new("join the workspace's group of processes", e.into());
        let stat = rustix::fs::openat(&self.proc, format!("{pid}/stat"), OFlags::CLOEXEC, Mode::empty());
        let text = io::read_to_string(fs::File::from(stat.map_err(doing)?)).unwrap_or_default();
        let started = boot::started_in(&text).unwrap_or_default().0;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = rustix::fs::openat(&self.dir, file_name(pid, Kind::Door), flags, mode).map_err(doing)?;
        rustix::io::write(&file, started.to_string().as_bytes()).map_err(doing)?;
        Ok(())
    }
}

/// Every process, by pid. Those that ended and were not waited for are left out.
fn processes() -> BTreeMap<i32, Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeMap::new() };
    let read = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        if matches!(fields.first(), Some(&"Z" | &"X")) {
            return None;
        }
        let ticks = fields.get(11..15)?.iter().filter_map(|t| t.parse::<u64>().ok()).sum();
        Some((pid, Process { parent: fields.get(1)?.parse().ok()?, ticks }))
    };
    entries.flatten().filter_map(read).collect()
}

impl Doors {
    /// Writes down a process that is on its way in.
    pub(super) fn join(&self, pid: u32) {
        let Ok(pid) = i32::try_from(pid) else { return };
        // One that ended already needs no group.
        let Some(started) = boot::process_started(pid) else { return };
        let _ = fs::create_dir_all(&self.dir);
        let _ = fs::write(self.dir.join(file_name(pid, Kind::Entering)), started.0.to_string());
    }

    /// The doors that stand, and who is on the way in. Files of those that are gone are removed.
    fn standing(&self) -> Vec<(i32, Kind)> {
        let (mut found, mut left) = (Vec::new(), vec![self.dir.clone()]);
        while let Some(at) = left.pop() {
            let Ok(entries) = fs::read_dir(&at) else { continue };
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    left.push(entry.path());
                    continue;
                }
                let Some((pid, kind)) = entry.file_name().to_str().and_then(kind_of) else { continue };
                // A file that is empty is being written this moment.
                let written = fs::read_to_string(entry.path()).unwrap_or_default();
                match (boot::process_started(pid), written.parse::<u64>()) {
                    (Some(now), Ok(then)) if now.0 == then => found.push((pid, kind)),
                    (Some(_), Err(_)) => found.push((pid, kind)),
                    (_, _) => drop(fs::remove_file(entry.path())),
                }
            }
        }
        found
    }

    fn orphans(&self, all: &BTreeMap<i32, Process>) -> Vec<i32> {
        let Some(holder) = self.orphans_of.as_deref().and_then(holder::read) else { return Vec::new() };
        // Doors are children of init as well, whatever group they belong to.
        let every = self.dir.parent().unwrap_or(&self.dir).to_owned();
        let doors: Vec<i32> =
            Self { dir: every, orphans_of: None }.standing().into_iter().map(|(pid, _)| pid).collect();
        let of_init = all.iter().filter(|(_, process)| process.parent == holder.pid).map(|(pid, _)| *pid);
        of_init.filter(|pid| Some(*pid) != holder.egress && !doors.contains(pid)).collect()
    }

    /// Members with what is known of them; the oldest first.
    fn members(&self, all: &BTreeMap<i32, Process>) -> Vec<i32> {
        let standing: Vec<i32> = self.standing().into_iter().map(|(pid, _)| pid).collect();
        let orphans = self.orphans(all);
        let mut found: Vec<i32> = orphans.clone();
        for pid in all.keys() {
            let mut at = *pid;
            // Parents of parents; the first process has parent 0, and a table read while it changes may lack one.
            while let Some(process) = all.get(&at) {
                at = process.parent;
                if standing.contains(&at) || orphans.contains(&at) {
                    found.push(*pid);
                    break;
                }
            }
        }
        found.retain(|pid| !standing.contains(pid));
        found.sort_unstable();
        found.dedup();
        found.sort_by_key(|pid| boot::process_started(*pid));
        found
    }

    pub(super) fn pids(&self) -> Vec<i32> {
        self.members(&processes())
    }

    pub(super) fn cpu_micros(&self) -> u64 {
        let all = processes();
        let mut counted = self.members(&all);
        // What a member used that has ended is its door's.
        counted.extend(self.standing().into_iter().filter(|(_, kind)| *kind == Kind::Door).map(|(pid, _)| pid));
        let ticks: u64 = counted.iter().filter_map(|pid| all.get(pid)).map(|process| process.ticks).sum();
        ticks.saturating_mul(1_000_000) / rustix::param::clock_ticks_per_second()
    }

    /// Kills every member; the doors end when they have seen the last one go.
    pub(super) fn kill(&self) {
        let mut killed = Vec::new();
        loop {
            let entering = self.standing().into_iter().filter(|(_, kind)| *kind == Kind::Entering);
            let mut next: Vec<i32> = entering.map(|(pid, _)| pid).collect();
            next.extend(self.pids());
            next.retain(|pid| !killed.contains(pid));
            if next.is_empty() {
                return;
            }
            for pid in next {
                // One that ended in the meantime is as wanted.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                killed.push(pid);
            }
        }
    }

    fn first_left(&self) -> Option<i32> {
        if let Some((pid, _)) = self.standing().first() {
            return Some(*pid);
        }
        if self.orphans_of.is_some() { self.orphans(&processes()).first().copied() } else { None }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first_left().is_none()
    }

    /// Resolves when the last door is gone: an event of the kernel for each.
    pub(super) async fn wait_empty(&self) -> Result<()> {
        while let Some(pid) = self.first_left() {
            wait_for_end(pid).await.map_err(|e| SystemError::new("wait for the end of a group of processes", e))?;
        }
        Ok(())
    }

    pub(super) fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(SystemError::new("remove a group of processes", e)),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Waits for the end of a process that need not be a child. One that is gone already has ended.
pub(crate) async fn wait_for_end(pid: i32) -> io::Result<()> {
    let Some(number) = rustix::process::Pid::from_raw(pid) else { return Ok(()) };
    let fd = match rustix::process::pidfd_open(number, rustix::process::PidfdFlags::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    // A pidfd is readable when its process has ended, waited for or not.
    super::watch(fd, Interest::READABLE)?.readable().await.map(drop)
}
