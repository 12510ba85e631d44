//! What every request handler and task shares: the pool, the signing key, the names of this installation, and the
//! in-process bells that parked requests listen to.

use crate::{dev_hosts::base::Base, hosts::bells::Bells, keys::Keys, secrets::sealing::Ring};
use sqlx::PgPool;
use std::{ops::Deref, sync::Arc};
use tokio_util::sync::CancellationToken;

/// Shared state; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct App(Arc<Shared>);

/// The fields behind [`App`].
#[derive(Debug)]
pub(crate) struct Shared {
    /// Connections.
    pub(crate) pool: PgPool,
    /// Sign links, visits and capabilities.
    pub(crate) keys: Keys,
    /// Seal the organization's secrets.
    pub(crate) secrets: Ring,
    /// Base of public host names.
    pub(crate) base: Base,
    /// Rung when intents of a host or what a workspace shows change.
    pub(crate) bells: Bells,
    /// When this replica began to serve.
    pub(crate) started: tokio::time::Instant,
    /// Cancelled when the server stops: parked requests answer at once.
    pub(crate) stopping: CancellationToken,
}

impl App {
    pub(crate) fn new(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }
}

impl Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}
