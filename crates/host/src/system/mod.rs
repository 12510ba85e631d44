//! The only place that touches the kernel.

pub mod accounts;
pub mod boot;
pub mod cgroup;
pub mod copying;
pub mod disk;
mod door;
pub mod doors;
pub mod enter;
pub mod files;
mod filter;
mod holder;
mod inside;
pub mod installation;
pub mod pty;
pub mod removal;
pub mod sandbox;
pub mod secluded;
pub mod share;
pub mod spawn;
mod title;
pub mod usage;

use std::{fmt, io};

/// Memory of this machine in octets, if it says.
#[must_use]
pub fn machine_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// A system operation that failed: what was being done, on what, and what to do.
#[derive(Debug, thiserror::Error)]
pub struct SystemError {
    /// What was being done, such as `create the cgroup`.
    pub doing: String,
    /// What a person can do; empty if nothing.
    pub hint: String,
    /// The kernel's or program's answer.
    #[source]
    pub source: io::Error,
}

impl fmt::Display for SystemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.doing, self.source)
    }
}

impl SystemError {
    /// An error with what was being done.
    pub fn new(doing: impl Into<String>, source: io::Error) -> Self {
        Self { doing: doing.into(), hint: String::new(), source }
    }

    /// The same, with what to do about the disk that holds `path` if that is full.
    #[must_use]
    pub fn on_disk(mut self, path: &std::path::Path) -> Self {
        if disk::is_full(&self.source) {
            self.hint = disk::hint_for(&self.source.to_string(), path);
        }
        self
    }

    /// The same with a hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

/// Result of a system operation.
pub type Result<T, E = SystemError> = std::result::Result<T, E>;

/// Watches a descriptor for events of the kernel.
///
/// # Errors
/// When the kernel cannot watch it.
pub fn watch(
    fd: std::os::fd::OwnedFd,
    interest: tokio::io::Interest,
) -> io::Result<tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>> {
    #[allow(unsafe_code)]
    // SAFETY: an `OwnedFd` names the same open file until it is dropped, and the registration owns it.
    let watched = unsafe { tokio::io::unix::AsyncFd::register_with_interest(fd, interest) };
    watched.map_err(Into::into)
}
