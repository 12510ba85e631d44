//! Files: durable writes of what the host must not lose, and access to trees that a hostile user writes to.
//!
//! Everything in a workspace's `files` belongs to its user, who may put a link or a fifo anywhere at any moment. Root
//! therefore opens nothing there by path: [`Beneath`] resolves with `openat2` below a directory descriptor and
//! follows no symbolic link.

use super::{Result, SystemError, accounts::Account};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::{
    fs,
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

/// Makes a directory (and its parents, 0755) with exactly these permissions, owned by the caller.
///
/// # Errors
/// When it cannot be made.
pub fn ensure_dir(path: &Path, mode: u32) -> Result<()> {
    let doing = |e| SystemError::new(format!("make the directory {}", path.display()), e).on_disk(path);
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(doing)?;
    }
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other.map_err(doing)?,
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(doing)
}

/// Makes a directory that belongs to an account, in one that nobody but root and the caller can change.
///
/// # Errors
/// When it cannot be made or given away.
pub fn ensure_dir_for(path: &Path, mode: u32, owner: &Account) -> Result<()> {
    ensure_dir(path, mode)?;
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(path, Some(owner.uid), Some(owner.gid))
            .map_err(|e| SystemError::new(format!("give {} away", path.display()), e))?;
    }
    Ok(())
}

/// The same in a directory that belongs to an account already: what that account put in its place, a link above all, is
/// refused and not followed.
///
/// # Errors
/// When it cannot be made or given away, or something else is there.
pub fn ensure_dir_in_theirs(path: &Path, mode: u32, owner: &Account) -> Result<()> {
    let doing = |e: io::Error| SystemError::new(format!("make the directory {}", path.display()), e).on_disk(path);
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(doing)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other.map_err(doing)?,
    }
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| {
        doing(e.into()).with_hint("something else is in its place, which EnvForge does not follow: move it away")
    })?;
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::fchown(&directory, Some(owner.uid), Some(owner.gid)).map_err(doing)?;
    }
    rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode)).map_err(|e| doing(e.into()))
}

/// Writes a file so that it is whole or as before, whatever is killed when: beside it, synced, renamed, directory synced.
///
/// # Errors
/// When the disk refuses; the old content is then still there.
pub fn write_durably(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let new = Beside::write(path, bytes, mode)?;
    new.sync()?;
    new.put()?;
    keep_names(path)
}

/// The new content of a file, beside it until it is put in its place: the steps of [`write_durably`], for who has several
/// files that the disk may take at once. Dropped before, it is gone.
#[derive(Debug)]
pub struct Beside {
    file: fs::File,
    beside: PathBuf,
    path: PathBuf,
    put: bool,
}

impl Beside {
    /// Writes it, whether or not it is on disk.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<Self> {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(".new");
        let beside = path.with_file_name(name);
        let write = || {
            let mut file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(mode).open(&beside)?;
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            file.write_all(bytes)?;
            Ok(file)
        };
        let file = write().map_err(|e| not_written(path, &beside, e))?;
        Ok(Self { file, beside, path: path.to_owned(), put: false })
    }

    /// Waits until it is on disk.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| not_written(&self.path, &self.beside, e))
    }

    /// Puts it in its place; that it is there is on disk after [`keep_names`].
    ///
    /// # Errors
    /// When the disk refuses; the old content is then still there.
    pub fn put(mut self) -> Result<()> {
        fs::rename(&self.beside, &self.path).map_err(|e| not_written(&self.path, &self.beside, e))?;
        self.put = true;
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if !self.put {
            let _ = fs::remove_file(&self.beside);
        }
    }
}

/// Waits until the names in the directory of a file are on disk.
///
/// # Errors
/// When the disk refuses.
pub fn keep_names(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    fs::File::open(parent)
        .and_then(|parent| parent.sync_all())
        .map_err(|e| SystemError::new(format!("write {}", path.display()), e).on_disk(path))
}

/// Writes a file as a whole without waiting for the disk: for what can be made again.
///
/// # Errors
/// When the disk refuses.
pub fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    if fs::File::open(path).is_ok_and(|file| holds(file, bytes, |about| about.permissions().mode() & 0o7777 == mode)) {
        return Ok(());
    }
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let beside = path.with_file_name(name);
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(mode).open(&beside)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        fs::rename(&beside, path)
    };
    write().map_err(|e| not_written(path, &beside, e))
}

/// What is said of a file that stayed as it was. The half of a new one takes no space from those that come after.
fn not_written(path: &Path, beside: &Path, error: io::Error) -> SystemError {
    let _ = fs::remove_file(beside);
    SystemError::new(format!("write {}", path.display()), error)
        .with_hint("is the file system read-only, or the path closed? Nothing was changed")
        .on_disk(path)
}

/// Whether a file is a regular one that is as wanted and holds exactly these octets: replacing it would cost the disk
/// something and change nothing.
fn holds(file: fs::File, bytes: &[u8], as_wanted: impl Fn(&fs::Metadata) -> bool) -> bool {
    let about = file.metadata();
    if !about.is_ok_and(|about| about.is_file() && about.len() == bytes.len() as u64 && as_wanted(&about)) {
        return false;
    }
    let mut held = Vec::with_capacity(bytes.len() + 1);
    file.take(bytes.len() as u64 + 1).read_to_end(&mut held).is_ok() && held == bytes
}

/// A directory below which a user may do what they like, and through which nothing outside can be reached.
#[derive(Debug)]
pub struct Beneath {
    root: OwnedFd,
    path: PathBuf,
}

/// A path to what is open, for as long as it is: whatever becomes of the place that it was opened at.
#[must_use]
pub fn way_to(open: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()))
}

/// What may be opened beneath an untrusted root.
const SAFE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

impl Beneath {
    /// Opens the root itself, which the user cannot replace (its parent is root's).
    ///
    /// # Errors
    /// When it is no directory.
    pub fn open(root: &Path) -> Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(root, flags, Mode::empty())
            .map_err(|e| SystemError::new(format!("open {}", root.display()), e.into()))?;
        Ok(Self { root: fd, path: root.to_owned() })
    }

    fn failed(&self, doing: &str, path: &Path, error: rustix::io::Errno) -> SystemError {
        let shown = self.path.file_name().map(PathBuf::from).unwrap_or_default().join(path);
        let system = SystemError::new(format!("{doing} {}", shown.display()), error.into()).on_disk(&self.path);
        if error == rustix::io::Errno::LOOP {
            return system
                .with_hint("a symbolic link is in the path, and EnvForge follows none in a workspace: remove it");
        }
        if matches!(error, rustix::io::Errno::NOTDIR | rustix::io::Errno::ISDIR) {
            return system.with_hint("something else is in its place: move it away");
        }
        system
    }

    /// Reads a regular file of at most `limit` octets.
    ///
    /// # Errors
    /// When it is missing, no regular file, behind a link, or larger.
    pub fn read(&self, path: &Path, limit: u64) -> Result<Vec<u8>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = rustix::fs::openat2(&self.root, path, flags, Mode::empty(), SAFE)
            .map_err(|e| self.failed("read", path, e))?;
        let file = fs::File::from(fd);
        let wrong = |what: &str| {
            let shown = self.path.file_name().map(PathBuf::from).unwrap_or_default().join(path);
            SystemError::new(format!("read {}", shown.display()), io::Error::other(what.to_owned()))
        };
        let about = file.metadata().map_err(|e| SystemError::new("read a file", e))?;
        if !about.is_file() {
            return Err(wrong("it is no regular file"));
        }
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| wrong(&e.to_string()))?;
        if bytes.len() as u64 > limit {
            return Err(wrong(&format!("it is larger than {limit} octets")));
        }
        Ok(bytes)
    }

    /// A socket itself, never what a link in its place leads to: [`way_to`] is where it can be connected to.
    ///
    /// # Errors
    /// When it is missing or behind a link.
    pub fn socket(&self, path: &Path) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        rustix::fs::openat2(&self.root, path, flags, Mode::empty(), SAFE).map_err(|e| self.failed("open", path, e))
    }

    /// Whether a directory is there (not behind a link).
    #[must_use]
    pub fn is_dir(&self, path: &Path) -> bool {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        rustix::fs::openat2(&self.root, path, flags, Mode::empty(), SAFE).is_ok()
    }

    /// Makes a directory owned by an account if nothing is there.
    ///
    /// # Errors
    /// When something else is in the way.
    pub fn ensure_dir(&self, path: &Path, mode: u32, owner: &Account) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        match rustix::fs::mkdirat(&parent, &name, Mode::from_raw_mode(mode)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(self.failed("make", path, error)),
        }
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat2(&parent, &name, flags, Mode::empty(), SAFE)
            .map_err(|e| self.failed("make", path, e))?;
        self.give(&fd, path, owner)
    }

    /// Writes a file owned by an account, as a whole: beside it, then renamed over whatever was there (a link is
    /// replaced, never followed).
    ///
    /// # Errors
    /// When the directory is not a real one or the disk refuses.
    pub fn write(&self, path: &Path, bytes: &[u8], mode: u32, owner: &Account) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        let looking = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let root = rustix::process::geteuid().is_root();
        let same = |about: &fs::Metadata| {
            let owned = !root || (about.uid() == owner.uid && about.gid() == owner.gid);
            owned && about.nlink() == 1 && about.permissions().mode() & 0o7777 == mode
        };
        if rustix::fs::openat2(&parent, &name, looking, Mode::empty(), SAFE)
            .is_ok_and(|fd| holds(fs::File::from(fd), bytes, same))
        {
            return Ok(());
        }
        let mut raw = [0_u8; 6];
        rand::fill(&mut raw);
        let beside = format!(".{}.{}", name.display(), data_encoding::HEXLOWER.encode(&raw));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::openat2(&parent, &*beside, flags, Mode::from_raw_mode(mode), SAFE)
            .map_err(|e| self.failed("write", path, e))?;
        self.give(&fd, path, owner)?;
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode)).map_err(|e| self.failed("write", path, e))?;
        let written = fs::File::from(fd).write_all(bytes);
        if let Err(error) = written {
            let _ = rustix::fs::unlinkat(&parent, &*beside, rustix::fs::AtFlags::empty());
            return Err(SystemError::new(format!("write {}", path.display()), error).on_disk(&self.path));
        }
        rustix::fs::renameat(&parent, &*beside, &parent, &name).map_err(|e| self.failed("write", path, e))
    }

    fn give(&self, fd: &OwnedFd, path: &Path, owner: &Account) -> Result<()> {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let (uid, gid) = (rustix::fs::Uid::from_raw(owner.uid), rustix::fs::Gid::from_raw(owner.gid));
        rustix::fs::fchown(fd, Some(uid), Some(gid)).map_err(|e| self.failed("give away", path, e))
    }

    fn parent(&self, path: &Path) -> Result<(OwnedFd, PathBuf)> {
        let invalid = || self.failed("open", path, rustix::io::Errno::INVAL);
        let name = PathBuf::from(path.file_name().ok_or_else(invalid)?);
        let parent = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            Some(_) | None => Path::new("."),
        };
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat2(&self.root, parent, flags, Mode::empty(), SAFE)
            .map_err(|e| self.failed("open", parent, e))?;
        Ok((fd, name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::accounts;

    #[test]
    fn new_content_takes_its_place_as_a_whole_or_leaves_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("f");
        let names = || fs::read_dir(dir.path()).expect("read").count();
        write_durably(&path, b"old", 0o600).expect("written");
        drop(Beside::write(&path, b"new", 0o600).expect("written"));
        assert_eq!((fs::read(&path).expect("read").as_slice(), names()), (&b"old"[..], 1));
        let new = Beside::write(&path, b"new", 0o640).expect("written");
        new.sync().expect("synced");
        assert_eq!(fs::read(&path).expect("read"), b"old");
        new.put().expect("put");
        assert_eq!((fs::read(&path).expect("read").as_slice(), names()), (&b"new"[..], 1));
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn a_link_in_the_place_of_a_directory_is_followed_for_no_account() {
        let dir = tempfile::tempdir().expect("a directory");
        let (theirs, target) = (dir.path().join("theirs"), dir.path().join("target"));
        fs::create_dir(&target).expect("made");
        fs::set_permissions(&target, fs::Permissions::from_mode(0o755)).expect("chmod");
        std::os::unix::fs::symlink(&target, &theirs).expect("linked");
        let own = crate::system::accounts::own();
        let refused = ensure_dir_in_theirs(&theirs, 0o700, &own).expect_err("not followed");
        assert!(refused.hint.contains("does not follow"), "{refused}");
        let mode = fs::metadata(&target).expect("there").permissions().mode() & 0o7777;
        assert_eq!(mode, 0o755, "and not changed");
        fs::remove_file(&theirs).expect("removed");
        for _ in 0..2 {
            ensure_dir_in_theirs(&theirs, 0o700, &own).expect("made, and there");
        }
        assert_eq!(fs::metadata(&theirs).expect("there").permissions().mode() & 0o7777, 0o700);
    }

    #[test]
    fn a_link_in_the_place_of_a_socket_leads_to_no_other_one() {
        use std::os::unix::net::{UnixListener, UnixStream};
        let dir = tempfile::tempdir().expect("a directory");
        let (theirs, other) = (dir.path().join("theirs"), dir.path().join("other"));
        fs::create_dir(&theirs).expect("made");
        let (_own, _others) = (UnixListener::bind(theirs.join("own")), UnixListener::bind(&other));
        std::os::unix::fs::symlink(&other, theirs.join("link")).expect("linked");
        let beneath = Beneath::open(&theirs).expect("open");
        assert!(UnixStream::connect(theirs.join("link")).is_ok(), "it leads there for whoever follows it");
        assert!(beneath.socket(Path::new("link")).is_err());
        let socket = beneath.socket(Path::new("own")).expect("the socket");
        fs::remove_file(theirs.join("own")).expect("removed");
        std::os::unix::fs::symlink(&other, theirs.join("own")).expect("linked");
        UnixStream::connect(way_to(&socket)).expect("the one that was opened, whatever is there now");
    }

    #[test]
    fn links_and_special_files_in_a_users_tree_are_never_followed_or_opened() {
        let dir = tempfile::tempdir().expect("temp dir");
        let outside = dir.path().join("outside");
        fs::write(&outside, "secret").expect("write");
        let root = dir.path().join("files");
        fs::create_dir(&root).expect("mkdir");
        std::os::unix::fs::symlink(&outside, root.join("link")).expect("link");
        std::os::unix::fs::symlink("/etc", root.join("etc")).expect("link");
        nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("fifo");
        let beneath = Beneath::open(&root).expect("open");
        for bad in ["link", "etc/passwd", "../outside", "/etc/passwd", "fifo", "missing"] {
            assert!(beneath.read(Path::new(bad), 100).is_err(), "{bad}");
        }
        let own = accounts::own();
        assert!(beneath.write(Path::new("etc/passwd"), b"x", 0o600, &own).is_err());
        // A link in the place of the file is replaced; what it pointed to is untouched.
        beneath.write(Path::new("link"), b"mine", 0o600, &own).expect("write");
        assert_eq!(fs::read_to_string(&outside).expect("read"), "secret");
        assert_eq!(beneath.read(Path::new("link"), 100).expect("read"), b"mine");
        assert!(beneath.read(Path::new("link"), 3).is_err(), "larger than the limit");
    }

    #[test]
    fn a_file_that_is_as_wanted_stays_and_any_difference_replaces_it() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (beneath, own) = (Beneath::open(dir.path()).expect("open"), accounts::own());
        let (path, name) = (dir.path().join("f"), Path::new("f"));
        let number = || fs::metadata(&path).expect("there").ino();
        let write = |bytes: &[u8]| beneath.write(name, bytes, 0o640, &own).expect("write");
        write(b"one");
        let first = number();
        write(b"one");
        assert_eq!(number(), first);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("chmod");
        write(b"one");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o640);
        write(b"two");
        assert_eq!(fs::read(&path).expect("read"), b"two");
        // A second name of the file may be anywhere.
        fs::hard_link(&path, dir.path().join("g")).expect("link");
        let linked = number();
        write(b"two");
        assert_ne!(number(), linked);
        write_whole(&path, b"two", 0o600).expect("write");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    }
}
