//! `why`: what holds a workspace awake or lets it sleep, and why a service is not healthy.

use super::times;
use envforge_api::{
    host::Moment,
    public::{ResourceView, ServiceView, WorkspaceView},
    states::{CommandState, ResourceState, RuntimeState, ServiceState},
    time::Timestamp,
};
use serde::Serialize;

/// `why WS` as data.
#[derive(Debug, Serialize)]
pub(crate) struct WhyWorkspace<'a> {
    workspace: &'a str,
    runtime: RuntimeState,
    reason: Option<&'a str>,
    hint: Option<&'a str>,
    holders: &'a [String],
    idle_since: Option<Timestamp>,
    sleeps_at: Option<Timestamp>,
    last_wake: Option<&'a Moment>,
    last_sleep: Option<&'a Moment>,
    services_not_healthy: Vec<&'a str>,
    /// Data services that serve, and something about them is worth knowing.
    data: Vec<BlockedResource<'a>>,
}

impl<'a> WhyWorkspace<'a> {
    /// Picks what explains the runtime's state.
    pub(crate) fn of(ws: &'a WorkspaceView) -> Self {
        Self {
            workspace: ws.workspace.as_str(),
            runtime: ws.runtime.stated.state,
            reason: ws.runtime.stated.reason.as_deref(),
            hint: ws.runtime.stated.hint.as_deref(),
            holders: &ws.activity.holders,
            idle_since: ws.activity.idle_since,
            sleeps_at: ws.activity.sleeps_at,
            last_wake: ws.activity.last_wake.as_ref(),
            last_sleep: ws.activity.last_sleep.as_ref(),
            services_not_healthy: ws
                .services
                .iter()
                .filter(|s| matches!(s.stated.state, ServiceState::Unhealthy | ServiceState::Crashed))
                .map(|s| s.name.as_str())
                .collect(),
            data: ws
                .resources
                .iter()
                .filter(|r| r.stated.state == ResourceState::Ready && r.stated.reason.is_some())
                .map(BlockedResource::of)
                .collect(),
        }
    }

    /// In words.
    pub(crate) fn text(&self, now: Timestamp) -> String {
        let mut out = vec![format!("{} is {}", self.workspace, self.runtime)];
        if let Some(reason) = self.reason {
            out.push(format!("  because {reason}"));
        }
        if let Some(hint) = self.hint {
            out.push(format!("  hint: {hint}"));
        }
        if self.runtime.may_run() {
            if self.holders.is_empty() {
                let since = self.idle_since.map(|at| format!(" since {}", times::point(at))).unwrap_or_default();
                out.push(format!("  nothing holds it awake{since}"));
            } else {
                out.push("  held awake by what would have to end first:".to_owned());
                out.extend(self.holders.iter().map(|holder| format!("    - {holder}")));
            }
            if let Some(at) = self.sleeps_at {
                out.push(format!("  sleeps {} if it stays idle", times::relative(at, now)));
            }
        }
        for (what, moment) in [("woke", self.last_wake), ("slept", self.last_sleep)] {
            if let Some(moment) = moment {
                out.push(format!("  last {what} {}: {}", times::relative(moment.at, now), moment.reason));
            }
        }
        for name in &self.services_not_healthy {
            out.push(format!("  {name} is not healthy: `envforge why {} {name}`", self.workspace));
        }
        for resource in &self.data {
            out.push(format!("  {}: {}", resource.kind, resource.reason.unwrap_or_default()));
            if let Some(hint) = resource.hint {
                out.push(format!("    hint: {hint}"));
            }
        }
        out.join("\n")
    }
}

/// `why WS SERVICE` as data.
#[derive(Debug, Serialize)]
pub(crate) struct WhyService<'a> {
    workspace: &'a str,
    service: &'a str,
    state: ServiceState,
    since: Timestamp,
    reason: Option<&'a str>,
    hint: Option<&'a str>,
    health: envforge_api::states::Health,
    exit_code: Option<i32>,
    restarts: u32,
    stale: bool,
    failed_steps: Vec<FailedStep<'a>>,
    blocked_resources: Vec<BlockedResource<'a>>,
    last_lines: Vec<String>,
}

#[derive(Debug, Serialize)]
struct FailedStep<'a> {
    name: &'a str,
    state: CommandState,
    exit_code: Option<i32>,
    last_lines: &'a [String],
}

#[derive(Debug, Serialize)]
struct BlockedResource<'a> {
    kind: &'a str,
    state: ResourceState,
    reason: Option<&'a str>,
    hint: Option<&'a str>,
}

impl<'a> BlockedResource<'a> {
    fn of(r: &'a ResourceView) -> Self {
        Self {
            kind: r.kind.as_str(),
            state: r.stated.state,
            reason: r.stated.reason.as_deref(),
            hint: r.stated.hint.as_deref(),
        }
    }
}

/// Lines of output that `why` shows.
pub(crate) const LINES: usize = 20;

impl<'a> WhyService<'a> {
    /// Picks what explains a service; `lines` is its latest output where the view has none.
    pub(crate) fn of(ws: &'a WorkspaceView, service: &'a ServiceView, lines: Vec<String>) -> Self {
        let base = service.name.split('.').next().unwrap_or(&service.name);
        let last_lines = if service.last_lines.is_empty() { lines } else { service.last_lines.clone() };
        let skip = last_lines.len().saturating_sub(LINES);
        Self {
            workspace: ws.workspace.as_str(),
            service: &service.name,
            state: service.stated.state,
            since: service.stated.since,
            reason: service.stated.reason.as_deref(),
            hint: service.stated.hint.as_deref(),
            health: service.health,
            exit_code: service.exit_code,
            restarts: service.restarts,
            stale: service.stale,
            failed_steps: ws
                .steps
                .iter()
                .filter(|step| step.name.split('.').next() == Some(base))
                .filter(|step| matches!(step.state, CommandState::Failed | CommandState::Interrupted))
                .map(|step| FailedStep {
                    name: &step.name,
                    state: step.state,
                    exit_code: step.exit_code,
                    last_lines: &step.last_lines,
                })
                .collect(),
            blocked_resources: ws
                .resources
                .iter()
                .filter(|r| r.consumers.iter().any(|consumer| consumer.as_str() == base))
                .filter(|r| matches!(r.stated.state, ResourceState::Blocked | ResourceState::Disabled))
                .map(BlockedResource::of)
                .collect(),
            last_lines: last_lines.into_iter().skip(skip).collect(),
        }
    }

    /// In words.
    pub(crate) fn text(&self, now: Timestamp) -> String {
        let mut out = vec![format!(
            "{} of {} is {} (for {})",
            self.service,
            self.workspace,
            self.state,
            times::elapsed(self.since, now)
        )];
        if let Some(reason) = self.reason {
            out.push(format!("  because {reason}"));
        }
        if let Some(hint) = self.hint {
            out.push(format!("  hint: {hint}"));
        }
        for step in &self.failed_steps {
            let code = step.exit_code.map(|code| format!(" with status {code}")).unwrap_or_default();
            out.push(format!("  set-up step {} {}{code}", step.name, step.state));
            out.extend(step.last_lines.iter().map(|line| format!("    | {line}")));
        }
        for resource in &self.blocked_resources {
            let reason = resource.reason.map(|reason| format!(": {reason}")).unwrap_or_default();
            out.push(format!("  resource {} is {}{reason}", resource.kind, resource.state));
            if let Some(hint) = resource.hint {
                out.push(format!("    hint: {hint}"));
            }
        }
        out.push(format!("  health check: {}", self.health));
        if let Some(code) = self.exit_code {
            out.push(format!("  its last process ended with status {code}; restarted {} times", self.restarts));
        }
        if self.stale {
            out.push("  its envforge.yml differs from the one it runs with".to_owned());
        }
        if !self.last_lines.is_empty() {
            out.push("  last lines:".to_owned());
            out.extend(self.last_lines.iter().map(|line| format!("    | {line}")));
        }
        out.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn why_names_what_holds_a_workspace_awake_and_why_it_last_woke() {
        let ws = sample::workspace();
        insta::assert_snapshot!(WhyWorkspace::of(&ws).text(sample::now()), @r#"
        signed-links is awake
          held awake by what would have to end first:
            - a hold until 2026-03-01T14:00:00Z
          last woke 5m 00s ago: `up` by ada
          last slept 3h 00m ago: idle for 15m
          backend is not healthy: `envforge why signed-links backend`
        "#);
    }

    #[test]
    fn why_of_a_service_shows_the_failed_step_the_blocked_resource_and_the_last_20_lines() {
        let ws = sample::workspace();
        let lines = (1..=30).map(|n| format!("line {n}")).collect();
        let text = WhyService::of(&ws, &ws.services[1], lines).text(sample::now());
        assert!(!text.contains("line 10\n") && text.contains("line 11\n") && text.ends_with("line 30"), "{text}");
        let head: Vec<_> = text.lines().take_while(|line| !line.contains("last lines")).collect();
        insta::assert_snapshot!(head.join("\n"), @r#"
        backend of signed-links is crashed (for 2m 00s)
          because its process ended with status 7
          hint: `envforge logs signed-links backend` shows its output
          set-up step backend.migrate failed with status 1
            | no such table
          resource mail is blocked: mailpit is not installed
            hint: install it
          health check: none
          its last process ended with status 7; restarted 2 times
        "#);
    }
}
