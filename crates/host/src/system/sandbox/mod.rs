//! Namespaces, mounts and network of one workspace.
//!
//! A sandbox is a set of pinned namespaces (net, mount, IPC, UTS) that exist only while something needs them.
//! Inside: `/workspace` is the workspace's `files`, `/run/envforge` its run directory's `in`, `/run/envforge-data`
//! its `data`; `/tmp` is the workspace's own and stays over sleep, `/run`, `/dev/shm` are private; `/proc` hides
//! other users' processes; the installation's home is covered; hostname is the slug.

pub mod make;
mod network;

use super::{
    Result, SystemError,
    accounts::{self, Accounts},
    cgroup::Cgroups,
    enter, files,
    installation::{Installation, Isolation},
};
use envforge_api::{ids::WorkspaceId, names::Slug};
pub use network::ensure_network;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

/// Where a workspace's things are on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// Small number of the workspace on this host; never reused.
    pub index: u32,
    /// Hostname inside.
    pub hostname: Slug,
    /// `<home>/workspaces/<id>`.
    pub dir: PathBuf,
    /// `<run>/w<index>`.
    pub run: PathBuf,
    /// Accounts.
    pub accounts: Accounts,
    /// Control groups.
    pub cgroups: Cgroups,
    /// Pinned namespaces, as files to `setns` to in this order.
    pub pins: Vec<PathBuf>,
    /// The workspace's address on its side of the veth pair.
    pub address: String,
}

/// Path of the workspace inside its sandbox.
pub const WORKSPACE: &str = "/workspace";
/// Path of the resource data inside its sandbox.
pub const DATA: &str = "/run/envforge-data";
/// Path of the run directory inside its sandbox: `host.sock` (this host's API as this workspace).
pub const RUN: &str = "/run/envforge";
/// Directory inside its sandbox that holds `envforge` itself; the last one on PATH.
pub const BIN: &str = "/run/envforge-bin";
/// Where a process that was started with a source sees it.
pub const SOURCE: &str = "/run/envforge-source";
/// Home directory inside.
pub const HOME: &str = "/workspace/.home";

/// Names under `/proc/<pid>/ns`, in the order in which they are entered: mounts last, since the paths change with them.
const NAMESPACES: [&str; 4] = ["net", "ipc", "uts", "mnt"];

impl Sandbox {
    /// Where everything of workspace `index` is, whether it exists or not.
    #[must_use]
    pub fn of(installation: &Installation, workspace: &WorkspaceId, index: u32, hostname: &Slug) -> Self {
        let run = installation.workspace_run(index);
        Self {
            workspace: workspace.clone(),
            index,
            hostname: hostname.clone(),
            dir: installation.workspace_dir(workspace),
            accounts: accounts::of(installation, index),
            cgroups: Cgroups::of(installation, index),
            pins: NAMESPACES.iter().map(|name| run.join("ns").join(name)).collect(),
            address: installation.addresses(index).1.to_string(),
            run,
        }
    }

    /// The user's tree, seen inside as `/workspace`.
    #[must_use]
    pub fn files(&self) -> PathBuf {
        self.dir.join("files")
    }

    /// The socket of the runtime supervisor.
    #[must_use]
    pub fn supervisor_socket(&self) -> PathBuf {
        self.run.join("sup.sock")
    }

    fn is_pinned(&self) -> bool {
        self.pins.iter().all(|pin| is_namespace(pin))
    }
}

fn is_namespace(pin: &Path) -> bool {
    // NSFS_MAGIC: a file that is a namespace, not the empty file it is mounted on.
    rustix::fs::statfs(pin).is_ok_and(|about| about.f_type == 0x6e73_6673)
}

/// Makes directories, accounts, control groups and namespaces that are missing; returns how to enter. Idempotent.
/// The directories: `files` and `tmp` (user's), `data` (resource's, 0700), `logs`, `meter`, `runs`, `state` (root's, 0700).
///
/// # Errors
/// When the machine refuses; what was made is found again by the next call.
pub async fn ensure(
    installation: &Installation,
    workspace: &WorkspaceId,
    index: u32,
    hostname: &Slug,
) -> Result<Sandbox> {
    if index >= installation.capacity {
        let source =
            io::Error::other(format!("this installation carries at most {} workspaces", installation.capacity));
        return Err(SystemError::new("make the workspace", source));
    }
    let sandbox = Sandbox::of(installation, workspace, index, hostname);
    let accounts = accounts::ensure(installation, index)?;
    files::ensure_dir(&sandbox.dir, 0o711)?;
    for own in ["logs", "meter", "runs", "state"] {
        files::ensure_dir(&sandbox.dir.join(own), 0o700)?;
    }
    files::ensure_dir_for(&sandbox.files(), 0o700, &accounts.user)?;
    files::ensure_dir_for(&sandbox.dir.join("tmp"), 0o1777, &accounts.user)?;
    files::ensure_dir_for(&sandbox.dir.join("data"), 0o700, &accounts.resource)?;
    files::ensure_dir(&sandbox.run, 0o711)?;
    // Its user passes through, but cannot put anything in the place of the socket.
    let passing = accounts::Account { uid: 0, ..accounts.user };
    files::ensure_dir_for(&sandbox.run.join("in"), 0o750, &passing)?;
    Cgroups::ensure(installation, index)?;
    if installation.isolation == Isolation::Full && !sandbox.is_pinned() {
        make_namespaces(installation, &sandbox).await?;
    }
    Ok(sandbox)
}

/// What is there now, without making anything: used to adopt after a daemon restart.
#[must_use]
pub fn find(installation: &Installation, workspace: &WorkspaceId, index: u32, hostname: &Slug) -> Option<Sandbox> {
    let sandbox = Sandbox::of(installation, workspace, index, hostname);
    (sandbox.dir.is_dir() && sandbox.is_pinned()).then_some(sandbox)
}

async fn make_namespaces(installation: &Installation, sandbox: &Sandbox) -> Result<()> {
    const DOING: &str = "make the workspace's namespaces";
    ensure_private_mount(&installation.run)?;
    unpin(sandbox);
    let etc = sandbox.run.join("etc");
    files::ensure_dir(&etc, 0o755)?;
    files::write_whole(&etc.join("resolv.conf"), network::resolv_conf().as_bytes(), 0o644)?;
    let hosts = format!("127.0.0.1 localhost {0}\n::1 localhost ip6-localhost {0}\n", sandbox.hostname);
    files::write_whole(&etc.join("hosts"), hosts.as_bytes(), 0o644)?;
    let (gateway, address) = installation.addresses(sandbox.index);
    let plan = make::Plan {
        sandbox: sandbox.clone(),
        home: installation.home.clone(),
        run: installation.run.clone(),
        binary: enter::own_binary()?,
        network: network::inside(&gateway.to_string(), &address.to_string()),
    };
    let plan = serde_json::to_string(&plan)
        .map_err(|e| SystemError::new(DOING, io::Error::new(io::ErrorKind::InvalidData, e)))?;
    let mut child = tokio::process::Command::new(enter::own_binary()?)
        .args(["enter", "make", &plan])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| SystemError::new(DOING, e))?;
    let (Some(mut stdin), Some(stdout), Some(mut stderr), Some(pid)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take(), child.id())
    else {
        return Err(SystemError::new(DOING, io::Error::other("the helper process has no pipes")));
    };
    let mut lines = BufReader::new(stdout).lines();
    let made = lines.next_line().await;
    if !matches!(&made, Ok(Some(word)) if word == make::MADE) {
        let mut said = String::new();
        let _ = stderr.read_to_string(&mut said).await;
        return Err(SystemError::new(DOING, io::Error::other(said.trim().trim_start_matches("envforge: ").to_owned())));
    }
    network::connect(installation, sandbox.index, pid).await?;
    stdin.write_all(b"go\n").await.map_err(|e| SystemError::new(DOING, e))?;
    if !matches!(lines.next_line().await, Ok(Some(word)) if word == make::DONE) {
        let mut said = String::new();
        let _ = stderr.read_to_string(&mut said).await;
        return Err(SystemError::new(DOING, io::Error::other(said.trim().trim_start_matches("envforge: ").to_owned())));
    }
    // Pinned last: a pin that exists belongs to a sandbox that is whole.
    files::ensure_dir(&sandbox.run.join("ns"), 0o700)?;
    for (name, pin) in NAMESPACES.iter().zip(&sandbox.pins) {
        fs::write(pin, "").map_err(|e| SystemError::new(DOING, e))?;
        let from = format!("/proc/{pid}/ns/{name}");
        mount(Some(from.as_str()), pin, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|e| SystemError::new("keep the workspace's namespaces", e.into()))?;
    }
    drop(stdin);
    child.wait().await.map_err(|e| SystemError::new(DOING, e))?;
    Ok(())
}

/// A pin of a mount namespace needs a mount point that propagates nowhere.
fn ensure_private_mount(run: &Path) -> Result<()> {
    let doing = "keep the run directory to itself";
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|e| SystemError::new(doing, e))?;
    let wanted = run.to_string_lossy();
    if mounts.lines().any(|line| line.split(' ').nth(4) == Some(&wanted)) {
        return Ok(());
    }
    let none = None::<&str>;
    mount(Some(run), run, none, MsFlags::MS_BIND, none).map_err(|e| SystemError::new(doing, e.into()))?;
    mount(none, run, none, MsFlags::MS_PRIVATE, none).map_err(|e| SystemError::new(doing, e.into()))
}

fn unpin(sandbox: &Sandbox) {
    for pin in &sandbox.pins {
        // Not mounted (already unpinned, or made half) is what is wanted.
        let _ = umount2(pin, MntFlags::MNT_DETACH);
        let _ = fs::remove_file(pin);
    }
}

/// Unpins the namespaces when no process of the workspace is left; false while one is.
#[must_use]
pub fn release(sandbox: &Sandbox) -> bool {
    if !sandbox.cgroups.shell.is_empty() || !sandbox.cgroups.runtime.is_empty() {
        return false;
    }
    unpin(sandbox);
    true
}

/// Kills everything and removes namespaces, groups, accounts, run and workspace directories. Irreversible.
///
/// # Errors
/// When a process cannot be killed or a file cannot be removed; calling again goes on.
pub async fn remove(installation: &Installation, sandbox: &Sandbox) -> Result<()> {
    sandbox.cgroups.remove().await?;
    unpin(sandbox);
    for dir in [&sandbox.run, &sandbox.dir] {
        let at = dir.clone();
        let removed = tokio::task::spawn_blocking(move || fs::remove_dir_all(at)).await;
        match removed {
            Ok(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
                return Err(SystemError::new(format!("remove {}", dir.display()), error));
            }
            Ok(_) => {}
            Err(_) => return Err(SystemError::new("remove a directory", io::Error::other("cut short"))),
        }
    }
    accounts::remove(installation, sandbox.index)
}

/// Removes what the installation has on the machine beside its home: networks, namespaces, groups, accounts, run
/// directory, claims. Its processes are killed.
///
/// # Errors
/// When something cannot be removed; calling again goes on.
pub async fn wipe(installation: &Installation) -> Result<()> {
    if installation.isolation == Isolation::Full {
        let all = super::cgroup::ensure_own(installation, "")?;
        all.kill()?;
        all.wait_empty().await?;
        if let Ok(entries) = fs::read_dir(&installation.run) {
            for entry in entries.flatten() {
                for name in NAMESPACES {
                    let _ = umount2(&entry.path().join("ns").join(name), MntFlags::MNT_DETACH);
                }
            }
        }
        super::cgroup::remove_all(installation)?;
        network::remove(installation).await;
        let _ = umount2(&installation.run, MntFlags::MNT_DETACH);
        accounts::remove_all(installation)?;
    }
    installation.release()
}
