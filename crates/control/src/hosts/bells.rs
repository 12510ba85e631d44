//! In-process wake-ups: one counter per host (its intents changed), one per workspace (what is
//! shown changed) and one for gateways (anything of that, a revocation, other keys).
//!
//! A listener subscribes first and reads the database after, so that nothing that changes in between is missed. A
//! bell only says "look"; the database says what is so.

use envforge_api::ids::{CommandId, HostId, WorkspaceId};
use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
};
use tokio::sync::watch;

/// All bells of this replica.
#[derive(Debug, Default)]
pub(crate) struct Bells {
    hosts: Tower<HostId>,
    workspaces: Tower<WorkspaceId>,
    leases: Tower<CommandId>,
    feed: watch::Sender<Rung>,
}

/// How often the feed's bell was rung.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rung {
    all: u64,
    /// Times at which gateways have to hear at once.
    pub(crate) urgently: u64,
}

#[derive(Debug)]
struct Tower<K>(Mutex<HashMap<K, watch::Sender<u64>>>);

impl<K> Default for Tower<K> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

impl<K: Clone + Eq + Hash> Tower<K> {
    fn listen(&self, key: &K) -> watch::Receiver<u64> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, bell| bell.receiver_count() > 0);
        all.entry(key.clone()).or_default().subscribe()
    }

    fn ring(&self, key: &K) {
        if let Some(bell) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key) {
            bell.send_modify(|count| *count += 1);
        }
    }

    fn ring_all(&self) {
        for bell in self.0.lock().unwrap_or_else(PoisonError::into_inner).values() {
            bell.send_modify(|count| *count += 1);
        }
    }
}

impl Bells {
    /// Hears of changed intents and leases for a host.
    pub(crate) fn host(&self, id: &HostId) -> watch::Receiver<u64> {
        self.hosts.listen(id)
    }

    /// Hears of changes in what a workspace shows.
    pub(crate) fn workspace(&self, id: &WorkspaceId) -> watch::Receiver<u64> {
        self.workspaces.listen(id)
    }

    /// Hears of the answer to a leased act.
    pub(crate) fn lease(&self, id: &CommandId) -> watch::Receiver<u64> {
        self.leases.listen(id)
    }

    /// A leased act was answered.
    pub(crate) fn ring_lease(&self, id: &CommandId) {
        self.leases.ring(id);
    }

    /// Intents or leases of the host changed.
    pub(crate) fn ring_host(&self, id: &HostId) {
        self.hosts.ring(id);
    }

    /// Hears of everything that gateways are told.
    pub(crate) fn feed(&self) -> watch::Receiver<Rung> {
        self.feed.subscribe()
    }

    /// A link was revoked, or keys changed.
    pub(crate) fn ring_feed(&self) {
        self.feed.send_modify(|rung| *rung = Rung { all: rung.all + 1, urgently: rung.urgently + 1 });
    }

    /// Gateways have something to hear that can wait a moment.
    pub(crate) fn ring_feed_soon(&self) {
        self.feed.send_modify(|rung| rung.all += 1);
    }

    /// What the workspace shows changed.
    pub(crate) fn ring_workspace(&self, id: &WorkspaceId) {
        self.workspaces.ring(id);
        self.ring_feed_soon();
    }

    /// Something may have been missed: everyone looks.
    pub(crate) fn ring_everyone(&self) {
        self.hosts.ring_all();
        self.workspaces.ring_all();
        self.leases.ring_all();
        self.ring_feed();
    }
}
