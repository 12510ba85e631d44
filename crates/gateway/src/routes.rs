//! Where dev hosts lead: asked for once per version, remembered, refusals too.

use crate::{control::Control, known::Knowledge, sessions::VerifiedSession, single::Single};
use envforge_api::{dev_host::HostLabel, gateway::Route, problem::ProblemKind, time::Timestamp};
use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

/// A route is asked for again when its permission to dial lasts no longer than so.
const MARGIN_SECONDS: i64 = 120;
/// What does not exist is asked for again after this.
const REFUSED_FOR: Duration = Duration::from_secs(5);
/// Remembered at once.
const KEPT: usize = 10_000;

/// Why there is no route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoRoute {
    /// It leads nowhere any more.
    Missing,
    /// The control plane does not answer.
    Away,
}

#[derive(Debug, Clone)]
enum Remembered {
    Found(Arc<Route>),
    Missing(Instant),
}

/// The routes.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    kept: RwLock<HashMap<HostLabel, Remembered>>,
    asked: Single<HostLabel, Result<Arc<Route>, NoRoute>>,
}

impl Routes {
    /// Where the dev host of a session leads.
    pub(crate) async fn find(
        self: &Arc<Self>,
        knowledge: &Knowledge,
        control: &Arc<Control>,
        session: &VerifiedSession,
    ) -> Result<Arc<Route>, NoRoute> {
        let visit = session.visit();
        let version = knowledge.standing(&visit.workspace).ok_or(NoRoute::Missing)?.routes;
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner).get(&visit.host).cloned();
        match kept {
            Some(Remembered::Found(route)) if route.version == version && is_lasting(&route) => return Ok(route),
            Some(Remembered::Missing(at)) if at.elapsed() < REFUSED_FOR => return Err(NoRoute::Missing),
            Some(Remembered::Found(_) | Remembered::Missing(_)) | None => {}
        }
        let (routes, control) = (Arc::clone(self), Arc::clone(control));
        let (host, workspace) = (visit.host.clone(), visit.workspace.clone());
        let asked = self.asked.join(visit.host.clone(), async move {
            let found = match control.route(&host, &workspace).await {
                Ok(route) => Ok(Arc::new(route)),
                Err(problem) if problem.kind == ProblemKind::NotFound => Err(NoRoute::Missing),
                Err(problem) => {
                    tracing::warn!(kind = %problem.kind, "a route could not be asked for");
                    return Err(NoRoute::Away);
                }
            };
            let remembered = match &found {
                Ok(route) => Remembered::Found(Arc::clone(route)),
                Err(_) => Remembered::Missing(Instant::now()),
            };
            let mut kept = routes.kept.write().unwrap_or_else(PoisonError::into_inner);
            if kept.len() >= KEPT {
                kept.clear();
            }
            kept.insert(host, remembered);
            found
        });
        asked.await.unwrap_or(Err(NoRoute::Away))
    }

    /// Has it asked for again.
    pub(crate) fn forget(&self, host: &HostLabel) {
        self.kept.write().unwrap_or_else(PoisonError::into_inner).remove(host);
    }
}

fn is_lasting(route: &Route) -> bool {
    route.dial.expires_at.duration_since(Timestamp::now()).as_secs() > MARGIN_SECONDS
}
