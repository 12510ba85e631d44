//! Keeps one workspace from using up the disk that all of a host share.
//!
//! Where the file system counts shares (btrfs with quotas), each workspace has a limit, and its own writes fail at it. Everywhere
//! a reserve is kept: below it, whoever took the space stands still, everyone else goes on, and all of it ends when
//! there is space again. [`judge`] decides.

mod judge;
mod writers;

use super::{
    hub::{Hub, Workspace},
    storage,
    values::Values,
};
use crate::{
    supervise::{logs::Logs, protocol::Ask, redact::Redactor},
    system::{
        copying,
        disk::{self, Space},
        sandbox::Sandbox,
        share,
    },
};
use envforge_api::{
    ids::WorkspaceId,
    states::{RuntimeState, Trouble},
    stream::LogLevel,
};
use judge::{Hold, Judge, Reserve, Step};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use writers::Writers;

/// Why a runtime sleeps that stands still for the disk, in receipts and in `why`.
pub const REASON: &str = "disk";
/// The reserve where none is set: a twentieth of the disk, and at most so much.
const LARGEST_RESERVE: u64 = 8 << 30;
/// Pauses between looks. There is no event for a disk that fills up.
const SELDOM: Duration = Duration::from_secs(1);
const OFTEN: Duration = Duration::from_millis(250);
const TIGHT: Duration = Duration::from_millis(100);
/// Where space does not shrink, sizes are looked at no more often than this, and for no more than a two-hundredth of the
/// time.
const SIZES: Duration = Duration::from_secs(60);

/// What an operator may set, in octets.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Kept free; 0 = nothing is.
    pub reserve: Option<u64>,
    /// What a workspace takes at most, where the file system counts that.
    pub limit: Option<u64>,
}

/// What the rest of the daemon knows of it.
#[derive(Debug)]
pub(super) struct Room {
    held: watch::Sender<BTreeSet<WorkspaceId>>,
    margin: watch::Sender<u64>,
}

impl Default for Room {
    fn default() -> Self {
        Self { held: watch::Sender::new(BTreeSet::new()), margin: watch::Sender::new(0) }
    }
}

impl Room {
    /// Why a workspace stands still, if it does.
    pub(super) fn holds(&self, workspace: &WorkspaceId) -> Option<Trouble> {
        self.held.borrow().contains(workspace).then(|| {
            let hint = "remove files of it, or snapshots (`envforge snapshot rm`); it can be woken again, and what was stopped \
                 in its shell goes on, when there is space";
            Trouble::new("the host's disk is nearly full, and this workspace took the space", hint)
        })
    }

    /// Octets that nothing large may take.
    pub(super) fn margin(&self) -> u64 {
        *self.margin.borrow()
    }
}

/// The daemon's part in the disk, until it ends.
pub(super) async fn keep(hub: Arc<Hub>, options: Options, stop: CancellationToken) {
    let mut guard = Guard::new(Arc::clone(&hub), options);
    let looks = async {
        loop {
            let pause = guard.look().await;
            tokio::time::sleep(pause).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = looks => {}
    }
}

/// When sizes were looked at last, how long it took, and what was free.
#[derive(Clone, Copy)]
struct Measured {
    at: Instant,
    took: Duration,
    free: u64,
}

struct Guard {
    hub: Arc<Hub>,
    options: Options,
    dir: PathBuf,
    judge: Judge,
    /// Those that stand still.
    held: BTreeMap<WorkspaceId, Writers>,
    /// Whose limit is set.
    limited: BTreeSet<WorkspaceId>,
    measured: Option<Measured>,
    said: String,
    /// It looked once.
    begun: bool,
}

impl Guard {
    fn new(hub: Arc<Hub>, options: Options) -> Self {
        let dir = hub.installation.home.join("workspaces");
        Self {
            hub,
            options,
            dir,
            judge: Judge::default(),
            held: BTreeMap::new(),
            limited: BTreeSet::new(),
            measured: None,
            said: String::new(),
            begun: false,
        }
    }

    fn reserve(&self, space: Space) -> Reserve {
        Reserve(self.options.reserve.unwrap_or((space.total / 20).min(LARGEST_RESERVE)))
    }

    /// One look; how long until the next.
    async fn look(&mut self) -> Duration {
        if !std::mem::replace(&mut self.begun, true) {
            // What an earlier daemon had stopped goes on; it is judged anew.
            self.hub.all().iter().for_each(|workspace| writers::go_on(&self.sandbox(workspace)));
        }
        let Ok(space) = disk::space(&self.dir) else { return SELDOM };
        let reserve = self.reserve(space);
        self.hub.room.margin.send_replace(reserve.margin());
        self.limit(space, reserve);
        if reserve.0 == 0 {
            self.keep_ballast(space, reserve);
            return SELDOM;
        }
        let all = self.hub.all();
        self.judge.keep_only(|id| all.iter().any(|workspace| &workspace.id == id));
        let plenty = space.free >= reserve.plenty();
        let shrank = |last: &Measured| !plenty && space.free < last.free.saturating_sub(reserve.0 / 64);
        let due =
            self.measured.as_ref().is_none_or(|last| last.at.elapsed() > SIZES.max(last.took * 200) || shrank(last));
        let sizes = self.sizes(&all, due, space.free).await;
        // What is free now, after a walk that may have taken its time.
        let space = disk::space(&self.dir).unwrap_or(space);
        for step in self.judge.look(reserve, space, &sizes) {
            match step {
                Step::Hold(id, hold) => self.hold(&all, &id, hold),
                Step::GiveBack => drop(fs::remove_file(self.ballast())),
                Step::Release => self.release(&all),
            }
        }
        self.keep_still(&all).await;
        self.keep_ballast(space, reserve);
        match space.free {
            free if free < reserve.plenty() => TIGHT,
            free if free < reserve.plenty().saturating_mul(2) => OFTEN,
            _ => SELDOM,
        }
    }

    /// Sizes of the workspaces that can write, if that is due, and of those that are new.
    async fn sizes(&mut self, all: &[Arc<Workspace>], due: bool, free: u64) -> BTreeMap<WorkspaceId, u64> {
        let wanted = |workspace: &&Arc<Workspace>| !self.judge.knows(&workspace.id) || (due && is_active(workspace));
        let places: Vec<_> = all.iter().filter(wanted).map(|workspace| Places::of(&self.hub, workspace)).collect();
        if places.is_empty() {
            return BTreeMap::new();
        }
        let begun = Instant::now();
        let measure = move || places.into_iter().map(|places| (places.workspace.clone(), places.size())).collect();
        let sizes = tokio::task::spawn_blocking(measure).await.unwrap_or_default();
        if due {
            self.measured = Some(Measured { at: Instant::now(), took: begun.elapsed(), free });
        }
        sizes
    }

    fn hold(&mut self, all: &[Arc<Workspace>], id: &WorkspaceId, hold: Hold) {
        let Some(workspace) = all.iter().find(|workspace| &workspace.id == id) else { return };
        self.held.entry(id.clone()).or_default();
        self.hub.room.held.send_modify(|held| {
            held.insert(id.clone());
        });
        let sandbox = self.sandbox(workspace);
        let what = match hold {
            Hold::Writers => "its runtime goes to sleep, and what writes in its shell is stopped until there is space",
            Hold::All => "its runtime goes to sleep, and its shell stands still until there is space",
        };
        if hold == Hold::All
            && let Err(error) = sandbox.cgroups.shell.freeze(true)
        {
            tracing::error!(workspace = %id, %error, "a shell that fills the disk cannot be stopped");
        }
        let line = format!("the host's disk is nearly full, and this workspace took the space: {what}");
        tracing::warn!(workspace = %id, ?hold, "the disk is nearly full: who took the space stands still");
        Logs::new(sandbox.dir.join("logs"), Redactor::default()).system(LogLevel::Warn, &line);
        self.hub.touch(id);
    }

    /// Sees to it that those that are held are still, whatever was started since.
    async fn keep_still(&mut self, all: &[Arc<Workspace>]) {
        for workspace in all {
            let sandbox = self.sandbox(workspace);
            let Some(writers) = self.held.get_mut(&workspace.id) else { continue };
            if let Err(error) = writers.stop(&sandbox) {
                tracing::error!(workspace = %workspace.id, %error, "what fills the disk cannot be stopped");
            }
            let (supervisor, state) = {
                let facts = workspace.runtime.borrow();
                (facts.supervisor.clone(), facts.snapshot.as_ref().map(|snapshot| snapshot.runtime.state))
            };
            if let Some(supervisor) = supervisor.filter(|_| state != Some(RuntimeState::Sleeping)) {
                // One that is gone is asleep, or asked again when it was replaced.
                let _ = supervisor.ask(Ask::Sleep { reason: REASON.into() }).await;
            }
        }
    }

    fn release(&mut self, all: &[Arc<Workspace>]) {
        self.hub.room.held.send_replace(BTreeSet::new());
        for id in std::mem::take(&mut self.held).into_keys() {
            if let Some(workspace) = all.iter().find(|workspace| workspace.id == id) {
                let sandbox = self.sandbox(workspace);
                // One that is gone stands still for good.
                let _ = sandbox.cgroups.shell.freeze(false);
                writers::go_on(&sandbox);
                let line = "there is space on the host's disk again: what was stopped in the shell goes on, and the runtime can be woken";
                Logs::new(sandbox.dir.join("logs"), Redactor::default()).system(LogLevel::Info, line);
            }
            self.hub.touch(&id);
        }
    }

    fn sandbox(&self, workspace: &Workspace) -> Sandbox {
        let slug = workspace.intent.borrow().slug.clone();
        Sandbox::of(&self.hub.installation, &workspace.id, workspace.index, &slug)
    }

    fn ballast(&self) -> PathBuf {
        self.dir.join(".reserve")
    }

    /// Takes the ballast where it was given back and there is plenty again; as much as is set now.
    fn keep_ballast(&mut self, space: Space, reserve: Reserve) {
        let there = fs::metadata(self.ballast()).map(|about| about.len()).ok();
        if reserve.0 == 0 || there.is_some_and(|octets| octets > reserve.ballast()) {
            let _ = fs::remove_file(self.ballast());
        }
        let enough = there == Some(reserve.ballast()) || reserve.0 == 0;
        if enough || space.free < reserve.plenty() {
            return;
        }
        match disk::take(&self.ballast(), reserve.ballast()) {
            Ok(()) => self.said.clear(),
            Err(error) => {
                // What of it was taken is of no use.
                let _ = fs::remove_file(self.ballast());
                self.complain(&error, "nothing is held in reserve on the disk");
            }
        }
    }

    /// Sets the limit of workspaces that have none yet, where the file system counts.
    fn limit(&mut self, space: Space, reserve: Reserve) {
        let octets = self.options.limit.unwrap_or(space.total.saturating_sub(reserve.0) / 2);
        for workspace in self.hub.all() {
            // Its trees are made first.
            if self.limited.contains(&workspace.id) || workspace.sandbox.borrow().is_none() {
                continue;
            }
            let uid = self.sandbox(&workspace).accounts.user.uid;
            self.limited.insert(workspace.id.clone());
            if let Err(error) = share::limit(uid, octets, &self.dir) {
                self.complain(&error, "what a workspace takes of the disk is not limited");
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

/// Whether anything runs that could write.
fn is_active(workspace: &Workspace) -> bool {
    let sandbox = workspace.sandbox.borrow().clone();
    sandbox.is_some_and(|sandbox| !sandbox.cgroups.shell.is_empty() || !sandbox.cgroups.runtime.is_empty())
}

/// Where a workspace has something on the disk.
struct Places {
    workspace: WorkspaceId,
    trees: Vec<PathBuf>,
    /// Where the storage server has objects, and the names of the workspace's buckets.
    storage: PathBuf,
    buckets: Vec<String>,
}

impl Places {
    fn of(hub: &Hub, workspace: &Workspace) -> Self {
        let dir = hub.installation.workspace_dir(&workspace.id);
        let buckets = Values::of(&dir).keyring().all().map(|bucket| bucket.name.clone()).collect();
        let snapshots = hub.installation.home.join("snapshots").join(workspace.id.as_str());
        Self {
            workspace: workspace.id.clone(),
            trees: vec![dir, snapshots],
            storage: storage::place(hub).dir(),
            buckets,
        }
    }

    fn size(&self) -> u64 {
        let trees: u64 = self.trees.iter().map(|tree| copying::size_of(tree)).sum();
        trees + self.buckets.iter().map(|bucket| self.objects(bucket)).sum::<u64>()
    }

    /// `MinIO` has a directory for each bucket, `SeaweedFS` files that begin with its name (a collection's volumes).
    fn objects(&self, bucket: &str) -> u64 {
        let minio = copying::size_of(&self.storage.join("minio").join(bucket));
        let volume = format!("{bucket}_");
        let entries = fs::read_dir(self.storage.join("seaweedfs")).into_iter().flatten().flatten();
        let of_bucket = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&volume));
        minio + of_bucket.map(|entry| copying::size_of(&entry.path())).sum::<u64>()
    }
}
