//! Dev hosts: every label is made and stored when its service or port is first known, and from then on looked up.

pub(crate) mod base;
mod labels;
pub(crate) mod store;

use crate::{db, http::errors::Failure, workspaces};
use envforge_api::{host::Face, project::ProjectSpec};
use sqlx::{PgConnection, PgPool};
use workspaces::store::Row;

/// Makes the dev hosts that a workspace lacks: one for each service, one for each further port that its faces name, and
/// the one for storage. The workspace's row is locked by the caller, or not seen by anyone yet.
pub(crate) async fn ensure(
    tx: &mut PgConnection,
    row: &Row,
    spec: &ProjectSpec,
    faces: &[Face],
) -> Result<(), Failure> {
    let known = store::of(&mut *tx, &row.id).await?;
    for host in labels::missing(&known, spec, faces, &row.label, &row.organization_label)? {
        store::insert(&mut *tx, &row.id, &host).await?;
    }
    store::insert_storage(tx, &row.id, &labels::storage(&row.label, &row.organization_label)?).await
}

/// Makes those of workspaces that are older than dev hosts are.
pub(crate) async fn fill(pool: &PgPool) -> Result<(), Failure> {
    for id in store::without(pool).await? {
        db::write(pool, move |tx| {
            Box::pin(async move {
                let Some(row) = workspaces::store::lock(&mut *tx, &id).await? else { return Ok(()) };
                let faces = row.faces().to_vec();
                ensure(tx, &row, &row.spec, &faces).await
            })
        })
        .await?;
    }
    Ok(())
}
