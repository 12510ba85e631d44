//! One control group, whatever the machine has of them: who is in it, what it may use, how all of it is ended, stands still
//! or is waited for.

use super::{make, write};
use crate::system::{Result, SystemError, doors::Doors, watch};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};
use tokio::io::Interest;

/// One group: all hierarchies' directories of the same path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Directory in the v2 hierarchy; absent without cgroups.
    pub v2: Option<PathBuf>,
    /// Directories in v1 hierarchies that carry limits.
    pub v1: Vec<PathBuf>,
    /// What stands for the group where there are no cgroups for us.
    #[serde(default)]
    pub doors: Option<Doors>,
}

/// Limits of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Octets.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Share of a CPU that several want, where an ordinary group has 100.
    pub cpu_weight: u64,
}

impl Group {
    /// One below it, made if missing, and anew if it holds no process: see [`Cgroups::runtime_child`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn child(&self, path: &str) -> Result<Group> {
        let below = |doors: &Doors| Doors { dir: doors.dir.join(path), orphans_of: None };
        let group = Group {
            v2: self.v2.as_ref().map(|at| at.join(path)),
            v1: self.v1.clone(),
            doors: self.doors.as_ref().map(below),
        };
        if let Some(at) = group.v2.as_ref().filter(|_| group.is_empty()) {
            // Not there, or with groups of its own, is as good.
            let _ = fs::remove_dir(at);
        }
        group.ensure()?;
        Ok(group)
    }

    /// Makes the directories.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn ensure(&self) -> Result<()> {
        let doors = self.doors.as_ref().map(|doors| &doors.dir);
        self.v2.iter().chain(&self.v1).chain(doors).try_for_each(|at| make(at))
    }

    /// Puts a process into the group. `envforge enter` does it itself, a moment after it was started; whoever may have
    /// to kill the group before that moment calls this too.
    pub fn join(&self, pid: u32) {
        for at in self.v2.iter().chain(&self.v1) {
            // One that ended already needs no group.
            let _ = write(&at.join("cgroup.procs"), &pid.to_string());
        }
        if let Some(doors) = &self.doors {
            doors.join(pid);
        }
    }

    /// Files to write `0` to, for a process of one thread that joins by itself; one that was `placed` is in the group of
    /// version 2 already. In version 1 a thread that moves itself (`tasks`) waits for no grace period of the kernel,
    /// as a process that is moved (`cgroup.procs`) does.
    pub fn own_membership_files(&self, placed: bool) -> impl Iterator<Item = PathBuf> {
        let v2 = self.v2.iter().filter(move |_| !placed).map(|at| at.join("cgroup.procs"));
        v2.chain(self.v1.iter().map(|at| at.join("tasks")))
    }

    /// Sets limits; what the machine cannot limit is left out.
    ///
    /// # Errors
    /// When a limit exists but is refused.
    pub fn limit(&self, limits: Limits) -> Result<()> {
        const PERIOD: u64 = 100_000;
        let quota = limits.cpu_millis * PERIOD / 1000;
        let settings = [
            ("cpu.max", format!("{quota} {PERIOD}")),
            ("memory.max", limits.memory_bytes.to_string()),
            ("cpu.cfs_period_us", PERIOD.to_string()),
            ("cpu.cfs_quota_us", quota.to_string()),
            ("memory.limit_in_bytes", limits.memory_bytes.to_string()),
            ("pids.max", limits.pids.to_string()),
            ("cpu.weight", limits.cpu_weight.to_string()),
            // The same in version 1, where an ordinary group has 1024.
            ("cpu.shares", (limits.cpu_weight * 1024 / 100).to_string()),
        ];
        for at in self.v2.iter().chain(&self.v1) {
            for (file, value) in &settings {
                let file = at.join(file);
                // Most settings are another hierarchy's, and trying to make a file costs more than looking for it.
                if !file.exists() {
                    continue;
                }
                match write(&file, value) {
                    Err(error)
                        if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) =>
                    {
                        return Err(SystemError::new(format!("set {}", file.display()), error));
                    }
                    Ok(()) | Err(_) => {}
                }
            }
        }
        Ok(())
    }

    /// Kills every process in the group and below (`cgroup.kill`).
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&self) -> Result<()> {
        if let Some(doors) = &self.doors {
            doors.kill();
            return Ok(());
        }
        match self.v2.as_ref().map(|at| write(&at.join("cgroup.kill"), "1")) {
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
                Err(SystemError::new("kill a control group", error))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The group at a path below, whether it exists or not.
    #[must_use]
    pub fn below(&self, path: &str) -> Self {
        Self {
            v2: self.v2.as_ref().map(|at| at.join(path)),
            v1: self.v1.clone(),
            doors: self.doors.as_ref().map(|doors| Doors { dir: doors.dir.join(path), orphans_of: None }),
        }
    }

    /// The groups one level below, with their names.
    #[must_use]
    pub fn children(&self) -> Vec<(String, Self)> {
        let at = self.doors.as_ref().map(|doors| &doors.dir).or(self.v2.as_ref());
        let entries = at.and_then(|at| fs::read_dir(at).ok()).into_iter().flatten().flatten();
        let inner = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        inner
            .filter_map(|entry| entry.file_name().into_string().ok())
            .map(|name| (name.clone(), self.below(&name)))
            .collect()
    }

    /// Has every process in the group and below stand still, or go on. A group that is not there has none. Without
    /// control groups they are signalled, which those who wait for them see.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn freeze(&self, still: bool) -> Result<()> {
        if let Some(doors) = &self.doors {
            let signal = if still { nix::sys::signal::Signal::SIGSTOP } else { nix::sys::signal::Signal::SIGCONT };
            for pid in doors.pids() {
                // One that ended in the meantime stands still.
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
            }
            return Ok(());
        }
        match self.v2.as_ref().map(|at| write(&at.join("cgroup.freeze"), if still { "1" } else { "0" })) {
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
                Err(SystemError::new(if still { "stop a control group" } else { "let a control group go on" }, error))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Resolves when every process in the group and below stands still (an event of the kernel).
    ///
    /// # Errors
    /// When the kernel gives no events.
    pub async fn wait_frozen(&self) -> Result<()> {
        if self.doors.is_some() {
            return Ok(());
        }
        let still = |text: &str| text.lines().any(|line| line == "frozen 1");
        self.wait_until("wait for a control group to stand still", still).await
    }

    /// Processes in the group and below.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        if let Some(doors) = &self.doors {
            return doors.pids();
        }
        let mut found = Vec::new();
        let mut left: Vec<PathBuf> = self.v2.iter().cloned().collect();
        while let Some(at) = left.pop() {
            let text = fs::read_to_string(at.join("cgroup.procs")).unwrap_or_default();
            found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
            let Ok(entries) = fs::read_dir(&at) else { continue };
            left.extend(entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
        }
        found
    }

    /// The process in the group that no other process of the group started: a server's main process.
    #[must_use]
    pub fn main_pid(&self) -> Option<i32> {
        let pids = self.pids();
        pids.iter().copied().find(|pid| parent_of(*pid).is_some_and(|parent| !pids.contains(&parent)))
    }

    /// CPU time used by the group and below, in microseconds; 0 where the machine does not say.
    #[must_use]
    pub fn cpu_micros(&self) -> u64 {
        if let Some(doors) = &self.doors {
            return doors.cpu_micros();
        }
        let Some(at) = &self.v2 else { return 0 };
        let text = fs::read_to_string(at.join("cpu.stat")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
        line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
    }

    /// Whether no process is left. A group that does not exist is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        if let Some(doors) = &self.doors {
            return doors.is_empty();
        }
        let Some(at) = &self.v2 else { return true };
        match fs::read_to_string(at.join("cgroup.events")) {
            Ok(text) => !text.lines().any(|line| line == "populated 1"),
            Err(_) => true,
        }
    }

    /// Resolves when no process is left in the group and below (an event of the kernel, no polling).
    ///
    /// # Errors
    /// When the kernel gives no events.
    pub async fn wait_empty(&self) -> Result<()> {
        if let Some(doors) = &self.doors {
            return doors.wait_empty().await;
        }
        self.wait_until("wait for a control group to become empty", |text| {
            !text.lines().any(|line| line == "populated 1")
        })
        .await
    }

    async fn wait_until(&self, doing: &str, reached: impl Fn(&str) -> bool) -> Result<()> {
        let Some(at) = &self.v2 else { return Ok(()) };
        let doing = |e| SystemError::new(doing, e);
        let file = match fs::File::open(at.join("cgroup.events")) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(doing(error)),
        };
        let events = watch(file.into(), Interest::PRIORITY).map_err(doing)?;
        loop {
            // Reading arms the event; a change after the read is then an event.
            let mut text = [0_u8; 256];
            let read = match rustix::io::pread(events.get_ref().as_fd(), &mut text, 0) {
                Ok(read) => read,
                // The group was removed meanwhile.
                Err(rustix::io::Errno::NODEV) => return Ok(()),
                Err(error) => return Err(doing(error.into())),
            };
            if reached(&String::from_utf8_lossy(&text[..read])) {
                return Ok(());
            }
            let mut ready = events.ready(Interest::PRIORITY).await.map_err(doing)?;
            ready.clear_ready();
        }
    }

    /// Removes the group and everything below; must be empty of processes.
    ///
    /// # Errors
    /// When a process is still in it.
    pub fn remove(&self) -> Result<()> {
        if let Some(doors) = &self.doors {
            return doors.remove();
        }
        self.v2.iter().chain(&self.v1).try_for_each(|at| remove_tree(at))
    }
}

pub(super) fn remove_tree(at: &Path) -> Result<()> {
    if let Ok(entries) = fs::read_dir(at) {
        for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(at) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(SystemError::new("remove a control group", error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}
