//! Issuing and revoking links, and opening a service as a member.

use super::{codes, store, target};
use crate::{
    app::App,
    audit, db, dev_hosts, hosts,
    http::{
        auth::Allowed,
        errors::{Failure, not_found},
    },
    workspaces::{self, store::Row},
};
use envforge_api::{
    dev_host::HostLabel,
    host::DesiredShell,
    ids::{LinkId, VisitId},
    link::{
        DEFAULT_LIFETIME_SECONDS, Family, Holder, Link, MAX_LIFETIME_SECONDS, MEMBER_VISIT_SECONDS, OpenRequest,
        OpenedPage, ShareRequest, Shared, Visit,
    },
    names::ServiceName,
    problem::{Problem, ProblemKind},
    public::LinkView,
    time::Timestamp,
};
use jiff::SignedDuration;
use std::collections::BTreeSet;

/// Where a link or visit leads, with the dev host that was stored for it.
async fn find_target(
    app: &App,
    row: &Row,
    service: Option<&ServiceName>,
    port: Option<&ServiceName>,
) -> Result<(ServiceName, HostLabel), Failure> {
    if row.desired.shell == DesiredShell::Absent {
        return Err(being_deleted(row).into());
    }
    let (service, port) = target::choose(&row.slug, &row.spec, row.faces(), service, port)?;
    let all = dev_hosts::store::of(&app.pool, &row.id).await?;
    let host = all.into_iter().find(|host| host.service == service && host.port == port);
    let host = host.ok_or_else(|| Problem::internal(format!("service `{service}` has no dev host")))?;
    Ok((service, host.label))
}

fn being_deleted(row: &Row) -> Problem {
    Problem::new(
        ProblemKind::Conflict,
        format!("`{}` is being deleted, and its links with it", row.slug),
        "wait until it is gone; `envforge up` then makes it again",
    )
}

/// What a link carries, and for how long.
fn terms(request: &ShareRequest) -> Result<(SignedDuration, BTreeSet<Family>), Problem> {
    let seconds = request.expires_seconds.unwrap_or(DEFAULT_LIFETIME_SECONDS);
    if !(1..=MAX_LIFETIME_SECONDS).contains(&seconds) {
        return Err(Problem::invalid(
            format!("a link cannot last {seconds} seconds"),
            "at least 1 second and at most 30 days (`--expires 30d`)",
        ));
    }
    let families = request.families.clone().unwrap_or_else(|| Family::ALL.iter().copied().collect());
    if families.is_empty() {
        return Err(Problem::invalid("a link without any route family opens nothing", "name some, or leave them out"));
    }
    Ok((SignedDuration::from_secs(seconds), families))
}

/// Issues a link: stored, audited, then signed.
///
/// # Errors
/// `invalid` for terms that are not possible; `conflict` while the workspace is being deleted.
pub(crate) async fn share(app: &App, allowed: &Allowed, row: &Row, request: ShareRequest) -> Result<Shared, Failure> {
    let (lifetime, families) = terms(&request)?;
    let (service, host) = find_target(app, row, request.service.as_ref(), request.port.as_ref()).await?;
    // As exact as the database keeps it: its end and the end of its revocation are one moment.
    let end = Timestamp::from_microsecond((Timestamp::now() + lifetime).as_microsecond());
    let link = Link {
        id: LinkId::generate(),
        organization: row.organization.clone(),
        workspace: row.id.clone(),
        service,
        host,
        families,
        expires_at: end.map_err(|_| Problem::internal("the end of a link is no time"))?,
    };
    let token = app.keys.sign(&link)?;
    let (by, stored) = (allowed.name(), link.clone());
    db::write(&app.pool, move |tx| {
        Box::pin(async move {
            let row = workspaces::store::lock(&mut *tx, &stored.workspace).await?;
            let row = row.ok_or_else(|| not_found("that workspace"))?;
            if row.desired.shell == DesiredShell::Absent {
                return Err(being_deleted(&row).into());
            }
            store::insert(&mut *tx, &stored, &by).await?;
            let details = [
                ("link", stored.id.to_string()),
                ("service", stored.service.to_string()),
                ("families", stored.families.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")),
                ("expires_at", stored.expires_at.to_string()),
            ];
            audit::store::add(&mut *tx, &row.organization, &by, "link.issue", row.slug.as_str(), &details).await?;
            workspaces::store::touch(tx, &row.id).await
        })
    })
    .await?;
    app.bells.ring_workspace(&row.id);
    Ok(Shared {
        id: link.id,
        url: app.base.share(token.expose()),
        expires_at: link.expires_at,
        families: link.families,
        service: link.service,
        workspace: row.slug.clone(),
    })
}

/// Ends a link; every connected gateway hears of it at once. One that has ended already stays so.
///
/// # Errors
/// `not_found` for what the caller may not share.
pub(crate) async fn revoke(app: &App, allowed: &Allowed, id: &str) -> Result<LinkView, Failure> {
    let missing = || not_found(format!("link `{}`", id.chars().take(80).collect::<String>()));
    let id: LinkId = id.parse().map_err(|_| missing())?;
    let (workspace, view) = store::find(&app.pool, &id).await?.ok_or_else(missing)?;
    let row = workspaces::store::by_id(&app.pool, &workspace).await?.filter(|row| allowed.reaches(row));
    let row = row.ok_or_else(missing)?;
    let (by, key) = (allowed.name(), workspace.clone());
    db::write(&app.pool, move |tx| {
        Box::pin(async move {
            // Workspace before link: the order in which everyone locks.
            workspaces::store::lock(&mut *tx, &key).await?;
            if !store::revoke(&mut *tx, &id).await? {
                return Ok(());
            }
            hosts::store::announce_feed(&mut *tx).await?;
            let details = [("link", id.to_string())];
            audit::store::add(&mut *tx, &row.organization, &by, "link.revoke", row.slug.as_str(), &details).await?;
            workspaces::store::touch(tx, &key).await
        })
    })
    .await?;
    app.bells.ring_workspace(&workspace);
    app.bells.ring_feed();
    Ok(view)
}

/// A member opens a service without a link.
///
/// # Errors
/// As [`share`].
pub(crate) async fn open(app: &App, allowed: &Allowed, row: &Row, request: OpenRequest) -> Result<OpenedPage, Failure> {
    let (service, host) = find_target(app, row, request.service.as_ref(), request.port.as_ref()).await?;
    let origin = app.base.origin(&host);
    let visit = Visit {
        id: VisitId::generate(),
        holder: Holder::Member(allowed.person()?),
        user: allowed.name(),
        organization: row.organization.clone(),
        workspace: row.id.clone(),
        service,
        host,
        families: Family::ALL.iter().copied().collect(),
        expires_at: Timestamp::now() + SignedDuration::from_secs(MEMBER_VISIT_SECONDS),
    };
    let (by, organization, target) = (allowed.name(), row.organization.clone(), row.slug.to_string());
    let code = codes::Code::new();
    let (hash, details) = (code.hash(), [("service", visit.service.to_string()), ("visit", visit.id.to_string())]);
    db::write(&app.pool, move |tx| {
        Box::pin(async move {
            store::insert_code(&mut *tx, &hash, &visit).await?;
            audit::store::add(tx, &organization, &by, "workspace.visit", &target, &details).await
        })
    })
    .await?;
    Ok(OpenedPage { url: format!("{origin}/.envforge/enter?code={}", code.text().expose()), origin })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_lasts_two_hours_with_all_families_unless_said_otherwise_and_at_most_thirty_days() {
        let (lifetime, families) = terms(&ShareRequest::default()).expect("the defaults");
        assert_eq!((lifetime.as_secs(), families.len()), (7200, 4));
        let asked = |seconds| terms(&ShareRequest { expires_seconds: Some(seconds), ..ShareRequest::default() });
        assert!(asked(1).is_ok() && asked(30 * 86_400).is_ok());
        for bad in [0, -1, 30 * 86_400 + 1, i64::MAX] {
            assert!(asked(bad).is_err(), "{bad}");
        }
        assert!(terms(&ShareRequest { families: Some(BTreeSet::new()), ..ShareRequest::default() }).is_err());
    }
}
