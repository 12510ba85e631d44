//! What is done about the disk: looks at it, and has workspaces stand still and go on as the judge decides.
//!
//! Rules kept here: what is decided is in the run directory before it is done, and found there by the next daemon; the
//! ballast is given back only when whoever took the space is known to stand still; sizes are looked at beside the looks
//! at what is free, which wait for nothing.

use super::{
    Options,
    judge::{Hold, Judge, Measured, Reserve, Sizes, Step},
    sizes::Places,
    writers::{self, Writers},
};
use crate::{
    daemon::hub::{Hub, Workspace},
    supervise::{
        logs::Logs,
        protocol::{self, Ask},
        redact::Redactor,
        still,
    },
    system::{
        copying,
        disk::{self, Space},
        files,
        sandbox::Sandbox,
        share,
    },
};
use envforge_api::{host::DesiredShell, ids::WorkspaceId, states::RuntimeState, stream::LogLevel};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The reserve where none is set: a twentieth of the disk, and at most so much.
const LARGEST_RESERVE: u64 = 8 << 30;
/// Pauses between looks. There is no event for a disk that fills up.
const SELDOM: Duration = Duration::from_secs(1);
const OFTEN: Duration = Duration::from_millis(250);
const TIGHT: Duration = Duration::from_millis(100);
/// Where what is free does not change, sizes are looked at no more often than this, and for no more than a two-hundredth
/// of the time.
const SIZES: Duration = Duration::from_secs(60);
/// How long a workspace may take to stand still.
const STOPPING: Duration = Duration::from_secs(2);
/// A supervisor that was asked to put a runtime to sleep is asked again after this.
const ASKED: Duration = Duration::from_secs(5);

/// Goes on with what an earlier daemon decided: to be called before anything of a workspace is taken over, since what
/// stands still then is let go on.
pub(in crate::daemon) fn begin(hub: Arc<Hub>, options: Options) -> Guard {
    let mut guard = Guard::new(hub, options);
    guard.begin();
    guard
}

/// The daemon's part in the disk, until it ends.
pub(in crate::daemon) async fn keep(mut guard: Guard, stop: CancellationToken) {
    let looks = async {
        loop {
            let pause = guard.look().await;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = guard.measured() => {}
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = looks => {}
    }
}

/// A look at sizes.
#[derive(Clone, Copy)]
struct Measure {
    begun: Instant,
    /// What was free then.
    free: u64,
    in_time: bool,
    /// All that can write are in it, and not only those that are new.
    due: bool,
}

/// One that stands still.
#[derive(Default)]
struct Still {
    writers: Writers,
    asked: Option<Instant>,
}

pub(in crate::daemon) struct Guard {
    hub: Arc<Hub>,
    options: Options,
    dir: PathBuf,
    judge: Judge,
    still: BTreeMap<WorkspaceId, Still>,
    /// Whose limit is set.
    limited: BTreeSet<WorkspaceId>,
    /// Extents are shared here: a snapshot takes nothing when it is made.
    shares: bool,
    /// Under way.
    measuring: Option<(Measure, JoinHandle<Sizes>)>,
    /// Done, and not judged yet.
    sizes: Option<(Measure, Sizes)>,
    /// The last one, and how long it took.
    last: Option<(Measure, Duration)>,
    /// Those that were looked at.
    seen: BTreeSet<WorkspaceId>,
    said: String,
}

impl Guard {
    fn new(hub: Arc<Hub>, options: Options) -> Self {
        let dir = hub.installation.home.join("workspaces");
        Self {
            hub,
            options,
            dir,
            judge: Judge::default(),
            still: BTreeMap::new(),
            limited: BTreeSet::new(),
            shares: false,
            measuring: None,
            sizes: None,
            last: None,
            seen: BTreeSet::new(),
            said: String::new(),
        }
    }

    /// Goes on with what an earlier daemon decided.
    fn begin(&mut self) {
        self.shares = copying::way_between(&self.dir, &self.dir) == copying::Way::Clone;
        let noted = fs::read(self.noted()).ok();
        self.judge = noted.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let held = self.judge.held();
        self.still = held.keys().map(|id| (id.clone(), Still::default())).collect();
        for workspace in self.hub.all().iter().filter(|workspace| !held.contains_key(&workspace.id)) {
            writers::go_on(&self.sandbox(workspace));
        }
        self.hub.room.hold(held);
    }

    fn noted(&self) -> PathBuf {
        self.hub.installation.run.join("disk.json")
    }

    fn reserve(&self, space: Space) -> Reserve {
        Reserve(self.options.reserve.unwrap_or((space.total / 20).min(LARGEST_RESERVE)))
    }

    /// Resolves when sizes are there.
    async fn measured(&mut self) {
        let Some((measure, sizes)) = &mut self.measuring else { return std::future::pending().await };
        let sizes = sizes.await.unwrap_or_default();
        if measure.due {
            self.last = Some((*measure, measure.begun.elapsed()));
        }
        self.sizes = Some((*measure, sizes));
        self.measuring = None;
    }

    /// One look; how long until the next.
    async fn look(&mut self) -> Duration {
        let Ok(space) = disk::space(&self.dir) else { return SELDOM };
        let reserve = self.reserve(space);
        let all = self.hub.all();
        self.hub.room.keep(reserve.margin());
        self.limit(&all, space, reserve).await;
        if reserve.0 == 0 {
            // Set so by now: nobody stands still for it any more.
            self.judge_none(&all);
            self.keep_ballast(space, reserve).await;
            return SELDOM;
        }
        let stays = |id: &WorkspaceId| all.iter().any(|workspace| &workspace.id == id && !is_to_go(workspace));
        let mut steps = self.judge.keep_only(stays);
        let sizes = self.sizes.take();
        let measured = sizes.as_ref().map(|(of, sizes)| Measured { sizes, free: of.free, in_time: of.in_time });
        steps.extend(self.judge.look(reserve, space, measured));
        if !steps.is_empty() {
            self.note();
        }
        for step in steps {
            match step {
                Step::Hold(id, hold) => self.hold(&all, &id, hold).await,
                Step::GiveBack => self.give_back_to_others(&all).await,
                Step::Release(id) => self.release(&all, &id),
            }
        }
        self.keep_still(&all);
        self.keep_ballast(space, reserve).await;
        self.measure(&all, space, reserve);
        match space.free {
            free if free < reserve.plenty() => TIGHT,
            free if free < reserve.plenty().saturating_mul(2) => OFTEN,
            _ => SELDOM,
        }
    }

    /// Has sizes looked at where that is worth it.
    fn measure(&mut self, all: &[Arc<Workspace>], space: Space, reserve: Reserve) {
        if self.measuring.is_some() {
            return;
        }
        let plenty = space.free >= reserve.plenty();
        let is_emergency = |free: u64| free < reserve.emergency();
        let changed = |last: &Measure| {
            let begins = is_emergency(space.free) && !is_emergency(last.free);
            begins || (!plenty && space.free.abs_diff(last.free) > reserve.step())
        };
        let over = |last: &Measure, took: Duration| last.begun.elapsed() > SIZES.max(took * 200);
        let in_time = self.last.as_ref().is_none_or(|(last, took)| over(last, *took));
        let due = in_time || self.last.as_ref().is_some_and(|(last, _)| changed(last));
        let mut places = Vec::new();
        for workspace in all {
            let new = !self.seen.contains(&workspace.id);
            if !new && !due {
                continue;
            }
            let sandbox = self.sandbox(workspace);
            if new || self.still.contains_key(&workspace.id) || is_active(&sandbox) {
                self.seen.insert(workspace.id.clone());
                let open = space.free < reserve.margin();
                places.push(Places::of(&self.hub, workspace, &sandbox, !self.shares, open));
            }
        }
        if places.is_empty() && !due {
            return;
        }
        let measure = Measure { begun: Instant::now(), free: space.free, in_time, due };
        let look = move || places.into_iter().map(|places| (places.workspace.clone(), places.size())).collect();
        self.measuring = Some((measure, tokio::task::spawn_blocking(look)));
    }

    fn judge_none(&mut self, all: &[Arc<Workspace>]) {
        let steps = self.judge.keep_only(|_| false);
        if steps.is_empty() {
            return;
        }
        self.note();
        for step in steps {
            if let Step::Release(id) = step {
                self.release(all, &id);
            }
        }
    }

    /// Decisions for the next daemon.
    fn note(&self) {
        let bytes = serde_json::to_vec(&self.judge).unwrap_or_default();
        if let Err(error) = files::write_whole(&self.noted(), &bytes, 0o600) {
            tracing::error!(%error, "who stands still for the disk cannot be noted");
        }
        self.hub.room.hold(self.judge.held());
    }

    async fn hold(&mut self, all: &[Arc<Workspace>], id: &WorkspaceId, hold: Hold) {
        let Some(workspace) = all.iter().find(|workspace| &workspace.id == id) else { return };
        let sandbox = self.sandbox(workspace);
        self.still.entry(id.clone()).or_default();
        let what = match hold {
            Hold::Writers => "its runtime goes to sleep, and what writes in its shell is stopped until there is space",
            Hold::All => "its runtime goes to sleep, and its shell stands still until there is space",
        };
        tracing::warn!(workspace = %id, ?hold, "the disk is nearly full: who took the space stands still");
        if hold == Hold::All {
            self.stand_still(&sandbox, id).await;
        }
        let line = format!("the host's disk is nearly full, and this workspace took the space: {what}");
        Logs::new(sandbox.dir.join("logs"), Redactor::default()).system(LogLevel::Warn, &line);
        self.hub.touch(id);
    }

    /// Everything of it, its servers too, and known to be.
    async fn stand_still(&mut self, sandbox: &Sandbox, id: &WorkspaceId) {
        if sandbox.cgroups.shell.doors.is_some()
            && let Some(still) = self.still.get_mut(id)
            && let Err(error) = still.writers.stop(sandbox, true)
        {
            tracing::error!(workspace = %id, %error, "a shell that fills the disk cannot be stopped");
        }
        let groups = still::writers(sandbox, &BTreeSet::new());
        for error in groups.iter().filter_map(|group| group.freeze(true).err()) {
            tracing::error!(workspace = %id, %error, "what fills the disk cannot be stopped");
        }
        let all = futures_util::future::join_all(groups.iter().map(|group| group.wait_frozen()));
        if tokio::time::timeout(STOPPING, all).await.is_err() {
            tracing::warn!(workspace = %id, "a process that fills the disk does not stand still");
        }
    }

    /// Sees to it that those that are held are still, whatever was started or let go on since.
    fn keep_still(&mut self, all: &[Arc<Workspace>]) {
        let held = self.judge.held();
        for (id, still) in &mut self.still {
            let Some(workspace) = all.iter().find(|workspace| &workspace.id == id) else { continue };
            let slug = workspace.intent.borrow().slug.clone();
            let sandbox = Sandbox::of(&self.hub.installation, &workspace.id, workspace.index, &slug);
            let whole = held.get(id) == Some(&Hold::All);
            let shell = &sandbox.cgroups.shell;
            let stopped = match (whole, shell.doors.is_some()) {
                (true, false) => shell.freeze(true),
                (_, without_groups) => still.writers.stop(&sandbox, whole && without_groups),
            };
            if let Err(error) = stopped {
                tracing::error!(workspace = %id, %error, "what fills the disk cannot be stopped");
            }
            let (supervisor, state) = {
                let facts = workspace.runtime.borrow();
                (facts.supervisor.clone(), facts.snapshot.as_ref().map(|snapshot| snapshot.runtime.state))
            };
            let again = still.asked.is_none_or(|asked| asked.elapsed() > ASKED);
            if let Some(supervisor) = supervisor.filter(|_| again && state != Some(RuntimeState::Sleeping)) {
                still.asked = Some(Instant::now());
                // One that is gone is asleep, or asked again when it was replaced. Ends with the supervisor's answer.
                tokio::spawn(async move { supervisor.ask(Ask::Sleep { reason: protocol::DISK.into() }).await });
            }
        }
    }

    fn release(&mut self, all: &[Arc<Workspace>], id: &WorkspaceId) {
        self.still.remove(id);
        if let Some(workspace) = all.iter().find(|workspace| &workspace.id == id) {
            let sandbox = self.sandbox(workspace);
            if sandbox.cgroups.shell.doors.is_none() {
                still::thaw(&sandbox);
            }
            writers::go_on(&sandbox);
            let line = "there is space on the host's disk again: what was stopped in the shell goes on, and the runtime can be woken";
            Logs::new(sandbox.dir.join("logs"), Redactor::default()).system(LogLevel::Info, line);
        }
        self.hub.touch(id);
    }

    fn sandbox(&self, workspace: &Workspace) -> Sandbox {
        let slug = workspace.intent.borrow().slug.clone();
        Sandbox::of(&self.hub.installation, &workspace.id, workspace.index, &slug)
    }

    fn ballast(&self) -> PathBuf {
        self.dir.join(".reserve")
    }

    /// The ballast goes, once whoever took the rest stands still: also if an earlier daemon had decided that and was killed.
    async fn give_back_to_others(&mut self, all: &[Arc<Workspace>]) {
        if !self.ballast().exists() {
            return;
        }
        for (id, _) in self.judge.held().into_iter().filter(|(_, hold)| *hold == Hold::All) {
            if let Some(workspace) = all.iter().find(|workspace| workspace.id == id) {
                self.stand_still(&self.sandbox(workspace), &id).await;
            }
        }
        self.give_back().await;
    }

    /// Giving gigabytes back takes a while.
    async fn give_back(&self) {
        let ballast = self.ballast();
        // Not there is as wanted.
        let _ = tokio::task::spawn_blocking(move || fs::remove_file(ballast)).await;
    }

    /// Takes the ballast where it was given back and there is plenty again; as much as is set now.
    async fn keep_ballast(&mut self, space: Space, reserve: Reserve) {
        let there = fs::metadata(self.ballast()).map(|about| about.len()).ok();
        if there.is_some_and(|octets| reserve.0 == 0 || octets > reserve.ballast()) {
            self.give_back().await;
        }
        let enough = there == Some(reserve.ballast()) || reserve.0 == 0;
        if enough || space.free < reserve.plenty() {
            return;
        }
        let ballast = self.ballast();
        let taken = tokio::task::spawn_blocking(move || disk::take(&ballast, reserve.ballast())).await;
        match taken {
            Ok(Ok(())) => self.said.clear(),
            Ok(Err(error)) => {
                // What of it was taken is of no use.
                self.give_back().await;
                self.complain(&error, "nothing is held in reserve on the disk");
            }
            Err(_) => {}
        }
    }

    /// Sets the limit of workspaces that have none yet, where the file system counts.
    async fn limit(&mut self, all: &[Arc<Workspace>], space: Space, reserve: Reserve) {
        let octets = self.options.limit.unwrap_or(space.total.saturating_sub(reserve.0) / 2);
        for workspace in all {
            // Its trees are made first.
            if self.limited.contains(&workspace.id) || workspace.sandbox.borrow().is_none() {
                continue;
            }
            let (uid, dir) = (self.sandbox(workspace).accounts.user.uid, self.dir.clone());
            match tokio::task::spawn_blocking(move || share::limit(uid, octets, &dir)).await {
                Ok(Ok(_)) => {
                    self.limited.insert(workspace.id.clone());
                }
                Ok(Err(error)) => self.complain(&error, "what a workspace takes of the disk is not limited"),
                Err(_) => {}
            }
        }
    }

    /// Once for each that is new.
    fn complain(&mut self, error: &dyn std::fmt::Display, what: &str) {
        let said = error.to_string();
        if said != self.said {
            tracing::warn!(error = said, "{what}");
            self.said = said;
        }
    }
}

fn is_to_go(workspace: &Workspace) -> bool {
    workspace.intent.borrow().shell == DesiredShell::Absent
}

/// Whether anything runs that could write.
fn is_active(sandbox: &Sandbox) -> bool {
    !sandbox.cgroups.shell.is_empty() || !sandbox.cgroups.runtime.is_empty()
}
