//! Signed statements: Ed25519, PASETO v4.public, with the key's id in the footer.
//!
//! The control plane signs; hosts and gateways verify with public keys alone. A [`Kind`] is the token's implicit
//! assertion, so that a statement of one kind is never taken for one of another. Several keys may be in use at once:
//! the newest signs, all that have not ended verify.

use crate::time::Timestamp;
use pasetors::{
    keys::{AsymmetricKeyPair, AsymmetricPublicKey, AsymmetricSecretKey, Generate},
    token::UntrustedToken,
    version4::{PublicToken, V4},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::fmt;

/// What is signed.
pub trait Statement: Serialize + DeserializeOwned {
    /// Keeps this kind apart from the others.
    const KIND: &'static [u8];

    /// Not valid from here on.
    fn expires_at(&self) -> Timestamp;
}

/// A public key with its id, as hosts and gateways get it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct VerifyKey {
    /// Key id: the first 16 hex digits of the SHA-256 of the key.
    pub id: String,
    /// 32 bytes, base64url without padding.
    pub key: String,
}

/// Why a statement was refused. Says nothing about what exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not signed by a known key, or not a statement of this kind at all.
    #[error("it is not signed by this installation")]
    Signature,
    /// Past its expiry.
    #[error("it has expired")]
    Expired,
    /// For something else.
    #[error("it is not for this")]
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

    /// Signs a statement.
    ///
    /// # Errors
    /// When signing fails, which only a broken key does.
    pub fn sign<S: Statement>(&self, statement: &S) -> Result<String, pasetors::errors::Error> {
        let payload = serde_json::to_vec(statement).map_err(|_| pasetors::errors::Error::ClaimInvalidJson)?;
        PublicToken::sign(&self.pair.secret, &payload, Some(self.id.as_bytes()), Some(S::KIND))
    }
}

/// Verifies signature, kind and expiry; what the statement allows is then the caller's question.
///
/// # Errors
/// [`Refused::Signature`] or [`Refused::Expired`].
pub fn verify<S: Statement>(keys: &[VerifyKey], token: &str, now: Timestamp) -> Result<S, Refused> {
    let token = UntrustedToken::<pasetors::Public, V4>::try_from(token).map_err(|_| Refused::Signature)?;
    let id = token.untrusted_footer();
    let key = keys.iter().find(|key| key.id.as_bytes() == id).ok_or(Refused::Signature)?;
    let bytes = data_encoding::BASE64URL_NOPAD.decode(key.key.as_bytes()).map_err(|_| Refused::Signature)?;
    let public = AsymmetricPublicKey::<V4>::from(&bytes).map_err(|_| Refused::Signature)?;
    let trusted = PublicToken::verify(&public, &token, Some(id), Some(S::KIND)).map_err(|_| Refused::Signature)?;
    let statement: S = serde_json::from_str(trusted.payload()).map_err(|_| Refused::Signature)?;
    if statement.expires_at() <= now { Err(Refused::Expired) } else { Ok(statement) }
}
