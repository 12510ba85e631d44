//! `status` as people read it: shell, runtime, services and billing apart, every bad state with reason and hint.

use super::{tables::table, times};
use envforge_api::{
    public::WorkspaceView,
    states::{CommandState, ServiceState, Stated},
    time::Timestamp,
};

/// The whole block.
pub(crate) fn block(ws: &WorkspaceView, now: Timestamp) -> String {
    let mut out = vec![format!(
        "{}   {} · branch {} · {} · owner {}",
        ws.workspace, ws.project, ws.branch, ws.organization, ws.owner
    )];
    if let Some(since) = ws.host_lost_since {
        out.push(format!("  ! the host was last heard of {}; this is as it was then", times::relative(since, now)));
    }
    layer(&mut out, "shell", &ws.shell, "", now);
    let size = ws.runtime.size.map(|size| format!(", {size}")).unwrap_or_default();
    let runtime = format!("{size}, generation {}", ws.runtime.generation);
    layer(&mut out, "runtime", &ws.runtime.stated, &runtime, now);
    out.push(format!("  services  {}", services_in_a_word(ws)));
    out.push(format!("  billing   {}", billing(ws, now)));
    steps(&mut out, ws);
    services(&mut out, ws);
    resources(&mut out, ws);
    if !ws.links.is_empty() {
        out.push(String::new());
        indented(&mut out, &super::tables::links(&ws.links, now));
    }
    if !ws.diagnostics.is_empty() {
        out.push(String::new());
        for finding in &ws.diagnostics {
            indented(&mut out, &finding.to_string());
        }
    }
    out.join("\n")
}

fn layer<S: std::fmt::Display>(out: &mut Vec<String>, name: &str, stated: &Stated<S>, more: &str, now: Timestamp) {
    out.push(format!("  {name:<9} {} (for {}{more})", stated.state, times::elapsed(stated.since, now)));
    if let Some(reason) = &stated.reason {
        out.push(format!("            {reason}"));
    }
    if let Some(hint) = &stated.hint {
        out.push(format!("            hint: {hint}"));
    }
}

fn services_in_a_word(ws: &WorkspaceView) -> String {
    if ws.services.is_empty() {
        return "none known yet".to_owned();
    }
    let mut parts = Vec::new();
    for state in ServiceState::ALL {
        let count = ws.services.iter().filter(|s| s.stated.state == *state).count();
        if count > 0 {
            parts.push(format!("{count} {state}"));
        }
    }
    parts.join(", ")
}

fn billing(ws: &WorkspaceView, now: Timestamp) -> String {
    let state = ws.billing.state;
    match (ws.billing.session_started_at, ws.billing.session_seconds) {
        (Some(started), Some(seconds)) => format!(
            "{state} (session began {}, {} metered)",
            times::relative(started, now),
            times::duration(i64::try_from(seconds).unwrap_or(i64::MAX))
        ),
        (Some(started), None) => format!("{state} (session began {})", times::relative(started, now)),
        (None, _) => state.to_string(),
    }
}

fn services(out: &mut Vec<String>, ws: &WorkspaceView) {
    if ws.services.is_empty() {
        return;
    }
    out.push(String::new());
    let rows = ws
        .services
        .iter()
        .map(|s| {
            let stale = if s.stale { " (stale)" } else { "" };
            vec![
                format!("{}{stale}", s.name),
                s.kind.to_string(),
                s.stated.state.to_string(),
                s.health.to_string(),
                s.port.map_or_else(|| "-".to_owned(), |port| port.to_string()),
                s.restarts.to_string(),
                s.url.clone().unwrap_or_else(|| "-".to_owned()),
            ]
        })
        .collect();
    indented(out, &table(&["SERVICE", "KIND", "STATE", "HEALTH", "PORT", "RESTARTS", "URL"], rows));
    for s in &ws.services {
        explain(out, &s.name, s.stated.reason.as_deref(), s.stated.hint.as_deref());
        if s.stale {
            explain(
                out,
                &s.name,
                Some("its envforge.yml differs from the one it runs with"),
                Some(&format!("`envforge restart {} {}` takes it over", ws.workspace, s.name)),
            );
        }
    }
}

fn resources(out: &mut Vec<String>, ws: &WorkspaceView) {
    if ws.resources.is_empty() {
        return;
    }
    out.push(String::new());
    let rows = ws
        .resources
        .iter()
        .map(|r| {
            let consumers = r.consumers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            let name = match &r.service {
                Some(service) => format!("{} of {service}", r.kind),
                None => r.kind.to_string(),
            };
            vec![name, r.mode.to_string(), r.stated.state.to_string(), consumers, r.url.clone()]
        })
        .collect();
    indented(out, &table(&["RESOURCE", "MODE", "STATE", "USED BY", "URL"], rows));
    for r in &ws.resources {
        explain(out, r.kind.as_str(), r.stated.reason.as_deref(), r.stated.hint.as_deref());
    }
}

fn steps(out: &mut Vec<String>, ws: &WorkspaceView) {
    for step in &ws.steps {
        match step.state {
            CommandState::Succeeded | CommandState::Superseded | CommandState::Cancelled => {}
            CommandState::Queued | CommandState::Delivered | CommandState::Running => {
                out.push(format!("  setup     {} is {}", step.name, step.state));
            }
            CommandState::Failed | CommandState::Interrupted => {
                let code = step.exit_code.map(|code| format!(" with status {code}")).unwrap_or_default();
                out.push(format!("  setup     {} {}{code}", step.name, step.state));
                for line in step.last_lines.iter().rev().take(5).rev() {
                    out.push(format!("            | {line}"));
                }
                let (service, name) = step.name.split_once('.').unwrap_or(("", &step.name));
                out.push(format!(
                    "            hint: `envforge run {} --service {service} setup {name}` runs it again",
                    ws.workspace
                ));
            }
        }
    }
}

fn explain(out: &mut Vec<String>, name: &str, reason: Option<&str>, hint: Option<&str>) {
    if let Some(reason) = reason {
        out.push(format!("  {name}: {reason}"));
        if let Some(hint) = hint {
            out.push(format!("    hint: {hint}"));
        }
    }
}

fn indented(out: &mut Vec<String>, text: &str) {
    out.extend(text.lines().map(|line| format!("  {line}")));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn status_shows_the_four_states_apart_with_reason_and_hint() {
        let text = block(&sample::workspace(), sample::now());
        insta::assert_snapshot!(text, @r#"
        signed-links   scheduler · branch signed-links · acme · owner ada
          shell     ready (for 1h 00m)
          runtime   awake (for 5m 00s, medium, generation 3)
          services  1 healthy, 1 crashed
          billing   metering (session began 5m 00s ago, 4m 58s metered)
          setup     backend.migrate failed with status 1
                    | no such table
                    hint: `envforge run signed-links --service backend setup migrate` runs it again

          SERVICE      KIND     STATE    HEALTH   PORT  RESTARTS  URL
          web (stale)  service  healthy  passing  3000  0         http://web--signed-links--acme.dev.localhost
          backend      service  crashed  none     -     2         -
          web: its envforge.yml differs from the one it runs with
            hint: `envforge restart signed-links web` takes it over
          backend: its process ended with status 7
            hint: `envforge logs signed-links backend` shows its output

          RESOURCE  MODE     STATE    USED BY  URL
          database  managed  ready    backend  postgres://***@resource.database/app
          mail      managed  blocked  backend  smtp://resource.mail
          mail: mailpit is not installed
            hint: install it
        "#);
    }

    #[test]
    fn a_host_that_is_not_heard_of_is_said_before_anything_else() {
        let mut ws = sample::workspace();
        ws.host_lost_since = Some(sample::now());
        let text = block(&ws, sample::now());
        assert!(text.lines().nth(1).is_some_and(|line| line.contains("last heard of 0s ago")), "{text}");
    }
}
