//! Processes of a shell that go on writing to a disk on which there is no room left: stopped as Ctrl-Z would stop them, and
//! let go on when there is. Everything else of the shell goes on, so that its user can make room.
//!
//! Who was stopped is written down first, in the run directory (which ends with the boot, as processes do): a daemon that
//! is killed leaves nobody stopped for good.

use crate::system::{Result, boot, files, sandbox::Sandbox};
use envforge_api::time::BootMillis;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

/// Writing less than this between two looks stops nobody: it may be what makes room.
const LITTLE: u64 = 256 << 10;

/// A process, for good.
type Process = (i32, BootMillis);

/// Those of one workspace.
#[derive(Debug, Default)]
pub(super) struct Writers(BTreeMap<Process, u64>);

fn noted(sandbox: &Sandbox) -> PathBuf {
    sandbox.run.join("stopped.json")
}

fn read(sandbox: &Sandbox) -> BTreeSet<Process> {
    fs::read(noted(sandbox)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

impl Writers {
    /// Stops those that wrote since the look before, or all: where there is no control group that stands still as a whole.
    ///
    /// # Errors
    /// When they cannot be written down.
    pub(super) fn stop(&mut self, sandbox: &Sandbox, all: bool) -> Result<()> {
        let mut now = BTreeMap::new();
        let mut found = Vec::new();
        for pid in sandbox.cgroups.shell.pids() {
            let Some(started) = boot::process_started(pid) else { continue };
            let (process, octets) = ((pid, started), written(pid));
            let before = self.0.get(&process).copied().unwrap_or(octets);
            if all || octets.saturating_sub(before) > LITTLE {
                found.push(process);
            }
            now.insert(process, octets);
        }
        self.0 = now;
        let known = read(sandbox);
        if !found.iter().all(|process| known.contains(process)) {
            let next: BTreeSet<Process> = known.into_iter().chain(found.iter().copied()).collect();
            let bytes = serde_json::to_vec(&next).unwrap_or_default();
            files::write_whole(&noted(sandbox), &bytes, 0o600)?;
        }
        found.into_iter().for_each(|process| signal(process, Signal::STOP));
        Ok(())
    }
}

/// Has those of a workspace go on that were stopped.
pub(super) fn go_on(sandbox: &Sandbox) {
    read(sandbox).into_iter().for_each(|process| signal(process, Signal::CONT));
    let _ = fs::remove_file(noted(sandbox));
}

/// Signals a process and no other that has its number by now. One that ended needs none.
fn signal((number, started): Process, signal: Signal) {
    let Some(pid) = Pid::from_raw(number) else { return };
    if let Ok(process) = pidfd_open(pid, PidfdFlags::empty())
        && boot::process_started(number) == Some(started)
    {
        let _ = pidfd_send_signal(process, signal);
    }
}

/// Octets that the threads of a process had written to files of a disk: the process's own count has those of its
/// children, too, when it was told of their end.
fn written(pid: i32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of_thread = |text: String| {
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        Some(value("write_bytes:")?.saturating_sub(value("cancelled_write_bytes:").unwrap_or(0)))
    };
    threads.filter_map(|thread| of_thread(fs::read_to_string(thread.path().join("io")).ok()?)).sum()
}
