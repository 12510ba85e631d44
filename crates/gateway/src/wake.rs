//! Wakes, and what it means to be awake enough: only a [`Woken`] service can be forwarded to.
//!
//! One wake for any number of waiting requests, each in a task of its own, so that a caller who leaves cancels nothing.
//! Refusals are remembered until asking again can help.

use crate::{control::Control, known::Knowledge, sessions::VerifiedSession, single::Single};
use envforge_api::{
    gateway::{Standing, WakeAnswer},
    generation::Generation,
    ids::{RuntimeInstanceId, WorkspaceId},
    names::ServiceName,
    problem::ProblemKind,
    states::{RuntimeState, ServiceState, Trouble},
    time::Timestamp,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, timeout_at};

/// A service that can be connected to, of this run of its runtime.
#[derive(Debug, Clone)]
pub(crate) struct Woken {
    instance: RuntimeInstanceId,
}

impl Woken {
    /// The host that connected says so itself.
    pub(crate) fn connected(instance: RuntimeInstanceId) -> Self {
        Self { instance }
    }

    pub(crate) fn instance(&self) -> &RuntimeInstanceId {
        &self.instance
    }
}

/// How far a service is from being connected to.
#[derive(Debug, Clone)]
pub(crate) enum Readiness {
    Ready(Woken),
    /// It starts.
    Coming,
    /// Only a wake brings it back.
    Asleep,
    /// It runs into something that waiting does not mend; the word is for visitors.
    Broken(&'static str),
}

/// Reads a standing. Pure.
pub(crate) fn readiness(standing: &Standing, service: &ServiceName) -> Readiness {
    let state = standing.services.iter().find(|s| s.name == service.as_str()).map(|s| s.stated.state);
    let ready = || match &standing.instance {
        Some(instance) => Readiness::Ready(Woken { instance: instance.clone() }),
        None => Readiness::Coming,
    };
    match (standing.runtime.state, state) {
        (RuntimeState::Asleep | RuntimeState::Sleeping | RuntimeState::Frozen | RuntimeState::Failed, _) => {
            Readiness::Asleep
        }
        // What is told of its services may be of the run before.
        (RuntimeState::Waking, _) if standing.instance.is_none() => Readiness::Coming,
        (RuntimeState::Waking | RuntimeState::Awake, Some(ServiceState::Healthy | ServiceState::Unhealthy)) => ready(),
        (RuntimeState::Waking | RuntimeState::Awake, Some(ServiceState::Starting) | None)
        | (RuntimeState::Waking, Some(ServiceState::Stopped)) => Readiness::Coming,
        (RuntimeState::Awake, Some(ServiceState::Stopped)) => Readiness::Broken("stopped"),
        (RuntimeState::Waking | RuntimeState::Awake, Some(ServiceState::Crashed)) => Readiness::Broken("crashed"),
    }
}

/// Why a service is not forwarded to.
#[derive(Debug, Clone)]
pub(crate) enum NotWoken {
    /// It sleeps, and this request wakes nothing.
    Asleep,
    /// It may not wake before then.
    Refused(Trouble, Timestamp),
    /// It was not ready in time.
    Late,
    /// Waiting does not help.
    Broken(&'static str),
    /// The control plane does not answer.
    Away,
    /// There is no such workspace for this visitor any more.
    Gone,
}

type Outcome = Result<Generation, NotWoken>;

/// The wakes under way and the refusals that hold.
#[derive(Debug, Default)]
pub(crate) struct Wakes {
    under_way: Single<WorkspaceId, Outcome>,
    refusals: Mutex<HashMap<WorkspaceId, (Trouble, Timestamp)>>,
}

impl Wakes {
    /// Asks for a wake, or joins the one that is being asked for.
    pub(crate) async fn ask(self: &Arc<Self>, control: &Arc<Control>, session: &VerifiedSession) -> Outcome {
        let visit = session.visit();
        let now = Timestamp::now();
        if let Some((trouble, until)) = self.refusals().get(&visit.workspace)
            && *until > now
        {
            return Err(NotWoken::Refused(trouble.clone(), *until));
        }
        let (wakes, control, workspace) = (Arc::clone(self), Arc::clone(control), visit.workspace.clone());
        let holder = visit.holder.clone();
        self.under_way
            .join(visit.workspace.clone(), async move {
                match control.wake(&workspace, &holder).await {
                    Ok(WakeAnswer::Asked { generation }) => {
                        wakes.refusals().remove(&workspace);
                        Ok(generation)
                    }
                    Ok(WakeAnswer::Refused { trouble, until }) => {
                        wakes.refusals().insert(workspace, (trouble.clone(), until));
                        Err(NotWoken::Refused(trouble, until))
                    }
                    Err(problem) if problem.kind == ProblemKind::NotFound => Err(NotWoken::Gone),
                    Err(problem) => {
                        tracing::warn!(kind = %problem.kind, "a wake could not be asked for");
                        Err(NotWoken::Away)
                    }
                }
            })
            .await
            .unwrap_or(Err(NotWoken::Away))
    }

    fn refusals(&self) -> std::sync::MutexGuard<'_, HashMap<WorkspaceId, (Trouble, Timestamp)>> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until a service can be connected to, at `generation` or later.
pub(crate) async fn until_ready(
    knowledge: &Knowledge,
    workspace: &WorkspaceId,
    service: &ServiceName,
    generation: Generation,
    within: Duration,
) -> Result<Woken, NotWoken> {
    let deadline = Instant::now() + within;
    let mut changes = knowledge.changes();
    loop {
        let standing = changes.borrow_and_update().standings.get(workspace).cloned();
        let standing = standing.ok_or(NotWoken::Gone)?;
        if standing.generation >= generation {
            match readiness(&standing, service) {
                Readiness::Ready(woken) => return Ok(woken),
                Readiness::Broken(how) => return Err(NotWoken::Broken(how)),
                Readiness::Asleep if standing.runtime.state == RuntimeState::Failed => {
                    return Err(NotWoken::Broken("not able to start"));
                }
                // It was put to sleep again meanwhile.
                Readiness::Asleep if standing.runtime.state == RuntimeState::Asleep => return Err(NotWoken::Asleep),
                Readiness::Asleep | Readiness::Coming => {}
            }
        }
        match timeout_at(deadline, changes.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(NotWoken::Away),
            Err(_) => return Err(NotWoken::Late),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use envforge_api::{
        gateway::ServiceStanding,
        states::{ServiceKind, Stated},
    };

    fn standing(runtime: RuntimeState, service: Option<ServiceState>, instance: bool) -> Standing {
        let now = Timestamp::now();
        let of = |state| ServiceStanding {
            name: "web".into(),
            kind: ServiceKind::Service,
            stated: Stated::plain(state, now),
        };
        Standing {
            workspace: WorkspaceId::generate(),
            present: true,
            generation: Generation(3),
            runtime: Stated::plain(runtime, now),
            instance: instance.then(RuntimeInstanceId::generate),
            services: service.into_iter().map(of).collect(),
            routes: 1,
        }
    }

    #[test]
    fn a_service_is_ready_once_it_was_healthy_in_this_run() {
        use RuntimeState::{Asleep, Awake, Waking};
        use ServiceState::{Crashed, Healthy, Starting, Stopped, Unhealthy};
        let web: ServiceName = "web".parse().expect("a service");
        let read = |runtime, service, instance| match readiness(&standing(runtime, service, instance), &web) {
            Readiness::Ready(_) => "ready",
            Readiness::Coming => "coming",
            Readiness::Asleep => "asleep",
            Readiness::Broken(how) => how,
        };
        assert_eq!(read(Asleep, Some(Stopped), false), "asleep");
        assert_eq!(read(RuntimeState::Sleeping, Some(Healthy), true), "asleep");
        assert_eq!(read(Waking, Some(Healthy), false), "coming", "of the run before");
        assert_eq!(read(Waking, Some(Stopped), true), "coming");
        assert_eq!(read(Waking, Some(Starting), true), "coming");
        assert_eq!(read(Waking, Some(Healthy), true), "ready");
        assert_eq!(read(Awake, Some(Unhealthy), true), "ready");
        assert_eq!(read(Awake, Some(Crashed), true), "crashed");
        assert_eq!(read(Awake, Some(Stopped), true), "stopped");
        assert_eq!(read(Awake, None, true), "coming");
    }
}
