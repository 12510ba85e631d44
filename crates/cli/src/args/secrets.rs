//! `envforge secrets …`.

use clap::{Args, Subcommand};

/// Values that services, provided resources and provisioners get, and nobody is shown.
#[derive(Debug, Subcommand)]
pub enum SecretsCommand {
    /// Set a secret. The value is read from standard input, or asked for on a terminal.
    ///
    /// NAME is what services declare (`secret.stripe_key` is `stripe_key`), a field of a resource in the mode `provided`
    /// (`resource.database.url`), or a setting of a provisioner (`provisioner.database.url`). One line break at the end of
    /// standard input does not count. Services get the value at their next start.
    Set {
        /// The secret.
        #[arg(value_name = "NAME")]
        name: String,
        /// Whose it is.
        #[command(flatten)]
        scope: ScopeArgs,
    },
    /// Names, scopes, and who set them when; never values.
    Ls {
        /// Whose.
        #[command(flatten)]
        scope: ScopeArgs,
    },
    /// Take a secret away. What runs keeps it until its next start.
    Rm {
        /// The secret.
        #[arg(value_name = "NAME")]
        name: String,
        /// Whose it is.
        #[command(flatten)]
        scope: ScopeArgs,
    },
}

/// Whose secrets.
#[derive(Debug, Args)]
pub struct ScopeArgs {
    /// Those of this project; may be left out when there is only one.
    #[arg(long, short, value_name = "PROJECT")]
    pub project: Option<String>,
    /// Those of the whole organization: for every project that has none of the same name.
    #[arg(long, conflicts_with = "project")]
    pub organization: bool,
}
