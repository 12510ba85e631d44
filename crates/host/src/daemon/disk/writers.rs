//! Processes of a shell that go on writing to a disk on which there is no room left: stopped as Ctrl-Z would stop them, and
//! let go on when there is. Everything else of the shell goes on, so that its user can make room.
//!
//! Who was stopped is written down first, in the run directory (which ends with the boot, as processes do): a daemon that
//! is killed leaves nobody stopped for good.

use crate::system::{Result, boot, files, sandbox::Sandbox};
use envforge_api::time::BootMillis;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{collections::BTreeMap, fs, path::PathBuf};

/// Writing less than this between two looks stops nobody: it may be what makes room.
const LITTLE: u64 = 256 << 10;

/// A process, for good.
type Process = (i32, BootMillis);

/// Those of one workspace.
#[derive(Debug, Default)]
pub(super) struct Writers {
    written: BTreeMap<Process, u64>,
    stopped: Vec<Process>,
}

fn noted(sandbox: &Sandbox) -> PathBuf {
    sandbox.run.join("stopped.json")
}

impl Writers {
    /// Stops those that wrote since the look before.
    ///
    /// # Errors
    /// When they cannot be written down.
    pub(super) fn stop(&mut self, sandbox: &Sandbox) -> Result<()> {
        let mut now = BTreeMap::new();
        let mut found = Vec::new();
        for pid in sandbox.cgroups.shell.pids() {
            let (Some(started), Some(octets)) = (boot::process_started(pid), written(pid)) else { continue };
            let process = (pid, started);
            let before = self.written.get(&process).copied().unwrap_or(octets);
            if octets.saturating_sub(before) > LITTLE && !self.stopped.contains(&process) {
                found.push(process);
            }
            now.insert(process, octets);
        }
        self.written = now;
        if found.is_empty() {
            return Ok(());
        }
        self.stopped.extend(&found);
        let bytes = serde_json::to_vec(&self.stopped).unwrap_or_default();
        files::write_whole(&noted(sandbox), &bytes, 0o600)?;
        for (pid, _) in found {
            // One that ended in the meantime writes nothing more.
            let _ = kill(Pid::from_raw(pid), Signal::SIGSTOP);
        }
        Ok(())
    }
}

/// Has those of a workspace go on that were stopped.
pub(super) fn go_on(sandbox: &Sandbox) {
    let Ok(bytes) = fs::read(noted(sandbox)) else { return };
    let stopped: Vec<Process> = serde_json::from_slice(&bytes).unwrap_or_default();
    for (pid, started) in stopped {
        if boot::process_started(pid) == Some(started) {
            // One that ended in the meantime needs nothing.
            let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
        }
    }
    let _ = fs::remove_file(noted(sandbox));
}

/// Octets that a process, its threads and those of its children that ended had written to files of a disk.
fn written(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    Some(value("write_bytes:")?.saturating_sub(value("cancelled_write_bytes:").unwrap_or(0)))
}
