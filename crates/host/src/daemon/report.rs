//! What the host says about a workspace: one whole value made of what the daemon knows, by pure functions.

use super::{
    hub::{Hub, RuntimeFacts, Workspace},
    intents::Unkept,
};
use envforge_api::{
    host::{Activity, DesiredRuntime, DesiredShell, LayerReport, Phase, WorkspaceIntent, WorkspaceReport},
    ids::WorkspaceId,
    states::{RuntimeState, ShellState, Stated, Trouble},
    time::Timestamp,
};

/// The report on a workspace, without its number. `None` when there is nothing to say of it (yet).
#[must_use]
pub(super) fn of(hub: &Hub, id: &WorkspaceId) -> Option<WorkspaceReport> {
    match (hub.get(id), hub.unkept(id)) {
        (Some(workspace), None) => report(&workspace).map(|report| held(report, hub.room.holds(id))),
        (Some(workspace), Some(unkept)) => report(&workspace).map(|report| refused(report, &unkept)),
        (None, Some(unkept)) => Some(refused(blank(&unkept), &unkept)),
        (None, None) => None,
    }
}

/// What is so, in answer to an intent that is not accepted: whatever that asks for and is not so already has failed.
fn refused(mut report: WorkspaceReport, unkept: &Unkept) -> WorkspaceReport {
    let (intent, trouble) = (&unkept.intent, &unkept.trouble);
    let failed = || Phase::Failed { trouble: trouble.clone() };
    report.accepted = intent.generation;
    report.start = None;
    match (intent.shell, report.shell.stated.state) {
        (DesiredShell::Ready, ShellState::Ready) => {}
        (DesiredShell::Ready, ShellState::Absent | ShellState::Failed) => {
            let stated = Stated::because(ShellState::Failed, unkept.since, trouble.clone());
            report.shell = LayerReport { stated, phase: failed() };
        }
        (DesiredShell::Ready | DesiredShell::Absent, _) => report.shell.phase = failed(),
    }
    let state = report.runtime.stated.state;
    match (&intent.runtime, state) {
        (DesiredRuntime::Asleep { .. }, RuntimeState::Asleep) => report.runtime.phase = Phase::Settled,
        (DesiredRuntime::Awake { .. }, RuntimeState::Asleep | RuntimeState::Failed) => {
            let stated = Stated::because(RuntimeState::Failed, unkept.since, trouble.clone());
            report.runtime = LayerReport { stated, phase: failed() };
        }
        (DesiredRuntime::Asleep { .. } | DesiredRuntime::Awake { .. }, _) => report.runtime.phase = failed(),
    }
    report
}

/// The same of one that stands still for the disk: why, and what to do.
fn held(mut report: WorkspaceReport, trouble: Option<Trouble>) -> WorkspaceReport {
    if let Some(trouble) = trouble {
        let shell = &mut report.shell.stated;
        shell.reason.get_or_insert_with(|| trouble.reason.clone());
        shell.hint.get_or_insert_with(|| trouble.hint.clone());
        report.runtime.stated.hint.get_or_insert(trouble.hint);
    }
    report
}

/// A workspace of which this host has nothing.
pub(super) fn blank(unkept: &Unkept) -> WorkspaceReport {
    let shell = Stated::plain(ShellState::Absent, unkept.since);
    let runtime = Stated::plain(RuntimeState::Asleep, unkept.since);
    WorkspaceReport {
        workspace: unkept.intent.workspace.clone(),
        seq: 0,
        accepted: unkept.intent.generation,
        shell: LayerReport { stated: shell, phase: Phase::Working },
        runtime: LayerReport { stated: runtime, phase: Phase::Settled },
        size: None,
        instance: None,
        start: None,
        services: Vec::new(),
        resources: Vec::new(),
        steps: Vec::new(),
        diagnostics: Vec::new(),
        activity: Activity::default(),
        refused: Vec::new(),
        faces: Vec::new(),
        copied: None,
        snapshots: Vec::new(),
    }
}

/// The report on a workspace, without its number. `None` until this daemon knows what an earlier one left: what that
/// one said is truer than a guess.
#[must_use]
fn report(workspace: &Workspace) -> Option<WorkspaceReport> {
    let intent = workspace.intent.borrow().clone();
    let mut shell = workspace.shell.borrow().clone();
    if shell.state == ShellState::Failed && *workspace.shell_failed.borrow() < intent.generation {
        // It failed for an earlier intent: this one is being tried.
        shell = Stated::plain(ShellState::Preparing, shell.since);
    }
    let facts = workspace.runtime.borrow().clone();
    let unknown = !facts.known || shell.state == ShellState::Absent;
    if intent.shell == DesiredShell::Ready && unknown {
        return None;
    }
    let mut steps = workspace.steps.borrow().clone();
    let runtime = runtime(&intent, &shell, &facts);
    let current = facts.snapshot.as_ref().filter(|s| s.generation >= intent.generation);
    let mut services = facts.snapshot.as_ref().map(|s| s.services.clone()).unwrap_or_default();
    for service in &mut services {
        service.stale = facts.supervisor.is_some() && facts.stale.contains(&service.name);
    }
    steps.extend(facts.snapshot.as_ref().map(|s| s.steps.clone()).unwrap_or_default());
    Some(WorkspaceReport {
        workspace: workspace.id.clone(),
        seq: 0,
        accepted: intent.generation,
        shell: LayerReport { phase: shell_phase(&intent, &shell), stated: shell },
        runtime,
        size: facts.size,
        instance: facts.supervisor.as_ref().map(|s| s.instance.clone()),
        start: current.and_then(|s| s.start.clone()),
        services,
        resources: facts.snapshot.as_ref().map(|s| s.resources.clone()).unwrap_or_default(),
        steps,
        diagnostics: facts.diagnostics.clone(),
        activity: facts.snapshot.as_ref().map(|s| s.activity.clone()).unwrap_or_default(),
        refused: facts.refused,
        faces: workspace.faces.borrow().clone(),
        copied: *workspace.copied.borrow(),
        snapshots: workspace.snapshots.borrow().clone(),
    })
}

fn shell_phase(intent: &WorkspaceIntent, shell: &Stated<ShellState>) -> Phase {
    match (&intent.shell, shell.state) {
        (DesiredShell::Ready, ShellState::Ready) | (DesiredShell::Absent, ShellState::Absent) => Phase::Settled,
        (_, ShellState::Failed) => Phase::Failed {
            trouble: Trouble::new(shell.reason.clone().unwrap_or_default(), shell.hint.clone().unwrap_or_default()),
        },
        (_, ShellState::Absent | ShellState::Preparing | ShellState::Ready) => Phase::Working,
    }
}

fn runtime(intent: &WorkspaceIntent, shell: &Stated<ShellState>, facts: &RuntimeFacts) -> LayerReport<RuntimeState> {
    let wants_awake = intent.shell == DesiredShell::Ready && matches!(intent.runtime, DesiredRuntime::Awake { .. });
    if let (Some(_), Some(snapshot)) = (&facts.supervisor, &facts.snapshot) {
        let state = snapshot.runtime.state;
        let phase = match (wants_awake, state) {
            (true, RuntimeState::Awake) if snapshot.generation >= intent.generation => Phase::Settled,
            (_, _) => Phase::Working,
        };
        let mut stated = snapshot.runtime.clone();
        if !wants_awake {
            stated.state = RuntimeState::Sleeping;
        }
        // Everything of it is gone, but the disk does not take the last word: a hint says what to do about that.
        if let (RuntimeState::Sleeping, Some(reason), Some(hint)) = (state, &stated.reason, &stated.hint) {
            let trouble = Trouble::new(reason.clone(), hint.clone());
            return LayerReport { stated, phase: Phase::Failed { trouble } };
        }
        return LayerReport { stated, phase };
    }
    let last = facts.snapshot.as_ref();
    if let Some((generation, trouble, since)) = &facts.failed
        && wants_awake
        && *generation >= intent.generation
    {
        let stated = Stated::because(RuntimeState::Failed, *since, trouble.clone());
        return LayerReport { stated, phase: Phase::Failed { trouble: trouble.clone() } };
    }
    let settled = !wants_awake || last.is_some_and(|s| s.generation >= intent.generation);
    if settled {
        let stated = match last {
            Some(snapshot) => Stated { state: RuntimeState::Asleep, ..snapshot.runtime.clone() },
            None => Stated::plain(RuntimeState::Asleep, shell.since),
        };
        return LayerReport { stated, phase: Phase::Settled };
    }
    let since = facts.starting.or(last.map(|s| s.runtime.since)).unwrap_or_else(Timestamp::now);
    if shell.state == ShellState::Failed {
        let trouble = Trouble::new(
            format!("its shell could not be prepared: {}", shell.reason.clone().unwrap_or_default()),
            shell.hint.clone().unwrap_or_default(),
        );
        return LayerReport {
            stated: Stated::because(RuntimeState::Failed, shell.since, trouble.clone()),
            phase: Phase::Failed { trouble },
        };
    }
    LayerReport { stated: Stated::plain(RuntimeState::Waking, since), phase: Phase::Working }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::plan::tests::intent;

    fn unkept(awake: bool) -> Unkept {
        let trouble = Trouble::new("no space", "free some");
        Unkept { intent: intent(2, awake), trouble, since: Timestamp::now() }
    }

    #[test]
    fn what_an_intent_that_is_not_accepted_asks_for_has_failed_and_what_is_so_stays() {
        let failed = Phase::Failed { trouble: unkept(true).trouble };
        let new = refused(blank(&unkept(true)), &unkept(true));
        assert_eq!(new.accepted, unkept(true).intent.generation);
        assert_eq!((new.shell.stated.state, &new.shell.phase), (ShellState::Failed, &failed));
        assert_eq!((new.runtime.stated.state, &new.runtime.phase), (RuntimeState::Failed, &failed));
        assert_eq!(new.runtime.stated.hint.as_deref(), Some("free some"));

        let known = |runtime| {
            let mut known = blank(&unkept(true));
            known.shell =
                LayerReport { stated: Stated::plain(ShellState::Ready, Timestamp::now()), phase: Phase::Settled };
            known.runtime.stated.state = runtime;
            known
        };
        let asleep = refused(known(RuntimeState::Asleep), &unkept(false));
        assert_eq!((asleep.shell.phase, asleep.runtime.phase), (Phase::Settled, Phase::Settled));
        // It serves on; only what was asked of it failed.
        let awake = refused(known(RuntimeState::Awake), &unkept(false));
        assert_eq!((awake.runtime.stated.state, awake.runtime.phase), (RuntimeState::Awake, failed));
        assert_eq!(awake.shell.stated.state, ShellState::Ready);
    }
}
