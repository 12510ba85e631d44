//! SQL of secrets.

use super::Sealed;
use crate::{
    db::Time,
    http::errors::{Failure, unreadable},
};
use envforge_api::{
    ids::{OrganizationId, ProjectId},
    names::{SecretName, Slug},
    secrets::SecretView,
    time::Timestamp,
};
use sqlx::{PgConnection, PgPool, Row as _, postgres::PgRow};

fn name_of(row: &PgRow) -> Result<SecretName, Failure> {
    row.try_get::<String, _>("name")?.parse().map_err(|_| unreadable("secret's name"))
}

fn sealed(row: &PgRow) -> Result<Sealed, Failure> {
    let project: Option<String> = row.try_get("project_id")?;
    Ok(Sealed {
        organization: row
            .try_get::<String, _>("organization_id")?
            .parse()
            .map_err(|_| unreadable("organization id"))?,
        project: project.map(|id| id.parse()).transpose().map_err(|_| unreadable("project id"))?,
        name: name_of(row)?,
        key: row.try_get("key_id")?,
        text: row.try_get("sealed")?,
    })
}

/// Everything but the values: of the organization, and of one project or all.
pub(super) async fn list(
    pool: &PgPool,
    organization: &OrganizationId,
    project: Option<&ProjectId>,
) -> Result<Vec<SecretView>, Failure> {
    let rows = sqlx::query(
        "SELECT s.name, p.slug, s.set_at, s.set_by FROM secrets s LEFT JOIN projects p ON p.id = s.project_id
         WHERE s.organization_id = $1 AND (s.project_id IS NULL OR $2::text IS NULL OR s.project_id = $2)
         ORDER BY p.slug NULLS FIRST, s.name",
    )
    .bind(organization.as_str())
    .bind(project.map(ProjectId::as_str))
    .fetch_all(pool)
    .await?;
    let view = |row: &PgRow| {
        let project: Option<String> = row.try_get("slug")?;
        Ok(SecretView {
            name: name_of(row)?,
            project: project.map(|slug| slug.parse::<Slug>()).transpose().map_err(|_| unreadable("project"))?,
            set_at: row.try_get::<Time, _>("set_at")?.0,
            set_by: row.try_get("set_by")?,
        })
    };
    rows.iter().map(view).collect()
}

/// Sets one; `sealed` is the id of the key and what it sealed.
pub(super) async fn set(
    tx: &mut PgConnection,
    organization: &OrganizationId,
    project: Option<&ProjectId>,
    name: &SecretName,
    (key, sealed): (&str, &str),
    by: &str,
) -> Result<Timestamp, Failure> {
    let at: Time = sqlx::query_scalar(
        "INSERT INTO secrets (organization_id, project_id, name, key_id, sealed, set_by) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (organization_id, project_id, name)
             DO UPDATE SET key_id = $4, sealed = $5, set_by = $6, set_at = now()
         RETURNING set_at",
    )
    .bind(organization.as_str())
    .bind(project.map(ProjectId::as_str))
    .bind(name.as_str())
    .bind(key)
    .bind(sealed)
    .bind(by)
    .fetch_one(tx)
    .await?;
    Ok(at.0)
}

/// Takes one away; says when and by whom it was set.
pub(super) async fn remove(
    tx: &mut PgConnection,
    organization: &OrganizationId,
    project: Option<&ProjectId>,
    name: &SecretName,
) -> Result<Option<(Timestamp, String)>, Failure> {
    let row = sqlx::query(
        "DELETE FROM secrets WHERE organization_id = $1 AND project_id IS NOT DISTINCT FROM $2 AND name = $3
         RETURNING set_at, set_by",
    )
    .bind(organization.as_str())
    .bind(project.map(ProjectId::as_str))
    .bind(name.as_str())
    .fetch_optional(tx)
    .await?;
    row.map(|row| Ok((row.try_get::<Time, _>("set_at")?.0, row.try_get("set_by")?))).transpose()
}

/// Those of these names, or whose names begin so; the organization's first.
pub(super) async fn wanted(
    pool: &PgPool,
    organization: &OrganizationId,
    project: &Slug,
    names: &[&str],
    prefixes: &[String],
) -> Result<Vec<Sealed>, Failure> {
    let rows = sqlx::query(
        "SELECT s.organization_id, s.project_id, s.name, s.key_id, s.sealed
         FROM secrets s LEFT JOIN projects p ON p.id = s.project_id
         WHERE s.organization_id = $1 AND (s.project_id IS NULL OR p.slug = $2)
             AND (s.name = ANY($3) OR EXISTS (SELECT FROM unnest($4::text[]) AS prefix WHERE starts_with(s.name, prefix)))
         ORDER BY s.project_id NULLS FIRST",
    )
    .bind(organization.as_str())
    .bind(project.as_str())
    .bind(names)
    .bind(prefixes)
    .fetch_all(pool)
    .await?;
    rows.iter().map(sealed).collect()
}

/// Those that another key than this one sealed.
pub(super) async fn sealed_with_others(pool: &PgPool, key: &str) -> Result<Vec<Sealed>, Failure> {
    let rows = sqlx::query("SELECT organization_id, project_id, name, key_id, sealed FROM secrets WHERE key_id <> $1")
        .bind(key)
        .fetch_all(pool)
        .await?;
    rows.iter().map(sealed).collect()
}

/// Puts what was sealed anew in the place of `old`, unless that was set again meanwhile.
pub(super) async fn replace(tx: &mut PgConnection, old: &str, key: &str, sealed: &str) -> Result<(), Failure> {
    sqlx::query("UPDATE secrets SET key_id = $2, sealed = $3 WHERE sealed = $1")
        .bind(old)
        .bind(key)
        .bind(sealed)
        .execute(tx)
        .await?;
    Ok(())
}
