//! The state of one runtime, and what follows from each event.

use super::{
    events::Event,
    idle,
    logs::Logs,
    meter::Meter,
    outside::Outside,
    process,
    protocol::{Answer, Ask, RuntimeSpec, Snapshot, VERSION},
    receipt::Receipts,
    redact::Redactor,
    reset::Reset,
    resource::Server,
    runs::Run,
    service::Service,
    setup::Setup,
};
use crate::{
    resources::{Watch, rest::Look},
    system::{SystemError, boot, cgroup::Limits, disk, sandbox::Sandbox},
};
use envforge_api::{
    generation::Generation,
    host::{Activity, Moment, StartVerdict, StepReport},
    ids::CommandId,
    secret::Secret,
    states::Trouble,
    stream::LogLevel,
    time::{BootMillis, Timestamp},
};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    io,
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc::UnboundedSender, watch},
    task::JoinHandle,
};

/// What tasks of the supervisor share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) sandbox: Sandbox,
    pub(super) logs: Logs,
    pub(super) events: UnboundedSender<Event>,
    pub(super) grace: Duration,
    /// The installation's prepared data.
    pub(super) templates: std::path::PathBuf,
    /// Whom the idle judge asks for database sessions, once there is a database.
    pub(super) database: RefCell<Option<Box<dyn Watch>>>,
    /// What data services held when they were put to sleep.
    pub(super) receipts: RefCell<Receipts>,
    /// Looks at the files of servers that this supervisor has not started yet.
    pub(super) looks: RefCell<BTreeMap<&'static str, JoinHandle<Look>>>,
    /// Servers that are about to be started.
    launches: watch::Sender<usize>,
}

/// A server that is about to be started, until this is dropped.
#[derive(Debug)]
pub(super) struct Launch(Rc<Shared>);

impl Drop for Launch {
    fn drop(&mut self) {
        self.0.launches.send_modify(|left| *left -= 1);
    }
}

impl Shared {
    /// A server is about to be started.
    pub(super) fn launch(self: &Rc<Self>) -> Launch {
        self.launches.send_modify(|left| *left += 1);
        Launch(Rc::clone(self))
    }

    /// Resolves when no server is about to be started.
    pub(super) async fn launched(&self) {
        // The sender lives as long as this.
        let _ = self.launches.subscribe().wait_for(|left| *left == 0).await;
    }

    /// Tells the loop. It ends only with the process, so that nothing is lost.
    pub(super) fn tell(&self, event: Event) {
        let _ = self.events.send(event);
    }
}

/// Where the runtime as a whole stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    /// Until every service was healthy once or had its time.
    Waking,
    Awake,
    /// Being stopped, for this reason.
    Sleeping(String),
}

/// How it goes on after an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goes {
    On,
    /// Everything is written: the supervisor ends.
    ToItsEnd,
}

/// First and longest pause before the last word is written again that a full disk refused.
const WRITE_AGAIN: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(5)];

/// One runtime.
#[derive(Debug)]
pub(super) struct Runtime {
    pub(super) shared: Rc<Shared>,
    pub(super) spec: RuntimeSpec,
    pub(super) generation: Generation,
    pub(super) phase: Phase,
    pub(super) since: Timestamp,
    /// Shown beside `waking` or `awake` when something about the runtime itself is worth telling.
    pub(super) remark: Option<Trouble>,
    pub(super) servers: BTreeMap<&'static str, Server>,
    pub(super) outside: Vec<Outside>,
    pub(super) services: Vec<Service>,
    pub(super) setups: BTreeMap<String, Setup>,
    pub(super) steps: Vec<StepReport>,
    pub(super) stopped: BTreeSet<String>,
    /// Services whose shell-layer set-up ended, with what went wrong.
    pub(super) released: BTreeMap<String, Option<Trouble>>,
    pub(super) start: Option<StartVerdict>,
    pub(super) runs: BTreeMap<CommandId, Run>,
    pub(super) reset: Option<Reset>,
    pub(super) hold_until: Option<Timestamp>,
    pub(super) meter: Meter,
    pub(super) metering: bool,
    judge: Option<idle::Memory>,
    /// When this supervisor began.
    begun: BootMillis,
    /// The last link traffic that counts.
    traffic: Option<BootMillis>,
    pub(super) activity: Activity,
    pub(super) published: watch::Sender<Arc<Snapshot>>,
    /// It stands still, by the number of the time.
    pub(super) still: Option<u64>,
    pub(super) stills: u64,
    /// Asleep but for the last word, which the disk refuses: why, and the pause before the next try.
    pub(super) unwritten: Option<(Trouble, Duration)>,
}

/// Longest pause between two looks at the idle judge; below the five seconds between two readings.
const SLOWEST_TICK: Duration = Duration::from_secs(4);
const FASTEST_TICK: Duration = Duration::from_millis(250);

impl Runtime {
    pub(super) fn new(mut spec: RuntimeSpec, events: UnboundedSender<Event>) -> Result<Self, SystemError> {
        let doing = |e: io::Error| SystemError::new("open the meter", e);
        // An earlier supervisor of this instance may have done some of the steps.
        let done = super::setup::read_done(&spec.sandbox.dir, envforge_manifest::Layer::Runtime);
        for service in &mut spec.services {
            service.setup.retain(|step| done.get(&step.name) != Some(&step.digest));
        }
        let dir = &spec.sandbox.dir;
        let group = &spec.sandbox.cgroups.runtime;
        let meter =
            Meter::open(dir, &spec.instance, &spec.boot, &spec.sandbox.workspace, spec.size, &spec.trigger, group);
        let shared = Rc::new(Shared {
            sandbox: spec.sandbox.clone(),
            logs: Logs::new(dir.join("logs"), Redactor::new(&spec.secrets)),
            events,
            grace: Duration::from_millis(spec.grace_ms),
            templates: spec.templates.clone(),
            database: RefCell::default(),
            receipts: RefCell::new(Receipts::new(&spec)),
            looks: RefCell::default(),
            launches: watch::Sender::new(0),
        });
        let now = Timestamp::now();
        let services: Vec<Service> = spec.services.iter().map(|s| Service::new(s.clone(), now)).collect();
        let setups = Setup::all(&spec.services);
        let wake = Moment { at: now, reason: spec.trigger.clone() };
        let mut runtime = Self {
            servers: super::resource::servers(&spec, &shared, now),
            outside: super::outside::all(&spec.resources, now),
            generation: spec.generation,
            stopped: spec.stopped.clone(),
            hold_until: spec.hold_until,
            phase: Phase::Waking,
            since: now,
            remark: None,
            steps: Vec::new(),
            released: BTreeMap::new(),
            start: None,
            runs: BTreeMap::new(),
            reset: None,
            meter: meter.map_err(doing)?,
            metering: false,
            judge: None,
            begun: boot::now(),
            traffic: None,
            activity: Activity { last_wake: Some(wake), ..Activity::default() },
            published: watch::Sender::new(Arc::new(Snapshot::empty(&spec, now))),
            still: None,
            stills: 0,
            unwritten: None,
            services,
            setups,
            shared,
            spec,
        };
        runtime.publish();
        Ok(runtime)
    }

    /// Deals with what an earlier supervisor of this instance left: services are ended (nobody reads their output),
    /// resource servers go on.
    pub(super) async fn take_over(&mut self) -> Result<(), SystemError> {
        let groups = &self.shared.sandbox.cgroups;
        let size = self.spec.size;
        let (cpu_millis, memory_bytes) = (size.cpu_millis(), size.memory_bytes());
        let limits = Limits { cpu_millis, memory_bytes, pids: 4096, cpu_weight: 100 };
        super::still::thaw(&self.shared.sandbox);
        self.shared.receipts.borrow_mut().begin(&self.spec);
        groups.runtime.ensure()?;
        groups.runtime.limit(limits)?;
        let mut lost = false;
        for name in ["services", "runs", "setup"] {
            let group = groups.runtime_child(name)?;
            if !group.is_empty() {
                lost = true;
                process::end(&group).await;
            }
        }
        if lost {
            let text = "the supervisor ended unexpectedly; its services were started again";
            self.note(LogLevel::Warn, text);
            self.remark = Some(Trouble::new(text, "nothing to do: data, files and terminals are as they were"));
        }
        Ok(())
    }

    /// Why this instance ended, if an earlier supervisor closed its meter and got no further: nothing of it may run
    /// again.
    pub(super) fn closed(&self) -> Option<String> {
        self.meter.closed().map(str::to_owned)
    }

    /// Starts the clock: readings and the idle judge.
    pub(super) fn begin(&mut self) {
        self.note(LogLevel::Info, &format!("waking ({})", self.spec.trigger));
        let shared = Rc::clone(&self.shared);
        let period = Duration::from_millis(self.spec.sleep_after_ms / 4).clamp(FASTEST_TICK, SLOWEST_TICK);
        self.note_database();
        // Ends with the supervisor. A question to the database that hangs delays the look, never the loop; the
        // reading is then late, and its seconds are not billed.
        tokio::task::spawn_local(async move {
            let mut clock = tokio::time::interval(period);
            clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            clock.tick().await;
            loop {
                clock.tick().await;
                let watch = shared.database.take();
                let work = match watch {
                    Some(mut watch) => {
                        let work = tokio::time::timeout(Duration::from_millis(700), watch.work()).await;
                        shared.database.replace(Some(watch));
                        work.unwrap_or_default()
                    }
                    None => None,
                };
                shared.tell(Event::Tick { database: work });
            }
        });
    }

    /// What follows from an event.
    ///
    /// # Errors
    /// When the end of the runtime cannot be written, and not for want of space.
    pub(super) fn handle(&mut self, event: Event) -> Result<Goes, SystemError> {
        match event {
            Event::ServiceEnded { name, run, status } => self.service_ended(&name, run, status),
            Event::Checked { name, run, outcome } => self.checked(&name, run, outcome),
            Event::Due { name, run } => self.service_due(&name, run),
            Event::Lasted { name, run } => self.service_lasted(&name, run),
            Event::ServerReady { server, run } => self.server_ready(server, run),
            Event::ServerUnprepared { server, run, trouble } => self.server_unprepared(server, run, trouble),
            Event::ServerFailed { server, run, trouble } => self.server_failed(server, run, trouble),
            Event::ServerEnded { server, run } => self.server_ended(server, run),
            Event::ServerDue { server, run } => self.server_due(server, run),
            Event::Outside { kind, service, run, trouble } => self.outside_seen((kind, service.as_ref()), run, trouble),
            Event::Step { service, step, ended } => self.step(&service, &step, ended),
            Event::SetupEnded { service, outcome } => self.setup_ended(&service, outcome),
            Event::RunEnded { id, exit_code, reason } => self.run_ended(&id, exit_code, reason),
            Event::Tick { database } => self.tick(database),
            Event::Asked { ask, answer } => {
                // A daemon that went away asks again after its return.
                let _ = answer.send(self.asked(ask));
            }
            Event::StoodTooLong { number } => self.stood_too_long(number),
            Event::Gone { reason } => return self.end(&reason),
        }
        Ok(Goes::On)
    }

    /// Comes to the end. What a full disk refuses is kept and tried again: without it nobody would know how this ended.
    fn end(&mut self, reason: &str) -> Result<Goes, SystemError> {
        let error = match self.finish(reason) {
            Ok(()) => return Ok(Goes::ToItsEnd),
            Err(error) if disk::is_full(&error.source) => error,
            Err(error) => return Err(error),
        };
        let [first, longest] = WRITE_AGAIN;
        let pause = self.unwritten.as_ref().map_or(first, |(_, pause)| (*pause * 2).min(longest));
        self.unwritten = Some((Trouble::new(error.to_string(), error.hint), pause));
        let (shared, reason) = (Rc::clone(&self.shared), reason.to_owned());
        tokio::task::spawn_local(async move {
            tokio::time::sleep(pause).await;
            shared.tell(Event::Gone { reason });
        });
        Ok(Goes::On)
    }

    fn asked(&mut self, ask: Ask) -> Answer {
        if let (Phase::Sleeping(_), Ask::Update { .. } | Ask::Run(_) | Ask::Reset(_)) = (&self.phase, &ask) {
            let trouble = Trouble::new("the runtime is going to sleep", "wake it again when it is asleep");
            return Answer::Refused { trouble };
        }
        match ask {
            Ask::Hello { .. } => return Answer::Hello { version: VERSION, instance: self.spec.instance.clone() },
            Ask::Update { processes, resources, restart, stopped, generation, secrets } => {
                self.mask(&secrets);
                self.update_resources(resources);
                self.generation = self.generation.max(generation);
                self.update(processes, &restart, stopped);
            }
            Ask::Release { services } => self.released.extend(services),
            Ask::Run(order) => {
                self.mask(&order.secrets);
                return self.begin_run(order);
            }
            Ask::Reset(order) => {
                self.mask(&order.secrets);
                return self.begin_reset(order);
            }
            Ask::CancelRun { id } => self.cancel_run(&id),
            Ask::Hold { until } => self.hold_until = until,
            Ask::Traffic { age_ms } => {
                self.traffic = self.traffic.max(Some(BootMillis(boot::now().0.saturating_sub(age_ms))));
            }
            Ask::StandStill { bound_ms, but } => return self.stand_still(bound_ms, &but),
            Ask::GoOn => {
                if !self.go_on() {
                    let trouble = Trouble::new("the workspace went on already", "it is tried again by itself");
                    return Answer::Refused { trouble };
                }
            }
            Ask::Sleep { reason } => self.go_to_sleep(reason),
        }
        Answer::Accepted
    }

    /// Masks these as well from now on. What something may still have is masked until this runtime's end.
    fn mask(&mut self, secrets: &[Secret]) {
        let known = self.spec.secrets.len();
        for new in secrets {
            if !self.spec.secrets.contains(new) {
                self.spec.secrets.push(new.clone());
            }
        }
        if self.spec.secrets.len() > known {
            self.shared.logs.set_redactor(Redactor::new(&self.spec.secrets));
        }
    }

    /// Starts whatever can be started now.
    pub(super) fn advance(&mut self) {
        if matches!(self.phase, Phase::Sleeping(_)) {
            return;
        }
        self.advance_reset();
        self.start_servers();
        self.watch_outside();
        self.start_setups();
        self.start_services();
        self.judge_start();
        self.meter_first_process();
    }

    fn meter_first_process(&mut self) {
        if !self.metering && !self.shared.sandbox.cgroups.runtime.is_empty() {
            self.metering = true;
            self.checkpoint();
        }
    }

    fn checkpoint(&mut self) {
        if let Err(error) = self.meter.checkpoint() {
            let text = format!("a reading could not be written ({}): it is kept until it can", error.kind());
            self.note(LogLevel::Error, &text);
        }
    }

    /// The runtime is awake when no service is quietly on its way any more: each was healthy, or shows what is wrong
    /// with it. START_RUNTIME is over when every service was healthy once or has had its time.
    fn judge_start(&mut self) {
        if self.start.is_some() {
            return;
        }
        let now = boot::now();
        let (mut late, mut undecided, mut quiet) = (Vec::new(), false, false);
        for service in &self.services {
            if self.stopped.contains(&service.spec.name) || service.was_healthy {
                continue;
            }
            let released = self.released.contains_key(&service.spec.service);
            let hopeless = service.is_hopeless(now, self.begun, released);
            undecided |= !hopeless;
            quiet |= !hopeless && service.is_quiet();
            late.push(service.spec.name.clone());
        }
        if !quiet && self.phase == Phase::Waking {
            self.phase = Phase::Awake;
            self.since = Timestamp::now();
            self.note(LogLevel::Info, "awake");
        }
        if !undecided {
            self.start =
                Some(if late.is_empty() { StartVerdict::Succeeded } else { StartVerdict::Failed { services: late } });
        }
    }

    fn tick(&mut self, database: Option<String>) {
        if self.metering {
            self.checkpoint();
        }
        if matches!(self.phase, Phase::Sleeping(_)) {
            return;
        }
        let now = Timestamp::now();
        if self.hold_until.is_some_and(|until| until <= now) {
            self.hold_until = None;
        }
        let mut running = self.running_commands();
        running.extend(self.steps.iter().filter(|s| !s.state.is_final()).map(|s| format!("setup {}", s.name)));
        let seen = idle::Observation {
            at: boot::now(),
            cpu_micros: self.shared.sandbox.cgroups.runtime.cpu_micros(),
            running,
            database,
            waking: self.start.is_none(),
            held: self.hold_until.is_some(),
            traffic: self.traffic,
        };
        let verdict = idle::judge(self.judge.as_ref(), &seen, self.spec.sleep_after_ms);
        let wall = |at: BootMillis| {
            let offset = i64::try_from(at.0).unwrap_or(0) - i64::try_from(seen.at.0).unwrap_or(0);
            now.checked_add(jiff::SignedDuration::from_millis(offset)).unwrap_or(now)
        };
        let idle_since = verdict.memory.idle_since.map(wall);
        // The same moment read again through the wall clock may differ by a few milliseconds: that is no news.
        let same_idle = idle_since.is_some() == self.activity.idle_since.is_some();
        if !same_idle || self.activity.holders != verdict.holders {
            self.activity.holders.clone_from(&verdict.holders);
            self.activity.idle_since = idle_since;
            self.activity.sleeps_at = verdict.sleeps_at.map(wall);
        }
        self.judge = Some(verdict.memory);
        if verdict.sleep {
            self.go_to_sleep("idle".into());
        }
    }
}
