//! What is left of a report when its host was started again: nothing that ran. Pure.
//!
//! Until the new daemon's first report comes, the old one must not be believed: it would call a runtime awake that no
//! process is left of, and a wake of it done.

use envforge_api::{
    host::{Activity, LayerReport, Phase, WorkspaceReport},
    states::{Health, ResourceState, RuntimeState, ServiceState, ShellState, Stated},
    time::Timestamp,
};

/// The report after a reboot; `awake` is whether the runtime should be.
pub(super) fn after_reboot(report: WorkspaceReport, awake: bool, now: Timestamp) -> WorkspaceReport {
    let ran = !matches!(report.runtime.stated.state, RuntimeState::Asleep | RuntimeState::Failed);
    let mut next = WorkspaceReport { seq: 0, instance: None, ..report };
    if next.shell.stated.state == ShellState::Ready {
        next.shell = LayerReport { stated: Stated::plain(ShellState::Preparing, now), phase: Phase::Working };
    }
    if !ran {
        return next;
    }
    let (state, phase) =
        if awake { (RuntimeState::Waking, Phase::Working) } else { (RuntimeState::Asleep, Phase::Settled) };
    next.runtime = LayerReport { stated: Stated::plain(state, now), phase };
    next.start = None;
    for service in &mut next.services {
        service.stated = Stated::plain(ServiceState::Stopped, now);
        service.health = Health::None;
    }
    for resource in next.resources.iter_mut().filter(|r| r.stated.state == ResourceState::Ready) {
        resource.stated = Stated::plain(ResourceState::Waking, now);
    }
    next.activity =
        Activity { last_wake: next.activity.last_wake, last_sleep: next.activity.last_sleep, ..Activity::default() };
    next
}
