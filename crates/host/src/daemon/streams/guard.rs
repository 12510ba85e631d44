//! Who may do what on a stream, when it begins and for as long as it lasts.

use super::routes::{Api, Caller};
use envforge_api::{
    capability::{self, Capability, Refused, Right},
    ids::WorkspaceId,
    names::ServiceName,
    problem::{Problem, ProblemKind},
    time::Timestamp,
};
use std::time::Duration;
use tokio::sync::watch;

/// Wall clocks are stepped: an expiry is looked at again after this long at the latest.
const LOOK_AGAIN: Duration = Duration::from_secs(20);

/// The permission one stream runs on.
#[derive(Debug)]
pub(super) struct Guard {
    api: Api,
    workspace: WorkspaceId,
    right: Right,
    /// `None` on a workspace's own socket, which names the caller by itself.
    held: watch::Sender<Option<Capability>>,
}

/// What a caller without permission is told.
fn refusal(refused: Refused, workspace: &WorkspaceId) -> Problem {
    match refused {
        Refused::Signature => {
            unauthenticated("this needs a valid capability", "open it with `envforge`, which asks for one")
        }
        Refused::Expired => unauthenticated("the capability has expired", "run the command again: it gets a new one"),
        Refused::Scope => Problem::not_found(format!("workspace {workspace}")),
    }
}

fn unauthenticated(message: &str, hint: &str) -> Problem {
    Problem::new(ProblemKind::Unauthenticated, message, hint)
}

fn revoked() -> Problem {
    unauthenticated("this session was revoked", "ask the workspace's owner, then run the command again")
}

impl Api {
    /// The capability in `token` if it opens `right` on `workspace` now.
    fn verified(&self, token: &str, workspace: &WorkspaceId, right: Right) -> Result<Capability, Problem> {
        let keys = self.hub.keys.borrow().clone();
        let given = capability::verify(&keys, token, Timestamp::now()).map_err(|r| refusal(r, workspace))?;
        let host = self.hub.host.borrow().clone();
        let host = host.ok_or_else(|| refusal(Refused::Scope, workspace))?;
        given.allows(&host, workspace, right).map_err(|r| refusal(r, workspace))?;
        if self.hub.revoked.borrow().contains(&given.session) {
            return Err(revoked());
        }
        Ok(given)
    }

    /// Lets the caller in, or says no before anything happens.
    ///
    /// # Errors
    /// `unauthenticated` without a valid token, `not_found` when it is not for this.
    pub(super) fn admit(&self, token: Option<&str>, workspace: &WorkspaceId, right: Right) -> Result<Guard, Problem> {
        let held = match &self.caller {
            Caller::Workspace(own) if own == workspace => None,
            Caller::Workspace(_) => return Err(refusal(Refused::Scope, workspace)),
            Caller::Machine => {
                let token = token.ok_or_else(|| refusal(Refused::Signature, workspace))?;
                Some(self.verified(token, workspace, right)?)
            }
        };
        Ok(Guard { api: self.clone(), workspace: workspace.clone(), right, held: watch::Sender::new(held) })
    }
}

impl Guard {
    /// Goes on with a newer capability. One that is not valid for the same person and thing changes nothing: the one
    /// at hand then ends the stream when its time comes.
    pub(super) fn renew(&self, token: &str) {
        let Ok(newer) = self.api.verified(token, &self.workspace, self.right) else {
            tracing::warn!(workspace = %self.workspace, "a stream was offered a capability that is not valid for it");
            return;
        };
        self.held.send_if_modified(|held| match held {
            Some(known) if known.principal == newer.principal => {
                *held = Some(newer);
                true
            }
            Some(_) | None => false,
        });
    }

    /// Whether the capability covers the environment of `service`.
    pub(super) fn covers(&self, service: &ServiceName) -> bool {
        self.held.borrow().as_ref().and_then(|held| held.service.as_ref()).is_none_or(|only| only == service)
    }

    /// Who holds it, for the log.
    pub(super) fn holder(&self) -> String {
        self.held.borrow().as_ref().map_or_else(|| "the workspace itself".into(), |held| held.principal.to_string())
    }

    /// Waits until the permission ends, and says why it did.
    pub(super) async fn ended(&self) -> Problem {
        let (mut held, mut gone) = (self.held.subscribe(), self.api.hub.revoked.subscribe());
        loop {
            let Some(now) = held.borrow_and_update().clone() else { return std::future::pending().await };
            if gone.borrow_and_update().contains(&now.session) {
                return revoked();
            }
            let left = now.expires_at.duration_since(Timestamp::now());
            let left = Duration::try_from(left).unwrap_or_default();
            if left.is_zero() {
                return refusal(Refused::Expired, &self.workspace);
            }
            tokio::select! {
                // The senders live as long as the hub and this guard.
                _ = held.changed() => {}
                _ = gone.changed() => {}
                () = tokio::time::sleep(left.min(LOOK_AGAIN)) => {}
            }
        }
    }
}
