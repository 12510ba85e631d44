//! Capabilities: signed statements that open a stream on a host for an hour.
//!
//! The control plane signs (Ed25519, PASETO v4.public), the host verifies with public keys it got by sync. A
//! capability names one host, one workspace, one principal and the rights; nothing else can be reached with it.

use crate::{
    ids::{AttachId, HostId, PrincipalId, WorkspaceId},
    names::ServiceName,
    states::words,
    time::Timestamp,
};
use pasetors::{
    keys::{AsymmetricKeyPair, AsymmetricPublicKey, AsymmetricSecretKey, Generate},
    token::UntrustedToken,
    version4::{PublicToken, V4},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fmt};

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
        /// See the masked environment of a service.
        Env = "env",
        /// See it unmasked. Issuing this right is audited.
        Reveal = "reveal",
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

/// A public key with its id, as hosts and gateways get it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct VerifyKey {
    /// Key id: the first 16 hex digits of the SHA-256 of the key.
    pub id: String,
    /// 32 bytes, base64url without padding.
    pub key: String,
}

/// Why a capability was refused. Says nothing about what exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not signed by a known key, or not a capability at all.
    #[error("the capability is not signed by this installation")]
    Signature,
    /// Past its expiry.
    #[error("the capability has expired")]
    Expired,
    /// For another host, workspace or right.
    #[error("the capability is not for this")]
    Scope,
}

/// The private half, held by the control plane only.
pub struct SigningKey {
    id: String,
    pair: AsymmetricKeyPair<V4>,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.id)
    }
}

fn key_id(public: &[u8]) -> String {
    use sha2::Digest;
    data_encoding::HEXLOWER.encode(&sha2::Sha256::digest(public)[..8])
}

/// The implicit assertion that keeps this kind of token apart from links and sessions.
const KIND: &[u8] = b"envforge capability v1";

impl SigningKey {
    /// A new key pair.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn generate() -> Result<Self, pasetors::errors::Error> {
        let pair = AsymmetricKeyPair::<V4>::generate()?;
        Ok(Self { id: key_id(pair.public.as_bytes()), pair })
    }

    /// The 64 secret bytes, to be sealed by the caller.
    #[must_use]
    pub fn to_bytes(&self) -> zeroize::Zeroizing<Vec<u8>> {
        zeroize::Zeroizing::new(self.pair.secret.as_bytes().to_vec())
    }

    /// Reads what [`SigningKey::to_bytes`] gave.
    ///
    /// # Errors
    /// When the bytes are no key.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, pasetors::errors::Error> {
        let secret = AsymmetricSecretKey::<V4>::from(bytes)?;
        let public = AsymmetricPublicKey::<V4>::try_from(&secret)?;
        Ok(Self { id: key_id(public.as_bytes()), pair: AsymmetricKeyPair { public, secret } })
    }

    /// The public half.
    #[must_use]
    pub fn verify_key(&self) -> VerifyKey {
        VerifyKey { id: self.id.clone(), key: data_encoding::BASE64URL_NOPAD.encode(self.pair.public.as_bytes()) }
    }

    /// Signs a capability.
    ///
    /// # Errors
    /// When signing fails, which only a broken key does.
    pub fn sign(&self, capability: &Capability) -> Result<String, pasetors::errors::Error> {
        let payload = serde_json::to_vec(capability).map_err(|_| pasetors::errors::Error::ClaimInvalidJson)?;
        PublicToken::sign(&self.pair.secret, &payload, Some(self.id.as_bytes()), Some(KIND))
    }
}

/// Verifies signature and expiry; the caller then asks [`Capability::allows`].
///
/// # Errors
/// [`Refused::Signature`] or [`Refused::Expired`].
pub fn verify(keys: &[VerifyKey], token: &str, now: Timestamp) -> Result<Capability, Refused> {
    let token = UntrustedToken::<pasetors::Public, V4>::try_from(token).map_err(|_| Refused::Signature)?;
    let id = token.untrusted_footer();
    let key = keys.iter().find(|key| key.id.as_bytes() == id).ok_or(Refused::Signature)?;
    let bytes = data_encoding::BASE64URL_NOPAD.decode(key.key.as_bytes()).map_err(|_| Refused::Signature)?;
    let public = AsymmetricPublicKey::<V4>::from(&bytes).map_err(|_| Refused::Signature)?;
    let trusted = PublicToken::verify(&public, &token, Some(id), Some(KIND)).map_err(|_| Refused::Signature)?;
    let capability: Capability = serde_json::from_str(trusted.payload()).map_err(|_| Refused::Signature)?;
    if capability.expires_at <= now { Err(Refused::Expired) } else { Ok(capability) }
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
