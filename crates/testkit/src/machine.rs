//! The machine below an installation: its processes, what happens to them, and what they left on disk.

use crate::local::{Local, PATIENCE};
use envforge_api::usage::{Reading, observed_between};
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Waits until `wanted` gives something. For what the product has no event for; the pause is small.
///
/// # Panics
/// When it does not within [`PATIENCE`].
#[allow(clippy::disallowed_methods)] // A test's own thread; what it waits for has no event.
pub fn eventually<T>(what: &str, mut wanted: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = wanted() {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// SIGKILLs one process and waits until it is gone.
///
/// # Panics
/// When there is no such process.
pub fn sigkill(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill");
    eventually("a killed process is gone", || (!lives(pid)).then_some(()));
}

/// Stops one process where it stands, or lets it go on.
///
/// # Panics
/// When there is no such process.
pub fn stand_still(pid: i32, still: bool) {
    let signal = if still { Signal::SIGSTOP } else { Signal::SIGCONT };
    kill(Pid::from_raw(pid), signal).expect("kill");
}

/// Whether a process runs (one that waits to be reaped does not).
#[must_use]
pub fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !matches!(rest.trim_start().chars().next(), Some('Z' | 'X') | None))
}

fn parent_of(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after = stat.rsplit_once(") ").map(|(_, rest)| rest.split(' ').nth(1).unwrap_or_default().to_owned());
    after.and_then(|parent| parent.parse().ok()).unwrap_or_default()
}

fn words_of(pid: i32) -> Vec<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|b| *b == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// The control group of the installation with this id.
///
/// # Panics
/// When the machine has no groups of version 2.
#[must_use]
pub fn cgroup_of(id: &str) -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let at = mounts.lines().find(|line| line.contains(" - cgroup2 ")).and_then(|line| line.split(' ').nth(4));
    Path::new(at.expect("cgroup v2")).join(format!("envforge-{id}"))
}

/// What a process may take of the machine's memory by its control group, in octets, whichever version has the controller.
/// `None` where nothing limits it.
#[must_use]
pub fn memory_limit(pid: i32) -> Option<u64> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    groups.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let (kind, file) = match controllers {
            "" => (" - cgroup2 ", "memory.max"),
            of if of.split(',').any(|one| one == "memory") => (" - cgroup ", "memory.limit_in_bytes"),
            _ => return None,
        };
        let carries = |options: &str| controllers.is_empty() || options.split(',').any(|one| one == "memory");
        let mount = mounts.lines().find(|line| line.contains(kind) && line.rsplit(' ').next().is_some_and(carries))?;
        let at = Path::new(mount.split(' ').nth(4)?).join(path.trim_start_matches('/')).join(file);
        fs::read_to_string(at).ok()?.trim().parse().ok()
    })
}

impl Local {
    /// Pid of a part of the installation (`keeper`, `host`, `control`, `postgres`), as the keeper wrote it down: asking
    /// the product would bring a dead one back.
    ///
    /// # Panics
    /// When the part is not noted.
    #[must_use]
    pub fn part(&self, name: &str) -> i32 {
        let text = fs::read(self.home().join("keeper.json")).expect("keeper.json");
        let record: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        let pid = if name == "keeper" {
            record["keeper"]["pid"].as_i64()
        } else {
            let parts = record["parts"].as_array().expect("parts");
            parts.iter().find(|part| part["name"] == name).and_then(|part| part["process"]["pid"].as_i64())
        };
        i32::try_from(pid.unwrap_or_else(|| panic!("no {name} in {record:#}"))).expect("a pid")
    }

    /// SIGKILLs a part; returns the pid it had.
    pub fn kill(&self, part: &str) -> i32 {
        let pid = self.part(part);
        sigkill(pid);
        pid
    }

    /// Pids of the runtime supervisors of this installation.
    #[must_use]
    pub fn supervisors(&self) -> Vec<i32> {
        // As the host sees it: a home may be reached by a link.
        let home = fs::canonicalize(self.home()).unwrap_or_else(|_| self.home()).to_string_lossy().into_owned();
        let ours = |pid: &i32| {
            let words = words_of(*pid);
            words.get(1).is_some_and(|w| w == "supervise") && words.get(2).is_some_and(|w| w.starts_with(&home))
        };
        let entries = fs::read_dir("/proc").expect("proc").flatten();
        entries.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok()).filter(ours).collect()
    }

    /// The only supervisor.
    ///
    /// # Panics
    /// When there is none, or more than one.
    #[must_use]
    pub fn supervisor(&self) -> i32 {
        let all = self.supervisors();
        assert_eq!(all.len(), 1, "supervisors: {all:?}");
        all[0]
    }

    fn id(&self) -> String {
        fs::read_to_string(self.home().join("host/installation")).expect("the installation's id").trim().to_owned()
    }

    fn cgroup(&self) -> PathBuf {
        cgroup_of(&self.id())
    }

    /// Pids below a control group of the installation, such as `w0/runtime/services/web`.
    #[must_use]
    pub fn pids_in(&self, group: &str) -> Vec<i32> {
        let mut pids = Vec::new();
        let mut left = vec![self.cgroup().join(group)];
        while let Some(at) = left.pop() {
            let text = fs::read_to_string(at.join("cgroup.procs")).unwrap_or_default();
            pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
            let entries = fs::read_dir(&at).into_iter().flatten().flatten();
            left.extend(entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
        }
        pids.sort_unstable();
        pids
    }

    /// The main process of a resource server (`database`, `redis`) of the workspace made as number `index`.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn server(&self, index: u32, name: &str) -> i32 {
        let pids = self.pids_in(&format!("w{index}/runtime/resources/{name}"));
        // Not the lowest: numbers begin anew when the machine has given all of them.
        let is_main = |pid: &&i32| !pids.contains(&parent_of(**pid));
        *pids.iter().find(is_main).unwrap_or_else(|| panic!("no {name}"))
    }

    /// The machine loses power: nothing of the installation runs on, nobody has time to write anything down, and what
    /// lies in memory (the run directory, namespaces, control groups) is gone. The boot id is another one afterwards.
    ///
    /// # Panics
    /// When a process cannot be killed.
    pub fn cut_power(&self) {
        // First those that would react to the death of others.
        for part in ["keeper", "host"] {
            sigkill(self.part(part));
        }
        for supervisor in self.supervisors() {
            sigkill(supervisor);
        }
        for part in ["control", "postgres"] {
            sigkill(self.part(part));
        }
        let groups = self.cgroup();
        fs::write(groups.join("cgroup.kill"), "1").expect("kill every process");
        eventually("every process is gone", || self.pids_in("").is_empty().then_some(()));
        let run = Path::new("/run/envforge").join(self.id());
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let below = |at: &&str| Path::new(at).starts_with(&run);
        for at in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)).filter(below) {
            // One that went with the one above it is gone as wanted.
            let _ = umount2(at, MntFlags::MNT_DETACH);
        }
        fs::remove_dir_all(&run).expect("remove the run directory");
        remove_groups(&groups);
        let boot = fs::read_to_string(self.boot_id_file()).expect("boot id");
        let next = boot.replace(&boot[..1], if boot.starts_with('1') { "2" } else { "1" });
        fs::write(self.boot_id_file(), next).expect("write the boot id");
    }
}

fn remove_groups(at: &Path) {
    for entry in fs::read_dir(at).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    let _ = fs::remove_dir(at);
}

/// The readings that lie in a workspace's directory, by instance, in order.
///
/// # Panics
/// When a line is no reading.
#[must_use]
pub fn readings(workspace_dir: &Path) -> BTreeMap<String, Vec<Reading>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(workspace_dir.join("meter")).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|e| e.as_bytes() == b"jsonl") {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            let parsed = lines.map(|line| serde_json::from_str(line).expect("a reading")).collect();
            all.insert(path.file_stem().expect("a name").to_string_lossy().into_owned(), parsed);
        }
    }
    all
}

/// What readings prove, in seconds.
#[must_use]
pub fn proved_seconds(readings: &[Reading]) -> u64 {
    readings.windows(2).map(|pair| observed_between(&pair[0], &pair[1])).sum::<u64>() / 1000
}
