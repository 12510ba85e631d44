//! What the daemon and a supervisor say to each other: JSON lines on a unix socket, versioned because supervisors
//! outlive upgrades of the daemon. Also the files a supervisor leaves for a daemon that was away.
//!
//! Files in the workspace's directory (root's, 0700):
//! * `state/runtime.json`: the [`RuntimeSpec`] of the instance (0600: it holds resolved environments);
//! * `state/slept.json`: what data services held when it fell asleep; `state/woke.json`: what came of comparing (see
//!   [`receipt`](super::receipt));
//! * `state/ended.json`: an [`Ended`], written when the last process is gone, before the supervisor exits;
//! * `meter/<instance>.jsonl`: one [`Reading`](envforge_api::usage::Reading) a line, appended and synced;
//! * `logs/<source>.jsonl`: one [`LogLine`](envforge_api::stream::LogLine) a line; rotated files end in `.1`, `.2`, …;
//! * `runs/<command>.out`: frames of a run's output (see [`RunFrame`]).
//!
//! Sockets: `<run>/sup.sock`, root's, 0600.

use crate::system::sandbox::Sandbox;
use envforge_api::{
    generation::Generation,
    host::{Activity, Moment, ResourceReport, ServiceReport, StartVerdict, StepReport},
    ids::{CommandId, RuntimeInstanceId},
    project::RuntimeSize,
    resource::ResourceKind,
    secret::Secret,
    states::{RuntimeState, Stated, Trouble},
    time::{BootId, Timestamp},
};
use envforge_manifest::{ResolvedHealth, ResolvedResource};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

/// Version of this protocol. A daemon speaks every version back to the oldest supervisor it may find.
pub const VERSION: u32 = 4;
/// The first version that knows [`Ask::Traffic`].
pub const KNOWS_TRAFFIC: u32 = 2;
/// The first version that knows [`Ask::Reset`].
pub const KNOWS_RESET: u32 = 3;
/// The first version that knows [`Ask::StandStill`].
pub const KNOWS_STILLNESS: u32 = 4;

/// Everything a supervisor needs. Written by the daemon before it starts the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeSpec {
    /// [`VERSION`].
    pub version: u32,
    /// Names this run of the runtime.
    pub instance: RuntimeInstanceId,
    /// The boot it belongs to.
    pub boot: BootId,
    /// The run before it: what that one's data services held at its end is compared with.
    #[serde(default)]
    pub previous: Option<RuntimeInstanceId>,
    /// The intent it fulfils.
    pub generation: Generation,
    /// Where.
    pub sandbox: Sandbox,
    /// What woke it.
    pub trigger: String,
    /// Size: limits of the `runtime` group.
    pub size: RuntimeSize,
    /// Idle milliseconds after which it puts itself to sleep.
    pub sleep_after_ms: u64,
    /// Awake until then whatever is idle.
    pub hold_until: Option<Timestamp>,
    /// Resource servers.
    pub resources: Vec<ResourceSpec>,
    /// Processes in start order of writing.
    pub services: Vec<ProcessSpec>,
    /// Services stopped by someone: not started.
    pub stopped: BTreeSet<String>,
    /// Values to mask in logs and output.
    pub secrets: Vec<Secret>,
    /// Milliseconds between SIGTERM and SIGKILL.
    pub grace_ms: u64,
    /// Prepared data of the installation (`<home>/templates`).
    pub templates: PathBuf,
}

/// One resource of the runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceSpec {
    /// What it is and who uses it.
    pub resource: ResolvedResource,
    /// Fields for environments, decided beforehand (`url`, `host`, …); secret ones are masked wherever shown.
    pub fields: BTreeMap<String, Secret>,
    /// Set when it cannot be had on this host: it stays blocked.
    pub blocked: Option<Trouble>,
    /// What is still to fill it before anyone is told that it is ready.
    #[serde(default)]
    pub seeds: Vec<SeedStep>,
    /// How often it was asked to be wiped. What was done of that is in `state/wiped.json`.
    #[serde(default)]
    pub reset: u32,
    /// Its fields are not known yet: a provisioner is asked for them, and a new description follows.
    #[serde(default)]
    pub coming: bool,
}

/// A file that fills a new database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeedStep {
    /// `database.seed.backend`.
    pub name: String,
    /// Directory below the workspace.
    pub directory: String,
    /// The file, relative to it.
    pub file: String,
    /// Recorded in `state/setup.json` as done with this digest when it succeeds: it names the data.
    pub digest: String,
}

/// One service or worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// `web`, `backend.mailer`.
    pub name: String,
    /// The service it belongs to (`backend` for `backend.mailer`).
    pub service: String,
    /// Whether it is a worker.
    pub worker: bool,
    /// Digest of the envforge.yml it comes from.
    pub digest: String,
    /// Working directory inside the sandbox.
    pub directory: String,
    /// Shell command, run as `/bin/sh -c`.
    pub command: String,
    /// Whole environment, `PORT` included.
    pub environment: BTreeMap<String, Secret>,
    /// Health; absent = healthy while it runs.
    pub health: Option<ResolvedHealth>,
    /// Port shown.
    pub port: Option<u16>,
    /// Resources that must be ready before it starts.
    pub requires: BTreeSet<ResourceKind>,
    /// Runtime-layer setup steps of its service that must have succeeded before it first starts; the steps of a
    /// service run once however many processes it has.
    pub setup: Vec<SetupStep>,
    /// Its service has shell-layer setup steps: it does not start before [`Ask::Release`] names the service.
    pub awaits_shell: bool,
    /// Set when it cannot be started: shown, never tried.
    pub blocked: Option<Trouble>,
}

/// A runtime-layer setup step that has to run now (steps whose text, files and data are unchanged are left out).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetupStep {
    /// `backend.migrate`.
    pub name: String,
    /// Shell commands, one after the other until one fails.
    pub run: Vec<String>,
    /// Recorded in `state/setup.json` as done with this digest when it succeeds.
    pub digest: String,
}

/// Daemon to supervisor. Each is answered by one [`Reply`] with the same number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the sender.
    pub number: u64,
    /// What.
    pub ask: Ask,
}

/// What a daemon asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "ask")]
pub enum Ask {
    /// Who are you. Answered by [`Answer::Hello`]; from then on a [`Message::Snapshot`] comes now and at every change.
    Hello {
        /// Version of the daemon's protocol.
        version: u32,
    },
    /// Replace the named processes' specs, start those that do not run, stop those in `stopped`, restart those in
    /// `restart`. Processes not named go on untouched.
    Update {
        /// New specs of processes that are to be started or restarted.
        processes: Vec<ProcessSpec>,
        /// Every resource that any service needs from now on; none = as before. Servers that are new are started.
        #[serde(default)]
        resources: Vec<ResourceSpec>,
        /// Restart these by name.
        restart: BTreeSet<String>,
        /// The whole set of stopped names.
        stopped: BTreeSet<String>,
        /// The intent this fulfils.
        generation: Generation,
        /// What is to be masked from now on, beside what was before.
        #[serde(default)]
        secrets: Vec<Secret>,
    },
    /// Shell-layer set-up of these services ended: they may start, or are blocked by what went wrong.
    Release {
        /// By service.
        services: BTreeMap<String, Option<Trouble>>,
    },
    /// Run a command in a service's environment, in the runtime; holds it awake meanwhile.
    Run(RunOrder),
    /// Wipe data services and fill them anew. Told and followed as a run.
    Reset(ResetOrder),
    /// Stop a run (SIGTERM, grace, SIGKILL).
    CancelRun {
        /// The run.
        id: CommandId,
    },
    /// Replace the hold.
    Hold {
        /// Until then; absent = none.
        until: Option<Timestamp>,
    },
    /// There was link traffic that counts against idleness.
    Traffic {
        /// So long ago.
        age_ms: u64,
    },
    /// Have everything that writes stand still, the shell included, for as long as a copy needs at its end. Accepted when
    /// that has begun; goes on by itself after the bound, and before a sleep.
    StandStill {
        /// At most so long.
        bound_ms: u64,
        /// Resource servers that go on: what they write is copied in another way.
        but: BTreeSet<String>,
    },
    /// Let everything go on. Refused when it went on already: what was copied meanwhile is not of one moment.
    GoOn,
    /// Stop everything and exit.
    Sleep {
        /// Why: `asked`, `delete`, `schedule`, `cap`, `stale-epoch`, `disk`, ….
        reason: String,
    },
}

/// Why a runtime is put to sleep that took the disk's space, in receipts and in `why`.
pub const DISK: &str = "disk";

/// Data services to be wiped and filled anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetOrder {
    /// Its record.
    pub id: CommandId,
    /// Which.
    pub kinds: BTreeSet<ResourceKind>,
    /// The processes that use them, as they are to start afterwards.
    pub processes: Vec<ProcessSpec>,
    /// Every resource that any service needs from then on.
    pub resources: Vec<ResourceSpec>,
    /// What is to be masked from then on, beside what was before.
    #[serde(default)]
    pub secrets: Vec<Secret>,
}

/// A command to be run in a service's environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunOrder {
    /// Its record.
    pub id: CommandId,
    /// Log source its lines are also written to (`setup`, `backend`, …); output goes to `runs/<id>.out` anyway.
    pub source: String,
    /// Parts, run one after the other until one fails: a title (`backend: unit`), shell command or argv.
    pub parts: Vec<RunPart>,
    /// What is to be masked from now on, beside what was before.
    #[serde(default)]
    pub secrets: Vec<Secret>,
}

/// One part of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunPart {
    /// Shown before its output when a run has several parts.
    pub title: String,
    /// Program and arguments (a shell command comes as `/bin/sh -c …`).
    pub argv: Vec<String>,
    /// Working directory inside.
    pub directory: String,
    /// Whole environment.
    pub environment: BTreeMap<String, Secret>,
    /// For a setup step: `(name, digest)` recorded as done when the part and those of the same name succeeded.
    pub records: Option<(String, String)>,
}

/// Supervisor to daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "message")]
pub enum Message {
    /// To a request.
    Reply(Reply),
    /// The whole state, at every change.
    Snapshot(Box<Snapshot>),
}

/// Answer to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Number of the request.
    pub number: u64,
    /// The answer.
    pub answer: Answer,
}

/// Answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "answer")]
pub enum Answer {
    /// To [`Ask::Hello`].
    Hello {
        /// Version of the supervisor's protocol.
        version: u32,
        /// The instance it runs.
        instance: RuntimeInstanceId,
    },
    /// Taken over; progress comes in snapshots.
    Accepted,
    /// Not done.
    Refused {
        /// Why.
        trouble: Trouble,
    },
}

/// All a supervisor knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The instance.
    pub instance: RuntimeInstanceId,
    /// The newest intent taken over.
    pub generation: Generation,
    /// The runtime.
    pub runtime: Stated<RuntimeState>,
    /// Services and workers.
    pub services: Vec<ServiceReport>,
    /// Digest of the envforge.yml each process runs with, by name.
    pub digests: BTreeMap<String, String>,
    /// Resources.
    pub resources: Vec<ResourceReport>,
    /// Runtime-layer setup steps.
    pub steps: Vec<StepReport>,
    /// How the wake ended, once known.
    pub start: Option<StartVerdict>,
    /// Idle judge.
    pub activity: Activity,
    /// Runs under way and ended in this instance.
    pub runs: Vec<RunState>,
}

/// A run as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunState {
    /// Its record.
    pub id: CommandId,
    /// `running` or final.
    pub state: envforge_api::states::CommandState,
    /// Exit status.
    pub exit_code: Option<i32>,
    /// Why it did not succeed.
    pub reason: Option<String>,
}

/// One line of `runs/<command>.out`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunFrame {
    /// Redacted standard output (lossy UTF-8).
    Out(String),
    /// Redacted standard error.
    Err(String),
    /// Last frame: exit status.
    Exit(i32),
}

/// What a supervisor leaves when its runtime is asleep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The instance.
    pub instance: RuntimeInstanceId,
    /// The newest intent taken over.
    pub generation: Generation,
    /// Why: `idle`, `asked`, ….
    pub sleep: Moment,
    /// State at the end (services `stopped`), for display while asleep.
    pub snapshot: Box<Snapshot>,
}
