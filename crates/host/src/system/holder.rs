//! The process that holds a workspace's namespaces where nothing can be pinned: an ordinary user's.
//!
//! It is the init of the workspace's process namespace, so its end is the end of every process inside, by the kernel.
//! Here is what the host knows of it; what it does is in [`super::sandbox::hold`].

use super::{Result, SystemError, boot, doors, files};
use envforge_api::time::BootMillis;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

/// One that lives. Pid and start together name a process for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Holder {
    /// Its number on the host.
    pub(super) pid: i32,
    started: BootMillis,
    /// The process that carries traffic to the outside, if there is one.
    pub(super) egress: Option<i32>,
}

fn path(run: &Path) -> PathBuf {
    run.join("holder")
}

/// The holder of the workspace with this run directory, if it lives.
pub(super) fn read(run: &Path) -> Option<Holder> {
    let holder: Holder = serde_json::from_slice(&fs::read(path(run)).ok()?).ok()?;
    (boot::process_started(holder.pid) == Some(holder.started)).then_some(holder)
}

/// Writes a holder down, with the ways to its namespaces at `pins`.
pub(super) fn write(run: &Path, pid: i32, egress: Option<i32>, pins: &[PathBuf]) -> Result<()> {
    let doing = |e: io::Error| SystemError::new("keep the workspace's namespaces", e);
    let started = boot::process_started(pid)
        .ok_or_else(|| doing(io::Error::other("the process that holds them ended at once")))?;
    files::ensure_dir(&run.join("ns"), 0o700)?;
    for pin in pins {
        match fs::remove_file(pin) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(doing(error)),
            Ok(()) | Err(_) => {}
        }
        let name = pin.file_name().unwrap_or_default();
        symlink(Path::new("/proc").join(pid.to_string()).join("ns").join(name), pin).map_err(doing)?;
    }
    let bytes = serde_json::to_vec(&Holder { pid, started, egress }).map_err(|e| doing(e.into()))?;
    files::write_whole(&path(run), &bytes, 0o600)
}

/// Kills the holder, and with it every process of the workspace, without waiting. One that is gone is as wanted.
pub(super) fn kill_now(run: &Path) -> Option<i32> {
    let pid = read(run).map(|holder| holder.pid)?;
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    Some(pid)
}

/// The same, and waits until the last process is gone: an init is not gone before.
pub(super) async fn end(run: &Path) -> Result<()> {
    if let Some(pid) = kill_now(run) {
        doors::wait_for_end(pid).await.map_err(|e| SystemError::new("end the workspace's namespaces", e))?;
    }
    Ok(())
}
