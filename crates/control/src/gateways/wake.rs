//! A verified request that deserves a wake: an ordinary START_RUNTIME whose record names the link or the member.

use crate::{
    app::App,
    http::errors::{Failure, not_found},
    identity, links,
    workspaces::{self, act, lifecycle::Request},
};
use envforge_api::{
    gateway::{WakeAnswer, WakeRequest},
    ids::OrganizationId,
    link::Holder,
    problem::ProblemKind,
    states::Trouble,
    time::Timestamp,
};

/// After a refusal, asking again before so many seconds is of no use.
const PAUSE_SECONDS: i64 = 15;

/// Wakes, or joins the wake under way.
///
/// # Errors
/// `not_found` for a holder that does not hold any more, or not for this workspace.
pub(super) async fn wake(
    app: &App,
    organization: &OrganizationId,
    request: &WakeRequest,
) -> Result<WakeAnswer, Failure> {
    let row = workspaces::store::by_id(&app.pool, &request.workspace).await?;
    let row = row.filter(|row| row.organization == *organization).ok_or_else(|| not_found("that workspace"))?;
    let by = match &request.holder {
        Holder::Link(id) => {
            let holds = match links::store::find(&app.pool, id).await? {
                Some((workspace, _)) => workspace == row.id && links::store::is_valid(&app.pool, id).await?,
                None => false,
            };
            if !holds {
                return Err(not_found("that link"));
            }
            format!("link:{id}")
        }
        Holder::Member(id) => {
            identity::store::member(&app.pool, organization, id).await?.ok_or_else(|| not_found("that member"))?
        }
    };
    match act::act(app, &row.id, Request::Wake { trigger: "link".into() }, by).await {
        Ok(command) => Ok(WakeAnswer::Asked { generation: command.generation }),
        Err(failure) if failure.0.kind == ProblemKind::Conflict => Ok(WakeAnswer::Refused {
            trouble: Trouble::new(failure.0.message, failure.0.hint),
            until: Timestamp::now() + jiff::SignedDuration::from_secs(PAUSE_SECONDS),
        }),
        Err(failure) => Err(failure),
    }
}
