//! `port-forward`: what is forwarded, and where to.

use clap::Args;

/// `envforge port-forward`.
#[derive(Debug, Args)]
#[command(override_usage = "envforge port-forward [WS] TARGET [LOCAL] [--service S]")]
pub struct PortForwardArgs {
    /// The workspace if not the one you are in; a service, SERVICE.PORT, database, cache, queue, storage or mail; the
    /// port on 127.0.0.1 (default: the same if it is free, else any).
    #[arg(value_names = ["WS", "TARGET", "LOCAL"], num_args = 1..=3, required = true)]
    pub words: Vec<String>,
    /// Whose data service, where each has one for itself.
    #[arg(long, value_name = "S")]
    pub service: Option<String>,
}
