//! Identifiers. Each prints its kind, sorts by the time it was made and is refused where another kind is expected.

use data_encoding::{Encoding, Specification};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr, sync::LazyLock};

/// Lower-case base32hex without padding: keeps the byte order, so ids sort by creation time.
static ALPHABET: LazyLock<Encoding> = LazyLock::new(|| {
    let mut spec = Specification::new();
    spec.symbols.push_str("0123456789abcdefghijklmnopqrstuv");
    spec.encoding().expect("the alphabet is a constant with 32 distinct symbols")
});

/// An id that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not a {kind} id: expected `{prefix}_` and 26 characters of 0-9 and a-v")]
pub struct BadId {
    given: String,
    kind: &'static str,
    prefix: &'static str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schema(value_type = String)]
        pub struct $name(String);

        impl $name {
            /// What every id of this kind begins with, without the underscore.
            pub const PREFIX: &'static str = $prefix;

            /// A new id: 48 bits of time and 74 bits of chance.
            #[must_use]
            pub fn generate() -> Self {
                Self(format!("{}_{}", $prefix, ALPHABET.encode(uuid::Uuid::now_v7().as_bytes())))
            }

            /// The id as it is written everywhere.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadId;

            fn from_str(given: &str) -> Result<Self, BadId> {
                let bad = || BadId { given: given.chars().take(64).collect(), kind: $kind, prefix: $prefix };
                let body = given.strip_prefix(concat!($prefix, "_")).ok_or_else(bad)?;
                match ALPHABET.decode(body.as_bytes()) {
                    Ok(bytes) if bytes.len() == 16 => Ok(Self(given.to_owned())),
                    Ok(_) | Err(_) => Err(bad()),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadId;

            fn try_from(given: String) -> Result<Self, BadId> {
                given.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(/// A tenant.
    OrganizationId, "org", "organization");
id!(/// A named set of services.
    ProjectId, "prj", "project");
id!(/// One branch of one project.
    WorkspaceId, "ws", "workspace");
id!(/// A machine that carries workspaces.
    HostId, "host", "host");
id!(/// Someone or something that may ask: a person, a token, a workspace.
    PrincipalId, "usr", "principal");
id!(/// A bearer token; never the token itself.
    TokenId, "tok", "token");
id!(/// A durable record of one requested act.
    CommandId, "cmd", "command");
id!(/// One unbroken run of one runtime's supervisor and processes.
    RuntimeInstanceId, "rt", "runtime instance");
id!(/// One metered awake window.
    UsageSessionId, "use", "usage session");
id!(/// One entry of the audit log.
    AuditId, "aud", "audit entry");
id!(/// One attached terminal.
    AttachId, "att", "attach session");
id!(/// A signed link.
    LinkId, "lnk", "link");
id!(/// One browser's or program's visit to one dev host.
    VisitId, "vis", "visit");
id!(/// A batch of link traffic that a gateway counted.
    ActivityId, "act", "activity");
id!(/// A kept state of a workspace.
    SnapshotId, "snap", "snapshot");
id!(/// A gateway.
    GatewayId, "gw", "gateway");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_round_trips_and_refuses_another_kind() {
        let id = WorkspaceId::generate();
        assert_eq!(id.as_str().parse::<WorkspaceId>().as_ref(), Ok(&id));
        assert!(id.as_str().parse::<CommandId>().is_err());
        assert!("ws_".parse::<WorkspaceId>().is_err());
        assert!("ws_zzzzzzzzzzzzzzzzzzzzzzzzzz".parse::<WorkspaceId>().is_err());
    }

    #[test]
    fn later_ids_sort_after_earlier_ones() {
        let ids: Vec<_> = (0..200).map(|_| CommandId::generate()).collect();
        assert!(ids.is_sorted());
    }
}
