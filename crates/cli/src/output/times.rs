//! Times and durations as people read and write them.

use envforge_api::{
    problem::{Problem, ProblemKind},
    time::Timestamp,
};

/// Seconds as `45s`, `12m`, `3h 05m`, `2d 4h`.
pub(crate) fn duration(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..600 => format!("{minutes}m {:02}s", seconds % 60),
        600..3600 => format!("{minutes}m"),
        3600..86_400 => format!("{hours}h {:02}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

/// How long ago (or `in …`) a point in time is, seen from `now`.
pub(crate) fn relative(at: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second() - at.as_second();
    if seconds < 0 { format!("in {}", duration(-seconds)) } else { format!("{} ago", duration(seconds)) }
}

/// How long something has been so.
pub(crate) fn elapsed(since: Timestamp, now: Timestamp) -> String {
    duration(now.as_second() - since.as_second())
}

/// A point in time to the second.
pub(crate) fn point(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// Reads `90s`, `15m`, `2h`, `1h30m`, `3d`: seconds.
///
/// # Errors
/// [`ProblemKind::Usage`].
pub(crate) fn parse_duration(given: &str) -> Result<u64, Problem> {
    let bad = || {
        Problem::new(
            ProblemKind::Usage,
            format!("`{given}` is not a duration"),
            "write it as 90s, 15m, 2h, 1h30m or 3d",
        )
    };
    let mut total: u64 = 0;
    let mut number = String::new();
    for c in given.chars() {
        if c.is_ascii_digit() {
            number.push(c);
            continue;
        }
        let unit = match c {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return Err(bad()),
        };
        let count: u64 = number.parse().map_err(|_| bad())?;
        total = count.checked_mul(unit).and_then(|part| total.checked_add(part)).ok_or_else(bad)?;
        number.clear();
    }
    if number.is_empty() && !given.is_empty() { Ok(total) } else { Err(bad()) }
}

/// Reads a point in time: RFC 3339, or a duration that is taken as "ago".
///
/// # Errors
/// [`ProblemKind::Usage`].
pub(crate) fn parse_point(given: &str, now: Timestamp) -> Result<Timestamp, Problem> {
    if let Ok(at) = given.parse() {
        return Ok(at);
    }
    let bad = || {
        Problem::new(
            ProblemKind::Usage,
            format!("`{given}` is not a time"),
            "write it as 2026-01-31T12:00:00Z, or how long ago: 10m, 2h",
        )
    };
    let seconds = i64::try_from(parse_duration(given).map_err(|_| bad())?).map_err(|_| bad())?;
    Timestamp::from_second(now.as_second().saturating_sub(seconds)).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written() {
        for (given, seconds) in [("90s", 90), ("15m", 900), ("2h", 7200), ("1h30m", 5400), ("3d", 259_200)] {
            assert_eq!(parse_duration(given).expect("a duration"), seconds);
        }
        for bad in ["", "2", "h", "2w", "-1h", "1h2", "99999999999999999999h"] {
            assert_eq!(parse_duration(bad).expect_err(bad).kind, ProblemKind::Usage);
        }
        for (seconds, text) in [(5, "5s"), (65, "1m 05s"), (700, "11m"), (3_700, "1h 01m"), (180_000, "2d 2h")] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn a_point_in_time_is_absolute_or_so_long_ago() {
        let now: Timestamp = "2026-01-31T12:00:00Z".parse().expect("time");
        assert_eq!(parse_point("10m", now).expect("time").to_string(), "2026-01-31T11:50:00Z");
        assert_eq!(parse_point("2026-01-01T00:00:00Z", now).expect("time").to_string(), "2026-01-01T00:00:00Z");
        assert_eq!(parse_point("yesterday", now).expect_err("no time").kind, ProblemKind::Usage);
    }
}
