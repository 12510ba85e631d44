//! Going to sleep: services first, then resource servers, each asked what it holds and stopped in its own way, then
//! whatever is left.

use super::{
    events::Event,
    process, receipt,
    runtime::{Phase, Runtime},
    server,
};
use crate::daemon::disk;
use envforge_api::{stream::LogLevel, time::Timestamp};
use std::{rc::Rc, time::Duration};

/// What a service gets to end while it fills the disk that others need.
const SHORT_GRACE: Duration = Duration::from_secs(1);

impl Runtime {
    /// Begins to stop everything; [`Event::Gone`] comes when nothing is left. Asking again changes nothing.
    pub(super) fn go_to_sleep(&mut self, reason: String) {
        if matches!(self.phase, Phase::Sleeping(_)) {
            return;
        }
        self.note(LogLevel::Info, &format!("going to sleep ({reason})"));
        self.phase = Phase::Sleeping(reason.clone());
        self.since = Timestamp::now();
        self.go_on();
        self.mark_stopping();
        self.cancel_all_runs();
        let servers = self.retire_servers();
        let shared = Rc::clone(&self.shared);
        let grace = if reason == disk::REASON { shared.grace.min(SHORT_GRACE) } else { shared.grace };
        // Nothing can cancel it: a runtime that began to sleep is asleep afterwards.
        tokio::task::spawn_local(async move {
            let groups = &shared.sandbox.cgroups;
            let stop = |name: &'static str| {
                let group = groups.runtime_child(name);
                async move {
                    if let Ok(group) = group {
                        process::stop(&group, grace).await;
                    }
                }
            };
            tokio::join!(stop("services"), stop("runs"), stop("setup"));
            let ends = servers.iter().map(async |(server, context, serves)| {
                let manifest = match server::driver_of(server) {
                    Some(driver) if *serves => receipt::count(driver.as_ref(), context).await,
                    Some(_) | None => None,
                };
                server::stop(&shared, server, context).await;
                Some((*server, context.clone(), manifest?))
            });
            let counted = futures_util::future::join_all(ends).await.into_iter().flatten().collect();
            process::end(&groups.runtime).await;
            for (server, _, _) in &servers {
                server::drain_output(&shared, server);
            }
            receipt::keep(&shared, counted).await;
            shared.tell(Event::Gone { reason });
        });
    }
}
