//! Localhost wakes: after an idle sleep, a connection that the workspace's shell makes to a declared port of a service or
//! a resource is held, wakes the runtime, and passes once that is ready. After any other sleep it is refused at once.
//!
//! One process listens for all of a host's workspaces: this daemon. Awake, nothing stands in the path of a connection;
//! those that were held go on through the daemon until they end. While a runtime wakes they are still led here, so that
//! no connection meets a service that is not there yet.

use super::{
    hub::{Hub, RuntimeFacts, Workspace},
    listening::Listening,
};
use crate::{
    supervise::protocol::Snapshot,
    system::{
        SystemError,
        sandbox::{Sandbox, parked},
    },
};
use envforge_api::{
    client::Client,
    dial::{self, AskInside},
    generation::Generation,
    host::{DesiredRuntime, DesiredShell, Face, ResourceReport, WorkspaceIntent},
    public::{Commanded, WakeRequest},
    resource::ResourceMode,
    states::{ResourceState, RuntimeState, ServiceState},
};
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::TcpStream,
    sync::{Mutex, watch},
    time::timeout,
};

/// A held connection is let go after this.
const HELD: Duration = Duration::from_secs(120);
/// Connections of one workspace that are held or carried at once.
const MOST: usize = 256;
/// What could not be led is tried again after this.
const AGAIN: Duration = Duration::from_secs(30);

/// What should be with connections from the shell. Pure.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    /// Led here, from these ports.
    Led(BTreeSet<u16>),
    /// As it is: the runtime is on its way.
    AsItIs,
    /// They pass, or are refused, by themselves.
    Open,
}

fn wanted(intent: &WorkspaceIntent, facts: &RuntimeFacts, faces: &[Face]) -> Wanted {
    // What slept idle stays so when something else about it changes (a hold), and is told as asleep then.
    let until_woken = match &intent.runtime {
        DesiredRuntime::Awake { .. } => true,
        DesiredRuntime::Asleep { reason } => reason == "idle",
    };
    if intent.shell == DesiredShell::Absent || !until_woken || !facts.known {
        return Wanted::Open;
    }
    let Some(snapshot) = &facts.snapshot else { return Wanted::AsItIs };
    if facts.supervisor.is_some() || facts.starting.is_some() {
        return if snapshot.runtime.state == RuntimeState::Awake { Wanted::Open } else { Wanted::AsItIs };
    }
    if facts.failed.is_some() {
        return Wanted::Open;
    }
    let idle = snapshot.activity.last_sleep.as_ref().is_some_and(|sleep| sleep.reason == "idle");
    if snapshot.generation < intent.generation && matches!(intent.runtime, DesiredRuntime::Awake { .. }) {
        // A wake was asked for and is about to begin.
        return Wanted::AsItIs;
    }
    let mut ports: BTreeSet<u16> = faces.iter().flat_map(|face| face.ports.values().copied()).collect();
    let blocked = |state| state == ResourceState::Disabled || state == ResourceState::Blocked;
    // What lies elsewhere has no port here.
    let here = |r: &&ResourceReport| r.mode == ResourceMode::Managed && !blocked(r.stated.state);
    let resources = snapshot.resources.iter().filter(here);
    ports.extend(resources.map(|resource| resource.kind.port()));
    if idle && !ports.is_empty() { Wanted::Led(ports) } else { Wanted::Open }
}

/// Where a port is on its way. Pure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Port {
    Ready,
    Coming,
    /// Nothing will answer there.
    Never,
}

fn port(port: u16, intent: &WorkspaceIntent, facts: &RuntimeFacts, woken: Generation) -> Port {
    if intent.generation < woken {
        // Word of the wake is still on its way here.
        return Port::Coming;
    }
    if matches!(intent.runtime, DesiredRuntime::Asleep { .. }) {
        return Port::Never;
    }
    if facts.failed.as_ref().is_some_and(|(generation, _, _)| *generation >= woken) {
        return Port::Never;
    }
    // Of an earlier run nothing is said: it may be about to end.
    let of_now =
        |snapshot: &&Snapshot| snapshot.generation >= woken && snapshot.runtime.state != RuntimeState::Sleeping;
    match facts.snapshot.as_ref().filter(|_| facts.supervisor.is_some()).filter(of_now) {
        Some(snapshot) => port_of(port, snapshot),
        None => Port::Coming,
    }
}

/// Waits until something is ready at a port, of the wake at `woken` or later; false when that will never be.
pub(super) async fn ready(workspace: &Workspace, asked: u16, woken: Generation) -> bool {
    let (mut intents, mut runtime) = (workspace.intent.subscribe(), workspace.runtime.subscribe());
    loop {
        let state = port(asked, &intents.borrow_and_update(), &runtime.borrow_and_update(), woken);
        match state {
            Port::Ready => return true,
            Port::Never => return false,
            Port::Coming => {}
        }
        let changed = tokio::select! {
            changed = runtime.changed() => changed,
            changed = intents.changed() => changed,
        };
        if changed.is_err() {
            return false;
        }
    }
}

/// The same while the runtime runs.
fn port_of(port: u16, snapshot: &Snapshot) -> Port {
    let here = |r: &&ResourceReport| r.mode == ResourceMode::Managed && r.kind.port() == port;
    if let Some(resource) = snapshot.resources.iter().find(here) {
        return match resource.stated.state {
            ResourceState::Ready => Port::Ready,
            ResourceState::Waking => Port::Coming,
            ResourceState::Disabled | ResourceState::Blocked => Port::Never,
        };
    }
    match snapshot.services.iter().find(|service| service.port == Some(port)).map(|service| service.stated.state) {
        Some(ServiceState::Healthy | ServiceState::Unhealthy) => Port::Ready,
        Some(ServiceState::Crashed) => Port::Never,
        Some(ServiceState::Starting | ServiceState::Stopped) | None if snapshot.start.is_none() => Port::Coming,
        // A further named port: whoever listens there does so by now, or never.
        Some(ServiceState::Starting | ServiceState::Stopped) | None => Port::Ready,
    }
}

/// What is led here at the moment.
struct Parked {
    ports: BTreeSet<u16>,
    listening: Listening,
}

/// Keeps it as it should be, until the workspace is gone.
pub(super) async fn keep(hub: &Arc<Hub>, workspace: &Arc<Workspace>) {
    let (mut intents, mut runtime) = (workspace.intent.subscribe(), workspace.runtime.subscribe());
    let (mut sandboxes, mut faces) = (workspace.sandbox.subscribe(), workspace.faces.subscribe());
    let asked = Arc::new(Mutex::new(Generation(0)));
    let carried = Arc::new(AtomicUsize::new(0));
    let (ended, mut ends) = watch::channel(());
    let mut now: Option<Parked> = None;
    // Rules may be left, of this daemon or of an earlier one.
    let mut rules = true;
    loop {
        let sandbox = sandboxes.borrow_and_update().clone();
        let wanted = wanted(&intents.borrow_and_update(), &runtime.borrow_and_update(), &faces.borrow_and_update());
        let start = |stream: TcpStream, sandbox: &Sandbox| {
            let held = Held {
                hub: Arc::clone(hub),
                workspace: Arc::clone(workspace),
                sandbox: sandbox.clone(),
                asked: Arc::clone(&asked),
            };
            let place = Place::take(&carried, &ended);
            // Ends with the connection, or when the runtime does not come.
            tokio::spawn(async move {
                if let Some(_place) = place {
                    held.carry(stream).await;
                }
            });
        };
        let mut again = None;
        match (wanted, &sandbox) {
            (Wanted::Led(ports), Some(sandbox)) if now.as_ref().is_none_or(|now| now.ports != ports) => {
                let (of_ports, within) = (ports.clone(), sandbox.clone());
                // Also when it fails half-way.
                rules = true;
                match Listening::on(move || parked::park(&within, &of_ports)).await {
                    Ok(listening) => now = Some(Parked { ports, listening }),
                    Err(error) => {
                        tracing::info!(workspace = %workspace.id, %error, "connections do not wake this workspace");
                        again = Some(AGAIN);
                    }
                }
            }
            (Wanted::Open, Some(sandbox)) if now.is_some() => {
                // As long as the rules lead here someone must listen.
                if change(sandbox, parked::open).await {
                    let late = now.take().map(|parked| parked.listening.close());
                    late.into_iter().flatten().for_each(|stream| start(stream, sandbox));
                    continue;
                }
                again = Some(AGAIN);
            }
            (Wanted::Open, Some(sandbox)) if rules && carried.load(Ordering::SeqCst) == 0 => {
                rules = !change(sandbox, parked::clear).await;
                again = rules.then_some(AGAIN);
            }
            (Wanted::Led(_) | Wanted::AsItIs | Wanted::Open, Some(_) | None) => {}
        }
        let accepted = async {
            match &now {
                Some(parked) => parked.listening.accept().await,
                None => std::future::pending().await,
            }
        };
        let due = async {
            match again {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            accepted = accepted => if let (Ok(stream), Some(sandbox)) = (accepted, &sandbox) {
                start(stream, sandbox);
            },
            changed = intents.changed() => if changed.is_err() { return },
            _ = runtime.changed() => {}
            _ = sandboxes.changed() => {}
            _ = faces.changed() => {}
            _ = ends.changed(), if rules => {}
            () = due => {}
        }
    }
}

/// Whether the rules were changed.
async fn change(sandbox: &Sandbox, how: fn(&Sandbox) -> Result<(), SystemError>) -> bool {
    let within = sandbox.clone();
    match tokio::task::spawn_blocking(move || how(&within)).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::warn!(workspace = %sandbox.workspace, %error, "the rules for connections to a workspace stay");
            false
        }
        Err(error) => {
            tracing::error!(workspace = %sandbox.workspace, %error, "the rules for connections to a workspace stay");
            false
        }
    }
}

/// A place among the connections of a workspace; `ended` is told when it is given back.
struct Place {
    carried: Arc<AtomicUsize>,
    ended: watch::Sender<()>,
}

impl Place {
    fn take(carried: &Arc<AtomicUsize>, ended: &watch::Sender<()>) -> Option<Self> {
        let place = Self { carried: Arc::clone(carried), ended: ended.clone() };
        (carried.fetch_add(1, Ordering::SeqCst) < MOST).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.carried.fetch_sub(1, Ordering::SeqCst);
        self.ended.send_replace(());
    }
}

/// What a held connection needs.
struct Held {
    hub: Arc<Hub>,
    workspace: Arc<Workspace>,
    sandbox: Sandbox,
    /// The intent at which a wake was asked for last.
    asked: Arc<Mutex<Generation>>,
}

impl Held {
    async fn carry(self, mut near: TcpStream) {
        let Ok(port) = parked::asked_port(&near) else { return };
        // Dropped, the connection is closed, which is all that can be said to the caller.
        let Ok(Some(mut far)) = timeout(HELD, self.connected(port)).await else { return };
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        // Whichever side ends it has told the other.
        drop(tokio::io::copy_bidirectional(&mut near, &mut far).await);
    }

    async fn connected(&self, asked: u16) -> Option<TcpStream> {
        let woken = self.wake().await?;
        if !ready(&self.workspace, asked, woken).await {
            return None;
        }
        let far = dial::dial(&self.sandbox.dial_socket(), &AskInside { port: asked }, Duration::ZERO).await.ok()?;
        TcpStream::from_std(far.socket).ok()
    }

    /// Asks the control plane, in the name of the workspace, unless someone has; the generation to wait for.
    async fn wake(&self) -> Option<Generation> {
        let mut asked = self.asked.lock().await;
        let known = self.workspace.intent.borrow().generation;
        let sleeps = self.workspace.runtime.borrow().supervisor.is_none();
        if !sleeps || *asked > known {
            return Some((*asked).max(known));
        }
        let client = Client::new(self.hub.server.clone(), Some(self.hub.token.clone()))
            .with_header("x-envforge-workspace", self.workspace.id.to_string())
            .with_patience(Duration::from_secs(10));
        let path = format!("/v1/workspaces/{}/wake", self.workspace.id);
        let request = WakeRequest { trigger: Some("localhost".into()) };
        match client.post::<_, Commanded>(&path, &request).await {
            Ok(answer) => {
                *asked = answer.command.generation;
                Some(*asked)
            }
            Err(problem) => {
                tracing::warn!(workspace = %self.workspace.id, kind = %problem.kind, "a connection could not wake its workspace");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::plan::tests::intent;
    use envforge_api::{
        host::{Activity, Moment, ResourceReport, ServiceReport, StartVerdict},
        ids::RuntimeInstanceId,
        resource::{ResourceKind, ResourceMode},
        states::{Health, ServiceKind, Stated, Trouble},
        time::Timestamp,
    };
    use std::collections::BTreeMap;

    fn facts(runtime: RuntimeState, slept: Option<&str>) -> RuntimeFacts {
        let now = Timestamp::now();
        let service = ServiceReport {
            name: "web".into(),
            kind: ServiceKind::Service,
            stated: Stated::plain(ServiceState::Stopped, now),
            health: Health::None,
            restarts: 0,
            exit_code: None,
            port: Some(3000),
            stale: false,
            last_lines: vec![],
        };
        let resource = |kind, state| ResourceReport {
            kind,
            service: None,
            mode: ResourceMode::Managed,
            stated: Stated::plain(state, now),
            consumers: vec![],
            receipt: None,
        };
        let snapshot = Snapshot {
            instance: RuntimeInstanceId::generate(),
            generation: Generation(3),
            runtime: Stated::plain(runtime, now),
            services: vec![service],
            digests: BTreeMap::new(),
            resources: vec![
                resource(ResourceKind::Database, ResourceState::Waking),
                resource(ResourceKind::Mail, ResourceState::Blocked),
            ],
            steps: vec![],
            start: None,
            activity: Activity {
                last_sleep: slept.map(|reason| Moment { at: now, reason: reason.into() }),
                ..Activity::default()
            },
            runs: vec![],
        };
        RuntimeFacts { known: true, snapshot: Some(snapshot), ..RuntimeFacts::default() }
    }

    fn face() -> Face {
        serde_json::from_value(serde_json::json!({
            "service": "web", "ports": { "http": 3000, "admin": 3001 }, "main": "http", "proxy": "localhost",
        }))
        .expect("a face")
    }

    #[test]
    fn only_an_idle_sleep_is_woken_by_connections_and_only_by_ports_that_will_answer() {
        let asleep = |reason| facts(RuntimeState::Asleep, Some(reason));
        let of = |intent, facts: &RuntimeFacts| wanted(&intent, facts, &[face()]);
        assert_eq!(of(intent(3, true), &asleep("idle")), Wanted::Led(BTreeSet::from([3000, 3001, 5432])));
        assert_eq!(of(intent(3, true), &asleep("asked")), Wanted::Open);
        assert_eq!(of(intent(4, false), &asleep("idle")), Wanted::Open, "asked to stay asleep");
        assert_eq!(of(intent(4, true), &asleep("idle")), Wanted::AsItIs, "on its way");
        let mut held = intent(4, false);
        held.runtime = DesiredRuntime::Asleep { reason: "idle".into() };
        assert!(matches!(of(held, &asleep("idle")), Wanted::Led(_)), "still idle, whatever else changed");
        let starting = RuntimeFacts { starting: Some(Timestamp::now()), ..asleep("idle") };
        assert_eq!(of(intent(4, true), &starting), Wanted::AsItIs);
        assert_eq!(of(intent(3, true), &RuntimeFacts::default()), Wanted::Open, "nothing is known yet");
    }

    #[test]
    fn a_held_connection_passes_when_its_port_is_ready_and_ends_when_it_never_will_be() {
        let trouble = || Trouble::new("no", "");
        let idle = facts(RuntimeState::Asleep, Some("idle"));
        let on_its_way = intent(4, true);
        let state = |facts: &RuntimeFacts| port(3000, &on_its_way, facts, Generation(4));
        assert_eq!(state(&idle), Port::Coming);
        assert_eq!(port(3000, &intent(5, false), &idle, Generation(4)), Port::Never, "asked to sleep meanwhile");
        let failed = |at| RuntimeFacts { failed: Some((Generation(at), trouble(), Timestamp::now())), ..idle.clone() };
        assert_eq!((state(&failed(4)), state(&failed(3))), (Port::Never, Port::Coming));
    }

    #[test]
    fn services_and_resources_say_by_their_states_whether_they_answer() {
        let mut snapshot = facts(RuntimeState::Waking, None).snapshot.expect("a snapshot");
        let mut of = |at: u16, state: ServiceState, start: Option<StartVerdict>| {
            snapshot.services[0].stated.state = state;
            snapshot.start = start;
            port_of(at, &snapshot)
        };
        assert_eq!(of(3000, ServiceState::Starting, None), Port::Coming);
        assert_eq!(of(3000, ServiceState::Healthy, None), Port::Ready);
        assert_eq!(of(3000, ServiceState::Crashed, None), Port::Never);
        assert_eq!(of(3001, ServiceState::Healthy, None), Port::Coming, "a further port, of whichever service");
        assert_eq!(of(3001, ServiceState::Healthy, Some(StartVerdict::Succeeded)), Port::Ready);
        assert_eq!(of(5432, ServiceState::Healthy, None), Port::Coming);
        assert_eq!(of(1025, ServiceState::Healthy, None), Port::Never);
    }
}
