//! Control groups of one workspace: `<base>/w<index>/{shell,runtime/{services/<name>,resources/<kind>,runs/<id>}}`.
//!
//! Membership, kill, freeze and CPU time come from cgroup v2; limits come from v2 or v1, whichever has the
//! controller. An ordinary user has none: groups are kept by [`super::doors`] then, without limits.

mod group;

use super::{
    Result, SystemError,
    doors::Doors,
    installation::{Installation, Isolation},
};
use group::remove_tree;
pub use group::{Group, Limits};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::LazyLock,
};

/// What a workspace's shell layer may use whatever its size: it is never metered, so it is bounded. Someone waits for
/// each key typed there, so it goes before the work of services.
pub const SHELL_LIMITS: Limits = Limits { cpu_millis: 2000, memory_bytes: 4 << 30, pids: 2048, cpu_weight: 1000 };

/// The groups of one workspace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroups {
    /// tmux, shells, editors, agents, shell-layer steps.
    pub shell: Group,
    /// Parent of everything metered.
    pub runtime: Group,
}

/// Where the machine mounts its hierarchies.
#[derive(Debug, Default)]
struct Mounts {
    v2: Option<PathBuf>,
    /// Mount points of the v1 controllers cpu, memory and pids.
    v1: Vec<PathBuf>,
}

const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

static MOUNTS: LazyLock<Mounts> = LazyLock::new(|| {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found = Mounts::default();
    for line in text.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(at) = left.split(' ').nth(4).map(PathBuf::from) else { continue };
        let mut right = right.split(' ');
        match (right.next(), right.nth(1)) {
            (Some("cgroup2"), _) if found.v2.is_none() => found.v2 = Some(at),
            (Some("cgroup"), Some(options))
                if options.split(',').any(|o| CONTROLLERS.contains(&o)) && !found.v1.contains(&at) =>
            {
                found.v1.push(at);
            }
            (_, _) => {}
        }
    }
    found
});

/// Where version 2 is mounted.
pub(super) fn v2_mount() -> Option<&'static Path> {
    MOUNTS.v2.as_deref()
}

/// Whether CPU and memory limits can be set on this machine.
#[must_use]
pub fn limits_available() -> bool {
    let in_v2 = MOUNTS.v2.as_ref().and_then(|at| fs::read_to_string(at.join("cgroup.controllers")).ok());
    let in_v2 = in_v2.is_some_and(|text| text.split_ascii_whitespace().any(|c| c == "memory"));
    rustix::process::geteuid().is_root() && (in_v2 || MOUNTS.v1.iter().any(|at| at.ends_with("memory")))
}

fn base_name(installation: &Installation) -> String {
    format!("envforge-{}", installation.id)
}

fn make(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| SystemError::new("make a control group", e))
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    fs::write(path, text)
}

/// A group of the installation's own, outside every workspace (such as the control plane's PostgreSQL). `limits` are for
/// all that is in it and below, as far as the machine can limit.
///
/// # Errors
/// When it cannot be made.
pub fn ensure_own(installation: &Installation, name: &str, limits: Option<Limits>) -> Result<Group> {
    let (Some(v2), Isolation::Full) = (&MOUNTS.v2, installation.isolation) else { return Ok(Group::default()) };
    let base = PathBuf::from(base_name(installation));
    let limited = if limits.is_some() { MOUNTS.v1.as_slice() } else { &[] };
    let path = |at: &PathBuf| at.join(&base).join(name);
    let group = Group { v2: Some(path(v2)), v1: limited.iter().map(path).collect(), doors: None };
    group.ensure()?;
    if let Some(limits) = limits {
        enable_controllers(v2, &v2.join(&base));
        // In a container a limit may be refused: then it goes without, as everything does where nothing can be limited.
        let _ = group.limit(limits);
    }
    Ok(group)
}

/// Removes every group of the installation; no process may be left in them.
///
/// # Errors
/// When one is.
pub fn remove_all(installation: &Installation) -> Result<()> {
    let name = base_name(installation);
    MOUNTS.v2.iter().chain(&MOUNTS.v1).try_for_each(|at| remove_tree(&at.join(&name)))
}

impl Cgroups {
    /// Where the groups of workspace `index` are, whether they exist or not.
    #[must_use]
    pub fn of(installation: &Installation, index: u32) -> Self {
        if installation.isolation != Isolation::Full {
            let run = installation.workspace_run(index);
            let group = |name: &str, orphans_of| {
                let doors = Doors { dir: run.join("groups").join(name), orphans_of };
                Group { doors: Some(doors), ..Group::default() }
            };
            return Self { shell: group("shell", None), runtime: group("runtime", Some(run.clone())) };
        }
        let base = PathBuf::from(base_name(installation)).join(format!("w{index}"));
        let group = |name: &str| Group {
            v2: MOUNTS.v2.as_ref().map(|at| at.join(&base).join(name)),
            v1: MOUNTS.v1.iter().map(|at| at.join(&base).join(name)).collect(),
            doors: None,
        };
        Self { shell: group("shell"), runtime: group("runtime") }
    }

    /// Makes both groups and sets the shell's fixed limits.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn ensure(installation: &Installation, index: u32) -> Result<Self> {
        let groups = Self::of(installation, index);
        for group in [&groups.shell, &groups.runtime] {
            group.ensure()?;
        }
        if let (Some(mount), Some(shell)) = (&MOUNTS.v2, &groups.shell.v2) {
            enable_controllers(mount, shell.parent().unwrap_or(shell));
        }
        groups.shell.limit(SHELL_LIMITS)?;
        Ok(groups)
    }

    /// A group below `runtime`, made if missing: `services/web`, `resources/database`, `runs/cmd_…`.
    /// Limits are those of `runtime`. One without processes is made anew: since Linux 6.14 a group that was killed once
    /// kills whatever is made in it later.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn runtime_child(&self, path: &str) -> Result<Group> {
        self.runtime.child(path)
    }

    /// A group below `shell`, for what has to be ended as a whole: `setup/web`, `runs/cmd_…`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn shell_child(&self, path: &str) -> Result<Group> {
        self.shell.child(path)
    }

    /// Removes all groups of the workspace; processes in them are killed first.
    ///
    /// # Errors
    /// When a process cannot be killed.
    pub async fn remove(&self) -> Result<()> {
        for group in [&self.runtime, &self.shell] {
            group.kill()?;
            group.wait_empty().await?;
            group.remove()?;
        }
        for at in self.shell.v2.iter().chain(&self.shell.v1) {
            if let Some(parent) = at.parent() {
                let _ = fs::remove_dir(parent);
            }
        }
        Ok(())
    }
}

/// Hands the controllers that v2 has down to the children of every group from `mount` to `last`.
fn enable_controllers(mount: &Path, last: &Path) {
    let available = fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
    let wanted: Vec<String> =
        available.split_ascii_whitespace().filter(|c| CONTROLLERS.contains(c)).map(|c| format!("+{c}")).collect();
    if wanted.is_empty() {
        return;
    }
    let mut chain: Vec<&Path> = last.ancestors().take_while(|at| at.starts_with(mount)).collect();
    chain.reverse();
    for at in chain {
        // A parent may be managed by someone else (a container); limits are then left out, which `doctor` shows.
        let _ = write(&at.join("cgroup.subtree_control"), &wanted.join(" "));
    }
}
