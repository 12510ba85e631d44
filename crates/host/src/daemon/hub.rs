//! What the parts of the daemon share: the workspaces it knows and what is true of each right now.
//!
//! Each value has one writer. Everyone else reads through watch channels, so a change wakes them and nothing polls.

use super::{disk::Room, intents::Unkept, ledger::Ledger, supervisor::Supervisor};
use crate::{
    supervise::protocol::Snapshot,
    system::{accounts::Account, installation::Installation, sandbox::Sandbox},
};
use envforge_api::{
    capability::VerifyKey,
    client::Endpoint,
    copy::{CopyReport, SnapshotView},
    generation::Generation,
    host::{DesiredShell, Face, Refusal, StepReport, WorkspaceIntent},
    ids::{AttachId, CommandId, HostId, WorkspaceId},
    names::ServiceName,
    problem::Diagnostic,
    project::RuntimeSize,
    resource::ResourceKind,
    secret::Secret,
    states::{ShellState, Stated, Trouble},
    time::Timestamp,
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Shared state of one daemon.
#[derive(Debug)]
pub struct Hub {
    /// The installation.
    pub installation: Installation,
    /// Owner of the git cache.
    pub cache_account: Account,
    /// Who this host is; known after the first registration ever (ledgered).
    pub host: watch::Sender<Option<HostId>>,
    /// Keys that capabilities are verified with (ledgered: streams work with the control plane away).
    pub keys: watch::Sender<Vec<VerifyKey>>,
    /// Revoked attach sessions.
    pub revoked: watch::Sender<BTreeSet<AttachId>>,
    /// After a reboot no runtime starts before one successful sync.
    pub may_wake: watch::Sender<bool>,
    /// Control plane.
    pub server: Endpoint,
    /// The host's token.
    pub token: Secret,
    /// Bumped whenever something that is reported changed.
    pub dirty: watch::Sender<u64>,
    /// The workspaces it changed of, until they are looked at.
    changed: Mutex<BTreeSet<WorkspaceId>>,
    ledger: Mutex<Ledger>,
    /// Who stands still because the disk is nearly full.
    pub(super) room: Room,
    /// Intents that are not accepted, because the ledger could not be written.
    unkept: Mutex<BTreeMap<WorkspaceId, Unkept>>,
    workspaces: Mutex<BTreeMap<WorkspaceId, Arc<Workspace>>>,
    /// Runs of the shell layer under way, with what cancels them.
    shell_runs: Mutex<BTreeMap<CommandId, CancellationToken>>,
    /// The newest acts that this daemon took, oldest first.
    seen: Mutex<VecDeque<CommandId>>,
}

/// Acts that are remembered after their end was recorded: far more than can be on their way at once.
const REMEMBERED_ACTS: usize = 1000;

/// How long a stream waits for a daemon that has just begun.
const SETTLES: Duration = Duration::from_secs(10);

/// The runtime of a workspace as the daemon knows it.
#[derive(Debug, Clone, Default)]
pub struct RuntimeFacts {
    /// This daemon has looked at what an earlier one left: what follows is true.
    pub known: bool,
    /// What the supervisor said last, or left when it ended.
    pub snapshot: Option<Snapshot>,
    /// The supervisor, while one runs.
    pub supervisor: Option<Arc<Supervisor>>,
    /// It could not be started at this generation.
    pub failed: Option<(Generation, Trouble, Timestamp)>,
    /// The daemon is starting it: for what is shown before the supervisor says anything.
    pub starting: Option<Timestamp>,
    /// Size of the last start.
    pub size: Option<RuntimeSize>,
    /// Findings in envforge.yml files, read last.
    pub diagnostics: Vec<Diagnostic>,
    /// Services whose envforge.yml differs from the one they run with.
    pub stale: BTreeSet<String>,
    /// Restarts that were refused.
    pub refused: Vec<Refusal>,
}

/// One workspace as the daemon knows it.
#[derive(Debug)]
pub struct Workspace {
    /// Its id.
    pub id: WorkspaceId,
    /// Small number on this host.
    pub index: u32,
    /// The accepted intent.
    pub intent: watch::Sender<WorkspaceIntent>,
    /// The shell layer as users see it.
    pub shell: watch::Sender<Stated<ShellState>>,
    /// The intent at which preparing the shell failed last.
    pub shell_failed: watch::Sender<Generation>,
    /// What preparation is doing now, for people who wait (`cloning backend`).
    pub progress: watch::Sender<String>,
    /// How to enter, once it exists.
    pub sandbox: watch::Sender<Option<Sandbox>>,
    /// Held by whoever runs shell-layer setup steps: a step never runs twice at once.
    pub setup: Arc<tokio::sync::Mutex<()>>,
    /// Shell-layer setup steps.
    pub steps: watch::Sender<Vec<StepReport>>,
    /// What services show to a gateway, as their envforge.yml files said when they were read last.
    pub faces: watch::Sender<Vec<Face>>,
    /// The runtime.
    pub runtime: watch::Sender<RuntimeFacts>,
    /// Data services that are to be wiped while the runtime is awake.
    pub resets: mpsc::UnboundedSender<Reset>,
    /// The same, for the task that keeps the runtime.
    pub(super) resets_asked: Mutex<Option<mpsc::UnboundedReceiver<Reset>>>,
    /// Held by whoever copies it, restores it or removes a copy of it: one at a time.
    pub copies: tokio::sync::Mutex<()>,
    /// Between a copy of it at rest and whoever ends that rest.
    pub rest: Rest,
    /// Has the shell layer looked at again.
    pub again: tokio::sync::Notify,
    /// What making it as a copy cost.
    pub copied: watch::Sender<Option<CopyReport>>,
    /// Its snapshots.
    pub snapshots: watch::Sender<Vec<SnapshotView>>,
    /// Why its provisioners cannot be had, as far as they were asked since the wake.
    pub cloud: watch::Sender<BTreeMap<(ResourceKind, Option<ServiceName>), Trouble>>,
}

/// A copy of a workspace at rest needs that nothing of it starts or is removed meanwhile, and gives way to whoever wants
/// that.
#[derive(Debug, Default)]
pub struct Rest {
    alone: Arc<tokio::sync::Mutex<()>>,
    waiting: watch::Sender<usize>,
}

/// Someone waits, until this is dropped.
struct Waiting<'a>(&'a watch::Sender<usize>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting -= 1);
    }
}

impl Rest {
    /// For a copy.
    pub async fn hold(&self) -> tokio::sync::OwnedMutexGuard<()> {
        Arc::clone(&self.alone).lock_owned().await
    }

    /// For whoever starts, exchanges or removes something: a copy gives way.
    pub async fn claim(&self) -> tokio::sync::OwnedMutexGuard<()> {
        self.waiting.send_modify(|waiting| *waiting += 1);
        let _waiting = Waiting(&self.waiting);
        Arc::clone(&self.alone).lock_owned().await
    }

    /// Resolves when someone waits.
    pub async fn wanted(&self) {
        // The sender lives as long as this.
        let _ = self.waiting.subscribe().wait_for(|waiting| *waiting > 0).await;
    }
}

/// Data services to be wiped and filled anew.
#[derive(Debug)]
pub struct Reset {
    /// Its record.
    pub id: CommandId,
    /// Which.
    pub kinds: BTreeSet<ResourceKind>,
    /// Whether it began.
    pub answer: oneshot::Sender<Result<(), Trouble>>,
}

impl Workspace {
    /// Waits until this daemon has looked at what an earlier one left of the runtime: before that, nothing said of it is
    /// true. Bounded, since a supervisor may be slow to answer.
    pub async fn settled(&self) {
        let (mut runtime, mut shell) = (self.runtime.subscribe(), self.shell.subscribe());
        let known = async {
            let is_awake = runtime.wait_for(|facts| facts.known).await.is_ok_and(|facts| facts.supervisor.is_some());
            if is_awake {
                // How to enter, and which ports there are, is known with its shell.
                let on_its_way = |state| matches!(state, ShellState::Absent | ShellState::Preparing);
                let _ = shell.wait_for(|stated| !on_its_way(stated.state)).await;
            }
        };
        // Whoever asks is told what is known then.
        let _ = tokio::time::timeout(SETTLES, known).await;
    }

    /// A workspace of which nothing is known but its intent.
    #[must_use]
    pub fn new(index: u32, intent: WorkspaceIntent) -> Self {
        // One that is to be removed is not absent before it is: an earlier daemon may have left half of it.
        let shell = match intent.shell {
            DesiredShell::Ready => ShellState::Absent,
            DesiredShell::Absent => ShellState::Preparing,
        };
        let (resets, asked) = mpsc::unbounded_channel();
        Self {
            resets,
            resets_asked: Mutex::new(Some(asked)),
            id: intent.workspace.clone(),
            index,
            intent: watch::Sender::new(intent),
            shell: watch::Sender::new(Stated::plain(shell, Timestamp::now())),
            shell_failed: watch::Sender::new(Generation(0)),
            progress: watch::Sender::new(String::new()),
            sandbox: watch::Sender::new(None),
            setup: Arc::default(),
            steps: watch::Sender::new(Vec::new()),
            faces: watch::Sender::new(Vec::new()),
            runtime: watch::Sender::new(RuntimeFacts::default()),
            copies: tokio::sync::Mutex::default(),
            rest: Rest::default(),
            again: tokio::sync::Notify::new(),
            copied: watch::Sender::new(None),
            snapshots: watch::Sender::new(Vec::new()),
            cloud: watch::Sender::new(BTreeMap::new()),
        }
    }
}

impl Hub {
    /// A hub without workspaces.
    #[must_use]
    pub fn new(
        installation: Installation,
        cache_account: Account,
        ledger: Ledger,
        server: Endpoint,
        token: Secret,
    ) -> Self {
        Self {
            installation,
            cache_account,
            host: watch::Sender::new(ledger.host.host.clone()),
            keys: watch::Sender::new(ledger.host.keys.clone()),
            revoked: watch::Sender::new(BTreeSet::new()),
            may_wake: watch::Sender::new(true),
            server,
            token,
            dirty: watch::Sender::new(0),
            changed: Mutex::default(),
            ledger: Mutex::new(ledger),
            room: Room::default(),
            unkept: Mutex::default(),
            workspaces: Mutex::new(BTreeMap::new()),
            shell_runs: Mutex::default(),
            seen: Mutex::default(),
        }
    }

    /// Whether this daemon hears of an act for the first time.
    #[must_use]
    pub fn first_seen(&self, id: &CommandId) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.contains(id) {
            return false;
        }
        if seen.len() == REMEMBERED_ACTS {
            seen.pop_front();
        }
        seen.push_back(id.clone());
        true
    }

    /// Whether this daemon took an act, lately.
    #[must_use]
    pub fn has_seen(&self, id: &CommandId) -> bool {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }

    /// What cancels a run of the shell layer that begins now.
    #[must_use]
    pub fn shell_run(&self, id: &CommandId) -> CancellationToken {
        self.shell_runs().entry(id.clone()).or_default().clone()
    }

    /// Cancels a run of the shell layer, or forgets one that ended.
    pub fn cancel_shell_run(&self, id: &CommandId) {
        if let Some(token) = self.shell_runs().remove(id) {
            token.cancel();
        }
    }

    fn shell_runs(&self) -> MutexGuard<'_, BTreeMap<CommandId, CancellationToken>> {
        self.shell_runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One workspace.
    #[must_use]
    pub fn get(&self, id: &WorkspaceId) -> Option<Arc<Workspace>> {
        self.lock().get(id).cloned()
    }

    /// One workspace, once it is known; `None` when it is not accepted, or does not come within `patience`.
    pub async fn arrival(&self, id: &WorkspaceId, patience: Duration) -> Option<Arc<Workspace>> {
        // Whatever adds a workspace touches this.
        let mut dirty = self.dirty.subscribe();
        let known = dirty.wait_for(|_| self.get(id).is_some() || self.unkept(id).is_some());
        // A copy of the outcome: the guard inside must not live over the next line.
        let arrived = tokio::time::timeout(patience, known).await.is_ok_and(|seen| seen.is_ok());
        if arrived { self.get(id) } else { None }
    }

    /// All workspaces, by id.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Workspace>> {
        self.lock().values().cloned().collect()
    }

    /// Adds a workspace.
    pub fn insert(&self, workspace: Arc<Workspace>) {
        let id = workspace.id.clone();
        self.lock().insert(id.clone(), workspace);
        self.touch(&id);
    }

    /// Forgets a workspace that was removed.
    pub fn forget(&self, id: &WorkspaceId) {
        self.lock().remove(id);
    }

    /// Says that something that is reported of a workspace changed.
    pub fn touch(&self, workspace: &WorkspaceId) {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner).insert(workspace.clone());
        self.touch_acts();
    }

    /// Says that there is news of a leased act.
    pub fn touch_acts(&self) {
        self.dirty.send_modify(|n| *n += 1);
    }

    /// The workspaces of which something changed since this was asked last.
    #[must_use]
    pub fn take_changed(&self) -> BTreeSet<WorkspaceId> {
        std::mem::take(&mut self.changed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The ledger. Never held while something is awaited.
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // A panic in the middle leaves the files as they were: each is replaced as a whole.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest intent of a workspace that is not accepted.
    #[must_use]
    pub fn unkept(&self, id: &WorkspaceId) -> Option<Unkept> {
        self.all_unkept().get(id).cloned()
    }

    /// All intents that are not accepted. Never held while something is awaited.
    pub fn all_unkept(&self) -> MutexGuard<'_, BTreeMap<WorkspaceId, Unkept>> {
        // A panic while the map is held cannot leave it half-changed: every use is one map operation.
        self.unkept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prepared data of the installation.
    #[must_use]
    pub fn templates(&self) -> std::path::PathBuf {
        self.installation.home.join("templates")
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<WorkspaceId, Arc<Workspace>>> {
        // A panic while the map is held cannot leave it half-changed: every use is one map operation.
        self.workspaces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
