//! Processes of a runtime: started through `envforge enter`, watched, stopped by group.

use crate::system::{
    SystemError,
    cgroup::Group,
    enter::Entry,
    spawn::{Process, Stream},
};
use envforge_api::secret::Secret;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{collections::BTreeMap, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::timeout,
};

/// The environment as exec wants it. The values leave for their one destination here.
#[must_use]
pub fn exposed(environment: &BTreeMap<String, Secret>) -> BTreeMap<String, String> {
    environment.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())).collect()
}

/// Starts a command with both outputs piped.
///
/// # Errors
/// When it cannot be started at all (no memory, no processes left).
pub fn spawn(entry: &Entry, argv: &[String], environment: &BTreeMap<String, String>) -> Result<Process, SystemError> {
    let streams = [Stream::Null, Stream::Piped, Stream::Piped];
    entry
        .start(argv, environment, streams, false)
        .map_err(|e| e.with_hint("is the workspace at its limit of processes or memory?"))
}

/// Runs a command to its end and keeps what it said. Killed when this is dropped.
///
/// # Errors
/// When it cannot be started, or its output cannot be read.
pub async fn output(
    entry: &Entry,
    argv: &[String],
    environment: &BTreeMap<String, String>,
    stdin: Stream,
) -> std::io::Result<std::process::Output> {
    async fn all(from: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        if let Some(mut from) = from {
            from.read_to_end(&mut bytes).await?;
        }
        Ok(bytes)
    }
    let streams = [stdin, Stream::Piped, Stream::Piped];
    let mut process = entry.start(argv, environment, streams, true).map_err(std::io::Error::other)?;
    let (out, err) = (process.stdout.take(), process.stderr.take());
    let (stdout, stderr) = tokio::try_join!(all(out), all(err))?;
    Ok(std::process::Output { status: process.wait().await?, stdout, stderr })
}

/// `/bin/sh -c command`. A command of plain words needs no shell, which would only start it and wait: it is started at
/// once, and signals and statuses are its own.
#[must_use]
pub fn shell(command: &str) -> Vec<String> {
    if is_program(command) {
        return command.split_ascii_whitespace().map(str::to_owned).collect();
    }
    vec!["/bin/sh".into(), "-c".into(), command.to_owned()]
}

/// Words of the shell itself: where there is a program of the same name, it may differ.
const WORDS: &str = "! . : [ alias bg break case cd chdir command continue do done echo elif else esac eval exec exit \
                     export false fc fg fi for getopts hash if in jobs kill local printf pwd read readonly return set \
                     shift test then times trap true type ulimit umask unalias unset until wait while";

/// Whether a command is a program with plain arguments, to which the shell adds nothing.
fn is_program(command: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || " _./:@%+,=-".contains(c);
    let first = command.split_ascii_whitespace().next().unwrap_or("=");
    command.chars().all(plain) && !first.contains('=') && !WORDS.split_ascii_whitespace().any(|word| word == first)
}

/// Waits for a command whose output is being copied. What counts is the end of the command itself: a daemon that it
/// leaves behind may keep its pipes open, and is given a moment only.
pub async fn wait_copied(
    child: &mut Process,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_command_is_started_as_it_is_and_any_other_by_a_shell() {
        for command in ["node server.js --port=3000", " ./bin/rails  server "] {
            assert_eq!(shell(command), command.split_whitespace().collect::<Vec<_>>(), "{command}");
        }
        for command in ["A=b node server.js", "cd app", "node a.js && node b.js", "node $FILE", "node *.js", "", " "] {
            assert_eq!(shell(command), ["/bin/sh", "-c", command], "{command}");
        }
    }
}
