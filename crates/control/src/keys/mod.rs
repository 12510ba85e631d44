//! Signing keys: links, visits and capabilities are signed by the newest, and verified by all that have not ended.
//!
//! A new key is told to hosts and gateways first and signs a minute later, so that nobody meets a statement of a key
//! that he does not know. The one before it ends when everything that it may have signed has expired. Private halves
//! are sealed under the master key of the state directory; where that is another one, they only verify any more.

pub(crate) mod http;
mod store;

use crate::{
    app::App,
    audit,
    config::Sealing,
    db, hosts,
    http::errors::{Failure, unreadable},
};
use envforge_api::{
    ids::OrganizationId,
    link::MAX_LIFETIME_SECONDS,
    problem::Problem,
    public::KeyRotated,
    secret::Secret,
    sign::{SigningKey, Statement, VerifyKey},
    time::Timestamp,
};
use jiff::SignedDuration;
use sqlx::PgPool;
use std::sync::{Arc, PoisonError, RwLock};

/// From being told to everyone until it signs: as long as a gateway that hears nothing serves at all.
const NOTICE: SignedDuration = SignedDuration::from_secs(envforge_api::gateway::CUT_OFF_SECONDS.cast_signed());

/// A key as it is stored.
#[derive(Debug)]
struct Stored {
    public: VerifyKey,
    sealed: String,
    signs_from: Timestamp,
    ends_at: Option<Timestamp>,
}

/// A key as it is used.
#[derive(Debug)]
struct Key {
    stored: Stored,
    signing: Option<SigningKey>,
}

/// The keys of this replica.
#[derive(Debug)]
pub(crate) struct Keys {
    sealing: Sealing,
    /// The newest first.
    ring: RwLock<Arc<Vec<Key>>>,
}

impl Keys {
    /// Reads the keys; where none can be signed with, `first` becomes one.
    pub(crate) async fn open(pool: &PgPool, sealing: Sealing, first: SigningKey) -> Result<Self, Failure> {
        let keys = Self { sealing, ring: RwLock::default() };
        keys.reload(pool).await?;
        if keys.all().iter().all(|key| key.signing.is_none()) {
            let sealed = keys.sealing.seal(&first)?;
            let stored = Stored { public: first.verify_key(), sealed, signs_from: Timestamp::now(), ends_at: None };
            db::write(pool, move |tx| Box::pin(async move { store::insert(tx, &stored).await })).await?;
            keys.reload(pool).await?;
        }
        Ok(keys)
    }

    fn all(&self) -> Arc<Vec<Key>> {
        Arc::clone(&self.ring.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads them again: another replica may have rotated.
    pub(crate) async fn reload(&self, pool: &PgPool) -> Result<(), Failure> {
        let stored = store::all(pool).await?;
        let key = |stored: Stored| Key { signing: self.sealing.unseal(&stored.sealed), stored };
        let ring = Arc::new(stored.into_iter().map(key).collect());
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = ring;
        Ok(())
    }

    /// Those that verify now.
    pub(crate) fn verify_keys(&self) -> Vec<VerifyKey> {
        let now = Timestamp::now();
        let all = self.all();
        all.iter()
            .filter(|key| key.stored.ends_at.is_none_or(|end| end > now))
            .map(|k| k.stored.public.clone())
            .collect()
    }

    /// Signs with the newest that has begun.
    ///
    /// # Errors
    /// Only when there is no sound key.
    pub(crate) fn sign<S: Statement>(&self, statement: &S) -> Result<Secret, Failure> {
        let now = Timestamp::now();
        let all = self.all();
        let begun = all.iter().filter(|key| key.stored.signs_from <= now);
        let key = begun.filter_map(|key| key.signing.as_ref()).next();
        let key = key.or_else(|| all.iter().find_map(|key| key.signing.as_ref()));
        let key = key.ok_or_else(|| Problem::internal("no signing key can be opened with master.key"))?;
        let signed = key.sign(statement).map_err(|_| Problem::internal("a statement could not be signed"))?;
        Ok(Secret::new(signed))
    }
}

/// Makes a new key, tells everyone who verifies, and sets the end of those before it.
pub(crate) async fn rotate(app: &App, organization: &OrganizationId, by: String) -> Result<KeyRotated, Failure> {
    let key = SigningKey::generate().map_err(|_| Problem::internal("no randomness for a signing key"))?;
    let signs_from = Timestamp::now() + NOTICE;
    let others_end_at = signs_from + SignedDuration::from_secs(MAX_LIFETIME_SECONDS);
    let sealed = app.keys.sealing.seal(&key)?;
    let stored = Stored { public: key.verify_key(), sealed, signs_from, ends_at: None };
    let (id, organization) = (stored.public.id.clone(), organization.clone());
    let hosts = db::write(&app.pool, move |tx| {
        Box::pin(async move {
            store::end_others(&mut *tx, others_end_at).await?;
            store::insert(&mut *tx, &stored).await?;
            let (target, details) = (stored.public.id.as_str(), [("signs_from", signs_from.to_string())]);
            audit::store::add(&mut *tx, &organization, &by, "keys.rotate", target, &details).await?;
            hosts::store::tell_all(tx).await
        })
    })
    .await?;
    app.keys.reload(&app.pool).await?;
    app.bells.ring_feed();
    for host in &hosts {
        app.bells.ring_host(host);
    }
    Ok(KeyRotated { id, signs_from, others_end_at, keys: app.keys.verify_keys() })
}

fn verify_key(id: String, key: String) -> Result<VerifyKey, Failure> {
    if id.is_empty() { Err(unreadable("key id")) } else { Ok(VerifyKey { id, key }) }
}
