//! The states that users see, kept apart by layer: shell, runtime, service, resource, billing, command.

use crate::time::Timestamp;
use serde::{Deserialize, Serialize};

/// A word that is none of the expected ones.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not a {kind}: expected one of {expected}")]
pub struct UnknownWord {
    given: String,
    kind: &'static str,
    expected: String,
}

impl UnknownWord {
    pub(crate) fn new<'a>(kind: &'static str, given: &str, expected: impl Iterator<Item = &'a str>) -> Self {
        Self { given: given.chars().take(80).collect(), kind, expected: expected.collect::<Vec<_>>().join(", ") }
    }
}

/// Declares an enum whose variants are words of the contract, with text in both directions.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $kind:literal { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $word)] $variant),+
        }

        impl $name {
            /// Every value, in the order of the contract.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word of the contract.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl ::std::str::FromStr for $name {
            type Err = $crate::states::UnknownWord;

            fn from_str(given: &str) -> Result<Self, $crate::states::UnknownWord> {
                Self::ALL.iter().copied().find(|value| value.as_str() == given).ok_or_else(|| {
                    $crate::states::UnknownWord::new($kind, given, Self::ALL.iter().map(|value| value.as_str()))
                })
            }
        }
    };
}
pub(crate) use words;

words!(
    /// The shell layer of a workspace.
    ShellState, "shell state" {
        /// No directory yet, or deleted.
        Absent = "absent",
        /// User, directory and checkouts are being made.
        Preparing = "preparing",
        /// A shell opens at once.
        Ready = "ready",
        /// Preparation failed; the reason says where.
        Failed = "failed",
    }
);

words!(
    /// The runtime layer of a workspace. `failed` is the runtime itself, never one of its services.
    RuntimeState, "runtime state" {
        /// No process, no meter.
        Asleep = "asleep",
        /// Resources and services are starting.
        Waking = "waking",
        /// Serving (some services may still be unhealthy).
        Awake = "awake",
        /// Every process is frozen; nothing is metered.
        Frozen = "frozen",
        /// Processes are being stopped.
        Sleeping = "sleeping",
        /// The runtime could not be started or was lost.
        Failed = "failed",
    }
);

impl RuntimeState {
    /// Whether a wake request changes anything.
    #[must_use]
    pub const fn can_wake(self) -> bool {
        matches!(self, Self::Asleep | Self::Sleeping | Self::Failed | Self::Frozen)
    }

    /// Whether processes of the runtime may exist.
    #[must_use]
    pub const fn may_run(self) -> bool {
        matches!(self, Self::Waking | Self::Awake | Self::Frozen | Self::Sleeping)
    }
}

words!(
    /// One service or worker process.
    ServiceState, "service state" {
        /// Not running, on purpose.
        Stopped = "stopped",
        /// Running or about to; not yet healthy, inside its start period.
        Starting = "starting",
        /// Its health check passes.
        Healthy = "healthy",
        /// Running, but its health check fails past the start period, or something it requires is missing.
        Unhealthy = "unhealthy",
        /// Ended by itself; restarted with growing pauses.
        Crashed = "crashed",
    }
);

words!(
    /// A database, cache, queue, storage or mail server of a workspace.
    ResourceState, "resource state" {
        /// Turned off by the project.
        Disabled = "disabled",
        /// Starting, or asleep and started by the next wake.
        Waking = "waking",
        /// Answers.
        Ready = "ready",
        /// Cannot serve; the reason says why.
        Blocked = "blocked",
    }
);

words!(
    /// The meter of a workspace.
    BillingState, "billing state" {
        /// Nothing is metered.
        Off = "off",
        /// A usage session is open.
        Metering = "metering",
        /// A cap refuses new runtime work.
        Capped = "capped",
    }
);

words!(
    /// A command record.
    CommandState, "command state" {
        /// Recorded, not yet taken by the host.
        Queued = "queued",
        /// The host has it.
        Delivered = "delivered",
        /// The host works on it.
        Running = "running",
        /// Done.
        Succeeded = "succeeded",
        /// Ended without reaching its aim.
        Failed = "failed",
        /// Taken back by someone before its end.
        Cancelled = "cancelled",
        /// A newer request made it pointless.
        Superseded = "superseded",
        /// Cut short by a crash; never run again silently.
        Interrupted = "interrupted",
    }
);

impl CommandState {
    /// Whether the record will not change any more.
    #[must_use]
    pub const fn is_final(self) -> bool {
        match self {
            Self::Queued | Self::Delivered | Self::Running => false,
            Self::Succeeded | Self::Failed | Self::Cancelled | Self::Superseded | Self::Interrupted => true,
        }
    }
}

words!(
    /// Whether something listens to a health check, as seen last.
    Health, "health" {
        /// Not checked: the process does not run.
        None = "none",
        /// Checked, no verdict yet.
        Pending = "pending",
        /// The last check passed.
        Passing = "passing",
        /// The last check failed.
        Failing = "failing",
    }
);

words!(
    /// What a process of a service is.
    ServiceKind, "service kind" {
        /// Declared under `service:`.
        Service = "service",
        /// Declared under `workers:`.
        Worker = "worker",
    }
);

/// Why a state is bad, and what a person can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Trouble {
    /// What is wrong, in one sentence; free of secrets and addresses.
    pub reason: String,
    /// What a person can do about it.
    pub hint: String,
}

impl Trouble {
    /// A reason and a hint.
    pub fn new(reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { reason: reason.into(), hint: hint.into() }
    }
}

/// A state with the moment it began and, for a bad one, its reason and hint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Stated<S> {
    /// The state.
    pub state: S,
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// Why, where it is bad or ended by itself.
    #[serde(default)]
    pub reason: Option<String>,
    /// What a person can do.
    #[serde(default)]
    pub hint: Option<String>,
}

impl<S: Copy + PartialEq> Stated<S> {
    /// A state that needs no explanation.
    pub fn plain(state: S, since: Timestamp) -> Self {
        Self { state, since, reason: None, hint: None }
    }

    /// A state with its explanation.
    pub fn because(state: S, since: Timestamp, trouble: Trouble) -> Self {
        Self { state, since, reason: Some(trouble.reason), hint: Some(trouble.hint) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_they_are_written() {
        for state in CommandState::ALL {
            assert_eq!(state.as_str().parse::<CommandState>(), Ok(*state));
            assert_eq!(serde_json::to_value(state).expect("json"), state.as_str());
        }
        let error = "awoke".parse::<RuntimeState>().expect_err("no such state").to_string();
        assert!(error.contains("asleep, waking, awake"), "{error}");
    }

    #[test]
    fn waking_and_awake_cannot_be_woken() {
        let can: Vec<_> = RuntimeState::ALL.iter().filter(|s| s.can_wake()).map(|s| s.as_str()).collect();
        assert_eq!(can, ["asleep", "frozen", "sleeping", "failed"]);
    }
}
