//! SQL of projects and their revisions.

use crate::{
    db::{Time, big, small},
    http::errors::{Failure, unreadable},
};
use envforge_api::{
    generation::Revision,
    ids::{OrganizationId, ProjectId},
    names::Slug,
    project::ProjectSpec,
    public::ProjectView,
};
use sqlx::{PgConnection, PgExecutor, Row as _, postgres::PgRow, types::Json};

/// A project at its newest revision.
#[derive(Debug, Clone)]
pub(crate) struct Project {
    pub(crate) id: ProjectId,
    pub(crate) view: ProjectView,
}

fn read(row: &PgRow) -> Result<Project, Failure> {
    Ok(Project {
        id: row.try_get::<String, _>("id")?.parse().map_err(|_| unreadable("project id"))?,
        view: ProjectView {
            project: row.try_get::<String, _>("slug")?.parse().map_err(|_| unreadable("project"))?,
            revision: Revision(small(row.try_get("revision")?)),
            applied_at: row.try_get::<Time, _>("applied_at")?.0,
            text: row.try_get("text")?,
            spec: row.try_get::<Json<ProjectSpec>, _>("spec")?.0,
        },
    })
}

/// All of an organization, by slug; one, where a slug is given.
pub(crate) async fn find(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    slug: Option<&Slug>,
) -> Result<Vec<Project>, Failure> {
    let rows = sqlx::query(
        "SELECT p.id, p.slug, p.revision, r.text, r.spec, r.applied_at FROM projects p
         JOIN project_revisions r ON r.project_id = p.id AND r.revision = p.revision
         WHERE p.organization_id = $1 AND ($2::text IS NULL OR p.slug = $2) ORDER BY p.slug",
    )
    .bind(organization.as_str())
    .bind(slug.map(Slug::as_str))
    .fetch_all(db)
    .await?;
    rows.iter().map(read).collect()
}

/// Takes the lock under which a project is compared and changed.
pub(crate) async fn lock(tx: &mut PgConnection, organization: &OrganizationId, slug: &Slug) -> Result<(), Failure> {
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1, 1))")
        .bind(format!("{organization}/{slug}"))
        .execute(tx)
        .await?;
    Ok(())
}

/// Adds a revision, and the project where it is new.
pub(crate) async fn apply(
    tx: &mut PgConnection,
    organization: &OrganizationId,
    known: Option<&Project>,
    text: &str,
    spec: &ProjectSpec,
) -> Result<(), Failure> {
    let (id, revision) = match known {
        Some(project) => {
            let revision = big(project.view.revision.next().0);
            sqlx::query("UPDATE projects SET revision = $2 WHERE id = $1")
                .bind(project.id.as_str())
                .bind(revision)
                .execute(&mut *tx)
                .await?;
            (project.id.clone(), revision)
        }
        None => {
            let id = ProjectId::generate();
            sqlx::query("INSERT INTO projects (id, organization_id, slug, revision) VALUES ($1, $2, $3, 1)")
                .bind(id.as_str())
                .bind(organization.as_str())
                .bind(spec.project.as_str())
                .execute(&mut *tx)
                .await?;
            (id, 1)
        }
    };
    sqlx::query("INSERT INTO project_revisions (project_id, revision, text, spec) VALUES ($1, $2, $3, $4)")
        .bind(id.as_str())
        .bind(revision)
        .bind(text)
        .bind(Json(spec))
        .execute(tx)
        .await?;
    Ok(())
}
