//! `project apply | show`.

use crate::{args::ProjectCommand, context::Context};
use envforge_api::{
    names::Slug,
    problem::{Problem, ProblemKind},
    public::{ApplyProject, ProjectApplied, ProjectList, ProjectView},
};
use http::Method;
use std::{path::Path, process::ExitCode};

pub(super) async fn run(context: &Context, command: ProjectCommand) -> Result<ExitCode, Problem> {
    match command {
        ProjectCommand::Apply { file, dry_run } => apply(context, &file, dry_run).await,
        ProjectCommand::Show { project } => show(context, project).await,
    }
}

async fn apply(context: &Context, file: &Path, dry_run: bool) -> Result<ExitCode, Problem> {
    let text =
        if file == Path::new("-") { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(file) };
    let text = text.map_err(|error| {
        Problem::new(ProblemKind::Usage, format!("{} cannot be read: {error}", file.display()), "name a project file")
    })?;
    let name = file.display().to_string();
    let project = project_of(&name, &text)?;
    let client = context.client().await?;
    let path = format!("/v1/projects/{project}");
    let put = async |dry_run| {
        let request = ApplyProject { file: name.clone(), text: text.clone(), dry_run };
        client.call::<_, ProjectApplied>(Method::PUT, &path, Some(&request)).await
    };
    let planned = put(true).await?;
    let done = if dry_run || planned.changes.is_empty() { planned } else { put(false).await? };
    context.out.data(&done, || report(&done, dry_run));
    Ok(ExitCode::SUCCESS)
}

/// The project that a file describes; a file with mistakes is refused before anything is asked.
fn project_of(name: &str, text: &str) -> Result<Slug, Problem> {
    match envforge_manifest::parse_project(name, text) {
        Ok(spec) => Ok(spec.project),
        Err(diagnostics) => {
            let mut problem = Problem::invalid(
                format!("{name} has {} mistake(s); nothing was applied", diagnostics.len()),
                "mend the file and apply it again",
            );
            problem.diagnostics = diagnostics;
            Err(problem)
        }
    }
}

fn report(done: &ProjectApplied, dry_run: bool) -> String {
    let project = &done.project.project;
    if done.changes.is_empty() {
        return format!("project {project} is as the file says (revision {})", done.project.revision);
    }
    let end = if dry_run {
        format!("project {project}: nothing was applied (--dry-run)")
    } else {
        format!(
            "project {project} applied as revision {}; effective at each workspace's next wake",
            done.project.revision
        )
    };
    format!("{}\n{end}", done.changes.join("\n"))
}

async fn show(context: &Context, project: Option<String>) -> Result<ExitCode, Problem> {
    let client = context.client().await?;
    let view = match project {
        Some(given) => {
            let slug: Slug = given.parse().map_err(|_| Problem::not_found(format!("project `{given}`")))?;
            client.get::<ProjectView>(&format!("/v1/projects/{slug}")).await?
        }
        None => only(client.get::<ProjectList>("/v1/projects").await?.projects)?,
    };
    context.out.data(&view, || view.text.clone());
    Ok(ExitCode::SUCCESS)
}

fn only(mut projects: Vec<ProjectView>) -> Result<ProjectView, Problem> {
    match (projects.pop(), projects.is_empty()) {
        (Some(project), true) => Ok(project),
        (None, _) => Err(Problem::new(
            ProblemKind::NotFound,
            "there is no project yet",
            "`envforge project apply -f FILE` makes one",
        )),
        (Some(last), false) => {
            let mut names: Vec<String> = projects.iter().map(|p| p.project.to_string()).collect();
            names.push(last.project.to_string());
            Err(Problem::new(ProblemKind::Usage, "which project is meant?", "name it after the command")
                .with_candidates(names))
        }
    }
}
