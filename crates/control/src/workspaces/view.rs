//! A workspace as it is shown: what should be, what its host last said, what the meter says. Pure.

use super::store::Row;
use crate::{dev_hosts::base::Base, hosts::store::Presence, usage::store::OpenSession};
use envforge_api::{
    host::{DesiredShell, WorkspaceReport},
    public::{BillingView, LinkView, ResourceView, RuntimeView, ServiceView, WorkspaceView},
    states::{BillingState, Health, RuntimeState, ServiceKind, ServiceState, ShellState, Stated},
    time::Timestamp,
};

/// Without a sync for so long, what is shown is called old.
const LOST_SECONDS: i64 = 60;

/// Puts a view together.
pub(crate) fn assemble(
    row: &Row,
    session: Option<&OpenSession>,
    presence: Option<&Presence>,
    links: Vec<LinkView>,
    base: &Base,
    now: Timestamp,
) -> WorkspaceView {
    let report = row.report.as_ref();
    let heard = presence.and_then(|presence| presence.last_sync_at).unwrap_or(row.created_at);
    WorkspaceView {
        id: row.id.clone(),
        workspace: row.slug.clone(),
        project: row.project.clone(),
        organization: row.organization_slug.clone(),
        branch: row.branch.clone(),
        owner: row.owner_name.clone(),
        version: row.version,
        shell: shell(row, report),
        runtime: RuntimeView {
            stated: runtime(row),
            size: report.and_then(|report| report.size).or(row.spec.runtime.size),
            generation: row.generation,
        },
        services: services(row, report, base),
        resources: report.map(resources).unwrap_or_default(),
        steps: report.map(|report| report.steps.clone()).unwrap_or_default(),
        billing: BillingView {
            state: if session.is_some() { BillingState::Metering } else { BillingState::Off },
            session_started_at: session.map(|session| session.started_at),
            session_seconds: session.map(|session| session.observed_ms / 1000),
        },
        links,
        diagnostics: report.map(|report| report.diagnostics.clone()).unwrap_or_default(),
        activity: report.map(|report| report.activity.clone()).unwrap_or_default(),
        snapshots: report.map(|report| report.snapshots.clone()).unwrap_or_default(),
        host_lost_since: (now.duration_since(heard).as_secs() > LOST_SECONDS).then_some(heard),
    }
}

fn shell(row: &Row, report: Option<&WorkspaceReport>) -> Stated<ShellState> {
    match (report, row.desired.shell) {
        // It failed before this was asked: it is tried again.
        (Some(report), DesiredShell::Ready)
            if report.accepted < row.generation && report.shell.stated.state == ShellState::Failed =>
        {
            Stated::plain(ShellState::Preparing, row.desired_at)
        }
        (Some(report), _) => report.shell.stated.clone(),
        (None, DesiredShell::Ready) => Stated::plain(ShellState::Preparing, row.created_at),
        (None, DesiredShell::Absent) => Stated::plain(ShellState::Absent, row.desired_at),
    }
}

/// What was asked shows at once: the host may hear of it a moment later.
pub(crate) fn runtime(row: &Row) -> Stated<RuntimeState> {
    let report = row.report.as_ref();
    let awake = row.desired.awake();
    let Some(report) = report else {
        return if awake {
            Stated::plain(RuntimeState::Waking, row.desired_at)
        } else {
            Stated::plain(RuntimeState::Asleep, row.created_at)
        };
    };
    let said = &report.runtime.stated;
    let heard_of = report.accepted >= row.generation;
    match (heard_of, awake, said.state) {
        (false, true, state) if state.can_wake() => Stated::plain(RuntimeState::Waking, row.desired_at),
        (false, false, RuntimeState::Waking | RuntimeState::Awake | RuntimeState::Frozen) => {
            Stated::plain(RuntimeState::Sleeping, row.desired_at)
        }
        (true | false, true | false, _) => said.clone(),
    }
}

fn services(row: &Row, report: Option<&WorkspaceReport>, base: &Base) -> Vec<ServiceView> {
    let urls = row.urls(base);
    let reported = report.map(|report| report.services.as_slice()).unwrap_or_default();
    if reported.is_empty() {
        // No manifest was read yet: the project at least names its services.
        return row
            .spec
            .services
            .iter()
            .map(|service| ServiceView {
                name: service.name.to_string(),
                kind: ServiceKind::Service,
                stated: Stated::plain(ServiceState::Stopped, row.created_at),
                health: Health::None,
                url: urls.get(&service.name).cloned(),
                restarts: 0,
                exit_code: None,
                stale: false,
                port: None,
                last_lines: Vec::new(),
            })
            .collect();
    }
    reported
        .iter()
        .map(|service| {
            let origin = match service.kind {
                ServiceKind::Service => service.port.and_then(|_| urls.get(service.name.as_str())),
                ServiceKind::Worker => None,
            };
            ServiceView {
                name: service.name.clone(),
                kind: service.kind,
                stated: service.stated.clone(),
                health: service.health,
                url: origin.cloned(),
                restarts: service.restarts,
                exit_code: service.exit_code,
                stale: service.stale,
                port: service.port,
                last_lines: service.last_lines.clone(),
            }
        })
        .collect()
}

fn resources(report: &WorkspaceReport) -> Vec<ResourceView> {
    report
        .resources
        .iter()
        .map(|resource| ResourceView {
            kind: resource.kind,
            mode: resource.mode,
            stated: resource.stated.clone(),
            service: resource.service.clone(),
            consumers: resource.consumers.clone(),
            url: resource.kind.safe_url().to_owned(),
            receipt: resource.receipt.clone(),
        })
        .collect()
}
