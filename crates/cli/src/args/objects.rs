//! `s3`: what is asked of storage.

use clap::Args;

/// `envforge s3`.
#[derive(Debug, Args)]
#[command(
    override_usage = "envforge s3 [WS] [ls [PREFIX] | get KEY [FILE] | put FILE [KEY] | rm KEY] [--service S]\n       envforge s3 [WS] [--service S] -- ARGS"
)]
pub struct S3Args {
    /// The workspace if not the one you are in, then `ls [PREFIX]` (default), `get KEY [FILE]`, `put FILE [KEY]` or
    /// `rm KEY`. FILE may be `-`.
    #[arg(value_name = "WS|ACT", num_args = 0..=4)]
    pub words: Vec<String>,
    /// Whose storage, where each service has its own.
    #[arg(long, value_name = "S")]
    pub service: Option<String>,
    /// Arguments of the host's own client (`aws`, else `s5cmd`), which is told endpoint and keys; wakes the runtime.
    #[arg(last = true, value_name = "ARGS")]
    pub argv: Vec<String>,
}
