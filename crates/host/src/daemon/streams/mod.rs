//! The host's stream API on unix sockets: attach, exec, output of runs, logs, environment, inbox. One socket for callers on
//! this machine (`<run>/host.sock`, capability needed for everything), and one per workspace (`<run>/w<index>/in/host.sock`,
//! seen inside as `/run/envforge/host.sock`), which forwards `/v1/…` to the control plane as that workspace.
//!
//! Rules that hold here: who may not do something learns nothing about whether it exists; a stream that lost its
//! permission ends within a second; a slow reader slows its process down and costs no memory; whoever goes away takes
//! its command along, but never the terminal session of the workspace.

mod attach;
mod channel;
mod client;
pub mod env;
mod exec;
mod forward;
mod guard;
mod listen;
mod logs;
mod objects;
mod output;
mod ports;
mod pump;
mod ready;
mod routes;
#[cfg(test)]
pub(super) mod tests;

use crate::{
    daemon::hub::{Hub, Workspace},
    system::accounts,
};
pub(super) use listen::bind;
use routes::{Api, Caller};
use std::{path::PathBuf, sync::Arc};
use tokio_util::sync::CancellationToken;

/// The machine's socket.
pub(super) fn path(hub: &Hub) -> PathBuf {
    hub.installation.run.join("host.sock")
}

/// Serves the machine's socket until `stop` is cancelled. Attached terminals live on in tmux.
///
/// # Errors
/// When the socket cannot be bound.
pub async fn serve(hub: Arc<Hub>, stop: CancellationToken) -> std::io::Result<()> {
    // Everyone may connect; what anyone may do is in their capability.
    let listener = listen::bind(&hub.installation.run, &path(&hub), 0o666, None)?;
    let api = Api { hub, caller: Caller::Machine, stop: stop.clone() };
    listen::run(listener, routes::machine(api), stop).await
}

/// Serves one workspace's socket until `stop` is cancelled.
///
/// # Errors
/// When the socket cannot be bound.
pub async fn serve_workspace(hub: Arc<Hub>, workspace: Arc<Workspace>, stop: CancellationToken) -> std::io::Result<()> {
    let run = hub.installation.workspace_run(workspace.index);
    let owner = accounts::of(&hub.installation, workspace.index).user;
    let listener = listen::bind(&run, &run.join("in").join("host.sock"), 0o600, Some(&owner))?;
    let api = Api { hub, caller: Caller::Workspace(workspace.id.clone()), stop: stop.clone() };
    listen::run(listener, routes::workspace(api), stop).await
}
