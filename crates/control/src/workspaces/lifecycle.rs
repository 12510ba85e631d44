//! What a request does to a workspace. Pure: a decision is a value that a test can print.
//!
//! Rules kept here: an equal unfinished request is joined; a state already reached is recorded `succeeded` without a
//! bump; waking a failed or idle-slept runtime bumps; SLEEP and DELETE supersede START; only DELETE supersedes
//! PREPARE; an asked sleep cancels runs.

use envforge_api::{
    command::CommandKind,
    generation::{Generation, Revision},
    host::{DesiredRuntime, DesiredShell, Phase, WorkspaceReport},
    ids::CommandId,
    names::ServiceName,
    problem::{Problem, ProblemKind},
    public::ServiceVerb,
    states::{RuntimeState, ServiceState},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What should be, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Desired {
    pub(crate) shell: DesiredShell,
    pub(crate) runtime: DesiredRuntime,
    #[serde(default)]
    pub(crate) stopped: BTreeSet<ServiceName>,
    #[serde(default)]
    pub(crate) restarts: BTreeMap<ServiceName, u64>,
    #[serde(default)]
    pub(crate) hold_until: Option<Timestamp>,
    /// The project revision that the runtime uses; moved on by a wake.
    pub(crate) revision: Revision,
}

impl Desired {
    /// A workspace that was just made.
    pub(crate) fn new(revision: Revision) -> Self {
        Self {
            shell: DesiredShell::Ready,
            runtime: DesiredRuntime::Asleep { reason: "new".into() },
            stopped: BTreeSet::new(),
            restarts: BTreeMap::new(),
            hold_until: None,
            revision,
        }
    }

    /// Whether the runtime should be awake (until idle).
    pub(crate) fn awake(&self) -> bool {
        matches!(self.runtime, DesiredRuntime::Awake { .. })
    }

    fn wake(&mut self, trigger: &str, newest: Revision) {
        self.runtime = DesiredRuntime::Awake { trigger: trigger.to_owned() };
        self.stopped.clear();
        self.revision = newest;
    }
}

/// What someone asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    /// Prepare the shell again where that failed.
    Prepare,
    Wake {
        trigger: String,
    },
    Sleep {
        reason: String,
    },
    Services {
        verb: ServiceVerb,
        names: BTreeSet<ServiceName>,
    },
    Delete,
}

/// What is stored with a CONTROL_SERVICE record, to find equal requests and to judge its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServiceOrder {
    pub(crate) verb: ServiceVerb,
    pub(crate) names: BTreeSet<ServiceName>,
}

/// An unfinished record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UnderWay {
    pub(crate) id: CommandId,
    pub(crate) kind: CommandKind,
    pub(crate) order: Option<ServiceOrder>,
}

/// Everything a decision looks at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Situation<'a> {
    pub(crate) generation: Generation,
    pub(crate) desired: &'a Desired,
    /// The project's newest revision.
    pub(crate) newest: Revision,
    /// The host's newest report, if it ever reported.
    pub(crate) report: Option<&'a WorkspaceReport>,
    pub(crate) under_way: &'a [UnderWay],
}

/// What becomes of the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Record<'a> {
    /// This one under way is the answer.
    Join(&'a CommandId),
    /// A new one that is done already.
    Reached,
    /// A new one that the host has to work for.
    Begin,
}

/// What a request does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decision<'a> {
    /// The new desired state, at the next generation; absent = no bump.
    pub(crate) desired: Option<Desired>,
    pub(crate) record: Record<'a>,
    /// Also make a START_RUNTIME record: the request wakes on the way.
    pub(crate) starts: bool,
    /// Unfinished records of these kinds become `superseded`.
    pub(crate) supersedes: &'static [CommandKind],
    /// Runs under way are cancelled.
    pub(crate) cancels_runs: bool,
}

impl Decision<'_> {
    fn only(record: Record<'_>) -> Decision<'_> {
        Decision { desired: None, record, starts: false, supersedes: &[], cancels_runs: false }
    }
}

/// The runtime against what is desired, in the words that decisions need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Desired asleep and so, or never woken.
    Asleep,
    /// Desired asleep, not yet so.
    GoingToSleep,
    /// Desired awake, on the way or not yet heard of by the host.
    Waking,
    /// Desired awake and so.
    Awake,
    /// Desired awake, but it slept idle, failed or was lost: only a newer generation wakes it.
    Spent,
}

fn standing(s: Situation<'_>) -> Standing {
    let Some(report) = s.report else {
        return if s.desired.awake() { Standing::Waking } else { Standing::Asleep };
    };
    let accepted = report.accepted >= s.generation;
    let state = report.runtime.stated.state;
    match (s.desired.awake(), accepted) {
        (true, false) => Standing::Waking,
        (true, true) => match (state, &report.runtime.phase) {
            (_, Phase::Failed { .. }) | (RuntimeState::Failed, _) => Standing::Spent,
            (RuntimeState::Awake, _) => Standing::Awake,
            (RuntimeState::Waking, _) | (RuntimeState::Asleep, Phase::Working) => Standing::Waking,
            (RuntimeState::Asleep, Phase::Settled) | (RuntimeState::Sleeping | RuntimeState::Frozen, _) => {
                Standing::Spent
            }
        },
        (false, accepted) => match state {
            RuntimeState::Asleep => Standing::Asleep,
            RuntimeState::Failed if accepted => Standing::Asleep,
            RuntimeState::Waking
            | RuntimeState::Awake
            | RuntimeState::Frozen
            | RuntimeState::Sleeping
            | RuntimeState::Failed => Standing::GoingToSleep,
        },
    }
}

/// The desired state with another hold. A runtime that slept idle stays asleep: the bump alone must not wake it.
///
/// # Errors
/// `conflict` when the workspace is being deleted.
pub(crate) fn held(
    desired: &Desired,
    generation: Generation,
    report: Option<&WorkspaceReport>,
    until: Option<Timestamp>,
) -> Result<Desired, Problem> {
    if desired.shell == DesiredShell::Absent {
        return Err(being_deleted());
    }
    let situation = Situation { generation, desired, newest: desired.revision, report, under_way: &[] };
    Ok(Desired { runtime: unwoken(situation), hold_until: until, ..desired.clone() })
}

fn being_deleted() -> Problem {
    Problem::new(
        ProblemKind::Conflict,
        "the workspace is being deleted",
        "wait until it is gone; `envforge up` then makes it again",
    )
}

fn unfinished(s: Situation<'_>, kind: CommandKind) -> Option<&CommandId> {
    s.under_way.iter().find(|c| c.kind == kind).map(|c| &c.id)
}

/// Decides.
///
/// # Errors
/// `conflict` when the workspace is being deleted.
pub(crate) fn decide<'a>(request: &Request, s: Situation<'a>) -> Result<Decision<'a>, Problem> {
    if s.desired.shell == DesiredShell::Absent && *request != Request::Delete {
        return Err(being_deleted());
    }
    Ok(match request {
        Request::Prepare => prepare(s),
        Request::Wake { trigger } => wake(trigger, s),
        Request::Sleep { reason } => sleep(reason, s),
        Request::Services { verb, names } => services(*verb, names, s),
        Request::Delete => delete(s),
    })
}

fn prepare(s: Situation<'_>) -> Decision<'_> {
    if let Some(id) = unfinished(s, CommandKind::PrepareShell) {
        return Decision::only(Record::Join(id));
    }
    let failed = s
        .report
        .is_some_and(|report| report.accepted >= s.generation && matches!(report.shell.phase, Phase::Failed { .. }));
    if !failed {
        return Decision::only(Record::Reached);
    }
    let desired = Desired { runtime: unwoken(s), ..s.desired.clone() };
    Decision { desired: Some(desired), ..Decision::only(Record::Begin) }
}

/// The desired runtime for a bump that is about something else: what slept idle stays asleep.
fn unwoken(s: Situation<'_>) -> DesiredRuntime {
    match standing(s) {
        Standing::Spent => DesiredRuntime::Asleep { reason: "idle".into() },
        Standing::Asleep | Standing::GoingToSleep | Standing::Waking | Standing::Awake => s.desired.runtime.clone(),
    }
}

fn wake<'a>(trigger: &str, s: Situation<'a>) -> Decision<'a> {
    match (standing(s), unfinished(s, CommandKind::StartRuntime)) {
        (Standing::Waking | Standing::Awake, Some(id)) => Decision::only(Record::Join(id)),
        (Standing::Awake, None) => Decision::only(Record::Reached),
        // Woken by something else (a service command): the record follows that wake.
        (Standing::Waking, None) => Decision::only(Record::Begin),
        (Standing::Asleep | Standing::GoingToSleep | Standing::Spent, _) => {
            let mut desired = s.desired.clone();
            desired.wake(trigger, s.newest);
            Decision {
                desired: Some(desired),
                supersedes: &[CommandKind::StartRuntime, CommandKind::SleepRuntime],
                ..Decision::only(Record::Begin)
            }
        }
    }
}

fn sleep<'a>(reason: &str, s: Situation<'a>) -> Decision<'a> {
    match (standing(s), unfinished(s, CommandKind::SleepRuntime)) {
        (Standing::Asleep | Standing::GoingToSleep, Some(id)) => Decision::only(Record::Join(id)),
        (Standing::Asleep, None) => Decision::only(Record::Reached),
        (Standing::GoingToSleep, None) => Decision::only(Record::Begin),
        // Spent as well: after an idle sleep a connection wakes, after an asked one it is refused. That is another
        // desired state, so it takes a generation even though no process runs.
        (Standing::Waking | Standing::Awake | Standing::Spent, _) => {
            let mut desired = s.desired.clone();
            desired.runtime = DesiredRuntime::Asleep { reason: reason.to_owned() };
            desired.hold_until = None;
            Decision {
                desired: Some(desired),
                supersedes: &[CommandKind::StartRuntime, CommandKind::ControlService],
                cancels_runs: true,
                ..Decision::only(Record::Begin)
            }
        }
    }
}

fn services<'a>(verb: ServiceVerb, names: &BTreeSet<ServiceName>, s: Situation<'a>) -> Decision<'a> {
    let order = ServiceOrder { verb, names: names.clone() };
    if let Some(equal) = s.under_way.iter().find(|c| c.order.as_ref() == Some(&order)) {
        return Decision::only(Record::Join(&equal.id));
    }
    let up = matches!(standing(s), Standing::Waking | Standing::Awake);
    let mut desired = s.desired.clone();
    match (verb, up) {
        // Asleep, everything is stopped, and the next wake starts everything.
        (ServiceVerb::Stop, false) => return Decision::only(Record::Reached),
        (ServiceVerb::Stop, true) => {
            if names.is_subset(&s.desired.stopped) {
                let reached = names.iter().all(|name| state_of(s, name) == Some(ServiceState::Stopped));
                return Decision::only(if reached { Record::Reached } else { Record::Begin });
            }
            desired.stopped.extend(names.iter().cloned());
        }
        (ServiceVerb::Start | ServiceVerb::Restart, false) => {
            desired.wake("service", s.newest);
            return Decision {
                desired: Some(desired),
                starts: true,
                supersedes: &[CommandKind::StartRuntime, CommandKind::SleepRuntime],
                ..Decision::only(Record::Begin)
            };
        }
        (ServiceVerb::Start, true) => {
            let mut changed = false;
            for name in names {
                let was_stopped = desired.stopped.remove(name);
                let ended = matches!(state_of(s, name), Some(ServiceState::Crashed | ServiceState::Unhealthy));
                if ended && !was_stopped {
                    *desired.restarts.entry(name.clone()).or_insert(0) += 1;
                }
                changed |= was_stopped || ended;
            }
            if !changed {
                let healthy = names.iter().all(|name| state_of(s, name) == Some(ServiceState::Healthy));
                return Decision::only(if healthy { Record::Reached } else { Record::Begin });
            }
        }
        (ServiceVerb::Restart, true) => {
            for name in names {
                desired.stopped.remove(name);
                *desired.restarts.entry(name.clone()).or_insert(0) += 1;
            }
        }
    }
    Decision { desired: Some(desired), ..Decision::only(Record::Begin) }
}

/// A service's state, as far as the report speaks of the present generation.
fn state_of(s: Situation<'_>, name: &ServiceName) -> Option<ServiceState> {
    let report = s.report.filter(|report| report.accepted >= s.generation)?;
    report.services.iter().find(|service| service.name == name.as_str()).map(|service| service.stated.state)
}

fn delete(s: Situation<'_>) -> Decision<'_> {
    if let Some(id) = unfinished(s, CommandKind::DeleteWorkspace) {
        return Decision::only(Record::Join(id));
    }
    let mut desired = s.desired.clone();
    desired.shell = DesiredShell::Absent;
    desired.runtime = DesiredRuntime::Asleep { reason: "asked".into() };
    desired.hold_until = None;
    Decision {
        desired: Some(desired),
        supersedes: &[
            CommandKind::PrepareShell,
            CommandKind::StartRuntime,
            CommandKind::SleepRuntime,
            CommandKind::ControlService,
        ],
        cancels_runs: true,
        ..Decision::only(Record::Begin)
    }
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;
