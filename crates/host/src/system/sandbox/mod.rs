//! Namespaces, mounts and network of one workspace.
//!
//! A sandbox is a set of pinned namespaces (net, mount, IPC, UTS) that exist only while something needs them.
//! Inside: `/workspace` is the workspace's `files`, `/run/envforge` its run directory's `in`, `/run/envforge-data`
//! its `data`; `/tmp` is the workspace's own and stays over sleep, `/run`, `/dev/shm` are private; `/proc` hides
//! other users' processes; the installation's home is covered; hostname is the slug.

mod helper;
pub(crate) mod hold;
pub mod make;
mod network;
pub mod parked;

use super::{
    Result, SystemError,
    accounts::{self, Accounts},
    cgroup::Cgroups,
    door, doors, enter, files, holder,
    installation::{Installation, Isolation},
    removal, share,
};
use envforge_api::{ids::WorkspaceId, names::Slug};
use helper::Helper;
pub use network::ensure_network;
pub(super) use network::loopback_up;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

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
/// The same for an ordinary user, whose rights over the others come from the namespace of users.
const HELD_NAMESPACES: [&str; 6] = ["user", "net", "pid", "ipc", "uts", "mnt"];

const fn names(isolation: Isolation) -> &'static [&'static str] {
    match isolation {
        Isolation::Full => &NAMESPACES,
        Isolation::UserNamespaces => &HELD_NAMESPACES,
    }
}

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
            pins: names(installation.isolation).iter().map(|name| run.join("ns").join(name)).collect(),
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

    /// Where the runtime supervisor is asked for connections into the workspace.
    #[must_use]
    pub fn dial_socket(&self) -> PathBuf {
        self.run.join("dial.sock")
    }

    /// Whether it has a network that this process can enter: an ordinary user's is entered by new processes only.
    #[must_use]
    pub fn has_network_of_its_own(&self) -> bool {
        !self.is_held() && self.is_pinned()
    }

    /// Has these names lead to the workspace's own loopback, beside its own name.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn name_hosts(&self, names: &BTreeSet<String>) -> Result<()> {
        let (path, text) = (self.run.join("etc").join("hosts"), hosts(&self.hostname, names));
        if fs::read_to_string(&path).is_ok_and(|known| known == text) {
            return Ok(());
        }
        // Inside, this very file is mounted: another one in its place would not be seen.
        fs::write(&path, text).map_err(|e| SystemError::new("name the dev hosts inside", e).on_disk(&path))
    }

    /// Whether a process of ours holds the namespaces, because an ordinary user cannot pin them.
    const fn is_held(&self) -> bool {
        self.cgroups.shell.doors.is_some()
    }

    /// Puts the calling process, which must have one thread, into the workspace's network. Programs that it starts may
    /// still enter the workspace.
    ///
    /// # Errors
    /// When the namespaces are gone.
    pub fn join_network(&self) -> Result<()> {
        let pins: &[PathBuf] = match (self.is_held(), rustix::process::geteuid().is_root()) {
            (true, _) => self.pins.get(..2).unwrap_or_default(),
            (false, true) => self.pins.get(..1).unwrap_or_default(),
            (false, false) => &[],
        };
        door::join(pins)?;
        if self.is_held() { door::hand_down(door::TO_ENTER) } else { Ok(()) }
    }

    /// Resolves when the namespaces have ended, and every process of the workspace with them. Pinned ones never do.
    pub async fn lost(&self) {
        let watched = match holder::read(&self.run).filter(|_| self.is_held()) {
            Some(holder) => doors::wait_for_end(holder.pid).await.is_ok(),
            None => self.is_held(),
        };
        if !watched {
            std::future::pending::<()>().await;
        }
    }

    /// Whether a process of the runtime, by its number inside, lives.
    #[must_use]
    pub fn lives(&self, pid: i32) -> bool {
        if !self.is_held() {
            return super::boot::process_started(pid).is_some();
        }
        let numbered = |on_host: &i32| {
            let status = fs::read_to_string(format!("/proc/{on_host}/status")).unwrap_or_default();
            let inside = status.lines().find_map(|line| line.strip_prefix("NSpid:")?.split_ascii_whitespace().last());
            inside.and_then(|text| text.parse().ok()) == Some(pid)
        };
        self.cgroups.runtime.pids().iter().any(numbered)
    }

    fn is_pinned(&self) -> bool {
        (!self.is_held() || holder::read(&self.run).is_some()) && self.pins.iter().all(|pin| is_namespace(pin))
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
    files::ensure_dir(&sandbox.dir, 0o700)?;
    for own in ["logs", "meter", "runs", "state"] {
        files::ensure_dir(&sandbox.dir.join(own), 0o700)?;
    }
    for theirs in ["files", "tmp", "data"] {
        share::ensure_tree(&sandbox.dir.join(theirs), accounts.user.uid)?;
    }
    files::ensure_dir_for(&sandbox.files(), 0o700, &accounts.user)?;
    files::ensure_dir_for(&sandbox.dir.join("tmp"), 0o1777, &accounts.user)?;
    files::ensure_dir_for(&sandbox.dir.join("data"), 0o700, &accounts.resource)?;
    files::ensure_dir(&sandbox.run, 0o700)?;
    // Its user passes through, but cannot put anything in the place of the socket.
    let passing = accounts::Account { uid: 0, ..accounts.user };
    files::ensure_dir_for(&sandbox.run.join("in"), 0o750, &passing)?;
    Cgroups::ensure(installation, index)?;
    if !sandbox.is_pinned() {
        match installation.isolation {
            Isolation::Full => make_namespaces(installation, &sandbox).await?,
            Isolation::UserNamespaces => hold_namespaces(installation, &sandbox).await?,
        }
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
    ensure_private_mount(&installation.run)?;
    unpin(sandbox);
    write_etc(sandbox, &network::resolv_conf())?;
    let (gateway, address) = installation.addresses(sandbox.index);
    let network = network::inside(&gateway.to_string(), &address.to_string());
    let plan = plan(installation, sandbox, network)?;
    let mut helper = Helper::start("make", &plan)?;
    let pid = helper.pid;
    helper.expect(make::MADE).await?;
    network::connect(installation, sandbox.index, pid).await?;
    helper.say("go").await?;
    helper.expect(make::DONE).await?;
    // Pinned last: a pin that exists belongs to a sandbox that is whole.
    files::ensure_dir(&sandbox.run.join("ns"), 0o700)?;
    for (name, pin) in NAMESPACES.iter().zip(&sandbox.pins) {
        fs::write(pin, "").map_err(|e| SystemError::new(DOING, e))?;
        let from = format!("/proc/{pid}/ns/{name}");
        mount(Some(from.as_str()), pin, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|e| SystemError::new("keep the workspace's namespaces", e.into()))?;
    }
    helper.end().await
}

/// Starts the process that holds the namespaces, once for whoever asks at the same time.
async fn hold_namespaces(installation: &Installation, sandbox: &Sandbox) -> Result<()> {
    static ONCE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _alone = ONCE.lock().await;
    if sandbox.is_pinned() {
        return Ok(());
    }
    write_etc(sandbox, &network::resolv_conf_forwarded())?;
    let mut helper = Helper::start("hold", &plan(installation, sandbox, String::new())?)?;
    let said = helper.expect(make::MADE).await.map_err(|e| e.with_hint(hold::HINT))?;
    let mut numbers = said.split_ascii_whitespace().skip(1).map(str::parse::<i32>);
    let wrong = || SystemError::new(DOING, io::Error::other("the helper process named no process"));
    let pid = numbers.next().and_then(std::result::Result::ok).ok_or_else(wrong)?;
    holder::write(&sandbox.run, pid, numbers.next().and_then(std::result::Result::ok), &sandbox.pins)?;
    helper.say(hold::KEPT).await?;
    helper.end().await
}

const DOING: &str = "make the workspace's namespaces";

fn write_etc(sandbox: &Sandbox, resolv_conf: &str) -> Result<()> {
    let etc = sandbox.run.join("etc");
    files::ensure_dir(&etc, 0o755)?;
    files::write_whole(&etc.join("resolv.conf"), resolv_conf.as_bytes(), 0o644)?;
    files::write_whole(&etc.join("hosts"), hosts(&sandbox.hostname, &BTreeSet::new()).as_bytes(), 0o644)
}

/// `/etc/hosts` inside.
fn hosts(own: &Slug, dev: &BTreeSet<String>) -> String {
    let mut text = format!("127.0.0.1 localhost {own}\n::1 localhost ip6-localhost {own}\n");
    for name in dev {
        text.push_str(&format!("127.0.0.1 {name}\n"));
    }
    text
}

fn plan(installation: &Installation, sandbox: &Sandbox, network: String) -> Result<String> {
    let plan = make::Plan {
        sandbox: sandbox.clone(),
        home: installation.home.clone(),
        run: installation.run.clone(),
        binary: enter::own_binary()?,
        network,
    };
    serde_json::to_string(&plan).map_err(|e| SystemError::new(DOING, io::Error::new(io::ErrorKind::InvalidData, e)))
}

/// A pin of a mount namespace needs a mount point that propagates nowhere. One alone: a second one on top of it, made by
/// whoever looked at the same moment, would hide what was pinned in the first.
fn ensure_private_mount(run: &Path) -> Result<()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
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
    let _ = holder::kill_now(&sandbox.run);
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

/// Ends what holds the namespaces of a workspace in which nothing is to run any more. Pinned ones hold no process.
///
/// # Errors
/// When it cannot be waited for.
pub async fn rest(sandbox: &Sandbox) -> Result<()> {
    holder::end(&sandbox.run).await
}

/// Kills everything and removes namespaces, groups, accounts, run and workspace directories. Irreversible.
///
/// # Errors
/// When a process cannot be killed or a file cannot be removed; calling again goes on.
pub async fn remove(installation: &Installation, sandbox: &Sandbox) -> Result<()> {
    sandbox.cgroups.remove().await?;
    holder::end(&sandbox.run).await?;
    unpin(sandbox);
    for dir in [&sandbox.run, &sandbox.dir] {
        let at = dir.clone();
        let cut = |_| SystemError::new("remove a directory", io::Error::other("cut short"));
        tokio::task::spawn_blocking(move || removal::remove(&at)).await.map_err(cut)??;
    }
    share::forget(sandbox.accounts.user.uid, &installation.home.join("workspaces"));
    // Last: a removal that goes on after a restart still knows whose things are left.
    accounts::remove(installation, sandbox.index)
}

/// Removes what the installation has on the machine beside its home: networks, namespaces, groups, accounts, run
/// directory, claims. Its processes are killed.
///
/// # Errors
/// When something cannot be removed; calling again goes on.
pub async fn wipe(installation: &Installation) -> Result<()> {
    if installation.isolation == Isolation::Full {
        let all = super::cgroup::ensure_own(installation, "", None)?;
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
        while umount2(&installation.run, MntFlags::MNT_DETACH).is_ok() {}
        accounts::remove_all(installation)?;
    } else if let Ok(entries) = fs::read_dir(&installation.run) {
        for entry in entries.flatten() {
            holder::end(&entry.path()).await?;
        }
    }
    // What people made may be deeper than the one who removes the home can walk.
    removal::remove(&installation.home.join("snapshots"))?;
    removal::remove(&installation.home.join("workspaces"))?;
    installation.release()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_directory_is_mounted_on_itself_once_however_many_ask_at_one_moment() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let run = fs::canonicalize(dir.path()).expect("its path");
        let all = std::sync::Barrier::new(8);
        std::thread::scope(|threads| {
            for _ in 0..8 {
                threads.spawn(|| {
                    all.wait();
                    ensure_private_mount(&run).expect("mounted");
                });
            }
        });
        let times = std::iter::from_fn(|| umount2(&run, MntFlags::MNT_DETACH).ok()).count();
        assert_eq!(times, 1);
    }
}
