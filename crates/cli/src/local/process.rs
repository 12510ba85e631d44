//! A process of a part: one the keeper started, or one that an earlier keeper left running and this one adopted.

use super::state::Named;
use envforge_api::problem::Problem;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use std::{
    io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    path::Path,
    process::ExitStatus,
    time::Duration,
};
use tokio::{
    io::unix::AsyncFd,
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

/// A running process that can be waited for and signalled without ever hitting another one.
#[derive(Debug)]
pub(super) struct Process {
    name: Named,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Child(Box<Child>),
    Adopted(AsyncFd<OwnedFd>),
}

impl Process {
    /// Starts a command.
    pub(super) fn start(command: &mut Command) -> io::Result<Self> {
        let child = command.spawn()?;
        let pid = child.id().ok_or(io::ErrorKind::NotFound)?.cast_signed();
        // It may have ended already; then nobody will ask for its start time.
        let name = Named::of(pid).unwrap_or(Named { pid, ticks: 0 });
        Ok(Self { name, kind: Kind::Child(Box::new(child)) })
    }

    /// Takes over a process that is not a child; `None` if it is gone.
    pub(super) fn adopt(name: Named) -> Option<Self> {
        let fd = pidfd_open(Pid::from_raw(name.pid)?, PidfdFlags::empty()).ok()?;
        // Only now is it certain that the descriptor means the process that was written down.
        if !name.lives() {
            return None;
        }
        #[expect(deprecated, reason = "its successor is unsafe; an OwnedFd gives the same descriptor until dropped")]
        let fd = AsyncFd::with_interest(fd, tokio::io::Interest::READABLE).ok()?;
        Some(Self { name, kind: Kind::Adopted(fd) })
    }

    /// Which process it is.
    pub(super) fn name(&self) -> Named {
        self.name
    }

    /// Waits for its end and says how it ended. Cancelling loses nothing.
    pub(super) async fn wait(&mut self) -> String {
        match &mut self.kind {
            Kind::Child(child) => match child.wait().await {
                Ok(status) => describe(status),
                Err(error) => format!("its end was lost: {error}"),
            },
            Kind::Adopted(fd) => match fd.readable().await {
                Ok(_) => "ended; an earlier keeper had started it, so its status is not known".to_owned(),
                Err(error) => format!("its end was lost: {error}"),
            },
        }
    }

    /// Sends a signal; a process that has ended gets none.
    ///
    /// # Errors
    /// When the caller may not signal it.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        let sent = match &self.kind {
            Kind::Child(child) => match child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
                Some(pid) => kill_process(pid, signal),
                None => Ok(()),
            },
            Kind::Adopted(fd) => pidfd_send_signal(fd.get_ref(), signal),
        };
        match sent {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks it to end with `signal`, kills it after `grace`, and waits until it is gone.
    pub(super) async fn end(&mut self, signal: Signal, grace: Duration) -> String {
        for (signal, patience) in [(signal, grace), (Signal::KILL, Duration::from_secs(10))] {
            if let Err(error) = self.signal(signal) {
                return format!("could not be signalled: {error}");
            }
            if let Ok(how) = timeout(patience, self.wait()).await {
                return how;
            }
        }
        "could not be killed".to_owned()
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// Kills every process whose working directory is `dir` and waits until none is left (at most 10 seconds).
///
/// PostgreSQL's processes work in its data directory, each in a session of its own, so neither parenthood nor a
/// process group finds them after the postmaster was killed; this does.
///
/// # Errors
/// When some live on.
pub(super) async fn kill_all_working_in(dir: &Path) -> Result<(), Problem> {
    let Ok(dir) = dir.canonicalize() else { return Ok(()) };
    let started = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        let left = working_in(&dir);
        if left.is_empty() {
            return Ok(());
        }
        if started.elapsed() > Duration::from_secs(10) {
            return Err(Problem::unavailable(
                format!("{} processes of an earlier PostgreSQL cannot be ended", left.len()),
                "a disk that does not answer is the usual cause; try again when it does",
            ));
        }
        for name in left {
            if let Some(pid) = Pid::from_raw(name.pid)
                && name.lives()
            {
                // Gone meanwhile is what is wanted; anything else shows in the next round.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

fn working_in(dir: &Path) -> Vec<Named> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == dir))
        .filter_map(|entry| Named::of(entry.file_name().to_str()?.parse().ok()?))
        .collect()
}
