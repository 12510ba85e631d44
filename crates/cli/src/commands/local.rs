//! `local …` and `doctor`: the installation on this machine.

use crate::{args::LocalCommand, context::Context, local, output::tables, wait};
use envforge_api::{
    problem::{Problem, ProblemKind},
    public::Commanded,
};
use serde::Serialize;
use serde_json::Value;
use std::process::ExitCode;

#[derive(Debug, Serialize)]
struct Findings<'a> {
    findings: &'a [local::Finding],
}

#[derive(Debug, Serialize)]
struct Adopted {
    adopted: bool,
}

#[derive(Debug, Serialize)]
struct Running {
    running: bool,
    started: bool,
    endpoint: String,
}

pub(super) async fn run(context: &Context, command: LocalCommand) -> Result<ExitCode, Problem> {
    let home = &context.settings.home;
    match command {
        LocalCommand::Start => {
            let server = local::start(home).await?;
            let shown = Running { running: true, started: server.started, endpoint: server.endpoint.to_string() };
            context.out.data(&shown, || {
                let what = if shown.started { "started" } else { "runs already" };
                format!("the installation at {} {what}: {}", home.display(), shown.endpoint)
            });
            Ok(ExitCode::SUCCESS)
        }
        LocalCommand::Stop { all } => {
            if all {
                // Through the control plane first, so that every sleep has its record.
                sleep_all(context).await?;
                local::stop_all(home).await?;
            } else {
                local::stop(home).await?;
            }
            Ok(ExitCode::SUCCESS)
        }
        LocalCommand::Status => {
            let status = local::status(home).await?;
            let value = serde_json::to_value(&status).map_err(|error| Problem::internal(error.to_string()))?;
            context.out.data(&value, || outline(&value, 0).join("\n"));
            Ok(ExitCode::SUCCESS)
        }
        LocalCommand::Adopt => {
            let taken = local::adopt(home).await?;
            context.out.data(&Adopted { adopted: taken }, || {
                let what = if taken { "is the installation now" } else { "is its own already: nothing to adopt" };
                format!("{} {what}", home.display())
            });
            Ok(ExitCode::SUCCESS)
        }
        LocalCommand::Reset { yes } => {
            if !yes {
                let question = format!(
                    "Remove the installation at {} with every workspace, its files and databases?",
                    home.display()
                );
                if !context.out.can_ask() {
                    return Err(Problem::new(
                        ProblemKind::Usage,
                        format!("this removes every workspace of the installation at {}", home.display()),
                        "`envforge local reset --yes` does it",
                    ));
                }
                if !context.out.confirm(&question)? {
                    return Err(Problem::new(ProblemKind::Failed, "nothing was removed", ""));
                }
            }
            local::reset(home).await?;
            Ok(ExitCode::SUCCESS)
        }
        LocalCommand::Keep => Ok(local::keep(home).await),
    }
}

/// Puts every runtime of a running installation to sleep, and waits for it.
async fn sleep_all(context: &Context) -> Result<(), Problem> {
    if !local::status(&context.settings.home).await?.running {
        return Ok(());
    }
    let client = context.client().await?;
    let mut asked = Vec::new();
    for ws in context.workspaces().await?.iter().filter(|ws| ws.runtime.stated.state.may_run()) {
        let path = format!("/v1/workspaces/{}/sleep", ws.workspace);
        asked.push(client.post::<_, Commanded>(&path, &serde_json::json!({})).await?.command);
    }
    for record in asked {
        wait::succeeded(&wait::until_final(context, record).await?)?;
    }
    Ok(())
}

pub(super) async fn doctor(context: &Context) -> Result<ExitCode, Problem> {
    let findings = local::doctor(&context.settings.home).await;
    let shown = Findings { findings: &findings };
    context.out.data(&shown, || tables::findings(&findings));
    Ok(if findings.iter().all(|finding| finding.ok || !finding.required) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// A value as indented lines: `key: value`.
fn outline(value: &Value, depth: usize) -> Vec<String> {
    let pad = "  ".repeat(depth);
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(_, value)| !value.is_null())
            .flat_map(|(key, value)| {
                let key = key.replace('_', " ");
                match value {
                    Value::Object(_) | Value::Array(_) => {
                        let mut lines = vec![format!("{pad}{key}:")];
                        lines.extend(outline(value, depth + 1));
                        lines
                    }
                    plain => vec![format!("{pad}{key}: {}", word(plain))],
                }
            })
            .collect(),
        Value::Array(all) => all
            .iter()
            .map(|one| match one {
                Value::Object(fields) => {
                    let parts = fields.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| format!("{k} {}", word(v)));
                    format!("{pad}{}", parts.collect::<Vec<_>>().join(", "))
                }
                plain => format!("{pad}{}", word(plain)),
            })
            .collect(),
        plain => vec![format!("{pad}{}", word(plain))],
    }
}

fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_of_an_installation_is_outlined() {
        let value = serde_json::json!({"running": true, "parts": [{"name": "host", "pid": 7}], "none": null});
        assert_eq!(outline(&value, 0).join("\n"), "parts:\n  name host, pid 7\nrunning: yes");
    }
}
