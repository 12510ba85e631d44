//! Readings and usage sessions.
//!
//! A supervisor writes a reading when its runtime's first process starts, at least every five seconds, and when the
//! last process is gone. Readings are named `(instance, boot, n)`: the same name always means the same reading, so
//! a retried or re-registered delivery never counts twice. A second is billed only if two consecutive readings of
//! one instance on one boot enclose it and a process alive at the second reading started before the first.

use crate::{
    ids::{RuntimeInstanceId, UsageSessionId, WorkspaceId},
    project::RuntimeSize,
    time::{BootId, BootMillis, Timestamp},
};
use serde::{Deserialize, Serialize};

/// Longest pause between two readings of a healthy supervisor, in milliseconds.
pub const CHECKPOINT_MS: u64 = 5_000;

/// One observation of a runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Reading {
    /// The runtime instance observed.
    pub instance: RuntimeInstanceId,
    /// The boot it ran in.
    #[schema(value_type = String)]
    pub boot: BootId,
    /// Position in this instance's readings, from 0 without gaps.
    pub n: u64,
    /// Whose runtime.
    pub workspace: WorkspaceId,
    /// Size while it was observed.
    pub size: RuntimeSize,
    /// What woke it: `up`, `wake`, `link`, `service`, `schedule`.
    pub trigger: String,
    /// When it was taken.
    pub at: BootMillis,
    /// When the oldest process alive now was started; absent when none is alive.
    #[serde(default)]
    pub oldest_process: Option<BootMillis>,
    /// Set on the last reading: every process was gone at `at`, for this reason (`idle`, `asked`, …).
    #[serde(default)]
    pub ended: Option<String>,
}

/// The observed milliseconds between two consecutive readings (see the module's rule), else 0.
#[must_use]
pub fn observed_between(first: &Reading, second: &Reading) -> u64 {
    let same_run = first.instance == second.instance && first.boot == second.boot && second.n == first.n + 1;
    let enclosed_by_a_process = match (second.oldest_process, first.oldest_process, &second.ended) {
        (Some(started), _, _) => started <= first.at,
        // The end reading has no process left: the one seen by the first reading lived until `second.at`.
        (None, Some(_), Some(_)) => true,
        (None, _, _) => false,
    };
    if same_run && first.ended.is_none() && enclosed_by_a_process { second.at.since(first.at) } else { 0 }
}

/// A usage session as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UsageSessionView {
    /// Its id.
    pub id: UsageSessionId,
    /// Size of the runtime.
    pub size: RuntimeSize,
    /// What woke it.
    pub trigger: String,
    /// Begin, in control-plane time.
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
    /// End; absent while open.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended_at: Option<Timestamp>,
    /// Observed seconds, rounded down.
    pub seconds: u64,
    /// Why it ended.
    #[serde(default)]
    pub reason: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(n: u64, at: u64, oldest: Option<u64>) -> Reading {
        Reading {
            instance: "rt_00000000000000000000000000".parse().expect("id"),
            boot: BootId("b".into()),
            n,
            workspace: "ws_00000000000000000000000000".parse().expect("id"),
            size: RuntimeSize::Small,
            trigger: "up".into(),
            at: BootMillis(at),
            oldest_process: oldest.map(BootMillis),
            ended: None,
        }
    }

    #[test]
    fn a_second_counts_only_when_one_process_encloses_it() {
        assert_eq!(observed_between(&reading(0, 1_000, Some(900)), &reading(1, 6_000, Some(900))), 5_000);
        // Every process was replaced between the readings: nobody observed the time between.
        assert_eq!(observed_between(&reading(0, 1_000, Some(900)), &reading(1, 6_000, Some(4_000))), 0);
        // Not consecutive, or nothing alive.
        assert_eq!(observed_between(&reading(0, 1_000, Some(900)), &reading(2, 6_000, Some(900))), 0);
        assert_eq!(observed_between(&reading(0, 1_000, None), &reading(1, 6_000, None)), 0);
    }

    #[test]
    fn the_end_reading_closes_the_time_until_the_last_process_was_gone() {
        let end = Reading { ended: Some("idle".into()), ..reading(1, 1_800, None) };
        assert_eq!(observed_between(&reading(0, 1_000, Some(900)), &end), 800);
        assert_eq!(observed_between(&end, &reading(2, 3_000, Some(900))), 0);
    }
}
