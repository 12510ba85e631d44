//! A project joined with the manifests of its services: what a host starts.

use crate::{Health, ServiceManifest, Step, join};
use envforge_api::{
    names::{Branch, ServiceName, Slug},
    problem::Diagnostic,
    project::{ProjectSpec, RuntimeSize},
    resource::{ResourceKind, ResourceMode, ResourceScope},
    states::Trouble,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is known of the workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkspaceFacts {
    /// Slug.
    pub slug: Slug,
    /// Branch.
    pub branch: Branch,
    /// Project slug.
    pub project: Slug,
    /// Organization slug.
    pub organization: Slug,
    /// Public origin of each service.
    pub urls: BTreeMap<ServiceName, String>,
}

/// A service's manifest as it was found in the working tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoundManifest {
    /// Read and checked.
    Good(Box<ServiceManifest>),
    /// There, with findings.
    Bad(Vec<Diagnostic>),
    /// Not there, or not readable: why and what to do.
    Missing(Trouble),
}

/// Everything a host needs to start a runtime. Pure data: resource fields and secrets are still references.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolution {
    /// In the project's order.
    pub services: Vec<ResolvedService>,
    /// Each resource that some service declares, once per scope.
    pub resources: Vec<ResolvedResource>,
    /// Size of the runtime.
    pub size: RuntimeSize,
    /// Idle seconds after which it sleeps.
    pub sleep_after_seconds: u64,
    /// Findings of all manifests.
    pub diagnostics: Vec<Diagnostic>,
}

/// One service, ready to be started once its resources' values are known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedService {
    /// Name in the project.
    pub name: ServiceName,
    /// Digest of the envforge.yml it comes from; empty when there is none.
    pub digest: String,
    /// Working directory relative to `/workspace`: checkout and path.
    pub directory: String,
    /// Shell command; absent for a service with only workers.
    pub command: Option<String>,
    /// Ports by name after the project's overrides.
    pub ports: BTreeMap<ServiceName, u16>,
    /// The port called `http`, or the only one: the value of `PORT` and where its URL goes.
    pub http_port: Option<u16>,
    /// Workers: name and shell command.
    pub workers: Vec<(ServiceName, String)>,
    /// Health check, with the port resolved; absent = healthy while it runs.
    pub health: Option<ResolvedHealth>,
    /// Environment in written order, without `PORT`. A variable whose source is unset is left out.
    pub environment: Vec<(String, EnvValue)>,
    /// Resources it declared: kind and whether it is required.
    pub declared: BTreeMap<ResourceKind, bool>,
    /// Setup steps in written order.
    pub setup: Vec<Step>,
    /// Tests in written order.
    pub tests: Vec<Step>,
    /// Tools it wants: name and version.
    pub tools: BTreeMap<String, String>,
    /// Set when it cannot be started: a bad or missing manifest, an unbound required input, a port taken by an
    /// earlier service, a disabled required resource.
    pub blocked: Option<Trouble>,
}

/// A health check with its port's number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedHealth {
    /// The check.
    pub check: Health,
    /// Port it goes to; absent for a command.
    pub port: Option<u16>,
}

/// A value that is known, or known once resources and secrets are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "value")]
pub enum EnvValue {
    /// The value.
    Known {
        /// Text.
        text: String,
    },
    /// A field of a resource.
    Resource {
        /// Kind.
        kind: ResourceKind,
        /// Field.
        field: String,
    },
    /// A secret of the organization.
    Secret {
        /// Name.
        name: String,
    },
}

/// A resource of the workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedResource {
    /// Kind.
    pub kind: ResourceKind,
    /// Mode.
    pub mode: ResourceMode,
    /// Scope.
    pub scope: ResourceScope,
    /// The service it belongs to when its scope is one service.
    pub service: Option<ServiceName>,
    /// Services that declared it.
    pub consumers: Vec<ServiceName>,
    /// PostgreSQL extensions asked for.
    pub extensions: Vec<String>,
    /// What fills it when it is new, in the order of its consumers.
    #[serde(default)]
    pub seeds: Vec<Seed>,
}

/// A file that fills a new database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seed {
    /// The service that declared it.
    pub service: ServiceName,
    /// Directory of the service, below the workspace.
    pub directory: String,
    /// The file, relative to that directory.
    pub file: String,
}

/// Joins a project with the manifests found in one workspace's checkouts. Never fails: what cannot be started is
/// blocked with its reason, and everything else goes on.
#[must_use]
pub fn resolve(
    spec: &ProjectSpec,
    found: &BTreeMap<ServiceName, FoundManifest>,
    workspace: &WorkspaceFacts,
) -> Resolution {
    join::resolve(spec, found, workspace)
}
