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
    ids::{GatewayId, HostId, OrganizationId, PrincipalId, TokenId, WorkspaceId},
    names::Slug,
    role::{Action, Role, Verdict},
};
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgPool, Row as _};

/// Slug of the organization of a local installation.
const LOCAL: &str = "local";

fn hash(token: &str) -> Vec<u8> {
    Sha256::digest(token.as_bytes()).to_vec()
}

/// Makes what a local installation has, where it is missing: organization, owner, host, gateway and their tokens.
///
/// A token that is not known belongs to a state directory that was made again: whoever is there gets it.
pub(crate) async fn ensure_local(pool: &PgPool, secrets: &Secrets, owner: String) -> Result<(), Failure> {
    let hashes = [&secrets.owner, &secrets.host, &secrets.gateway].map(|token| hash(token.expose()));
    db::write(pool, move |tx| {
        Box::pin(async move {
            // Replicas that start at once take turns.
            sqlx::query("SELECT pg_advisory_xact_lock(7310578)").execute(&mut *tx).await?;
            let organization: String = sqlx::query_scalar(
                "WITH made AS (INSERT INTO organizations (id, slug, label) VALUES ($1, $2, $2)
                     ON CONFLICT (slug) DO NOTHING RETURNING id)
                 SELECT id FROM made UNION ALL SELECT id FROM organizations WHERE slug = $2 LIMIT 1",
            )
            .bind(OrganizationId::generate().as_str())
            .bind(LOCAL)
            .fetch_one(&mut *tx)
            .await?;
            let [owner_hash, host_hash, gateway_hash] = &hashes;
            if !is_known(&mut *tx, owner_hash).await? {
                let principal: String = sqlx::query_scalar(
                    "WITH present AS (SELECT id FROM principals WHERE organization_id = $2 AND role = 'owner'
                         ORDER BY id LIMIT 1),
                     made AS (INSERT INTO principals (id, organization_id, name, role)
                         SELECT $1, $2, $3, 'owner' WHERE NOT EXISTS (SELECT FROM present) RETURNING id)
                     SELECT id FROM present UNION ALL SELECT id FROM made",
                )
                .bind(PrincipalId::generate().as_str())
                .bind(&organization)
                .bind(&owner)
                .fetch_one(&mut *tx)
                .await?;
                sqlx::query("INSERT INTO tokens (hash, id, principal_id) VALUES ($1, $2, $3)")
                    .bind(owner_hash)
                    .bind(TokenId::generate().as_str())
                    .bind(&principal)
                    .execute(&mut *tx)
                    .await?;
            }
            if !is_known(&mut *tx, host_hash).await? {
                let host: String = sqlx::query_scalar(
                    "WITH present AS (SELECT id FROM hosts WHERE organization_id = $2 ORDER BY id LIMIT 1),
                     made AS (INSERT INTO hosts (id, organization_id)
                         SELECT $1, $2 WHERE NOT EXISTS (SELECT FROM present) RETURNING id)
                     SELECT id FROM present UNION ALL SELECT id FROM made",
                )
                .bind(HostId::generate().as_str())
                .bind(&organization)
                .fetch_one(&mut *tx)
                .await?;
                sqlx::query("INSERT INTO tokens (hash, id, host_id) VALUES ($1, $2, $3)")
                    .bind(host_hash)
                    .bind(TokenId::generate().as_str())
                    .bind(&host)
                    .execute(&mut *tx)
                    .await?;
            }
            if !is_known(&mut *tx, gateway_hash).await? {
                let gateway = GatewayId::generate();
                sqlx::query("INSERT INTO gateways (id, organization_id) VALUES ($1, $2)")
                    .bind(gateway.as_str())
                    .bind(&organization)
                    .execute(&mut *tx)
                    .await?;
                sqlx::query("INSERT INTO tokens (hash, id, gateway_id) VALUES ($1, $2, $3)")
                    .bind(gateway_hash)
                    .bind(TokenId::generate().as_str())
                    .bind(gateway.as_str())
                    .execute(&mut *tx)
                    .await?;
            }
            Ok(())
        })
    })
    .await
}

async fn is_known(tx: &mut PgConnection, hash: &[u8]) -> Result<bool, Failure> {
    Ok(sqlx::query_scalar("SELECT EXISTS (SELECT FROM tokens WHERE hash = $1)").bind(hash).fetch_one(tx).await?)
}

/// Who holds the token, if anyone.
pub(crate) async fn bearer(pool: &PgPool, token: &str) -> Result<Option<Caller>, Failure> {
    let row = sqlx::query(
        "SELECT p.id AS person, p.name, p.role, h.id AS host, g.id AS gateway,
             coalesce(p.organization_id, h.organization_id, g.organization_id) AS org
         FROM tokens t LEFT JOIN principals p ON p.id = t.principal_id LEFT JOIN hosts h ON h.id = t.host_id
             LEFT JOIN gateways g ON g.id = t.gateway_id
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
    if let Some(gateway) = row.try_get::<Option<String>, _>("gateway")? {
        let id = gateway.parse().map_err(|_| unreadable("gateway id"))?;
        return Ok(Some(Caller::Gateway { id, organization }));
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

/// The name of a member who may use workspaces.
pub(crate) async fn member(
    pool: &PgPool,
    organization: &OrganizationId,
    id: &PrincipalId,
) -> Result<Option<String>, Failure> {
    let row = sqlx::query("SELECT name, role FROM principals WHERE id = $1 AND organization_id = $2")
        .bind(id.as_str())
        .bind(organization.as_str())
        .fetch_optional(pool)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let role: Role = row.try_get::<String, _>("role")?.parse().map_err(|_| unreadable("role"))?;
    let may = role.may(Action::UseWorkspace) == Verdict::Yes;
    Ok(if may { Some(row.try_get("name")?) } else { None })
}

/// An organization's slug.
pub(crate) async fn slug(pool: &PgPool, organization: &OrganizationId) -> Result<Slug, Failure> {
    let slug: String = sqlx::query_scalar("SELECT slug FROM organizations WHERE id = $1")
        .bind(organization.as_str())
        .fetch_one(pool)
        .await?;
    slug.parse().map_err(|_| unreadable("organization"))
}
