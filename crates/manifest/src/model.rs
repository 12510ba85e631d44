//! A checked envforge.yml.

use envforge_api::{
    dev_host::ProxyMode, link::Family, names::ServiceName, project::RuntimeSize, resource::ResourceKind,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One service's envforge.yml, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceManifest {
    /// SHA-256 of the text, hex: tells whether a running service is stale.
    pub digest: String,
    /// Display name.
    pub display_name: Option<String>,
    /// Hint such as `node`.
    pub kind_hint: Option<String>,
    /// Shell command of the service; absent for one that has only workers.
    pub command: Option<String>,
    /// Ports by name, in written order.
    pub ports: Vec<(ServiceName, u16)>,
    /// Workers by name, in written order: the shell command of each.
    pub workers: Vec<(ServiceName, String)>,
    /// Health check; absent = TCP on the port `http`, or none without such a port.
    pub health: Option<Health>,
    /// Declared resources.
    pub resources: BTreeMap<ResourceKind, DeclaredResource>,
    /// Declared inputs: name and whether it is required.
    pub inputs: BTreeMap<String, bool>,
    /// Declared outputs: name and the port it gives the address of.
    pub outputs: BTreeMap<String, ServiceName>,
    /// Environment in written order.
    pub environment: Vec<(String, EnvSource)>,
    /// Setup steps in written order.
    pub setup: Vec<Step>,
    /// Tests in written order.
    pub tests: Vec<Step>,
    /// Routes: path prefix and family.
    pub routes: Vec<(String, Family)>,
    /// How the gateway presents requests.
    pub proxy: ProxyMode,
    /// Tools by name and version.
    pub tools: BTreeMap<String, String>,
    /// Size wish.
    pub size: Option<RuntimeSize>,
    /// Idle time wish, in seconds.
    pub sleep_after_seconds: Option<u64>,
}

/// A health check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// What is tried.
    pub probe: Probe,
    /// Pause between checks, in milliseconds.
    pub interval_ms: u64,
    /// How long one check may take, in milliseconds.
    pub timeout_ms: u64,
    /// How long a starting service may fail checks, in milliseconds.
    pub start_period_ms: u64,
}

impl Health {
    /// Pause between checks when none is declared.
    pub const DEFAULT_INTERVAL_MS: u64 = 1_000;
    /// Time limit of one check when none is declared.
    pub const DEFAULT_TIMEOUT_MS: u64 = 2_000;
    /// Start period when none is declared.
    pub const DEFAULT_START_PERIOD_MS: u64 = 60_000;
}

/// What a health check tries, on 127.0.0.1 and ::1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "probe")]
pub enum Probe {
    /// GET answers with a status below 400.
    Http {
        /// Path and query.
        path: String,
        /// Name of the port.
        port: ServiceName,
    },
    /// A connection is accepted.
    Tcp {
        /// Name of the port.
        port: ServiceName,
    },
    /// A shell command ends with 0.
    Command {
        /// The command.
        command: String,
    },
}

/// `database: { required: true, seed: …, extensions: […] }`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeclaredResource {
    /// Whether the service cannot run without it.
    pub required: bool,
    /// Seed file, relative to the service.
    pub seed: Option<String>,
    /// PostgreSQL extensions.
    pub extensions: Vec<String>,
}

/// Where an environment variable's value comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "source")]
pub enum EnvSource {
    /// Written in the file.
    Literal {
        /// The text.
        value: String,
    },
    /// `resource.<kind>.<field>`.
    Resource {
        /// Kind.
        kind: ResourceKind,
        /// One of [`ResourceKind::fields`].
        field: String,
    },
    /// `input.<name>`.
    Input {
        /// Name.
        name: String,
    },
    /// `secret.<name>`.
    Secret {
        /// Name.
        name: String,
    },
    /// `workspace.{slug,branch,project,organization}`.
    Workspace {
        /// Field.
        field: WorkspaceField,
    },
    /// `service.{url,internal_url}` of the service itself.
    Service {
        /// Field.
        field: ServiceField,
    },
}

/// Fields of `workspace.`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkspaceField {
    /// Slug.
    Slug,
    /// Branch.
    Branch,
    /// Project slug.
    Project,
    /// Organization slug.
    Organization,
}

/// Fields of `service.`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceField {
    /// Public origin.
    Url,
    /// `http://localhost:<port>`.
    InternalUrl,
}

/// A setup step or a test: shell commands, run one after the other until one fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Name.
    pub name: ServiceName,
    /// Shell commands.
    pub run: Vec<String>,
    /// Layer.
    pub layer: Layer,
    /// Files, relative to the service, whose change makes a setup step run again.
    pub changes: Vec<String>,
}

/// Which layer a step belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// Never wakes, never meters, gets no resource variables.
    Shell,
    /// Runtime work.
    Runtime,
}
