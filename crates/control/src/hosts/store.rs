//! SQL of hosts, boot anchors and leased acts.

use crate::{
    db::{Time, big, small},
    http::errors::{Failure, unreadable},
    workspaces::placement::Candidate,
};
use envforge_api::{
    command::{ActAnswer, ActReport, LeasedAct, LeasedCommand},
    generation::{HostEpoch, IntentSeq},
    host::RegisterRequest,
    ids::{CommandId, HostId, OrganizationId, WorkspaceId},
    states::CommandState,
    time::{BootId, Timestamp},
};
use sqlx::{PgConnection, PgExecutor, PgPool, Row as _, types::Json};
use std::collections::HashMap;

/// Channel on which replicas tell each other that a host's intents or leases changed; the payload is its id.
pub(crate) const CHANNEL: &str = "envforge_intents";

/// Payload of a notification that concerns gateways, and keys.
pub(crate) const FEED: &str = "feed";

/// Tells the other replicas that gateways have something to hear.
pub(crate) async fn announce_feed(tx: &mut PgConnection) -> Result<(), Failure> {
    sqlx::query("SELECT pg_notify($1, $2)").bind(CHANNEL).bind(FEED).execute(tx).await?;
    Ok(())
}

/// Has every host sync at once: something that each answer carries changed. Also gateways.
pub(crate) async fn tell_all(tx: &mut PgConnection) -> Result<Vec<HostId>, Failure> {
    let ids: Vec<String> = sqlx::query_scalar(
        "UPDATE hosts SET intent_seq = intent_seq + 1
         WHERE id IN (SELECT id FROM hosts ORDER BY id FOR UPDATE) RETURNING id",
    )
    .fetch_all(&mut *tx)
    .await?;
    announce_feed(&mut *tx).await?;
    let mut hosts = Vec::with_capacity(ids.len());
    for id in ids {
        let host = id.parse().map_err(|_| unreadable("host id"))?;
        announce(&mut *tx, &host).await?;
        hosts.push(host);
    }
    Ok(hosts)
}

/// Tells the other replicas that a host has something to hear.
pub(crate) async fn announce(tx: &mut PgConnection, host: &HostId) -> Result<(), Failure> {
    sqlx::query("SELECT pg_notify($1, $2)").bind(CHANNEL).bind(host.as_str()).execute(tx).await?;
    Ok(())
}

/// The next position in a host's intents. Holds the host's row until the commit, so that positions are in the order
/// of commits.
pub(crate) async fn next_intent(tx: &mut PgConnection, host: &HostId) -> Result<IntentSeq, Failure> {
    let row = sqlx::query(
        "WITH moved AS (UPDATE hosts SET intent_seq = intent_seq + 1 WHERE id = $1 RETURNING intent_seq)
         SELECT intent_seq, pg_notify($2, $1) FROM moved",
    )
    .bind(host.as_str())
    .bind(CHANNEL)
    .fetch_one(tx)
    .await?;
    Ok(IntentSeq(small(row.try_get("intent_seq")?)))
}

/// The boot of the newest registration.
pub(crate) async fn last_boot(tx: &mut PgConnection, host: &HostId) -> Result<Option<BootId>, Failure> {
    let registration: Option<Json<RegisterRequest>> =
        sqlx::query_scalar("SELECT registration FROM hosts WHERE id = $1").bind(host.as_str()).fetch_one(tx).await?;
    Ok(registration.map(|json| json.0.boot))
}

/// A registration: the next epoch, and the moment this boot's clock stood at zero.
pub(crate) async fn register(
    tx: &mut PgConnection,
    host: &HostId,
    request: &RegisterRequest,
) -> Result<(HostEpoch, OrganizationId), Failure> {
    let row = sqlx::query(
        "UPDATE hosts SET epoch = epoch + 1, registration = $2, registered_at = now(), last_sync_at = now()
         WHERE id = $1 RETURNING epoch, organization_id",
    )
    .bind(host.as_str())
    .bind(Json(request))
    .fetch_one(&mut *tx)
    .await?;
    // The first registration of a boot anchors it: a later one would move what is already measured.
    sqlx::query(
        "INSERT INTO boot_anchors (host_id, boot, zero_at) VALUES ($1, $2, now() - $3 * interval '1 millisecond')
         ON CONFLICT DO NOTHING",
    )
    .bind(host.as_str())
    .bind(&request.boot.0)
    .bind(big(request.boot_now.0))
    .execute(&mut *tx)
    .await?;
    // A new daemon asks anew what became of each lease: due at once, though no longer to be withdrawn.
    sqlx::query(
        "UPDATE leases SET state = 'queued', offered_at = '-infinity'
         WHERE host_id = $1 AND finished_at IS NULL AND offered_at IS NOT NULL",
    )
    .bind(host.as_str())
    .execute(&mut *tx)
    .await?;
    announce(tx, host).await?;
    let organization: String = row.try_get("organization_id")?;
    Ok((HostEpoch(small(row.try_get("epoch")?)), organization.parse().map_err(|_| unreadable("organization id"))?))
}

/// Notes a sync and returns the current epoch and intent position. Noted every few seconds, whatever is synced between:
/// that it was heard of is a write that nobody should wait for.
pub(crate) async fn heard(pool: &PgPool, host: &HostId) -> Result<(HostEpoch, IntentSeq), Failure> {
    let row = sqlx::query(
        "WITH noted AS (UPDATE hosts SET last_sync_at = now()
             WHERE id = $1 AND coalesce(last_sync_at < now() - interval '5 seconds', true))
         SELECT epoch, intent_seq FROM hosts WHERE id = $1",
    )
    .bind(host.as_str())
    .fetch_one(pool)
    .await?;
    Ok((HostEpoch(small(row.try_get("epoch")?)), IntentSeq(small(row.try_get("intent_seq")?))))
}

/// Waits until everything that this replica committed is on disk, with a note that the host was heard of.
pub(crate) async fn keep_all(pool: &PgPool, host: &HostId) -> Result<(), Failure> {
    sqlx::query("UPDATE hosts SET last_sync_at = now() WHERE id = $1").bind(host.as_str()).execute(pool).await?;
    Ok(())
}

/// The current epoch and intent position.
pub(crate) async fn position(db: impl PgExecutor<'_>, host: &HostId) -> Result<(HostEpoch, IntentSeq), Failure> {
    let row =
        sqlx::query("SELECT epoch, intent_seq FROM hosts WHERE id = $1").bind(host.as_str()).fetch_one(db).await?;
    Ok((HostEpoch(small(row.try_get("epoch")?)), IntentSeq(small(row.try_get("intent_seq")?))))
}

/// Control-plane time at which a boot's clock stood at zero, if that boot ever registered.
pub(crate) async fn anchor(
    db: impl PgExecutor<'_>,
    host: &HostId,
    boot: &BootId,
) -> Result<Option<Timestamp>, Failure> {
    let zero: Option<Time> = sqlx::query_scalar("SELECT zero_at FROM boot_anchors WHERE host_id = $1 AND boot = $2")
        .bind(host.as_str())
        .bind(&boot.0)
        .fetch_optional(db)
        .await?;
    Ok(zero.map(|time| time.0))
}

/// What is known of a host's presence.
#[derive(Debug, Clone)]
pub(crate) struct Presence {
    pub(crate) last_sync_at: Option<Timestamp>,
    pub(crate) local_socket: Option<String>,
    pub(crate) dial_socket: Option<String>,
}

/// Every host of an organization.
pub(crate) async fn presences(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
) -> Result<HashMap<HostId, Presence>, Failure> {
    let rows = sqlx::query("SELECT id, last_sync_at, registration FROM hosts WHERE organization_id = $1")
        .bind(organization.as_str())
        .fetch_all(db)
        .await?;
    rows.iter()
        .map(|row| {
            let id: HostId = row.try_get::<String, _>("id")?.parse().map_err(|_| unreadable("host id"))?;
            let registration = row.try_get::<Option<Json<RegisterRequest>>, _>("registration")?.map(|json| json.0);
            let presence = Presence {
                last_sync_at: row.try_get::<Option<Time>, _>("last_sync_at")?.map(|time| time.0),
                local_socket: registration.as_ref().and_then(|r| r.local_socket.clone()),
                dial_socket: registration.and_then(|r| r.dial_socket),
            };
            Ok((id, presence))
        })
        .collect()
}

/// Hosts for placement; `connected` means a sync within the last 60 seconds.
pub(crate) async fn candidates(
    db: &mut PgConnection,
    organization: &OrganizationId,
) -> Result<Vec<Candidate>, Failure> {
    let rows = sqlx::query(
        "SELECT h.id, coalesce(h.last_sync_at > now() - interval '60 seconds', false) AS connected,
             coalesce((h.registration -> 'capacity' ->> 'memory_bytes')::bigint, 0) AS memory,
             (SELECT count(*) FROM workspaces w WHERE w.host_id = h.id AND w.deleted_at IS NULL) AS workspaces
         FROM hosts h WHERE h.organization_id = $1",
    )
    .bind(organization.as_str())
    .fetch_all(db)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Candidate {
                host: row.try_get::<String, _>("id")?.parse().map_err(|_| unreadable("host id"))?,
                connected: row.try_get("connected")?,
                workspaces: small(row.try_get("workspaces")?),
                memory_bytes: small(row.try_get("memory")?),
            })
        })
        .collect()
}

/// Leases an act to a host.
pub(crate) async fn lease(
    tx: &mut PgConnection,
    host: &HostId,
    id: &CommandId,
    act: &LeasedAct,
) -> Result<(), Failure> {
    sqlx::query("INSERT INTO leases (id, host_id, act) VALUES ($1, $2, $3)")
        .bind(id.as_str())
        .bind(host.as_str())
        .bind(Json(act))
        .execute(&mut *tx)
        .await?;
    announce(tx, host).await
}

/// Takes a lease back that no answer has carried yet; false when it is too late.
pub(crate) async fn withdraw(tx: &mut PgConnection, id: &CommandId) -> Result<bool, Failure> {
    let done = sqlx::query(
        "UPDATE leases SET state = 'cancelled', finished_at = now()
         WHERE id = $1 AND offered_at IS NULL AND finished_at IS NULL",
    )
    .bind(id.as_str())
    .execute(tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Gives up on a question whose asker has left.
pub(crate) async fn abandon(pool: &PgPool, id: &CommandId) -> Result<(), Failure> {
    sqlx::query("UPDATE leases SET state = 'cancelled', finished_at = now() WHERE id = $1 AND finished_at IS NULL")
        .bind(id.as_str())
        .execute(pool)
        .await?;
    Ok(())
}

/// What an answer to a host has to say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waits {
    /// The current epoch.
    pub(crate) epoch: HostEpoch,
    /// The newest intent.
    pub(crate) newest: IntentSeq,
    /// The host has not taken some lease yet.
    pub(crate) lease: bool,
    /// One of them was never offered, or offered 2 seconds ago and not heard of since.
    pub(crate) lease_due: bool,
    /// There was link traffic that the host has not been told of.
    pub(crate) traffic: bool,
}

/// What waits for a host, in one look.
pub(crate) async fn waits(pool: &PgPool, host: &HostId) -> Result<Waits, Failure> {
    let row = sqlx::query(
        "SELECT epoch, intent_seq,
             EXISTS (SELECT FROM leases WHERE host_id = $1 AND finished_at IS NULL AND state = 'queued') AS lease,
             EXISTS (SELECT FROM leases WHERE host_id = $1 AND finished_at IS NULL AND state = 'queued'
                 AND (offered_at IS NULL OR offered_at < now() - interval '2 seconds')) AS lease_due,
             EXISTS (SELECT FROM link_traffic t JOIN workspaces w ON w.id = t.workspace_id
                 WHERE w.host_id = $1 AND w.deleted_at IS NULL AND t.last_at > t.told_at) AS traffic
         FROM hosts WHERE id = $1",
    )
    .bind(host.as_str())
    .fetch_one(pool)
    .await?;
    Ok(Waits {
        epoch: HostEpoch(small(row.try_get("epoch")?)),
        newest: IntentSeq(small(row.try_get("intent_seq")?)),
        lease: row.try_get("lease")?,
        lease_due: row.try_get("lease_due")?,
        traffic: row.try_get("traffic")?,
    })
}

/// The leases that a host has not taken yet, oldest first; marks them offered.
pub(crate) async fn offer(pool: &PgPool, host: &HostId) -> Result<Vec<LeasedCommand>, Failure> {
    let rows = sqlx::query(
        "UPDATE leases SET offered_at = now() WHERE host_id = $1 AND finished_at IS NULL AND state = 'queued'
         RETURNING id, act",
    )
    .bind(host.as_str())
    .fetch_all(pool)
    .await?;
    let leases: Result<Vec<LeasedCommand>, Failure> = rows
        .iter()
        .map(|row| {
            Ok(LeasedCommand {
                id: row.try_get::<String, _>("id")?.parse().map_err(|_| unreadable("lease id"))?,
                act: row.try_get::<Json<LeasedAct>, _>("act")?.0,
            })
        })
        .collect();
    let mut leases = leases?;
    leases.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(leases)
}

/// A lease's act.
pub(crate) async fn act(db: impl PgExecutor<'_>, id: &CommandId) -> Result<Option<LeasedAct>, Failure> {
    let act: Option<Json<LeasedAct>> =
        sqlx::query_scalar("SELECT act FROM leases WHERE id = $1").bind(id.as_str()).fetch_optional(db).await?;
    Ok(act.map(|json| json.0))
}

/// Ends every lease on a workspace that is gone.
pub(crate) async fn end_leases(tx: &mut PgConnection, workspace: &WorkspaceId) -> Result<(), Failure> {
    sqlx::query(
        "UPDATE leases SET state = 'cancelled', finished_at = now()
         WHERE finished_at IS NULL AND act ->> 'workspace' = $1",
    )
    .bind(workspace.as_str())
    .execute(tx)
    .await?;
    Ok(())
}

/// Records what a host says about a lease and returns its act; absent when this host has no such lease or its end
/// is recorded already.
pub(crate) async fn record(
    tx: &mut PgConnection,
    host: &HostId,
    report: &ActReport,
) -> Result<Option<LeasedAct>, Failure> {
    let act: Option<Json<LeasedAct>> = sqlx::query_scalar(
        "UPDATE leases SET state = $3, answer = $4, reason = $5, finished_at = CASE WHEN $6 THEN now() END
         WHERE id = $1 AND host_id = $2 AND finished_at IS NULL RETURNING act",
    )
    .bind(report.id.as_str())
    .bind(host.as_str())
    .bind(report.state.as_str())
    .bind(report.answer.as_ref().map(Json))
    .bind(report.reason.as_deref())
    .bind(report.state.is_final())
    .fetch_optional(tx)
    .await?;
    Ok(act.map(|json| json.0))
}

/// How a lease stands: its state, answer and reason.
pub(crate) async fn answer(
    pool: &PgPool,
    id: &CommandId,
) -> Result<(CommandState, Option<ActAnswer>, Option<String>), Failure> {
    let row =
        sqlx::query("SELECT state, answer, reason FROM leases WHERE id = $1").bind(id.as_str()).fetch_one(pool).await?;
    Ok((
        row.try_get::<String, _>("state")?.parse().map_err(|_| unreadable("lease state"))?,
        row.try_get::<Option<Json<ActAnswer>>, _>("answer")?.map(|json| json.0),
        row.try_get("reason")?,
    ))
}
