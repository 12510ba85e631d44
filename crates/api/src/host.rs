//! The protocol between a host daemon and the control plane: register, then sync.
//!
//! `POST /v1/host/register` and `POST /v1/host/sync`, both with the host's bearer token. A host has at most two
//! sync requests in flight: one parked (`wait_ms` > 0, answered as soon as an intent changes) and one that carries
//! reports (`wait_ms` = 0). Every sync is a heartbeat.

use crate::{
    capability::VerifyKey,
    command::{ActReport, LeasedCommand},
    copy::{CopyReport, SnapshotView},
    dev_host::ProxyMode,
    generation::{Generation, HostEpoch, IntentSeq, Revision},
    ids::{CommandId, HostId, OrganizationId, RuntimeInstanceId, WorkspaceId},
    link::Family,
    names::{Branch, ServiceName, Slug},
    problem::Diagnostic,
    project::{ProjectSpec, RuntimeSize},
    receipt::SleepReceipt,
    resource::{ResourceKind, ResourceMode},
    states::{Health, ResourceState, RuntimeState, ServiceKind, ServiceState, ShellState, Stated, words},
    time::{BootId, BootMillis, Timestamp},
    usage::Reading,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Longest time a sync is parked, in milliseconds.
pub const MAX_PARK_MS: u32 = 25_000;

words!(
    /// What a host may carry.
    HostRole, "host role" {
        /// Directories, users, checkouts, terminals.
        Shell = "shell",
        /// Services and resource servers.
        Runtime = "runtime",
    }
);

/// First request of a daemon after it started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RegisterRequest {
    /// What it carries.
    pub roles: BTreeSet<HostRole>,
    /// The current boot.
    #[schema(value_type = String)]
    pub boot: BootId,
    /// The boot clock now; ties boot time to control-plane time.
    pub boot_now: BootMillis,
    /// Version of the daemon.
    pub version: String,
    /// CPUs and memory for placement.
    pub capacity: Capacity,
    /// How the command line reaches the daemon's stream API, when on one machine: path of its unix socket.
    #[serde(default)]
    pub local_socket: Option<String>,
    /// Where a gateway on the same machine asks for connections into workspaces: path of a unix socket.
    #[serde(default)]
    pub dial_socket: Option<String>,
    /// What the host knows already, so that a control plane restored from a backup catches up.
    #[serde(default)]
    pub known: BTreeMap<WorkspaceId, Generation>,
}

/// What a host has to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Capacity {
    /// CPUs, in thousandths.
    pub cpu_millis: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
}

/// Answer to [`RegisterRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RegisterAnswer {
    /// Who the host is.
    pub host: HostId,
    /// To be sent with every sync.
    pub epoch: HostEpoch,
    /// Its organization.
    pub organization: OrganizationId,
    /// Keys that capabilities are verified with.
    pub keys: Vec<VerifyKey>,
}

/// One sync.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SyncRequest {
    /// From the registration.
    pub epoch: HostEpoch,
    /// The last `intent_seq` the host has ledgered; 0 asks for everything.
    pub intent_seq: IntentSeq,
    /// How long the answer may be held back when nothing changed; 0 = answer at once.
    pub wait_ms: u32,
    /// Whole state of each workspace whose state changed since the last accepted report.
    #[serde(default)]
    pub reports: Vec<WorkspaceReport>,
    /// Readings not yet accepted.
    #[serde(default)]
    pub readings: Vec<Reading>,
    /// News of leased commands.
    #[serde(default)]
    pub acts: Vec<ActReport>,
    /// Sessions of the runtime that the host found on its disk and that no intent names.
    #[serde(default)]
    pub orphans: Vec<String>,
}

/// Answer to a sync.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SyncAnswer {
    /// Where the host stands once it has ledgered `intents`.
    pub intent_seq: IntentSeq,
    /// Changed since the request's `intent_seq`; each is whole.
    pub intents: Vec<WorkspaceIntent>,
    /// Repeated until the host reports on them.
    pub leases: Vec<LeasedCommand>,
    /// Keys that capabilities are verified with.
    pub keys: Vec<VerifyKey>,
    /// Attach sessions that were revoked and have not expired yet.
    #[serde(default)]
    pub revoked: Vec<crate::ids::AttachId>,
    /// Readings of the request that are now stored (or were before): `(instance, n)`.
    #[serde(default)]
    pub stored_readings: Vec<(RuntimeInstanceId, u64)>,
    /// Acts of the request whose report is recorded.
    #[serde(default)]
    pub recorded_acts: Vec<CommandId>,
    /// The last moment of link traffic that counts against idleness, of each workspace that had some lately.
    #[serde(default)]
    pub traffic: Vec<Traffic>,
}

/// When links last kept a workspace from being idle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Traffic {
    /// Which.
    pub workspace: WorkspaceId,
    /// When, in control-plane time.
    #[schema(value_type = String, format = DateTime)]
    pub last_at: Timestamp,
}

/// What should be, for one workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WorkspaceIntent {
    /// Which.
    pub workspace: WorkspaceId,
    /// Version of this intent.
    pub generation: Generation,
    /// Slug.
    pub slug: Slug,
    /// Project slug.
    pub project: Slug,
    /// Organization slug.
    pub organization: Slug,
    /// Name of its owner, for people.
    pub owner: String,
    /// The branch.
    pub branch: Branch,
    /// What a repository without the branch makes it from; absent = its default branch.
    #[serde(default)]
    pub from: Option<String>,
    /// It begins as a copy of this workspace of the same host, data included.
    #[serde(default)]
    pub fork_of: Option<WorkspaceId>,
    /// The shell layer.
    pub shell: DesiredShell,
    /// The runtime layer.
    pub runtime: DesiredRuntime,
    /// Services that someone stopped; holds until started or the next wake.
    #[serde(default)]
    pub stopped: BTreeSet<ServiceName>,
    /// Restart counters: a higher number than the one acted on means one restart.
    #[serde(default)]
    pub restarts: BTreeMap<ServiceName, u64>,
    /// Keep awake until then, whatever is idle.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub hold_until: Option<Timestamp>,
    /// The project's revision that a wake uses.
    pub revision: Revision,
    /// The project at that revision.
    pub spec: ProjectSpec,
    /// Public origin of each service, such as `http://web--signed-links--acme.dev.localhost`.
    pub urls: BTreeMap<ServiceName, String>,
    /// Public origin of its presigned storage addresses.
    #[serde(default)]
    pub storage_url: Option<String>,
}

/// Desired shell layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DesiredShell {
    /// Prepared and kept.
    Ready,
    /// Removed with all data: the only instruction that removes anything.
    Absent,
}

/// Desired runtime layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum DesiredRuntime {
    /// No process.
    Asleep {
        /// `asked`, `schedule`, `cap`, `new`, `idle`.
        reason: String,
    },
    /// Awake until idle; the host may settle asleep at the same generation.
    Awake {
        /// What asked: `up`, `wake`, `link`, `service`, `run`, `schedule`.
        trigger: String,
    },
}

/// How far a host is with an intent's layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum Phase {
    /// On the way.
    Working,
    /// What was desired is so (or, for an awake runtime, ended idle).
    Settled,
    /// Cannot be reached without someone doing something.
    Failed {
        /// Why, and what to do.
        trouble: crate::states::Trouble,
    },
}

/// Everything a host says about one workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WorkspaceReport {
    /// Which.
    pub workspace: WorkspaceId,
    /// Order of this host's reports in this epoch; an older one never overwrites a newer one.
    pub seq: u64,
    /// The generation all of this is about: the newest that was accepted, or one that could not be, as the phases say.
    pub accepted: Generation,
    /// Shell layer.
    pub shell: LayerReport<ShellState>,
    /// Runtime layer.
    pub runtime: LayerReport<RuntimeState>,
    /// The size the runtime has or will have; absent until a manifest was read.
    #[serde(default)]
    pub size: Option<RuntimeSize>,
    /// The runtime instance, while there is one.
    #[serde(default)]
    pub instance: Option<RuntimeInstanceId>,
    /// What this wake's START_RUNTIME comes to, once known.
    #[serde(default)]
    pub start: Option<StartVerdict>,
    /// Services and workers in written order.
    #[serde(default)]
    pub services: Vec<ServiceReport>,
    /// Resources.
    #[serde(default)]
    pub resources: Vec<ResourceReport>,
    /// Setup steps as they stand.
    #[serde(default)]
    pub steps: Vec<StepReport>,
    /// Findings in the workspace's envforge.yml files.
    #[serde(default)]
    pub diagnostics: Vec<Diagnostic>,
    /// What keeps it awake, as the idle judge sees it.
    #[serde(default)]
    pub activity: Activity,
    /// Restarts that were refused because what runs must not be exchanged for something that cannot.
    #[serde(default)]
    pub refused: Vec<Refusal>,
    /// What services show to the outside, as their envforge.yml files said when they were read last; in the project's
    /// order, without those whose file was never read. Also of a workspace that has never been awake.
    #[serde(default)]
    pub faces: Vec<Face>,
    /// What making it as a copy cost.
    #[serde(default)]
    pub copied: Option<CopyReport>,
    /// Its snapshots, oldest first.
    #[serde(default)]
    pub snapshots: Vec<SnapshotView>,
}

/// What a service shows to a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Face {
    /// Which.
    #[schema(value_type = String)]
    pub service: ServiceName,
    /// Its ports in the workspace's network, by name.
    #[schema(value_type = BTreeMap<String, u16>)]
    pub ports: BTreeMap<ServiceName, u16>,
    /// The one that its own dev host leads to: `http`, or the only one.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub main: Option<ServiceName>,
    /// Declared path prefixes and their families.
    #[serde(default)]
    pub families: Vec<(String, Family)>,
    /// How requests are presented to it.
    pub proxy: ProxyMode,
}

impl Face {
    /// The number of the main port.
    #[must_use]
    pub fn main_port(&self) -> Option<u16> {
        self.main.as_ref().and_then(|name| self.ports.get(name)).copied()
    }

    /// Ports beside the main one: each has a dev host of its own.
    pub fn further_ports(&self) -> impl Iterator<Item = (&ServiceName, u16)> {
        self.ports.iter().filter(|(name, _)| self.main.as_ref() != Some(*name)).map(|(name, port)| (name, *port))
    }
}

/// The newest refusal to restart a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Refusal {
    /// Which.
    #[schema(value_type = String)]
    pub service: ServiceName,
    /// The intent that asked for it.
    #[schema(value_type = u64)]
    pub generation: Generation,
    /// Why.
    pub reason: String,
}

/// A layer's state and how it stands to the intent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LayerReport<S> {
    /// What the user sees.
    #[serde(flatten)]
    pub stated: Stated<S>,
    /// Against the accepted intent.
    pub phase: Phase,
}

/// How a wake ended: every service healthy once, or the start period of the last one passed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", tag = "verdict")]
pub enum StartVerdict {
    /// Every service was healthy once.
    Succeeded,
    /// These were not.
    Failed {
        /// Their names.
        services: Vec<String>,
    },
}

/// One service or worker. Workers are named `<service>.<worker>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ServiceReport {
    /// `web`, `backend.mailer`.
    pub name: String,
    /// Service or worker.
    pub kind: ServiceKind,
    /// State, since when, why.
    #[serde(flatten)]
    pub stated: Stated<ServiceState>,
    /// The last check.
    pub health: Health,
    /// Times it was restarted by itself in this runtime instance.
    pub restarts: u32,
    /// Exit status of its last process that ended (128 + signal when killed).
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// Its envforge.yml differs from the one it runs with.
    #[serde(default)]
    pub stale: bool,
    /// The port it listens on inside the workspace.
    #[serde(default)]
    pub port: Option<u16>,
    /// The last lines of its output, redacted; only while it is in a bad state.
    #[serde(default)]
    pub last_lines: Vec<String>,
}

/// One resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ResourceReport {
    /// Kind.
    pub kind: ResourceKind,
    /// The service it belongs to, where its scope is one service.
    #[serde(default)]
    pub service: Option<ServiceName>,
    /// Mode.
    pub mode: ResourceMode,
    /// State, since when, why.
    #[serde(flatten)]
    pub stated: Stated<ResourceState>,
    /// Services that declared it.
    pub consumers: Vec<ServiceName>,
    /// What is known of its last sleep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<SleepReceipt>,
}

/// A setup step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct StepReport {
    /// `backend.migrate`.
    pub name: String,
    /// Part of the shell layer (else of the runtime).
    pub shell_layer: bool,
    /// How it stands: `queued`, `running`, `succeeded`, `failed`, `interrupted`.
    pub state: crate::states::CommandState,
    /// Exit status.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// The last lines of its output, redacted; only when it failed.
    #[serde(default)]
    pub last_lines: Vec<String>,
}

/// What the idle judge sees.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Activity {
    /// What holds the runtime awake now, in words for people; empty = idle.
    #[serde(default)]
    pub holders: Vec<String>,
    /// When it became idle.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub idle_since: Option<Timestamp>,
    /// When it will sleep if it stays idle.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub sleeps_at: Option<Timestamp>,
    /// Why it last woke.
    #[serde(default)]
    pub last_wake: Option<Moment>,
    /// Why it last slept.
    #[serde(default)]
    pub last_sleep: Option<Moment>,
}

/// Something that happened, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Moment {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Why, in words for people.
    pub reason: String,
}
