//! The child that makes a workspace's namespaces: it unshares, mounts, names the host, waits until the host has put
//! one end of a veth pair into its network, sets that up, and ends. The namespaces live on by the host's pins.

use super::{BIN, DATA, RUN, Result, SOURCE, Sandbox, SystemError, WORKSPACE};
use crate::system::enter;
use nix::{
    libc,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use rustix::{
    fs::StatVfsMountFlags,
    mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree},
};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::{self, BufRead, Write},
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

/// Said on standard output when namespaces and mounts are there.
pub const MADE: &str = "made";
/// Said when the network is up.
pub const DONE: &str = "done";

/// What to make.
#[derive(Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The workspace.
    pub sandbox: Sandbox,
    /// Covered inside.
    pub home: PathBuf,
    /// Left out inside.
    pub run: PathBuf,
    /// `envforge` itself.
    pub binary: PathBuf,
    /// Commands for `ip -batch` inside.
    pub network: String,
}

/// `envforge enter make <plan-json>`.
pub(crate) fn main(plan: &str) -> ExitCode {
    let made = serde_json::from_str::<Plan>(plan)
        .map_err(|e| SystemError::new("read the plan", io::Error::new(io::ErrorKind::InvalidData, e)))
        .and_then(|plan| make(&plan));
    match made {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            enter::complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn say(word: &str) -> Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{word}").and_then(|()| out.flush()).map_err(|e| SystemError::new("answer the host", e))
}

fn make(plan: &Plan) -> Result<()> {
    let failed = |doing: &'static str| move |error: nix::errno::Errno| SystemError::new(doing, error.into());
    let all = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    unshare(all).map_err(failed("unshare namespaces"))?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none).map_err(failed("separate the mounts"))?;
    let trees = Trees::take(plan)?;
    let_go_of_run()?;
    mounts(plan, &trees)?;
    drop(trees);
    nix::unistd::sethostname(plan.sandbox.hostname.as_str()).map_err(failed("set the host name"))?;
    say(MADE)?;
    let mut go = String::new();
    io::stdin().lock().read_line(&mut go).map_err(|e| SystemError::new("hear the host", e))?;
    if go.trim() != "go" {
        return Err(SystemError::new("hear the host", io::Error::other("it went away")));
    }
    network(&plan.network)?;
    say(DONE)?;
    // Held until the host has pinned the namespaces and closes the pipe.
    let _ = io::stdin().lock().read_line(&mut go);
    Ok(())
}

fn network(batch: &str) -> Result<()> {
    let doing = |e| SystemError::new("set up the network inside", e);
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|e| doing(e).with_hint("apt-get install iproute2"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(batch.as_bytes()).map_err(doing)?;
    }
    let ended = child.wait().map_err(doing)?;
    // Inside its own network a workspace may use every port, as on a machine of its own.
    let _ = fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    if ended.success() { Ok(()) } else { Err(doing(io::Error::other(format!("ip: {ended}")))) }
}

/// A detached copy of a mount, to be attached after its old place was covered.
pub(crate) fn detached(path: &Path) -> Result<OwnedFd> {
    clone(path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
}

/// The same with everything that is mounted below it.
pub(super) fn whole(path: &Path) -> Result<OwnedFd> {
    let one = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    clone(path, one | OpenTreeFlags::AT_RECURSIVE)
}

fn clone(path: &Path, flags: OpenTreeFlags) -> Result<OwnedFd> {
    open_tree(rustix::fs::CWD, path, flags)
        .map_err(|e| SystemError::new(format!("take the mount of {}", path.display()), e.into()))
}

/// Attaches a tree of the host for the calling process and its children alone: no other process of the workspace
/// sees it, and with the last of them it is gone.
pub(crate) fn show_source(tree: &OwnedFd) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|e| SystemError::new("unshare the mounts", e.into()))?;
    dir(SOURCE, 0o755)?;
    attach(tree, Path::new(SOURCE), MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_RDONLY)
}

/// Attaches a detached mount as it is.
pub(super) fn place(tree: &OwnedFd, at: &Path) -> Result<()> {
    move_mount(tree, "", rustix::fs::CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|e| SystemError::new(format!("mount {}", at.display()), e.into()))
}

pub(in crate::system) fn attach(tree: &OwnedFd, at: &Path, flags: MsFlags) -> Result<()> {
    place(tree, at)?;
    let none = None::<&str>;
    mount(none, at, none, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags | kept(at), none)
        .map_err(|e| SystemError::new(format!("mount {}", at.display()), e.into()))
}

/// What a mount forbids already and an ordinary user may not allow.
fn kept(at: &Path) -> MsFlags {
    let mut flags = MsFlags::empty();
    if !rustix::process::geteuid().is_root()
        && let Ok(about) = rustix::fs::statvfs(at)
    {
        flags.set(MsFlags::MS_NOEXEC, about.f_flag.contains(StatVfsMountFlags::NOEXEC));
        flags.set(MsFlags::MS_RDONLY, about.f_flag.contains(StatVfsMountFlags::RDONLY));
    }
    flags
}

pub(in crate::system) fn fresh(kind: &str, at: &str, flags: MsFlags, options: &str) -> Result<()> {
    mount(Some(kind), at, Some(kind), flags, Some(options))
        .map_err(|e| SystemError::new(format!("mount {at}"), e.into()))
}

fn dir(path: &str, mode: u32) -> Result<()> {
    fs::create_dir_all(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .map_err(|e| SystemError::new(format!("make {path}"), e))
}

/// Mounts of the host that a workspace sees at other places.
#[derive(Debug)]
pub(super) struct Trees {
    files: OwnedFd,
    tmp: OwnedFd,
    var_tmp: OwnedFd,
    data: OwnedFd,
    inside: OwnedFd,
    binary: OwnedFd,
    resolv: OwnedFd,
    hosts: OwnedFd,
}

impl Trees {
    /// Takes them while they can still be seen.
    pub(super) fn take(plan: &Plan) -> Result<Self> {
        let sandbox = &plan.sandbox;
        Ok(Self {
            files: detached(&sandbox.files())?,
            tmp: detached(&sandbox.dir.join("tmp"))?,
            var_tmp: detached(&sandbox.dir.join("tmp"))?,
            data: detached(&sandbox.dir.join("data"))?,
            inside: detached(&sandbox.run.join("in"))?,
            binary: detached(&plan.binary)?,
            resolv: detached(&sandbox.run.join("etc/resolv.conf"))?,
            hosts: detached(&sandbox.run.join("etc/hosts"))?,
        })
    }
}

/// Terminals that programs of a workspace may have open at once: the machine has 4096, of which the kernel keeps 1024 for
/// itself and the host.
const TERMINALS: u32 = 256;

pub(super) fn mounts(plan: &Plan, trees: &Trees) -> Result<()> {
    let user = &plan.sandbox.accounts.user;
    read_only("/")?;
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    fresh("tmpfs", "/run", quiet, "mode=0755,size=64m")?;
    dir("/run/lock", 0o1777)?;
    dir("/run/user", 0o755)?;
    let of_user = format!("/run/user/{}", user.uid);
    dir(&of_user, 0o700)?;
    std::os::unix::fs::chown(&of_user, Some(user.uid), Some(user.gid))
        .map_err(|e| SystemError::new("give the runtime directory away", e))?;
    for at in [RUN, DATA, BIN] {
        dir(at, 0o755)?;
    }
    let bin = format!("{BIN}/envforge");
    fs::write(&bin, "").map_err(|e| SystemError::new("make a mount point", e))?;
    attach(&trees.inside, Path::new(RUN), quiet)?;
    attach(&trees.data, Path::new(DATA), quiet)?;
    attach(&trees.binary, Path::new(&bin), quiet | MsFlags::MS_RDONLY)?;
    attach(&trees.files, Path::new(WORKSPACE), quiet)?;
    resolver_target()?;
    attach(&trees.resolv, Path::new("/etc/resolv.conf"), quiet | MsFlags::MS_RDONLY)?;
    attach(&trees.hosts, Path::new("/etc/hosts"), quiet | MsFlags::MS_RDONLY)?;
    // The run directory of an ordinary user may lie anywhere.
    for covered in [&plan.home, &plan.run] {
        if covered.exists() {
            fresh("tmpfs", &covered.to_string_lossy(), quiet | MsFlags::MS_RDONLY, "mode=0711,size=4k")?;
        }
    }
    attach(&trees.tmp, Path::new("/tmp"), quiet)?;
    attach(&trees.var_tmp, Path::new("/var/tmp"), quiet)?;
    fresh("tmpfs", "/dev/shm", quiet, "mode=1777")?;
    if Path::new("/dev/mqueue").is_dir() {
        fresh("mqueue", "/dev/mqueue", quiet | MsFlags::MS_NOEXEC, "")?;
    }
    let system = quiet | MsFlags::MS_NOEXEC;
    // Devices are what this one is for: terminals that programs inside open, so many that a machine's stay for others.
    let terminals = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    fresh("devpts", "/dev/pts", terminals, &format!("newinstance,ptmxmode=0666,mode=0620,max={TERMINALS}"))?;
    fresh("proc", "/proc", system, "hidepid=2")?;
    // In a container the host's own /sys may be all there is; it is the host's then, read by its permissions.
    let _ = fresh("sysfs", "/sys", system | MsFlags::MS_RDONLY, "");
    Ok(())
}

/// Pins of other workspaces, of this and of other installations, must not be held by this one: what they keep would
/// live on after its removal, as long as this sandbox does.
fn let_go_of_run() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|e| SystemError::new("read the mounts", e))?;
    for at in mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|at| at.starts_with("/run/")) {
        // One that went with the mount it was on is gone already.
        let _ = umount2(at, MntFlags::MNT_DETACH);
    }
    Ok(())
}

/// What the machine lets everyone write would be a place for workspaces to meet, and a way to leave something on the
/// host. Devices can be written all the same; what is mounted later is not touched.
fn read_only(at: &str) -> Result<()> {
    #[repr(C)]
    struct Attributes {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    let attributes = Attributes { set: libc::MOUNT_ATTR_RDONLY, clear: 0, propagation: 0, user_namespace: 0 };
    let doing = |e| SystemError::new("make the machine's files read-only inside", e);
    let path = std::ffi::CString::new(at).map_err(|e| doing(e.into()))?;
    #[allow(unsafe_code)]
    // SAFETY: path and attributes live through the call, and the size given is theirs.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(doing(io::Error::last_os_error())) }
}

/// Where `/etc/resolv.conf` points to may have been covered with `/run`: the mount point is made again.
fn resolver_target() -> Result<()> {
    let path = Path::new("/etc/resolv.conf");
    let Ok(target) = fs::read_link(path) else { return Ok(()) };
    let target = Path::new("/etc").join(target);
    let clean = target.to_string_lossy().replace("/etc/../", "/");
    let target = Path::new(&clean);
    if target.starts_with("/run") && !target.exists() {
        let make = target.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(target, ""));
        make.map_err(|e| SystemError::new("make a mount point for resolv.conf", e))?;
    }
    Ok(())
}
