//! Going to sleep: services first, then resource servers, each asked what it holds and stopped in its own way, then
//! whatever is left.

use super::{
    events::Event,
    process, protocol, receipt,
    runtime::{Phase, Runtime},
    server,
};
use crate::system::sandbox::Sandbox;
use envforge_api::{stream::LogLevel, time::Timestamp};
use futures_util::FutureExt;
use std::{rc::Rc, time::Duration};

/// What a service gets to end while it fills the disk that others need.
const SHORT_GRACE: Duration = Duration::from_secs(1);

/// Has the resource servers go on.
fn thaw(sandbox: &Sandbox) {
    for (_, group) in sandbox.cgroups.runtime.below("resources").children() {
        // One that cannot be is gone.
        let _ = group.freeze(false);
    }
}

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
        let for_disk = reason == protocol::DISK;
        let grace = if for_disk { shared.grace.min(SHORT_GRACE) } else { shared.grace };
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
            let quiet = async {
                tokio::join!(stop("services"), stop("runs"), stop("setup"));
                if for_disk {
                    // They may have been made to stand still: what they served is gone, and they have to hear that they
                    // should end.
                    thaw(&shared.sandbox);
                }
            }
            .shared();
            let ends = servers.iter().map(async |(server, context, serves)| {
                let manifest = match server::driver_of(server) {
                    // What fills the disk ends without being counted.
                    Some(driver) if *serves && !for_disk => {
                        receipt::count(driver.as_ref(), context, quiet.clone()).await
                    }
                    Some(_) | None => None,
                };
                // Whatever came of counting: services are ended before the servers they write to.
                quiet.clone().await;
                server::stop(&shared, server, context).await;
                Some(((*server).to_owned(), receipt::rest(server, context, manifest?).await))
            });
            let counted = futures_util::future::join_all(ends).await.into_iter().flatten().collect();
            quiet.await;
            process::end(&groups.runtime).await;
            for (server, _, _) in &servers {
                server::drain_output(&shared, server);
            }
            shared.receipts.borrow_mut().take(counted);
            shared.tell(Event::Gone { reason });
        });
    }
}
