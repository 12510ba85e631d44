//! A disk without space: recognised wherever it shows, and told in one way, with the file system that needs some.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// What there is of a file system, in octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// All of it.
    pub total: u64,
    /// What those who are not root can still take.
    pub free: u64,
}

/// The file system that holds `path`.
///
/// # Errors
/// When it cannot be asked.
pub fn space(path: &Path) -> io::Result<Space> {
    let about = rustix::fs::statvfs(path)?;
    let octets = |blocks: u64| blocks.saturating_mul(about.f_frsize);
    Ok(Space { total: octets(about.f_blocks), free: octets(about.f_bavail) })
}

/// Takes so many octets at `path`, without writing them. What is there already counts.
///
/// # Errors
/// When there are not so many, or the file system cannot.
pub fn take(path: &Path, octets: u64) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    let file = options.create(true).truncate(false).write(true).mode(0o600).open(path)?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, octets)?;
    Ok(())
}

/// Less than this, in octets, and nothing of use can be written.
const LEAST: u64 = 64 << 10;

/// Whether an error says that no space (or none of one's share) is left.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// How programs say that it is one's share.
const OF_SHARE: &str = "Disk quota exceeded";

/// Whether a program's message says so.
#[must_use]
pub fn says_full(text: &str) -> bool {
    ["No space left on device", OF_SHARE].iter().any(|words| text.contains(words))
}

/// Whether the file system that holds `path` has no space now: for programs that end without saying why.
#[must_use]
pub fn has_no_space(path: &Path) -> bool {
    rustix::fs::statvfs(path).is_ok_and(|about| {
        let free = if rustix::process::geteuid().is_root() { about.f_bfree } else { about.f_bavail };
        free.saturating_mul(about.f_frsize) < LEAST || (about.f_files > 0 && about.f_ffree == 0)
    })
}

/// What a person can do about it.
#[must_use]
pub fn hint(path: &Path) -> String {
    format!("the disk of the host is full: free space on {}, then try again", mount_point(path).display())
}

/// What a person can do about a share that is used up: others have room.
pub const SHARE: &str = "the workspace has used up its share of the host's disk: remove files or snapshots of it (`envforge snapshot rm`), then try again";

/// The hint for what an error or a program said of a full disk.
#[must_use]
pub fn hint_for(said: &str, path: &Path) -> String {
    if said.contains(OF_SHARE) { SHARE.to_owned() } else { hint(path) }
}

/// The hint where an error, or a program's message, says that the disk is full; else `other`.
#[must_use]
pub fn hint_or(said: &str, path: &Path, other: &str) -> String {
    if says_full(said) { hint_for(said, path) } else { other.to_owned() }
}

fn mount_point(path: &Path) -> PathBuf {
    let there = path.ancestors().find_map(|at| fs::canonicalize(at).ok()).unwrap_or_else(|| path.to_owned());
    let mut below = there.ancestors().map(|at| (at, fs::metadata(at).map(|m| m.dev())));
    let Some((mut found, Ok(device))) = below.next() else { return path.to_owned() };
    for (at, of) in below {
        if of.ok() != Some(device) {
            break;
        }
        found = at;
    }
    found.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_known_by_error_and_by_message_and_the_hint_names_its_file_system() {
        assert!(is_full(&rustix::io::Errno::NOSPC.into()) && is_full(&rustix::io::Errno::DQUOT.into()));
        assert!(!is_full(&rustix::io::Errno::ACCESS.into()));
        assert!(says_full(&io::Error::from(rustix::io::Errno::NOSPC).to_string()));
        let text = hint(Path::new("/proc/self/no/such"));
        assert!(text.contains("free space on /proc,"), "{text}");
    }
}
