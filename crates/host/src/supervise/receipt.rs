//! Sleep receipts: what each data service held when its runtime fell asleep, and whether it holds that when it wakes.
//!
//! Before a server is stopped it is asked what it holds, for half a second at most; once it is gone its files are looked at,
//! and both are kept (`state/slept.json`). At the next wake its files are looked at again before it is started: that nobody
//! touched them is told by names, sizes, times and the server's own control file, and costs a wake a few milliseconds.
//! Only where they were touched, or where nothing of it lies here (storage), is it asked again before a service may write.
//!
//! A manifest is about the next wake and no other: it names its instance, and the next instance names the one before it.
//! What was begun with it is kept too (`state/woke.json`), so that a supervisor which takes over compares nothing with
//! data that was used since.

use super::{
    protocol::{Ended, RuntimeSpec},
    runtime::Shared,
    server::driver_of,
};
use crate::{
    resources::{
        Context, Driver,
        rest::{Compared, Look, Rest},
    },
    system::{
        SystemError,
        files::{self, Beside},
    },
};
use envforge_api::{
    ids::RuntimeInstanceId,
    receipt::{Check, Holds, Manifest, SleepReceipt, Verdict},
    states::Trouble,
    stream::LogLevel,
    time::{BootId, Timestamp},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    cell::Cell,
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::{sync::oneshot, task::JoinHandle};

/// How long all servers together may take to tell what they hold.
const COUNTING: Duration = Duration::from_millis(500);
/// How long a look at the files of one may take.
const LOOKING: Duration = Duration::from_millis(250);

/// What is kept of one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    manifest: Manifest,
    rest: Option<Rest>,
}

pub(super) type Parts = BTreeMap<String, Part>;

/// `state/slept.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Slept {
    /// The instance that fell asleep.
    instance: RuntimeInstanceId,
    servers: Parts,
}

/// `state/woke.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Woke {
    /// The instance that woke.
    instance: RuntimeInstanceId,
    before: Parts,
    /// The instance before it did not fall asleep.
    unclean: bool,
    /// By server: there from before its start on.
    checks: BTreeMap<String, Check>,
}

fn slept_path(dir: &Path) -> PathBuf {
    dir.join("state").join("slept.json")
}

fn woke_path(dir: &Path) -> PathBuf {
    dir.join("state").join("woke.json")
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn ended(dir: &Path) -> Option<RuntimeInstanceId> {
    read::<Ended>(&dir.join("state").join("ended.json")).map(|ended| ended.instance)
}

/// The part of a runtime's description that says which one it is.
#[derive(Debug, Deserialize)]
struct Named {
    instance: RuntimeInstanceId,
    boot: BootId,
    #[serde(default)]
    previous: Option<RuntimeInstanceId>,
}

fn named(dir: &Path) -> Option<Named> {
    read(&dir.join("state").join("runtime.json"))
}

/// The instance whose end the next one continues: that of the description that is there, or, where that one never began,
/// the one before it.
#[must_use]
pub fn predecessor(dir: &Path, boot: &BootId) -> Option<RuntimeInstanceId> {
    let Named { instance, boot: then, previous } = named(dir)?;
    // What a machine forgets that loses its power is only of the same boot.
    let began = then != *boot
        || read::<Woke>(&woke_path(dir)).is_some_and(|woke| woke.instance == instance)
        || ended(dir).as_ref() == Some(&instance);
    if began { Some(instance) } else { previous }
}

/// The data is about to be exchanged while everything sleeps: there is nothing to compare the next wake with.
///
/// # Errors
/// When the disk refuses.
pub fn void(dir: &Path) -> Result<(), SystemError> {
    let Some(Named { instance, .. }) = named(dir) else { return Ok(()) };
    let bytes = serde_json::to_vec(&Slept { instance, servers: Parts::new() }).unwrap_or_default();
    files::write_durably(&slept_path(dir), &bytes, 0o600)
}

/// What a supervisor knows of the sleep before its runtime, and of the one that it comes to.
#[derive(Debug)]
pub(super) struct Receipts {
    dir: PathBuf,
    woke: Woke,
    slept: Option<Parts>,
    /// What was taken down at the end is not written yet.
    unwritten: bool,
}

/// A server whose files do not say that it is as it was: it is asked when it answers.
#[derive(Debug)]
pub(super) struct Suspect {
    findings: Vec<String>,
}

impl Receipts {
    pub(super) fn new(spec: &RuntimeSpec) -> Self {
        let (dir, instance) = (spec.sandbox.dir.clone(), spec.instance.clone());
        // Only one that is asleep but for its last word finds its own.
        let slept = read::<Slept>(&slept_path(&dir)).filter(|slept| slept.instance == instance);
        let woke = Woke { instance, before: Parts::new(), unclean: false, checks: BTreeMap::new() };
        Self { dir, woke, slept: slept.map(|slept| slept.servers), unwritten: false }
    }

    /// Before the first server is started.
    pub(super) fn begin(&mut self, spec: &RuntimeSpec) {
        self.slept = None;
        let path = slept_path(&self.dir);
        let slept = read::<Slept>(&path);
        if let Some(woke) = read::<Woke>(&woke_path(&self.dir)).filter(|woke| woke.instance == spec.instance) {
            self.woke = woke;
            // Written by a supervisor that was killed then: what runs on from here is not that any more.
            if slept.is_some_and(|slept| slept.instance == spec.instance) {
                forget(&path);
            }
            return;
        }
        let slept = slept.filter(|slept| Some(&slept.instance) == spec.previous.as_ref());
        self.woke.unclean = slept.is_none() && spec.previous.is_some() && ended(&self.dir) != spec.previous;
        self.woke.before = slept.map(|slept| slept.servers).unwrap_or_default();
        if self.write().is_err() {
            // A supervisor that takes over would not know that the data was used since.
            forget(&path);
        }
    }

    fn write(&self) -> Result<(), SystemError> {
        let bytes = serde_json::to_vec(&self.woke).unwrap_or_default();
        files::write_whole(&woke_path(&self.dir), &bytes, 0o600)
    }

    fn note(&mut self, server: &str, verdict: Verdict, findings: Vec<String>) {
        self.woke.checks.insert(server.to_owned(), Check { at: Timestamp::now(), verdict, findings });
        // What cannot be written is known to this one all the same.
        let _ = self.write();
    }

    /// What is shown of a server.
    pub(super) fn of(&self, server: &str) -> Option<SleepReceipt> {
        let (manifest, check) = match &self.slept {
            Some(slept) => (slept.get(server), None),
            None => (self.woke.before.get(server), self.woke.checks.get(server)),
        };
        let receipt = SleepReceipt { manifest: manifest.map(|part| part.manifest.clone()), check: check.cloned() };
        (receipt != SleepReceipt::default()).then_some(receipt)
    }

    /// What is wrong with the data of a server that serves it.
    pub(super) fn trouble(&self, server: &str, workspace: &str) -> Option<Trouble> {
        let check = self.woke.checks.get(server).filter(|_| self.slept.is_none())?;
        (check.verdict == Verdict::Differs).then(|| {
            let hint = format!(
                "it serves what is there now; `envforge snapshot ls {workspace}` lists states that were kept, and \
                 `envforge logs {workspace} system` says when it was told"
            );
            Trouble::new(difference(check), hint)
        })
    }

    /// The data of a server was wiped on purpose: what it held before means nothing.
    pub(super) fn void(&mut self, server: &str) {
        self.woke.before.remove(server);
        if let Some(check) = self.woke.checks.get_mut(server) {
            *check = Check { at: check.at, verdict: Verdict::Unknown, findings: vec!["it was reset since".into()] };
        }
        let _ = self.write();
    }
}

fn difference(check: &Check) -> String {
    format!("it is not what it was when it was put to sleep: {}", check.findings.join("; "))
}

/// Gone for good, before anything that makes it wrong.
fn forget(path: &Path) {
    let _ = fs::remove_file(path);
    let _ = path.parent().map(|parent| fs::File::open(parent).and_then(|parent| parent.sync_all()));
}

/// Looks at the files of a server that is about to be started.
pub(super) async fn look(shared: &Shared, driver: &dyn Driver, context: &Context) -> Option<Suspect> {
    let server = driver.name();
    let (before, unclean) = {
        let receipts = shared.receipts.borrow();
        if receipts.woke.checks.contains_key(server) {
            // It ran in this instance before.
            return None;
        }
        (receipts.woke.before.get(server).cloned(), receipts.woke.unclean)
    };
    if before.is_none() && !unclean {
        return None;
    }
    let ahead = shared.looks.borrow_mut().remove(server);
    let found = ahead.unwrap_or_else(|| at_rest(server, context.clone())).await.unwrap_or(Look::Unknown);
    let note = |verdict, findings| shared.receipts.borrow_mut().note(server, verdict, findings);
    let Some(before) = before else {
        if let Look::Found(_) = found {
            note(
                Verdict::Unclean,
                vec!["it was not put to sleep; its own log brought back what it had acknowledged".into()],
            );
            shared.logs.system(LogLevel::Info, &format!("{server}: was not put to sleep, it recovers by its own log"));
        }
        return None;
    };
    let compared = match (found, &before.rest) {
        (Look::Found(now), Some(then)) => now.compare(then),
        (Look::Gone, Some(_)) => Compared::Differs(vec!["its data is gone".into()]),
        (Look::Gone | Look::Unknown | Look::Found(_), _) => Compared::Touched,
    };
    let findings = match compared {
        Compared::Same => {
            note(Verdict::Verified, vec![]);
            return None;
        }
        Compared::Touched => vec![],
        Compared::Differs(findings) => findings,
    };
    // Should this process be killed before the server was asked, nothing of it is compared any more.
    match findings.is_empty() {
        true => note(Verdict::Unknown, vec!["the comparison was cut short".into()]),
        false => note(Verdict::Differs, findings.clone()),
    }
    Some(Suspect { findings })
}

/// Asks a server that answers, before any service may write.
pub(super) async fn ask(shared: &Shared, driver: &dyn Driver, context: &Context, suspect: Suspect) {
    let server = driver.name();
    let before = shared.receipts.borrow().woke.before.get(server).map(|part| part.manifest.holds.clone());
    let Some(before) = before else { return };
    let now = count(driver, context, std::future::ready(())).await.map(|manifest| manifest.holds);
    let check = judge(suspect.findings, &before, now.as_ref());
    let said = match check.verdict {
        Verdict::Differs => Some((LogLevel::Error, difference(&check))),
        Verdict::Unknown => Some((LogLevel::Warn, check.findings.join("; "))),
        Verdict::Verified | Verdict::Unclean => None,
    };
    if let Some((level, text)) = said {
        shared.logs.system(level, &format!("{server}: {text}"));
    }
    shared.receipts.borrow_mut().note(server, check.verdict, check.findings);
}

/// Decides what came of asking.
fn judge(mut findings: Vec<String>, before: &Holds, now: Option<&Holds>) -> Check {
    findings.extend(now.map(|now| now.differences(before)).unwrap_or_default());
    let check = |verdict, findings| Check { at: Timestamp::now(), verdict, findings };
    if !findings.is_empty() {
        return check(Verdict::Differs, findings);
    }
    match (before, now) {
        (Holds::Keys { keys: had, .. }, Some(Holds::Keys { keys: has, .. })) if had != has => {
            let shown = |keys: &Option<u64>| keys.map_or_else(|| "?".to_owned(), |keys| keys.to_string());
            let text = format!(
                "its files were touched while it slept; {} keys, had {}: those with a time to live end by themselves",
                shown(has),
                shown(had),
            );
            check(Verdict::Unknown, vec![text])
        }
        (_, Some(now)) if now.is_complete() && before.is_complete() => check(Verdict::Verified, vec![]),
        (_, _) => {
            let text = format!("not everything in it was counted within {} ms", COUNTING.as_millis());
            check(Verdict::Unknown, vec![text])
        }
    }
}

/// What a server holds once nothing uses it, within the bound.
pub(super) async fn count(driver: &dyn Driver, context: &Context, quiet: impl Future<Output = ()>) -> Option<Manifest> {
    let begun = Cell::new(None);
    let (say, said) = oneshot::channel();
    let quiet = async {
        quiet.await;
        let now = Instant::now();
        begun.set(Some((Timestamp::now(), now)));
        let _ = say.send(());
        now + COUNTING - Duration::from_millis(10)
    };
    let over = async {
        // The other end goes only with what is counted.
        let _ = said.await;
        tokio::time::sleep(COUNTING).await;
    };
    let holds = tokio::select! {
        holds = driver.count(context, Box::pin(quiet)) => holds,
        // A driver that does not keep to it is given up with what it knows.
        () = over => None,
    };
    let (taken_at, begun) = begun.get()?;
    let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    Some(Manifest { taken_at, took_ms, holds: holds? })
}

/// Looks at the files of a server, on a thread of its own.
pub(super) fn at_rest(server: &'static str, context: Context) -> JoinHandle<Look> {
    let until = Instant::now() + LOOKING;
    tokio::task::spawn_blocking(move || {
        driver_of(server).map_or(Look::Unknown, |driver| driver.at_rest(&context, until))
    })
}

/// What a server held that is gone now, and what lies on disk of it.
pub(super) async fn rest(server: &'static str, context: &Context, mut manifest: Manifest) -> Part {
    let rest = match at_rest(server, context.clone()).await {
        Ok(Look::Found(rest)) => Some(rest),
        Ok(Look::Gone | Look::Unknown) | Err(_) => None,
    };
    if let Some(rest) = &rest {
        complete(&mut manifest.holds, rest);
    }
    Part { manifest, rest }
}

impl Receipts {
    /// Takes down what servers held, each of which is gone now.
    pub(super) fn take(&mut self, mut servers: Parts) {
        // One that nobody needed this time is still as it was.
        for (server, part) in &self.woke.before {
            if !self.woke.checks.contains_key(server) {
                servers.entry(server.clone()).or_insert_with(|| part.clone());
            }
        }
        self.slept = Some(servers);
        self.unwritten = true;
    }

    /// What was taken down and is not written yet, beside its place.
    ///
    /// # Errors
    /// When the disk refuses; it is not tried again, and the next wake compares nothing.
    pub(super) fn beside(&mut self) -> Result<Option<Beside>, SystemError> {
        if !std::mem::take(&mut self.unwritten) {
            return Ok(None);
        }
        let servers = self.slept.clone().unwrap_or_default();
        let slept = Slept { instance: self.woke.instance.clone(), servers };
        let bytes = serde_json::to_vec(&slept).unwrap_or_default();
        Beside::write(&slept_path(&self.dir), &bytes, 0o600).map(Some)
    }
}

/// What only its files tell.
fn complete(holds: &mut Holds, rest: &Rest) {
    match holds {
        Holds::Tables { wal, .. } => wal.clone_from(&rest.position),
        Holds::Keys { octets, digest, .. } => {
            *octets = Some(rest.octets);
            digest.clone_from(&rest.content);
        }
        Holds::Objects { .. } | Holds::Messages { .. } => {}
    }
}
