//! SQL of organizations, principals and tokens.

use crate::{
    config::Secrets,
    db,
    http::{
        auth::Caller,
        errors::{Failure, unreadable},
    },
};
use envforge_api::{
    ids::{HostId, OrganizationId, PrincipalId, TokenId, WorkspaceId},
    names::Slug,
};
use sha2::{Digest, Sha256};
use sqlx::{PgPool, Row as _};

/// Slug of the organization of a local installation.
const LOCAL: &str = "local";

fn hash(token: &str) -> Vec<u8> {
    Sha256::digest(token.as_bytes()).to_vec()
}

/// Makes what a local installation has, where it is missing: organization, owner, host and their tokens.
pub(crate) async fn ensure_local(pool: &PgPool, secrets: &Secrets, owner: String) -> Result<(), Failure> {
    let owner_hash = hash(secrets.owner.expose());
    let host_hash = hash(secrets.host.expose());
    db::write(pool, move |tx| {
        Box::pin(async move {
            // Replicas that start at once take turns.
            sqlx::query("SELECT pg_advisory_xact_lock(7310578)").execute(&mut *tx).await?;
            sqlx::query(
                "INSERT INTO organizations (id, slug, label) VALUES ($1, $2, $2) ON CONFLICT (slug) DO NOTHING",
            )
            .bind(OrganizationId::generate().as_str())
            .bind(LOCAL)
            .execute(&mut *tx)
            .await?;
            let organization: String = sqlx::query_scalar("SELECT id FROM organizations WHERE slug = $1")
                .bind(LOCAL)
                .fetch_one(&mut *tx)
                .await?;
            let known: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM tokens WHERE hash = $1)")
                .bind(&owner_hash)
                .fetch_one(&mut *tx)
                .await?;
            if !known {
                // The state directory was made again: the same owner gets the new token.
                let present: Option<String> = sqlx::query_scalar(
                    "SELECT id FROM principals WHERE organization_id = $1 AND role = 'owner' ORDER BY id LIMIT 1",
                )
                .bind(&organization)
                .fetch_optional(&mut *tx)
                .await?;
                let principal = match present {
                    Some(principal) => principal,
                    None => {
                        let principal = String::from(PrincipalId::generate());
                        sqlx::query(
                            "INSERT INTO principals (id, organization_id, name, role) VALUES ($1, $2, $3, 'owner')",
                        )
                        .bind(&principal)
                        .bind(&organization)
                        .bind(&owner)
                        .execute(&mut *tx)
                        .await?;
                        principal
                    }
                };
                sqlx::query("INSERT INTO tokens (hash, id, principal_id) VALUES ($1, $2, $3)")
                    .bind(&owner_hash)
                    .bind(TokenId::generate().as_str())
                    .bind(&principal)
                    .execute(&mut *tx)
                    .await?;
            }
            let known: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM tokens WHERE hash = $1)")
                .bind(&host_hash)
                .fetch_one(&mut *tx)
                .await?;
            if !known {
                let present: Option<String> =
                    sqlx::query_scalar("SELECT id FROM hosts WHERE organization_id = $1 ORDER BY id LIMIT 1")
                        .bind(&organization)
                        .fetch_optional(&mut *tx)
                        .await?;
                let host = match present {
                    Some(host) => host,
                    None => {
                        let host = String::from(HostId::generate());
                        sqlx::query("INSERT INTO hosts (id, organization_id) VALUES ($1, $2)")
                            .bind(&host)
                            .bind(&organization)
                            .execute(&mut *tx)
                            .await?;
                        host
                    }
                };
                sqlx::query("INSERT INTO tokens (hash, id, host_id) VALUES ($1, $2, $3)")
                    .bind(&host_hash)
                    .bind(TokenId::generate().as_str())
                    .bind(&host)
                    .execute(&mut *tx)
                    .await?;
            }
            Ok(())
        })
    })
    .await
}

/// Who holds the token, if anyone.
pub(crate) async fn bearer(pool: &PgPool, token: &str) -> Result<Option<Caller>, Failure> {
    let row = sqlx::query(
        "SELECT p.id AS person, p.name, p.role, h.id AS host, coalesce(p.organization_id, h.organization_id) AS org
         FROM tokens t LEFT JOIN principals p ON p.id = t.principal_id LEFT JOIN hosts h ON h.id = t.host_id
         WHERE t.hash = $1 AND (t.expires_at IS NULL OR t.expires_at > now())",
    )
    .bind(hash(token))
    .fetch_optional(pool)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let organization: OrganizationId =
        row.try_get::<String, _>("org")?.parse().map_err(|_| unreadable("organization id"))?;
    if let Some(host) = row.try_get::<Option<String>, _>("host")? {
        let id = host.parse().map_err(|_| unreadable("host id"))?;
        return Ok(Some(Caller::Host { id, organization }));
    }
    Ok(Some(Caller::Person {
        id: row.try_get::<String, _>("person")?.parse().map_err(|_| unreadable("principal id"))?,
        name: row.try_get("name")?,
        organization,
        role: row.try_get::<String, _>("role")?.parse().map_err(|_| unreadable("role"))?,
    }))
}

/// The caller a host vouches for: a workspace that lies on it.
pub(crate) async fn as_workspace(
    pool: &PgPool,
    host: &HostId,
    organization: &OrganizationId,
    workspace: &WorkspaceId,
) -> Result<Option<Caller>, Failure> {
    let row = sqlx::query(
        "SELECT w.owner_id, p.name FROM workspaces w JOIN principals p ON p.id = w.owner_id
         WHERE w.id = $1 AND w.host_id = $2 AND w.deleted_at IS NULL",
    )
    .bind(workspace.as_str())
    .bind(host.as_str())
    .fetch_optional(pool)
    .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Caller::Workspace {
        id: workspace.clone(),
        owner: row.try_get::<String, _>("owner_id")?.parse().map_err(|_| unreadable("principal id"))?,
        owner_name: row.try_get("name")?,
        organization: organization.clone(),
    }))
}

/// An organization's slug.
pub(crate) async fn slug(pool: &PgPool, organization: &OrganizationId) -> Result<Slug, Failure> {
    let slug: String = sqlx::query_scalar("SELECT slug FROM organizations WHERE id = $1")
        .bind(organization.as_str())
        .fetch_one(pool)
        .await?;
    slug.parse().map_err(|_| unreadable("organization"))
}
