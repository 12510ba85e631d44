//! A workspace that begins as a copy of another one of this host.
//!
//! Everything is copied beside its place and put there as a whole; the mark `state/copied.json` is written last, and no
//! process of the new workspace runs before. Whatever is cut short starts over. The copy's data is the source's, so
//! set-up that was done for it is done; its credentials are its own.

use super::{Storage, clear_away, objects, system, take};
use crate::{
    daemon::{
        hub::{Hub, Workspace},
        shell, values,
    },
    resources::postgres,
    supervise::process,
    system::{
        accounts,
        enter::{As, Entry, base_environment},
        files::{self, Beneath},
        sandbox::{Sandbox, WORKSPACE},
        spawn::Stream,
    },
};
use envforge_api::{
    copy::CopyReport,
    host::WorkspaceIntent,
    ids::WorkspaceId,
    states::{ShellState, Trouble},
};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What is known of a copy that is in its place.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Mark {
    cost: CopyReport,
    /// Its checkouts are on its branch.
    on_branch: bool,
}

fn mark_path(dir: &Path) -> PathBuf {
    dir.join("state").join("copied.json")
}

fn read(dir: &Path) -> Option<Mark> {
    serde_json::from_slice(&fs::read(mark_path(dir)).ok()?).ok()
}

fn write(dir: &Path, mark: Mark) -> Result<(), Trouble> {
    let bytes = serde_json::to_vec(&mark).unwrap_or_default();
    files::write_durably(&mark_path(dir), &bytes, 0o600).map_err(system)
}

/// What making a workspace as a copy cost, if it is one that is there.
#[must_use]
pub(in crate::daemon) fn cost(dir: &Path) -> Option<CopyReport> {
    read(dir).map(|mark| mark.cost)
}

/// What EnvForge writes anew for each workspace, and what was made for the source's processes.
fn is_left_out(path: &Path) -> bool {
    path == Path::new(".envforge")
}

/// Copies the source of a workspace that is to begin as a copy, unless that was done.
///
/// # Errors
/// When the source is gone or cannot be copied; nothing is left of the copy then.
pub(in crate::daemon) async fn begin(
    hub: &Hub,
    workspace: &Workspace,
    intent: &WorkspaceIntent,
) -> Result<(), Trouble> {
    let dir = hub.installation.workspace_dir(&workspace.id);
    let Some(source) = intent.fork_of.as_ref().filter(|_| read(&dir).is_none()) else { return Ok(()) };
    let gone =
        || Trouble::new("the workspace that it is to be a copy of is gone", "open it with `envforge up` instead");
    let source = hub.get(source).ok_or_else(gone)?;
    let of = source.intent.borrow().clone();
    workspace.progress.send_replace(format!("copying {}", of.slug));
    if let Some(trouble) = hub.room.holds(&source.id) {
        return Err(trouble);
    }
    ready(&source).await?;
    branch_is_free(hub, &source, &of, intent).await?;
    let half = dir.join("copying");
    let to = accounts::ensure(&hub.installation, workspace.index).map_err(system)?;
    files::ensure_dir(&dir, 0o700).map_err(system)?;
    let made = make(hub, &source, &of, &workspace.id, &dir, &half, &to).await;
    let cleared = clear_away(&half).await;
    let cost = made?;
    cleared?;
    write(&dir, Mark { cost, on_branch: false })?;
    workspace.copied.send_replace(Some(cost));
    hub.touch(&workspace.id);
    Ok(())
}

async fn ready(source: &Workspace) -> Result<(), Trouble> {
    let mut shell = source.shell.subscribe();
    let settled = shell.wait_for(|s| matches!(s.state, ShellState::Ready | ShellState::Failed)).await;
    match settled {
        Ok(stated) if stated.state == ShellState::Ready => Ok(()),
        Ok(stated) => {
            let why = stated.reason.clone().unwrap_or_default();
            Err(Trouble::new(format!("the shell of the workspace that is copied could not be prepared: {why}"), ""))
        }
        Err(_) => Err(super::being_deleted()),
    }
}

async fn make(
    hub: &Hub,
    source: &Arc<Workspace>,
    of: &WorkspaceIntent,
    workspace: &WorkspaceId,
    dir: &Path,
    half: &Path,
    to: &accounts::Accounts,
) -> Result<CopyReport, Trouble> {
    let state = dir.join("state");
    files::ensure_dir(&state, 0o700).map_err(system)?;
    let of_source = values::Values::of(&hub.installation.workspace_dir(&source.id));
    let ring = values::storage_of_copy(dir, workspace, of_source.keyring()).map_err(system)?;
    let storage = Storage::Fork(objects::of_fork(of_source.keyring(), &ring));
    let taken = take(hub, source, half, to, is_left_out, storage).await?;
    let failed = |doing: &str, path: &Path, error: io::Error| {
        system(crate::system::SystemError::new(format!("{doing} {}", path.display()), error).on_disk(path))
    };
    for name in super::cut::STATE {
        let Ok(bytes) = fs::read(half.join("state").join(name)) else { continue };
        let (name, bytes) = match name {
            "resources.json" => (name, values::of_copy(&bytes, ring.clone())),
            // The cluster has it until it has its own.
            postgres::PASSWORD => (postgres::PASSWORD_BEFORE, bytes),
            postgres::PREPARED => continue,
            _ => (name, bytes),
        };
        files::write_durably(&state.join(name), &bytes, 0o600).map_err(system)?;
    }
    // One that EnvForge wrote, and nobody changed, is about the source.
    let readme = half.join("files").join("README.md");
    if fs::symlink_metadata(&readme).is_ok_and(|about| about.is_file())
        && fs::read_to_string(&readme).is_ok_and(|text| text == shell::readme(of))
    {
        fs::remove_file(&readme).map_err(|e| failed("remove", &readme, e))?;
    }
    for part in super::cut::PARTS {
        let (from, at) = (half.join(part), dir.join(part));
        clear_away(&at).await?;
        if from.exists() {
            fs::rename(&from, &at).map_err(|e| failed("move", &from, e))?;
        }
    }
    Ok(taken.cost)
}

/// The branch is made at the commit that each checkout is at. One of that name that is elsewhere would be lost sight of.
const IS_FREE: &str = r#"cd "$1" 2>/dev/null || exit 0
there=$(git rev-parse -q --verify "refs/heads/$2^{commit}") || exit 0
[ "$there" = "$(git rev-parse -q --verify 'HEAD^{commit}')" ] || echo taken
"#;

async fn branch_is_free(
    hub: &Hub,
    source: &Workspace,
    of: &WorkspaceIntent,
    intent: &WorkspaceIntent,
) -> Result<(), Trouble> {
    let sandbox = crate::system::sandbox::ensure(&hub.installation, &source.id, source.index, &of.slug);
    let sandbox = sandbox.await.map_err(system)?;
    for checkout in of.spec.checkouts() {
        let said = git(&sandbox, IS_FREE, &[&checkout.directory, intent.branch.as_str()]).await?;
        if said.trim() == "taken" {
            return Err(Trouble::new(
                format!("{} has a branch {} already, at another commit", checkout.directory, intent.branch),
                "fork it with another name, or with `--branch`",
            ));
        }
    }
    Ok(())
}

/// Only the name of what is checked out changes: files, index and a merge under way stay. What a process of the source
/// had locked at the moment of the copy is locked by nobody here.
const SWITCH: &str = r#"set -e
cd "$1"
git rev-parse --git-dir >/dev/null
for lock in index HEAD config packed-refs; do rm -f -- "$(git rev-parse --git-path "$lock.lock")"; done
if git rev-parse -q --verify 'HEAD^{commit}' >/dev/null; then
  git rev-parse -q --verify "refs/heads/$2" >/dev/null || git branch --no-track -- "$2" HEAD
fi
git symbolic-ref -m "fork" HEAD "refs/heads/$2"
"#;

/// Puts the checkouts of a copy on its branch, once.
///
/// # Errors
/// What git said.
pub(in crate::daemon) async fn enter_branch(sandbox: &Sandbox, intent: &WorkspaceIntent) -> Result<(), Trouble> {
    let Some(mark) = read(&sandbox.dir).filter(|mark| !mark.on_branch) else { return Ok(()) };
    let files = Beneath::open(&sandbox.files()).map_err(system)?;
    for checkout in intent.spec.checkouts() {
        if files.is_dir(&Path::new(&checkout.directory).join(".git")) {
            git(sandbox, SWITCH, &[&checkout.directory, intent.branch.as_str()]).await?;
        }
    }
    write(&sandbox.dir, Mark { on_branch: true, ..mark })
}

/// Runs a script as the workspace's user in its sandbox.
async fn git(sandbox: &Sandbox, script: &str, words: &[&str]) -> Result<String, Trouble> {
    let entry = Entry::new(sandbox, As::User, &sandbox.cgroups.shell, WORKSPACE);
    let begin = ["/bin/sh", "-c", script, "fork"];
    let argv: Vec<String> = begin.iter().chain(words).map(|word| (*word).to_owned()).collect();
    let failed = |why: String| {
        let where_ = words.first().copied().unwrap_or_default();
        Trouble::new(format!("the branch of {where_} cannot be made: {why}"), "does `git status` work there?")
    };
    let environment = base_environment(&sandbox.accounts.user);
    let ran = process::output(&entry, &argv, &environment, Stream::Null);
    let output = match tokio::time::timeout(std::time::Duration::from_secs(60), ran).await {
        Ok(output) => output.map_err(|e| failed(e.to_string()))?,
        Err(_) => return Err(failed("git does not end".into())),
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(failed(said.lines().last().unwrap_or("git failed without a word").to_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
