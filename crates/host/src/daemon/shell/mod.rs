//! The shell layer: directories, checkouts, context, shell-layer set-up. Runs git as the workspace's user and opens
//! nothing in a user-writable tree except beneath a directory descriptor without following links.

mod context;
mod git;
mod manifests;
mod setup;

pub(super) use context::readme;
pub use context::write as write_context;
pub use git::{find_branch, inspect_work, tidy_caches};
pub use manifests::{facts, read as read_manifests, show_faces};
pub(in crate::daemon) use setup::shell_variables;
pub use setup::{run_setup, step_digest};

use crate::{
    daemon::{
        copy,
        hub::{Hub, Workspace},
    },
    supervise::{logs::Logs, redact::Redactor},
    system::{
        SystemError,
        files::Beneath,
        sandbox::{self, Sandbox},
    },
};
use envforge_api::{host::WorkspaceIntent, states::Trouble, stream::LogLevel};
use std::path::Path;

fn trouble(error: SystemError) -> Trouble {
    let hint =
        if error.hint.is_empty() { "`envforge doctor` says what the machine lacks".into() } else { error.hint.clone() };
    Trouble::new(error.to_string(), hint)
}

/// Whether the shell layer was whole once.
#[must_use]
pub fn was_prepared(hub: &Hub, workspace: &Workspace) -> bool {
    hub.installation.workspace_dir(&workspace.id).join("state").join("prepared").exists()
}

/// Makes what is missing of the shell layer: sandbox, checkouts on the branch from the host's cache, README,
/// `.envforge/context.json` and the page for agents, the tmux configuration. Tells `workspace.progress` what it
/// does. Idempotent; safe to be cut short anywhere. Does not run set-up steps.
///
/// Once it was whole, only the machine can make it fail: what its user put in the way they can mend in the shell alone,
/// so that it opens, and the log `system` says what was left out.
///
/// # Errors
/// What could not be made, and what to do.
pub async fn prepare(hub: &Hub, workspace: &Workspace, intent: &WorkspaceIntent) -> Result<Sandbox, Trouble> {
    // Before anything is made of it: what is there afterwards is whole.
    copy::restore::complete(hub, workspace).await?;
    copy::fork::begin(hub, workspace, intent).await?;
    let make = sandbox::ensure(&hub.installation, &workspace.id, workspace.index, &intent.slug);
    let clones = git::fetch_caches(hub, workspace, intent);
    // The repositories are fetched while users, groups and namespaces are made.
    let (made, fetched) = tokio::join!(make, clones);
    let sandbox = made.map_err(trouble)?;
    let filled = match fetched {
        Ok(()) => fill(hub, workspace, intent, &sandbox).await,
        Err(trouble) => Err(trouble),
    };
    match filled {
        Err(trouble) if was_prepared(hub, workspace) => {
            let line = format!("{} ({})", trouble.reason, trouble.hint);
            Logs::new(sandbox.dir.join("logs"), Redactor::default()).system(LogLevel::Warn, &line);
            Ok(sandbox)
        }
        filled => filled.map(|()| sandbox),
    }
}

/// Clones what a newer project has of repositories; what is there is left alone.
///
/// # Errors
/// What could not be had, and what to do.
pub async fn complete(
    hub: &Hub,
    workspace: &Workspace,
    intent: &WorkspaceIntent,
    sandbox: &Sandbox,
) -> Result<(), Trouble> {
    if git::missing(hub, workspace, intent).is_empty() {
        return Ok(());
    }
    git::fetch_caches(hub, workspace, intent).await?;
    git::clone_missing(hub, workspace, intent, sandbox).await
}

async fn fill(hub: &Hub, workspace: &Workspace, intent: &WorkspaceIntent, sandbox: &Sandbox) -> Result<(), Trouble> {
    git::clone_missing(hub, workspace, intent, sandbox).await?;
    copy::fork::enter_branch(sandbox, intent).await?;
    let files = Beneath::open(&sandbox.files()).map_err(trouble)?;
    let user = &sandbox.accounts.user;
    for dir in [".home", ".envforge", ".envforge/env"] {
        files.ensure_dir(Path::new(dir), 0o700, user).map_err(trouble)?;
    }
    context::write_once(&files, intent, user).map_err(trouble)?;
    let found = read_manifests(sandbox, &intent.spec).await;
    context::write(sandbox, intent, &found).map_err(trouble)
}
