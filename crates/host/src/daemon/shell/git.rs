//! Repositories: the host's cache, full clones for workspaces, branches, work that would be lost.
//!
//! The cache belongs to an account of its own, which alone can enter it. A clone is made by the workspace's user inside
//! its sandbox, where that one repository of the cache is shown to the clone alone: whatever the user's other
//! processes put into a repository that is just being made (a hook, a setting that names a program) runs where they
//! run. Everything later happens inside, too.

use crate::{
    daemon::hub::{Hub, Workspace},
    supervise::{process, redact::without_users},
    system::{
        accounts::Account,
        disk,
        enter::{As, Entry, base_environment},
        files::{self, Beneath},
        installation::Isolation,
        sandbox::{SOURCE, Sandbox, WORKSPACE},
        spawn::Stream,
    },
};
use envforge_api::{host::WorkspaceIntent, names::Branch, project::Checkout, states::Trouble};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};
use tokio::{process::Command, time::timeout};

/// Longest time for a clone or fetch over the network.
const NETWORK: Duration = Duration::from_secs(600);
/// Longest time for asking a repository for a branch.
const QUESTION: Duration = Duration::from_secs(15);

/// So many packs of a cache are made fewer: a clone copies each of them.
const MANY_PACKS: usize = 12;

/// Who may do what with one repository of the cache.
#[derive(Debug, Default)]
struct Turns {
    /// One fetch at a time.
    fetch: tokio::sync::Mutex<()>,
    /// Clones copy packs by their names, so that none may go meanwhile.
    packs: tokio::sync::RwLock<()>,
}

static TURNS: LazyLock<Mutex<BTreeMap<PathBuf, Arc<Turns>>>> = LazyLock::new(Mutex::default);

fn turns_of(cache: &Path) -> Arc<Turns> {
    let mut turns = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(turns.entry(cache.to_owned()).or_default())
}

fn cache_dir(hub: &Hub) -> PathBuf {
    hub.installation.home.join("git")
}

fn cache_of(hub: &Hub, repo: &str) -> PathBuf {
    let digest = data_encoding::HEXLOWER.encode(&Sha256::digest(repo.as_bytes())[..12]);
    cache_dir(hub).join(format!("{digest}.git"))
}

/// git as the cache's account, with no configuration but the host's.
fn git(hub: &Hub, account: &Account, dir: &Path) -> Command {
    let mut command = Command::new("git");
    command
        .current_dir(dir)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("LANG", "C.UTF-8")
        .env("HOME", "/nonexistent")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", cache_dir(hub).join("config"))
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_SSH_COMMAND", "ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new")
        .env("GIT_ALLOW_PROTOCOL", "file:git:http:https:ssh")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    if rustix::process::geteuid().is_root() {
        command.uid(account.uid).gid(account.gid);
    }
    command
}

async fn run(mut command: Command, limit: Duration) -> Result<Output, String> {
    judge(limit, command.output()).await
}

/// What a git that failed said, in one line.
async fn judge(limit: Duration, output: impl Future<Output = io::Result<Output>>) -> Result<Output, String> {
    match timeout(limit, output).await {
        Ok(Ok(output)) if output.status.success() => Ok(output),
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let says = |l: &&str| l.starts_with("fatal:") || l.starts_with("error:");
            let full = said.lines().find(|l| disk::says_full(l));
            let line = full.or_else(|| said.lines().find(says)).or_else(|| said.lines().last());
            // The address of a repository may hold a token.
            Err(without_users(line.unwrap_or("git failed without a word").trim_start_matches("fatal: ")))
        }
        Ok(Err(error)) => Err(format!("git cannot be run: {error}")),
        Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
    }
}

fn unreachable(hub: &Hub, name: &str, why: &str) -> Trouble {
    let hint = "check its address in the project file (`envforge project show`) and that this host may read it, then try again";
    let hint = disk::hint_or(why, &hub.installation.home, hint);
    Trouble::new(format!("the repository of {name} cannot be read: {why}"), hint)
}

/// What git obeys in the cache. What is fetched stays one file: a clone copies objects that are files of their own one
/// by one, which takes four times as long for a thousand of them.
const CONFIG: &str = r#"[safe]
	directory = *
[protocol "ext"]
	allow = never
[advice]
	detachedHead = false
[gc]
	auto = 0
[fetch]
	unpackLimit = 1
"#;

fn ensure_cache_dir(hub: &Hub) -> Result<(), Trouble> {
    let dir = cache_dir(hub);
    files::ensure_dir_for(&dir, 0o700, &hub.cache_account).map_err(super::trouble)?;
    // Root's file: the cache's account reads repositories of others, and git refuses those without a word for it.
    // What it runs there is `upload-pack`, which obeys no configuration of the repository that names a program.
    let config = dir.join("config");
    if std::fs::read_to_string(&config).is_ok_and(|known| known == CONFIG) {
        return Ok(());
    }
    files::write_whole(&config, CONFIG.as_bytes(), 0o644).map_err(super::trouble)
}

pub(super) fn missing(hub: &Hub, workspace: &Workspace, intent: &WorkspaceIntent) -> Vec<Checkout> {
    let files = hub.installation.workspace_dir(&workspace.id).join("files");
    let there = Beneath::open(&files).ok();
    let is_there = |c: &Checkout| there.as_ref().is_some_and(|files| files.is_dir(Path::new(&c.directory)));
    intent.spec.checkouts().into_iter().filter(|c| !is_there(c)).collect()
}

/// Brings the cache of every repository that has to be cloned up to date.
pub(super) async fn fetch_caches(hub: &Hub, workspace: &Workspace, intent: &WorkspaceIntent) -> Result<(), Trouble> {
    ensure_cache_dir(hub)?;
    let wanted = missing(hub, workspace, intent);
    if let Some(first) = wanted.first() {
        workspace.progress.send_replace(format!("fetching {}", first.directory));
    }
    let fetches = wanted.iter().map(|checkout| fetch_cache(hub, checkout));
    futures_util::future::join_all(fetches).await.into_iter().collect::<Result<(), Trouble>>()?;
    match &intent.from {
        Some(from) if wanted.len() == intent.spec.checkouts().len() => find_start(hub, intent, &wanted, from).await,
        Some(_) | None => Ok(()),
    }
}

/// A branch that is new everywhere must begin somewhere: what it is to begin from has to be in one of the repositories.
async fn find_start(hub: &Hub, intent: &WorkspaceIntent, wanted: &[Checkout], from: &str) -> Result<(), Trouble> {
    for checkout in wanted {
        for known in [format!("refs/heads/{}", intent.branch), format!("refs/heads/{from}"), from.to_owned()] {
            let mut command = git(hub, &hub.cache_account, &cache_dir(hub));
            command.arg("--git-dir").arg(cache_of(hub, &checkout.repo));
            command.args(["rev-parse", "-q", "--verify", "--end-of-options"]).arg(format!("{known}^{{commit}}"));
            if run(command, QUESTION).await.is_ok() {
                return Ok(());
            }
        }
    }
    let hint = "delete the workspace and open it again with `--from` and a branch, tag or commit that a repository has";
    Err(Trouble::new(format!("no repository has `{from}`, which the branch is to begin from"), hint))
}

async fn fetch_cache(hub: &Hub, checkout: &Checkout) -> Result<(), Trouble> {
    let cache = cache_of(hub, &checkout.repo);
    let turns = turns_of(&cache);
    let _alone = turns.fetch.lock().await;
    let account = &hub.cache_account;
    if cache.is_dir() {
        let mut command = git(hub, account, &cache);
        command.args(["fetch", "-q", "--prune", "--", &checkout.repo]);
        command.args(["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]);
        return run(command, NETWORK).await.map(drop).map_err(|why| unreachable(hub, &checkout.directory, &why));
    }
    let half = cache.with_extension("making");
    let _ = tokio::fs::remove_dir_all(&half).await;
    let mut command = git(hub, account, &cache_dir(hub));
    command.args(["clone", "-q", "--bare", "--no-local", "--template=", "--", &checkout.repo]).arg(&half);
    if let Err(why) = run(command, NETWORK).await {
        // The half of it takes no space from what runs.
        let _ = tokio::fs::remove_dir_all(&half).await;
        return Err(unreachable(hub, &checkout.directory, &why));
    }
    tokio::fs::rename(&half, &cache)
        .await
        .map_err(|e| Trouble::new(format!("cannot keep the clone of {}: {e}", checkout.directory), "look at the disk"))
}

/// Packs of a cache, and whether it has objects that are files of their own.
fn clutter(cache: &Path) -> (usize, bool) {
    let names = |dir: &str| {
        let entries = std::fs::read_dir(cache.join(dir)).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name()).collect::<Vec<_>>()
    };
    let is_pack = |name: &std::ffi::OsString| Path::new(name).extension().is_some_and(|e| e == "pack");
    let packs = names("objects/pack").iter().filter(|name| is_pack(name)).count();
    (packs, names("objects").iter().any(|name| name.len() == 2))
}

/// Makes few packs of many. Each is at least twice as large as the next smaller one afterwards, so that what is large is
/// seldom written again.
const REPACK: [&str; 4] = ["repack", "-q", "-d", "--geometric=2"];

/// Packs what the cache holds of the repositories in many files, unless somebody fetches or copies them just now: nobody
/// waits until it may begin. A failure leaves everything as it is.
pub async fn tidy_caches(hub: &Hub, intent: &WorkspaceIntent) {
    for checkout in intent.spec.checkouts() {
        tidy(hub, &cache_of(hub, &checkout.repo)).await;
    }
}

async fn tidy(hub: &Hub, cache: &Path) {
    let is_fine = || matches!(clutter(cache), (packs, false) if packs < MANY_PACKS);
    if is_fine() {
        return;
    }
    let turns = turns_of(cache);
    let (Ok(_alone), Ok(_nobody_copies)) = (turns.fetch.try_lock(), turns.packs.try_write()) else { return };
    if is_fine() {
        return;
    }
    let mut command = git(hub, &hub.cache_account, cache);
    command.args(REPACK);
    if let Err(why) = run(command, NETWORK).await {
        tracing::warn!(%why, "a repository of the cache stays in many files");
    }
}

/// Clones what is missing into the workspace's tree, on its branch.
pub(super) async fn clone_missing(
    hub: &Hub,
    workspace: &Workspace,
    intent: &WorkspaceIntent,
    sandbox: &Sandbox,
) -> Result<(), Trouble> {
    let wanted = missing(hub, workspace, intent);
    if let Some(first) = wanted.first() {
        workspace.progress.send_replace(format!("checking out {}", first.directory));
    }
    let clones = wanted.iter().map(|checkout| clone(hub, intent, sandbox, checkout));
    futures_util::future::join_all(clones).await.into_iter().collect()
}

/// Cloned under another name and renamed: a checkout that is there is whole. The cache belongs to another user, and git
/// asks for a file that says that this is known.
const CLONE: &str = r#"set -e
if [ -e "$1" ] || [ -L "$1" ]; then
  echo "fatal: something else than a directory is at /workspace/$1" >&2
  exit 1
fi
GIT_CONFIG_GLOBAL=$(mktemp) && export GIT_CONFIG_GLOBAL
trap 'rm -f -- "$GIT_CONFIG_GLOBAL"' EXIT
printf '[safe]\n\tdirectory = *\n[advice]\n\tdetachedHead = false\n' >"$GIT_CONFIG_GLOBAL"
half=.making-$1
rm -rf -- "$half"
if [ "$2" = - ]; then
  bundle=$(mktemp)
  trap 'rm -f -- "$GIT_CONFIG_GLOBAL" "$bundle"' EXIT
  cat >"$bundle"
  set -- "$1" "$bundle" "$3" "$4" "$5"
  has() { git bundle list-heads "$2" "refs/heads/$3" | grep -q .; }
else
  has() { git --git-dir="$2" rev-parse -q --verify "refs/heads/$3" >/dev/null; }
fi
if has "$@"; then
  git clone -q --no-hardlinks --template= --branch "$3" -- "$2" "$half"
else
  git clone -q --no-hardlinks --template= -- "$2" "$half"
  start=HEAD
  if [ -n "$5" ]; then
    start=$(git -C "$half" rev-parse -q --verify "refs/remotes/origin/$5^{commit}" || git -C "$half" rev-parse -q --verify "$5^{commit}") || start=HEAD
  fi
  git -C "$half" checkout -q --no-track -b "$3" "$start"
fi
git -C "$half" remote set-url origin "$4"
mv -T -- "$half" "$1"
"#;

async fn clone(hub: &Hub, intent: &WorkspaceIntent, sandbox: &Sandbox, checkout: &Checkout) -> Result<(), Trouble> {
    let cache = cache_of(hub, &checkout.repo);
    let turns = turns_of(&cache);
    let _packs_stay = turns.packs.read().await;
    let mut entry = Entry::new(sandbox, As::User, &sandbox.cgroups.shell, WORKSPACE);
    let (seen_at, stdin) = match hub.installation.isolation {
        Isolation::Full => {
            entry.source = Some(cache);
            (SOURCE.to_owned(), Stream::Null)
        }
        // An ordinary user cannot show a directory of the host inside: it comes as one file, through a pipe.
        Isolation::UserNamespaces => {
            ("-".to_owned(), Stream::Given(bundle(hub, sandbox, checkout, &cache).await?.into()))
        }
    };
    let from = intent.from.clone().unwrap_or_default();
    let words = ["/bin/sh", "-c", CLONE, "clone", &checkout.directory, &seen_at];
    let words = words.into_iter().chain([intent.branch.as_str(), &checkout.repo, &from]);
    let argv: Vec<String> = words.map(ToOwned::to_owned).collect();
    let environment = [
        ("PATH", "/usr/local/bin:/usr/bin:/bin"),
        ("LANG", "C.UTF-8"),
        ("HOME", "/nonexistent"),
        ("GIT_CONFIG_NOSYSTEM", "1"),
        ("GIT_TERMINAL_PROMPT", "0"),
        ("GIT_ALLOW_PROTOCOL", "file"),
    ];
    let environment: BTreeMap<String, String> =
        environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    judge(NETWORK, process::output(&entry, &argv, &environment, stdin)).await.map(drop).map_err(|mut why| {
        // Git does not always say why it cannot write.
        if !disk::says_full(&why) && disk::has_no_space(&sandbox.dir) {
            why.push_str(": No space left on device");
        }
        let reason = format!("{} cannot be checked out on {}: {why}", checkout.directory, intent.branch);
        let hint = if why.starts_with("something else") {
            "move it away, then `envforge up` again"
        } else {
            "does the repository have a commit? Mend it, then `envforge up` again"
        };
        Trouble::new(reason, disk::hint_or(&why, &sandbox.dir, hint))
    })
}

/// Everything of a cache in one file that is open for reading and has no name any more.
async fn bundle(hub: &Hub, sandbox: &Sandbox, checkout: &Checkout, cache: &Path) -> Result<std::fs::File, Trouble> {
    let path = sandbox.dir.join("state").join(format!("{}.bundle", checkout.directory));
    let mut command = git(hub, &hub.cache_account, cache);
    command.args(["bundle", "create", "-q"]).arg(&path).args(["--all", "HEAD"]);
    run(command, NETWORK).await.map_err(|why| unreachable(hub, &checkout.directory, &why))?;
    let file = std::fs::File::open(&path);
    let _ = std::fs::remove_file(&path);
    file.map_err(|e| Trouble::new(format!("cannot read the clone of {}: {e}", checkout.directory), "look at the disk"))
}

/// Which repositories have the branch, by `git ls-remote` as the cache's account.
///
/// # Errors
/// When a repository cannot be read.
pub async fn find_branch(hub: &Hub, repos: &[String], branch: &Branch) -> Result<Vec<bool>, Trouble> {
    ensure_cache_dir(hub)?;
    let asks = repos.iter().map(|repo| async move {
        let mut command = git(hub, &hub.cache_account, &cache_dir(hub));
        command.args(["ls-remote", "-q", "--", repo]).arg(format!("refs/heads/{branch}"));
        let answer = run(command, QUESTION).await;
        let name = repo.rsplit(['/', ':']).next().unwrap_or(repo).trim_end_matches(".git");
        answer.map(|output| !output.stdout.is_empty()).map_err(|why| unreachable(hub, name, &why))
    });
    futures_util::future::join_all(asks).await.into_iter().collect()
}

/// Counts what would be lost, as the workspace's user inside its sandbox.
const INSPECT: &str = r#"cd "$1" 2>/dev/null || exit 0
changed=$(git status --porcelain 2>/dev/null | wc -l)
ahead=$(git rev-list --count --branches --not --remotes 2>/dev/null || echo 0)
stashed=$(git stash list 2>/dev/null | wc -l)
echo "$changed $ahead $stashed"
"#;

/// Uncommitted and unpushed work, a line each (`backend: 2 files not committed`, `web: 1 commit not pushed`).
///
/// # Errors
/// When a checkout cannot be looked at: what is in it is then unknown, not nothing.
pub async fn inspect_work(sandbox: &Sandbox, intent: &WorkspaceIntent) -> Result<Vec<String>, Trouble> {
    let mut at_risk = Vec::new();
    for checkout in intent.spec.checkouts() {
        let entry = Entry::new(sandbox, As::User, &sandbox.cgroups.shell, WORKSPACE);
        let argv = ["/bin/sh", "-c", INSPECT, "inspect", &checkout.directory].map(ToOwned::to_owned);
        let environment = base_environment(&sandbox.accounts.user);
        let inspected = process::output(&entry, &argv, &environment, Stream::Null);
        let name = &checkout.directory;
        let output = judge(Duration::from_secs(60), inspected).await.map_err(|why| {
            Trouble::new(format!("cannot look for unsaved work in {name}: {why}"), "`--force` deletes without looking")
        })?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut counts = text.split_ascii_whitespace().map(|n| n.parse::<u64>().unwrap_or(0));
        let what = [("file", "not committed"), ("commit", "not pushed"), ("stash", "kept only here")];
        for (noun, state) in what {
            match counts.next().unwrap_or(0) {
                0 => {}
                1 => at_risk.push(format!("{name}: 1 {noun} {state}")),
                n => at_risk.push(format!("{name}: {n} {noun}{} {state}", if noun == "stash" { "es" } else { "s" })),
            }
        }
    }
    Ok(at_risk)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn git(dir: &Path, words: &[&str]) {
        let who = ["-c", "user.name=Test", "-c", "user.email=test@example.invalid"];
        let output = std::process::Command::new("git").current_dir(dir).args(who).args(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn a_cache_of_many_packs_and_loose_objects_becomes_one_of_few_packs_and_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (dir, cache) = (dir.path(), dir.path().join(".git"));
        git(dir, &["init", "-q", "--initial-branch=main"]);
        let commit = || git(dir, &["commit", "-q", "--allow-empty", "-m", "one more"]);
        for _ in 0..MANY_PACKS {
            commit();
            git(dir, &["repack", "-q", "-d"]);
        }
        assert_eq!(clutter(&cache), (MANY_PACKS, false));
        commit();
        assert_eq!(clutter(&cache), (MANY_PACKS, true));
        git(&cache, &REPACK);
        let (packs, loose) = clutter(&cache);
        assert!(packs < MANY_PACKS && !loose, "{packs}");
        git(dir, &["fsck", "--strict"]);
        git(dir, &["rev-parse", &format!("refs/heads/main~{MANY_PACKS}")]);
    }
}
