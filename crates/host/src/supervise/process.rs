//! Processes of a runtime: started through `envforge enter`, watched, stopped by group.

use crate::system::{SystemError, cgroup::Group, enter::Entry};
use envforge_api::secret::Secret;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{collections::BTreeMap, process::Stdio, time::Duration};
use tokio::{process::Child, time::timeout};

/// The environment as exec wants it. The values leave for their one destination here.
#[must_use]
pub fn exposed(environment: &BTreeMap<String, Secret>) -> BTreeMap<String, String> {
    environment.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())).collect()
}

/// Starts a command with both outputs piped.
///
/// # Errors
/// When it cannot be started at all (no memory, no processes left).
pub fn spawn(entry: &Entry, argv: &[String], environment: &BTreeMap<String, String>) -> Result<Child, SystemError> {
    let mut command = entry.command(argv, environment)?;
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|e| {
        SystemError::new("start a process", e).with_hint("is the workspace at its limit of processes or memory?")
    })?;
    // From here on the group is never empty while the process lives.
    if let Some(pid) = child.id() {
        entry.group.join(pid);
    }
    Ok(child)
}

/// `/bin/sh -c command`.
#[must_use]
pub fn shell(command: &str) -> Vec<String> {
    vec!["/bin/sh".into(), "-c".into(), command.into()]
}

/// Waits for a command whose output is being copied. What counts is the end of the command itself: a daemon that it
/// leaves behind may keep its pipes open, and is given a moment only.
pub async fn wait_copied(
    child: &mut Child,
    copied: impl Future<Output = ()>,
) -> std::io::Result<std::process::ExitStatus> {
    const MOMENT: Duration = Duration::from_millis(200);
    tokio::pin!(copied);
    tokio::select! {
        status = child.wait() => {
            let _ = timeout(MOMENT, &mut copied).await;
            status
        }
        () = &mut copied => child.wait().await,
    }
}

/// Sends a signal to every process of a group.
pub fn signal_all(group: &Group, signal: Signal) {
    for pid in group.pids() {
        // One that ended in the meantime is as wanted.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Stops everything in a group: SIGTERM, `grace`, then SIGKILL for what is left. Returns when nothing is.
pub async fn stop(group: &Group, grace: Duration) {
    if group.is_empty() {
        return;
    }
    signal_all(group, Signal::SIGTERM);
    if timeout(grace, group.wait_empty()).await.is_err() {
        end(group).await;
    }
}

/// Kills everything in a group at once and waits until it is gone.
pub async fn end(group: &Group) {
    // A group that cannot be killed (already gone) is waited for all the same; the kernel ends what it was told to.
    let _ = group.kill();
    let _ = group.wait_empty().await;
}

/// How a process ended, in the way shells count: status, or 128 + signal.
#[must_use]
pub fn exit_code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// The same in words.
#[must_use]
pub fn ended_how(status: std::process::ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(9)) => "was killed (signal 9): out of memory, or by hand".into(),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".into(),
    }
}
