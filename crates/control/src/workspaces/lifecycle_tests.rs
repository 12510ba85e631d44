//! Decisions as sentences: each names what was, what was asked, and what becomes of it.

use super::*;
use envforge_api::{
    host::LayerReport,
    states::{ShellState, Stated, Trouble},
};

const G: Generation = Generation(7);

fn asleep(reason: &str) -> Desired {
    Desired { runtime: DesiredRuntime::Asleep { reason: reason.into() }, ..Desired::new(Revision(1)) }
}

fn awake() -> Desired {
    Desired { runtime: DesiredRuntime::Awake { trigger: "up".into() }, ..Desired::new(Revision(1)) }
}

fn reported(accepted: Generation, state: RuntimeState, phase: Phase) -> WorkspaceReport {
    let since = Timestamp::UNIX_EPOCH;
    WorkspaceReport {
        workspace: "ws_00000000000000000000000000".parse().expect("an id"),
        seq: 1,
        accepted,
        shell: LayerReport { stated: Stated::plain(ShellState::Ready, since), phase: Phase::Settled },
        runtime: LayerReport { stated: Stated::plain(state, since), phase },
        size: None,
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

fn situation<'a>(
    desired: &'a Desired,
    report: Option<&'a WorkspaceReport>,
    under_way: &'a [UnderWay],
) -> Situation<'a> {
    Situation { generation: G, desired, newest: Revision(2), report, under_way }
}

fn under_way(kind: CommandKind) -> UnderWay {
    UnderWay { id: CommandId::generate(), kind, order: None }
}

fn to_wake() -> Request {
    Request::Wake { trigger: "wake".into() }
}

fn to_sleep() -> Request {
    Request::Sleep { reason: "asked".into() }
}

fn control(verb: ServiceVerb, name: &str) -> Request {
    Request::Services { verb, names: BTreeSet::from([name.parse().expect("a name")]) }
}

#[test]
fn waking_a_sleeping_runtime_bumps_takes_the_newest_revision_and_starts_what_was_stopped() {
    let mut desired = asleep("asked");
    desired.stopped.insert("web".parse().expect("a name"));
    let report = reported(G, RuntimeState::Asleep, Phase::Settled);
    let decision = decide(&to_wake(), situation(&desired, Some(&report), &[])).expect("a decision");
    let new = decision.desired.expect("a bump");
    assert_eq!(new.runtime, DesiredRuntime::Awake { trigger: "wake".into() });
    assert_eq!((new.revision, new.stopped.len()), (Revision(2), 0));
    assert_eq!(decision.record, Record::Begin);
}

#[test]
fn a_wake_joins_the_unfinished_one_whether_or_not_the_host_has_heard_of_it() {
    let desired = awake();
    let start = [under_way(CommandKind::StartRuntime)];
    let waking = reported(G, RuntimeState::Waking, Phase::Working);
    let behind = reported(Generation(6), RuntimeState::Asleep, Phase::Settled);
    for report in [None, Some(&waking), Some(&behind)] {
        let decision = decide(&to_wake(), situation(&desired, report, &start)).expect("a decision");
        assert_eq!(decision, Decision::only(Record::Join(&start[0].id)));
    }
}

#[test]
fn a_wake_of_an_awake_runtime_is_reached_without_a_bump() {
    let desired = awake();
    let report = reported(G, RuntimeState::Awake, Phase::Settled);
    let decision = decide(&to_wake(), situation(&desired, Some(&report), &[])).expect("a decision");
    assert_eq!(decision, Decision::only(Record::Reached));
}

#[test]
fn waking_an_idle_slept_failed_or_frozen_runtime_bumps_even_with_a_wake_on_record() {
    let desired = awake();
    let start = [under_way(CommandKind::StartRuntime)];
    let trouble = Trouble::new("lost", "wake it");
    for (state, phase) in [
        (RuntimeState::Asleep, Phase::Settled),
        (RuntimeState::Sleeping, Phase::Working),
        (RuntimeState::Frozen, Phase::Settled),
        (RuntimeState::Failed, Phase::Settled),
        (RuntimeState::Awake, Phase::Failed { trouble }),
    ] {
        let report = reported(G, state, phase);
        let decision = decide(&to_wake(), situation(&desired, Some(&report), &start)).expect("a decision");
        assert!(decision.desired.is_some(), "{state}");
        assert!(decision.supersedes.contains(&CommandKind::StartRuntime), "{state}");
    }
}

#[test]
fn every_state_that_can_wake_is_woken_by_a_wake() {
    for state in RuntimeState::ALL.iter().copied() {
        let desired = awake();
        let report = reported(G, state, Phase::Settled);
        let decision = decide(&to_wake(), situation(&desired, Some(&report), &[])).expect("a decision");
        assert_eq!(decision.desired.is_some(), state.can_wake(), "{state}");
    }
}

#[test]
fn an_asked_sleep_supersedes_start_cancels_runs_ends_the_hold_and_spares_prepare() {
    let mut desired = awake();
    desired.hold_until = Some(Timestamp::MAX);
    let report = reported(G, RuntimeState::Awake, Phase::Settled);
    let decision = decide(&to_sleep(), situation(&desired, Some(&report), &[])).expect("a decision");
    assert!(decision.cancels_runs);
    assert!(decision.supersedes.contains(&CommandKind::StartRuntime));
    assert!(!decision.supersedes.contains(&CommandKind::PrepareShell));
    assert_eq!(decision.desired.expect("a bump").hold_until, None);
}

#[test]
fn sleep_is_joined_while_unfinished_and_reached_once_asleep() {
    let desired = asleep("asked");
    let sleep = [under_way(CommandKind::SleepRuntime)];
    let sleeping = reported(G, RuntimeState::Sleeping, Phase::Working);
    let decision = decide(&to_sleep(), situation(&desired, Some(&sleeping), &sleep)).expect("a decision");
    assert_eq!(decision, Decision::only(Record::Join(&sleep[0].id)));
    let done = reported(G, RuntimeState::Asleep, Phase::Settled);
    let decision = decide(&to_sleep(), situation(&desired, Some(&done), &[])).expect("a decision");
    assert_eq!(decision, Decision::only(Record::Reached));
    // One that was never woken is asleep, whoever has heard of it.
    let new = asleep("new");
    let decision = decide(&to_sleep(), situation(&new, None, &[])).expect("a decision");
    assert_eq!(decision, Decision::only(Record::Reached));
}

#[test]
fn an_asked_sleep_after_an_idle_one_is_another_desired_state() {
    let desired = awake();
    let report = reported(G, RuntimeState::Asleep, Phase::Settled);
    let decision = decide(&to_sleep(), situation(&desired, Some(&report), &[])).expect("a decision");
    assert_eq!(decision.desired.expect("a bump").runtime, DesiredRuntime::Asleep { reason: "asked".into() });
}

#[test]
fn only_delete_supersedes_prepare_and_nothing_is_asked_of_a_workspace_that_goes() {
    let desired = awake();
    let decision = decide(&Request::Delete, situation(&desired, None, &[])).expect("a decision");
    assert!(decision.supersedes.contains(&CommandKind::PrepareShell) && decision.cancels_runs);
    let going = decision.desired.expect("a bump");
    assert_eq!(going.shell, DesiredShell::Absent);
    for request in [to_wake(), to_sleep(), control(ServiceVerb::Stop, "web")] {
        let problem = decide(&request, situation(&going, None, &[])).expect_err("refused");
        assert_eq!(problem.kind, ProblemKind::Conflict);
    }
    let delete = [under_way(CommandKind::DeleteWorkspace)];
    let decision = decide(&Request::Delete, situation(&going, None, &delete)).expect("a decision");
    assert_eq!(decision, Decision::only(Record::Join(&delete[0].id)));
}

#[test]
fn every_restart_is_counted_but_an_equal_unfinished_one_is_joined() {
    let mut desired = awake();
    desired.restarts.insert("web".parse().expect("a name"), 3);
    let report = reported(G, RuntimeState::Awake, Phase::Settled);
    let request = control(ServiceVerb::Restart, "web");
    let decision = decide(&request, situation(&desired, Some(&report), &[])).expect("a decision");
    assert_eq!(decision.desired.expect("a bump").restarts["web"], 4);
    let order = ServiceOrder { verb: ServiceVerb::Restart, names: BTreeSet::from(["web".parse().expect("a name")]) };
    let same = [UnderWay { order: Some(order), ..under_way(CommandKind::ControlService) }];
    let decision = decide(&request, situation(&desired, Some(&report), &same)).expect("a decision");
    assert_eq!(decision, Decision::only(Record::Join(&same[0].id)));
}

#[test]
fn stopping_a_service_of_a_sleeping_runtime_is_reached_and_starting_one_wakes() {
    let desired = asleep("asked");
    let report = reported(G, RuntimeState::Asleep, Phase::Settled);
    let stop = decide(&control(ServiceVerb::Stop, "web"), situation(&desired, Some(&report), &[])).expect("a decision");
    assert_eq!(stop, Decision::only(Record::Reached));
    for verb in [ServiceVerb::Start, ServiceVerb::Restart] {
        let decision = decide(&control(verb, "web"), situation(&desired, Some(&report), &[])).expect("a decision");
        assert!(decision.starts, "a START_RUNTIME is recorded too");
        assert!(decision.desired.expect("a bump").awake());
    }
}

#[test]
fn a_failed_shell_is_prepared_again_and_a_ready_one_is_left_alone() {
    let desired = awake();
    let mut report = reported(G, RuntimeState::Asleep, Phase::Settled);
    let decision = decide(&Request::Prepare, situation(&desired, Some(&report), &[])).expect("a decision");
    assert_eq!(decision, Decision::only(Record::Reached));
    report.shell.phase = Phase::Failed { trouble: Trouble::new("no network", "try again") };
    let decision = decide(&Request::Prepare, situation(&desired, Some(&report), &[])).expect("a decision");
    assert!(!decision.desired.expect("a bump").awake(), "preparing wakes nothing that slept");
    let prepare = [under_way(CommandKind::PrepareShell)];
    let decision = decide(&Request::Prepare, situation(&desired, Some(&report), &prepare)).expect("a decision");
    assert_eq!(decision, Decision::only(Record::Join(&prepare[0].id)));
}

#[test]
fn a_hold_alone_never_wakes() {
    let desired = awake();
    let slept = reported(G, RuntimeState::Asleep, Phase::Settled);
    let until = Some(Timestamp::MAX);
    let kept = held(&desired, G, Some(&slept), until).expect("held");
    assert_eq!(kept.runtime, DesiredRuntime::Asleep { reason: "idle".into() });
    let up = reported(G, RuntimeState::Awake, Phase::Settled);
    assert!(held(&desired, G, Some(&up), until).expect("held").awake());
}
