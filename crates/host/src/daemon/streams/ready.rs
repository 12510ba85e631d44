//! What stands before a shell-layer command: the shell layer is ready, the sandbox exists, the environment is known.

use super::{
    channel::{Cut, Out},
    routes::Api,
};
use crate::{
    daemon::hub::Workspace,
    system::{
        SystemError, enter,
        sandbox::{self, Sandbox},
    },
};
use envforge_api::{
    host::{DesiredShell, WorkspaceIntent},
    problem::{Problem, ProblemKind},
    states::ShellState,
    stream::Control,
};
use std::{collections::BTreeMap, path::Path};

/// Everything a shell-layer command needs.
#[derive(Debug)]
pub(super) struct Ready {
    /// How to enter.
    pub(super) sandbox: Sandbox,
    /// Working directory inside.
    pub(super) directory: String,
    /// Its environment.
    pub(super) environment: BTreeMap<String, String>,
}

/// What a person is told when the machine refuses.
pub(super) fn refused(error: &SystemError) -> Problem {
    Problem::new(ProblemKind::Failed, error.to_string(), error.hint.clone())
}

fn deleted(intent: &WorkspaceIntent) -> Problem {
    Problem::new(
        ProblemKind::Conflict,
        format!("workspace {} is being deleted", intent.slug),
        "`envforge up` makes a new one on the same branch",
    )
}

/// Waits until the shell layer is ready, telling the client what happens meanwhile, and makes sure of the sandbox.
pub(super) async fn wait(
    api: &Api,
    workspace: &Workspace,
    out: &Out,
    term: Option<&str>,
    git_identity: &BTreeMap<String, String>,
) -> Result<Ready, Cut> {
    let (mut shell, mut progress) = (workspace.shell.subscribe(), workspace.progress.subscribe());
    let mut intents = workspace.intent.subscribe();
    let mut told = String::new();
    loop {
        let intent = intents.borrow_and_update().clone();
        if intent.shell == DesiredShell::Absent {
            return Err(deleted(&intent).into());
        }
        let now = shell.borrow_and_update().clone();
        match now.state {
            ShellState::Ready => break,
            ShellState::Failed => {
                let reason = now.reason.unwrap_or_else(|| "the workspace could not be prepared".into());
                return Err(Problem::new(ProblemKind::Failed, reason, now.hint.unwrap_or_default()).into());
            }
            ShellState::Absent | ShellState::Preparing => {}
        }
        let message = progress.borrow_and_update().clone();
        if !message.is_empty() && message != told {
            out.control(&Control::Progress { message: message.clone() }).await?;
            told = message;
        }
        tokio::select! {
            // The senders live as long as the workspace this function was given.
            _ = shell.changed() => {}
            _ = progress.changed() => {}
            _ = intents.changed() => {}
        }
    }
    if let Some(held) = api.hub.room.holds_shell(&workspace.id) {
        return Err(Problem::new(ProblemKind::Failed, held.reason, held.hint).into());
    }
    let intent = intents.borrow().clone();
    // Namespaces that nothing used were let go: made again here, found again if they are there.
    let sandbox = sandbox::ensure(&api.hub.installation, &workspace.id, workspace.index, &intent.slug)
        .await
        .map_err(|e| refused(&e))?;
    let mut environment = enter::base_environment(&sandbox.accounts.user);
    environment.insert("ENVFORGE_WORKSPACE".into(), intent.slug.to_string());
    environment.insert("ENVFORGE_PROJECT".into(), intent.project.to_string());
    environment.insert("ENVFORGE_ORG".into(), intent.organization.to_string());
    environment.extend(identity(git_identity));
    if let Some(term) = term {
        environment.insert("TERM".into(), known_terminal(term));
    }
    Ok(Ready { sandbox, directory: directory(&intent), environment })
}

/// The one checkout where there is one, else the directory of all.
fn directory(intent: &WorkspaceIntent) -> String {
    match intent.spec.checkouts().as_slice() {
        [only] => format!("{}/{}", sandbox::WORKSPACE, only.directory),
        _ => sandbox::WORKSPACE.into(),
    }
}

/// The variables of a git identity, and nothing else a caller may have sent.
pub(super) fn identity(given: &BTreeMap<String, String>) -> impl Iterator<Item = (String, String)> {
    const NAMES: [&str; 4] = ["GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"];
    NAMES.iter().filter_map(|name| {
        let value = given.get(*name)?;
        (!value.contains(|c: char| c.is_control())).then(|| ((*name).to_owned(), value.clone()))
    })
}

/// The caller's kind of terminal if this machine has a description of it, else the one that nearly all understand.
fn known_terminal(term: &str) -> String {
    const ANY: &str = "xterm-256color";
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '+' | '.');
    let first = term.chars().next().filter(char::is_ascii_alphanumeric);
    let known = first.filter(|_| term.len() <= 64 && term.chars().all(plain)).is_some_and(|first| {
        ["/etc/terminfo", "/lib/terminfo", "/usr/share/terminfo"]
            .iter()
            .any(|base| Path::new(base).join(first.to_string()).join(term).exists())
    });
    if known { term.to_owned() } else { ANY.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_git_identity_passes_and_no_line_feed_in_it() {
        let given = [("GIT_AUTHOR_NAME", "Ada"), ("GIT_AUTHOR_EMAIL", "a\nb"), ("LD_PRELOAD", "/x")];
        let given = given.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        assert_eq!(identity(&given).collect::<Vec<_>>(), [("GIT_AUTHOR_NAME".to_owned(), "Ada".to_owned())]);
    }

    #[test]
    fn a_terminal_nobody_knows_is_treated_as_an_ordinary_one() {
        assert_eq!(known_terminal("no-such-terminal"), "xterm-256color");
        assert_eq!(known_terminal("../../etc/passwd"), "xterm-256color");
    }
}
