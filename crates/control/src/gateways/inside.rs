//! A workspace visits its own dev hosts without a link: its host vouches to the gateway for where a connection comes
//! from, and the gateway asks here for the visit.

use crate::{
    app::App,
    dev_hosts,
    http::errors::{Failure, not_found},
    workspaces,
};
use envforge_api::{
    gateway::{InsideRequest, VisitGranted},
    ids::{OrganizationId, VisitId},
    link::{Family, Holder, MEMBER_VISIT_SECONDS, Visit},
    time::Timestamp,
};

/// A visit of a workspace to a dev host of its own, on its owner's account.
///
/// # Errors
/// `not_found` for a host of another workspace, and for one that is none.
pub(super) async fn visit(
    app: &App,
    organization: &OrganizationId,
    request: &InsideRequest,
) -> Result<VisitGranted, Failure> {
    let missing = || not_found("that dev host");
    let (workspace, host) = dev_hosts::store::find(&app.pool, &request.host).await?.ok_or_else(missing)?;
    let row = workspaces::store::by_id(&app.pool, &workspace).await?;
    let row = row.filter(|row| row.organization == *organization && row.id == request.workspace);
    let row = row.ok_or_else(missing)?;
    let expires_at = Timestamp::now() + jiff::SignedDuration::from_secs(MEMBER_VISIT_SECONDS);
    let visit = Visit {
        id: VisitId::generate(),
        holder: Holder::Member(row.owner.clone()),
        user: format!("workspace:{}", row.slug),
        organization: row.organization,
        workspace: row.id,
        service: host.service,
        host: host.label,
        families: Family::ALL.iter().copied().collect(),
        expires_at,
    };
    Ok(VisitGranted { token: app.keys.sign(&visit)?, expires_at })
}
