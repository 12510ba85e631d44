//! A workspace becomes what it was. What it is until then is kept as a snapshot of its own, so that nothing is lost.
//!
//! The snapshot is copied beside the workspace's directories first. Then a journal is written, and from there on
//! everything goes forward only, by renames that may be done again: whoever is killed, the next daemon comes to the same
//! end before anything of the workspace is used. Without a journal nothing of it has changed.

use super::{accounts_of, clear_away, cut, objects, snapshot, system};
use crate::{
    daemon::{
        hub::{Hub, Workspace},
        values::Values,
    },
    supervise::{logs::Logs, process, receipt, redact::Redactor},
    system::{
        SystemError,
        copying::{self, Mirror, Owners, Rules},
        files, removal,
        sandbox::{self, Sandbox},
        share,
    },
};
use envforge_api::{
    copy::{CopyReport, SnapshotView},
    generation::Generation,
    ids::{CommandId, SnapshotId},
    states::{ShellState, Stated, Trouble},
    stream::LogLevel,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How long the runtime may take to fall asleep.
const FALLS_ASLEEP: Duration = Duration::from_secs(120);
/// Time between asking the shell's processes to end and killing them.
const SHELL_GRACE: Duration = Duration::from_secs(2);

/// What is to be done to the end.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Journal {
    command: CommandId,
    kept: SnapshotView,
    /// What becomes of its buckets.
    #[serde(default)]
    buckets: Vec<objects::PutBack>,
}

fn journal_path(dir: &Path) -> PathBuf {
    dir.join("state").join("restore.json")
}

/// The command that was done to its end last.
fn done_path(dir: &Path) -> PathBuf {
    dir.join("state").join("restored.json")
}

fn journal(dir: &Path) -> Result<Option<Journal>, SystemError> {
    let bytes = match fs::read(journal_path(dir)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(SystemError::new("read the journal of a restore", error)),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| SystemError::new("read the journal of a restore", io::Error::new(io::ErrorKind::InvalidData, e)))
}

/// Whether one began that is not at its end.
pub(super) fn is_under_way(hub: &Hub, workspace: &Workspace) -> bool {
    journal_path(&hub.installation.workspace_dir(&workspace.id)).exists()
}

/// Whether this command was done to its end, in spite of a crash.
#[must_use]
pub(in crate::daemon) fn was_done(hub: &Hub, workspace: &Workspace, command: &CommandId) -> bool {
    let done = fs::read(done_path(&hub.installation.workspace_dir(&workspace.id))).unwrap_or_default();
    serde_json::from_slice::<CommandId>(&done).is_ok_and(|done| done == *command)
}

/// What is to be restored, and under whose name.
#[derive(Debug)]
pub(in crate::daemon) struct Order<'a> {
    pub(in crate::daemon) command: &'a CommandId,
    pub(in crate::daemon) snapshot: &'a SnapshotId,
    pub(in crate::daemon) kept: &'a SnapshotId,
    /// The intent by which the runtime is asleep.
    pub(in crate::daemon) generation: Generation,
}

/// Makes a workspace what it was, once its runtime is asleep. Every process of its shell is ended.
///
/// # Errors
/// When it cannot be; nothing has changed then, or the next preparation of the shell goes on.
pub(in crate::daemon) async fn restore(
    hub: &Hub,
    workspace: &Workspace,
    order: Order<'_>,
) -> Result<CopyReport, Trouble> {
    let begun = Instant::now();
    if let Some(trouble) = hub.room.holds(&workspace.id) {
        return Err(trouble);
    }
    let _one_at_a_time = workspace.copies.lock().await;
    let dir = hub.installation.workspace_dir(&workspace.id);
    let from = snapshot::dir(hub, &workspace.id, order.snapshot);
    if snapshot::manifest(&from).is_none() {
        let hint = "`envforge snapshot ls` lists those that there are";
        return Err(Trouble::new(format!("there is no snapshot {}", order.snapshot), hint));
    }
    for left in ["restoring", "replaced"] {
        objects::discard(hub, &dir.join(left)).await?;
    }
    let prepared = prepare(hub, workspace, &from, dir.join("restoring")).await;
    if let Err(trouble) = prepared {
        let _ = clear_away(&dir.join("restoring")).await;
        return Err(trouble);
    }
    let outcome = exchange(hub, workspace, &order, &dir).await;
    if outcome.is_err() && !is_under_way(hub, workspace) {
        for left in ["restoring", "replaced"] {
            let _ = objects::discard(hub, &dir.join(left)).await;
        }
    }
    // Whatever became of it, the shell is prepared again; where a journal is left, that goes on with it.
    workspace.again.notify_one();
    outcome?;
    let mut shell = workspace.shell.subscribe();
    // Its failure is shown as the shell's.
    let _ = shell.wait_for(|s| matches!(s.state, ShellState::Ready | ShellState::Failed)).await;
    let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(CopyReport { took_ms, stall_ms: 0, size_bytes: copying::size_of(&from) })
}

/// Copies the snapshot beside what it replaces.
async fn prepare(hub: &Hub, workspace: &Workspace, from: &Path, to: PathBuf) -> Result<(), Trouble> {
    let (from, own, spare) = (from.to_owned(), accounts_of(hub, workspace), hub.room.margin());
    let copied = tokio::task::spawn_blocking(move || -> Result<(), SystemError> {
        files::ensure_dir(&to, 0o700)?;
        let way = copying::way_between(&from, &to);
        if way == copying::Way::Copy {
            copying::has_room(&to, copying::size_of(&from) + spare)?;
        }
        for theirs in cut::PARTS {
            share::ensure_tree(&to.join(theirs), own.user.uid)?;
        }
        for part in cut::PARTS.iter().chain(&["state"]) {
            let rules = Rules { is_left_out: |_| false, only_grows: |_| false };
            let owners = Owners::between(&own, &own);
            Mirror::new(&from.join(part), &to.join(part), owners, rules, way).pass(None, &|| false)?;
        }
        // One that had none yet has none again.
        files::ensure_dir_for(&to.join(cut::PARTS[0]), 0o700, &own.user)?;
        files::ensure_dir_for(&to.join(cut::PARTS[1]), 0o700, &own.resource)?;
        copying::sync(&to).map(drop)
    });
    copied.await.map_err(|e| Trouble::new(e.to_string(), "try again"))?.map_err(system)
}

async fn exchange(hub: &Hub, workspace: &Workspace, order: &Order<'_>, dir: &Path) -> Result<(), Trouble> {
    let _alone = asleep(hub, workspace, order.generation).await?;
    let (slug, generation) = {
        let intent = workspace.intent.borrow();
        (intent.slug.clone(), intent.generation)
    };
    workspace.shell.send_replace(Stated::plain(ShellState::Preparing, Timestamp::now()));
    workspace.progress.send_replace("restoring a snapshot".into());
    hub.touch(&workspace.id);
    let sandbox = Sandbox::of(&hub.installation, &workspace.id, workspace.index, &slug);
    end_shell(&sandbox, order.snapshot).await?;
    let replaced = dir.join("replaced");
    files::ensure_dir(&replaced, 0o700).map_err(system)?;
    let values = Values::of(dir);
    let pairs = objects::of_snapshot(&workspace.id, values.keyring(), order.kept);
    objects::keep(hub, &replaced, &pairs).await?;
    let from = snapshot::dir(hub, &workspace.id, order.snapshot);
    let keep = || -> Result<(), SystemError> {
        files::ensure_dir(&replaced.join("state"), 0o700)?;
        for name in cut::STATE {
            if let Ok(bytes) = fs::read(dir.join("state").join(name)) {
                files::write_durably(&replaced.join("state").join(name), &bytes, 0o600)?;
            }
        }
        let size_bytes = cut::PARTS.iter().map(|part| copying::size_of(&dir.join(part))).sum();
        let kept = SnapshotView {
            id: order.kept.clone(),
            created_at: Timestamp::now(),
            reason: "before restore".into(),
            generation,
            cost: CopyReport { took_ms: 0, stall_ms: 0, size_bytes },
        };
        let buckets = objects::to_put_back(&from, values.keyring());
        let journal = Journal { command: order.command.clone(), kept, buckets };
        let bytes = serde_json::to_vec(&journal).unwrap_or_default();
        files::write_durably(&journal_path(dir), &bytes, 0o600)
    };
    keep().map_err(system)?;
    complete(hub, workspace).await
}

/// Waits until nothing of the runtime is left, and sees to it that nothing starts.
async fn asleep(
    hub: &Hub,
    workspace: &Workspace,
    generation: Generation,
) -> Result<tokio::sync::OwnedMutexGuard<()>, Trouble> {
    let (mut facts, mut intents) = (workspace.runtime.subscribe(), workspace.intent.subscribe());
    let wait = async {
        loop {
            {
                let (facts, intent) = (facts.borrow_and_update(), intents.borrow_and_update());
                let told = intent.generation >= generation;
                if told && facts.known && facts.supervisor.is_none() && facts.starting.is_none() {
                    break;
                }
            }
            tokio::select! {
                changed = facts.changed() => changed,
                changed = intents.changed() => changed,
            }
            .map_err(|_| Trouble::new("the workspace was removed", ""))?;
        }
        let slug = workspace.intent.borrow().slug.clone();
        let sandbox = Sandbox::of(&hub.installation, &workspace.id, workspace.index, &slug);
        // What a lost supervisor left is ended by the one that replaces it.
        sandbox.cgroups.runtime.wait_empty().await.map_err(system)?;
        let alone = workspace.rest.claim().await;
        let awake = workspace.runtime.borrow().supervisor.is_some() || !sandbox.cgroups.runtime.is_empty();
        if awake {
            let hint = "restore it again: it is put to sleep first";
            return Err(Trouble::new("the runtime was woken meanwhile", hint));
        }
        Ok(alone)
    };
    let slow = || Trouble::new("the runtime does not fall asleep", "`envforge why` says what keeps it");
    tokio::time::timeout(FALLS_ASLEEP, wait).await.unwrap_or_else(|_| Err(slow()))
}

/// Ends every process of the shell and lets its namespaces go, which lead to the directories that are exchanged.
async fn end_shell(sandbox: &Sandbox, snapshot: &SnapshotId) -> Result<(), Trouble> {
    let shell = &sandbox.cgroups.shell;
    let ended = shell.pids().len();
    if ended > 0 {
        let line = format!("restoring {snapshot}: {ended} processes of the shell are ended");
        Logs::new(sandbox.dir.join("logs"), Redactor::default()).system(LogLevel::Warn, &line);
    }
    process::stop(shell, SHELL_GRACE).await;
    // Nothing can be started in a group that was killed: it is made anew with the namespaces.
    shell.remove().map_err(system)?;
    sandbox::rest(sandbox).await.map_err(system)?;
    if sandbox::release(sandbox) {
        return Ok(());
    }
    Err(Trouble::new("something was started in the workspace meanwhile", "restore it again"))
}

/// Brings a restore that has a journal to its end; without one there is nothing to do. Nothing of the workspace runs.
///
/// # Errors
/// When the disk refuses; calling again goes on.
pub(in crate::daemon) async fn complete(hub: &Hub, workspace: &Workspace) -> Result<(), Trouble> {
    let dir = hub.installation.workspace_dir(&workspace.id);
    let Some(journal) = journal(&dir).map_err(system)? else { return Ok(()) };
    let of_workspace = snapshot::of_workspace(hub, &workspace.id);
    let kept = snapshot::dir(hub, &workspace.id, &journal.kept.id);
    objects::put_back(hub, &journal.buckets).await?;
    let forward = || -> Result<(), SystemError> {
        receipt::void(&dir)?;
        roll_forward(&dir)?;
        files::ensure_dir(&hub.installation.home.join("snapshots"), 0o700)?;
        files::ensure_dir(&of_workspace, 0o700)?;
        let replaced = dir.join("replaced");
        if replaced.exists() {
            snapshot::declare(&replaced, workspace, journal.kept.clone())?;
            put_away(&replaced, &kept, &Owners::between(&accounts_of(hub, workspace), &accounts_of(hub, workspace)))?;
        }
        removal::remove(&dir.join("restoring"))?;
        let command = serde_json::to_vec(&journal.command).unwrap_or_default();
        files::write_durably(&done_path(&dir), &command, 0o600)?;
        fs::remove_file(journal_path(&dir)).map_err(|e| SystemError::new("end the journal of a restore", e))
    };
    tokio::task::block_in_place(forward).map_err(system)?;
    snapshot::show(hub, workspace);
    Ok(())
}

/// Exchanges the directories. Each step is done once, however often this is called.
fn roll_forward(dir: &Path) -> Result<(), SystemError> {
    let (restoring, replaced) = (dir.join("restoring"), dir.join("replaced"));
    let rename = |from: &Path, to: &Path| {
        fs::rename(from, to).map_err(|e| SystemError::new(format!("move {}", from.display()), e).on_disk(to))
    };
    for part in cut::PARTS {
        let (fresh, now, old) = (restoring.join(part), dir.join(part), replaced.join(part));
        if fresh.exists() {
            if !old.exists() && now.exists() {
                rename(&now, &old)?;
            }
            rename(&fresh, &now)?;
        }
    }
    if !restoring.exists() {
        return Ok(());
    }
    for name in cut::STATE {
        let at = dir.join("state").join(name);
        match fs::read(restoring.join("state").join(name)) {
            Ok(bytes) => files::write_durably(&at, &bytes, 0o600)?,
            Err(_) => removal::remove(&at)?,
        }
    }
    Ok(())
}

/// Moves what was replaced to the snapshots, which may lie on another file system.
fn put_away(replaced: &Path, kept: &Path, owners: &Owners) -> Result<(), SystemError> {
    match fs::rename(replaced, kept) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() != io::ErrorKind::CrossesDevices => {
            return Err(SystemError::new("keep the state before", error).on_disk(kept));
        }
        Err(_) => {}
    }
    removal::remove(kept)?;
    files::ensure_dir(kept, 0o700)?;
    // The manifest last: until then it is none.
    for part in cut::PARTS.iter().chain(&["state"]) {
        let rules = Rules { is_left_out: |_| false, only_grows: |_| false };
        let way = copying::Way::Copy;
        Mirror::new(&replaced.join(part), &kept.join(part), owners.clone(), rules, way).pass(None, &|| false)?;
    }
    if let Ok(buckets) = fs::read(replaced.join(objects::KEPT)) {
        files::write_durably(&kept.join(objects::KEPT), &buckets, 0o600)?;
    }
    copying::sync(kept)?;
    let manifest =
        fs::read(replaced.join("manifest.json")).map_err(|e| SystemError::new("keep the state before", e))?;
    files::write_durably(&kept.join("manifest.json"), &manifest, 0o600)?;
    removal::remove(replaced)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(dir: &Path, at: &str, text: &str) {
        let at = dir.join(at);
        fs::create_dir_all(at.parent().expect("a parent")).expect("mkdir");
        fs::write(at, text).expect("write");
    }

    fn got(dir: &Path, at: &str) -> Option<String> {
        fs::read_to_string(dir.join(at)).ok()
    }

    fn before() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("temp dir");
        for (at, text) in [
            ("files/a", "new"),
            ("data/redis/b", "new"),
            ("state/resources.json", "new"),
            ("state/setup.json", "new"),
            ("replaced/state/resources.json", "new"),
            ("restoring/files/a", "old"),
            ("restoring/data/redis/b", "old"),
            ("restoring/state/resources.json", "old"),
        ] {
            put(dir.path(), at, text);
        }
        dir
    }

    #[test]
    fn a_restore_that_is_cut_short_at_any_line_comes_to_the_same_end() {
        // What a crash after each of the renames leaves.
        type Step = fn(&Path);
        let steps: [Step; 4] = [
            |dir| fs::rename(dir.join("files"), dir.join("replaced/files")).expect("rename"),
            |dir| fs::rename(dir.join("restoring/files"), dir.join("files")).expect("rename"),
            |dir| fs::rename(dir.join("data"), dir.join("replaced/data")).expect("rename"),
            |dir| fs::rename(dir.join("restoring/data"), dir.join("data")).expect("rename"),
        ];
        for done in 0..=steps.len() {
            let dir = before();
            let dir = dir.path();
            steps[..done].iter().for_each(|step| step(dir));
            for _ in 0..2 {
                roll_forward(dir).expect("goes forward");
                for at in ["files/a", "data/redis/b", "state/resources.json"] {
                    assert_eq!(got(dir, at).as_deref(), Some("old"), "{at} after {done}");
                }
                assert_eq!(got(dir, "state/setup.json"), None);
                for at in ["replaced/files/a", "replaced/data/redis/b"] {
                    assert_eq!(got(dir, at).as_deref(), Some("new"), "{at} after {done}");
                }
            }
        }
    }

    #[test]
    fn what_was_replaced_is_a_snapshot_when_it_is_whole() {
        let dir = before();
        let dir = dir.path();
        put(dir, "replaced/files/a", "new");
        put(dir, "replaced/manifest.json", "{}");
        let own = crate::system::accounts::own();
        let own = crate::system::accounts::Accounts { user: own.clone(), resource: own };
        put_away(&dir.join("replaced"), &dir.join("kept"), &Owners::between(&own, &own)).expect("kept");
        assert!(!dir.join("replaced").exists() && dir.join("kept/manifest.json").exists());
        assert_eq!(got(dir, "kept/files/a").as_deref(), Some("new"));
    }
}
