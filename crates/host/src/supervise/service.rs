//! Services and workers: start, health, restart with back-off, what is shown of each.

use super::{
    events::Event,
    health,
    logs::Logs,
    process,
    protocol::ProcessSpec,
    runtime::{Runtime, Shared},
    setup::SetupState,
};
use crate::system::{
    boot,
    cgroup::Group,
    enter::{As, Entry},
    sandbox::WORKSPACE,
};
use envforge_api::{
    host::ServiceReport,
    states::{Health, ServiceKind, ServiceState, Stated, Trouble},
    stream::LogLevel,
    time::{BootMillis, Timestamp},
};
use std::{collections::BTreeSet, path::Path, process::ExitStatus, rc::Rc, time::Duration};
use tokio::task::AbortHandle;

const FIRST_BACKOFF: Duration = Duration::from_millis(250);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// The least that shell-layer set-up is waited for before the wake is called failed, in milliseconds: it installs things.
const SHELL_SETUP_MS: u64 = 10 * 60_000;
/// A process that lived so long had no bad start: its next restart begins with the first pause again.
const LIVED: u64 = 30_000;
/// A process without a health check that lived so long counts as started: what cannot start ends at once, and nothing
/// tells of one that can.
const STARTED: Duration = Duration::from_millis(200);
/// One that lived so long after a crash is no longer shown as crashed.
const SETTLED: Duration = Duration::from_secs(2);
/// Failed checks in a row after which a healthy service is shown as unhealthy.
const FAILURES: u32 = 3;

/// What the process of a service is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Doing {
    /// Nothing yet, or stopped on purpose.
    Nothing,
    Running {
        since: BootMillis,
    },
    /// On its way out, on purpose.
    Stopping,
    /// Waits for its next try.
    BackingOff,
}

/// One service or worker.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) spec: ProcessSpec,
    pub(super) was_healthy: bool,
    stated: Stated<ServiceState>,
    health: Health,
    doing: Doing,
    run: u64,
    restarts: u32,
    exit_code: Option<i32>,
    failures: u32,
    backoff: Duration,
    first_start: Option<BootMillis>,
    /// The checks of the process that was started last.
    checks: Option<AbortHandle>,
    /// A newer description waits for the process to be gone.
    next: Option<ProcessSpec>,
}

impl Service {
    pub(super) fn new(spec: ProcessSpec, now: Timestamp) -> Self {
        Self {
            spec,
            was_healthy: false,
            stated: Stated::plain(ServiceState::Stopped, now),
            health: Health::None,
            doing: Doing::Nothing,
            run: 0,
            restarts: 0,
            exit_code: None,
            failures: 0,
            backoff: FIRST_BACKOFF,
            first_start: None,
            checks: None,
            next: None,
        }
    }

    fn state(&mut self, state: ServiceState, trouble: Option<Trouble>) {
        let same = self.stated.state == state;
        let since = if same { self.stated.since } else { Timestamp::now() };
        self.stated = match trouble {
            Some(trouble) => Stated::because(state, since, trouble),
            None => Stated::plain(state, since),
        };
    }

    fn start_period(&self) -> u64 {
        self.spec
            .health
            .as_ref()
            .map_or(envforge_manifest::Health::DEFAULT_START_PERIOD_MS, |h| h.check.start_period_ms)
    }

    /// Whether it can no longer make its start good: START_RUNTIME does not wait for it.
    ///
    /// One that waits for its shell-layer set-up has its start period too, from when the runtime began: a step that hangs
    /// does not keep it waking.
    pub(super) fn is_hopeless(&self, now: BootMillis, begun: BootMillis, released: bool) -> bool {
        let waits = self.spec.awaits_shell && !released && self.first_start.is_none();
        let hangs = waits && now.since(begun) >= self.start_period().max(SHELL_SETUP_MS);
        let blocked = self.doing == Doing::Nothing && self.stated.state == ServiceState::Unhealthy;
        let late = self.first_start.is_some_and(|first| now.since(first) >= self.start_period());
        self.spec.blocked.is_some() || blocked || late || hangs
    }

    /// Whether a process of it may still do something.
    pub(super) fn has_process(&self) -> bool {
        matches!(self.doing, Doing::Running { .. } | Doing::Stopping)
    }

    /// Whether it is on its way and shows neither that it is there nor what is wrong.
    pub(super) fn is_quiet(&self) -> bool {
        matches!(self.stated.state, ServiceState::Starting | ServiceState::Stopped)
    }

    /// Whether it shows what is wrong with it.
    fn is_in_trouble(&self) -> bool {
        matches!(self.stated.state, ServiceState::Crashed | ServiceState::Unhealthy)
    }

    pub(super) fn report(&self, logs: &Logs) -> ServiceReport {
        let bad = self.is_in_trouble();
        ServiceReport {
            name: self.spec.name.clone(),
            kind: if self.spec.worker { ServiceKind::Worker } else { ServiceKind::Service },
            stated: self.stated.clone(),
            health: self.health,
            restarts: self.restarts,
            exit_code: self.exit_code,
            stale: false,
            port: self.spec.port,
            last_lines: if bad { logs.last(&self.spec.name) } else { Vec::new() },
        }
    }
}

fn entry(shared: &Shared, spec: &ProcessSpec, group: &Group) -> Entry {
    let directory = Path::new(WORKSPACE).join(&spec.directory);
    Entry { oom_score_adj: 500, ..Entry::new(&shared.sandbox, As::User, group, directory) }
}

impl Runtime {
    pub(super) fn service_mut(&mut self, name: &str) -> Option<&mut Service> {
        self.services.iter_mut().find(|s| s.spec.name == name)
    }

    /// Starts every service that waits for nothing any more.
    pub(super) fn start_services(&mut self) {
        for at in 0..self.services.len() {
            let service = &mut self.services[at];
            if service.doing != Doing::Nothing || self.stopped.contains(&service.spec.name) {
                continue;
            }
            // What it waits for is said by what is about to start, not by what ran before.
            if let Some(next) = service.next.take() {
                service.spec = next;
            }
            match self.obstacle(&self.services[at].spec) {
                Obstacle::None => self.start_service(at),
                Obstacle::Waits => self.services[at].state(ServiceState::Starting, None),
                Obstacle::Blocked(trouble) => self.services[at].state(ServiceState::Unhealthy, Some(trouble)),
            }
        }
    }

    fn obstacle(&self, spec: &ProcessSpec) -> Obstacle {
        if self.reset.as_ref().is_some_and(|reset| reset.holds(&spec.service)) {
            return Obstacle::Waits;
        }
        if let Some(trouble) = &spec.blocked {
            return Obstacle::Blocked(trouble.clone());
        }
        if spec.awaits_shell {
            match self.released.get(&spec.service) {
                Some(Some(trouble)) => return Obstacle::Blocked(trouble.clone()),
                Some(None) => {}
                None => return Obstacle::Waits,
            }
        }
        for kind in &spec.requires {
            match self.resource_trouble(*kind, &spec.service) {
                Some(Some(trouble)) => {
                    let reason = format!("its {kind} is blocked: {}", trouble.reason);
                    return Obstacle::Blocked(Trouble::new(reason, trouble.hint));
                }
                Some(None) => return Obstacle::Waits,
                None => {}
            }
        }
        match self.setups.get(&spec.service).map(|s| &s.state) {
            Some(SetupState::Failed(trouble)) => Obstacle::Blocked(trouble.clone()),
            Some(SetupState::Waiting | SetupState::Running) => Obstacle::Waits,
            Some(SetupState::Done) | None => Obstacle::None,
        }
    }

    fn start_service(&mut self, at: usize) {
        let shared = Rc::clone(&self.shared);
        let service = &mut self.services[at];
        service.run += 1;
        let run = service.run;
        let name = service.spec.name.clone();
        let group = shared.sandbox.cgroups.runtime_child(&format!("services/{name}"));
        let environment = process::exposed(&service.spec.environment);
        let spawned = group.and_then(|group| {
            let entry = entry(&shared, &service.spec, &group);
            process::spawn(&entry, &process::shell(&service.spec.command), &environment)
                .map(|child| (group, entry, child))
        });
        let (group, entry, mut child) = match spawned {
            Ok(spawned) => spawned,
            Err(error) => {
                service.doing = Doing::BackingOff;
                service.state(ServiceState::Crashed, Some(Trouble::new(error.to_string(), error.hint)));
                let pause = service.backoff;
                service.backoff = (pause * 2).min(LONGEST_BACKOFF);
                after(&shared, pause, Event::Due { name, run });
                return;
            }
        };
        let now = boot::now();
        service.doing = Doing::Running { since: now };
        service.health = Health::Pending;
        service.failures = 0;
        if service.first_start.is_none() {
            service.first_start = Some(now);
            let period = Duration::from_millis(service.start_period());
            after(&shared, period, Event::Lasted { name: name.clone(), run });
        }
        match service.spec.health.clone() {
            // A process that crashed is not well because it was started again: its check or its life has to show it.
            Some(check) => {
                if service.stated.state != ServiceState::Crashed {
                    service.state(ServiceState::Starting, None);
                }
                let (told, of) = (Rc::clone(&shared), name.clone());
                let tell = move |outcome| told.tell(Event::Checked { name: of.clone(), run, outcome });
                let entry = Entry { group: group.clone(), ..entry };
                let checks = tokio::task::spawn_local(health::keep_checking(check, entry, environment, tell));
                // One that is started again soon after would else be checked twice, by its group's looks still alive.
                if let Some(of_before) = service.checks.replace(checks.abort_handle()) {
                    of_before.abort();
                }
            }
            None => {
                service.health = Health::None;
                let crashed = service.stated.state == ServiceState::Crashed;
                if !crashed {
                    // Nobody waits to see it: only START_RUNTIME is not over before.
                    service.state(ServiceState::Healthy, None);
                }
                let shown = if crashed { SETTLED } else { STARTED };
                after(&shared, shown, Event::Lasted { name: name.clone(), run });
            }
        }
        if let Some(out) = child.stdout.take() {
            tokio::task::spawn_local(shared.logs.clone().copy(name.clone(), out));
        }
        if let Some(err) = child.stderr.take() {
            tokio::task::spawn_local(shared.logs.clone().copy(name.clone(), err));
        }
        tokio::task::spawn_local(async move {
            let status = child.wait().await.unwrap_or_default();
            // What it left behind would hold its port against the next one.
            process::stop(&group, shared.grace).await;
            shared.tell(Event::ServiceEnded { name, run, status });
        });
    }

    pub(super) fn service_ended(&mut self, name: &str, run: u64, status: ExitStatus) {
        let shared = Rc::clone(&self.shared);
        let Some(service) = self.service_mut(name).filter(|s| s.run == run) else { return };
        service.health = Health::None;
        let lived = match service.doing {
            Doing::Running { since } => {
                service.exit_code = Some(process::exit_code(status));
                boot::now().since(since)
            }
            // It was stopped on purpose: it starts again if it should.
            Doing::Stopping | Doing::Nothing | Doing::BackingOff => {
                service.doing = Doing::Nothing;
                service.state(ServiceState::Stopped, None);
                return;
            }
        };
        if service.spec.health.is_none() && lived < 1000 {
            service.was_healthy = false;
        }
        if lived >= LIVED {
            service.backoff = FIRST_BACKOFF;
        }
        let pause = service.backoff;
        service.backoff = (pause * 2).min(LONGEST_BACKOFF);
        service.restarts += 1;
        service.doing = Doing::BackingOff;
        let how = process::ended_how(status);
        let hint =
            format!("`envforge logs {} {name}` has its output; it is started again by itself", shared.sandbox.hostname);
        service.state(ServiceState::Crashed, Some(Trouble::new(format!("it {how}"), hint)));
        self.note(LogLevel::Warn, &format!("{name} {how}; next try in {} ms", pause.as_millis()));
        after(&shared, pause, Event::Due { name: name.to_owned(), run });
    }

    pub(super) fn checked(&mut self, name: &str, run: u64, outcome: Result<(), String>) {
        // What stands still cannot answer, which says nothing about it.
        let stands = self.still.is_some();
        let Some(service) = self.service_mut(name).filter(|s| s.run == run) else { return };
        let Doing::Running { since } = service.doing else { return };
        if stands && outcome.is_err() {
            return;
        }
        match outcome {
            Ok(()) => {
                service.failures = 0;
                service.was_healthy = true;
                service.health = Health::Passing;
                service.state(ServiceState::Healthy, None);
            }
            Err(why) => {
                service.failures += 1;
                service.health = Health::Failing;
                let starting = boot::now().since(since) < service.start_period();
                let never = service.stated.state != ServiceState::Healthy;
                if (never && !starting) || (!never && service.failures >= FAILURES) {
                    let hint = "compare the health check in its envforge.yml with what the service listens on";
                    service.state(
                        ServiceState::Unhealthy,
                        Some(Trouble::new(format!("its health check fails: {why}"), hint)),
                    );
                }
            }
        }
    }

    pub(super) fn service_due(&mut self, name: &str, run: u64) {
        let Some(service) = self.service_mut(name).filter(|s| s.run == run) else { return };
        if service.doing == Doing::BackingOff {
            service.doing = Doing::Nothing;
        }
    }

    /// The loop judges the start after this; a process without a check has shown by now that it stays.
    pub(super) fn service_lasted(&mut self, name: &str, run: u64) {
        let Some(service) = self.service_mut(name).filter(|s| s.run == run) else { return };
        if matches!(service.doing, Doing::Running { .. }) && service.spec.health.is_none() {
            service.was_healthy = true;
            service.state(ServiceState::Healthy, None);
        }
    }

    /// New descriptions, restarts and stops that the daemon asks for.
    pub(super) fn update(
        &mut self,
        processes: Vec<ProcessSpec>,
        restart: &BTreeSet<String>,
        stopped: BTreeSet<String>,
    ) {
        let fresh = super::setup::Setup::all(&processes);
        for spec in &processes {
            // Its shell-layer steps run again first, whatever came of them before.
            self.released.remove(&spec.service);
            // A step that failed may be gone from what it declares now.
            if self.setups.get(&spec.service).is_some_and(|known| known.state != SetupState::Running) {
                self.setups.remove(&spec.service);
            }
        }
        for spec in processes {
            match self.service_mut(&spec.name) {
                Some(service) if service.doing == Doing::Nothing || service.doing == Doing::BackingOff => {
                    service.spec = spec;
                }
                Some(service) => service.next = Some(spec),
                None => self.services.push(Service::new(spec, Timestamp::now())),
            }
        }
        for (service, setup) in fresh {
            // One that runs goes on: steps never run twice at once.
            if self.setups.get(&service).is_none_or(|known| known.state != SetupState::Running) {
                self.setups.insert(service, setup);
            }
        }
        self.stopped = stopped;
        for at in 0..self.services.len() {
            let service = &mut self.services[at];
            let stop = self.stopped.contains(&service.spec.name);
            match service.doing {
                Doing::Running { .. } if stop || restart.contains(&service.spec.name) => {
                    service.doing = Doing::Stopping;
                    let group = self.shared.sandbox.cgroups.runtime_child(&format!("services/{}", service.spec.name));
                    let grace = self.shared.grace;
                    if let Ok(group) = group {
                        tokio::task::spawn_local(async move { process::stop(&group, grace).await });
                    }
                }
                Doing::BackingOff | Doing::Nothing if stop => {
                    service.doing = Doing::Nothing;
                    service.state(ServiceState::Stopped, None);
                }
                Doing::BackingOff | Doing::Nothing if restart.contains(&service.spec.name) => {
                    // Whatever it comes to is news, even if it is what it was.
                    service.doing = Doing::Nothing;
                    service.state(ServiceState::Starting, None);
                }
                Doing::Running { .. } | Doing::BackingOff | Doing::Nothing | Doing::Stopping => {}
            }
            if restart.contains(&service.spec.name) {
                service.backoff = FIRST_BACKOFF;
                service.first_start = None;
            }
        }
    }

    /// Marks every service as on its way out.
    pub(super) fn mark_stopping(&mut self) {
        for service in &mut self.services {
            service.doing = Doing::Stopping;
        }
    }

    pub(super) fn mark_stopped(&mut self) {
        for service in &mut self.services {
            service.doing = Doing::Stopping;
            service.health = Health::None;
            service.state(ServiceState::Stopped, None);
        }
    }
}

enum Obstacle {
    None,
    Waits,
    Blocked(Trouble),
}

fn after(shared: &Rc<Shared>, pause: Duration, event: Event) {
    let shared = Rc::clone(shared);
    tokio::task::spawn_local(async move {
        tokio::time::sleep(pause).await;
        shared.tell(event);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn service(awaits_shell: bool) -> Service {
        let spec = ProcessSpec {
            name: "web".into(),
            service: "web".into(),
            worker: false,
            digest: String::new(),
            directory: "web".into(),
            command: "true".into(),
            environment: BTreeMap::new(),
            health: None,
            port: None,
            requires: BTreeSet::new(),
            setup: vec![],
            awaits_shell,
            blocked: None,
        };
        Service::new(spec, Timestamp::now())
    }

    #[test]
    fn a_start_is_hopeless_after_its_time_and_waits_for_shell_set_up_only_so_long() {
        let begun = BootMillis(1_000);
        let at = |ms: u64| BootMillis(1_000 + ms);
        let mut waits = service(true);
        assert!(!waits.is_hopeless(at(SHELL_SETUP_MS - 1), begun, false));
        assert!(waits.is_hopeless(at(SHELL_SETUP_MS), begun, false), "a step that hangs");
        assert!(!waits.is_hopeless(at(SHELL_SETUP_MS), begun, true), "set up at last: it has its own time now");
        assert!(!service(false).is_hopeless(at(SHELL_SETUP_MS), begun, false), "it waits for its database");
        waits.first_start = Some(at(SHELL_SETUP_MS));
        let period = waits.start_period();
        assert!(!waits.is_hopeless(at(SHELL_SETUP_MS + period - 1), begun, true));
        assert!(waits.is_hopeless(at(SHELL_SETUP_MS + period), begun, true));
    }
}
