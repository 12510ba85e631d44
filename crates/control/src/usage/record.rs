//! Readings as they come: each is stored once and widens the session of its instance.
//!
//! What is counted is what two consecutive readings enclose, added when the second of the two is stored, whichever
//! order they come in. A reading that contradicts what is stored (another instance's time) is set aside with an
//! alarm and still acknowledged: it must not block those behind it.

use super::store;
use crate::{app::App, db, hosts, http::errors::Failure, workspaces};
use envforge_api::{
    ids::{HostId, RuntimeInstanceId},
    time::Timestamp,
    usage::{Reading, observed_between},
};
use sqlx::{Connection, PgConnection};
use std::collections::HashSet;

/// Stores readings in order and returns the names of all that are stored now. The disk is not waited for: they may be
/// acknowledged once something that was written later is kept.
///
/// # Errors
/// Only the database's: the host then sends them again.
pub(crate) async fn store_all(
    app: &App,
    host: &HostId,
    readings: Vec<Reading>,
) -> Result<Vec<(RuntimeInstanceId, u64)>, Failure> {
    let mut stored = Vec::with_capacity(readings.len());
    let mut changed = HashSet::new();
    for reading in readings {
        stored.push((reading.instance.clone(), reading.n));
        let workspace = reading.workspace.clone();
        let host = host.clone();
        let store =
            db::write_with_next(&app.pool, move |tx| Box::pin(async move { store_one(tx, &host, &reading).await }));
        if store.await? {
            changed.insert(workspace);
        }
    }
    for workspace in changed {
        app.bells.ring_workspace(&workspace);
    }
    Ok(stored)
}

/// Stores one; true when a session began or ended.
async fn store_one(tx: &mut PgConnection, host: &HostId, reading: &Reading) -> Result<bool, Failure> {
    // The workspace's lock keeps two readings of one workspace from being booked at the same time.
    let owner = workspaces::store::host_of(&mut *tx, &reading.workspace).await?;
    if owner.as_ref() != Some(host) {
        return set_aside(tx, reading, "the workspace is unknown or lies on another host").await;
    }
    if !store::insert_reading(&mut *tx, host, reading).await? {
        return Ok(false);
    }
    let Some(zero) = hosts::store::anchor(&mut *tx, host, &reading.boot).await? else {
        return set_aside(tx, reading, "the boot it was taken in never registered").await;
    };
    let at = zero + jiff::SignedDuration::from_millis(db::big(reading.at.0));
    // A savepoint: what the exclusion constraint refuses is undone alone.
    let mut savepoint = tx.begin().await?;
    match book(&mut savepoint, reading, at).await {
        Ok(shown) => {
            if shown {
                workspaces::store::touch(&mut savepoint, &reading.workspace).await?;
            }
            savepoint.commit().await?;
            Ok(shown)
        }
        Err(Refused::Overlap) => {
            savepoint.rollback().await?;
            set_aside(tx, reading, "it overlaps a usage session of another runtime instance").await
        }
        Err(Refused::Other(failure)) => Err(failure),
    }
}

async fn set_aside(tx: &mut PgConnection, reading: &Reading, reason: &str) -> Result<bool, Failure> {
    tracing::error!(
        workspace = %reading.workspace, instance = %reading.instance, n = reading.n, reason,
        "ALARM: a reading was set aside and is not counted"
    );
    store::quarantine(tx, reading, reason).await?;
    Ok(false)
}

/// Why a reading could not be booked.
enum Refused {
    /// The database's exclusion constraint.
    Overlap,
    Other(Failure),
}

impl From<sqlx::Error> for Refused {
    fn from(error: sqlx::Error) -> Self {
        // exclusion_violation
        if error.as_database_error().and_then(|e| e.code()).is_some_and(|code| code == "23P01") {
            Self::Overlap
        } else {
            Self::Other(error.into())
        }
    }
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self::Other(failure)
    }
}

async fn book(tx: &mut PgConnection, reading: &Reading, at: Timestamp) -> Result<bool, Refused> {
    let mut shown = false;
    let session = match store::of_instance(&mut *tx, &reading.instance).await? {
        Some(session) => session,
        None => {
            store::end_lost(&mut *tx, &reading.workspace, &reading.instance).await?;
            store::begin(&mut *tx, reading, at).await?;
            shown = true;
            let begun = store::of_instance(&mut *tx, &reading.instance).await?;
            begun.ok_or_else(|| Refused::Other(crate::http::errors::unreadable("usage session")))?
        }
    };
    let mut observed_ms = 0;
    if let Some(before) = reading.n.checked_sub(1)
        && let Some(before) = store::neighbour(&mut *tx, reading, before).await?
    {
        observed_ms += observed_between(&before, reading);
    }
    if let Some(after) = store::neighbour(&mut *tx, reading, reading.n + 1).await? {
        observed_ms += observed_between(reading, &after);
    }
    let end = match (&reading.ended, session.ended_at) {
        (Some(reason), _) => Some((at.max(session.last_at), reason.as_str())),
        // Ended as lost, but it was seen later than that.
        (None, Some(ended)) if at > ended => Some((at, "lost")),
        (None, _) => None,
    };
    shown |= reading.ended.is_some();
    store::extend(tx, &session.id, at, observed_ms, end).await?;
    Ok(shown)
}
