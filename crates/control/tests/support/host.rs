//! A simulated host: it registers, syncs, and reports what a test tells it to.

use super::installation::Installation;
use envforge_api::{
    client::Client,
    command::{ActAnswer, ActReport, LeasedCommand},
    generation::{Generation, IntentSeq},
    host::{
        Capacity, Face, HostRole, LayerReport, Phase, RegisterAnswer, RegisterRequest, StartVerdict, SyncAnswer,
        SyncRequest, WorkspaceIntent, WorkspaceReport,
    },
    ids::{RuntimeInstanceId, WorkspaceId},
    problem::Problem,
    project::RuntimeSize,
    public::Opened,
    states::{CommandState, RuntimeState, ServiceState, ShellState, Stated},
    time::{BootId, BootMillis, Timestamp},
    usage::Reading,
};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// A registered daemon.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) client: Client,
    pub(crate) answer: RegisterAnswer,
    pub(crate) seq: IntentSeq,
    reports: u64,
}

/// The registration of a host that knows nothing.
pub(crate) fn registration() -> RegisterRequest {
    RegisterRequest {
        roles: BTreeSet::from([HostRole::Shell, HostRole::Runtime]),
        boot: BootId("boot-1".into()),
        boot_now: BootMillis(1_000_000),
        version: "test".into(),
        capacity: Capacity { cpu_millis: 4000, memory_bytes: 8 << 30 },
        local_socket: Some("/run/test.sock".into()),
        dial_socket: Some("/run/dial.sock".into()),
        known: BTreeMap::new(),
    }
}

impl Host {
    /// Registers with the host's token.
    pub(crate) async fn register(client: Client) -> Self {
        Self::register_as(client, registration()).await
    }

    /// Registers with a given request.
    pub(crate) async fn register_as(client: Client, request: RegisterRequest) -> Self {
        let answer = client.post("/v1/host/register", &request).await.expect("registered");
        Self { client, answer, seq: IntentSeq(0), reports: 0 }
    }

    /// An empty sync.
    pub(crate) fn request(&self, wait_ms: u32) -> SyncRequest {
        SyncRequest {
            epoch: self.answer.epoch,
            intent_seq: self.seq,
            wait_ms,
            reports: vec![],
            readings: vec![],
            acts: vec![],
            orphans: vec![],
        }
    }

    /// Sends a request as it is.
    pub(crate) async fn send(&self, request: &SyncRequest) -> Result<SyncAnswer, Problem> {
        self.client.post("/v1/host/sync", request).await
    }

    /// A parked sync that ledgers what it gets.
    pub(crate) async fn sync(&mut self, wait_ms: u32) -> SyncAnswer {
        let answer = self.send(&self.request(wait_ms)).await.expect("synced");
        self.seq = answer.intent_seq;
        answer
    }

    /// The newest intent of a workspace, asked for from the beginning.
    pub(crate) async fn intent(&self, workspace: &WorkspaceId) -> Option<WorkspaceIntent> {
        let request = SyncRequest { intent_seq: IntentSeq(0), ..self.request(0) };
        let answer = self.send(&request).await.expect("synced");
        answer.intents.into_iter().find(|intent| intent.workspace == *workspace)
    }

    /// Reports, without waiting.
    pub(crate) async fn report(&mut self, report: WorkspaceReport) {
        self.reports += 1;
        let report = WorkspaceReport { seq: self.reports, ..report };
        let request = SyncRequest { reports: vec![report], ..self.request(0) };
        self.send(&request).await.expect("reported");
    }

    /// Sends readings; returns what is stored.
    pub(crate) async fn readings(&self, readings: Vec<Reading>) -> Vec<(RuntimeInstanceId, u64)> {
        let request = SyncRequest { readings, ..self.request(0) };
        self.send(&request).await.expect("read").stored_readings
    }

    /// Reports the end of a leased act.
    pub(crate) async fn answer(&self, lease: &LeasedCommand, answer: Option<ActAnswer>) {
        let act =
            ActReport { id: lease.id.clone(), state: CommandState::Succeeded, exit_code: None, reason: None, answer };
        let request = SyncRequest { acts: vec![act], ..self.request(0) };
        let answer = self.send(&request).await.expect("answered");
        assert_eq!(answer.recorded_acts, std::slice::from_ref(&lease.id));
        assert!(answer.leases.iter().all(|other| other.id != lease.id), "an ended lease is not repeated");
    }
}

/// A report of a workspace whose shell is ready and whose runtime stands as given.
pub(crate) fn report(workspace: &WorkspaceId, accepted: u64, state: RuntimeState, phase: Phase) -> WorkspaceReport {
    let now = Timestamp::now();
    WorkspaceReport {
        workspace: workspace.clone(),
        seq: 0,
        accepted: Generation(accepted),
        shell: LayerReport { stated: Stated::plain(ShellState::Ready, now), phase: Phase::Settled },
        runtime: LayerReport { stated: Stated::plain(state, now), phase },
        size: Some(RuntimeSize::Small),
        instance: None,
        start: None,
        services: vec![],
        resources: vec![],
        steps: vec![],
        diagnostics: vec![],
        activity: envforge_api::host::Activity::default(),
        refused: vec![],
        faces: vec![],
        copied: None,
        snapshots: vec![],
    }
}

/// A workspace that is awake at generation 1, with its host.
pub(crate) async fn woken(it: &Installation) -> (Host, Opened) {
    let mut host = it.host().await;
    let opened = it.open("ws", true).await;
    host.sync(0).await;
    host.report(awake(&opened.id, 1)).await;
    (host, opened)
}

/// Awake, with every service healthy once.
pub(crate) fn awake(workspace: &WorkspaceId, accepted: u64) -> WorkspaceReport {
    let mut report = report(workspace, accepted, RuntimeState::Awake, Phase::Settled);
    report.start = Some(StartVerdict::Succeeded);
    for name in ["web", "api"] {
        report.services.push(service(name, ServiceState::Healthy));
    }
    report
}

/// What a service shows whose envforge.yml was read.
pub(crate) fn face(service: &str, ports: &[(&str, u16)], main: Option<&str>) -> Face {
    serde_json::from_value(json!({
        "service": service,
        "ports": ports.iter().copied().collect::<BTreeMap<_, _>>(),
        "main": main,
        "families": [["/ws", "websockets"]],
        "proxy": "localhost",
    }))
    .expect("a face")
}

/// A service with an HTTP port.
pub(crate) fn service(name: &str, state: ServiceState) -> envforge_api::host::ServiceReport {
    serde_json::from_value(json!({
        "name": name, "kind": "service", "state": state, "since": Timestamp::now(), "health": "passing",
        "restarts": 0, "port": 3000,
    }))
    .expect("a service report")
}
