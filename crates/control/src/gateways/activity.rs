//! What gateways carried: stored once, and turned into what keeps runtimes awake.
//!
//! A gateway computes which traffic counts (`counts_at`); here it is believed, but not into the future. Hosts are told
//! the last such moment of each workspace, in every answer while it is new and by waking their parked sync once.

use super::store;
use crate::{app::App, db, http::errors::Failure};
use envforge_api::{
    gateway::Activity,
    host::Traffic,
    ids::{GatewayId, HostId, OrganizationId},
};
use std::collections::BTreeSet;

/// Stores a report. What was stored before, or is of a workspace that this gateway does not see, changes nothing.
///
/// # Errors
/// Only the database's: the gateway then sends it again.
pub(super) async fn record(
    app: &App,
    gateway: &GatewayId,
    organization: &OrganizationId,
    items: Vec<Activity>,
) -> Result<(), Failure> {
    let (gateway, organization) = (gateway.clone(), organization.clone());
    let hosts = db::write(&app.pool, move |tx| {
        Box::pin(async move {
            let mut hosts = BTreeSet::new();
            // In the order of workspaces: the order in which everyone locks.
            let mut items = items;
            items.sort_by(|a, b| a.workspace.cmp(&b.workspace));
            for item in &items {
                if !store::insert_activity(&mut *tx, &gateway, &organization, item).await? {
                    continue;
                }
                if item.awake_seconds > 0 {
                    store::add_awake(&mut *tx, item).await?;
                }
                if let Some(at) = item.counts_at {
                    hosts.extend(store::note_traffic(&mut *tx, &item.workspace, at).await?);
                }
            }
            for host in &hosts {
                crate::hosts::store::announce(&mut *tx, host).await?;
            }
            Ok(hosts)
        })
    })
    .await?;
    for host in &hosts {
        app.bells.ring_host(host);
    }
    Ok(())
}

/// What a host's answer says of link traffic.
///
/// # Errors
/// Only the database's.
pub(crate) async fn traffic(app: &App, host: &HostId) -> Result<Vec<Traffic>, Failure> {
    store::traffic(&app.pool, host).await
}
