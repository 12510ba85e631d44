//! Removing a tree that a hostile user made: as deep, wide and odd as they like.
//!
//! No path below the root is ever walked and no link followed. A directory that is not empty gives up what it holds to
//! the root, where it is removed in turn; so whatever the depth, two directories are open at once (and
//! two for each subvolume that lies in another), nothing is remembered, and a removal that was cut short goes on from what is left.

use super::{Result, SystemError, share};
use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags},
    io::Errno,
};
use std::{
    ffi::{CStr, CString},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

/// Removes whatever is at a path; nothing there is as wanted.
///
/// # Errors
/// When something below cannot be removed; calling again goes on.
pub fn remove(path: &Path) -> Result<()> {
    let failed = |error: Errno| {
        let failure = SystemError::new(format!("remove {}", path.display()), error.into());
        match error {
            Errno::BUSY | Errno::XDEV => failure.with_hint("something is mounted in it: unmount it, it is tried again"),
            Errno::PERM => failure.with_hint(
                "something in it is protected (`lsattr -R` shows `i` or `a`): `chattr -R -ia` frees it, it is tried again",
            ),
            _ => failure,
        }
    };
    let root = match open(CWD, path) {
        Ok(root) => root,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => return rustix::fs::unlink(path).map_err(failed),
        Err(error) => return Err(failed(error)),
    };
    empty(&root, 0).map_err(failed)?;
    match rustix::fs::rmdir(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// Subvolumes in subvolumes (btrfs), out of which nothing can be moved: each is emptied by itself. Every level holds a
/// few descriptors.
const DEEPEST: usize = 100;

/// Removes everything below a directory that lies in so many subvolumes.
fn empty(root: &OwnedFd, depth: usize) -> rustix::io::Result<()> {
    let mut number = 0_u64;
    loop {
        let mut found = false;
        let mut entries = Dir::read_from(root)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let name = entry.file_name();
            if is_own_or_parent(name) {
                continue;
            }
            found = true;
            if entry.file_type() == FileType::Directory || !unlinked(root.as_fd(), name)? {
                flatten(root, name, &mut number, depth)?;
            }
        }
        // What was moved up meanwhile may have been missed.
        if !found {
            return Ok(());
        }
    }
}

/// Removes one directory of the root, after what it holds was removed or moved up.
fn flatten(root: &OwnedFd, name: &CStr, number: &mut u64, depth: usize) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(root, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // Exchanged for something else: the next look meets that.
        Err(Errno::NOTDIR) => return Ok(()),
        Err(Errno::NOTEMPTY | Errno::EXIST | Errno::ACCESS) => {}
        Err(error) => return Err(error),
    }
    let directory = match open(root, name) {
        Ok(directory) => directory,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut entries = Dir::read_from(&directory)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let inner = entry.file_name();
        if is_own_or_parent(inner) {
            continue;
        }
        if entry.file_type() == FileType::Directory || !unlinked(directory.as_fd(), inner)? {
            match move_up(&directory, inner, root, number) {
                Err(Errno::XDEV) if depth < DEEPEST && share::is_subvolume(&directory) => {
                    empty(&directory, depth + 1)?;
                    break;
                }
                moved => moved?,
            }
        }
    }
    match rustix::fs::unlinkat(root, name, AtFlags::REMOVEDIR) {
        // Filled again or exchanged: the next look meets it.
        Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether it is no directory and gone now.
fn unlinked(directory: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<bool> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::ISDIR) => Ok(false),
        Err(error) => Err(error),
    }
}

fn move_up(from: &OwnedFd, name: &CStr, root: &OwnedFd, number: &mut u64) -> rustix::io::Result<()> {
    loop {
        *number += 1;
        let Ok(fresh) = CString::new(format!(".removed-{number}")) else { return Err(Errno::INVAL) };
        match rustix::fs::renameat_with(from, name, root, fresh.as_c_str(), RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            // Its own permissions stand in the way of an ordinary user: moving a directory changes its `..`.
            Err(Errno::ACCESS) => {
                drop(open(from, name)?);
                return rustix::fs::renameat_with(from, name, root, fresh.as_c_str(), RenameFlags::NOREPLACE);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Opens a directory itself, never what a link points to. One that its owner may not look into is opened up first.
fn open<P: rustix::path::Arg + Copy>(at: impl AsFd, name: P) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(&at, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {}
        opened => {
            let opened = opened?;
            if rustix::process::geteuid().is_root()
                || rustix::fs::accessat(&opened, c".", WRITE, AtFlags::empty()).is_ok()
            {
                return Ok(opened);
            }
        }
    }
    // By the descriptor, so that a link that takes its place is not what is changed.
    let path = rustix::fs::openat(&at, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
    let itself = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&path));
    rustix::fs::chmod(&*itself, Mode::RWXU)?;
    rustix::fs::openat(&at, name, flags, Mode::empty())
}

const WRITE: rustix::fs::Access = rustix::fs::Access::WRITE_OK.union(rustix::fs::Access::EXEC_OK);

fn is_own_or_parent(name: &CStr) -> bool {
    name == c"." || name == c".."
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    #[test]
    fn a_tree_of_any_depth_and_width_goes_and_nothing_outside_is_touched() {
        let dir = tempfile::tempdir().expect("temp dir");
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).expect("mkdir");
        fs::write(outside.join("kept"), "x").expect("write");
        let root = dir.path().join("root");
        fs::create_dir(&root).expect("mkdir");
        let mut deepest = open(CWD, &root).expect("open");
        for _ in 0..20_000 {
            rustix::fs::mkdirat(&deepest, "d", Mode::RWXU).expect("mkdir");
            deepest = open(&deepest, "d").expect("open");
        }
        rustix::fs::symlinkat(&outside, &deepest, "link").expect("link");
        for n in 0..3_000 {
            fs::create_dir(root.join(format!("w{n}"))).expect("mkdir");
            fs::write(root.join(format!("w{n}/.removed-{n}")), "x").expect("write");
        }
        // Names that the removal would give.
        fs::create_dir_all(root.join(".removed-1/.removed-2/x")).expect("mkdir");
        std::os::unix::fs::symlink(&outside, root.join("link")).expect("link");
        std::os::unix::fs::symlink(&root, root.join("w1/loop")).expect("link");
        nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("fifo");
        remove(&root).expect("removed");
        assert!(!root.exists());
        assert_eq!(fs::read(outside.join("kept")).expect("kept"), b"x");
        remove(&root).expect("nothing is there");
    }

    #[test]
    fn directories_that_their_owner_closed_go_too() {
        let dir = tempfile::tempdir().expect("temp dir");
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("a/b/c")).expect("mkdir");
        fs::write(root.join("a/b/f"), "x").expect("write");
        for closed in ["a/b/c", "a/b", "a", ""] {
            fs::set_permissions(root.join(closed), fs::Permissions::from_mode(0o000)).expect("chmod");
        }
        remove(&root).expect("removed");
        assert!(!root.exists());
    }

    #[test]
    fn what_an_administrator_protected_is_told_and_goes_once_it_is_free() {
        let dir = tempfile::tempdir().expect("temp dir");
        let root = dir.path().join("root");
        for file in ["kept", "a/kept"] {
            fs::create_dir_all(root.join("a")).expect("mkdir");
            fs::write(root.join(file), "x").expect("write");
            let chattr = |flag: &str| {
                std::process::Command::new("chattr")
                    .arg(flag)
                    .arg(root.join(file))
                    .output()
                    .is_ok_and(|o| o.status.success())
            };
            if !chattr("+i") {
                return;
            }
            let refused = remove(&root);
            assert!(chattr("-i"));
            assert!(refused.expect_err("it is protected").hint.contains("chattr"));
        }
        remove(&root).expect("removed");
        assert!(!root.exists());
    }

    #[test]
    fn a_link_in_the_place_of_the_root_is_removed_and_not_followed() {
        let dir = tempfile::tempdir().expect("temp dir");
        fs::create_dir(dir.path().join("real")).expect("mkdir");
        std::os::unix::fs::symlink(dir.path().join("real"), dir.path().join("root")).expect("link");
        remove(&dir.path().join("root")).expect("removed");
        assert!(dir.path().join("real").is_dir() && fs::symlink_metadata(dir.path().join("root")).is_err());
    }
}
