//! Who visits: tokens that were verified, with what is counted on their account.
//!
//! Only [`Sessions::verify`] makes a [`VerifiedSession`], and without one nothing can be woken or forwarded. Every
//! refusal is the same to the outside: it does not tell a wrong token from one for another host.

use crate::known::Knowledge;
use envforge_api::{
    dev_host::HostLabel,
    ids::VisitId,
    link::{Family, Holder, Link, Visit},
    sign,
    time::Timestamp,
};
use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};
use tokio_util::sync::CancellationToken;

/// Tokens that are kept as verified; beyond it those nobody uses are verified again.
const KEPT: usize = 20_000;
/// Longest token that is looked at, in octets.
const LONGEST: usize = 4 << 10;
/// Calls and sockets of a page deserve a wake for so long after its last navigation or poke, in milliseconds.
const AFTER_NAVIGATION_MS: i64 = 60_000;
/// All other traffic counts against idleness for so long after what deserves a wake, in milliseconds.
const OTHER_COUNTS_MS: i64 = 3_600_000;

/// Which token it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Shown {
    /// The cookie of a visit.
    Visit,
    /// A link's own token, sent by a program.
    Link,
}

/// What one family carried since it was last reported.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) requests: AtomicU64,
    pub(crate) socket_octets: AtomicU64,
    /// The last moment that counts against idleness, in Unix milliseconds; 0 = none.
    pub(crate) counts_at: AtomicI64,
}

/// A visit that holds, with what is counted on its account.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) visit: Visit,
    /// Ends when the holder may not visit any more.
    pub(crate) cut: CancellationToken,
    pub(crate) tallies: [Tally; 4],
    /// The last navigation, program's call or poke, in Unix milliseconds; 0 = none.
    deserved: AtomicI64,
}

impl Held {
    fn tally(&self, family: Family) -> &Tally {
        let at = match family {
            Family::Web => 0,
            Family::Api => 1,
            Family::Assets => 2,
            Family::Websockets => 3,
        };
        &self.tallies[at]
    }

    /// Notes what deserves a wake by itself.
    pub(crate) fn note_deserving(&self, now: Timestamp) {
        self.deserved.store(now.as_millisecond(), Ordering::Relaxed);
    }

    fn since_deserving(&self, now: Timestamp) -> Option<i64> {
        match self.deserved.load(Ordering::Relaxed) {
            0 => None,
            at => Some(now.as_millisecond() - at),
        }
    }

    /// Whether a page's own calls deserve a wake now.
    pub(crate) fn is_fresh(&self, now: Timestamp) -> bool {
        self.since_deserving(now).is_some_and(|ms| ms <= AFTER_NAVIGATION_MS)
    }

    /// Counts a request that is forwarded.
    pub(crate) fn count_request(&self, family: Family, now: Timestamp) {
        self.tally(family).requests.fetch_add(1, Ordering::Relaxed);
        self.count_traffic(family, now);
    }

    /// Counts octets of a socket.
    pub(crate) fn count_octets(&self, family: Family, octets: u64) {
        self.tally(family).socket_octets.fetch_add(octets, Ordering::Relaxed);
    }

    /// Notes traffic against idleness, as long as it may count.
    pub(crate) fn count_traffic(&self, family: Family, now: Timestamp) {
        if self.since_deserving(now).is_some_and(|ms| ms <= OTHER_COUNTS_MS) {
            self.tally(family).counts_at.store(now.as_millisecond(), Ordering::Relaxed);
        }
    }
}

/// Someone whose token was verified for the dev host that was asked for.
#[derive(Debug, Clone)]
pub(crate) struct VerifiedSession(Arc<Held>);

impl VerifiedSession {
    pub(crate) fn held(&self) -> &Arc<Held> {
        &self.0
    }

    pub(crate) fn visit(&self) -> &Visit {
        &self.0.visit
    }
}

/// Nobody that is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unverified;

/// The verified tokens.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    kept: RwLock<HashMap<(Shown, String), Arc<Held>>>,
    /// No longer kept, but something of them may still have to be reported.
    left: RwLock<Vec<Arc<Held>>>,
}

impl Sessions {
    /// Lets in who shows a token for this host.
    ///
    /// # Errors
    /// Whatever is wrong, nothing is said about it.
    pub(crate) fn verify(
        &self,
        knowledge: &Knowledge,
        shown: Shown,
        token: &str,
        host: &HostLabel,
        now: Timestamp,
    ) -> Result<VerifiedSession, Unverified> {
        if token.len() > LONGEST {
            return Err(Unverified);
        }
        let key = (shown, token.to_owned());
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let held = match kept {
            Some(held) => held,
            None => self.admit(knowledge, key, now)?,
        };
        let visit = &held.visit;
        let holds = visit.host == *host && visit.expires_at > now && !held.cut.is_cancelled();
        if !holds || knowledge.now().revoked.contains_key(&visit.holder) {
            return Err(Unverified);
        }
        Ok(VerifiedSession(held))
    }

    fn admit(&self, knowledge: &Knowledge, key: (Shown, String), now: Timestamp) -> Result<Arc<Held>, Unverified> {
        let keys = Arc::clone(&knowledge.now().keys);
        let visit = match key.0 {
            Shown::Visit => sign::verify::<Visit>(&keys, &key.1, now).map_err(|_| Unverified)?,
            Shown::Link => of_link(sign::verify::<Link>(&keys, &key.1, now).map_err(|_| Unverified)?),
        };
        let cut = knowledge.cut(&visit.holder);
        let held = Arc::new(Held { visit, cut, tallies: Default::default(), deserved: AtomicI64::new(0) });
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            let mut left = self.left.write().unwrap_or_else(PoisonError::into_inner);
            left.extend(kept.drain().map(|(_, held)| held));
        }
        Ok(Arc::clone(kept.entry(key).or_insert(held)))
    }

    /// Verifies these tokens again when they are shown again.
    pub(crate) fn forget(&self, which: impl Fn(&Holder) -> bool) {
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        let mut left = self.left.write().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|_, held| {
            let forgets = which(&held.visit.holder);
            if forgets {
                left.push(Arc::clone(held));
            }
            !forgets
        });
    }

    /// Everyone of whom something may have to be reported; those that have expired are not kept any longer.
    pub(crate) fn all(&self, now: Timestamp) -> Vec<Arc<Held>> {
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        let mut left = self.left.write().unwrap_or_else(PoisonError::into_inner);
        // One that is still open somewhere is counted on.
        left.retain(|held| Arc::strong_count(held) > 1 || held.has_something());
        let mut all: Vec<_> = kept.values().chain(left.iter()).cloned().collect();
        kept.retain(|_, held| held.visit.expires_at > now);
        all.dedup_by(|a, b| Arc::ptr_eq(a, b));
        all
    }
}

impl Held {
    fn has_something(&self) -> bool {
        self.tallies.iter().any(|tally| {
            tally.requests.load(Ordering::Relaxed) > 0
                || tally.socket_octets.load(Ordering::Relaxed) > 0
                || tally.counts_at.load(Ordering::Relaxed) > 0
        })
    }
}

/// A program that sends the link itself visits without a cookie.
fn of_link(link: Link) -> Visit {
    Visit {
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
