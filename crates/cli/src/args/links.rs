//! Signed links.

use clap::Args;

/// `envforge share`.
#[derive(Debug, Args)]
pub struct ShareArgs {
    /// The workspace.
    #[arg(value_name = "WS")]
    pub ws: Option<String>,
    /// The service, or a further port of it as `SERVICE.PORT` (default: the first with an HTTP port).
    #[arg(long, value_name = "S")]
    pub service: Option<String>,
    /// How long it lasts: `30m`, `2h`, at most `30d`.
    #[arg(long, value_name = "DURATION", default_value = "2h")]
    pub expires: String,
    /// What it carries, by comma: web, api, assets, websockets (default: all).
    #[arg(long, value_name = "FAMILIES", value_delimiter = ',', value_parser = ["web", "api", "assets", "websockets"])]
    pub families: Vec<String>,
}

/// `envforge links`.
#[derive(Debug, Args)]
pub struct LinksArgs {
    /// The workspace.
    #[arg(value_name = "WS")]
    pub ws: Option<String>,
}

/// `envforge revoke`.
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// Its id, as `envforge links` shows it.
    #[arg(value_name = "LINK")]
    pub link: String,
}

/// `envforge open`.
#[derive(Debug, Args)]
pub struct OpenArgs {
    /// The workspace, a service (or `SERVICE.PORT`), or both.
    #[arg(value_names = ["WS", "SERVICE"], num_args = 0..=2)]
    pub words: Vec<String>,
}
