//! The boot id and the boot clock. The id is read through a replaceable path so that tests can simulate a reboot.

use super::{Result, SystemError};
use envforge_api::time::{BootId, BootMillis};
use rustix::time::{ClockId, clock_gettime};

/// Environment variable that replaces `/proc/sys/kernel/random/boot_id`.
pub const BOOT_ID_PATH_VAR: &str = "ENVFORGE_BOOT_ID_PATH";

/// The current boot.
///
/// # Errors
/// When the file cannot be read.
pub fn boot_id() -> Result<BootId> {
    let path = std::env::var(BOOT_ID_PATH_VAR).unwrap_or_else(|_| "/proc/sys/kernel/random/boot_id".into());
    let text =
        std::fs::read_to_string(&path).map_err(|e| SystemError::new(format!("read the boot id at {path}"), e))?;
    Ok(BootId(text.trim().to_owned()))
}

/// Now, on `CLOCK_BOOTTIME`.
#[must_use]
pub fn now() -> BootMillis {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    BootMillis(seconds * 1000 + nanos / 1_000_000)
}

/// When a process was started, on the boot clock; `None` when it does not exist or is a zombie. Together with the pid it names a
/// process for good (pids are reused).
#[must_use]
pub fn process_started(pid: i32) -> Option<BootMillis> {
    started_in(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The same from the text of the process's `stat`.
pub(super) fn started_in(stat: &str) -> Option<BootMillis> {
    // The command name may hold spaces and parentheses: what counts begins after its last `)`.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    if matches!(fields.first(), Some(&"Z" | &"X")) {
        return None;
    }
    let ticks: u64 = fields.get(19)?.parse().ok()?;
    Some(BootMillis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_was_started_before_now_and_no_process_never() {
        let own = process_started(i32::try_from(std::process::id()).expect("a pid")).expect("it runs");
        assert!(own <= now());
        assert_eq!(process_started(i32::MAX), None);
    }
}
