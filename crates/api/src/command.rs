//! Command records: what was asked, by whom, and how it ended.

use crate::{
    copy::CopyReport,
    generation::Generation,
    ids::{CommandId, SnapshotId, WorkspaceId},
    names::{Branch, ServiceName, Slug},
    receipt::ResourceReceipt,
    resource::ResourceKind,
    states::{CommandState, words},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

words!(
    /// What a command record asks for.
    CommandKind, "command kind" {
        /// Make the shell layer.
        PrepareShell = "PREPARE_SHELL",
        /// Wake the runtime.
        StartRuntime = "START_RUNTIME",
        /// Put the runtime to sleep.
        SleepRuntime = "SLEEP_RUNTIME",
        /// Run a setup step, a test or a command.
        RunCommand = "RUN_COMMAND",
        /// Start, stop or restart services.
        ControlService = "CONTROL_SERVICE",
        /// Remove everything.
        DeleteWorkspace = "DELETE_WORKSPACE",
        /// Copy a whole workspace into a new one; the record is the source's.
        ForkWorkspace = "FORK_WORKSPACE",
        /// Keep the state of a whole workspace.
        CreateSnapshot = "CREATE_SNAPSHOT",
        /// Make a workspace what it was.
        RestoreSnapshot = "RESTORE_SNAPSHOT",
        /// Remove a kept state.
        RemoveSnapshot = "REMOVE_SNAPSHOT",
    }
);

impl CommandKind {
    /// Whether the host may be handed the command again after a crash in the middle of it.
    ///
    /// Everything that is reached by desired state converges; runs, snapshots and restores are once-only acts.
    #[must_use]
    pub const fn may_repeat(self) -> bool {
        match self {
            Self::PrepareShell
            | Self::StartRuntime
            | Self::SleepRuntime
            | Self::ControlService
            | Self::DeleteWorkspace
            | Self::ForkWorkspace
            | Self::RemoveSnapshot => true,
            Self::RunCommand | Self::CreateSnapshot | Self::RestoreSnapshot => false,
        }
    }
}

/// What `envforge run` asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", tag = "what")]
pub enum RunTarget {
    /// Setup steps: one by name, or all.
    Setup {
        /// Name of the step.
        #[serde(default)]
        name: Option<String>,
    },
    /// Tests: one by name, or all.
    Test {
        /// Name of the test.
        #[serde(default)]
        name: Option<String>,
    },
    /// Wipe data services and fill them anew; their consumers are restarted.
    Reset {
        /// Which; never empty.
        kinds: BTreeSet<ResourceKind>,
    },
    /// Any command.
    Argv {
        /// Program and arguments; never empty.
        argv: Vec<String>,
    },
}

/// The body of a RUN_COMMAND.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RunSpec {
    /// The service whose environment it gets; absent = every service (set-up and tests), or the first one (argv).
    #[serde(default)]
    pub service: Option<ServiceName>,
    /// What to run.
    pub target: RunTarget,
}

/// A once-only act handed to a host until it acknowledges it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LeasedCommand {
    /// The record's id; also the host's key for "did that already".
    pub id: CommandId,
    /// What to do.
    pub act: LeasedAct,
}

/// The once-only acts a host knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", tag = "act")]
pub enum LeasedAct {
    /// `envforge run`.
    Run {
        /// Where.
        workspace: WorkspaceId,
        /// What.
        spec: RunSpec,
    },
    /// Someone asked to cancel a run that may be under way.
    CancelRun {
        /// Where.
        workspace: WorkspaceId,
        /// The run.
        run: CommandId,
    },
    /// Which of these repositories have the branch. Reads remote heads only; changes nothing.
    FindBranch {
        /// Repository URLs.
        repos: Vec<String>,
        /// The branch looked for.
        branch: Branch,
    },
    /// Keep the state of a whole workspace.
    CreateSnapshot {
        /// Where.
        workspace: WorkspaceId,
        /// Its id.
        snapshot: SnapshotId,
        /// Why, in words for people.
        reason: String,
    },
    /// Make a workspace what it was, once its runtime is asleep at this generation.
    RestoreSnapshot {
        /// Where.
        workspace: WorkspaceId,
        /// What it becomes.
        snapshot: SnapshotId,
        /// Keeps what it was until now.
        kept: SnapshotId,
        /// The intent by which it is asleep.
        generation: Generation,
    },
    /// Remove a kept state.
    RemoveSnapshot {
        /// Where.
        workspace: WorkspaceId,
        /// Which.
        snapshot: SnapshotId,
    },
    /// What deleting this workspace would lose (uncommitted or unpushed work). Changes nothing.
    InspectWork {
        /// Where.
        workspace: WorkspaceId,
    },
}

/// How a leased act stands, as the host tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ActReport {
    /// The record.
    pub id: CommandId,
    /// `delivered`, `running` or a final state.
    pub state: CommandState,
    /// Exit status of a run that ended.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// Why it did not succeed.
    #[serde(default)]
    pub reason: Option<String>,
    /// Answer of an act that asks something.
    #[serde(default)]
    pub answer: Option<ActAnswer>,
}

/// Answers of acts that ask something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", tag = "answer")]
pub enum ActAnswer {
    /// To [`LeasedAct::FindBranch`]: for each repository in order, whether it has the branch.
    Branches {
        /// In the order of the question.
        found: Vec<bool>,
    },
    /// To [`LeasedAct::InspectWork`].
    Work {
        /// One line for each checkout that has something to lose, such as `backend: 2 files not committed`.
        at_risk: Vec<String>,
    },
    /// To [`LeasedAct::CreateSnapshot`] and [`LeasedAct::RestoreSnapshot`].
    Copied {
        /// What it cost.
        cost: CopyReport,
    },
}

impl LeasedAct {
    /// The workspace whose command record this act is, where it is one.
    #[must_use]
    pub const fn recorded_for(&self) -> Option<&WorkspaceId> {
        match self {
            Self::Run { workspace, .. }
            | Self::CreateSnapshot { workspace, .. }
            | Self::RestoreSnapshot { workspace, .. }
            | Self::RemoveSnapshot { workspace, .. } => Some(workspace),
            Self::CancelRun { .. } | Self::FindBranch { .. } | Self::InspectWork { .. } => None,
        }
    }

    /// Whether it may be done again after a crash in the middle of it.
    #[must_use]
    pub const fn may_repeat(&self) -> bool {
        match self {
            Self::Run { .. } | Self::CreateSnapshot { .. } | Self::RestoreSnapshot { .. } => false,
            Self::CancelRun { .. }
            | Self::FindBranch { .. }
            | Self::InspectWork { .. }
            | Self::RemoveSnapshot { .. } => true,
        }
    }
}

/// A command record as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CommandView {
    /// Its id.
    pub id: CommandId,
    /// The workspace's slug.
    pub workspace: Slug,
    /// What was asked.
    pub kind: CommandKind,
    /// How it stands.
    pub state: CommandState,
    /// The desired state it belongs to.
    pub generation: Generation,
    /// How often it was handed to a host.
    pub attempt: u32,
    /// Who asked (name shown to people).
    pub requested_by: String,
    /// What led to it: `up`, `wake`, `link`, `schedule`, `idle`, ….
    pub trigger: String,
    /// The service it concerns, if one.
    #[serde(default)]
    pub service: Option<ServiceName>,
    /// When it was asked.
    #[schema(value_type = String, format = DateTime)]
    pub requested_at: Timestamp,
    /// When it ended.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub finished_at: Option<Timestamp>,
    /// Exit status of a run.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// Why it ended as it did.
    #[serde(default)]
    pub reason: Option<String>,
    /// What a fork, snapshot or restore cost.
    #[serde(default)]
    pub copied: Option<CopyReport>,
    /// Of a sleep: what each data service held. Of a wake: whether it held that. Left out of lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub receipt: Vec<ResourceReceipt>,
}
