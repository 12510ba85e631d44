//! How much of a disk something takes, whoever made it and however: walked from one descriptor to the next, in bounded depth
//! and time; each file counts once, however many names it has; and files without a name count where they are open.

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags},
    io::Errno,
};
use std::{
    collections::{BTreeSet, HashSet},
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    time::Instant,
};

/// Directories in directories; each level holds a descriptor.
const DEEPEST: usize = 100;
/// Entries between two looks at the time.
const OFTEN: u32 = 256;
const BLOCK: u64 = 512;

/// Octets that a tree takes. What is not there takes none. `None`: it is too deep, or takes too long.
#[must_use]
pub fn octets(root: &Path, until: Instant) -> Option<u64> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(root) = rustix::fs::openat(CWD, root, flags, Mode::empty()).and_then(Dir::new) else { return Some(0) };
    let (mut sum, mut seen) = (0, 0_u32);
    let mut stack = vec![root];
    while let Some(directory) = stack.last_mut() {
        let entry = match directory.read() {
            None | Some(Err(_)) => {
                stack.pop();
                continue;
            }
            Some(Ok(entry)) => entry,
        };
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        seen = seen.wrapping_add(1);
        if seen.is_multiple_of(OFTEN) && Instant::now() > until {
            return None;
        }
        let Ok(at) = directory.fd() else { continue };
        // Gone meanwhile.
        let Ok(about) = rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let blocks = u64::try_from(about.st_blocks).unwrap_or(0);
        if FileType::from_raw_mode(about.st_mode) != FileType::Directory {
            // Its names, which are all in the tree, make it whole.
            sum += blocks * BLOCK / about.st_nlink.max(1);
            continue;
        }
        sum += blocks * BLOCK;
        match rustix::fs::openat(at, name, flags, Mode::empty()) {
            Ok(_) if stack.len() == DEEPEST => return None,
            Ok(inner) => stack.extend(Dir::new(inner)),
            // Out of descriptors.
            Err(Errno::MFILE | Errno::NFILE) => return None,
            Err(_) => {}
        }
    }
    Some(sum)
}

/// Octets of files on these devices that these processes hold and that no directory names any more. `None`: it takes too
/// long.
#[must_use]
pub fn nameless(pids: impl Iterator<Item = i32>, devices: &BTreeSet<u64>, until: Instant) -> Option<u64> {
    let mut known = HashSet::new();
    let mut sum = 0;
    let mut count = |path: &Path| {
        let Ok(about) = fs::metadata(path) else { return };
        let nameless = about.is_file() && about.nlink() == 0 && devices.contains(&about.dev());
        if nameless && known.insert((about.dev(), about.ino())) {
            sum += about.blocks() * BLOCK;
        }
    };
    for pid in pids {
        if Instant::now() > until {
            return None;
        }
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            count(&entry.path());
        }
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        for line in maps.lines().filter(|line| line.ends_with(" (deleted)")) {
            if let Some(range) = line.split(' ').next() {
                count(&Path::new("/proc").join(pid.to_string()).join("map_files").join(range));
            }
        }
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Write, time::Duration};

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn write(at: &Path, mib: usize) -> fs::File {
        let mut file = fs::File::create(at).expect("create");
        file.write_all(&vec![1; mib << 20]).expect("write");
        file.sync_all().expect("sync");
        file
    }

    #[test]
    fn a_file_counts_once_however_many_names_it_has_and_also_without_one_while_it_is_open() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = dir.path().join("file");
        let file = write(&at, 4);
        for n in 0..20 {
            fs::hard_link(&at, dir.path().join(n.to_string())).expect("link");
        }
        // Shares of names are whole octets.
        let mib = |octets: Option<u64>| (octets.expect("counted") + (1 << 10)) >> 20;
        assert_eq!(mib(octets(dir.path(), soon())), 4);
        let own = i32::try_from(std::process::id()).expect("a number");
        let memory = rustix::fs::memfd_create(c"shared", rustix::fs::MemfdFlags::CLOEXEC).expect("a file in memory");
        rustix::fs::ftruncate(&memory, 64 << 20).expect("grow");
        rustix::fs::fallocate(&memory, rustix::fs::FallocateFlags::empty(), 0, 64 << 20).expect("take");
        let here = [fs::metadata(dir.path()).expect("there").dev()].into();
        let before = mib(nameless([own].into_iter(), &here, soon()));
        assert!(before < 64, "what is in memory takes nothing of the disk: {before}");
        fs::read_dir(dir.path()).expect("read").flatten().for_each(|e| fs::remove_file(e.path()).expect("remove"));
        assert_eq!(mib(octets(dir.path(), soon())), 0);
        assert_eq!(mib(nameless([own, own].into_iter(), &here, soon())), before + 4);
        drop(file);
    }

    #[test]
    fn what_is_deeper_or_takes_longer_than_can_be_counted_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let deep = (0..90).fold(dir.path().to_owned(), |at, _| at.join("d"));
        fs::create_dir_all(&deep).expect("make");
        let file = write(&deep.join("file"), 1);
        assert!(octets(dir.path(), soon()).is_some_and(|octets| octets >= 1 << 20));
        fs::create_dir_all((0..20).fold(deep, |at, _| at.join("d"))).expect("make");
        assert_eq!(octets(dir.path(), soon()), None);
        for n in 0..300 {
            fs::write(dir.path().join(format!("{n}")), "").expect("write");
        }
        fs::remove_dir_all(dir.path().join("d")).expect("remove");
        drop(file);
        assert_eq!(octets(dir.path(), Instant::now()), None);
        assert_eq!(octets(&dir.path().join("none"), soon()), Some(0));
    }
}
