//! Who visits: tokens that were verified, with what is counted on their account.
//!
//! Only [`Sessions::verify`] makes a [`VerifiedSession`], and without one nothing can be woken or forwarded. Every
//! refusal is the same to the outside: it does not tell a wrong token from one for another host.

use crate::known::Knowledge;
use envforge_api::{
    dev_host::HostLabel,
    link::{Family, Holder, Link, Visit},
    sign,
    time::Timestamp,
};
use std::{
    collections::{HashMap, HashSet},
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    shown: Shown,
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
    /// By token: none is ever valid as two things.
    kept: RwLock<HashMap<String, Arc<Held>>>,
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
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner).get(token).cloned();
        let held = match kept {
            Some(held) => held,
            None => self.admit(knowledge, shown, token, now)?,
        };
        let visit = &held.visit;
        let holds = visit.host == *host && visit.expires_at > now && !held.cut.is_cancelled();
        if holds && held.shown == shown { Ok(VerifiedSession(held)) } else { Err(Unverified) }
    }

    fn admit(&self, knowledge: &Knowledge, shown: Shown, token: &str, now: Timestamp) -> Result<Arc<Held>, Unverified> {
        let keys = Arc::clone(&knowledge.now().keys);
        let visit = match shown {
            Shown::Visit => sign::verify::<Visit>(&keys, token, now).map_err(|_| Unverified)?,
            Shown::Link => Visit::of_link(sign::verify::<Link>(&keys, token, now).map_err(|_| Unverified)?),
        };
        // What cuts it is registered under the lock that `tidy` takes, so that it is never forgotten in between, and
        // before revocations are looked at: one that is heard from here on cuts it.
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        let cut = knowledge.cut(&visit.holder);
        if knowledge.now().revoked.contains_key(&visit.holder) {
            return Err(Unverified);
        }
        let held = Arc::new(Held { shown, visit, cut, tallies: Default::default(), deserved: AtomicI64::new(0) });
        if kept.len() >= KEPT {
            let mut left = self.left.write().unwrap_or_else(PoisonError::into_inner);
            left.extend(kept.drain().map(|(_, held)| held));
        }
        Ok(Arc::clone(kept.entry(token.to_owned()).or_insert(held)))
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
        let all = kept.values().chain(left.iter()).cloned().collect();
        left.extend(kept.extract_if(|_, held| held.visit.expires_at <= now).map(|(_, held)| held));
        all
    }

    /// Has the knowledge forget holders of whom nothing is kept or open.
    pub(crate) fn tidy(&self, knowledge: &Knowledge) {
        let kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        let left = self.left.read().unwrap_or_else(PoisonError::into_inner);
        let holders: HashSet<&Holder> = kept.values().chain(left.iter()).map(|held| &held.visit.holder).collect();
        knowledge.tidy(|holder| holders.contains(holder));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::known::Knowledge;
    use envforge_api::ids::{LinkId, OrganizationId, VisitId, WorkspaceId};

    fn held(knowledge: &Knowledge, ends_in: i64) -> Arc<Held> {
        let holder = Holder::Link(LinkId::generate());
        let visit = Visit {
            id: VisitId::generate(),
            holder: holder.clone(),
            user: String::new(),
            organization: OrganizationId::generate(),
            workspace: WorkspaceId::generate(),
            service: "web".parse().expect("a service"),
            host: "web--w--o".parse().expect("a label"),
            families: Family::ALL.iter().copied().collect(),
            expires_at: Timestamp::now() + jiff::SignedDuration::from_secs(ends_in),
        };
        let cut = knowledge.cut(&holder);
        Arc::new(Held { shown: Shown::Visit, visit, cut, tallies: Default::default(), deserved: AtomicI64::new(0) })
    }

    fn keep(sessions: &Sessions, held: &Arc<Held>) {
        let token = held.visit.id.to_string();
        sessions.kept.write().expect("sound").insert(token, Arc::clone(held));
    }

    #[test]
    fn what_was_counted_is_told_although_the_visit_has_ended_and_is_then_forgotten() {
        let (knowledge, sessions, now) = (Knowledge::new(), Sessions::default(), Timestamp::now());
        let ended = held(&knowledge, -1);
        keep(&sessions, &ended);
        ended.note_deserving(now);
        ended.count_request(Family::Web, now);
        let holder = ended.visit.holder.clone();
        drop(ended);
        for told in [true, true] {
            assert_eq!(sessions.all(now).len() == 1, told, "until its counts are taken");
        }
        for held in sessions.all(now) {
            held.tallies.iter().for_each(|tally| {
                tally.requests.store(0, Ordering::Relaxed);
                tally.counts_at.store(0, Ordering::Relaxed);
            });
        }
        assert!(sessions.all(now).is_empty());
        let before = knowledge.cut(&holder);
        sessions.tidy(&knowledge);
        before.cancel();
        assert!(!knowledge.cut(&holder).is_cancelled(), "a new one: the old one was forgotten");
    }

    #[test]
    fn what_is_open_can_be_cut_however_often_the_rest_is_tidied() {
        let (knowledge, sessions, now) = (Knowledge::new(), Sessions::default(), Timestamp::now());
        let open = held(&knowledge, 60);
        keep(&sessions, &open);
        sessions.forget(|_| true);
        let _ = sessions.all(now);
        sessions.tidy(&knowledge);
        knowledge.cut(&open.visit.holder).cancel();
        assert!(open.cut.is_cancelled(), "still the same one");
    }

    #[test]
    fn other_traffic_counts_for_an_hour_after_what_deserves_a_wake() {
        let knowledge = Knowledge::new();
        let (held, now) = (held(&knowledge, 60), Timestamp::now());
        let later = |seconds| now + jiff::SignedDuration::from_secs(seconds);
        let counted = |at: Timestamp| {
            held.count_traffic(Family::Websockets, at);
            held.tally(Family::Websockets).counts_at.load(Ordering::Relaxed) == at.as_millisecond()
        };
        assert!(!counted(now) && !held.is_fresh(now), "nothing deserved it yet");
        held.note_deserving(now);
        assert!(held.is_fresh(later(60)) && !held.is_fresh(later(61)));
        assert!(counted(later(3600)) && !counted(later(3601)));
    }
}
