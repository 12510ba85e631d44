//! How a record stands, read from what its host reports. Pure.
//!
//! A record ends by what is so, not by what was sent: a report about an older generation says nothing about it.

use super::store::Open;
use crate::workspaces::lifecycle::ServiceOrder;
use envforge_api::{
    command::CommandKind,
    host::{Phase, ResourceReport, ServiceReport, StartVerdict, WorkspaceReport},
    public::ServiceVerb,
    receipt::ResourceReceipt,
    states::{CommandState, RuntimeState, ServiceState, ShellState},
    time::Timestamp,
};

/// How a record stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing is known yet.
    Unknown,
    /// The host works on it.
    Running,
    /// It reached its aim.
    Succeeded,
    /// It will not, for this reason.
    Failed(String),
}

impl Progress {
    /// State and reason to be stored, where that is something new.
    pub(crate) fn news(&self, known: CommandState) -> Option<(CommandState, Option<&str>)> {
        match self {
            Self::Unknown => None,
            Self::Running if known == CommandState::Running => None,
            Self::Running => Some((CommandState::Running, None)),
            Self::Succeeded => Some((CommandState::Succeeded, None)),
            Self::Failed(reason) => Some((CommandState::Failed, Some(reason))),
        }
    }
}

/// Judges an unfinished record by the newest report.
pub(crate) fn judge(command: &Open, report: &WorkspaceReport) -> Progress {
    if report.accepted < command.generation {
        return Progress::Unknown;
    }
    let runtime = &report.runtime;
    let asleep = runtime.stated.state == RuntimeState::Asleep && runtime.phase == Phase::Settled;
    match command.kind {
        CommandKind::PrepareShell => match (&report.shell.phase, report.shell.stated.state) {
            (Phase::Failed { trouble }, _) => Progress::Failed(trouble.reason.clone()),
            (Phase::Settled, ShellState::Ready) => Progress::Succeeded,
            (Phase::Settled | Phase::Working, _) => Progress::Running,
        },
        CommandKind::StartRuntime => match (&report.start, &runtime.phase) {
            (Some(StartVerdict::Succeeded), _) => Progress::Succeeded,
            (Some(StartVerdict::Failed { services }), _) => {
                Progress::Failed(format!("not healthy within their start period: {}", services.join(", ")))
            }
            (None, Phase::Failed { trouble }) => Progress::Failed(trouble.reason.clone()),
            (None, Phase::Settled | Phase::Working) if runtime.stated.state == RuntimeState::Failed => {
                Progress::Failed(runtime.stated.reason.clone().unwrap_or_else(|| "the runtime failed".into()))
            }
            (None, Phase::Settled | Phase::Working) if asleep => {
                Progress::Failed("the runtime went to sleep before every service was healthy".into())
            }
            (None, Phase::Settled | Phase::Working) => Progress::Running,
        },
        CommandKind::SleepRuntime => match &runtime.phase {
            Phase::Failed { trouble } => Progress::Failed(trouble.reason.clone()),
            Phase::Settled | Phase::Working if asleep => Progress::Succeeded,
            Phase::Settled | Phase::Working => Progress::Running,
        },
        CommandKind::ControlService => match &command.order {
            Some(order) => services(order, command, report, asleep),
            None => Progress::Unknown,
        },
        CommandKind::DeleteWorkspace => match (&report.shell.phase, report.shell.stated.state) {
            (Phase::Failed { trouble }, _) => Progress::Failed(trouble.reason.clone()),
            (Phase::Settled, ShellState::Absent) => Progress::Succeeded,
            (Phase::Settled | Phase::Working, _) => Progress::Running,
        },
        // End by the host's word on the leased act.
        CommandKind::RunCommand
        | CommandKind::CreateSnapshot
        | CommandKind::RestoreSnapshot
        | CommandKind::RemoveSnapshot => Progress::Unknown,
        // Ends with the preparation of the workspace that it makes.
        CommandKind::ForkWorkspace => Progress::Unknown,
    }
}

/// What a record of a wake or sleep keeps of data services when it ends.
pub(crate) fn receipt(kind: CommandKind, state: CommandState, report: &WorkspaceReport) -> Vec<ResourceReceipt> {
    let keeps = match kind {
        CommandKind::SleepRuntime => state == CommandState::Succeeded,
        CommandKind::StartRuntime => matches!(state, CommandState::Succeeded | CommandState::Failed),
        CommandKind::PrepareShell
        | CommandKind::RunCommand
        | CommandKind::ControlService
        | CommandKind::DeleteWorkspace
        | CommandKind::ForkWorkspace
        | CommandKind::CreateSnapshot
        | CommandKind::RestoreSnapshot
        | CommandKind::RemoveSnapshot => false,
    };
    let of = |resource: &ResourceReport| {
        let receipt = resource.receipt.clone()?;
        Some(ResourceReceipt { kind: resource.kind, service: resource.service.clone(), receipt })
    };
    if keeps { report.resources.iter().filter_map(of).collect() } else { Vec::new() }
}

fn services(order: &ServiceOrder, command: &Open, report: &WorkspaceReport, asleep: bool) -> Progress {
    match (order.verb, asleep) {
        (ServiceVerb::Stop, true) => return Progress::Succeeded,
        (ServiceVerb::Start | ServiceVerb::Restart, true) => {
            return Progress::Failed("the runtime sleeps: nothing was started".into());
        }
        (ServiceVerb::Start | ServiceVerb::Stop | ServiceVerb::Restart, false) => {}
    }
    if let Phase::Failed { trouble } = &report.runtime.phase {
        return Progress::Failed(trouble.reason.clone());
    }
    let mut bad = Vec::new();
    let mut waiting = false;
    for name in &order.names {
        let refusal = report.refused.iter().find(|r| r.service == *name && r.generation >= command.generation);
        if let (ServiceVerb::Restart, Some(refusal)) = (order.verb, refusal) {
            bad.push(format!("{name}: it runs on as it was, because {}", refusal.reason));
            continue;
        }
        match report.services.iter().find(|service| service.name == name.as_str()) {
            None => waiting = true,
            Some(service) => match one(order.verb, command.requested_at, service) {
                Progress::Failed(reason) => bad.push(format!("{name}: {reason}")),
                Progress::Unknown | Progress::Running => waiting = true,
                Progress::Succeeded => {}
            },
        }
    }
    match (waiting, bad.is_empty()) {
        (true, _) => Progress::Running,
        (false, true) => Progress::Succeeded,
        (false, false) => Progress::Failed(bad.join("; ")),
    }
}

/// One service. What it was before the request says nothing about a start or restart.
fn one(verb: ServiceVerb, requested_at: Timestamp, service: &ServiceReport) -> Progress {
    let stated = &service.stated;
    let fresh = stated.since >= requested_at;
    let reason = || stated.reason.clone().unwrap_or_else(|| format!("it is {}", stated.state));
    match (verb, stated.state) {
        (ServiceVerb::Stop, ServiceState::Stopped) | (ServiceVerb::Start, ServiceState::Healthy) => Progress::Succeeded,
        (ServiceVerb::Restart, ServiceState::Healthy) if fresh => Progress::Succeeded,
        (ServiceVerb::Start | ServiceVerb::Restart, ServiceState::Unhealthy | ServiceState::Crashed) if fresh => {
            Progress::Failed(reason())
        }
        (
            ServiceVerb::Stop | ServiceVerb::Start | ServiceVerb::Restart,
            ServiceState::Stopped
            | ServiceState::Starting
            | ServiceState::Healthy
            | ServiceState::Unhealthy
            | ServiceState::Crashed,
        ) => Progress::Running,
    }
}

#[cfg(test)]
#[path = "progress_tests.rs"]
mod tests;
