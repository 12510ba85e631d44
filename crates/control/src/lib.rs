//! The control plane: who may do what, where a workspace lives, what is billed, when to retry a product command.
//!
//! Each folder is one subject: its rules, `store.rs` (only SQL), `http.rs` (only HTTP). A folder calls another
//! folder's functions, never its tables.

mod app;
mod audit;
mod commands;
mod config;
mod copies;
mod db;
mod dev_hosts;
mod gateways;
mod hosts;
mod http;
mod identity;
mod keys;
mod links;
mod projects;
mod secrets;
mod server;
mod usage;
mod workspaces;

pub use http::{auth::Scope, router::RouteEntry};
pub use server::{Running, start};

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

/// How a control plane is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// PostgreSQL URL (`postgres://…`; a unix socket directory as `?host=/dir`).
    pub database_url: envforge_api::secret::Secret,
    /// Where to listen; port 0 lets the kernel choose.
    pub listen: SocketAddr,
    /// Directory of this replica's secrets: `master.key`, `secrets.key`, `owner.token`, `host.token`,
    /// `gateway.token` (made on first start, 0600).
    pub state: PathBuf,
    /// Base of public host names, such as `dev.localhost:8080` or `https://dev.example.com`.
    pub base: String,
}

/// `envforge server`: migrates, listens, writes the bound address to `<state>/address`, runs until SIGTERM.
pub async fn main(options: Options) -> ExitCode {
    let running = match start(options).await {
        Ok(running) => running,
        Err(problem) => {
            tracing::error!(hint = %problem.hint, "the control plane cannot start: {problem}");
            return ExitCode::from(problem.kind.exit_code());
        }
    };
    server::asked_to_stop().await;
    tracing::info!("stopping");
    running.stop().await;
    ExitCode::SUCCESS
}
