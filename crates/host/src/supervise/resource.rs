//! Resource servers of a runtime, as it keeps account of them: which there are, what state each is in, when one is started
//! again. One server may back several resources (a Redis is cache and queue); its process is in [`super::server`].

use super::{
    events::Event,
    protocol::{ResourceSpec, RuntimeSpec},
    receipt,
    runtime::{Runtime, Shared},
    server::{self, driver_of},
};
use crate::{
    resources::{Context, Share, driver},
    system::{boot, disk, share},
};
use envforge_api::{
    host::ResourceReport,
    names::ServiceName,
    resource::{ResourceKind, ResourceMode},
    states::{ResourceState, Stated, Trouble},
    stream::LogLevel,
    time::{BootMillis, Timestamp},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};
use tokio::sync::watch;

/// A server that cannot be started is tried again after this, doubling.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// A server that served so long did not end because of how it starts: it is started again at once.
const LIVED: u64 = 2_000;

/// One server.
#[derive(Debug)]
pub(super) struct Server {
    /// The resources it backs.
    specs: Vec<ResourceSpec>,
    /// Followed by whoever runs it: what services share of it may change while it serves.
    context: watch::Sender<Context>,
    stated: Stated<ResourceState>,
    run: u64,
    wanted: bool,
    active: bool,
    /// Whether it answers and was prepared once.
    serves: bool,
    /// Since when it serves.
    ready: BootMillis,
    /// Pause before the next start; none before the first one after a long life.
    backoff: Duration,
}

impl Server {
    fn state(&mut self, state: ResourceState, trouble: Option<Trouble>) {
        let since = if self.stated.state == state { self.stated.since } else { Timestamp::now() };
        self.stated = match trouble {
            Some(trouble) => Stated::because(state, since, trouble),
            None => Stated::plain(state, since),
        };
    }
}

/// The servers that the spec's managed resources need.
pub(super) fn servers(spec: &RuntimeSpec, shared: &Shared, now: Timestamp) -> BTreeMap<&'static str, Server> {
    let mut all: BTreeMap<&'static str, Server> = BTreeMap::new();
    for resource in &spec.resources {
        if resource.blocked.is_some() || resource.resource.mode != ResourceMode::Managed {
            continue;
        }
        let driver = driver(resource.resource.kind);
        let server = all.entry(driver.name()).or_insert_with(|| Server {
            specs: Vec::new(),
            context: watch::Sender::new(Context {
                sandbox: spec.sandbox.clone(),
                templates: shared.templates.clone(),
                size: spec.size,
                shares: Vec::new(),
            }),
            stated: Stated::plain(ResourceState::Waking, now),
            run: 0,
            wanted: true,
            active: false,
            serves: false,
            ready: BootMillis(0),
            backoff: Duration::ZERO,
        });
        let share = Share {
            kind: resource.resource.kind,
            reset: resource.reset,
            fields: resource.fields.clone(),
            extensions: resource.resource.extensions.clone(),
            seeds: resource.seeds.clone(),
        };
        server.context.send_modify(|context| context.shares.push(share));
        server.specs.push(resource.clone());
    }
    all
}

impl Runtime {
    /// `None` = ready (or nothing to wait for), `Some(None)` = on its way, `Some(Some(_))` = blocked.
    pub(super) fn resource_trouble(&self, kind: ResourceKind, service: &str) -> Option<Option<Trouble>> {
        let of_kind = |server: &&Server| server.specs.iter().any(|s| s.resource.kind == kind);
        let server = self.servers.values().find(of_kind).map(|server| &server.stated);
        if let Some(stated) = server.or_else(|| self.outside(kind, Some(service))) {
            return match stated.state {
                ResourceState::Ready => None,
                ResourceState::Waking | ResourceState::Disabled => Some(None),
                ResourceState::Blocked => Some(Some(Trouble::new(
                    stated.reason.clone().unwrap_or_default(),
                    stated.hint.clone().unwrap_or_default(),
                ))),
            };
        }
        let its = |r: &&ResourceSpec| {
            r.resource.kind == kind && r.resource.service.as_ref().is_none_or(|owner| owner.as_str() == service)
        };
        self.spec.resources.iter().find(its).and_then(|r| r.blocked.clone()).map(Some)
    }

    /// The state of the server of a resource, and what is wrong with it; `None` where it has none.
    pub(super) fn state_of(&self, kind: ResourceKind) -> Option<(ResourceState, Option<Trouble>)> {
        let server = self.servers.values().find(|server| server.specs.iter().any(|s| s.resource.kind == kind))?;
        let Stated { state, reason, hint, .. } = &server.stated;
        let trouble = reason.clone().map(|reason| Trouble::new(reason, hint.clone().unwrap_or_default()));
        Some((*state, trouble))
    }

    /// Shows the servers of these resources as on their way until they say otherwise.
    pub(super) fn expect_servers(&mut self, kinds: &BTreeSet<ResourceKind>) {
        for server in self.servers.values_mut() {
            if server.specs.iter().any(|spec| kinds.contains(&spec.resource.kind)) {
                server.state(ResourceState::Waking, None);
            }
        }
    }

    pub(super) fn resource_reports(&self) -> Vec<ResourceReport> {
        let report = |spec: &ResourceSpec| {
            let kind = spec.resource.kind;
            let managed = spec.resource.mode == ResourceMode::Managed;
            let server = self.servers.values().find(|s| s.specs.iter().any(|known| known.resource.kind == kind));
            let server = server.filter(|_| managed);
            let name = driver(kind).name();
            let receipt = server.and_then(|_| self.shared.receipts.borrow().of(name));
            let stated = match (server, &spec.blocked, spec.resource.mode) {
                (_, _, ResourceMode::Disabled) => Stated::plain(ResourceState::Disabled, self.since),
                (_, Some(trouble), _) => Stated::because(ResourceState::Blocked, self.since, trouble.clone()),
                (Some(server), None, _) => self.stated_of(name, server),
                (None, None, _) => self
                    .outside(kind, spec.resource.service.as_ref().map(ServiceName::as_str))
                    .cloned()
                    .unwrap_or_else(|| Stated::plain(ResourceState::Ready, self.since)),
            };
            ResourceReport {
                kind,
                service: spec.resource.service.clone(),
                mode: spec.resource.mode,
                stated,
                consumers: spec.resource.consumers.clone(),
                receipt,
            }
        };
        self.spec.resources.iter().map(report).collect()
    }

    /// One that serves what it did not hold when it was put to sleep says so.
    fn stated_of(&self, name: &str, server: &Server) -> Stated<ResourceState> {
        let mut stated = server.stated.clone();
        if stated.state == ResourceState::Ready
            && let Some(trouble) = self.shared.receipts.borrow().trouble(name, self.shared.sandbox.hostname.as_str())
        {
            stated.reason = Some(trouble.reason);
            stated.hint = Some(trouble.hint);
        }
        stated
    }

    /// Begins to look at the files of servers: what is to be done before the first one is started does not wait for that.
    pub(super) fn look_ahead(&self) {
        let look =
            |(name, server): (&&'static str, &Server)| (*name, receipt::at_rest(name, server.context.borrow().clone()));
        self.shared.looks.borrow_mut().extend(self.servers.iter().map(look));
    }

    pub(super) fn start_servers(&mut self) {
        for (name, server) in &mut self.servers {
            if !server.wanted || server.active {
                continue;
            }
            server.active = true;
            server.run += 1;
            let (run, context, shared) = (server.run, server.context.subscribe(), Rc::clone(&self.shared));
            let (name, launch) = (*name, self.shared.launch());
            // Ends with the server's process; what happens on the way is told to the loop.
            tokio::task::spawn_local(async move {
                if let Err(trouble) = server::run(name, run, context, launch, &shared).await {
                    shared.tell(Event::ServerFailed { server: name, run, trouble });
                }
            });
        }
    }

    /// A service may need what none needed when the runtime woke. What runs already goes on; what nothing declares any
    /// more does so until the next sleep.
    pub(super) fn update_resources(&mut self, resources: Vec<ResourceSpec>) {
        if resources.is_empty() {
            return;
        }
        self.spec.resources = resources;
        self.update_outside();
        for (name, server) in servers(&self.spec, &self.shared, Timestamp::now()) {
            match self.servers.get_mut(name) {
                Some(known) => {
                    known.specs = server.specs;
                    let shares = server.context.borrow().shares.clone();
                    // What could not be prepared is tried again.
                    let again = known.serves && known.stated.state == ResourceState::Blocked;
                    let changed = known.context.send_if_modified(|context| {
                        let changed = context.shares != shares;
                        context.shares = shares;
                        changed || again
                    });
                    if changed && known.serves {
                        known.state(ResourceState::Waking, None);
                    }
                }
                None => drop(self.servers.insert(name, server)),
            }
        }
        self.note_database();
    }

    /// Tells the idle judge whom to ask.
    pub(super) fn note_database(&self) {
        let mut known = self.shared.database.borrow_mut();
        if known.is_none()
            && let (Some(server), Some(driver)) = (self.servers.get("database"), driver_of("database"))
        {
            *known = driver.watch(&server.context.borrow());
        }
    }

    pub(super) fn server_ready(&mut self, name: &'static str, run: u64) {
        let Some(server) = self.servers.get_mut(name).filter(|s| s.run == run) else { return };
        server.ready = boot::now();
        server.serves = true;
        server.state(ResourceState::Ready, None);
    }

    /// It serves, but what was asked for anew cannot be had.
    pub(super) fn server_unprepared(&mut self, name: &'static str, run: u64, trouble: Trouble) {
        let Some(server) = self.servers.get_mut(name).filter(|s| s.run == run) else { return };
        server.ready = boot::now();
        server.serves = true;
        let text = format!("{name}: {}", trouble.reason);
        server.state(ResourceState::Blocked, Some(trouble));
        self.note(LogLevel::Error, &text);
    }

    pub(super) fn server_failed(&mut self, name: &'static str, run: u64, trouble: Trouble) {
        let Some(server) = self.servers.get_mut(name).filter(|s| s.run == run) else { return };
        let text = format!("{name}: {}", trouble.reason);
        server.state(ResourceState::Blocked, Some(trouble));
        let pause = server.backoff.max(FIRST_BACKOFF);
        server.backoff = (pause * 2).min(LONGEST_BACKOFF);
        self.try_server_again(name, run, pause);
        self.note(LogLevel::Error, &text);
    }

    pub(super) fn server_ended(&mut self, name: &'static str, run: u64) {
        let Some(server) = self.servers.get_mut(name).filter(|s| s.run == run && s.active) else { return };
        if std::mem::take(&mut server.serves) {
            // It served: its recovery does the rest. One that ends again and again gets pauses between.
            let lived = boot::now().since(server.ready) >= LIVED;
            let pause = if lived { Duration::ZERO } else { server.backoff };
            server.backoff = (pause * 2).clamp(FIRST_BACKOFF, LONGEST_BACKOFF);
            server.state(ResourceState::Waking, None);
            self.try_server_again(name, run, pause);
            let when = if pause.is_zero() { "now".into() } else { format!("in {} ms", pause.as_millis()) };
            self.note(LogLevel::Warn, &format!("{name} ended unexpectedly; it is started again {when}"));
            return;
        }
        let sandbox = &self.shared.sandbox;
        let is_the_host_s = driver_of(name).is_some_and(|driver| driver.relayed(&server.context.borrow()).is_some());
        let trouble = if is_the_host_s {
            Trouble::new(format!("the {name} server of this host ended"), "it is started again by itself")
        } else if disk::has_no_space(&sandbox.dir) {
            let reason = format!("{name} ended before it answered, and there is no space left on the disk");
            Trouble::new(reason, disk::hint(&sandbox.dir))
        } else if share::is_used_up(sandbox.accounts.user.uid, &sandbox.dir) {
            let reason = format!("{name} ended before it answered, and the workspace's share of the disk is used up");
            Trouble::new(reason, disk::SHARE)
        } else {
            let hint = format!("`envforge logs {} {name}` has what it said", sandbox.hostname);
            Trouble::new(format!("{name} ended before it answered"), hint)
        };
        self.server_failed(name, run, trouble);
    }

    fn try_server_again(&self, server: &'static str, run: u64, pause: Duration) {
        let shared = Rc::clone(&self.shared);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(pause).await;
            shared.tell(Event::ServerDue { server, run });
        });
    }

    pub(super) fn server_due(&mut self, name: &'static str, run: u64) {
        if let Some(server) = self.servers.get_mut(name).filter(|s| s.run == run) {
            server.active = false;
        }
    }

    /// No server is started from here on. Those that there are, to be stopped, and whether they serve.
    pub(super) fn retire_servers(&mut self) -> Vec<(&'static str, Context, bool)> {
        self.end_outside();
        for server in self.servers.values_mut() {
            server.wanted = false;
            // News of its end is no failure any more.
            server.run += 1;
        }
        self.servers.iter().map(|(name, server)| (*name, server.context.borrow().clone(), server.serves)).collect()
    }

    pub(super) fn servers_stopped(&mut self) {
        for server in self.servers.values_mut() {
            server.state(ResourceState::Waking, None);
        }
    }
}
