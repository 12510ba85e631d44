//! The feed: parked until something that a gateway must know has changed.
//!
//! Its position is a transaction's number (see migration 0002): what was still open at one reading is told by the next
//! one, so that nothing is missed, and something may be told twice, which changes nothing.

use super::store;
use crate::{
    app::App,
    http::errors::Failure,
    links,
    workspaces::{self, store::Row, view},
};
use envforge_api::{
    gateway::{Feed, MAX_PARK_MS, ServiceStanding, Standing},
    generation::Generation,
    ids::OrganizationId,
    states::{RuntimeState, Stated},
    time::Timestamp,
};
use sha2::{Digest, Sha256};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Another replica may have made the change: a parked feed looks at least so often.
const LOOK: Duration = Duration::from_secs(1);
/// A long transaction keeps the position where it is, and everything after it is told again: not more often than so.
const AGAIN: Duration = Duration::from_millis(50);
/// How long changes of workspaces are gathered before they are told. Each comes in the middle of a wake or a sleep, whose
/// steps would wait for the processors while gateways are told of the one before.
const TOGETHER: Duration = Duration::from_millis(25);

/// One reading.
///
/// # Errors
/// Only the database's.
pub(super) async fn feed(app: &App, organization: &OrganizationId, since: u64, wait_ms: u32) -> Result<Feed, Failure> {
    let mut bell = app.bells.feed();
    let deadline = Instant::now() + Duration::from_millis(u64::from(wait_ms.min(MAX_PARK_MS)));
    let (mut seq, mut news);
    loop {
        let urgently = bell.borrow_and_update().urgently;
        (seq, news) = store::look(&app.pool, organization, since).await?;
        // A position that has not come yet is one of a database that was put back.
        if since == 0 || since > seq || Instant::now() >= deadline || app.stopping.is_cancelled() {
            break;
        }
        if news && since < seq {
            break;
        }
        let look = (Instant::now() + if news { AGAIN } else { LOOK }).min(deadline);
        let due = async {
            if timeout_at(look, bell.changed()).await.is_ok() {
                let gathered = (Instant::now() + TOGETHER).min(deadline);
                let _ = timeout_at(gathered, bell.wait_for(|rung| rung.urgently != urgently)).await;
            }
        };
        tokio::select! {
            () = due => {}
            () = app.stopping.cancelled() => {}
        }
        if news {
            break;
        }
    }
    let whole = since == 0 || since > seq;
    answer(app, organization, seq, if whole { 0 } else { since }).await
}

async fn answer(app: &App, organization: &OrganizationId, seq: u64, since: u64) -> Result<Feed, Failure> {
    let rows = workspaces::store::changed(&app.pool, organization, since).await?;
    let mut standings: Vec<Standing> = rows.iter().map(standing).collect();
    if since > 0 {
        standings.extend(workspaces::store::gone_since(&app.pool, organization, since).await?.into_iter().map(gone));
    }
    Ok(Feed {
        seq,
        whole: since == 0,
        base: app.base.authority().to_owned(),
        scheme: app.base.scheme().to_owned(),
        keys: app.keys.verify_keys(),
        revoked: links::store::revoked_since(&app.pool, organization, since).await?,
        workspaces: standings,
    })
}

fn standing(row: &Row) -> Standing {
    let report = row.report.as_ref();
    let services = report.map(|report| report.services.as_slice()).unwrap_or_default();
    Standing {
        workspace: row.id.clone(),
        present: true,
        generation: row.generation,
        runtime: view::runtime(row),
        instance: report.and_then(|report| report.instance.clone()),
        services: services
            .iter()
            .map(|s| ServiceStanding { name: s.name.clone(), kind: s.kind, stated: s.stated.clone() })
            .collect(),
        routes: version(row),
    }
}

fn gone((workspace, at): (envforge_api::ids::WorkspaceId, Timestamp)) -> Standing {
    Standing {
        workspace,
        present: false,
        generation: Generation(0),
        runtime: Stated::plain(RuntimeState::Asleep, at),
        instance: None,
        services: Vec::new(),
        routes: 0,
    }
}

/// Changes with everything that a route is made of: a digest, so that every replica says the same.
pub(super) fn version(row: &Row) -> u64 {
    let ports = super::route::main_ports(row);
    let made_of = (&row.hosts, row.faces(), &row.spec.routes, row.host.as_str(), ports);
    let bytes = serde_json::to_vec(&made_of).unwrap_or_default();
    let digest = Sha256::digest(&bytes);
    // 53 bits, which every reader of JSON keeps.
    digest[..7].iter().fold(0, |all, octet| (all << 8) | u64::from(*octet)) >> 3
}
