//! SQL of signing keys.

use super::{Stored, verify_key};
use crate::{db::Time, http::errors::Failure};
use envforge_api::time::Timestamp;
use sqlx::{PgConnection, PgExecutor, Row as _};

/// Those that have not ended, the newest first.
pub(super) async fn all(db: impl PgExecutor<'_>) -> Result<Vec<Stored>, Failure> {
    let rows = sqlx::query(
        "SELECT id, public_key, sealed, signs_from, ends_at FROM signing_keys
         WHERE ends_at IS NULL OR ends_at > now() ORDER BY signs_from DESC, id",
    )
    .fetch_all(db)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Stored {
                public: verify_key(row.try_get("id")?, row.try_get("public_key")?)?,
                sealed: row.try_get("sealed")?,
                signs_from: row.try_get::<Time, _>("signs_from")?.0,
                ends_at: row.try_get::<Option<Time>, _>("ends_at")?.map(|time| time.0),
            })
        })
        .collect()
}

/// Stores one; one that is there already is left as it is.
pub(super) async fn insert(tx: &mut PgConnection, key: &Stored) -> Result<(), Failure> {
    sqlx::query(
        "INSERT INTO signing_keys (id, public_key, sealed, signs_from, ends_at) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT DO NOTHING",
    )
    .bind(&key.public.id)
    .bind(&key.public.key)
    .bind(&key.sealed)
    .bind(Time(key.signs_from))
    .bind(key.ends_at.map(Time))
    .execute(tx)
    .await?;
    Ok(())
}

/// Sets the end of those that have none, one rotation after the other, and forgets those that ended.
pub(super) async fn end_others(tx: &mut PgConnection, at: Timestamp) -> Result<(), Failure> {
    sqlx::query("SELECT pg_advisory_xact_lock(7310579)").execute(&mut *tx).await?;
    sqlx::query("DELETE FROM signing_keys WHERE ends_at < now()").execute(&mut *tx).await?;
    sqlx::query("UPDATE signing_keys SET ends_at = $1 WHERE ends_at IS NULL").bind(Time(at)).execute(tx).await?;
    Ok(())
}
