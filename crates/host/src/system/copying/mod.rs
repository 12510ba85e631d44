//! Copies of trees that a user writes to while they are copied: in passes, each of which copies what the one before
//! has not got, so that the last one, for which the writers stand still, has little to do.
//!
//! Rules kept here: the source is walked from one directory descriptor to the next and no link in it is followed, so that
//! nothing outside of it is read, whatever its user puts where; the target lies where nobody but the caller can reach
//! it. Modes, times, links of both kinds, holes and the user's extended attributes stay; owners are exchanged; sockets
//! are left out, since nobody would listen.
//!
//! A file has changed when its size, time of change or number has. The clock that stamps changes is coarse, and a page
//! that is mapped and dirty changes without a stamp: what was stamped after the last sync before it was copied is
//! copied once more.

mod content;

use super::{Result, SystemError, accounts::Accounts, removal};
pub use content::{Way, way_between};
use rustix::{
    fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timestamps, Uid},
    io::Errno,
    time::{ClockId, clock_gettime},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::{CStr, OsStr, OsString},
    fs, io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

/// Directories in directories; more than any tool makes, fewer than a process has descriptors for.
const DEEPEST: usize = 200;
/// A stamp may be older than the change by so many nanoseconds: a tick of the slowest clock.
const COARSE: i128 = 20_000_000;

const SAFE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// What an asker may look at while it copies: true ends the copy.
pub type Stop<'a> = &'a (dyn Fn() -> bool + Sync);

/// What is special in a tree, by the path below its root.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Not copied, whatever it is.
    pub is_left_out: fn(&Path) -> bool,
    /// Files that only grow: what is there of them stays good.
    pub only_grows: fn(&Path) -> bool,
}

/// Owners of the source and who has their things in the copy.
#[derive(Debug, Clone)]
pub struct Owners(Vec<(u32, u32)>);

impl Owners {
    /// From one pair of accounts to another.
    #[must_use]
    pub fn between(from: &Accounts, to: &Accounts) -> Self {
        let pairs = [(&from.user, &to.user), (&from.resource, &to.resource)];
        Self(pairs.iter().map(|(from, to)| (from.uid, to.uid)).collect())
    }

    fn of(&self, id: u32) -> u32 {
        self.0.iter().find(|(from, _)| *from == id).map_or(id, |(_, to)| *to)
    }
}

/// What one pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passed {
    /// Files that were copied, wholly or in part.
    pub files: u64,
    /// Octets of them.
    pub bytes: u64,
}

/// A moment before which every change of a file system is on its disk and has its stamp.
#[derive(Debug, Clone, Copy)]
pub struct Synced(i128);

/// Syncs the file system that holds `path`.
///
/// # Errors
/// When it cannot.
pub fn sync(path: &Path) -> Result<Synced> {
    let now = clock_gettime(ClockId::Realtime);
    let before = i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec) - COARSE;
    let synced = fs::File::open(path).and_then(|at| Ok(rustix::fs::syncfs(at)?));
    synced.map_err(|e| SystemError::new(format!("sync {}", path.display()), e).on_disk(path))?;
    Ok(Synced(before))
}

/// One thing of the source as it was when it was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    kind: FileType,
    number: u64,
    size: i64,
    changed: i128,
    /// Its stamp would show a later change.
    settled: bool,
}

impl Seen {
    fn of(about: &Stat, synced: Option<Synced>) -> Self {
        let changed = i128::from(about.st_ctime) * 1_000_000_000 + i128::from(about.st_ctime_nsec);
        let settled = synced.is_some_and(|Synced(moment)| changed < moment);
        Self {
            kind: FileType::from_raw_mode(about.st_mode),
            number: about.st_ino,
            size: about.st_size,
            changed,
            settled,
        }
    }

    /// Whether what was copied then is what is there now.
    fn still_is(&self, now: &Self) -> bool {
        self.settled && Self { settled: true, ..*now } == *self
    }
}

#[derive(Debug, Default)]
struct Known {
    seen: BTreeMap<OsString, Seen>,
    directories: BTreeMap<OsString, Known>,
}

/// A copy that is on its way.
#[derive(Debug)]
pub struct Mirror {
    from: PathBuf,
    to: PathBuf,
    owners: Owners,
    rules: Rules,
    way: Way,
    known: Known,
    /// Files with several names: where the first one is in the copy, and its number there.
    linked: HashMap<(u64, u64), (PathBuf, u64)>,
}

/// What a walk carries along.
struct Walk<'a> {
    stop: Stop<'a>,
    synced: Option<Synced>,
    passed: Passed,
    root: bool,
}

impl Mirror {
    /// A copy of the directory `from` at `to`, where nothing is yet. A source that is not there is copied as nothing.
    #[must_use]
    pub fn new(from: &Path, to: &Path, owners: Owners, rules: Rules, way: Way) -> Self {
        Self {
            from: from.to_owned(),
            to: to.to_owned(),
            owners,
            rules,
            way,
            known: Known::default(),
            linked: HashMap::new(),
        }
    }

    /// Copies what changed since the pass before, and removes what is gone. `synced` is of just before.
    ///
    /// # Errors
    /// When the source cannot be read, the target not be written, or `stop` says so ([`io::ErrorKind::Interrupted`]).
    pub fn pass(&mut self, synced: Option<Synced>, stop: Stop<'_>) -> Result<Passed> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let from = match rustix::fs::open(&self.from, flags, Mode::empty()) {
            Ok(from) => from,
            Err(Errno::NOENT) => return Ok(Passed::default()),
            Err(error) => return Err(SystemError::new(format!("open {}", self.from.display()), error.into())),
        };
        let mut walk = Walk { stop, synced, passed: Passed::default(), root: rustix::process::geteuid().is_root() };
        let mut known = std::mem::take(&mut self.known);
        let mut path = PathBuf::new();
        let copied = || -> io::Result<()> {
            match rustix::fs::mkdir(&self.to, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            let to = rustix::fs::open(&self.to, flags, Mode::empty())?;
            self.directory(&mut walk, &from, &to, &mut path, &mut known)
        }();
        self.known = known;
        match copied {
            Ok(()) => Ok(walk.passed),
            Err(error) => {
                let what = self.from.file_name().map(PathBuf::from).unwrap_or_default().join(&path);
                Err(SystemError::new(format!("copy {}", what.display()), error).on_disk(&self.to))
            }
        }
    }

    /// Copies one directory. `path` names the place of an error.
    fn directory(
        &mut self,
        walk: &mut Walk<'_>,
        from: &OwnedFd,
        to: &OwnedFd,
        path: &mut PathBuf,
        known: &mut Known,
    ) -> io::Result<()> {
        if path.components().count() >= DEEPEST {
            return Err(io::Error::other(format!("directories are nested more than {DEEPEST} deep")));
        }
        let about = rustix::fs::fstat(from)?;
        if !walk.root {
            // Its owner may have closed it.
            rustix::fs::fchmod(to, Mode::RWXU)?;
        }
        let mut there = BTreeSet::new();
        let mut entries = Dir::read_from(from)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            if (walk.stop)() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let os = OsStr::from_bytes(name.to_bytes());
            path.push(os);
            if !(self.rules.is_left_out)(path) && self.entry(walk, from, to, name, path, known)? {
                there.insert(os.to_owned());
            }
            path.pop();
        }
        drop(entries);
        let gone: Vec<OsString> = known.seen.keys().filter(|name| !there.contains(*name)).cloned().collect();
        for name in gone {
            path.push(&name);
            self.forget(path, &name, known)?;
            path.pop();
        }
        self.describe(to, &about, from)
    }

    /// Copies one entry; false when it is gone by now or of a kind that is not copied.
    fn entry(
        &mut self,
        walk: &mut Walk<'_>,
        from: &OwnedFd,
        to: &OwnedFd,
        name: &CStr,
        path: &mut PathBuf,
        known: &mut Known,
    ) -> io::Result<bool> {
        let os = OsStr::from_bytes(name.to_bytes());
        let about = match rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(about) => about,
            Err(Errno::NOENT) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let now = Seen::of(&about, walk.synced);
        let before = known.seen.get(os).copied();
        if before.is_some_and(|before| before.kind != now.kind) {
            self.forget(path, os, known)?;
        }
        let before = known.seen.get(os).copied();
        if now.kind != FileType::Directory && before.is_some_and(|before| before.still_is(&now)) {
            return Ok(true);
        }
        let seen = match now.kind {
            FileType::Directory => {
                let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let Some(inner) = gone_is_none(rustix::fs::openat2(from, name, flags, Mode::empty(), SAFE))? else {
                    return Ok(false);
                };
                match rustix::fs::mkdirat(to, name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                let target = rustix::fs::openat2(
                    to,
                    name,
                    OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC,
                    Mode::empty(),
                    SAFE,
                )?;
                if !walk.root {
                    rustix::fs::chmodat(to, name, Mode::RWXU, AtFlags::empty())?;
                }
                let target = rustix::fs::openat(&target, c".", flags, Mode::empty())?;
                let below = known.directories.entry(os.to_owned()).or_default();
                known.seen.insert(os.to_owned(), now);
                // What is in it so far is known even if it is not whole.
                let mut taken = std::mem::take(below);
                let copied = self.directory(walk, &inner, &target, path, &mut taken);
                known.directories.insert(os.to_owned(), taken);
                copied?;
                Some(now)
            }
            FileType::RegularFile => self.file(walk, from, to, name, path, before)?,
            FileType::Symlink => {
                let Some(target) = gone_is_none(rustix::fs::readlinkat(from, name, Vec::new()))? else {
                    return Ok(false);
                };
                remove(to, name)?;
                rustix::fs::symlinkat(&target, to, name)?;
                self.own(to, name, &about, walk.root)?;
                rustix::fs::utimensat(to, name, &times(&about), AtFlags::SYMLINK_NOFOLLOW)?;
                Some(now)
            }
            FileType::Fifo => {
                remove(to, name)?;
                rustix::fs::mknodat(to, name, FileType::Fifo, Mode::from_raw_mode(about.st_mode), 0)?;
                self.own(to, name, &about, walk.root)?;
                rustix::fs::chmodat(to, name, Mode::from_raw_mode(about.st_mode), AtFlags::empty())?;
                Some(now)
            }
            // Nobody would listen on a socket, and nobody but root makes devices.
            FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice | FileType::Unknown => None,
        };
        if let Some(seen) = seen {
            known.seen.insert(os.to_owned(), seen);
        }
        Ok(seen.is_some())
    }

    fn file(
        &mut self,
        walk: &mut Walk<'_>,
        from: &OwnedFd,
        to: &OwnedFd,
        name: &CStr,
        path: &Path,
        before: Option<Seen>,
    ) -> io::Result<Option<Seen>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW;
        let Some(source) = gone_is_none(rustix::fs::openat2(from, name, flags, Mode::empty(), SAFE))? else {
            return Ok(None);
        };
        // What was opened is what counts: it may be another by now.
        let about = rustix::fs::fstat(&source)?;
        let seen = Seen::of(&about, walk.synced);
        if seen.kind != FileType::RegularFile {
            return Ok(None);
        }
        let key = (about.st_dev, about.st_ino);
        let is_new = before.is_none_or(|before| before.number != seen.number);
        if about.st_nlink > 1 && is_new && self.link(key, to, name)? {
            return Ok(Some(seen));
        }
        let grows = (self.rules.only_grows)(path);
        let (target, has) = self.target(to, name, &about, before, grows)?;
        let bytes = content::copy(&source, &target, &about, has, &mut self.way, walk.stop)?;
        walk.passed.files += 1;
        walk.passed.bytes += bytes;
        self.describe(&target, &about, &source)?;
        if about.st_nlink > 1 {
            let number = rustix::fs::fstat(&target)?.st_ino;
            self.linked.insert(key, (path.to_owned(), number));
        }
        Ok(Some(seen))
    }

    /// Another name for what was copied already, where that is still there.
    fn link(&self, key: (u64, u64), to: &OwnedFd, name: &CStr) -> io::Result<bool> {
        let Some((first, number)) = self.linked.get(&key) else { return Ok(false) };
        let at = self.to.join(first);
        if rustix::fs::lstat(&at).is_ok_and(|about| about.st_ino == *number) {
            remove(to, name)?;
            rustix::fs::linkat(rustix::fs::CWD, &at, to, name, AtFlags::empty())?;
            return Ok(true);
        }
        Ok(false)
    }

    /// The file to write to, and how much of it is good already. The one of an earlier pass keeps its other names.
    fn target(
        &self,
        to: &OwnedFd,
        name: &CStr,
        about: &Stat,
        before: Option<Seen>,
        grows: bool,
    ) -> io::Result<(OwnedFd, u64)> {
        if before.is_some_and(|before| before.number == about.st_ino) {
            let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            if let Ok(known) = rustix::fs::openat2(to, name, flags, Mode::empty(), SAFE) {
                let there = rustix::fs::fstat(&known)?;
                if there.st_nlink == about.st_nlink {
                    let has = if grows && there.st_size <= about.st_size { there.st_size } else { 0 };
                    rustix::fs::ftruncate(&known, u64::try_from(has).unwrap_or(0))?;
                    return Ok((known, u64::try_from(has).unwrap_or(0)));
                }
            }
        }
        remove(to, name)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok((rustix::fs::openat2(to, name, flags, Mode::RUSR | Mode::WUSR, SAFE)?, 0))
    }

    /// Owner, mode, attributes and times of an open file or directory, in the order in which none undoes another.
    fn describe(&self, target: &OwnedFd, about: &Stat, source: &OwnedFd) -> io::Result<()> {
        if rustix::process::geteuid().is_root() {
            let (uid, gid) = (self.owners.of(about.st_uid), self.owners.of(about.st_gid));
            rustix::fs::fchown(target, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        content::copy_attributes(source, target)?;
        rustix::fs::fchmod(target, Mode::from_raw_mode(about.st_mode))?;
        Ok(rustix::fs::futimens(target, &times(about))?)
    }

    /// The owner of what cannot be opened.
    fn own(&self, to: &OwnedFd, name: &CStr, about: &Stat, root: bool) -> io::Result<()> {
        if !root {
            return Ok(());
        }
        let (uid, gid) = (Uid::from_raw(self.owners.of(about.st_uid)), Gid::from_raw(self.owners.of(about.st_gid)));
        Ok(rustix::fs::chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Removes from the copy what is no longer in the source.
    fn forget(&self, path: &Path, name: &OsStr, known: &mut Known) -> io::Result<()> {
        removal::remove(&self.to.join(path)).map_err(|e| e.source)?;
        known.seen.remove(name);
        known.directories.remove(name);
        Ok(())
    }
}

/// What is gone, or something else by now, is no error of a pass: the next one meets what is there then.
fn gone_is_none<T>(outcome: rustix::io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(there) => Ok(Some(there)),
        Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::NXIO | Errno::INVAL) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn remove(to: &OwnedFd, name: &CStr) -> io::Result<()> {
    match rustix::fs::unlinkat(to, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn times(about: &Stat) -> Timestamps {
    let moment = |seconds, nanoseconds| rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    #[allow(clippy::cast_possible_wrap)] // Nanoseconds of a second.
    Timestamps {
        last_access: moment(about.st_atime, about.st_atime_nsec as i64),
        last_modification: moment(about.st_mtime, about.st_mtime_nsec as i64),
    }
}

/// What a copy leaves free for everything else on its disk: a database that finds none for its log ends.
const RESERVE: u64 = 32 << 20;

/// Whether the file system that holds `path` takes so many octets more, and those who write to it have room besides.
///
/// # Errors
/// As a full disk, when it does not.
pub fn has_room(path: &Path, bytes: u64) -> Result<()> {
    let doing = |e: Errno| SystemError::new("copy the workspace", e.into()).on_disk(path);
    let about = rustix::fs::statvfs(path).map_err(doing)?;
    let free = about.f_bavail.saturating_mul(about.f_frsize);
    if free < bytes.saturating_add(RESERVE) { Err(doing(Errno::NOSPC)) } else { Ok(()) }
}

/// Octets that a tree takes on its disk.
#[must_use]
pub fn size_of(path: &Path) -> u64 {
    let Ok(about) = fs::symlink_metadata(path) else { return 0 };
    let own = std::os::unix::fs::MetadataExt::blocks(&about) * 512;
    if !about.is_dir() {
        return own;
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    own + entries.map(|entry| size_of(&entry.path())).sum::<u64>()
}

#[cfg(test)]
mod tests;
