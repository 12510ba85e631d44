//! What every workspace's cluster is copied from, made once for each host and version of PostgreSQL.

use super::{SUPERUSER, program, trouble};
use crate::system::{
    SystemError,
    accounts::{self, Account},
    disk, files,
    installation::Installation,
};
use envforge_api::{secret::Secret, states::Trouble};
use std::{
    ffi::OsStr,
    fs, io,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Stdio,
};
use tokio::{io::AsyncWriteExt, process::Command};

/// The template of this host's PostgreSQL version below `templates`, and the file with its superuser's password.
pub(super) fn paths(templates: &Path, version: &str) -> (PathBuf, PathBuf) {
    let name = format!("postgresql-{version}");
    (templates.join(&name), templates.join(format!("{name}.password")))
}

/// Major version. Debian's directories tell it; asking a program would cost every wake a process.
pub(super) async fn server_version() -> Result<String, Trouble> {
    let named =
        program("postgres")?.parent().and_then(Path::parent).and_then(Path::file_name).map(|n| n.to_os_string());
    if let Some(version) = named.and_then(|n| n.into_string().ok()).filter(|n| n.bytes().all(|b| b.is_ascii_digit())) {
        return Ok(version);
    }
    let out = Command::new(program("postgres")?).arg("--version").output().await;
    let out = out.map_err(|e| trouble("ask PostgreSQL for its version", e, "reinstall the package postgresql"))?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let version = text.split_ascii_whitespace().nth(2).unwrap_or("unknown");
    Ok(version.split('.').next().unwrap_or(version).to_owned())
}

/// Makes the template once per host and server version. Idempotent; cut short, it starts over.
///
/// # Errors
/// When PostgreSQL is missing or its `initdb` fails.
pub async fn ensure(installation: &Installation, templates: &Path) -> Result<(), Trouble> {
    let (template, password_file) = paths(templates, &server_version().await?);
    if template.is_dir() {
        return Ok(());
    }
    let made = make(installation, templates, &template, &password_file).await;
    if made.is_err() {
        // The half of it takes no space from what runs.
        let _ = fs::remove_dir_all(templates.join("making"));
        let _ = fs::remove_file(templates.join("making.password"));
    }
    made
}

async fn make(
    installation: &Installation,
    templates: &Path,
    template: &Path,
    password_file: &Path,
) -> Result<(), Trouble> {
    let system = |e: SystemError| Trouble::new(e.to_string(), e.hint);
    files::ensure_dir(templates, 0o711).map_err(system)?;
    let account = accounts::ensure_database_account(installation).map_err(system)?;
    let half = templates.join("making");
    let _ = fs::remove_dir_all(&half);
    files::ensure_dir_for(&half, 0o700, &account).map_err(system)?;
    let password = Secret::random(20);
    let given = templates.join("making.password");
    files::write_durably(&given, password.expose().as_bytes(), 0o600).map_err(system)?;
    let _ = chown(&given, Some(account.uid), Some(account.gid));
    let cluster = half.join("cluster");
    let args = [
        "--pgdata".as_ref(),
        cluster.as_os_str(),
        "--pwfile".as_ref(),
        given.as_os_str(),
        "--username".as_ref(),
        SUPERUSER.as_ref(),
        "--auth=scram-sha-256".as_ref(),
        "--encoding=UTF8".as_ref(),
        "--locale=C.UTF-8".as_ref(),
        "--no-instructions".as_ref(),
        "--no-sync".as_ref(),
    ];
    run_as(&account, &half, "initdb", &args, "").await?;
    // In single-user mode no server listens while the password is still everybody's.
    let sql = "CREATE ROLE app LOGIN CREATEDB;\nCREATE DATABASE app OWNER app;\n";
    let single = ["--single".as_ref(), "-j".as_ref(), "-D".as_ref(), cluster.as_os_str(), "postgres".as_ref()];
    for statement in sql.lines() {
        run_as(&account, &half, "postgres", &single, &format!("{statement}\n\n")).await?;
    }
    let _ = fs::remove_file(&given);
    let placed = files::write_durably(password_file, password.expose().as_bytes(), 0o600).map_err(system);
    placed?;
    fs::rename(&cluster, template).map_err(|e| trouble("keep the database template", e, "look at the disk"))?;
    let _ = fs::remove_dir_all(&half);
    Ok(())
}

async fn run_as(account: &Account, dir: &Path, name: &str, args: &[&OsStr], input: &str) -> Result<(), Trouble> {
    let hint = "the message is PostgreSQL's own; is the disk full, or a parent of ENVFORGE_HOME closed to other users?";
    let mut command = Command::new(program(name)?);
    command.args(args).current_dir(dir).env_clear().env("PATH", "/usr/bin:/bin").env("LANG", "C.UTF-8");
    if rustix::process::geteuid().is_root() {
        command.uid(account.uid).gid(account.gid);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|e| trouble(&format!("run {name}"), e, hint))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends early says why on standard error.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let ended = child.wait_with_output().await.map_err(|e| trouble(&format!("run {name}"), e, hint))?;
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    let mut lines = said.lines().rev().filter(|line| !line.trim().is_empty());
    let last = lines.clone().next().unwrap_or("no message");
    let said = lines.find(|line| disk::says_full(line)).unwrap_or(last);
    Err(Trouble::new(format!("{name} failed: {said}"), disk::hint_or(said, dir, hint)))
}

/// Copies a tree of plain files and directories, giving it to `owner`.
pub(super) fn copy_tree(from: &Path, to: &Path, owner: &Account) -> io::Result<()> {
    let root = rustix::process::geteuid().is_root();
    if !to.is_dir() {
        fs::create_dir(to)?;
    }
    fs::set_permissions(to, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target, owner)?;
        } else {
            fs::copy(entry.path(), &target)?;
            if root {
                chown(&target, Some(owner.uid), Some(owner.gid))?;
            }
        }
    }
    if root { chown(to, Some(owner.uid), Some(owner.gid)) } else { Ok(()) }
}
