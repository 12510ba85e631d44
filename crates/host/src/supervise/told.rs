//! What a supervisor tells of its runtime: one whole value, at every change, and its last word.

use super::{
    protocol::{Ended, RuntimeSpec, Snapshot},
    runtime::{Phase, Runtime},
};
use crate::system::{
    SystemError,
    files::{self, Beside},
};
use envforge_api::{
    host::{Activity, Moment},
    states::{RuntimeState, Stated},
    stream::LogLevel,
    time::Timestamp,
};
use std::{collections::BTreeMap, io, sync::Arc};
use tokio::sync::watch;

impl Runtime {
    /// The last reading, the word for a daemon that was away, and the end.
    pub(super) fn finish(&mut self, reason: &str) -> Result<(), SystemError> {
        let sleep = match &self.activity.last_sleep {
            Some(sleep) => sleep.clone(),
            None => Moment { at: Timestamp::now(), reason: reason.to_owned() },
        };
        self.activity = Activity {
            last_wake: self.activity.last_wake.clone(),
            last_sleep: Some(sleep.clone()),
            ..Activity::default()
        };
        let metered = self.metering || self.meter.is_open();
        if metered {
            self.meter.close(reason);
        }
        self.mark_stopped();
        self.servers_stopped();
        let mut snapshot = self.snapshot();
        snapshot.runtime =
            Stated { state: RuntimeState::Asleep, since: sleep.at, reason: Some(reason.to_owned()), hint: None };
        let ended = Ended {
            instance: self.spec.instance.clone(),
            generation: self.generation,
            sleep,
            snapshot: Box::new(snapshot),
        };
        let bytes = serde_json::to_vec(&ended)
            .map_err(|e| SystemError::new("describe the end", io::Error::new(io::ErrorKind::InvalidData, e)))?;
        let dir = self.shared.sandbox.dir.clone();
        let path = dir.join("state").join("ended.json");
        let ended = Beside::write(&path, &bytes, 0o600)?;
        let slept = self.shared.receipts.borrow_mut().beside();
        // The disk takes both in the time of one. Each is in its place before what relies on it is written.
        let (slept, synced) = std::thread::scope(|threads| {
            let slept = threads.spawn(|| slept.and_then(|slept| slept.map(|s| s.sync().map(|()| s)).transpose()));
            let synced = ended.sync();
            (slept.join().unwrap_or(Ok(None)), synced)
        });
        if let Err(error) = slept.and_then(|slept| slept.map_or(Ok(()), Beside::put)) {
            let text = format!("what data services hold could not be kept ({error}): the next wake compares nothing");
            self.note(LogLevel::Warn, &text);
        }
        synced?;
        if metered {
            self.meter.end(reason).map_err(|e| SystemError::new("write the last reading", e).on_disk(&dir))?;
        }
        self.note(LogLevel::Info, &format!("asleep ({reason})"));
        ended.put()?;
        files::keep_names(&path)?;
        // The end of this socket is what tells the daemon.
        let _ = std::fs::remove_file(self.shared.sandbox.supervisor_socket());
        Ok(())
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let state = match &self.phase {
            Phase::Waking => RuntimeState::Waking,
            Phase::Awake => RuntimeState::Awake,
            Phase::Sleeping(_) => RuntimeState::Sleeping,
        };
        let reason = match &self.phase {
            Phase::Sleeping(reason) => Some(self.unwritten.as_ref().map_or(reason, |(t, _)| &t.reason).clone()),
            Phase::Waking | Phase::Awake => self.remark.as_ref().map(|r| r.reason.clone()),
        };
        let hint = match &self.phase {
            Phase::Sleeping(_) => self.unwritten.as_ref().map(|(t, _)| t.hint.clone()),
            Phase::Waking | Phase::Awake => self.remark.as_ref().map(|r| r.hint.clone()),
        };
        Snapshot {
            instance: self.spec.instance.clone(),
            generation: self.generation,
            runtime: Stated { state, since: self.since, reason, hint },
            services: self.services.iter().map(|s| s.report(&self.shared.logs)).collect(),
            digests: self.services.iter().map(|s| (s.spec.name.clone(), s.spec.digest.clone())).collect(),
            resources: self.resource_reports(),
            steps: self.steps.clone(),
            start: self.start.clone(),
            activity: self.activity.clone(),
            runs: self.runs.iter().map(|(id, run)| run.state(id)).collect(),
        }
    }

    /// Tells everyone who listens, if anything changed.
    pub(super) fn publish(&mut self) {
        let snapshot = self.snapshot();
        self.published.send_if_modified(|known| {
            let differs = **known != snapshot;
            if differs {
                *known = Arc::new(snapshot);
            }
            differs
        });
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.published.subscribe()
    }
}

impl Snapshot {
    pub(super) fn empty(spec: &RuntimeSpec, now: Timestamp) -> Self {
        Self {
            instance: spec.instance.clone(),
            generation: spec.generation,
            runtime: Stated::plain(RuntimeState::Waking, now),
            services: Vec::new(),
            digests: BTreeMap::new(),
            resources: Vec::new(),
            steps: Vec::new(),
            start: None,
            activity: Activity::default(),
            runs: Vec::new(),
        }
    }
}
