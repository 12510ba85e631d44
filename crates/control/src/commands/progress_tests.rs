//! When each kind of record ends, and by what.

use super::*;
use envforge_api::{
    generation::Generation,
    host::{Activity, LayerReport},
    ids::CommandId,
    states::{Health, ServiceKind, Stated, Trouble},
};
use std::collections::BTreeSet;

const ASKED: Timestamp = Timestamp::constant(1_000, 0);
const LATER: Timestamp = Timestamp::constant(1_001, 0);

fn open(kind: CommandKind, order: Option<ServiceOrder>) -> Open {
    Open {
        id: CommandId::generate(),
        kind,
        state: CommandState::Delivered,
        generation: Generation(5),
        requested_at: ASKED,
        order,
    }
}

fn said(accepted: u64, runtime: RuntimeState, phase: Phase) -> WorkspaceReport {
    WorkspaceReport {
        workspace: "ws_00000000000000000000000000".parse().expect("an id"),
        seq: 1,
        accepted: Generation(accepted),
        shell: LayerReport { stated: Stated::plain(ShellState::Ready, LATER), phase: Phase::Settled },
        runtime: LayerReport { stated: Stated::plain(runtime, LATER), phase },
        size: None,
        instance: None,
        start: None,
        services: vec![],
        resources: vec![],
        steps: vec![],
        diagnostics: vec![],
        activity: Activity::default(),
        refused: vec![],
        faces: vec![],
        copied: None,
        snapshots: vec![],
    }
}

fn with_service(mut report: WorkspaceReport, state: ServiceState, since: Timestamp) -> WorkspaceReport {
    report.services.push(ServiceReport {
        name: "web".into(),
        kind: ServiceKind::Service,
        stated: Stated::plain(state, since),
        health: Health::None,
        restarts: 0,
        exit_code: None,
        stale: false,
        port: None,
        last_lines: vec![],
    });
    report
}

fn control(verb: ServiceVerb) -> Open {
    let names = BTreeSet::from(["web".parse().expect("a name")]);
    open(CommandKind::ControlService, Some(ServiceOrder { verb, names }))
}

fn trouble() -> Phase {
    Phase::Failed { trouble: Trouble::new("the disk is full", "make room") }
}

#[test]
fn a_report_about_an_older_generation_ends_nothing() {
    for kind in CommandKind::ALL.iter().copied() {
        let report = said(4, RuntimeState::Asleep, Phase::Settled);
        assert_eq!(judge(&open(kind, None), &report), Progress::Unknown, "{kind}");
    }
}

#[test]
fn a_wake_ends_by_its_verdict_a_failed_runtime_or_a_sleep_before_both() {
    let start = open(CommandKind::StartRuntime, None);
    let mut report = said(5, RuntimeState::Awake, Phase::Settled);
    assert_eq!(judge(&start, &report), Progress::Running, "awake is not yet healthy");
    report.start = Some(StartVerdict::Succeeded);
    assert_eq!(judge(&start, &report), Progress::Succeeded);
    report.start = Some(StartVerdict::Failed { services: vec!["web".into(), "api".into()] });
    assert!(matches!(judge(&start, &report), Progress::Failed(reason) if reason.ends_with("web, api")));
    let failed = said(5, RuntimeState::Failed, trouble());
    assert_eq!(judge(&start, &failed), Progress::Failed("the disk is full".into()));
    let slept = said(5, RuntimeState::Asleep, Phase::Settled);
    assert!(matches!(judge(&start, &slept), Progress::Failed(_)));
    let not_begun = said(5, RuntimeState::Asleep, Phase::Working);
    assert_eq!(judge(&start, &not_begun), Progress::Running);
}

#[test]
fn a_sleep_ends_when_asleep_is_settled() {
    let sleep = open(CommandKind::SleepRuntime, None);
    assert_eq!(judge(&sleep, &said(5, RuntimeState::Sleeping, Phase::Working)), Progress::Running);
    assert_eq!(judge(&sleep, &said(5, RuntimeState::Asleep, Phase::Working)), Progress::Running);
    assert_eq!(judge(&sleep, &said(6, RuntimeState::Asleep, Phase::Settled)), Progress::Succeeded);
    assert!(matches!(judge(&sleep, &said(5, RuntimeState::Sleeping, trouble())), Progress::Failed(_)));
}

#[test]
fn a_preparation_and_a_deletion_end_by_the_shell() {
    let (prepare, delete) = (open(CommandKind::PrepareShell, None), open(CommandKind::DeleteWorkspace, None));
    let mut report = said(5, RuntimeState::Asleep, Phase::Settled);
    assert_eq!((judge(&prepare, &report), judge(&delete, &report)), (Progress::Succeeded, Progress::Running));
    report.shell.stated.state = ShellState::Absent;
    assert_eq!((judge(&prepare, &report), judge(&delete, &report)), (Progress::Running, Progress::Succeeded));
    report.shell.phase = trouble();
    assert!(matches!(judge(&prepare, &report), Progress::Failed(_)));
    assert!(matches!(judge(&delete, &report), Progress::Failed(_)));
}

#[test]
fn a_restart_ends_by_what_came_after_it_was_asked() {
    let restart = control(ServiceVerb::Restart);
    let report = said(5, RuntimeState::Awake, Phase::Settled);
    let before = Timestamp::constant(999, 0);
    let cases = [
        (ServiceState::Healthy, before, Progress::Running),
        (ServiceState::Crashed, before, Progress::Running),
        (ServiceState::Starting, LATER, Progress::Running),
        (ServiceState::Healthy, LATER, Progress::Succeeded),
        (ServiceState::Unhealthy, LATER, Progress::Failed("web: it is unhealthy".into())),
    ];
    for (state, since, expected) in cases {
        assert_eq!(judge(&restart, &with_service(report.clone(), state, since)), expected, "{state}");
    }
    assert_eq!(judge(&restart, &report), Progress::Running, "a service nobody reports is waited for");
}

#[test]
fn service_verbs_end_with_the_runtime_when_that_sleeps() {
    let asleep = said(5, RuntimeState::Asleep, Phase::Settled);
    assert_eq!(judge(&control(ServiceVerb::Stop), &asleep), Progress::Succeeded);
    assert!(matches!(judge(&control(ServiceVerb::Start), &asleep), Progress::Failed(_)));
}

#[test]
fn a_run_ends_by_the_hosts_word_alone() {
    let report = said(9, RuntimeState::Failed, trouble());
    assert_eq!(judge(&open(CommandKind::RunCommand, None), &report), Progress::Unknown);
}
