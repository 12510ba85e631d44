//! What to do about one runtime: a pure function of what should be and what is.

use envforge_api::{
    generation::Generation,
    host::{DesiredRuntime, DesiredShell, WorkspaceIntent},
};

/// What is, as far as the runtime goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// The shell layer is there: nothing starts without it.
    pub(super) shell_ready: bool,
    /// After a reboot, nothing starts before one successful sync.
    pub(super) may_wake: bool,
    /// A supervisor runs and took over this generation.
    pub(super) running: Option<Generation>,
    /// That supervisor is on its way to sleep.
    pub(super) sleeping: bool,
    /// The last runtime ended by itself or as asked, at this generation.
    pub(super) ended: Option<Generation>,
    /// Starting failed at this generation.
    pub(super) failed: Option<Generation>,
    /// Its supervisor was killed: the instance has no end.
    pub(super) lost: bool,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing until something changes.
    Wait,
    /// Start a new instance.
    Start,
    /// Put a new supervisor in the place of the lost one, for the same instance.
    Replace,
    /// Tell the supervisor about services, holds and the generation.
    Update,
    /// Put it to sleep, for this reason.
    Sleep(String),
}

/// Decides.
#[must_use]
pub(super) fn plan(intent: &WorkspaceIntent, found: &Found) -> Step {
    let generation = intent.generation;
    let desired = match (&intent.shell, &intent.runtime) {
        (DesiredShell::Absent, _) => Err("delete".to_owned()),
        (DesiredShell::Ready, DesiredRuntime::Asleep { reason }) => Err(reason.clone()),
        (DesiredShell::Ready, DesiredRuntime::Awake { .. }) => Ok(()),
    };
    match (desired, found.running) {
        (Err(reason), Some(_)) if !found.sleeping => Step::Sleep(reason),
        // What a lost supervisor left running has to be found and stopped by one.
        (Err(_), None) if found.lost => Step::Replace,
        (Err(_), Some(_) | None) => Step::Wait,
        // It ends first; then this is asked again.
        (Ok(()), Some(_)) if found.sleeping => Step::Wait,
        (Ok(()), Some(known)) if known < generation => Step::Update,
        (Ok(()), Some(_)) => Step::Wait,
        (Ok(()), None) if found.lost => Step::Replace,
        (Ok(()), None) => {
            let settled = found.ended.is_some_and(|ended| ended >= generation);
            let failed = found.failed.is_some_and(|failed| failed >= generation);
            if settled || failed || !found.shell_ready || !found.may_wake { Step::Wait } else { Step::Start }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use envforge_api::{generation::Revision, ids::WorkspaceId, project::ProjectSpec};
    use std::collections::{BTreeMap, BTreeSet};

    pub(in crate::daemon) fn intent(generation: u64, awake: bool) -> WorkspaceIntent {
        let spec = ProjectSpec {
            project: "p".parse().expect("slug"),
            services: vec![],
            routes: BTreeMap::new(),
            inputs: vec![],
            resources: BTreeMap::new(),
            runtime: envforge_api::project::RuntimeSetting::default(),
        };
        WorkspaceIntent {
            workspace: WorkspaceId::generate(),
            generation: Generation(generation),
            slug: "w".parse().expect("slug"),
            project: "p".parse().expect("slug"),
            organization: "local".parse().expect("slug"),
            owner: "ada".into(),
            branch: "w".parse().expect("branch"),
            from: None,
            fork_of: None,
            shell: DesiredShell::Ready,
            runtime: if awake {
                DesiredRuntime::Awake { trigger: "up".into() }
            } else {
                DesiredRuntime::Asleep { reason: "asked".into() }
            },
            stopped: BTreeSet::new(),
            restarts: BTreeMap::new(),
            hold_until: None,
            revision: Revision(1),
            spec,
            urls: BTreeMap::new(),
            storage_url: None,
        }
    }

    fn ready() -> Found {
        Found { shell_ready: true, may_wake: true, ..Found::default() }
    }

    #[test]
    fn a_runtime_that_went_idle_at_this_generation_is_not_woken_by_it_again() {
        assert_eq!(plan(&intent(3, true), &ready()), Step::Start);
        let idle = Found { ended: Some(Generation(3)), ..ready() };
        assert_eq!(plan(&intent(3, true), &idle), Step::Wait);
        assert_eq!(plan(&intent(4, true), &idle), Step::Start);
    }

    #[test]
    fn nothing_starts_before_the_shell_is_there_or_before_the_first_sync_after_a_reboot() {
        assert_eq!(plan(&intent(1, true), &Found { shell_ready: false, ..ready() }), Step::Wait);
        assert_eq!(plan(&intent(1, true), &Found { may_wake: false, ..ready() }), Step::Wait);
    }

    #[test]
    fn a_wake_during_a_sleep_waits_for_its_end() {
        let sleeping = Found { running: Some(Generation(3)), sleeping: true, ..ready() };
        assert_eq!(plan(&intent(4, true), &sleeping), Step::Wait);
        assert_eq!(plan(&intent(4, true), &Found { ended: Some(Generation(3)), ..ready() }), Step::Start);
    }

    #[test]
    fn a_newer_intent_updates_what_runs_and_a_failure_waits_for_one() {
        let running = Found { running: Some(Generation(3)), ..ready() };
        assert_eq!(plan(&intent(3, true), &running), Step::Wait);
        assert_eq!(plan(&intent(4, true), &running), Step::Update);
        assert_eq!(plan(&intent(4, false), &running), Step::Sleep("asked".into()));
        assert_eq!(plan(&intent(3, true), &Found { failed: Some(Generation(3)), ..ready() }), Step::Wait);
        assert_eq!(plan(&intent(4, true), &Found { failed: Some(Generation(3)), ..ready() }), Step::Start);
    }

    #[test]
    fn a_lost_supervisor_is_replaced_even_to_put_the_runtime_to_sleep() {
        let lost = Found { lost: true, may_wake: false, ..ready() };
        assert_eq!(plan(&intent(3, true), &lost), Step::Replace);
        assert_eq!(plan(&intent(4, false), &lost), Step::Replace);
    }
}
