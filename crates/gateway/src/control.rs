//! What the gateway says to the control plane. It shows its own token and never a visitor's, except a link that is to
//! become a code.

use envforge_api::{
    client::{Client, Endpoint},
    dev_host::HostLabel,
    gateway::{
        Activity, ActivityReport, Code, CodeRequest, Feed, InsideRequest, Route, RouteRequest, StorageRequest,
        StorageRoute, VisitGranted, VisitRequest, WakeAnswer, WakeRequest,
    },
    ids::WorkspaceId,
    link::Holder,
    problem::Problem,
    secret::Secret,
};
use std::time::Duration;

/// Longer than the feed is parked.
const FEED_DEADLINE: Duration = Duration::from_secs(35);
/// A visitor waits for these.
const DEADLINE: Duration = Duration::from_secs(10);

/// A client of the gateway protocol.
#[derive(Debug)]
pub(crate) struct Control {
    feed: Client,
    calls: Client,
}

impl Control {
    pub(crate) fn new(server: Endpoint, token: Secret) -> Self {
        let client = Client::new(server, Some(token));
        let calls = client.clone().with_deadline(DEADLINE).with_patience(Duration::from_secs(3));
        Self { feed: client.with_deadline(FEED_DEADLINE), calls }
    }

    pub(crate) async fn feed(&self, since: u64, wait_ms: u32) -> Result<Feed, Problem> {
        self.feed.get(&format!("/v1/gateway/feed?since={since}&wait_ms={wait_ms}")).await
    }

    pub(crate) async fn code(&self, link: &str) -> Result<Code, Problem> {
        self.calls.post("/v1/gateway/codes", &CodeRequest { link: Secret::new(link.to_owned()) }).await
    }

    pub(crate) async fn visit(&self, code: &str, host: &HostLabel) -> Result<VisitGranted, Problem> {
        let request = VisitRequest { code: Secret::new(code.to_owned()), host: host.clone() };
        self.calls.post("/v1/gateway/visits", &request).await
    }

    pub(crate) async fn inside(&self, workspace: &WorkspaceId, host: &HostLabel) -> Result<VisitGranted, Problem> {
        let request = InsideRequest { workspace: workspace.clone(), host: host.clone() };
        self.calls.post("/v1/gateway/inside", &request).await
    }

    pub(crate) async fn route(&self, host: &HostLabel, workspace: &WorkspaceId) -> Result<Route, Problem> {
        let request = RouteRequest { host: host.clone(), workspace: workspace.clone() };
        self.calls.post("/v1/gateway/routes", &request).await
    }

    pub(crate) async fn storage(&self, host: &HostLabel) -> Result<StorageRoute, Problem> {
        self.calls.post("/v1/gateway/storage", &StorageRequest { host: host.clone() }).await
    }

    pub(crate) async fn wake(&self, workspace: &WorkspaceId, holder: &Holder) -> Result<WakeAnswer, Problem> {
        let request = WakeRequest { workspace: workspace.clone(), holder: holder.clone() };
        self.calls.post("/v1/gateway/wakes", &request).await
    }

    pub(crate) async fn activity(&self, items: Vec<Activity>) -> Result<(), Problem> {
        self.calls.post("/v1/gateway/activity", &ActivityReport { items }).await
    }
}
