//! Capabilities: what a caller may do on a workspace's host for an hour.

use super::store::Row;
use crate::{
    app::App,
    audit, db, hosts,
    http::{auth::Allowed, errors::Failure},
};
use envforge_api::{
    capability::{Capability, LIFETIME_SECONDS, Right},
    ids::AttachId,
    names::ServiceName,
    problem::Problem,
    public::Grant,
    time::Timestamp,
};
use std::collections::BTreeSet;

/// What opening a workspace grants.
pub(crate) const OPENING: [Right; 5] = [Right::Attach, Right::Exec, Right::Run, Right::Logs, Right::Env];

/// Signs a capability. Every route that leads here demands the action that opens the shell; `reveal` is audited.
///
/// # Errors
/// `invalid` without rights or for a service that the project has not.
pub(crate) async fn grant(
    app: &App,
    allowed: &Allowed,
    row: &Row,
    rights: &[Right],
    service: Option<ServiceName>,
) -> Result<Grant, Failure> {
    let rights: BTreeSet<Right> = rights.iter().copied().collect();
    if rights.is_empty() {
        return Err(Problem::invalid("no right is asked for", "name at least one, such as `attach`").into());
    }
    if rights.contains(&Right::Dial) {
        return Err(Problem::invalid("`dial` is a right of gateways", "ask for other rights").into());
    }
    if let Some(wanted) = &service {
        row.spec.has(wanted)?;
    }
    let presences = hosts::store::presences(&app.pool, &row.organization).await?;
    let session = AttachId::generate();
    let expires_at = Timestamp::now() + jiff::SignedDuration::from_secs(LIFETIME_SECONDS);
    if rights.contains(&Right::Reveal) {
        let organization = row.organization.clone();
        let (by, target) = (allowed.name(), row.slug.to_string());
        let named = service.as_ref().map_or_else(|| "all".to_owned(), ToString::to_string);
        let details = [("service", named), ("session", session.to_string())];
        db::write(&app.pool, move |tx| {
            Box::pin(
                async move { audit::store::add(tx, &organization, &by, "workspace.reveal", &target, &details).await },
            )
        })
        .await?;
    }
    let capability = Capability {
        host: row.host.clone(),
        workspace: row.id.clone(),
        principal: allowed.person()?,
        principal_name: allowed.name(),
        session,
        rights,
        service,
        expires_at,
    };
    Ok(Grant {
        host: row.host.clone(),
        workspace: row.id.clone(),
        local_socket: presences.get(&row.host).and_then(|presence| presence.local_socket.clone()),
        gateway: Some(app.base.own()),
        token: app.keys.sign(&capability)?,
        expires_at,
    })
}
