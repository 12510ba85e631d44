//! A place for a server of the host's own that opens more ports than it should: a network that has nothing but loopback,
//! and a `/tmp` that nobody else sees. Only who is in there can connect to it, and only its keeper is.
//!
//! The caller itself goes in, for good; it has one thread and has opened before whatever it needs of the outside. The
//! place lives as long as a process is in it: a keeper that takes another one's place joins the server in there.

use super::{
    Result, SystemError, door,
    sandbox::{self, hold, make},
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// Where the server finds its data.
pub const DATA: &str = "/tmp/data";
/// Where its program is, whatever directory it lies in outside.
pub const PROGRAM: &str = "/tmp/server";

/// Goes into a new place that shows these.
///
/// # Errors
/// When the machine refuses.
pub fn enter(data: &Path, program: &Path) -> Result<()> {
    let failed = |doing: &'static str| move |e: nix::errno::Errno| SystemError::new(doing, e.into());
    let io = |e| SystemError::new("make a place for the server", e);
    if !rustix::process::geteuid().is_root() {
        hold::own_users()?;
    }
    let all = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC;
    unshare(all).map_err(failed("unshare namespaces"))?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none).map_err(failed("separate the mounts"))?;
    let (data, program) = (make::detached(data)?, make::detached(program)?);
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    make::fresh("tmpfs", "/tmp", quiet, "mode=1777,size=64m")?;
    fs::create_dir(DATA).map_err(io)?;
    fs::write(PROGRAM, "").map_err(io)?;
    fs::set_permissions("/tmp", fs::Permissions::from_mode(0o1777)).map_err(io)?;
    make::attach(&data, Path::new(DATA), quiet | MsFlags::MS_NOEXEC)?;
    make::attach(&program, Path::new(PROGRAM), quiet | MsFlags::MS_RDONLY)?;
    sandbox::loopback_up()
}

/// Goes into the place that a process is in.
///
/// # Errors
/// When it is gone.
pub fn join(pid: i32) -> Result<()> {
    let of = |name: &str| PathBuf::from(format!("/proc/{pid}/ns/{name}"));
    door::join(&["user", "net", "ipc", "mnt"].map(of))
}
