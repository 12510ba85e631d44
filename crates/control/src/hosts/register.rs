//! A daemon's first request: a new epoch, an anchored boot clock, catching up with a host that knows more, and no
//! belief in what was reported before a reboot.

use super::{reboot::after_reboot, store};
use crate::{
    app::App,
    audit, db,
    http::errors::Failure,
    workspaces::{self, act},
};
use envforge_api::{
    generation::Generation,
    host::{RegisterAnswer, RegisterRequest},
    ids::HostId,
    time::Timestamp,
};

/// Registers.
///
/// A host that knows a higher generation than the control plane (whose database was restored) is believed: the
/// desired state goes on from there + 1.
pub(crate) async fn register(app: &App, host: &HostId, request: RegisterRequest) -> Result<RegisterAnswer, Failure> {
    let keys = app.keys.verify_keys();
    let id = host.clone();
    let (epoch, organization, behind, cut) = db::write(&app.pool, move |tx| {
        Box::pin(async move {
            let (mut behind, mut here) = (Vec::new(), Vec::new());
            // In the order of ids, workspaces before the host: the order in which everyone locks.
            for (workspace, known) in &request.known {
                let Some(row) = workspaces::store::lock(&mut *tx, workspace).await? else { continue };
                if row.host == id && *known > row.generation {
                    behind.push((row.clone(), *known));
                }
                if row.host == id {
                    here.push(row);
                }
            }
            for (row, known) in &behind {
                act::bump(&mut *tx, row, Generation(known.0 + 1), &row.desired).await?;
                let details = [("host_knew", known.to_string()), ("known_here", row.generation.to_string())];
                let (actor, target) = (id.as_str(), row.slug.as_str());
                audit::store::add(&mut *tx, &row.organization, actor, "workspace.caught_up", target, &details).await?;
            }
            let before = store::last_boot(&mut *tx, &id).await?;
            let (epoch, organization) = store::register(&mut *tx, &id, &request).await?;
            let mut cut = Vec::new();
            if before.is_some_and(|before| before != request.boot) {
                for row in &here {
                    let Some(report) = row.report.clone() else { continue };
                    let left = after_reboot(report, row.desired.awake(), Timestamp::now());
                    workspaces::store::report(&mut *tx, row, epoch, &left).await?;
                    cut.push(row.id.clone());
                }
            }
            Ok((epoch, organization, behind, cut))
        })
    })
    .await?;
    for (row, known) in &behind {
        tracing::warn!(
            workspace = %row.slug, host_knew = %known, known_here = %row.generation,
            "the host knows a newer generation than the database, which was probably restored: going on from the host's"
        );
        app.bells.ring_workspace(&row.id);
    }
    for workspace in &cut {
        app.bells.ring_workspace(workspace);
    }
    tracing::info!(%host, %epoch, rebooted = !cut.is_empty(), "a host registered");
    // A sync that an older daemon parked learns that its epoch is stale.
    app.bells.ring_host(host);
    Ok(RegisterAnswer { host: host.clone(), epoch, organization, keys })
}
