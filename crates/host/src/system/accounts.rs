//! Linux users of a workspace: one for its shell and services, one for its resource servers. Never reused.
//!
//! Entries are added to `/etc/passwd` and `/etc/group` under the lock that `useradd` takes (`/etc/.pwd.lock`), because
//! two runs of `useradd` cost more than the rest of a workspace's preparation. No account has a password or a home
//! that exists outside its sandbox.

use super::{
    Result, SystemError,
    installation::{Installation, Isolation},
    sandbox::HOME,
};
use nix::fcntl::{FcntlArg, fcntl};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    sync::{Mutex, PoisonError},
};

/// A Linux account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// The two accounts of a workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accounts {
    /// Shell and services. Home is `/workspace/.home`.
    pub user: Account,
    /// Resource servers.
    pub resource: Account,
}

/// Uids of an installation that belong to no workspace: PostgreSQL of the control plane, git cache.
pub const RESERVED: u32 = 2;

/// The accounts of workspace `index`, whether they exist or not. Without root both are the caller's own.
#[must_use]
pub fn of(installation: &Installation, index: u32) -> Accounts {
    match installation.isolation {
        Isolation::Full => {
            let uid = installation.first_uid + RESERVED + 2 * index;
            let account =
                |uid, kind: &str| Account { name: format!("ef-{}-{kind}{index}", installation.id), uid, gid: uid };
            Accounts { user: account(uid, "w"), resource: account(uid + 1, "r") }
        }
        Isolation::UserNamespaces => Accounts { user: own(), resource: own() },
    }
}

/// The account of the calling process.
#[must_use]
pub fn own() -> Account {
    let uid = rustix::process::getuid().as_raw();
    let name = match nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        Ok(None) | Err(_) => uid.to_string(),
    };
    Account { name, uid, gid: rustix::process::getgid().as_raw() }
}

/// Makes both accounts of workspace `index` if they are missing (with entries in passwd and group).
/// Without root both are the caller's own account.
///
/// # Errors
/// When the files of the system cannot be changed.
pub fn ensure(installation: &Installation, index: u32) -> Result<Accounts> {
    let accounts = of(installation, index);
    if installation.isolation == Isolation::Full {
        add(&[(&accounts.user, HOME, "/bin/bash"), (&accounts.resource, "/nonexistent", "/usr/sbin/nologin")])?;
    }
    Ok(accounts)
}

/// Removes both accounts; their ids are not used again.
///
/// # Errors
/// As [`ensure`].
pub fn remove(installation: &Installation, index: u32) -> Result<()> {
    if installation.isolation == Isolation::Full {
        let accounts = of(installation, index);
        let names = [accounts.user.name, accounts.resource.name];
        edit(|name| !names.iter().any(|n| n == name), &[])?;
    }
    Ok(())
}

/// Removes every account of the installation.
///
/// # Errors
/// As [`ensure`].
pub fn remove_all(installation: &Installation) -> Result<()> {
    if installation.isolation == Isolation::Full {
        let prefix = format!("ef-{}-", installation.id);
        edit(|name| !name.starts_with(&prefix), &[])?;
    }
    Ok(())
}

/// The account that owns the git cache of the installation.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_cache_account(installation: &Installation) -> Result<Account> {
    reserved(installation, "git", 1)
}

/// The account that the installation's storage server runs as. The last number of the range: those before it are
/// workspaces', and none of them is ever given away again.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_storage_account(installation: &Installation) -> Result<Account> {
    reserved(installation, "s3", super::installation::UIDS - 1)
}

/// The account that provisioners run as: it owns nothing. The number before the storage server's.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_provisioner_account(installation: &Installation) -> Result<Account> {
    reserved(installation, "pv", super::installation::UIDS - 2)
}

/// The account that the control plane's own PostgreSQL runs as.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_database_account(installation: &Installation) -> Result<Account> {
    reserved(installation, "pg", 0)
}

fn reserved(installation: &Installation, kind: &str, offset: u32) -> Result<Account> {
    if installation.isolation == Isolation::UserNamespaces {
        return Ok(own());
    }
    let uid = installation.first_uid + offset;
    let account = Account { name: format!("ef-{}-{kind}", installation.id), uid, gid: uid };
    add(&[(&account, "/nonexistent", "/usr/sbin/nologin")])?;
    Ok(account)
}

fn add(wanted: &[(&Account, &str, &str)]) -> Result<()> {
    let passwd = read("/etc/passwd")?;
    let known = |name: &str| passwd.lines().any(|line| line.split(':').next() == Some(name));
    let missing: Vec<_> = wanted.iter().filter(|(account, _, _)| !known(&account.name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let lines: Vec<_> = missing
        .iter()
        .map(|(account, home, shell)| {
            let Account { name, uid, gid } = account;
            (format!("{name}:*:{uid}:{gid}:EnvForge:{home}:{shell}\n"), format!("{name}:*:{gid}:\n"))
        })
        .collect();
    edit(|_| true, &lines)
}

/// Rewrites passwd and group: keeps entries whose name passes, adds `(passwd, group)` lines that are not there yet.
fn edit(keep: impl Fn(&str) -> bool, add: &[(String, String)]) -> Result<()> {
    // The lock below is the process's: it holds nothing off that this process itself does at the same time.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let lock = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open("/etc/.pwd.lock")
        .map_err(|e| SystemError::new("open /etc/.pwd.lock", e))?;
    let whole = nix::libc::flock {
        l_type: nix::libc::F_WRLCK as nix::libc::c_short,
        l_whence: nix::libc::SEEK_SET as nix::libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(&lock, FcntlArg::F_SETLKW(&whole)).map_err(|e| SystemError::new("lock /etc/passwd", e.into()))?;
    // Groups first: an account never names a group that does not exist.
    rewrite(Path::new("/etc/group"), &keep, add.iter().map(|(_, group)| group))?;
    rewrite(Path::new("/etc/passwd"), &keep, add.iter().map(|(passwd, _)| passwd))
}

fn rewrite<'a>(path: &Path, keep: impl Fn(&str) -> bool, add: impl Iterator<Item = &'a String>) -> Result<()> {
    let doing = || format!("change {}", path.display());
    let old = read(path)?;
    let mut new = String::with_capacity(old.len() + 256);
    for line in old.lines().filter(|line| keep(line.split(':').next().unwrap_or_default())) {
        new.push_str(line);
        new.push('\n');
    }
    for line in add {
        let name = line.split(':').next().unwrap_or_default();
        if !new.lines().any(|known| known.split(':').next() == Some(name)) {
            new.push_str(line);
        }
    }
    if new == old {
        return Ok(());
    }
    let beside = path.with_extension("envforge");
    let mode = fs::metadata(path).map_err(|e| SystemError::new(doing(), e))?.permissions().mode();
    let write = || -> std::io::Result<()> {
        let mut file = fs::File::create(&beside)?;
        file.set_permissions(fs::Permissions::from_mode(mode & 0o777))?;
        file.write_all(new.as_bytes())?;
        file.sync_all()?;
        match fs::rename(&beside, path) {
            // In a container the file may be a mount of its own: it can only be written in place.
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                fs::write(path, &new)?;
                fs::remove_file(&beside)
            }
            other => other,
        }
    };
    write().map_err(|e| SystemError::new(doing(), e).with_hint("is the root file system full or read-only?"))
}

fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    fs::read_to_string(path).map_err(|e| SystemError::new(format!("read {}", path.display()), e))
}
