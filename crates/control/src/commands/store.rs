//! SQL of command records.

use crate::{
    copies::{ForkOrder, SnapshotOrder},
    db::{Time, big, small},
    http::errors::{Failure, not_found, unreadable},
    workspaces::lifecycle::{ServiceOrder, UnderWay},
};
use envforge_api::{
    command::{CommandKind, CommandView, RunSpec},
    generation::Generation,
    ids::{CommandId, WorkspaceId},
    names::ServiceName,
    receipt::ResourceReceipt,
    states::CommandState,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgExecutor, PgPool, Row as _, postgres::PgRow, types::Json};
use std::str::FromStr;

/// What was asked beyond the kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Body {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) order: Option<ServiceOrder>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) run: Option<RunSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) fork: Option<ForkOrder>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) snapshot: Option<SnapshotOrder>,
}

/// A record that is about to be made.
#[derive(Debug, Clone)]
pub(crate) struct NewCommand<'a> {
    pub(crate) id: &'a CommandId,
    pub(crate) workspace: &'a WorkspaceId,
    pub(crate) kind: CommandKind,
    pub(crate) state: CommandState,
    pub(crate) generation: Generation,
    pub(crate) by: &'a str,
    pub(crate) trigger: &'a str,
    pub(crate) service: Option<&'a ServiceName>,
    pub(crate) body: Body,
}

/// Inserts a record; false when its id is known already.
pub(crate) async fn insert(tx: &mut PgConnection, new: NewCommand<'_>) -> Result<bool, Failure> {
    let done = sqlx::query(
        "INSERT INTO commands (id, workspace_id, kind, state, generation, requested_by, trigger, service, body,
             finished_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, CASE WHEN $10 THEN now() END) ON CONFLICT (id) DO NOTHING",
    )
    .bind(new.id.as_str())
    .bind(new.workspace.as_str())
    .bind(new.kind.as_str())
    .bind(new.state.as_str())
    .bind(big(new.generation.0))
    .bind(new.by)
    .bind(new.trigger)
    .bind(new.service.map(ServiceName::as_str))
    .bind(Json(new.body))
    .bind(new.state.is_final())
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

fn word<T: FromStr>(row: &PgRow, column: &'static str) -> Result<T, Failure> {
    row.try_get::<String, _>(column)?.parse().map_err(|_| unreadable(column))
}

/// An unfinished record with what its end is judged by.
#[derive(Debug, Clone)]
pub(crate) struct Open {
    pub(crate) id: CommandId,
    pub(crate) kind: CommandKind,
    pub(crate) state: CommandState,
    pub(crate) generation: Generation,
    pub(crate) requested_at: Timestamp,
    pub(crate) order: Option<ServiceOrder>,
}

/// The unfinished records of a workspace, oldest first.
pub(crate) async fn open(db: impl PgExecutor<'_>, workspace: &WorkspaceId) -> Result<Vec<Open>, Failure> {
    let rows = sqlx::query(
        "SELECT id, kind, state, generation, requested_at, body FROM commands
         WHERE workspace_id = $1 AND finished_at IS NULL ORDER BY id",
    )
    .bind(workspace.as_str())
    .fetch_all(db)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Open {
                id: word(row, "id")?,
                kind: word(row, "kind")?,
                state: word(row, "state")?,
                generation: Generation(small(row.try_get("generation")?)),
                requested_at: row.try_get::<Time, _>("requested_at")?.0,
                order: row.try_get::<Json<Body>, _>("body")?.0.order,
            })
        })
        .collect()
}

/// The same, as decisions see them.
pub(crate) async fn under_way(db: impl PgExecutor<'_>, workspace: &WorkspaceId) -> Result<Vec<UnderWay>, Failure> {
    let open = open(db, workspace).await?;
    Ok(open.into_iter().map(|c| UnderWay { id: c.id, kind: c.kind, order: c.order }).collect())
}

/// Ends the unfinished records of these kinds as superseded.
pub(crate) async fn supersede(
    tx: &mut PgConnection,
    workspace: &WorkspaceId,
    kinds: &[CommandKind],
) -> Result<(), Failure> {
    let kinds: Vec<&str> = kinds.iter().map(|kind| kind.as_str()).collect();
    sqlx::query(
        "UPDATE commands SET state = 'superseded', finished_at = now(), reason = 'a newer request replaced it'
         WHERE workspace_id = $1 AND finished_at IS NULL AND kind = ANY ($2)",
    )
    .bind(workspace.as_str())
    .bind(&kinds)
    .execute(tx)
    .await?;
    Ok(())
}

/// Ends what is left unfinished of a workspace that is gone.
pub(crate) async fn end_rest(tx: &mut PgConnection, workspace: &WorkspaceId) -> Result<(), Failure> {
    sqlx::query(
        "UPDATE commands SET state = 'cancelled', finished_at = now(), reason = 'the workspace was deleted'
         WHERE workspace_id = $1 AND finished_at IS NULL",
    )
    .bind(workspace.as_str())
    .execute(tx)
    .await?;
    Ok(())
}

/// Moves an unfinished record on; a finished one stays as it is.
pub(crate) async fn set(
    tx: &mut PgConnection,
    id: &CommandId,
    state: CommandState,
    exit_code: Option<i32>,
    reason: Option<&str>,
) -> Result<bool, Failure> {
    let done = sqlx::query(
        "UPDATE commands SET state = $2, exit_code = coalesce($3, exit_code), reason = coalesce($4, reason),
             finished_at = CASE WHEN $5 THEN now() END
         WHERE id = $1 AND finished_at IS NULL",
    )
    .bind(id.as_str())
    .bind(state.as_str())
    .bind(exit_code)
    .bind(reason)
    .bind(state.is_final())
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Records what was told of data services at the end of a wake or sleep.
pub(crate) async fn receipt(tx: &mut PgConnection, id: &CommandId, receipt: &[ResourceReceipt]) -> Result<(), Failure> {
    sqlx::query("UPDATE commands SET receipt = $2 WHERE id = $1")
        .bind(id.as_str())
        .bind(Json(receipt))
        .execute(tx)
        .await?;
    Ok(())
}

/// Records that the host was handed these workspaces' intents at their generations. The host is not kept waiting for
/// the disk: after a crash of the database a record may show one attempt too few.
pub(crate) async fn delivered(pool: &PgPool, workspaces: &[String], generations: &[i64]) -> Result<(), Failure> {
    sqlx::query(
        "WITH soon AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true))
         UPDATE commands c SET attempt = attempt + 1, state = CASE state WHEN 'queued' THEN 'delivered' ELSE state END
         FROM soon, unnest($1::text[], $2::bigint[]) AS handed (workspace_id, generation)
         WHERE c.workspace_id = handed.workspace_id AND c.generation <= handed.generation AND c.finished_at IS NULL
             AND c.kind NOT IN ('RUN_COMMAND', 'FORK_WORKSPACE', 'CREATE_SNAPSHOT', 'RESTORE_SNAPSHOT', 'REMOVE_SNAPSHOT')",
    )
    .bind(workspaces)
    .bind(generations)
    .execute(pool)
    .await?;
    Ok(())
}

/// Records that a host was offered a run.
pub(crate) async fn offered(pool: &PgPool, runs: &[&str]) -> Result<(), Failure> {
    sqlx::query(
        "UPDATE commands SET attempt = attempt + 1, state = CASE state WHEN 'queued' THEN 'delivered' ELSE state END
         WHERE id = ANY ($1) AND finished_at IS NULL",
    )
    .bind(runs)
    .execute(pool)
    .await?;
    Ok(())
}

/// Completes the query that every reader of a view uses.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT c.id, w.slug AS workspace, c.kind, c.state, c.generation, c.attempt, c.requested_by, c.trigger,
                c.service, c.requested_at, c.finished_at, c.exit_code, c.reason, c.copied, c.receipt
             FROM commands c JOIN workspaces w ON w.id = c.workspace_id WHERE ",
            $rest
        )
    };
}

fn read(row: &PgRow) -> Result<CommandView, Failure> {
    let service: Option<String> = row.try_get("service")?;
    Ok(CommandView {
        id: word(row, "id")?,
        workspace: word(row, "workspace")?,
        kind: word(row, "kind")?,
        state: word(row, "state")?,
        generation: Generation(small(row.try_get("generation")?)),
        attempt: u32::try_from(row.try_get::<i32, _>("attempt")?).unwrap_or(0),
        requested_by: row.try_get("requested_by")?,
        trigger: row.try_get("trigger")?,
        service: service.map(|name| name.parse().map_err(|_| unreadable("service"))).transpose()?,
        requested_at: row.try_get::<Time, _>("requested_at")?.0,
        finished_at: row.try_get::<Option<Time>, _>("finished_at")?.map(|time| time.0),
        exit_code: row.try_get("exit_code")?,
        reason: row.try_get("reason")?,
        copied: row.try_get::<Option<Json<_>>, _>("copied")?.map(|json| json.0),
        receipt: row.try_get::<Option<Json<_>>, _>("receipt")?.map(|json| json.0).unwrap_or_default(),
    })
}

/// A record as it is shown.
///
/// # Errors
/// `not_found`.
pub(crate) async fn view(db: impl PgExecutor<'_>, id: &CommandId) -> Result<CommandView, Failure> {
    let row = sqlx::query(select!("c.id = $1")).bind(id.as_str()).fetch_optional(db).await?;
    read(&row.ok_or_else(|| not_found("that command"))?)
}

/// The workspace a record belongs to, and what it asked for.
pub(crate) async fn belongs(
    db: impl PgExecutor<'_>,
    id: &CommandId,
) -> Result<Option<(WorkspaceId, CommandKind, Body)>, Failure> {
    let row = sqlx::query("SELECT workspace_id, kind, body FROM commands WHERE id = $1")
        .bind(id.as_str())
        .fetch_optional(db)
        .await?;
    row.map(|row| Ok((word(&row, "workspace_id")?, word(&row, "kind")?, row.try_get::<Json<Body>, _>("body")?.0)))
        .transpose()
}

/// Records of a workspace, newest first.
pub(crate) async fn list(
    pool: &PgPool,
    workspace: &WorkspaceId,
    service: Option<&str>,
    state: Option<CommandState>,
    limit: u32,
) -> Result<Vec<CommandView>, Failure> {
    let rows = sqlx::query(select!(
        "c.workspace_id = $1 AND ($3::text IS NULL OR c.state = $3)
            AND ($2::text IS NULL OR c.service = $2 OR c.body -> 'order' -> 'names' ? $2)
         ORDER BY c.id DESC LIMIT $4"
    ))
    .bind(workspace.as_str())
    .bind(service)
    .bind(state.map(CommandState::as_str))
    .bind(i64::from(limit))
    .fetch_all(pool)
    .await?;
    // Receipts of data services are long, and read one at a time.
    rows.iter().map(|row| read(row).map(|view| CommandView { receipt: Vec::new(), ..view })).collect()
}
