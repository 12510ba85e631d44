//! The public HTTP API: bodies of requests and answers. `GET /v1/openapi.json` describes the routes.

use crate::{
    command::{CommandView, RunSpec},
    generation::{Generation, Revision},
    host::{Activity, StepReport},
    ids::{CommandId, HostId, LinkId, PrincipalId, WorkspaceId},
    names::{Branch, ServiceName, Slug},
    problem::Diagnostic,
    project::{ProjectSpec, RuntimeSize},
    receipt::SleepReceipt,
    resource::{ResourceKind, ResourceMode},
    role::Role,
    secret::Secret,
    states::{BillingState, Health, ResourceState, RuntimeState, ServiceKind, ServiceState, ShellState, Stated},
    time::Timestamp,
    usage::UsageSessionView,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `GET /v1/whoami`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Whoami {
    /// Id of the caller.
    pub principal: PrincipalId,
    /// Name shown to people.
    pub name: String,
    /// Organization slug.
    pub organization: Slug,
    /// Role; absent for a workspace or host acting for itself.
    #[serde(default)]
    pub role: Option<Role>,
    /// Set when the caller is a workspace (its shell): the slug.
    #[serde(default)]
    pub workspace: Option<Slug>,
}

/// `PUT /v1/projects/{project}`: apply a project file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ApplyProject {
    /// Name of the file, for findings.
    pub file: String,
    /// Its text (YAML).
    pub text: String,
    /// Only show the difference.
    #[serde(default)]
    pub dry_run: bool,
}

/// Answer to [`ApplyProject`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProjectApplied {
    /// The project as it is now (or would be).
    pub project: ProjectView,
    /// One line for each change, such as `+ service backend`; empty = nothing changes.
    pub changes: Vec<String>,
    /// False after a dry run or when nothing changed.
    pub applied: bool,
}

/// A project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProjectView {
    /// Slug.
    pub project: Slug,
    /// Version of the applied file.
    pub revision: Revision,
    /// When it was applied.
    #[schema(value_type = String, format = DateTime)]
    pub applied_at: Timestamp,
    /// The applied file.
    pub text: String,
    /// What it says, checked.
    pub spec: ProjectSpec,
}

/// `GET /v1/projects`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProjectList {
    /// By slug.
    pub projects: Vec<ProjectView>,
}

/// `POST /v1/workspaces/open`: resolve or create a workspace, grant an attach, ask for a wake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OpenWorkspace {
    /// A workspace's slug or a branch.
    pub name: String,
    /// Create the branch if it exists nowhere.
    #[serde(default)]
    pub create: bool,
    /// What a new branch starts from, in every repository that has it; absent = the default branch.
    #[serde(default)]
    pub from: Option<String>,
    /// The branch, when it is not derived from `name` (`up NAME --branch B`).
    #[serde(default)]
    pub branch: Option<Branch>,
    /// The project; may be left out when there is only one.
    #[serde(default)]
    pub project: Option<Slug>,
    /// Ask for a wake too.
    #[serde(default)]
    pub wake: bool,
}

/// Answer to [`OpenWorkspace`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Opened {
    /// The workspace's id.
    pub id: WorkspaceId,
    /// Its slug.
    pub workspace: Slug,
    /// True when this request made it.
    pub created: bool,
    /// The wake that was asked for, if one was.
    #[serde(default)]
    pub wake: Option<CommandId>,
    /// How to reach the host's streams.
    pub grant: Grant,
}

/// `POST /v1/workspaces/{slug}/grant`: ask for a capability; answered by a [`Grant`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct GrantRequest {
    /// What for. `reveal` is audited.
    pub rights: Vec<crate::capability::Right>,
    /// The service whose environment is revealed.
    #[serde(default)]
    pub service: Option<ServiceName>,
}

/// A capability and where to use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Grant {
    /// The host.
    pub host: HostId,
    /// The workspace.
    pub workspace: WorkspaceId,
    /// Unix socket of the host daemon, when it is on this machine.
    #[serde(default)]
    pub local_socket: Option<String>,
    /// The base, where a gateway leads to the host: for whoever is on another machine.
    #[serde(default)]
    pub gateway: Option<String>,
    /// The capability.
    #[schema(value_type = String)]
    pub token: Secret,
    /// When it ends.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
}

/// A workspace as `status --json` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WorkspaceView {
    /// Id.
    pub id: WorkspaceId,
    /// Slug.
    pub workspace: Slug,
    /// Project slug.
    pub project: Slug,
    /// Organization slug.
    pub organization: Slug,
    /// Branch.
    pub branch: Branch,
    /// Name of its owner.
    pub owner: String,
    /// Changes whenever anything shown here changes; for `?after=`.
    pub version: u64,
    /// Shell layer.
    pub shell: Stated<ShellState>,
    /// Runtime layer.
    pub runtime: RuntimeView,
    /// Services and workers.
    pub services: Vec<ServiceView>,
    /// Resources.
    pub resources: Vec<ResourceView>,
    /// Setup steps.
    pub steps: Vec<StepReport>,
    /// The meter.
    pub billing: BillingView,
    /// Signed links that are valid.
    pub links: Vec<LinkView>,
    /// Findings in envforge.yml files.
    #[serde(default)]
    pub diagnostics: Vec<Diagnostic>,
    /// What keeps it awake.
    pub activity: Activity,
    /// Its snapshots, oldest first.
    #[serde(default)]
    pub snapshots: Vec<crate::copy::SnapshotView>,
    /// The host is not heard of at present: everything shown is as it was then.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub host_lost_since: Option<Timestamp>,
}

/// Runtime layer of a workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RuntimeView {
    /// State, since when, why.
    #[serde(flatten)]
    pub stated: Stated<RuntimeState>,
    /// Its size.
    #[serde(default)]
    pub size: Option<RuntimeSize>,
    /// The desired state's version.
    pub generation: Generation,
}

/// A service or worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ServiceView {
    /// `web`, `backend.mailer`.
    pub name: String,
    /// Service or worker.
    pub kind: ServiceKind,
    /// State, since when, why.
    #[serde(flatten)]
    pub stated: Stated<ServiceState>,
    /// Last check.
    pub health: Health,
    /// Public URL; absent for workers and services without an HTTP port.
    #[serde(default)]
    pub url: Option<String>,
    /// Times it was restarted by itself.
    pub restarts: u32,
    /// Exit status of its last process that ended.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// Its envforge.yml differs from the one it runs with.
    pub stale: bool,
    /// Port inside the workspace.
    #[serde(default)]
    pub port: Option<u16>,
    /// Last lines of output while in a bad state.
    #[serde(default)]
    pub last_lines: Vec<String>,
}

/// A resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ResourceView {
    /// Kind.
    pub kind: ResourceKind,
    /// Mode.
    pub mode: ResourceMode,
    /// State, since when, why.
    #[serde(flatten)]
    pub stated: Stated<ResourceState>,
    /// The service it belongs to, where its scope is one service.
    #[serde(default)]
    pub service: Option<ServiceName>,
    /// Who uses it.
    pub consumers: Vec<ServiceName>,
    /// How it is written where it is shown: no password, address or console.
    pub url: String,
    /// What it held when it fell asleep last, and whether it held that when it woke.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<SleepReceipt>,
}

/// The meter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BillingView {
    /// Off, metering or capped.
    pub state: BillingState,
    /// Begin of the open usage session.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub session_started_at: Option<Timestamp>,
    /// Observed seconds of the open usage session.
    #[serde(default)]
    pub session_seconds: Option<u64>,
}

/// A signed link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LinkView {
    /// Id.
    pub id: LinkId,
    /// The service it opens.
    pub service: ServiceName,
    /// What kinds of traffic it carries.
    #[serde(default)]
    pub families: std::collections::BTreeSet<crate::link::Family>,
    /// Who made it.
    #[serde(default)]
    pub issued_by: String,
    /// When it was made.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub issued_at: Option<Timestamp>,
    /// When it ends.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
}

/// `GET /v1/workspaces/{workspace}/links`: those that are valid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LinkList {
    /// Newest first.
    pub links: Vec<LinkView>,
}

/// `GET /v1/workspaces`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WorkspaceList {
    /// By slug.
    pub workspaces: Vec<WorkspaceView>,
}

/// Answer to requests that make a command record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Commanded {
    /// The record: a new one, or the equal one under way that was joined.
    pub command: CommandView,
}

/// `POST /v1/workspaces/{slug}/wake`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WakeRequest {
    /// What asks: `wake` (default), `up`, `link`, `schedule`.
    #[serde(default)]
    pub trigger: Option<String>,
}

/// `POST /v1/workspaces/{slug}/hold`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HoldRequest {
    /// Seconds from now; 0 ends a hold. At most 7 days.
    pub seconds: u64,
}

/// Answer to [`HoldRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Held {
    /// When the hold ends; absent = there is none.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub until: Option<Timestamp>,
}

/// `POST /v1/workspaces/{slug}/services`: start, stop or restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ControlServices {
    /// What to do.
    pub verb: ServiceVerb,
    /// Services or workers by name; never empty.
    pub services: Vec<ServiceName>,
}

/// What can be done to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ServiceVerb {
    /// Start; wakes the runtime if needed.
    Start,
    /// Stop until `start` or the next wake.
    Stop,
    /// Stop, read envforge.yml again, start.
    Restart,
}

/// `DELETE /v1/workspaces/{slug}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DeleteRequest {
    /// Delete although work is not committed or not pushed.
    #[serde(default)]
    pub force: bool,
    /// Only say what would be lost.
    #[serde(default)]
    pub dry_run: bool,
}

/// Answer to [`DeleteRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Deleted {
    /// What goes (or would go), a line each.
    pub goes: Vec<String>,
    /// Uncommitted or unpushed work, a line each.
    pub at_risk: Vec<String>,
    /// The record; absent after a dry run.
    #[serde(default)]
    pub command: Option<CommandView>,
}

/// `POST /v1/workspaces/{slug}/runs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RunRequest {
    /// Made by the caller: sending the same id and body again joins the same record.
    pub id: CommandId,
    /// What.
    #[serde(flatten)]
    pub spec: RunSpec,
}

/// `GET /v1/workspaces/{slug}/commands`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CommandList {
    /// Newest first.
    pub commands: Vec<CommandView>,
}

/// `GET /v1/workspaces/{slug}/usage`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UsageReport {
    /// The workspace.
    pub workspace: Slug,
    /// Newest first.
    pub sessions: Vec<UsageSessionView>,
    /// Sum of their seconds.
    pub total_seconds: u64,
}

/// Answer to `POST /v1/keys/rotate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct KeyRotated {
    /// The new key.
    pub id: String,
    /// Until then it is only told to those who verify.
    #[schema(value_type = String, format = DateTime)]
    pub signs_from: Timestamp,
    /// When everything that other keys signed has expired.
    #[schema(value_type = String, format = DateTime)]
    pub others_end_at: Timestamp,
    /// All that verify now.
    pub keys: Vec<crate::sign::VerifyKey>,
}

/// `GET /v1/audit`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AuditList {
    /// Newest first.
    pub entries: Vec<AuditView>,
}

/// One entry of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AuditView {
    /// Id.
    pub id: crate::ids::AuditId,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Who, as shown to people.
    pub actor: String,
    /// What, such as `workspace.wake`.
    pub action: String,
    /// On what, such as a slug.
    pub target: String,
    /// Details without secrets.
    pub details: BTreeMap<String, String>,
}
