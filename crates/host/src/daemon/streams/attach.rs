//! Attach: the workspace's one tmux session on the caller's terminal. The session outlives every client and daemon.

use super::{
    channel::{Cut, In, Out, Said},
    pump,
    ready::{self, refused},
    routes::Api,
};
use crate::{
    daemon::hub::Workspace,
    supervise::process::exit_code,
    system::{
        SystemError,
        cgroup::Group,
        enter::{As, Entry},
        pty::Pty,
        spawn::{Process, Stream},
    },
};
use envforge_api::{
    problem::Problem,
    stream::{AttachStart, Control, channel},
};
use std::{collections::BTreeMap, os::fd::OwnedFd, time::Duration};
use tokio_util::sync::CancellationToken;

/// The session every terminal of a workspace shows.
const SESSION: &str = "main";
/// Written by the preparation of the shell layer.
const CONFIGURATION: &str = "/workspace/.envforge/tmux.conf";

pub(super) async fn attach(api: &Api, workspace: &Workspace, out: &Out, input: &mut In<'_>) -> Result<i32, Cut> {
    let Control::Attach(mut start) = input.start().await? else {
        return Err(Problem::invalid("this is for attaching", "is this an EnvForge client?").into());
    };
    let mut early = Vec::new();
    let group = workspace.sandbox.borrow().as_ref().map(|sandbox| sandbox.cgroups.shell.clone());
    if waits_for_identity(&start, || group.is_some_and(|group| session_lives(&group))) {
        early = identified(&mut start, input).await?;
    }
    let ready = ready::wait(api, workspace, out, Some(&start.term), &start.git_identity).await?;
    let user = &ready.sandbox.accounts.user;
    let argv = tmux(user.uid, &ready.directory, &start);
    let entry = Entry {
        terminal: true,
        ..Entry::new(&ready.sandbox, As::User, &ready.sandbox.cgroups.shell, ready.directory.as_str())
    };
    let (pty, theirs) = Pty::open(start.size, user).map_err(|e| refused(&e))?;
    // Only the client dies with this stream: tmux takes a client that is gone for one that detached.
    let mut client = spawn(&entry, &argv, &ready.environment, theirs).map_err(|e| refused(&e))?;
    out.control(&Control::Started).await?;
    let ended = CancellationToken::new();
    let shown = async {
        tokio::try_join!(pump::terminal(&pty, channel::STDOUT, out, &ended), async {
            let status = client.wait().await;
            ended.cancel();
            Ok(status.map_or(1, exit_code))
        })
    };
    let identify = |git_identity: &BTreeMap<String, String>| {
        let argv = identifying(user.uid, git_identity);
        let entry = Entry { terminal: false, ..entry.clone() };
        if !argv.is_empty()
            // It ends at once, and is reaped; without it the next attach tells the session.
            && let Err(error) = entry.start(&argv, &ready.environment, [Stream::Null, Stream::Null, Stream::Null], false)
        {
            tracing::warn!(workspace = %workspace.id, %error, "a terminal session is not told who attached");
        }
    };
    drop(pty.write_all(&early).await);
    tokio::select! {
        done = shown => Ok(done?.1),
        gone = typed(&pty, input, identify) => Err(gone),
    }
}

/// Whether the identity has to be there first: the first shell of a new session is born with it, and a command in a
/// window of its own would act as whoever attached before.
fn waits_for_identity(start: &AttachStart, lives: impl FnOnce() -> bool) -> bool {
    start.identity_follows && (!start.command.is_empty() || !lives())
}

/// How long a client may take to find out who is at its terminal.
const IDENTITY: Duration = Duration::from_secs(5);

/// Waits for the identity of a start; what was typed before it came.
async fn identified(start: &mut AttachStart, input: &mut In<'_>) -> Result<Vec<u8>, Cut> {
    let mut typed = Vec::new();
    let heard = async {
        loop {
            match input.next().await? {
                Said::Identity(identity) => {
                    start.git_identity = identity;
                    return Ok(());
                }
                Said::Stdin(bytes) => typed.extend_from_slice(&bytes),
                Said::Resize(size) => start.size = size,
                Said::Signal(_) => {}
            }
        }
    };
    // Without one, Git says so where it matters: at a commit.
    tokio::time::timeout(IDENTITY, heard).await.unwrap_or(Ok::<(), Cut>(()))?;
    Ok(typed)
}

/// Whether a tmux server of the workspace runs; it ends with its last session.
fn session_lives(group: &Group) -> bool {
    let is_server =
        |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c == "tmux: server\n");
    group.pids().iter().any(is_server)
}

/// Starts a program with a terminal as its three standard streams. It is killed when its handle is dropped.
pub(super) fn spawn(
    entry: &Entry,
    argv: &[String],
    environment: &BTreeMap<String, String>,
    terminal: OwnedFd,
) -> Result<Process, SystemError> {
    let doing = |e| SystemError::new("start a program on a terminal", e);
    let (second, third) = (terminal.try_clone().map_err(doing)?, terminal.try_clone().map_err(doing)?);
    let streams = [terminal, second, third].map(Stream::Given);
    entry
        .start(argv, environment, streams, true)
        .map_err(|e| e.with_hint("is the workspace at its limit of processes?"))
}

/// Types what the client types until it is gone.
async fn typed(pty: &Pty, input: &mut In<'_>, identify: impl Fn(&BTreeMap<String, String>)) -> Cut {
    loop {
        match input.next().await {
            // A terminal without programs takes nothing; its end is noticed where it is read.
            Ok(Said::Stdin(bytes)) => drop(pty.write_all(&bytes).await),
            Ok(Said::Resize(size)) => drop(pty.resize(size)),
            Ok(Said::Identity(identity)) => identify(&identity),
            Ok(Said::Signal(_)) => {}
            Err(cut) => return cut,
        }
    }
}

/// The tmux client's command line.
fn tmux(uid: u32, directory: &str, start: &AttachStart) -> Vec<String> {
    // tmux expands `#` in a start directory.
    let directory = directory.replace('#', "##");
    let mut argv = server(uid);
    argv.extend(["-f".into(), CONFIGURATION.into(), "-u".into()]);
    command(&mut argv, &["new-session", "-A", "-s", SESSION, "-c", &directory]);
    for (name, value) in ready::identity(&start.git_identity) {
        argv.push(";".into());
        command(&mut argv, &["set-environment", "-t", SESSION, &name, &value]);
    }
    if !start.command.is_empty() {
        argv.push(";".into());
        command(
            &mut argv,
            &["new-window", "-t", &format!("{SESSION}:"), "-c", &directory, "--", &quoted(&start.command)],
        );
    }
    argv
}

fn server(uid: u32) -> Vec<String> {
    vec!["tmux".into(), "-S".into(), format!("/run/user/{uid}/tmux")]
}

/// The command line that tells a session who attached; empty when nothing is to be told.
fn identifying(uid: u32, git_identity: &BTreeMap<String, String>) -> Vec<String> {
    let mut argv = Vec::new();
    for (name, value) in ready::identity(git_identity) {
        if argv.is_empty() {
            argv = server(uid);
        } else {
            argv.push(";".into());
        }
        command(&mut argv, &["set-environment", "-t", SESSION, &name, &value]);
    }
    argv
}

/// Adds one tmux command. A word that ends in `;` would end the command there.
fn command(argv: &mut Vec<String>, words: &[&str]) {
    argv.extend(words.iter().map(|word| match word.strip_suffix(';') {
        Some(head) => format!("{head}\\;"),
        None => (*word).to_owned(),
    }));
}

/// A program and its arguments as one line for a POSIX shell.
pub(super) fn quoted(argv: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+:,./-".contains(c);
    let words = argv.iter().map(|word| {
        if !word.is_empty() && word.chars().all(plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use envforge_api::stream::TerminalSize;

    fn start(command: &[&str], identity: &[(&str, &str)]) -> AttachStart {
        AttachStart {
            size: TerminalSize { columns: 80, rows: 24 },
            term: "xterm".into(),
            command: command.iter().map(|w| (*w).to_owned()).collect(),
            git_identity: identity.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
            identity_follows: false,
        }
    }

    #[test]
    fn only_a_shell_that_is_there_does_not_wait_for_who_attaches() {
        let follows = |command: &[&str]| AttachStart { identity_follows: true, ..start(command, &[]) };
        assert!(!waits_for_identity(&follows(&[]), || true));
        assert!(waits_for_identity(&follows(&[]), || false));
        assert!(waits_for_identity(&follows(&["git", "commit"]), || true));
        assert!(!waits_for_identity(&start(&["git", "commit"], &[]), || false), "it came with the start");
    }

    #[test]
    fn attaching_joins_the_one_session_and_a_command_gets_its_own_window() {
        let argv = tmux(7, "/workspace/app", &start(&[], &[]));
        let line =
            "tmux -S /run/user/7/tmux -f /workspace/.envforge/tmux.conf -u new-session -A -s main -c /workspace/app";
        assert_eq!(argv.join(" "), line);
        let argv = tmux(7, "/workspace", &start(&["sh", "-c", "echo 'a b';"], &[("GIT_AUTHOR_NAME", "A;")]));
        let of_session: Vec<_> = argv.split(|word| word == ";").map(|words| words.join(" ")).skip(1).collect();
        let window = r"new-window -t main: -c /workspace -- sh -c 'echo '\''a b'\'';'";
        assert_eq!(of_session, [r"set-environment -t main GIT_AUTHOR_NAME A\;", window]);
        let identity = start(&[], &[("GIT_AUTHOR_EMAIL", "a@b"), ("GIT_AUTHOR_NAME", "A")]).git_identity;
        let line = "tmux -S /run/user/7/tmux set-environment -t main GIT_AUTHOR_NAME A ; \
                    set-environment -t main GIT_AUTHOR_EMAIL a@b";
        assert_eq!(identifying(7, &identity).join(" "), line);
        assert_eq!(identifying(7, &BTreeMap::new()), [""; 0]);
    }

    #[test]
    fn a_shell_reads_the_quoted_words_as_they_were() {
        let words = ["printf", "%s\\n", "a b", "$HOME", "it's", "", ";", "~", "a=b", "\\", "`x`", "*"];
        let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        let output = std::process::Command::new("/bin/sh").arg("-c").arg(quoted(&words)).output().expect("a shell");
        let printed = String::from_utf8(output.stdout).expect("text");
        assert_eq!(printed.lines().collect::<Vec<_>>(), words[2..]);
    }
}
