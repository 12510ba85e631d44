//! A workspace's share of the disk where the file system counts shares: a group of btrfs with a limit, and every tree that
//! the workspace can write to as a subvolume in it. Quotas are for whoever runs the host to enable; without them, and on
//! other file systems, trees are ordinary directories and what a workspace may take is watched by the daemon alone.

use super::{Result, SystemError, files};
use rustix::fs::{AtFlags, Mode, OFlags, Statx, StatxAttributes, StatxFlags};
use std::{
    io,
    os::fd::OwnedFd,
    path::Path,
    process::{Command, Stdio},
};

/// Of `statfs`.
const BTRFS: i64 = 0x9123_683e;

/// The group of a workspace, named by the user id that no other workspace of the machine ever has.
fn group(uid: u32) -> String {
    format!("1/{uid}")
}

/// Whether trees can be subvolumes here.
pub(super) fn is_btrfs(path: &Path) -> bool {
    rustix::process::geteuid().is_root() && rustix::fs::statfs(path).is_ok_and(|about| about.f_type == BTRFS)
}

/// Whether a directory is the root of a subvolume, and nothing that is mounted.
pub(super) fn is_subvolume(directory: &OwnedFd) -> bool {
    /// Of the root of each subvolume.
    const ROOT: u64 = 256;
    let kind = rustix::fs::fstatfs(directory).map(|about| about.f_type);
    let about = rustix::fs::statx(directory, c"", AtFlags::EMPTY_PATH, StatxFlags::INO);
    let is_root = |about: Statx| about.stx_ino == ROOT && !about.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    kind == Ok(BTRFS) && about.is_ok_and(is_root)
}

/// Runs btrfs; what it answered, or what it said where it failed.
fn btrfs(words: &[&str], path: &Path) -> io::Result<std::result::Result<String, String>> {
    let mut command = Command::new("btrfs");
    let path_of = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path_of}:/usr/sbin:/sbin")).env("LC_ALL", "C");
    let output = command.args(words).arg(path).stdin(Stdio::null()).output()?;
    let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
    Ok(if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) })
}

/// Whether there is a group for this workspace now. A program that is missing, or quotas that are not enabled, mean no.
fn has_group(uid: u32, on: &Path) -> bool {
    match btrfs(&["qgroup", "create", &group(uid)], on) {
        Ok(Ok(_)) => true,
        Ok(Err(said)) => said.contains("File exists"),
        Err(_) => false,
    }
}

/// Makes a tree that counts as a workspace's, if it is missing: its owner and mode are the caller's to set.
///
/// # Errors
/// When it cannot be made.
pub fn ensure_tree(path: &Path, uid: u32) -> Result<()> {
    let Some(parent) = path.parent().filter(|_| !path.exists()) else { return Ok(()) };
    if is_btrfs(parent) && has_group(uid, parent) {
        return make(path, Some(uid));
    }
    files::ensure_dir(path, 0o700)
}

/// Makes a directory, which is missing, that will be moved into the tree `into` of a workspace: out of one subvolume into
/// another only a subvolume can be moved.
///
/// # Errors
/// When it cannot be made.
pub fn ensure_movable(path: &Path, into: &Path, uid: u32) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let into = rustix::fs::open(into, flags, Mode::empty());
    if into.is_ok_and(|into| is_subvolume(&into)) {
        make(path, has_group(uid, path.parent().unwrap_or(path)).then_some(uid))
    } else {
        files::ensure_dir(path, 0o700)
    }
}

/// A subvolume, in the group of a workspace if that is there.
fn make(path: &Path, uid: Option<u32>) -> Result<()> {
    let doing = |e| SystemError::new(format!("make the subvolume {}", path.display()), e).on_disk(path);
    let of_group = uid.map(group);
    let mut words = vec!["subvolume", "create"];
    words.extend(of_group.iter().flat_map(|group| ["-i", group.as_str()]));
    let made = btrfs(&words, path).map_err(doing)?;
    made.map(drop).map_err(|said| doing(io::Error::other(said.trim().to_owned())))
}

/// Limits what a workspace's trees on the disk of `on` take together, in octets. False where nothing counts that.
///
/// # Errors
/// When the limit is refused.
pub fn limit(uid: u32, octets: u64, on: &Path) -> Result<bool> {
    if !is_btrfs(on) || !has_group(uid, on) {
        return Ok(false);
    }
    let doing = |e| SystemError::new("limit what a workspace takes of the disk", e);
    let limited = btrfs(&["qgroup", "limit", &octets.to_string(), &group(uid)], on).map_err(doing)?;
    limited.map(|_| true).map_err(|said| doing(io::Error::other(said.trim().to_owned())))
}

/// Whether a workspace has nothing left of its share: for programs that end without saying why.
#[must_use]
pub fn is_used_up(uid: u32, on: &Path) -> bool {
    /// Less than this, in octets, and nothing of use can be written.
    const LEAST: u64 = 1 << 20;
    if !is_btrfs(on) {
        return false;
    }
    let Ok(Ok(said)) = btrfs(&["qgroup", "show", "--raw", "-r"], on) else { return false };
    let group = group(uid);
    let mut lines = said.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let of_group = lines.find(|words| words.first() == Some(&group.as_str()));
    // Referenced, exclusive, and the limit of what is referenced.
    let number = |words: &Vec<&str>, at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok());
    let taken = of_group.and_then(|words| Some((number(&words, 1)?, number(&words, 3)?)));
    taken.is_some_and(|(taken, limit)| taken.saturating_add(LEAST) > limit)
}

/// Forgets the group of a workspace that is gone.
pub fn forget(uid: u32, on: &Path) {
    if is_btrfs(on) {
        // One that still has members (trees whose removal is not on the disk yet) counts nothing that anyone has.
        let _ = btrfs(&["qgroup", "destroy", &group(uid)], on);
    }
}
