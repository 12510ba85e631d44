//! Who asks, and whether they may: one middleware for every route, and the checks on single workspaces.
//!
//! Authentication alone grants nothing: a route's action is looked up in the role matrix. A host's token speaks the
//! host protocol only, or, with [`ACTING_AS`], public routes in the name of one of its workspaces; a gateway's token
//! speaks the gateway protocol only.

use super::errors::{Failure, not_found, unauthenticated};
use crate::{app::App, identity, workspaces::store::Row};
use axum::{
    extract::{Request, State},
    http::{HeaderMap, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use envforge_api::{
    ids::{GatewayId, HostId, OrganizationId, PrincipalId, WorkspaceId},
    role::{Action, Role, Verdict},
};

/// The header with which a host says for which workspace it forwards a request.
pub(crate) const ACTING_AS: &str = "x-envforge-workspace";

/// What a route is about, for callers that are confined to one workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// One workspace, or a list that can be confined to one.
    Workspace,
    /// The organization as a whole: never for a workspace.
    Organization,
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Caller {
    /// A person, or a program with a person's token.
    Person { id: PrincipalId, name: String, organization: OrganizationId, role: Role },
    /// A host daemon for itself.
    Host { id: HostId, organization: OrganizationId },
    /// A gateway for itself.
    Gateway { id: GatewayId, organization: OrganizationId },
    /// A workspace's shell, vouched for by its host. Acts with the name of its owner.
    Workspace { id: WorkspaceId, owner: PrincipalId, owner_name: String, organization: OrganizationId },
}

/// A program's token speaks its own protocol and nothing else.
fn own(action: Action, protocol: Action) -> Verdict {
    if action == protocol || action == Action::Public { Verdict::Yes } else { Verdict::No }
}

impl Caller {
    /// The matrix's answer for this caller.
    pub(crate) fn may(&self, action: Action, scope: Scope) -> Verdict {
        match self {
            Self::Person { role, .. } => role.may(action),
            Self::Host { .. } => own(action, Action::ActAsHost),
            Self::Gateway { .. } => own(action, Action::ActAsGateway),
            Self::Workspace { .. } => match (action, scope) {
                (Action::Public | Action::SeeSelf, _) => Verdict::Yes,
                (
                    Action::UseWorkspace | Action::SeeWorkspace | Action::SeeUsage | Action::ShareLinks,
                    Scope::Workspace,
                ) => Verdict::Own,
                (
                    Action::UseWorkspace | Action::SeeWorkspace | Action::SeeUsage | Action::ShareLinks,
                    Scope::Organization,
                )
                | (
                    Action::ManageOrganization
                    | Action::EndOrganization
                    | Action::ManageProject
                    | Action::DeleteWorkspace
                    | Action::ActAsHost
                    | Action::ActAsGateway,
                    _,
                ) => Verdict::No,
            },
        }
    }

    /// The tenant everything is looked up in.
    pub(crate) fn organization(&self) -> &OrganizationId {
        match self {
            Self::Person { organization, .. }
            | Self::Host { organization, .. }
            | Self::Gateway { organization, .. }
            | Self::Workspace { organization, .. } => organization,
        }
    }
}

/// A caller whom the route's action was granted, with how far it reaches.
#[derive(Debug, Clone)]
pub(crate) struct Allowed {
    /// Who.
    pub(crate) caller: Caller,
    /// `Yes` or `Own`; never `No`.
    pub(crate) verdict: Verdict,
}

impl Allowed {
    /// Whether the action reaches this workspace.
    pub(crate) fn reaches(&self, workspace: &Row) -> bool {
        workspace.organization == *self.caller.organization()
            && match (&self.caller, self.verdict) {
                (Caller::Workspace { id, .. }, _) => *id == workspace.id,
                (Caller::Person { .. } | Caller::Host { .. } | Caller::Gateway { .. }, Verdict::Yes) => true,
                (Caller::Person { id, .. }, Verdict::Own) => *id == workspace.owner,
                (Caller::Host { .. } | Caller::Gateway { .. }, Verdict::Own) | (_, Verdict::No) => false,
            }
    }

    /// Whether the action reaches everything of this organization.
    pub(crate) fn reaches_everything_of(&self, organization: &OrganizationId) -> bool {
        matches!(self.caller, Caller::Person { .. })
            && self.verdict == Verdict::Yes
            && self.caller.organization() == organization
    }

    /// The name that records show.
    pub(crate) fn name(&self) -> String {
        match &self.caller {
            Caller::Person { name, .. } => name.clone(),
            Caller::Host { id, .. } => id.to_string(),
            Caller::Gateway { id, .. } => id.to_string(),
            Caller::Workspace { owner_name, .. } => owner_name.clone(),
        }
    }

    /// The person behind the request: a workspace acts for its owner.
    ///
    /// # Errors
    /// `not_found` for a host or a gateway, which act for nobody.
    pub(crate) fn person(&self) -> Result<PrincipalId, Failure> {
        match &self.caller {
            Caller::Person { id, .. } => Ok(id.clone()),
            Caller::Workspace { owner, .. } => Ok(owner.clone()),
            Caller::Host { .. } | Caller::Gateway { .. } => Err(not_found("that")),
        }
    }

    /// The host that speaks.
    ///
    /// # Errors
    /// `not_found` for anyone else.
    pub(crate) fn host(&self) -> Result<HostId, Failure> {
        match &self.caller {
            Caller::Host { id, .. } => Ok(id.clone()),
            Caller::Person { .. } | Caller::Workspace { .. } | Caller::Gateway { .. } => Err(not_found("that")),
        }
    }

    /// The gateway that speaks.
    ///
    /// # Errors
    /// `not_found` for anyone else.
    pub(crate) fn gateway(&self) -> Result<GatewayId, Failure> {
        match &self.caller {
            Caller::Gateway { id, .. } => Ok(id.clone()),
            Caller::Person { .. } | Caller::Workspace { .. } | Caller::Host { .. } => Err(not_found("that")),
        }
    }
}

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for Allowed {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, _: &S) -> Result<Self, Failure> {
        parts.extensions.get::<Self>().cloned().ok_or_else(unauthenticated)
    }
}

/// What a route demands; the state of [`guard`].
#[derive(Debug, Clone)]
pub(crate) struct Demand {
    pub(crate) app: App,
    pub(crate) action: Action,
    pub(crate) scope: Scope,
}

/// Lets a request through when its caller may do the route's action at all; the handler checks single workspaces.
pub(crate) async fn guard(State(demand): State<Demand>, mut request: Request, next: Next) -> Response {
    if demand.action == Action::Public {
        return next.run(request).await;
    }
    match admit(&demand, request.headers()).await {
        Ok(allowed) => {
            request.extensions_mut().insert(allowed);
            next.run(request).await
        }
        Err(failure) => failure.into_response(),
    }
}

async fn admit(demand: &Demand, headers: &HeaderMap) -> Result<Allowed, Failure> {
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "))
        .ok_or_else(unauthenticated)?;
    let bearer = identity::store::bearer(&demand.app.pool, token).await?.ok_or_else(unauthenticated)?;
    let caller = match (bearer, headers.get(ACTING_AS)) {
        (caller, None) => caller,
        (Caller::Host { id, organization }, Some(workspace)) => {
            let workspace: WorkspaceId =
                workspace.to_str().ok().and_then(|text| text.parse().ok()).ok_or_else(|| not_found("that"))?;
            identity::store::as_workspace(&demand.app.pool, &id, &organization, &workspace)
                .await?
                .ok_or_else(|| not_found("that"))?
        }
        // Only a host vouches for workspaces.
        (Caller::Person { .. } | Caller::Workspace { .. } | Caller::Gateway { .. }, Some(_)) => {
            return Err(not_found("that"));
        }
    };
    match caller.may(demand.action, demand.scope) {
        Verdict::No => Err(not_found("that")),
        verdict @ (Verdict::Yes | Verdict::Own) => Ok(Allowed { caller, verdict }),
    }
}
