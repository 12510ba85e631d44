//! Where a dev host leads. Pure but for the look-up: an unknown label and one of another workspace are both not found.

use super::{feed, store};
use crate::{
    app::App,
    dev_hosts::{self, store::DevHost},
    hosts,
    http::errors::{Failure, not_found},
    workspaces::{self, store::Row},
};
use envforge_api::{
    capability::{Capability, LIFETIME_SECONDS, Right},
    dev_host::ProxyMode,
    gateway::{Binding, Dial, Route, RouteRequest, StorageRequest, StorageRoute, Target},
    ids::{AttachId, OrganizationId},
    names::ServiceName,
    states::ServiceKind,
    time::Timestamp,
};
use std::collections::BTreeSet;

/// The port of a service's own dev host: what a running instance listens on, else what its file says, which by now may
/// be another one.
fn main_port(row: &Row, service: &str) -> Option<u16> {
    let report = row.report.as_ref().filter(|report| report.instance.is_some());
    let services = report.map(|report| report.services.as_slice()).unwrap_or_default();
    let is_it = |name: &str, kind: ServiceKind| kind == ServiceKind::Service && name == service;
    let running = services.iter().find(|s| is_it(&s.name, s.kind)).and_then(|service| service.port);
    let face = || row.faces().iter().find(|face| face.service.as_str() == service);
    running.or_else(|| face().and_then(envforge_api::host::Face::main_port))
}

/// The main ports of all services: the same asleep as awake, unless something was edited meanwhile.
pub(super) fn main_ports(row: &Row) -> Vec<(&str, Option<u16>)> {
    let services = row.spec.services.iter().map(|service| service.name.as_str());
    services.map(|name| (name, main_port(row, name))).collect()
}

fn target(row: &Row, service: &ServiceName, port: Option<&ServiceName>) -> Target {
    let face = row.faces().iter().find(|face| face.service == *service);
    let number = match port {
        Some(port) => face.and_then(|face| face.ports.get(port)).copied(),
        None => main_port(row, service.as_str()),
    };
    Target {
        service: service.clone(),
        port: number,
        proxy: face.map_or(ProxyMode::Localhost, |face| face.proxy),
        families: face.map(|face| face.families.clone()).unwrap_or_default(),
    }
}

/// Paths of the main host that lead elsewhere, the longest first.
fn bindings(row: &Row, host: &DevHost) -> Vec<Binding> {
    let routes = if host.port.is_none() { row.spec.routes.get(&host.service) } else { None };
    let mut all: Vec<Binding> = routes
        .into_iter()
        .flatten()
        .map(|(path, service)| Binding { path: path.clone(), target: target(row, service, None) })
        .collect();
    all.sort_by(|a, b| b.path.len().cmp(&a.path.len()).then_with(|| a.path.cmp(&b.path)));
    all
}

/// A route, with what it takes to connect there.
///
/// # Errors
/// `not_found`.
pub(super) async fn route(app: &App, organization: &OrganizationId, request: &RouteRequest) -> Result<Route, Failure> {
    let missing = || not_found("that dev host");
    let (workspace, host) = dev_hosts::store::find(&app.pool, &request.host).await?.ok_or_else(missing)?;
    if workspace != request.workspace {
        return Err(missing());
    }
    let row = workspaces::store::by_id(&app.pool, &workspace).await?;
    let row = row.filter(|row| row.organization == *organization).ok_or_else(missing)?;
    // The label of a service that the project has no more leads nowhere.
    if !row.spec.services.iter().any(|service| service.name == host.service) {
        return Err(missing());
    }
    let presences = hosts::store::presences(&app.pool, organization).await?;
    let socket = presences.get(&row.host).and_then(|presence| presence.dial_socket.clone());
    Ok(Route {
        origin: app.base.origin(&host.label),
        workspace: row.id.clone(),
        slug: row.slug.clone(),
        organization: row.organization.clone(),
        version: feed::version(&row),
        target: target(&row, &host.service, host.port.as_ref()),
        bindings: bindings(&row, &host),
        dial: dial(app, &row, socket)?,
        host: host.label,
    })
}

/// Who can verify presigned requests of a dev host, with what it takes to ask there.
///
/// # Errors
/// `not_found`.
pub(super) async fn storage(
    app: &App,
    organization: &OrganizationId,
    request: &StorageRequest,
) -> Result<StorageRoute, Failure> {
    let missing = || not_found("that dev host");
    let workspace = dev_hosts::store::find_storage(&app.pool, &request.host).await?.ok_or_else(missing)?;
    let row = workspaces::store::by_id(&app.pool, &workspace).await?;
    let row = row.filter(|row| row.organization == *organization).ok_or_else(missing)?;
    let presences = hosts::store::presences(&app.pool, organization).await?;
    let socket = presences.get(&row.host).and_then(|presence| presence.dial_socket.clone());
    Ok(StorageRoute { workspace: row.id.clone(), dial: dial(app, &row, socket)? })
}

fn dial(app: &App, row: &Row, socket: Option<String>) -> Result<Dial, Failure> {
    let expires_at = Timestamp::now() + jiff::SignedDuration::from_secs(LIFETIME_SECONDS);
    let capability = Capability {
        host: row.host.clone(),
        workspace: row.id.clone(),
        principal: row.owner.clone(),
        principal_name: "gateway".into(),
        session: AttachId::generate(),
        rights: BTreeSet::from([Right::Dial]),
        service: None,
        expires_at,
    };
    Ok(Dial { host: row.host.clone(), socket, token: app.keys.sign(&capability)?, expires_at })
}

/// Notes that a gateway was heard of.
pub(super) async fn heard(app: &App, gateway: &envforge_api::ids::GatewayId) -> Result<(), Failure> {
    store::heard(&app.pool, gateway).await
}
