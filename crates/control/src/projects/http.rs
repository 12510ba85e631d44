//! Routes of projects.

use super::store;
use crate::{
    app::App,
    audit, db,
    http::{
        auth::Allowed,
        errors::not_found,
        extract::{Answer, At, Body},
    },
};
use axum::{Json, extract::State};
use envforge_api::{
    generation::Revision,
    names::Slug,
    problem::{Problem, ProblemKind},
    public::{ApplyProject, ProjectApplied, ProjectList, ProjectView},
    time::Timestamp,
};

/// Every project.
#[utoipa::path(get, path = "/v1/projects", responses((status = 200, body = ProjectList)))]
pub(crate) async fn list(State(app): State<App>, allowed: Allowed) -> Answer<ProjectList> {
    let projects = store::find(&app.pool, allowed.caller.organization(), None).await?;
    Ok(Json(ProjectList { projects: projects.into_iter().map(|project| project.view).collect() }))
}

/// One project.
#[utoipa::path(get, path = "/v1/projects/{project}", params(("project" = String, Path, description = "Slug")),
    responses((status = 200, body = ProjectView)))]
pub(crate) async fn show(State(app): State<App>, allowed: Allowed, At(slug): At<String>) -> Answer<ProjectView> {
    let missing = || not_found(format!("project `{}`", slug.chars().take(80).collect::<String>()));
    let known: Slug = slug.parse().map_err(|_| missing())?;
    let mut found = store::find(&app.pool, allowed.caller.organization(), Some(&known)).await?;
    found.pop().map(|project| Json(project.view)).ok_or_else(missing)
}

/// Applies a project file, or shows what it would change. Effective at each workspace's next wake.
#[utoipa::path(put, path = "/v1/projects/{project}", params(("project" = String, Path, description = "Slug")),
    request_body = ApplyProject, responses((status = 200, body = ProjectApplied)))]
pub(crate) async fn apply(
    State(app): State<App>,
    allowed: Allowed,
    At(slug): At<String>,
    Body(request): Body<ApplyProject>,
) -> Answer<ProjectApplied> {
    let spec = envforge_manifest::parse_project(&request.file, &request.text).map_err(|diagnostics| {
        let mut problem = Problem::invalid(
            format!("{} has {} to correct", request.file, count(diagnostics.len())),
            "correct the file and apply it again",
        );
        problem.diagnostics = diagnostics;
        problem
    })?;
    if spec.project.as_str() != slug {
        return Err(Problem::invalid(
            format!("the file is of project `{}`, not of the project it was sent for", spec.project),
            "name the project as the file does",
        )
        .into());
    }
    let organization = allowed.caller.organization().clone();
    let by = allowed.name();
    let applied = db::write(&app.pool, move |tx| {
        Box::pin(async move {
            store::lock(&mut *tx, &organization, &spec.project).await?;
            let known = store::find(&mut *tx, &organization, Some(&spec.project)).await?.pop();
            let changes = envforge_manifest::changes(known.as_ref().map(|project| &project.view.spec), &spec);
            let differs = known.as_ref().is_none_or(|project| project.view.spec != spec);
            if request.dry_run || !differs {
                let (revision, applied_at) = match &known {
                    Some(project) => (project.view.revision, project.view.applied_at),
                    None => (Revision(0), Timestamp::now()),
                };
                let project =
                    ProjectView { project: spec.project.clone(), revision, applied_at, text: request.text, spec };
                return Ok(ProjectApplied { project, changes, applied: false });
            }
            store::apply(&mut *tx, &organization, known.as_ref(), &request.text, &spec).await?;
            let details = [("changes", changes.join("; "))];
            let target = spec.project.as_str();
            audit::store::add(&mut *tx, &organization, &by, "project.apply", target, &details).await?;
            let now = store::find(tx, &organization, Some(&spec.project)).await?.pop();
            let now = now.ok_or_else(|| Problem::new(ProblemKind::Internal, "the project was not stored", ""))?;
            Ok(ProjectApplied { project: now.view, changes, applied: true })
        })
    })
    .await?;
    Ok(Json(applied))
}

fn count(findings: usize) -> String {
    if findings == 1 { "one thing".into() } else { format!("{findings} things") }
}
