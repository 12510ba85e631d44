//! Signed links, and the visits they become.
//!
//! A *link* is what is shown around: it opens one service of one workspace until it expires or is revoked. Opening it
//! leads, by a code that is used once, to a *visit*: what a browser holds as its cookie for one dev host and no other.
//! Both are signed by the control plane and verified by the gateway alone; neither opens what the other opens.

use crate::{
    dev_host::HostLabel,
    ids::{LinkId, OrganizationId, PrincipalId, VisitId, WorkspaceId},
    names::{ServiceName, Slug},
    sign::Statement,
    states::words,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Lifetime of a link that names none, in seconds.
pub const DEFAULT_LIFETIME_SECONDS: i64 = 2 * 3600;
/// Longest lifetime of a link, in seconds.
pub const MAX_LIFETIME_SECONDS: i64 = 30 * 24 * 3600;
/// Lifetime of a member's visit, in seconds.
pub const MEMBER_VISIT_SECONDS: i64 = 12 * 3600;
/// Lifetime of a code, in seconds.
pub const CODE_SECONDS: i64 = 60;
/// The header in which programs send a link's token.
pub const LINK_HEADER: &str = "x-envforge-link";
/// The header that tells a service who was verified. What a client sends under this name is dropped.
pub const USER_HEADER: &str = "x-envforge-user";

words!(
    /// A kind of traffic, decided by path.
    Family, "route family" {
        /// Pages; what no other family matches.
        Web = "web",
        /// Calls.
        Api = "api",
        /// Files.
        Assets = "assets",
        /// Sockets.
        Websockets = "websockets",
    }
);

/// What a link says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Link {
    /// Its id, by which it is revoked.
    pub id: LinkId,
    /// The tenant.
    pub organization: OrganizationId,
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The service.
    pub service: ServiceName,
    /// The only dev host it opens.
    pub host: HostLabel,
    /// What kinds of traffic it carries; never empty.
    pub families: BTreeSet<Family>,
    /// Not valid from here on.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
}

impl Statement for Link {
    const KIND: &'static [u8] = b"envforge link v1";

    fn expires_at(&self) -> Timestamp {
        self.expires_at
    }
}

/// On whose account a visit was let in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Holder {
    /// Whoever had this link.
    Link(LinkId),
    /// A member of the organization, by role.
    Member(PrincipalId),
}

/// What a visit's cookie says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Visit {
    /// Its id.
    pub id: VisitId,
    /// On whose account.
    pub holder: Holder,
    /// The name services are told: a member's name, or `link:` and the link's id.
    pub user: String,
    /// The tenant.
    pub organization: OrganizationId,
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The service.
    pub service: ServiceName,
    /// The only dev host on which it is valid.
    pub host: HostLabel,
    /// What kinds of traffic it carries; never empty.
    pub families: BTreeSet<Family>,
    /// Not valid from here on; never later than its link's end.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
}

impl Visit {
    /// What whoever has the link may do.
    #[must_use]
    pub fn of_link(link: Link) -> Self {
        Self {
            id: VisitId::generate(),
            user: format!("link:{}", link.id),
            holder: Holder::Link(link.id),
            organization: link.organization,
            workspace: link.workspace,
            service: link.service,
            host: link.host,
            families: link.families,
            expires_at: link.expires_at,
        }
    }
}

impl Statement for Visit {
    const KIND: &'static [u8] = b"envforge visit v1";

    fn expires_at(&self) -> Timestamp {
        self.expires_at
    }
}

/// `POST /v1/workspaces/{workspace}/links`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ShareRequest {
    /// Absent: the first with an HTTP port.
    #[serde(default)]
    pub service: Option<ServiceName>,
    /// A further named port of the service; absent: its main one.
    #[serde(default)]
    pub port: Option<ServiceName>,
    /// Seconds until it ends; absent: two hours; at most thirty days.
    #[serde(default)]
    pub expires_seconds: Option<i64>,
    /// Absent: all.
    #[serde(default)]
    pub families: Option<BTreeSet<Family>>,
}

/// Answer to [`ShareRequest`]: the only time the URL is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Shared {
    /// The link's id.
    pub id: LinkId,
    /// What is shown around.
    pub url: String,
    /// When it ends.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
    /// What kinds of traffic it carries.
    pub families: BTreeSet<Family>,
    /// The service it opens.
    pub service: ServiceName,
    /// Slug of the workspace.
    pub workspace: Slug,
}

/// `POST /v1/workspaces/{workspace}/visits`: a member opens a service without a link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OpenRequest {
    /// Absent: the first with an HTTP port.
    #[serde(default)]
    pub service: Option<ServiceName>,
    /// A further named port of the service; absent: its main one.
    #[serde(default)]
    pub port: Option<ServiceName>,
}

/// Answer to [`OpenRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OpenedPage {
    /// Leads in once, within a minute.
    pub url: String,
    /// The page's lasting address.
    pub origin: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sign::{Refused, SigningKey, verify};

    fn link() -> Link {
        Link {
            id: LinkId::generate(),
            organization: OrganizationId::generate(),
            workspace: WorkspaceId::generate(),
            service: "web".parse().expect("a service"),
            host: "web--a--b".parse().expect("a label"),
            families: Family::ALL.iter().copied().collect(),
            expires_at: "2030-01-01T00:00:00Z".parse().expect("a time"),
        }
    }

    #[test]
    fn a_link_is_never_taken_for_a_visit_nor_for_a_capability() {
        let key = SigningKey::generate().expect("key");
        let keys = [key.verify_key()];
        let now = "2029-01-01T00:00:00Z".parse().expect("a time");
        let token = key.sign(&link()).expect("token");
        assert!(verify::<Link>(&keys, &token, now).is_ok());
        assert_eq!(verify::<Visit>(&keys, &token, now), Err(Refused::Signature));
        assert_eq!(crate::capability::verify(&keys, &token, now), Err(Refused::Signature));
    }

    #[test]
    fn two_keys_overlap_and_an_ended_one_verifies_nothing() {
        let (old, new) = (SigningKey::generate().expect("key"), SigningKey::generate().expect("key"));
        let now = "2029-01-01T00:00:00Z".parse().expect("a time");
        let token = old.sign(&link()).expect("token");
        assert!(verify::<Link>(&[new.verify_key(), old.verify_key()], &token, now).is_ok());
        assert_eq!(verify::<Link>(&[new.verify_key()], &token, now), Err(Refused::Signature));
    }
}
