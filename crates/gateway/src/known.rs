//! What the gateway knows from the control plane's feed: keys, revocations, how workspaces stand.
//!
//! Rules kept here: a revocation cuts what is open at the moment it is heard; a gateway that hears nothing for
//! [`CUT_OFF_SECONDS`] knows nothing any more, and whatever is open then is cut too.

use crate::{control::Control, sessions::Sessions};
use envforge_api::{
    gateway::{CUT_OFF_SECONDS, Feed, MAX_PARK_MS, Standing},
    ids::WorkspaceId,
    link::Holder,
    sign::VerifyKey,
    time::Timestamp,
};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Pause before the feed is asked for again after a failure, and the longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];

/// What the feed said.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// `dev.localhost:8080`.
    pub(crate) base: String,
    /// `http` or `https`.
    pub(crate) scheme: String,
    pub(crate) keys: Arc<Vec<VerifyKey>>,
    pub(crate) revoked: HashMap<Holder, Timestamp>,
    pub(crate) standings: HashMap<WorkspaceId, Arc<Standing>>,
}

impl Known {
    /// Whether there is TLS for visitors, whoever ends it.
    pub(crate) fn is_secure(&self) -> bool {
        self.scheme == "https"
    }

    fn learn(&mut self, feed: &Feed) {
        self.base.clone_from(&feed.base);
        self.scheme.clone_from(&feed.scheme);
        if *self.keys != feed.keys {
            self.keys = Arc::new(feed.keys.clone());
        }
        if feed.whole {
            self.standings.clear();
            self.revoked.clear();
        }
        let now = Timestamp::now();
        self.revoked.retain(|_, until| *until > now);
        self.revoked.extend(feed.revoked.iter().map(|revoked| (revoked.holder.clone(), revoked.until)));
        for standing in &feed.workspaces {
            if standing.present {
                self.standings.insert(standing.workspace.clone(), Arc::new(standing.clone()));
            } else {
                self.standings.remove(&standing.workspace);
            }
        }
    }
}

/// The knowledge, with what ends when it changes.
#[derive(Debug)]
pub(crate) struct Knowledge {
    known: watch::Sender<Known>,
    /// Ends what is open on someone's account.
    cuts: Mutex<HashMap<Holder, CancellationToken>>,
    begun: Instant,
    /// Milliseconds after `begun`; 0 = nothing was ever heard.
    heard: AtomicU64,
}

impl Knowledge {
    pub(crate) fn new() -> Self {
        Self {
            known: watch::Sender::new(Known::default()),
            cuts: Mutex::default(),
            begun: Instant::now(),
            heard: AtomicU64::new(0),
        }
    }

    /// What is known, for a moment.
    pub(crate) fn now(&self) -> watch::Ref<'_, Known> {
        self.known.borrow()
    }

    /// To wait for changes.
    pub(crate) fn changes(&self) -> watch::Receiver<Known> {
        self.known.subscribe()
    }

    /// Whether what is known is new enough to act on.
    pub(crate) fn is_current(&self) -> bool {
        let heard = self.heard.load(Ordering::Relaxed);
        heard != 0 && self.since_begun().saturating_sub(heard) < CUT_OFF_SECONDS * 1000
    }

    /// How a workspace stands.
    pub(crate) fn standing(&self, workspace: &WorkspaceId) -> Option<Arc<Standing>> {
        self.known.borrow().standings.get(workspace).cloned()
    }

    /// What ends when the holder may not visit any more.
    pub(crate) fn cut(&self, holder: &Holder) -> CancellationToken {
        self.cuts().entry(holder.clone()).or_default().clone()
    }

    fn cuts(&self) -> std::sync::MutexGuard<'_, HashMap<Holder, CancellationToken>> {
        self.cuts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn since_begun(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }

    fn learn(&self, feed: &Feed, sessions: &Sessions) {
        let news = feed.whole || !feed.workspaces.is_empty() || !feed.revoked.is_empty();
        let mut new_keys = false;
        self.known.send_if_modified(|known| {
            new_keys = *known.keys != feed.keys;
            known.learn(feed);
            news || new_keys
        });
        self.heard.store(self.since_begun(), Ordering::Relaxed);
        if new_keys {
            // What an ended key signed is to be verified again.
            sessions.forget(|_| true);
        }
        if !feed.revoked.is_empty() {
            let gone = |holder: &Holder| feed.revoked.iter().any(|revoked| revoked.holder == *holder);
            sessions.forget(gone);
            self.cuts().retain(|holder, cut| {
                let cuts = gone(holder);
                if cuts {
                    cut.cancel();
                }
                !cuts
            });
        }
    }

    /// Forgets holders of whom nothing is open: only this map still has their token.
    pub(crate) fn tidy(&self, in_use: impl Fn(&Holder) -> bool) {
        self.cuts().retain(|holder, _| in_use(holder));
    }

    fn cut_all(&self) {
        for (_, cut) in self.cuts().drain() {
            cut.cancel();
        }
    }

    /// Follows the feed until `stop`; `heard` is told of the first answer.
    pub(crate) async fn follow(
        &self,
        control: &Control,
        sessions: &Sessions,
        stop: &CancellationToken,
        heard: impl FnOnce(&Known),
    ) {
        let mut since = 0;
        let mut pause = PAUSES[0];
        let mut heard = Some(heard);
        let mut silent_since = Instant::now();
        loop {
            let answer = tokio::select! {
                () = stop.cancelled() => return,
                answer = control.feed(since, MAX_PARK_MS) => answer,
                // Cut off: a request that hangs says nothing about when it will be answered.
                () = tokio::time::sleep_until((silent_since + Duration::from_secs(CUT_OFF_SECONDS)).into()) => {
                    tracing::error!("nothing was heard of the control plane for {CUT_OFF_SECONDS} seconds");
                    self.cut_all();
                    sessions.forget(|_| true);
                    silent_since = Instant::now();
                    continue;
                }
            };
            match answer {
                Ok(feed) => {
                    since = feed.seq;
                    pause = PAUSES[0];
                    silent_since = Instant::now();
                    self.learn(&feed, sessions);
                    if let Some(heard) = heard.take() {
                        heard(&self.now());
                    }
                }
                Err(problem) => {
                    tracing::warn!(kind = %problem.kind, "the feed is not answered");
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(pause) => {}
                    }
                    pause = (pause * 2).min(PAUSES[1]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use envforge_api::{gateway::Revoked, ids::LinkId};

    fn feed(revoked: Vec<Revoked>) -> Feed {
        Feed {
            seq: 1,
            whole: false,
            base: "dev.localhost".into(),
            scheme: "http".into(),
            keys: vec![],
            revoked,
            workspaces: vec![],
        }
    }

    #[test]
    fn a_revocation_cuts_what_is_open_on_its_account_and_nothing_else() {
        let (knowledge, sessions) = (Knowledge::new(), Sessions::default());
        assert!(!knowledge.is_current(), "nothing was heard yet");
        let (one, two) = (Holder::Link(LinkId::generate()), Holder::Link(LinkId::generate()));
        let (first, second) = (knowledge.cut(&one), knowledge.cut(&two));
        let until = Timestamp::now() + jiff::SignedDuration::from_secs(60);
        knowledge.learn(&feed(vec![Revoked { holder: one.clone(), until }]), &sessions);
        assert!(first.is_cancelled() && !second.is_cancelled());
        assert!(knowledge.now().revoked.contains_key(&one) && knowledge.is_current());
        let gone = Timestamp::now() - jiff::SignedDuration::from_secs(1);
        knowledge.learn(&feed(vec![Revoked { holder: two, until: gone }]), &sessions);
        knowledge.learn(&feed(vec![]), &sessions);
        assert_eq!(knowledge.now().revoked.len(), 1, "what has expired anyway is forgotten");
    }
}
