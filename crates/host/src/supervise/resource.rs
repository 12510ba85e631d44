//! Resource servers of a runtime: made, started or adopted, prepared, restarted, stopped. What a server is, its
//! driver knows; one server may back several resources (a Redis is cache and queue).

use super::{
    events::Event,
    health, logs, process,
    protocol::{ResourceSpec, RuntimeSpec},
    reset,
    runtime::{Runtime, Shared},
    seed,
};
use crate::{
    resources::{Context, Driver, Share, driver},
    system::{
        SystemError, boot,
        cgroup::Group,
        disk, doors,
        enter::{As, Entry, base_environment},
        sandbox::DATA,
        spawn::Stream,
    },
};
use envforge_api::{
    host::ResourceReport,
    resource::{ResourceKind, ResourceMode},
    states::{ResourceState, Stated, Trouble},
    stream::LogLevel,
    time::{BootMillis, Timestamp},
};
use nix::unistd::Pid;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    rc::Rc,
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// How long a server may take until it answers; crash recovery of a large database takes its time.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a server may take to write down what it holds before it is killed.
const SERVER_GRACE: Duration = Duration::from_secs(30);
/// A server that cannot be started is tried again after this, doubling.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// A server that served so long did not end because of how it starts: it is started again at once.
const LIVED: u64 = 30_000;

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

fn driver_of(server: &str) -> Option<Box<dyn Driver>> {
    ResourceKind::ALL.iter().filter_map(|kind| driver(*kind)).find(|driver| driver.name() == server)
}

/// The servers that the spec's managed resources need.
pub(super) fn servers(spec: &RuntimeSpec, shared: &Shared, now: Timestamp) -> BTreeMap<&'static str, Server> {
    let mut all: BTreeMap<&'static str, Server> = BTreeMap::new();
    for resource in &spec.resources {
        if resource.blocked.is_some() || resource.resource.mode != ResourceMode::Managed {
            continue;
        }
        let Some(driver) = driver(resource.resource.kind) else { continue };
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
    pub(super) fn resource_trouble(&self, kind: ResourceKind) -> Option<Option<Trouble>> {
        for server in self.servers.values() {
            if server.specs.iter().any(|s| s.resource.kind == kind) {
                return match server.stated.state {
                    ResourceState::Ready => None,
                    ResourceState::Waking | ResourceState::Disabled => Some(None),
                    ResourceState::Blocked => Some(Some(Trouble::new(
                        server.stated.reason.clone().unwrap_or_default(),
                        server.stated.hint.clone().unwrap_or_default(),
                    ))),
                };
            }
        }
        let blocked = self.spec.resources.iter().find(|r| r.resource.kind == kind).and_then(|r| r.blocked.clone());
        blocked.map(Some)
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
            let server = self.servers.values().find(|s| s.specs.iter().any(|known| known.resource.kind == kind));
            let stated = match (server, &spec.blocked, spec.resource.mode) {
                (_, _, ResourceMode::Disabled) => Stated::plain(ResourceState::Disabled, self.since),
                (_, Some(trouble), _) => Stated::because(ResourceState::Blocked, self.since, trouble.clone()),
                (Some(server), None, _) => server.stated.clone(),
                (None, None, _) => Stated::plain(ResourceState::Ready, self.since),
            };
            ResourceReport {
                kind,
                service: spec.resource.service.clone(),
                mode: spec.resource.mode,
                stated,
                consumers: spec.resource.consumers.clone(),
            }
        };
        self.spec.resources.iter().map(report).collect()
    }

    pub(super) fn start_servers(&mut self) {
        for (name, server) in &mut self.servers {
            if !server.wanted || server.active {
                continue;
            }
            server.active = true;
            server.run += 1;
            let (run, context, shared) = (server.run, server.context.subscribe(), Rc::clone(&self.shared));
            let name = *name;
            // Ends with the server's process; what happens on the way is told to the loop.
            tokio::task::spawn_local(async move {
                if let Err(trouble) = run_server(name, run, context, &shared).await {
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
        let trouble = if disk::has_no_space(&sandbox.dir) {
            let reason = format!("{name} ended before it answered, and there is no space left on the disk");
            Trouble::new(reason, disk::hint(&sandbox.dir))
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

    /// No server is started from here on. Those that there are, to be stopped.
    pub(super) fn retire_servers(&mut self) -> Vec<(&'static str, Context)> {
        for server in self.servers.values_mut() {
            server.wanted = false;
            // News of its end is no failure any more.
            server.run += 1;
        }
        self.servers.iter().map(|(name, server)| (*name, server.context.borrow().clone())).collect()
    }

    pub(super) fn servers_stopped(&mut self) {
        for server in self.servers.values_mut() {
            server.state(ResourceState::Waking, None);
        }
    }
}

/// The group of a server's processes.
pub(super) fn group_of(shared: &Shared, server: &str) -> Result<Group, Trouble> {
    let group = shared.sandbox.cgroups.runtime_child(&format!("resources/{server}"));
    group.map_err(|e| Trouble::new(e.to_string(), e.hint))
}

/// Makes, starts (or adopts) and prepares one server, then waits for its end.
async fn run_server(
    name: &'static str,
    run: u64,
    mut contexts: watch::Receiver<Context>,
    shared: &Rc<Shared>,
) -> Result<(), Trouble> {
    let Some(driver) = driver_of(name) else { return Ok(()) };
    let context = contexts.borrow_and_update().clone();
    if let Some(place) = driver.relayed(&context) {
        return super::relay::run(driver.as_ref(), &place, run, contexts, shared).await;
    }
    let program = driver.program(context.home())?;
    let group = group_of(shared, name)?;
    let adopted = group.main_pid();
    let mut child = None;
    let pid = match adopted {
        Some(pid) => pid,
        None => {
            driver.ensure(&context).await?;
            let entry = Entry::new(&shared.sandbox, As::Resource, &group, DATA);
            let mut argv = vec![program.to_string_lossy().into_owned()];
            argv.extend(driver.arguments(&context));
            let environment = base_environment(&shared.sandbox.accounts.resource);
            // Output goes to a file, not to a pipe: the server outlives this supervisor.
            let out = raw_output(shared, name).and_then(|out| Ok((out.try_clone()?, out)));
            let (out, again) = out.map_err(|e| {
                let error = SystemError::new("write its log", e).on_disk(&shared.sandbox.dir);
                Trouble::new(error.to_string(), error.hint)
            })?;
            let streams = [Stream::Null, Stream::Given(out.into()), Stream::Given(again.into())];
            let started = entry.start(&argv, &environment, streams, false);
            let started = started
                .map_err(|e| Trouble::new(format!("cannot start {name}: {e}"), "is the workspace at its limits?"))?;
            let pid = started.id().and_then(|id| i32::try_from(id).ok()).unwrap_or(0);
            child = Some(started);
            pid
        }
    };
    let copying = tokio::task::spawn_local(follow_output(Rc::clone(shared), name));
    let ended = async {
        match &mut child {
            Some(child) => {
                let _ = child.wait().await;
            }
            // One that cannot be watched is taken for gone: what is left of it is ended below.
            None => drop(doors::wait_for_end(pid).await),
        }
        // Helpers of a server that was killed hold its files: nothing new starts before they are gone.
        let leftovers = tokio::time::timeout(Duration::from_millis(200), group.wait_empty()).await;
        if leftovers.is_err() {
            process::end(&group).await;
        }
    };
    let ready = async {
        wait_until_it_answers(driver.as_ref(), &context).await?;
        prepare(driver.as_ref(), shared, &context).await?;
        loop {
            let context = contexts.borrow_and_update().clone();
            let filled = async {
                prepare(driver.as_ref(), shared, &context).await?;
                seed::fill(shared, &context).await
            };
            let told = match filled.await {
                Ok(()) => Event::ServerReady { server: name, run },
                Err(trouble) => Event::ServerUnprepared { server: name, run, trouble },
            };
            // Of what is asked for by now it says nothing.
            if contexts.has_changed().is_ok_and(|changed| changed) {
                continue;
            }
            shared.tell(told);
            if contexts.changed().await.is_err() {
                break;
            }
        }
        std::future::pending::<Result<(), Trouble>>().await
    };
    let outcome = tokio::select! {
        () = ended => {
            shared.tell(Event::ServerEnded { server: name, run });
            Ok(())
        }
        failed = ready => {
            process::stop(&group, Duration::from_secs(5)).await;
            failed
        }
    };
    copying.abort();
    outcome
}

/// Has the server hold what is asked for, and nothing of what was to be wiped.
pub(super) async fn prepare(driver: &dyn Driver, shared: &Shared, context: &Context) -> Result<(), Trouble> {
    let due = reset::due(shared, context);
    reset::wipe(driver, context, &due).await?;
    driver.prepare(context).await?;
    reset::done(shared, &due)
}

pub(super) async fn wait_until_it_answers(driver: &dyn Driver, context: &Context) -> Result<(), Trouble> {
    let begun = Instant::now();
    while !driver.answers(context).await {
        if begun.elapsed() > PATIENCE {
            let reason = format!("{} does not answer after {} s", driver.name(), PATIENCE.as_secs());
            return Err(Trouble::new(reason, "its log may say why; it is tried again by itself"));
        }
        tokio::time::sleep(health::next_pause(begun.elapsed(), health::SLOWEST_START)).await;
    }
    Ok(())
}

fn raw_path(shared: &Shared, server: &str) -> std::path::PathBuf {
    shared.sandbox.dir.join("logs").join(format!("{server}.raw"))
}

fn raw_output(shared: &Shared, server: &str) -> io::Result<fs::File> {
    fs::OpenOptions::new().create(true).append(true).mode(0o600).open(raw_path(shared, server))
}

/// Copies what a server appends to its file into the log, and empties the file when it was read to the end.
async fn follow_output(shared: Rc<Shared>, server: &'static str) {
    const PAUSE: Duration = Duration::from_millis(500);
    loop {
        drain_output(&shared, server);
        tokio::time::sleep(PAUSE).await;
    }
}

/// Octets of output moved at once; more is dropped.
const MOST_OUTPUT: u64 = 4 << 20;

/// Moves whatever is in a server's output file into its log.
pub(super) fn drain_output(shared: &Shared, server: &'static str) {
    let path = raw_path(shared, server);
    let Ok(about) = fs::metadata(&path) else { return };
    if about.len() == 0 {
        return;
    }
    let Ok(file) = fs::File::open(&path) else { return };
    let mut bytes = Vec::new();
    // What was written while nobody read may be long; its beginning is what tells why.
    if file.take(MOST_OUTPUT).read_to_end(&mut bytes).is_err() {
        return;
    }
    // Lines that arrive between reading and emptying would be lost; the file is appended to, so they are rare and
    // the window is the time of one system call.
    if let Ok(file) = fs::OpenOptions::new().write(true).open(&path) {
        let _ = file.set_len(0);
    }
    for line in String::from_utf8_lossy(&bytes).lines() {
        shared.logs.write(server, logs::level_of(line), line);
    }
}

/// Ends a server in its own way, or by force when that takes too long.
pub(super) async fn stop(shared: &Shared, server: &str, context: &Context) {
    let Some(driver) = driver_of(server).filter(|driver| driver.relayed(context).is_none()) else { return };
    let Ok(group) = group_of(shared, server) else { return };
    if let Some(pid) = group.main_pid() {
        let ended = async {
            driver.stop(context, Pid::from_raw(pid)).await;
            group.wait_empty().await
        };
        if matches!(tokio::time::timeout(SERVER_GRACE, ended).await, Ok(Ok(_))) {
            return;
        }
    }
    process::end(&group).await;
}
