//! Arguments of the programs that the binary starts itself; defined here so that help and completions know them.

use clap::{Args, Subcommand};
use envforge_api::secret::Secret;
use std::{convert::Infallible, net::SocketAddr, path::PathBuf};

fn secret(given: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(given.to_owned()))
}

/// `envforge server`: the control plane.
#[derive(Debug, Clone, Args)]
pub struct ServerArgs {
    /// PostgreSQL to keep everything in.
    #[arg(long, value_name = "URL", env = "ENVFORGE_DATABASE_URL", hide_env_values = true, value_parser = secret)]
    pub database_url: Secret,
    /// Where to listen; port 0 lets the kernel choose, and the choice is written to STATE/address.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Directory of keys and tokens.
    #[arg(long, value_name = "DIR")]
    pub state: PathBuf,
    /// Base of the development URLs.
    #[arg(long, value_name = "BASE", default_value = "dev.localhost")]
    pub base: String,
}

/// `envforge host`: the host daemon.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct HostArgs {
    /// What to do instead of running the daemon.
    #[command(subcommand)]
    pub command: Option<HostCommand>,
    /// Directory of the installation.
    #[arg(long, value_name = "DIR", required = true)]
    pub home: Option<PathBuf>,
    /// The control plane: http://HOST:PORT, https://HOST:PORT or unix:/PATH.
    #[arg(long, value_name = "URL", required = true)]
    pub server: Option<String>,
    /// File with the host's token.
    #[arg(long, value_name = "FILE", required = true)]
    pub token_file: Option<PathBuf>,
    /// A gateway on another machine, which this host then dials: http://HOST:PORT or https://HOST:PORT. For several, once
    /// for each, or with commas between them.
    #[arg(long = "gateway", value_name = "URL", env = "ENVFORGE_GATEWAY", value_delimiter = ',')]
    pub gateways: Vec<String>,
    /// PEM of further authorities that the gateways' certificates may be of.
    #[arg(long, value_name = "FILE", requires = "gateways")]
    pub gateway_root: Option<PathBuf>,
    /// An S3 server or cluster (SeaweedFS or MinIO) in the place of the host's own: http://HOST:PORT.
    #[arg(long, value_name = "URL", env = "ENVFORGE_STORAGE_ENDPOINT", requires = "storage_credentials")]
    pub storage_endpoint: Option<String>,
    /// File with its root credentials, in the form of AWS's `credentials`, readable by its owner alone.
    #[arg(long, value_name = "FILE", env = "ENVFORGE_STORAGE_CREDENTIALS", requires = "storage_endpoint")]
    pub storage_credentials: Option<PathBuf>,
    /// Space of the disk that is kept free: 8GiB, 500MiB; 0 = none. Without it a twentieth of the disk, at most 8GiB.
    #[arg(long, value_name = "SIZE", env = "ENVFORGE_DISK_RESERVE", value_parser = octets)]
    pub disk_reserve: Option<u64>,
    /// What a workspace takes of the disk at most where the file system counts that (btrfs with quotas): 50GiB. Without it
    /// half of what there is.
    #[arg(long, value_name = "SIZE", env = "ENVFORGE_DISK_LIMIT", value_parser = octets)]
    pub disk_limit: Option<u64>,
}

/// A size in octets.
fn octets(given: &str) -> Result<u64, String> {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let (number, bits) =
        UNITS.iter().find_map(|(unit, bits)| Some((given.strip_suffix(unit)?, *bits))).unwrap_or((given, 0));
    let size = number.trim().parse::<u64>().ok().and_then(|number| number.checked_mul(1 << bits));
    // A number alone is more likely a unit left out than octets.
    size.filter(|size| bits > 0 || *size == 0).ok_or_else(|| "write it as 8GiB or 500MiB".to_owned())
}

/// Where a gateway listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// An address.
    Address(SocketAddr),
    /// The socket that it was given as standard input.
    Stdin,
}

fn listen(given: &str) -> Result<Listen, String> {
    match given {
        "stdin" => Ok(Listen::Stdin),
        _ => given.parse().map(Listen::Address).map_err(|_| "write it as ADDRESS:PORT".to_owned()),
    }
}

fn beginning(with: &'static str) -> impl Fn(&str) -> Result<String, String> + Clone {
    move |given| {
        let whole = given.strip_prefix(with).is_some_and(|rest| !rest.is_empty());
        if whole { Ok(given.to_owned()) } else { Err(format!("write it as {with}…")) }
    }
}

/// `envforge gateway`: the door for dev traffic.
#[derive(Debug, Clone, Args)]
pub struct GatewayArgs {
    /// Where visitors come: ADDRESS:PORT, or `stdin` for a listening socket given as standard input.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0", value_parser = listen)]
    pub listen: Listen,
    /// The control plane: http://HOST:PORT, https://HOST:PORT or unix:/PATH.
    #[arg(long, value_name = "URL")]
    pub server: String,
    /// File with the gateway's token.
    #[arg(long, value_name = "FILE")]
    pub token_file: PathBuf,
    /// Certificate for visitors as PEM, the whole chain; a renewed one is taken by itself.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_certificate: Option<PathBuf>,
    /// Its private key as PEM.
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,
    /// Get the certificate by ACME: the server's directory, such as https://acme-v02.api.letsencrypt.org/directory. Using it
    /// means agreeing to its terms of service.
    #[arg(long, value_name = "URL", requires_all = ["acme_hook", "acme_dir"], conflicts_with = "tls_certificate",
        value_parser = beginning("https://"))]
    pub acme_directory: Option<String>,
    /// Program that makes DNS records: called as `PROGRAM present NAME VALUE` and `PROGRAM cleanup NAME VALUE`.
    #[arg(long, value_name = "PROGRAM", requires = "acme_directory")]
    pub acme_hook: Option<PathBuf>,
    /// Where the ACME account, the certificate and its key are kept: a directory that is the gateway's alone.
    #[arg(long, value_name = "DIR", requires = "acme_directory")]
    pub acme_dir: Option<PathBuf>,
    /// Whom the ACME server may write to, such as mailto:ops@example.com; it is told when the account is made.
    #[arg(long, value_name = "URL", requires = "acme_directory", value_parser = beginning("mailto:"))]
    pub acme_contact: Option<String>,
    /// PEM of the authorities that the ACME server's own certificate may be of, instead of the public ones.
    #[arg(long, value_name = "FILE", requires = "acme_directory")]
    pub acme_root: Option<PathBuf>,
    /// Unix socket on which the host daemon of this machine hands over connections from inside workspaces.
    #[arg(long, value_name = "PATH")]
    pub inside: Option<PathBuf>,
}

/// Parts of `envforge host`.
#[derive(Debug, Clone, Subcommand)]
pub enum HostCommand {
    /// Copy every workspace's objects to another S3 server, which the daemon is then told to use.
    CopyStorage {
        /// Directory of the installation.
        #[arg(long, value_name = "DIR", env = "ENVFORGE_HOME")]
        home: PathBuf,
        /// The other server (SeaweedFS or MinIO): http://HOST:PORT.
        #[arg(long, value_name = "URL")]
        storage_endpoint: String,
        /// File with its root credentials, in the form of AWS's `credentials`, readable by its owner alone.
        #[arg(long, value_name = "FILE")]
        storage_credentials: PathBuf,
    },
    /// Claim what an installation needs of the machine.
    #[command(hide = true)]
    Prepare {
        /// Directory of the installation.
        #[arg(long, value_name = "DIR")]
        home: PathBuf,
    },
    /// Put every runtime to sleep and end every shell, with no daemon running.
    #[command(hide = true)]
    Quiesce {
        /// Directory of the installation.
        #[arg(long, value_name = "DIR")]
        home: PathBuf,
    },
    /// Make a copied directory the installation, after what may be left of the original has ended.
    #[command(hide = true)]
    Adopt {
        /// Directory of the installation.
        #[arg(long, value_name = "DIR")]
        home: PathBuf,
    },
    /// Remove what an installation has on the machine beside its directory.
    #[command(hide = true)]
    Wipe {
        /// Directory of the installation.
        #[arg(long, value_name = "DIR")]
        home: PathBuf,
    },
}
