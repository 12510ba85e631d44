//! The idle judge: decides from what was seen whether a runtime is idle and when it sleeps. A pure function.

use envforge_api::time::BootMillis;

/// CPU of all runtime processes together below which they are idle, in thousandths of a core. Development servers
/// that wait (file watchers, timers, database background work) stay below it; serving a request a second does not.
pub const CPU_FLOOR_MILLIS: u64 = 30;

/// For so long after link traffic it is named as what holds a runtime awake, in milliseconds; gateways tell of it every
/// few seconds.
const TRAFFIC_SHOWN_MS: u64 = 15_000;

/// What was seen at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observation {
    /// When.
    pub at: BootMillis,
    /// CPU time used by the runtime so far, in microseconds.
    pub cpu_micros: u64,
    /// Commands under way (runs, set-up steps), for people.
    pub running: Vec<String>,
    /// Database sessions doing work, for people.
    pub database: Option<String>,
    /// The wake has not ended yet.
    pub waking: bool,
    /// Someone holds it awake.
    pub held: bool,
    /// The last link traffic that counts.
    pub traffic: Option<BootMillis>,
}

/// What the judge remembers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    last: BootMillis,
    cpu_micros: u64,
    /// Since when nothing held it.
    pub idle_since: Option<BootMillis>,
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// What holds it awake, in words for people; empty = idle.
    pub holders: Vec<String>,
    /// To remember.
    pub memory: Memory,
    /// Go to sleep now.
    pub sleep: bool,
    /// When it sleeps if it stays idle.
    pub sleeps_at: Option<BootMillis>,
}

/// Judges one observation against what is remembered; `after_ms` is the idle time after which a runtime sleeps.
#[must_use]
pub fn judge(memory: Option<&Memory>, seen: &Observation, after_ms: u64) -> Verdict {
    let mut holders: Vec<String> = seen.running.clone();
    holders.extend(seen.database.clone());
    if seen.held {
        holders.push("a hold".into());
    }
    if seen.waking {
        holders.push("services are starting".into());
    }
    if seen.traffic.is_some_and(|at| seen.at.since(at) < TRAFFIC_SHOWN_MS.min(after_ms)) {
        holders.push("link traffic".into());
    }
    if let Some(memory) = memory {
        let elapsed = seen.at.since(memory.last);
        let used = seen.cpu_micros.saturating_sub(memory.cpu_micros);
        // Microseconds per millisecond are thousandths of a core.
        if let Some(millis) = used.checked_div(elapsed)
            && millis >= CPU_FLOOR_MILLIS
        {
            holders.push(format!("services use {}% of a CPU", millis / 10));
        }
    } else {
        holders.push("it was woken just now".into());
    }
    let since = |memory: Option<&Memory>| memory.and_then(|m| m.idle_since).or(Some(seen.at)).max(seen.traffic);
    let idle_since = if holders.is_empty() { since(memory) } else { None };
    let memory = Memory { last: seen.at, cpu_micros: seen.cpu_micros, idle_since };
    let sleeps_at = idle_since.map(|since| BootMillis(since.0 + after_ms));
    Verdict { holders, memory, sleep: sleeps_at.is_some_and(|at| seen.at >= at), sleeps_at }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64, cpu_micros: u64) -> Observation {
        Observation { at: BootMillis(ms), cpu_micros, ..Observation::default() }
    }

    #[test]
    fn a_runtime_sleeps_once_nothing_held_it_for_the_whole_time() {
        let first = judge(None, &at(0, 0), 10_000);
        assert!(!first.sleep && first.memory.idle_since.is_none());
        let idle = judge(Some(&first.memory), &at(1_000, 5_000), 10_000);
        assert!(idle.holders.is_empty() && !idle.sleep);
        assert_eq!(idle.sleeps_at, Some(BootMillis(11_000)));
        assert!(!judge(Some(&idle.memory), &at(10_999, 6_000), 10_000).sleep);
        assert!(judge(Some(&idle.memory), &at(11_000, 6_000), 10_000).sleep);
    }

    #[test]
    fn work_of_any_kind_starts_the_time_again() {
        let idle = Memory { last: BootMillis(0), cpu_micros: 0, idle_since: Some(BootMillis(0)) };
        let busy = [
            Observation { running: vec!["run cmd_x".into()], ..at(20_000, 0) },
            Observation { database: Some("2 database sessions at work".into()), ..at(20_000, 0) },
            Observation { held: true, ..at(20_000, 0) },
            Observation { waking: true, ..at(20_000, 0) },
            at(20_000, 20_000 * CPU_FLOOR_MILLIS),
        ];
        for seen in busy {
            let verdict = judge(Some(&idle), &seen, 10_000);
            assert!(!verdict.sleep && !verdict.holders.is_empty(), "{seen:?}");
            assert_eq!(verdict.memory.idle_since, None);
        }
        assert!(judge(Some(&idle), &at(20_000, 20_000 * CPU_FLOOR_MILLIS - 1), 10_000).sleep);
    }

    #[test]
    fn link_traffic_counts_from_its_own_moment_however_late_it_is_told() {
        let idle = Memory { last: BootMillis(0), cpu_micros: 0, idle_since: Some(BootMillis(0)) };
        let told = |at_ms, traffic| Observation { traffic: Some(BootMillis(traffic)), ..at(at_ms, 0) };
        let late = judge(Some(&idle), &told(20_000, 9_000), 20_000);
        assert!(!late.sleep && late.holders == ["link traffic"]);
        let later = judge(Some(&idle), &told(28_000, 9_000), 20_000);
        assert_eq!((later.sleep, later.sleeps_at), (false, Some(BootMillis(29_000))));
        assert!(judge(Some(&later.memory), &told(29_000, 9_000), 20_000).sleep);
    }
}
