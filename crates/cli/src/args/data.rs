//! Data services and copies of workspaces.

use clap::{Args, Subcommand};

/// `envforge resources`.
#[derive(Debug, Args)]
pub struct ResourcesArgs {
    /// The workspace.
    #[arg(value_name = "WS")]
    pub ws: Option<String>,
}

/// `envforge reset`.
#[derive(Debug, Args)]
pub struct ResetArgs {
    /// The workspace if not the one you are in, then what to wipe: database, cache, queue, storage, mail.
    #[arg(value_name = "WS|KIND", num_args = 1.., required = true)]
    pub words: Vec<String>,
    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
}

/// `envforge psql`.
#[derive(Debug, Args)]
pub struct ClientArgs {
    /// The workspace.
    #[arg(value_name = "WS")]
    pub ws: Option<String>,
    /// The service, where each has one for itself.
    #[arg(long, value_name = "S")]
    pub service: Option<String>,
    /// Arguments of the client, such as `-c 'select 1'`.
    #[arg(last = true, value_name = "ARGS")]
    pub argv: Vec<String>,
}

/// `envforge redis`.
#[derive(Debug, Args)]
pub struct RedisArgs {
    #[command(flatten)]
    pub client: ClientArgs,
    /// The queue instead of the cache. A workspace with one of them needs no word for it.
    #[arg(long)]
    pub queue: bool,
}

/// `envforge mail`.
#[derive(Debug, Args)]
pub struct MailArgs {
    /// The workspace.
    #[arg(value_name = "WS")]
    pub ws: Option<String>,
    /// Show one message whole, by its id or as `latest`.
    #[arg(long, value_name = "ID")]
    pub show: Option<String>,
}

/// `envforge fork`.
#[derive(Debug, Args)]
#[command(override_usage = "envforge fork [WS] NEW [--branch B]")]
pub struct ForkArgs {
    /// The workspace if not the one you are in, then the name of the new one.
    #[arg(value_names = ["WS", "NEW"], num_args = 1..=2, required = true)]
    pub words: Vec<String>,
    /// The branch, made at the commit that each checkout is at (default: named as the workspace).
    #[arg(long, value_name = "B")]
    pub branch: Option<String>,
}

/// `envforge snapshot …`.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Keep the workspace as it is now.
    Create {
        /// The workspace.
        #[arg(value_name = "WS")]
        ws: Option<String>,
    },
    /// Those that there are, newest first.
    Ls {
        /// The workspace.
        #[arg(value_name = "WS")]
        ws: Option<String>,
    },
    /// Make the workspace what it was; what it is now is kept as a snapshot.
    #[command(override_usage = "envforge snapshot restore [WS] SNAPSHOT [--yes]")]
    Restore {
        /// The workspace if not the one you are in, then the snapshot.
        #[arg(value_names = ["WS", "SNAPSHOT"], num_args = 1..=2, required = true)]
        words: Vec<String>,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
    /// Remove a snapshot.
    #[command(override_usage = "envforge snapshot rm [WS] SNAPSHOT")]
    Rm {
        /// The workspace if not the one you are in, then the snapshot.
        #[arg(value_names = ["WS", "SNAPSHOT"], num_args = 1..=2, required = true)]
        words: Vec<String>,
    },
}
