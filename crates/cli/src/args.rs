//! What may be typed: the whole command line as types, and nothing of what it does.
//!
//! Rules kept here: `WS` may be left out everywhere but in `delete`; `--json` is accepted before and after the
//! subcommand; a word that other tools use is answered with the right command (see [`habits`]).

pub mod data;
pub(crate) mod habits;
pub mod links;
pub mod objects;
pub mod ports;
pub mod programs;
pub mod secrets;
pub(crate) mod words;

use clap::{Args, Parser, Subcommand};
pub use data::{ClientArgs, ForkArgs, MailArgs, RedisArgs, ResetArgs, ResourcesArgs, SnapshotCommand};
pub use links::{LinksArgs, OpenArgs, RevokeArgs, ShareArgs};
use std::path::PathBuf;

/// A durable workspace for every branch: a shell at once, the application behind it.
#[derive(Debug, Parser)]
#[command(name = "envforge", version, about, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    /// Show data as JSON on standard output, errors as JSON on standard error.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Everything `envforge` does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Attach a workspace's shell now and wake its runtime behind it.
    Up(UpArgs),
    /// The four states, services, resources and links of a workspace.
    Status(StatusArgs),
    /// Every workspace you can see.
    Ls,
    /// Wake the runtime.
    Wake(WaitArgs),
    /// Put the runtime to sleep; files, data, shell and links stay.
    Sleep(WaitArgs),
    /// Keep the runtime awake for a time (`2h`), or end that (`off`).
    Hold(HoldArgs),
    /// Start services; wakes the runtime if needed.
    Start(ServicesArgs),
    /// Stop services until `start` or the next wake.
    Stop(ServicesArgs),
    /// Stop services, read their envforge.yml again, start them.
    Restart(ServicesArgs),
    /// Why a workspace is awake or asleep, or why a service is not healthy.
    Why(WhyArgs),
    /// Run a command in the shell layer; never wakes the runtime.
    Exec(ExecArgs),
    /// Run a set-up step, a test or a command in a service's environment, with a receipt.
    Run(RunArgs),
    /// What a service's environment holds; secrets are masked.
    Env(EnvArgs),
    /// Read logs, also while the workspace is asleep.
    Logs(LogsArgs),
    /// Make a signed link that opens a service for whoever has it.
    Share(ShareArgs),
    /// The signed links of a workspace that are valid.
    Links(LinksArgs),
    /// End a signed link; open connections of it are closed too.
    Revoke(RevokeArgs),
    /// Open a service in the browser, as yourself.
    Open(OpenArgs),
    /// Carry a port of this machine to a service or data service, until Ctrl-C; wakes the runtime once.
    PortForward(ports::PortForwardArgs),
    /// The data services of a workspace: what they are for, who uses them, how they are.
    Resources(ResourcesArgs),
    /// Wipe data services and fill them anew; the services that use them are restarted.
    Reset(ResetArgs),
    /// Open the database with psql; wakes the runtime if needed.
    Psql(ClientArgs),
    /// Open the cache or queue with redis-cli; wakes the runtime if needed.
    Redis(RedisArgs),
    /// Objects of the storage: list, get, put, remove. Also while the workspace is asleep.
    S3(objects::S3Args),
    /// Read the inbox: what services sent. Also while the workspace is asleep.
    Mail(MailArgs),
    /// Copy a whole workspace, data included, into a new one.
    Fork(ForkArgs),
    /// Keep the state of a whole workspace, data included, and go back to it.
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Receipts and usage of a workspace.
    #[command(subcommand)]
    Workspace(WorkspaceCommand),
    /// Apply or show a project.
    #[command(subcommand)]
    Project(ProjectCommand),
    /// Values that services, provided resources and provisioners get, and nobody is shown.
    #[command(subcommand)]
    Secrets(secrets::SecretsCommand),
    /// Delete a workspace with its files and data.
    Delete(DeleteArgs),
    /// Check what this machine needs for a local installation.
    Doctor,
    /// The installation on this machine.
    #[command(subcommand)]
    Local(LocalCommand),
    /// Run the control plane.
    Server(programs::ServerArgs),
    /// Run the host daemon.
    Host(programs::HostArgs),
    /// Run the gateway.
    Gateway(programs::GatewayArgs),
    /// The audit log, newest first.
    Audit(AuditArgs),
    /// Who you are for the control plane.
    Whoami,
    /// The keys that sign links, visits and capabilities.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Print completions for a shell.
    Completions(CompletionsArgs),
    /// Anything else: a habit from another tool, or a mistake.
    #[command(external_subcommand)]
    Other(Vec<String>),
}

/// `envforge up`.
#[derive(Debug, Default, Args)]
pub struct UpArgs {
    /// A workspace, or a branch.
    #[arg(value_name = "WS|BRANCH")]
    pub name: Option<String>,
    /// Create the branch if it exists nowhere.
    #[arg(short, long)]
    pub create: bool,
    /// What a new branch starts from (default: each repository's default branch).
    #[arg(long, value_name = "REF")]
    pub from: Option<String>,
    /// The branch, when it is not named as the workspace.
    #[arg(long, value_name = "BRANCH")]
    pub branch: Option<String>,
    /// Do not attach: come back when the shell is ready.
    #[arg(long)]
    pub no_attach: bool,
    /// Wait for the runtime; status 1 unless every service is healthy.
    #[arg(long)]
    pub wait: bool,
    /// Run this in a new tmux window.
    #[arg(last = true, value_name = "CMD")]
    pub argv: Vec<String>,
}

/// `envforge status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The workspace.
    #[arg(value_name = "WS")]
    pub ws: Option<String>,
    /// Keep showing it whenever it changes.
    #[arg(short, long)]
    pub watch: bool,
}

/// `envforge wake` and `envforge sleep`.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// The workspace.
    #[arg(value_name = "WS")]
    pub ws: Option<String>,
    /// Come back when it is done; status 1 if it failed.
    #[arg(long)]
    pub wait: bool,
}

/// `envforge hold`.
#[derive(Debug, Args)]
pub struct HoldArgs {
    /// The workspace if not the one you are in, then how long (`90m`, `2h`, at most `7d`) or `off`.
    #[arg(value_names = ["WS", "DURATION|off"], num_args = 1..=2, required = true)]
    pub words: Vec<String>,
}

/// `envforge start | stop | restart`.
#[derive(Debug, Args)]
pub struct ServicesArgs {
    /// The workspace if not the one you are in, then services.
    #[arg(value_name = "WS|SERVICE", num_args = 1.., required = true)]
    pub words: Vec<String>,
}

/// `envforge why`.
#[derive(Debug, Args)]
pub struct WhyArgs {
    /// The workspace, a service, or both.
    #[arg(value_names = ["WS", "SERVICE"], num_args = 0..=2)]
    pub words: Vec<String>,
}

/// `envforge exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// The workspace.
    #[arg(value_name = "WS")]
    pub ws: Option<String>,
    /// Program and arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub argv: Vec<String>,
}

/// `envforge run`.
#[derive(Debug, Args)]
#[command(override_usage = "envforge run [WS] [--service S] [--detach] (setup [NAME] | test [NAME] | -- CMD)")]
pub struct RunArgs {
    /// The workspace if not the one you are in, then `setup [NAME]` or `test [NAME]`.
    #[arg(value_name = "WS|WHAT", num_args = 0..=3)]
    pub words: Vec<String>,
    /// The service whose environment it gets (default: all, for a command the first).
    #[arg(long, value_name = "S")]
    pub service: Option<String>,
    /// Print the id and come back at once.
    #[arg(long)]
    pub detach: bool,
    /// Program and arguments.
    #[arg(last = true, value_name = "CMD")]
    pub argv: Vec<String>,
}

/// `envforge env`.
#[derive(Debug, Args)]
pub struct EnvArgs {
    /// The workspace.
    #[arg(value_name = "WS")]
    pub ws: Option<String>,
    /// The service.
    #[arg(long, value_name = "S")]
    pub service: String,
    /// Show secrets too; for roles that may open the shell, audited.
    #[arg(long)]
    pub reveal: bool,
}

/// `envforge logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The workspace if not the one you are in, then sources: `web`, `backend.mailer`, `database`, `setup`, `system`.
    #[arg(value_name = "WS|SOURCE")]
    pub words: Vec<String>,
    /// Keep going.
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last so many lines.
    #[arg(short = 'n', long = "lines", value_name = "N")]
    pub lines: Option<usize>,
    /// This level and worse: debug, info, warn, error.
    #[arg(long, value_name = "LEVEL", value_parser = ["debug", "info", "warn", "error"])]
    pub level: Option<String>,
    /// From this time on: `10m` (ago) or 2026-01-31T12:00:00Z.
    #[arg(long, value_name = "T")]
    pub since: Option<String>,
    /// Up to this time.
    #[arg(long, value_name = "T")]
    pub until: Option<String>,
}

/// `envforge workspace …`.
#[derive(Debug, Subcommand)]
pub enum WorkspaceCommand {
    /// What was asked of a workspace and how it ended, newest first.
    Commands {
        /// The workspace.
        #[arg(value_name = "WS")]
        ws: Option<String>,
        /// Only those that concern this service.
        #[arg(long, value_name = "S")]
        service: Option<String>,
        /// Only those in this state.
        #[arg(long, value_name = "STATE")]
        status: Option<String>,
        /// At most so many.
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: u32,
    },
    /// One of them.
    Command {
        /// Its id.
        #[arg(value_name = "ID")]
        id: String,
        /// Take it back if it has not ended.
        #[arg(long)]
        cancel: bool,
    },
    /// The usage sessions of a workspace.
    Usage {
        /// The workspace.
        #[arg(value_name = "WS")]
        ws: Option<String>,
    },
}

/// `envforge project …`.
#[derive(Debug, Subcommand)]
pub enum ProjectCommand {
    /// Show what a project file changes, then apply it.
    Apply {
        /// The file.
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// Only show what it changes.
        #[arg(long)]
        dry_run: bool,
    },
    /// Show the applied project.
    Show {
        /// The project; may be left out when there is only one.
        #[arg(value_name = "PROJECT", env = "ENVFORGE_PROJECT")]
        project: Option<String>,
    },
}

/// `envforge delete`.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// The workspace.
    #[arg(value_name = "WS")]
    pub ws: String,
    /// Do not ask.
    #[arg(long, short)]
    pub yes: bool,
    /// Delete although work is not committed or not pushed.
    #[arg(long)]
    pub force: bool,
}

/// `envforge local …`.
#[derive(Debug, Subcommand)]
pub enum LocalCommand {
    /// Start the installation on this machine.
    Start,
    /// Stop it; runtimes and terminals go on.
    Stop {
        /// Put every runtime to sleep first.
        #[arg(long)]
        all: bool,
    },
    /// What runs.
    Status,
    /// Take over a copied home whose original is gone.
    Adopt,
    /// Remove the installation with every workspace.
    Reset {
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
    /// The keeper itself.
    #[command(hide = true)]
    Keep,
}

/// `envforge audit`.
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// At most so many entries.
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub limit: u32,
}

/// `envforge keys …`.
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Sign with a new key from soon on; what the old ones signed holds until it expires.
    Rotate,
}

/// `envforge completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}
