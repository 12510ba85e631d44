//! S3 storage: one server for the host, a bucket with keys of its own for each workspace.
//!
//! Unlike the other servers it does not live in a workspace. A keeper runs it where only the keeper can reach it
//! ([`keeper`]); a runtime's supervisor listens on the workspace's `localhost:9000` and carries what is said there to the
//! server's S3 port, and to no other of its many ports. Whoever has no keys of a bucket gets nothing of it:
//!
//! * [`keys`]: which bucket and keys a workspace has;
//! * [`place`]: where it all is, which server the host has;
//! * [`s3`], [`users`], [`objects`]: what is asked of the server.

pub mod keeper;
pub mod keys;
pub mod objects;
pub mod place;
pub mod s3;
mod sealed;
pub mod users;

use super::{Context, Driver, Quiet, Watch, rest::Look};
use envforge_api::{receipt::Holds, resource::ResourceKind, states::Trouble};
use futures_util::future::LocalBoxFuture;
pub use keys::{Bucket, Keyring, Keys};
use nix::unistd::Pid;
pub use place::{External, Kind, Place};
use s3::{Client, Failed};
use sha2::{Digest, Sha256};
use std::{
    path::{Path, PathBuf},
    time::Instant,
};

/// The driver.
#[derive(Debug)]
pub struct Storage;

/// The server as root knows it, for whoever changes something about buckets. It runs for as long as this lives.
#[derive(Debug)]
pub struct Root {
    /// Asks as root.
    pub client: Client,
    /// Which server it is.
    pub kind: Kind,
    _need: keeper::Need,
}

impl Root {
    /// Reaches the server, which is started if it sleeps. The keeper must be there or about to be: [`keeper::ensure`].
    ///
    /// # Errors
    /// When it cannot be had, with how to get it.
    pub async fn reach(place: &Place) -> Result<Self, Trouble> {
        let need = keeper::Need::ready(place).await?;
        let root = place.root().map_err(|e| Trouble::new(e.to_string(), e.hint))?;
        let client = Client::by_keeper(place, root);
        let kind = users::kind(&client).await.map_err(trouble)?;
        Ok(Self { client, kind, _need: need })
    }
}

/// A failure in words for people.
#[must_use]
pub fn trouble(error: Failed) -> Trouble {
    Trouble::new(error.to_string(), "its log is storage/server.log in the home of the installation")
}

fn buckets(context: &Context) -> impl Iterator<Item = Bucket> {
    context.shares.iter().filter_map(|share| Bucket::of_fields(&share.fields))
}

impl Driver for Storage {
    fn name(&self) -> &'static str {
        "storage"
    }

    fn program(&self, home: &Path) -> Result<PathBuf, Trouble> {
        let place = Place::new(home, home);
        if place.external().is_some() { Ok(PathBuf::new()) } else { place.server().map(|(_, program)| program) }
    }

    fn ensure<'a>(&'a self, _context: &'a Context) -> LocalBoxFuture<'a, Result<(), Trouble>> {
        Box::pin(async { super::is_free(ResourceKind::Storage.port()) })
    }

    fn arguments(&self, _context: &Context) -> Vec<String> {
        vec![]
    }

    fn relayed(&self, context: &Context) -> Option<Place> {
        Some(Place::of(&context.sandbox))
    }

    fn answers<'a>(&'a self, context: &'a Context) -> LocalBoxFuture<'a, bool> {
        Box::pin(async {
            // As a service would: through the workspace's own port.
            for bucket in buckets(context) {
                let client = Client::at(format!("localhost:{}", ResourceKind::Storage.port()), bucket.keys.clone());
                if !users::answers(&client, &bucket).await {
                    return false;
                }
            }
            true
        })
    }

    fn prepare<'a>(&'a self, context: &'a Context) -> LocalBoxFuture<'a, Result<(), Trouble>> {
        Box::pin(async {
            let root = Root::reach(&Place::of(&context.sandbox)).await?;
            for bucket in buckets(context) {
                users::ensure(&root.client, root.kind, &bucket).await.map_err(trouble)?;
                users::readable(&root.client, &bucket).await;
            }
            Ok(())
        })
    }

    fn wipe<'a>(&'a self, context: &'a Context, _kind: ResourceKind) -> LocalBoxFuture<'a, Result<(), Trouble>> {
        Box::pin(async {
            let root = Root::reach(&Place::of(&context.sandbox)).await?;
            for bucket in buckets(context) {
                objects::clear(&root.client, &bucket.name).await.map_err(trouble)?;
                users::settled(&root.client, &bucket).await;
            }
            Ok(())
        })
    }

    fn stop<'a>(&'a self, _context: &'a Context, _pid: Pid) -> LocalBoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }

    fn count<'a>(&'a self, context: &'a Context, quiet: Quiet<'a>) -> LocalBoxFuture<'a, Option<Holds>> {
        Box::pin(async move {
            let until = quiet.await;
            let place = Place::of(&context.sandbox);
            let listed = async {
                let mut all = Vec::new();
                for bucket in buckets(context) {
                    let client = Client::by_keeper(&place, bucket.keys.clone());
                    match objects::list(&client, &bucket.name).await {
                        Ok(objects) => all.extend(objects),
                        // One that is gone holds nothing.
                        Err(error) if error.is(hyper::StatusCode::NOT_FOUND) => {}
                        Err(_) => return None,
                    }
                }
                Some(all)
            };
            let listed = tokio::time::timeout_at(until.into(), listed).await.unwrap_or_default();
            let Some(all) = listed else {
                return Some(Holds::Objects { objects: None, octets: None, digest: None });
            };
            let mut digest = Sha256::new();
            for objects::Object { key, size, digest: tag } in &all {
                digest.update(format!("{key}\0{size}\0{tag}\n"));
            }
            Some(Holds::Objects {
                objects: Some(all.len() as u64),
                octets: Some(all.iter().map(|object| object.size).sum()),
                digest: Some(data_encoding::HEXLOWER.encode(&digest.finalize())),
            })
        })
    }

    /// It lies with all others in the host's server.
    fn at_rest(&self, _context: &Context, _until: Instant) -> Look {
        Look::Unknown
    }

    fn watch(&self, _context: &Context) -> Option<Box<dyn Watch>> {
        None
    }
}
