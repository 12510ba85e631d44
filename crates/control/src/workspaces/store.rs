//! SQL of workspaces. Reading joins the names that every view and intent carries; writing touches `workspaces` alone.

use super::lifecycle::Desired;
use crate::{
    db::{Time, big, small},
    dev_hosts::base::Base,
    http::errors::{Failure, unreadable},
};
use envforge_api::{
    dev_host::HostLabel,
    generation::{Generation, HostEpoch, IntentSeq, Revision},
    host::{Face, WorkspaceReport},
    ids::{HostId, OrganizationId, PrincipalId, ProjectId, WorkspaceId},
    names::{Branch, ServiceName, Slug},
    project::ProjectSpec,
    time::Timestamp,
};
use sqlx::{PgConnection, PgExecutor, Row as _, postgres::PgRow, types::Json};
use std::{collections::BTreeMap, str::FromStr};

/// A workspace with what it refers to.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) id: WorkspaceId,
    pub(crate) organization: OrganizationId,
    pub(crate) organization_slug: Slug,
    /// The organization's part of public host names.
    pub(crate) organization_label: String,
    pub(crate) project: Slug,
    pub(crate) host: HostId,
    pub(crate) owner: PrincipalId,
    pub(crate) owner_name: String,
    pub(crate) slug: Slug,
    pub(crate) label: String,
    pub(crate) branch: Branch,
    pub(crate) from: Option<String>,
    /// What it begins as a copy of.
    pub(crate) fork_of: Option<WorkspaceId>,
    pub(crate) generation: Generation,
    pub(crate) desired: Desired,
    pub(crate) desired_at: Timestamp,
    pub(crate) version: u64,
    pub(crate) report: Option<WorkspaceReport>,
    pub(crate) report_epoch: HostEpoch,
    pub(crate) created_at: Timestamp,
    /// The project's newest revision.
    pub(crate) newest: Revision,
    /// The project at the desired revision.
    pub(crate) spec: ProjectSpec,
    /// The dev host of each service.
    pub(crate) hosts: BTreeMap<ServiceName, HostLabel>,
    /// The dev host of its presigned storage addresses.
    pub(crate) storage_host: Option<HostLabel>,
}

impl Row {
    /// What its host said that services show; empty before any file was read.
    pub(crate) fn faces(&self) -> &[Face] {
        self.report.as_ref().map(|report| report.faces.as_slice()).unwrap_or_default()
    }

    /// The public origin of each service of the project.
    pub(crate) fn urls(&self, base: &Base) -> BTreeMap<ServiceName, String> {
        let origin = |name: &ServiceName| Some((name.clone(), base.origin(self.hosts.get(name)?)));
        self.spec.services.iter().filter_map(|service| origin(&service.name)).collect()
    }
}

/// Completes the query that every reader of a [`Row`] uses.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT w.id, w.organization_id, o.slug AS organization_slug,
                o.label AS organization_label, p.slug AS project, p.revision AS newest,
                w.host_id, w.owner_id, u.name AS owner_name, w.slug, w.label, w.branch, w.from_ref, w.fork_of, w.generation,
                w.desired, w.desired_at, w.version, w.report, w.report_epoch, w.created_at, r.spec,
                (SELECT coalesce(jsonb_object_agg(d.service, d.label), '{}') FROM dev_hosts d
                 WHERE d.workspace_id = w.id AND d.port = '' AND d.service <> '') AS hosts,
                (SELECT d.label FROM dev_hosts d WHERE d.workspace_id = w.id AND d.service = '') AS storage_host
             FROM workspaces w
             JOIN organizations o ON o.id = w.organization_id
             JOIN projects p ON p.id = w.project_id
             JOIN project_revisions r ON r.project_id = w.project_id AND r.revision = (w.desired ->> 'revision')::bigint
             JOIN principals u ON u.id = w.owner_id
             WHERE w.deleted_at IS NULL AND ",
            $rest
        )
    };
}

fn word<T: FromStr>(row: &PgRow, column: &'static str) -> Result<T, Failure> {
    row.try_get::<String, _>(column)?.parse().map_err(|_| unreadable(column))
}

fn number(row: &PgRow, column: &'static str) -> Result<u64, Failure> {
    Ok(small(row.try_get(column)?))
}

fn read(row: &PgRow) -> Result<Row, Failure> {
    Ok(Row {
        id: word(row, "id")?,
        organization: word(row, "organization_id")?,
        organization_slug: word(row, "organization_slug")?,
        organization_label: row.try_get("organization_label")?,
        project: word(row, "project")?,
        host: word(row, "host_id")?,
        owner: word(row, "owner_id")?,
        owner_name: row.try_get("owner_name")?,
        slug: word(row, "slug")?,
        label: row.try_get("label")?,
        branch: word(row, "branch")?,
        from: row.try_get("from_ref")?,
        fork_of: row
            .try_get::<Option<String>, _>("fork_of")?
            .map(|id| id.parse().map_err(|_| unreadable("workspace id")))
            .transpose()?,
        generation: Generation(number(row, "generation")?),
        desired: row.try_get::<Json<Desired>, _>("desired")?.0,
        desired_at: row.try_get::<Time, _>("desired_at")?.0,
        version: number(row, "version")?,
        report: row.try_get::<Option<Json<WorkspaceReport>>, _>("report")?.map(|json| json.0),
        report_epoch: HostEpoch(number(row, "report_epoch")?),
        created_at: row.try_get::<Time, _>("created_at")?.0,
        newest: Revision(number(row, "newest")?),
        spec: row.try_get::<Json<ProjectSpec>, _>("spec")?.0,
        hosts: row.try_get::<Json<BTreeMap<ServiceName, HostLabel>>, _>("hosts")?.0,
        storage_host: row
            .try_get::<Option<String>, _>("storage_host")?
            .map(|label| label.parse().map_err(|_| unreadable("storage_host")))
            .transpose()?,
    })
}

fn read_all(rows: &[PgRow]) -> Result<Vec<Row>, Failure> {
    rows.iter().map(read).collect()
}

/// By id.
pub(crate) async fn by_id(db: impl PgExecutor<'_>, id: &WorkspaceId) -> Result<Option<Row>, Failure> {
    let row = sqlx::query(select!("w.id = $1")).bind(id.as_str()).fetch_optional(db).await?;
    row.as_ref().map(read).transpose()
}

/// By id, locked until the transaction ends: every change of a workspace begins with this.
pub(crate) async fn lock(tx: &mut PgConnection, id: &WorkspaceId) -> Result<Option<Row>, Failure> {
    // The lock first, alone: what is read after it waited is what the transaction before it left.
    sqlx::query("SELECT FROM workspaces WHERE id = $1 FOR UPDATE").bind(id.as_str()).execute(&mut *tx).await?;
    by_id(&mut *tx, id).await
}

/// By slug.
pub(crate) async fn by_slug(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    slug: &str,
) -> Result<Option<Row>, Failure> {
    let row = sqlx::query(select!("w.organization_id = $1 AND w.slug = $2"))
        .bind(organization.as_str())
        .bind(slug)
        .fetch_optional(db)
        .await?;
    row.as_ref().map(read).transpose()
}

/// By branch of a project.
pub(crate) async fn by_branch(
    db: impl PgExecutor<'_>,
    project: &ProjectId,
    branch: &Branch,
) -> Result<Option<Row>, Failure> {
    let row = sqlx::query(select!("w.project_id = $1 AND w.branch = $2"))
        .bind(project.as_str())
        .bind(branch.as_str())
        .fetch_optional(db)
        .await?;
    row.as_ref().map(read).transpose()
}

/// All of an organization, by slug.
pub(crate) async fn all(db: impl PgExecutor<'_>, organization: &OrganizationId) -> Result<Vec<Row>, Failure> {
    let rows = sqlx::query(select!("w.organization_id = $1 ORDER BY w.slug"))
        .bind(organization.as_str())
        .fetch_all(db)
        .await?;
    read_all(&rows)
}

/// Those of a host whose intent changed after `seq`, in the order of their changes.
pub(crate) async fn changed_since(db: impl PgExecutor<'_>, host: &HostId, seq: IntentSeq) -> Result<Vec<Row>, Failure> {
    let rows = sqlx::query(select!("w.host_id = $1 AND w.intent_seq > $2 ORDER BY w.intent_seq"))
        .bind(host.as_str())
        .bind(big(seq.0))
        .fetch_all(db)
        .await?;
    read_all(&rows)
}

/// Those of an organization that changed since a point of the feed.
pub(crate) async fn changed(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    since: u64,
) -> Result<Vec<Row>, Failure> {
    let rows = sqlx::query(select!("w.organization_id = $1 AND w.changed >= $2::text::xid8 ORDER BY w.id"))
        .bind(organization.as_str())
        .bind(since.to_string())
        .fetch_all(db)
        .await?;
    read_all(&rows)
}

/// Those that were deleted since a point of the feed, and when.
pub(crate) async fn gone_since(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    since: u64,
) -> Result<Vec<(WorkspaceId, Timestamp)>, Failure> {
    let rows = sqlx::query(
        "SELECT id, deleted_at FROM workspaces
         WHERE organization_id = $1 AND changed >= $2::text::xid8 AND deleted_at IS NOT NULL ORDER BY id",
    )
    .bind(organization.as_str())
    .bind(since.to_string())
    .fetch_all(db)
    .await?;
    rows.iter().map(|row| Ok((word(row, "id")?, row.try_get::<Time, _>("deleted_at")?.0))).collect()
}

/// A workspace that is about to be made.
#[derive(Debug)]
pub(crate) struct New<'a> {
    pub(crate) id: &'a WorkspaceId,
    pub(crate) organization: &'a OrganizationId,
    pub(crate) project: &'a ProjectId,
    pub(crate) host: &'a HostId,
    pub(crate) owner: &'a PrincipalId,
    pub(crate) slug: &'a Slug,
    pub(crate) label: &'a str,
    pub(crate) branch: &'a Branch,
    pub(crate) from: Option<&'a str>,
    pub(crate) fork_of: Option<&'a WorkspaceId>,
    pub(crate) intent_seq: IntentSeq,
    pub(crate) desired: &'a Desired,
}

/// Inserts it; false when slug, label or branch are taken.
pub(crate) async fn insert(tx: &mut PgConnection, new: New<'_>) -> Result<bool, Failure> {
    let done = sqlx::query(
        "INSERT INTO workspaces (id, organization_id, project_id, host_id, owner_id, slug, label, branch, from_ref,
             generation, intent_seq, desired, fork_of)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 1, $10, $11, $12) ON CONFLICT DO NOTHING",
    )
    .bind(new.id.as_str())
    .bind(new.organization.as_str())
    .bind(new.project.as_str())
    .bind(new.host.as_str())
    .bind(new.owner.as_str())
    .bind(new.slug.as_str())
    .bind(new.label)
    .bind(new.branch.as_str())
    .bind(new.from)
    .bind(big(new.intent_seq.0))
    .bind(Json(new.desired))
    .bind(new.fork_of.map(WorkspaceId::as_str))
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Stores a new desired state at a generation. The row is locked by the caller.
pub(crate) async fn change(
    tx: &mut PgConnection,
    id: &WorkspaceId,
    generation: Generation,
    intent_seq: IntentSeq,
    desired: &Desired,
) -> Result<(), Failure> {
    sqlx::query(
        "UPDATE workspaces SET generation = $2, intent_seq = $3, desired = $4, desired_at = now(),
             version = version + 1 WHERE id = $1",
    )
    .bind(id.as_str())
    .bind(big(generation.0))
    .bind(big(intent_seq.0))
    .bind(Json(desired))
    .execute(tx)
    .await?;
    Ok(())
}

/// What storing a report came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Updated {
    /// Stored; `shown` says whether anything visible changed.
    Stored { shown: bool },
    /// A newer one is there.
    NotNewer,
}

/// Stores a host's newest report. `before` is the locked row.
pub(crate) async fn report(
    tx: &mut PgConnection,
    before: &Row,
    epoch: HostEpoch,
    report: &WorkspaceReport,
) -> Result<Updated, Failure> {
    let newer = match &before.report {
        None => true,
        Some(old) => (before.report_epoch, old.seq) < (epoch, report.seq),
    };
    if !newer {
        return Ok(Updated::NotNewer);
    }
    let shown = before.report.as_ref().is_none_or(|old| WorkspaceReport { seq: report.seq, ..old.clone() } != *report);
    sqlx::query(
        "UPDATE workspaces SET report = $2, report_epoch = $3, report_seq = $4, version = version + $5 WHERE id = $1",
    )
    .bind(before.id.as_str())
    .bind(Json(report))
    .bind(big(epoch.0))
    .bind(big(report.seq))
    .bind(i64::from(shown))
    .execute(tx)
    .await?;
    Ok(Updated::Stored { shown })
}

/// Something else that is shown changed.
pub(crate) async fn touch(tx: &mut PgConnection, id: &WorkspaceId) -> Result<(), Failure> {
    sqlx::query("UPDATE workspaces SET version = version + 1 WHERE id = $1").bind(id.as_str()).execute(tx).await?;
    Ok(())
}

/// Everything of it is gone from its host: slug, label and branch are free again, history stays.
pub(crate) async fn gone(tx: &mut PgConnection, id: &WorkspaceId) -> Result<(), Failure> {
    sqlx::query("UPDATE workspaces SET deleted_at = now(), version = version + 1 WHERE id = $1")
        .bind(id.as_str())
        .execute(tx)
        .await?;
    Ok(())
}

/// The organization of a workspace, deleted ones included.
pub(crate) async fn organization_of(
    db: impl PgExecutor<'_>,
    id: &WorkspaceId,
) -> Result<Option<OrganizationId>, Failure> {
    let id: Option<String> = sqlx::query_scalar("SELECT organization_id FROM workspaces WHERE id = $1")
        .bind(id.as_str())
        .fetch_optional(db)
        .await?;
    id.map(|id| id.parse().map_err(|_| unreadable("organization id"))).transpose()
}

/// The host of a workspace, deleted ones included, locked until the transaction ends.
pub(crate) async fn host_of(tx: &mut PgConnection, id: &WorkspaceId) -> Result<Option<HostId>, Failure> {
    let host: Option<String> = sqlx::query_scalar("SELECT host_id FROM workspaces WHERE id = $1 FOR UPDATE")
        .bind(id.as_str())
        .fetch_optional(tx)
        .await?;
    host.map(|id| id.parse().map_err(|_| unreadable("host id"))).transpose()
}
