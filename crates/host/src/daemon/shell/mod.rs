//! The shell layer: directories, checkouts, context, shell-layer set-up. Runs git as the workspace's user and opens
//! nothing in a user-writable tree except beneath a directory descriptor without following links.

mod context;
mod git;
mod manifests;
mod setup;

pub use context::write as write_context;
pub use git::{find_branch, inspect_work};
pub use manifests::{facts, read as read_manifests};
pub(crate) use setup::shell_variables;
pub use setup::{run_setup, step_digest};

use crate::{
    daemon::hub::{Hub, Workspace},
    system::{
        SystemError,
        files::Beneath,
        sandbox::{self, Sandbox},
    },
};
use envforge_api::{host::WorkspaceIntent, states::Trouble};
use std::path::Path;

fn trouble(error: SystemError) -> Trouble {
    let hint =
        if error.hint.is_empty() { "`envforge doctor` says what the machine lacks".into() } else { error.hint.clone() };
    Trouble::new(error.to_string(), hint)
}

/// Makes what is missing of the shell layer: sandbox, checkouts on the branch from the host's cache, README,
/// `.envforge/context.json` and the page for agents, the tmux configuration. Tells `workspace.progress` what it
/// does. Idempotent; safe to be cut short anywhere. Does not run set-up steps.
///
/// # Errors
/// What could not be made, and what to do.
pub async fn prepare(hub: &Hub, workspace: &Workspace, intent: &WorkspaceIntent) -> Result<Sandbox, Trouble> {
    let make = sandbox::ensure(&hub.installation, &workspace.id, workspace.index, &intent.slug);
    let clones = git::fetch_caches(hub, workspace, intent);
    // The repositories are fetched while users, groups and namespaces are made.
    let (made, fetched) = tokio::join!(make, clones);
    let sandbox = made.map_err(trouble)?;
    fetched?;
    git::clone_missing(hub, workspace, intent, &sandbox).await?;
    let files = Beneath::open(&sandbox.files()).map_err(trouble)?;
    let user = &sandbox.accounts.user;
    for dir in [".home", ".envforge", ".envforge/env"] {
        files.ensure_dir(Path::new(dir), 0o700, user).map_err(trouble)?;
    }
    context::write_once(&files, intent, user).map_err(trouble)?;
    let found = read_manifests(&sandbox, &intent.spec).await;
    context::write(&sandbox, intent, &found).map_err(trouble)?;
    Ok(sandbox)
}
