//! Capabilities: signed statements that open a stream on a host for an hour.
//!
//! The control plane signs (Ed25519, PASETO v4.public), the host verifies with public keys it got by sync. A
//! capability names one host, one workspace, one principal and the rights; nothing else can be reached with it.

use crate::{
    ids::{AttachId, HostId, PrincipalId, WorkspaceId},
    names::ServiceName,
    sign::{self, Statement},
    states::words,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

pub use crate::sign::{Refused, SigningKey, VerifyKey};

words!(
    /// What the holder of a capability may do on its workspace.
    Right, "right" {
        /// Attach to the terminal.
        Attach = "attach",
        /// Run a shell-layer command.
        Exec = "exec",
        /// Follow the output of a `run`.
        Run = "run",
        /// Read logs.
        Logs = "logs",
        /// Read the inbox.
        Mail = "mail",
        /// List, read, write and remove objects of its storage.
        Storage = "storage",
        /// See the masked environment of a service.
        Env = "env",
        /// See it unmasked. Issuing this right is audited.
        Reveal = "reveal",
        /// Carry connections of one's own machine to a port of a service or a data service.
        Forward = "forward",
        /// Connect to a declared port of a service. For gateways alone.
        Dial = "dial",
    }
);

/// What a capability says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Capability {
    /// The only host that accepts it.
    pub host: HostId,
    /// The only workspace it opens.
    pub workspace: WorkspaceId,
    /// Who holds it.
    pub principal: PrincipalId,
    /// The name shown for the holder.
    pub principal_name: String,
    /// Names this grant, so that it can be revoked.
    pub session: AttachId,
    /// What it allows.
    pub rights: BTreeSet<Right>,
    /// The service a [`Right::Reveal`] is limited to.
    #[serde(default)]
    pub service: Option<ServiceName>,
    /// Not valid from here on.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
}

/// Lifetime of a capability, in seconds.
pub const LIFETIME_SECONDS: i64 = 3600;

impl Statement for Capability {
    const KIND: &'static [u8] = b"envforge capability v1";

    fn expires_at(&self) -> Timestamp {
        self.expires_at
    }
}

/// Verifies signature and expiry; the caller then asks [`Capability::allows`].
///
/// # Errors
/// [`Refused::Signature`] or [`Refused::Expired`].
pub fn verify(keys: &[VerifyKey], token: &str, now: Timestamp) -> Result<Capability, Refused> {
    sign::verify(keys, token, now)
}

impl Capability {
    /// Whether it opens `right` on `workspace` at `host`.
    ///
    /// # Errors
    /// [`Refused::Scope`].
    pub fn allows(&self, host: &HostId, workspace: &WorkspaceId, right: Right) -> Result<(), Refused> {
        if &self.host == host && &self.workspace == workspace && self.rights.contains(&right) {
            Ok(())
        } else {
            Err(Refused::Scope)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Capability {
        Capability {
            host: HostId::generate(),
            workspace: WorkspaceId::generate(),
            principal: PrincipalId::generate(),
            principal_name: "ada".into(),
            session: AttachId::generate(),
            rights: BTreeSet::from([Right::Attach, Right::Logs]),
            service: None,
            expires_at: "2030-01-01T00:00:00Z".parse().expect("a time"),
        }
    }

    #[test]
    fn a_capability_opens_only_what_it_names() {
        let key = SigningKey::from_bytes(&SigningKey::generate().expect("key").to_bytes()).expect("key");
        let cap = sample();
        let token = key.sign(&cap).expect("token");
        let keys = [key.verify_key()];
        let now = "2029-12-31T23:59:59Z".parse().expect("a time");
        let read = verify(&keys, &token, now).expect("valid");
        assert_eq!(read, cap);
        assert_eq!(read.allows(&cap.host, &cap.workspace, Right::Attach), Ok(()));
        assert_eq!(read.allows(&cap.host, &cap.workspace, Right::Exec), Err(Refused::Scope));
        assert_eq!(read.allows(&HostId::generate(), &cap.workspace, Right::Attach), Err(Refused::Scope));
        assert_eq!(read.allows(&cap.host, &WorkspaceId::generate(), Right::Attach), Err(Refused::Scope));
        assert_eq!(verify(&keys, &token, cap.expires_at), Err(Refused::Expired));
        let other = SigningKey::generate().expect("key");
        assert_eq!(verify(&[other.verify_key()], &token, now), Err(Refused::Signature));
    }

    #[test]
    fn no_single_changed_character_is_accepted() {
        let key = SigningKey::generate().expect("key");
        let token = key.sign(&sample()).expect("token");
        let keys = [key.verify_key()];
        let now = "2029-01-01T00:00:00Z".parse().expect("a time");
        for at in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let mutated = String::from_utf8(bytes).expect("ascii");
            assert!(verify(&keys, &mutated, now).is_err(), "position {at}");
        }
    }
}
