//! Asking a host something that only it can know: a leased act whose answer is waited for.

use super::store;
use crate::{app::App, db, http::errors::Failure};
use envforge_api::{
    command::{ActAnswer, LeasedAct},
    ids::{CommandId, HostId, OrganizationId},
    problem::Problem,
    states::CommandState,
    time::Timestamp,
};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// A control plane that started so lately may be waiting for the host that starts beside it.
const YOUNG: Duration = Duration::from_secs(30);
/// How long such a one waits.
const FIRST_PATIENCE: Duration = Duration::from_secs(5);
/// Without a sync for so long, a host counts as away and nothing is asked.
const AWAY_SECONDS: i64 = 60;

fn away() -> Failure {
    Problem::unavailable(
        "the host does not answer now, and only it can read repositories and checkouts",
        "try again; `envforge local status` shows whether the host runs",
    )
    .into()
}

/// Asks and waits, at most 20 seconds; 5 for a host that has not synced since the control plane started.
///
/// # Errors
/// `unavailable` when the host is away or does not answer in time; `failed` with its reason when it could not.
pub(crate) async fn ask(
    app: &App,
    organization: &OrganizationId,
    host: &HostId,
    act: LeasedAct,
) -> Result<ActAnswer, Failure> {
    let presences = store::presences(&app.pool, organization).await?;
    let last = presences.get(host).and_then(|presence| presence.last_sync_at);
    let heard = last.is_some_and(|last| Timestamp::now().duration_since(last).as_secs() <= AWAY_SECONDS);
    let patience = match (heard, app.started.elapsed() < YOUNG) {
        (true, _) => PATIENCE,
        (false, true) => FIRST_PATIENCE,
        (false, false) => return Err(away()),
    };
    let id = CommandId::generate();
    let mut bell = app.bells.lease(&id);
    let (key, to) = (id.clone(), host.clone());
    db::write(&app.pool, move |tx| Box::pin(async move { store::lease(tx, &to, &key, &act).await })).await?;
    app.bells.ring_host(host);
    let deadline = Instant::now() + patience;
    loop {
        let (state, answer, reason) = store::answer(&app.pool, &id).await?;
        match (state.is_final(), answer) {
            (true, Some(answer)) if state == CommandState::Succeeded => return Ok(answer),
            (true, _) => {
                let reason = reason.unwrap_or_else(|| format!("the host ended the question as {state}"));
                return Err(Problem::unavailable(reason, "try again").into());
            }
            (false, _) => {}
        }
        // The answer may come to another replica: look at least every second.
        let look = (Instant::now() + Duration::from_secs(1)).min(deadline);
        let stopping = tokio::select! {
            _ = timeout_at(look, bell.changed()) => false,
            () = app.stopping.cancelled() => true,
        };
        if stopping || Instant::now() >= deadline {
            store::abandon(&app.pool, &id).await?;
            return Err(away());
        }
    }
}
