//! The protocol between a gateway and the control plane. A gateway holds a token of its own and public keys, nothing
//! else; every request names something that it has verified by itself first.
//!
//! * `GET /v1/gateway/feed?since=N&wait_ms=W`: parked like a host's sync; keys, revocations and how workspaces stand.
//! * `POST /v1/gateway/codes`, `…/visits`: a link becomes a code, a code becomes a visit, each once.
//! * `POST /v1/gateway/inside`: a workspace visits its own dev host.
//! * `POST /v1/gateway/routes`: where a dev host leads, with what it takes to connect there.
//! * `POST /v1/gateway/storage`: whose presigned storage addresses a dev host has.
//! * `POST /v1/gateway/wakes`: a verified request that deserves one.
//! * `POST /v1/gateway/activity`: what was carried, stored once by its id.

use crate::{
    dev_host::{HostLabel, ProxyMode},
    generation::Generation,
    ids::{ActivityId, HostId, OrganizationId, RuntimeInstanceId, WorkspaceId},
    link::{Family, Holder},
    names::{ServiceName, Slug},
    secret::Secret,
    sign::VerifyKey,
    states::{RuntimeState, ServiceKind, ServiceState, Stated, Trouble},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

/// Longest time a feed request is parked, in milliseconds.
pub const MAX_PARK_MS: u32 = 25_000;
/// For how long a gateway that hears nothing serves known visits, in seconds.
pub const CUT_OFF_SECONDS: u64 = 60;

/// Answer of the feed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Feed {
    /// To ask from next; 0 asks for everything.
    pub seq: u64,
    /// Whether this is everything, so that what it does not name is forgotten.
    pub whole: bool,
    /// The host names below which dev hosts lie, with their port where it is not the scheme's own.
    pub base: String,
    /// `http` or `https`.
    pub scheme: String,
    /// All keys that verify now.
    pub keys: Vec<VerifyKey>,
    /// Revoked since, and not expired yet.
    #[serde(default)]
    pub revoked: Vec<Revoked>,
    /// Workspaces that changed since.
    #[serde(default)]
    pub workspaces: Vec<Standing>,
}

/// Something that may not be used any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Revoked {
    /// A link, or a member who left.
    pub holder: Holder,
    /// When everything of it has expired anyway, and it may be forgotten.
    #[schema(value_type = String, format = DateTime)]
    pub until: Timestamp,
}

/// How a workspace stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Standing {
    /// Which.
    pub workspace: WorkspaceId,
    /// False once it is deleted.
    pub present: bool,
    /// The desired state's version.
    pub generation: Generation,
    /// The runtime.
    pub runtime: Stated<RuntimeState>,
    /// What serves, while something does: connections to another instance are of no use any more.
    #[serde(default)]
    pub instance: Option<RuntimeInstanceId>,
    /// Services and workers, in written order.
    #[serde(default)]
    pub services: Vec<ServiceStanding>,
    /// Changes when where its dev hosts lead changes: a route fetched under another version is stale.
    pub routes: u64,
}

/// How a service stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ServiceStanding {
    /// Name.
    pub name: String,
    /// Service or worker.
    pub kind: ServiceKind,
    /// State, since when, why.
    #[serde(flatten)]
    pub stated: Stated<ServiceState>,
}

/// `POST /v1/gateway/codes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CodeRequest {
    /// The link's token; the control plane looks at it again.
    #[schema(value_type = String)]
    pub link: Secret,
}

/// Answer to [`CodeRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Code {
    /// Used once, within a minute, on that host.
    #[schema(value_type = String)]
    pub code: Secret,
    /// The dev host.
    pub host: HostLabel,
}

/// `POST /v1/gateway/visits`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct VisitRequest {
    /// The code.
    #[schema(value_type = String)]
    pub code: Secret,
    /// The dev host on which it was given.
    pub host: HostLabel,
}

/// Answer to [`VisitRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct VisitGranted {
    /// The signed visit: the cookie's value.
    #[schema(value_type = String)]
    pub token: Secret,
    /// When it ends.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
}

/// `POST /v1/gateway/inside`: a connection came from inside a workspace, by the word of its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct InsideRequest {
    /// The workspace it came from.
    pub workspace: WorkspaceId,
    /// The dev host it is for: one of that workspace's own.
    pub host: HostLabel,
}

/// `POST /v1/gateway/routes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RouteRequest {
    /// The dev host, of a visit or link that was verified.
    pub host: HostLabel,
    /// The workspace that the visit or link names: another one's host is not found.
    pub workspace: WorkspaceId,
}

/// `POST /v1/gateway/storage`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct StorageRequest {
    /// The dev host, of a request that nobody has verified yet: only its host can.
    pub host: HostLabel,
}

/// Who can verify presigned requests of a dev host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct StorageRoute {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// What it takes to ask its host.
    pub dial: Dial,
}

/// Where a dev host leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Route {
    /// The dev host.
    pub host: HostLabel,
    /// Its public origin, such as `http://web--signed-links--local.dev.localhost:8080`.
    pub origin: String,
    /// The workspace.
    pub workspace: WorkspaceId,
    /// Slug of the workspace, for the waiting page.
    pub slug: Slug,
    /// The tenant, for limits.
    pub organization: OrganizationId,
    /// [`Standing::routes`] at the time of this answer.
    pub version: u64,
    /// What the host's own paths lead to.
    pub target: Target,
    /// Paths that lead to another service, longest prefix on whole segments first.
    #[serde(default)]
    pub bindings: Vec<Binding>,
    /// How to connect.
    pub dial: Dial,
}

/// A service behind a dev host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Target {
    /// Which.
    pub service: ServiceName,
    /// The port it listens on in the workspace's network; absent until its envforge.yml was read.
    #[serde(default)]
    pub port: Option<u16>,
    /// How it is proxied.
    pub proxy: ProxyMode,
    /// Declared path prefixes and their families.
    #[serde(default)]
    pub families: Vec<(String, Family)>,
}

/// A path prefix that leads to another service, unstripped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Binding {
    /// `/api`.
    pub path: String,
    /// Where it leads.
    pub target: Target,
}

/// What it takes to connect into a workspace's network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Dial {
    /// The host that carries it.
    pub host: HostId,
    /// Its dial socket, when it is on this machine.
    #[serde(default)]
    pub socket: Option<String>,
    /// A capability to dial this workspace.
    #[schema(value_type = String)]
    pub token: Secret,
    /// When the capability ends.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
}

/// `POST /v1/gateway/wakes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WakeRequest {
    /// Which.
    pub workspace: WorkspaceId,
    /// On whose account.
    pub holder: Holder,
}

/// Answer to [`WakeRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", tag = "wake")]
pub enum WakeAnswer {
    /// It is awake, or on its way, at this generation.
    Asked {
        /// The desired state's version.
        generation: Generation,
    },
    /// It may not wake now.
    Refused {
        /// Why, in words that a visitor may read.
        trouble: Trouble,
        /// Asking again before then is of no use.
        #[schema(value_type = String, format = DateTime)]
        until: Timestamp,
    },
}

/// `POST /v1/gateway/activity`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ActivityReport {
    /// Each is stored once.
    pub items: Vec<Activity>,
}

/// What one holder carried to one workspace in one span of time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Activity {
    /// Made by the gateway; a report that is sent again counts once.
    pub id: ActivityId,
    /// Which.
    pub workspace: WorkspaceId,
    /// On whose account; absent in an item that only counts awake seconds.
    #[serde(default)]
    pub holder: Option<Holder>,
    /// What kind of traffic.
    #[serde(default)]
    pub family: Option<Family>,
    /// The span's beginning.
    #[schema(value_type = String, format = DateTime)]
    pub from: Timestamp,
    /// The span's end.
    #[schema(value_type = String, format = DateTime)]
    pub to: Timestamp,
    /// Requests that were forwarded.
    pub requests: u64,
    /// Octets in both directions, of sockets.
    pub socket_octets: u64,
    /// Seconds of the span in which the gateway saw the runtime awake.
    pub awake_seconds: u64,
    /// The last moment that counts against idleness.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub counts_at: Option<Timestamp>,
}
