//! Codes: what leads from a link, or from a member's request, to a visit on one dev host, once and within a minute.

use super::store;
use crate::{
    app::App,
    db,
    http::errors::{Failure, not_found},
    workspaces,
};
use envforge_api::{
    dev_host::HostLabel,
    gateway::{Code as CodeAnswer, VisitGranted},
    ids::OrganizationId,
    link::{Holder, Link, Visit},
    secret::Secret,
    sign,
    time::Timestamp,
};
use sha2::{Digest, Sha256};

/// 32 random octets, stored by their digest alone.
#[derive(Debug)]
pub(crate) struct Code(Secret);

impl Code {
    /// A new one.
    pub(crate) fn new() -> Self {
        Self(Secret::random(32))
    }

    /// What the database knows it by.
    pub(crate) fn hash(&self) -> Vec<u8> {
        hash(self.0.expose())
    }

    /// Its text, for the one URL that it is put in.
    pub(crate) fn text(self) -> Secret {
        self.0
    }
}

fn hash(code: &str) -> Vec<u8> {
    Sha256::digest(code.as_bytes()).to_vec()
}

/// A link becomes a code for its dev host. The gateway verified it; it is verified here again, and whether it was
/// revoked is known here best. Every refusal looks the same.
///
/// # Errors
/// `not_found`.
pub(crate) async fn from_link(app: &App, organization: &OrganizationId, token: &Secret) -> Result<CodeAnswer, Failure> {
    let refused = || not_found("that link");
    let link: Link = sign::verify(&app.keys.verify_keys(), token.expose(), Timestamp::now()).map_err(|_| refused())?;
    if link.organization != *organization || !store::is_valid(&app.pool, &link.id).await? {
        return Err(refused());
    }
    let row = workspaces::store::by_id(&app.pool, &link.workspace).await?;
    if row.is_none_or(|row| row.organization != *organization) {
        return Err(refused());
    }
    let visit = Visit::of_link(link);
    let host = visit.host.clone();
    let code = Code::new();
    let hash = code.hash();
    db::write(&app.pool, move |tx| Box::pin(async move { store::insert_code(tx, &hash, &visit).await })).await?;
    Ok(CodeAnswer { code: code.text(), host })
}

/// A code becomes a visit: once, on its dev host, and only while what it came from holds.
///
/// # Errors
/// `not_found`.
pub(crate) async fn redeem(
    app: &App,
    organization: &OrganizationId,
    code: &Secret,
    host: &HostLabel,
) -> Result<VisitGranted, Failure> {
    let refused = || not_found("that code");
    let (hash, label, tenant) = (hash(code.expose()), host.clone(), organization.clone());
    let visit =
        db::write(&app.pool, move |tx| Box::pin(async move { store::use_code(tx, &hash, &label, &tenant).await }))
            .await?
            .ok_or_else(refused)?;
    if let Holder::Link(link) = &visit.holder
        && !store::is_valid(&app.pool, link).await?
    {
        return Err(refused());
    }
    if workspaces::store::by_id(&app.pool, &visit.workspace).await?.is_none() || visit.expires_at <= Timestamp::now() {
        return Err(refused());
    }
    Ok(VisitGranted { token: app.keys.sign(&visit)?, expires_at: visit.expires_at })
}
