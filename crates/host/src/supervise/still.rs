//! Standing still while a copy of the workspace comes to its end. The daemon asks for it, and this process, which
//! outlives the daemon, sees to it that everything goes on again: when asked, after the time that was allowed, before a
//! sleep, and when it starts in the place of a supervisor that was killed meanwhile.

use super::{
    events::Event,
    protocol::Answer,
    runtime::{Phase, Runtime},
};
use crate::system::{cgroup::Group, sandbox::Sandbox};
use envforge_api::{states::Trouble, stream::LogLevel};
use std::{collections::BTreeSet, rc::Rc, time::Duration};

/// Everything of a workspace that writes: its runtime but for these servers, and its shell where that is a control
/// group. (Without one its processes would be stopped by signal, and a shell would take that for Ctrl-Z.)
#[must_use]
pub fn writers(sandbox: &Sandbox, but: &BTreeSet<String>) -> Vec<Group> {
    let runtime = &sandbox.cgroups.runtime;
    let mut all: Vec<Group> = ["services", "runs", "setup"].iter().map(|name| runtime.below(name)).collect();
    all.extend(
        runtime.below("resources").children().into_iter().filter(|(name, _)| !but.contains(name)).map(|of| of.1),
    );
    all.extend(Some(sandbox.cgroups.shell.clone()).filter(|shell| shell.doors.is_none()));
    all
}

/// Lets everything of a workspace go on, whoever stopped it.
pub fn thaw(sandbox: &Sandbox) {
    for group in writers(sandbox, &BTreeSet::new()) {
        // One that cannot be is gone.
        let _ = group.freeze(false);
    }
}

impl Runtime {
    pub(super) fn stand_still(&mut self, bound_ms: u64, but: &BTreeSet<String>) -> Answer {
        let refused = |reason: &str| Answer::Refused { trouble: Trouble::new(reason, "it is tried again by itself") };
        if matches!(self.phase, Phase::Sleeping(_)) {
            return refused("the runtime is going to sleep");
        }
        if self.still.is_some() {
            return refused("the workspace stands still already");
        }
        self.stills += 1;
        let number = self.stills;
        self.still = Some(number);
        let stopped = writers(&self.shared.sandbox, but).iter().try_for_each(|group| group.freeze(true));
        if let Err(error) = stopped {
            self.go_on();
            return Answer::Refused { trouble: Trouble::new(error.to_string(), error.hint) };
        }
        let shared = Rc::clone(&self.shared);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(Duration::from_millis(bound_ms)).await;
            shared.tell(Event::StoodTooLong { number });
        });
        Answer::Accepted
    }

    /// Lets everything go on; false when it did already.
    pub(super) fn go_on(&mut self) -> bool {
        let stood = self.still.take().is_some();
        if stood {
            thaw(&self.shared.sandbox);
        }
        stood
    }

    pub(super) fn stood_too_long(&mut self, number: u64) {
        if self.still == Some(number) {
            self.go_on();
            self.note(LogLevel::Warn, "a copy took too long to come to its end: the workspace went on without it");
        }
    }
}
