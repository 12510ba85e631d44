//! `secrets set | ls | rm`. A value is never an argument: everyone on a machine sees those.

use crate::{
    args::secrets::{ScopeArgs, SecretsCommand},
    context::Context,
    output::tables,
};
use envforge_api::{
    names::{SecretName, Slug},
    problem::{Problem, ProblemKind},
    public::ProjectList,
    secret::Secret,
    secrets::{LONGEST_VALUE, SHORTEST_MASKED, SecretList, SecretView, SetSecret},
    time::Timestamp,
};
use http::Method;
use std::{
    io::{IsTerminal, Read},
    process::ExitCode,
};

pub(super) async fn run(context: &Context, command: SecretsCommand) -> Result<ExitCode, Problem> {
    match command {
        SecretsCommand::Set { name, scope } => set(context, &name, &scope).await,
        SecretsCommand::Ls { scope } => list(context, &scope).await,
        SecretsCommand::Rm { name, scope } => remove(context, &name, &scope).await,
    }
}

fn named(given: &str) -> Result<SecretName, Problem> {
    if let Some((name, _)) = given.split_once('=') {
        // Not repeated: it may be the value.
        let shown = name.parse::<SecretName>().map_or_else(|_| "NAME".to_owned(), |name| name.to_string());
        let hint = format!(
            "`envforge secrets set {shown} < FILE`, or without `<` on a terminal; take another value if this one may have been seen"
        );
        return Err(Problem::new(
            ProblemKind::Usage,
            "a value is no argument: others on this machine could see it",
            hint,
        ));
    }
    given.parse().map_err(|error| {
        Problem::new(ProblemKind::Usage, format!("{error}"), "`envforge secrets set --help` says what can be named")
    })
}

/// The project that is meant; none = the organization.
async fn project(context: &Context, scope: &ScopeArgs) -> Result<Option<Slug>, Problem> {
    if scope.organization {
        return Ok(None);
    }
    if let Some(given) = &scope.project {
        return given.parse().map(Some).map_err(|_| Problem::not_found(format!("project `{given}`")));
    }
    if let Some(project) = &context.settings.project {
        return Ok(Some(project.clone()));
    }
    let mut all = context.client().await?.get::<ProjectList>("/v1/projects").await?.projects;
    match (all.pop(), all.is_empty()) {
        (Some(only), true) => Ok(Some(only.project)),
        (None, _) => Err(Problem::new(
            ProblemKind::NotFound,
            "there is no project yet",
            "`envforge project apply -f FILE` makes one; `--organization` is for all that will be",
        )),
        (Some(last), false) => {
            let names = all.iter().chain([&last]).map(|project| project.project.to_string()).collect();
            let hint = "name it with `--project`; `--organization` is for all of them";
            Err(Problem::new(ProblemKind::Usage, "which project is meant?", hint).with_candidates(names))
        }
    }
}

fn path(name: &SecretName, project: Option<&Slug>) -> String {
    let of = project.map(|project| format!("?project={project}")).unwrap_or_default();
    format!("/v1/secrets/{name}{of}")
}

fn whose(project: Option<&Slug>) -> String {
    project.map_or_else(|| "every project of the organization".to_owned(), |project| format!("project {project}"))
}

async fn set(context: &Context, name: &str, scope: &ScopeArgs) -> Result<ExitCode, Problem> {
    let name = named(name)?;
    let project = project(context, scope).await?;
    let value = if std::io::stdin().is_terminal() {
        context.out.hidden(&format!("Value of {name} for {}:", whose(project.as_ref())))?
    } else {
        read(std::io::stdin().lock())?
    };
    if value.expose().is_empty() {
        let hint = "nothing was set; `envforge secrets rm` takes a secret away";
        return Err(Problem::new(ProblemKind::Usage, "the value is empty", hint));
    }
    if value.expose().len() < SHORTEST_MASKED {
        context.out.say("a value this short cannot be masked in what programs print");
    }
    let client = context.client().await?;
    let view: SecretView = client.call(Method::PUT, &path(&name, project.as_ref()), Some(&SetSecret { value })).await?;
    context
        .out
        .data(&view, || format!("{name} is set for {}; services get it at their next start", whose(project.as_ref())));
    Ok(ExitCode::SUCCESS)
}

/// Standard input without the line break at its end.
fn read(from: impl Read) -> Result<Secret, Problem> {
    let usage = |message: String| Problem::new(ProblemKind::Usage, message, "give text of at most 32 KiB");
    let mut bytes = Vec::new();
    let most = u64::try_from(LONGEST_VALUE).unwrap_or(u64::MAX) + 3;
    from.take(most).read_to_end(&mut bytes).map_err(|e| usage(format!("standard input cannot be read: {e}")))?;
    let mut text = String::from_utf8(bytes).map_err(|_| usage("standard input is no text (UTF-8)".into()))?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(Secret::new(text))
}

async fn list(context: &Context, scope: &ScopeArgs) -> Result<ExitCode, Problem> {
    let known = context.settings.project.as_ref().map(ToString::to_string);
    let named = scope.project.clone().or(known);
    let query = match named.filter(|_| !scope.organization) {
        Some(given) => {
            let slug: Slug = given.parse().map_err(|_| Problem::not_found(format!("project `{given}`")))?;
            format!("?project={slug}")
        }
        None => String::new(),
    };
    let mut list: SecretList = context.client().await?.get(&format!("/v1/secrets{query}")).await?;
    list.secrets.retain(|secret| !scope.organization || secret.project.is_none());
    context.out.data(&list, || {
        if list.secrets.is_empty() {
            return "no secrets yet: `envforge secrets set NAME` sets one".to_owned();
        }
        tables::secrets(&list.secrets, Timestamp::now())
    });
    Ok(ExitCode::SUCCESS)
}

async fn remove(context: &Context, name: &str, scope: &ScopeArgs) -> Result<ExitCode, Problem> {
    let name = named(name)?;
    let project = project(context, scope).await?;
    let client = context.client().await?;
    let view: SecretView = client.call(Method::DELETE, &path(&name, project.as_ref()), None::<&()>).await?;
    context.out.data(&view, || {
        format!("{name} of {} is taken away; what runs keeps it until its next start", whose(project.as_ref()))
    });
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;
    use serde_json::json;

    #[test]
    fn standard_input_is_the_value_but_for_one_line_break_at_its_end() {
        for (given, value) in [("a", "a"), ("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), (" a b ", " a b "), ("", "")]
        {
            assert_eq!(read(given.as_bytes()).expect(given).expose(), value);
        }
        assert_eq!(read([0xff].as_slice()).expect_err("no text").kind, ProblemKind::Usage);
    }

    #[tokio::test]
    async fn a_value_given_as_an_argument_is_refused_without_repeating_it() {
        let fake = Fake::start();
        let ran = fake.run("secrets set stripe_key=hunter2-hunter2").await;
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.stderr.contains("secrets set stripe_key <") && !ran.stderr.contains("hunter2"), "{}", ran.stderr);
        assert_eq!(fake.run("secrets set a.b.c.d").await.code, 2);
    }

    #[tokio::test]
    async fn a_project_left_out_is_the_only_one_and_never_guessed() {
        let fake = Fake::start();
        let view = |project: &str| {
            json!({ "project": project, "revision": 1, "applied_at": "2026-01-01T00:00:00Z", "text": "",
                    "spec": { "project": project, "services": [] } })
        };
        fake.on("GET /v1/projects", json!({ "projects": [view("a"), view("b")] }));
        let ran = fake.run("secrets rm stripe_key").await;
        assert_eq!(ran.code, 2);
        assert!(ran.stderr.contains("one of: a, b") && ran.stderr.contains("--organization"), "{}", ran.stderr);
        let removed = json!({ "name": "stripe_key", "set_at": "2026-01-01T00:00:00Z", "set_by": "ada" });
        fake.on("DELETE /v1/secrets/stripe_key", removed.clone())
            .on("DELETE /v1/secrets/stripe_key?project=b", removed);
        assert_eq!(fake.run("secrets rm stripe_key --organization").await.code, 0);
        assert_eq!(fake.run("secrets rm stripe_key -p b").await.code, 0);
    }
}
