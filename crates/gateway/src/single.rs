//! One flight for any number of passengers: work that many ask for at once is done once, in a task of its own.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::watch;

/// What is under way, by key.
#[derive(Debug)]
pub(crate) struct Single<K, V> {
    flights: Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>,
}

impl<K, V> Default for Single<K, V> {
    fn default() -> Self {
        Self { flights: Arc::default() }
    }
}

impl<K, V> Single<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// The outcome of the work under way for `key`, or of `work` where there is none; `None` when it was cut short.
    /// Whoever leaves cancels nothing.
    pub(crate) async fn join(&self, key: K, work: impl Future<Output = V> + Send + 'static) -> Option<V> {
        let mut outcome = {
            let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
            match flights.get(&key) {
                Some(flight) => flight.clone(),
                None => {
                    let (land, flight) = watch::channel(None);
                    flights.insert(key.clone(), flight.clone());
                    let flights = Arc::clone(&self.flights);
                    tokio::spawn(async move {
                        // Taken off the board however it ends, so that the next one starts anew.
                        let _off = OffBoard { flights, key };
                        let done = work.await;
                        land.send_replace(Some(done));
                    });
                    flight
                }
            }
        };
        let landed = outcome.wait_for(Option::is_some).await.ok()?;
        landed.clone()
    }
}

struct OffBoard<K: Eq + Hash, V> {
    flights: Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for OffBoard<K, V> {
    fn drop(&mut self) {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn many_ask_and_it_is_done_once_although_the_first_leaves() {
        let single = Arc::new(Single::<u8, u32>::default());
        let done = Arc::new(AtomicU32::new(0));
        let (go, wait) = watch::channel(false);
        let work = |wait: watch::Receiver<bool>| {
            let (done, mut wait) = (Arc::clone(&done), wait);
            async move {
                drop(wait.wait_for(|go| *go).await);
                done.fetch_add(1, Ordering::SeqCst) + 1
            }
        };
        let first = tokio::time::timeout(std::time::Duration::ZERO, single.join(1, work(wait.clone()))).await;
        assert!(first.is_err(), "it left");
        let others: Vec<_> = (0..100)
            .map(|_| {
                let (single, work) = (Arc::clone(&single), work(wait.clone()));
                tokio::spawn(async move { single.join(1, work).await })
            })
            .collect();
        go.send_replace(true);
        for other in others {
            assert_eq!(other.await.expect("joined"), Some(1));
        }
        assert_eq!(single.join(1, work(wait)).await, Some(2), "the next one starts anew");
    }

    #[tokio::test]
    async fn work_that_is_cut_short_is_no_outcome_and_may_be_tried_again() {
        let single = Single::<u8, u32>::default();
        assert_eq!(single.join(1, async { panic!("cut short") }).await, None);
        assert_eq!(single.join(1, async { 7 }).await, Some(7));
    }
}
